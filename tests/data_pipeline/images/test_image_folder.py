import contextlib
import dataclasses
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.data_pipeline.images.boxes import Frame
from zoomearth_jax.data_pipeline.images.image_folder import ImageFolder
from zoomearth_jax.data_pipeline.images.image_search import find_images
from zoomearth_jax.data_pipeline.images.sources import RawImage, whole
from zoomearth_jax.data_pipeline.images.tile_build import build_store
from zoomearth_jax.data_pipeline.images.tiles import StoredImage, StoreSettings, TileStore
from zoomearth_jax.data_pipeline.questions.folders import read_questions
from zoomearth_jax.data_pipeline.questions.mixture import open_sources
from zoomearth_jax.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture
def files(tmp_path):
    """Two files outside of the folder that questions are in."""
    paths = [tmp_path / "files" / name for name in ("a.png", "b.png")]
    paths[0].parent.mkdir()
    for i, path in enumerate(paths):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (300, 500, 3), np.uint8)).save(path)
    return paths


@pytest.mark.parametrize("place", ["tiles", "."])
def test_images_of_a_store(files, tmp_path, place):
    folder = tmp_path / "data"
    folder.mkdir()
    build_store(files, folder / place, StoreSettings(), workers=1)
    images = ImageFolder(folder).open(["a.png", "b.png", "a.png"])
    assert [type(image) for image in images.values()] == [StoredImage, StoredImage]
    file = RawImage(files[1])
    pixels = images["b.png"].window(whole(file), file.frame, exact=True)
    np.testing.assert_array_equal(pixels, file.window(whole(file), file.frame))
    with pytest.raises(UserError, match=r"1 of 2 images are missing: c\.png"):
        ImageFolder(folder).open(["a.png", "c.png"])


def test_questions_over_a_store_and_files(files, tmp_path):
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    build_store(files[:1], folder / "tiles", StoreSettings(), workers=1)
    files[1].rename(folder / "images" / "b.png")  # what the store lacks
    row = {"question": "q", "answer": "a", "level": "object", "box": [1, 2, 3, 4]}
    lines = [json.dumps({"image": name, **row}) for name in ("a.png", "b.png")]
    (folder / "questions.jsonl").write_text("\n".join(lines))
    stored, plain = read_questions(folder)
    assert (type(stored.image), type(plain.image)) == (StoredImage, RawImage)
    assert stored.box.frame == plain.box.frame == plain.image.frame
    released = {
        "question_id": "1",
        "category": "Season",
        "ground_truth": "winter",
        "image_name": "a.png",
        "question": "q",
    }
    (folder / "questions.jsonl").unlink()
    (folder / "rl.jsonl").write_text(json.dumps({**released, "bbox": [0, 0, 1024, 600]}))
    assert read_questions(folder, "grpo")[0].box.corners == pytest.approx((0, 0, 500, 292.97), abs=0.01)


@pytest.mark.parametrize("name", ["../files/a.png", "x/../../files/a.png", "{}/files/a.png"])
def test_names_stay_inside(files, tmp_path, name):
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match="not inside the folder"):
        ImageFolder(tmp_path / "data").open([name.format(tmp_path)])


def test_images_may_be_a_link_to_another_disk(files, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images").symlink_to(files[0].parent)
    assert ImageFolder(tmp_path / "data").open(["a.png"])["a.png"].frame.width == 500


def image_file(path, width):
    """A small image file that is told from others by its width."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, 10), (width % 256, 0, 0)).save(path)
    return path


def build_found(places, store, **settings):
    """As `zoomearth tile PLACES --out STORE`."""
    images = find_images(places, store).images
    return build_store(list(images), store, StoreSettings(**settings), ids=list(images.values()), workers=1)


@pytest.mark.parametrize("seed", range(12))
def test_a_stored_image_is_found_by_every_name_of_its_file(tmp_path, monkeypatch, seed):
    """Random folders, tiled by any of the ways to name them, and again: names lead where they lead without a store."""
    rng, folder = np.random.default_rng(seed), tmp_path / "data"
    names = [
        f"{place}{sub}{n}.png" for place in ("images/", "") for sub in ("", "train/", "ä b/", "x/y/") for n in "12"
    ]
    chosen = [str(name) for name in rng.permutation(names)[: rng.integers(3, 9)]]
    files = {name: image_file(folder / name, 20 + i) for i, name in enumerate(chosen)}
    asked = [name.removeprefix(start) for name in chosen for start in ("", "images/")]
    expected = {name: ImageFolder(folder).get(name).frame.width for name in asked}
    monkeypatch.chdir(tmp_path)
    ways = [[folder], [Path("data")], [folder / "images"], [folder / "images", folder], list(files.values())]
    for way in rng.permutation(len(ways))[:2]:
        places = [place for place in ways[way] if place.exists()]
        with contextlib.suppress(UserError):  # two of one name, or nothing to tile
            build_found(places, Path("data/tiles") if rng.integers(2) else folder / "tiles")
        images = ImageFolder("data").open(asked)
        assert {name: image.frame.width for name, image in images.items()} == expected
        if way < 2 and (folder / "tiles").exists():
            assert {type(image) for image in images.values()} == {StoredImage}
    if (folder / "tiles").exists():
        folder.rename(tmp_path / "moved")
        images = ImageFolder(tmp_path / "moved").open(asked)
        assert {name: image.frame.width for name, image in images.items()} == expected


def test_stores_of_images_elsewhere_and_given_singly(tmp_path):
    far = image_file(tmp_path / "far" / "sub" / "a.png", 40)
    data = tmp_path / "data"
    build_found([far.parents[1]], data / "tiles")
    assert ImageFolder(data).get("sub/a.png").frame.width == 40
    assert ImageFolder(data).get("a.png") is None
    near = image_file(data / "images" / "sub" / "b.png", 41)
    build_found([near], data / "tiles")
    for name in ("b.png", "sub/b.png", "./images/sub/b.png"):
        assert isinstance(ImageFolder(data).get(name), StoredImage), name
    image_file(data / "images" / "b.png", 42)  # its file comes before the bare name of another
    assert ImageFolder(data).get("b.png").frame.width == 42
    assert build_found([data / "images"], data / "tiles").built == 2  # b.png, and sub/b.png by its own name
    assert {n: ImageFolder(data).get(n).frame.width for n in ("b.png", "sub/b.png")} == {"b.png": 42, "sub/b.png": 41}


def test_unicode_forms_links_and_home(tmp_path, monkeypatch):
    name = unicodedata.normalize("NFD", "süd.png")
    image_file(tmp_path / "disk" / "images" / name, 50)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images").symlink_to(tmp_path / "disk" / "images")
    monkeypatch.setenv("HOME", str(tmp_path))
    for kind in (RawImage, StoredImage):
        for form in ("NFC", "NFD"):
            assert type(ImageFolder("~/data").get(unicodedata.normalize(form, "süd.png"))) is kind
        build_found([Path("~/data/images")], Path("~/data/tiles"))
    (tmp_path / "data" / "images").unlink()
    assert ImageFolder("~/data").get("süd.png").frame.width == 50
    assert "süd.png" in TileStore.open("~/data/tiles")


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "x/" * 3000 + "a.png", "\ud800.png", "a\0b.png", "", "."])
def test_odd_names_are_missing_or_refused(tmp_path, name):
    with contextlib.suppress(UserError):
        assert ImageFolder(tmp_path).get(name) is None


def as_old_store(store):
    """What builds left before records said where their files were: bare names as ids."""
    for file in (*(store / "records").iterdir(), store / "index.json"):
        values = json.loads(file.read_text())
        for record in values.get("images", [values]):
            del record["source"]
        file.write_text(json.dumps(values))


def test_old_stores_open_and_a_rerun_keeps_what_they_have(tmp_path):
    data = tmp_path / "data"
    files = [image_file(data / "images" / name, 60 + i) for i, name in enumerate(("a.png", "sub/b.png"))]
    build_store(files, data / "tiles", StoreSettings(), workers=1)
    as_old_store(data / "tiles")
    assert [type(ImageFolder(data).get(name)) for name in ("a.png", "b.png", "sub/b.png")] == [
        StoredImage,
        StoredImage,
        RawImage,
    ]
    report = build_found([data / "images"], data / "tiles")
    assert (report.built, report.kept) == (0, 2)
    for name in ("a.png", "b.png", "sub/b.png", "images/sub/b.png"):
        assert isinstance(ImageFolder(data).get(name), StoredImage)
    image_file(data / "images" / "b.png", 70)  # a file that the old id would name
    assert build_found([data / "images"], data / "tiles").built == 2
    assert [ImageFolder(data).get(name).frame.width for name in ("b.png", "sub/b.png")] == [70, 61]


def test_the_settings_of_a_store_rule(files, tmp_path):
    with rasterio.open(tmp_path / "deep.tif", "w", width=30, height=20, count=4, dtype="uint16") as file:
        file.write(np.full((4, 20, 30), 1000, np.uint16))
    build_store(
        [tmp_path / "deep.tif"], tmp_path / "deep", StoreSettings(bands=(3, 2, 1), stretch=(0.0, 2000.0)), workers=1
    )
    build_store(files, tmp_path / "plain", StoreSettings(), workers=1)
    for given in (ImageConfig(), ImageConfig((3, 2, 1), (0, 2000)), ImageConfig(max_pixels=5)):
        assert TileStore.open(tmp_path / "deep", given)["deep.tif"].frame.width == 30
    with pytest.raises(UserError, match=r"built with --stretch 0 2000, not --stretch 2% 98%; leave that out"):
        TileStore.open(tmp_path / "deep", ImageConfig(stretch=("2%", "98%")))
    with pytest.raises(UserError, match=r"built with --bands 3 2 1, not --bands 1 2 3"):
        ImageFolder(tmp_path / "deep", ImageConfig((1, 2, 3)))
    with pytest.raises(UserError, match=r"built with no --bands, not --bands 3 2 1"):
        ImageFolder(tmp_path / "plain", ImageConfig((3, 2, 1)))
    ImageFolder(tmp_path / "plain", ImageConfig((1, 2, 3), ("min", "max")))  # 8-bit images, which no stretch changes


def test_folders_and_sources_take_image_settings(tmp_path):
    with rasterio.open(tmp_path / "a.tif", "w", width=300, height=200, count=5, dtype="uint16") as file:
        file.write(np.full((5, 200, 300), 1000, np.uint16))
    row = {"image": "a.tif", "question": "q", "answer": "a", "level": "global"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=r"a\.tif"):
        read_questions(tmp_path)
    config = ImageConfig((3, 2, 1), (0, 2000))
    (source,) = open_sources([str(tmp_path)], "sft", seed=0, global_share=0, images=config)
    for image in (read_questions(tmp_path, images=config)[0].image, source.questions[0].image):
        assert image.window(whole(image), Frame(4, 4)).tolist() == np.full((4, 4, 3), 128).tolist()
    with pytest.raises(UserError, match="over the limit of 59,999 px"):
        read_questions(tmp_path, images=dataclasses.replace(config, max_pixels=59_999))
