"""`zoomearth ask` and image settings as a user meets them: 16-bit files, tile stores, and where the picture goes."""

import dataclasses
import json

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image

from zoomearth_jax import cli
from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.configs.io import read_yaml, write_yaml
from zoomearth_jax.configs.training import SFTConfig
from zoomearth_jax.data_pipeline.images.image_folder import open_image
from zoomearth_jax.data_pipeline.questions.folders import read_questions
from zoomearth_jax.errors import UserError
from zoomearth_jax.runs.start import Run, open_loader
from zoomearth_jax.verbs.make_scenes import ScenesConfig, write_scenes

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A 16-bit file of four bands, tiled, with a scene inside; questions about its sites with their answers."""
    folder = tmp_path_factory.mktemp("deep")
    scenes = write_scenes(ScenesConfig(out=folder / "scenes", count=1, side=2048, seed=5))
    questions = [question for question in read_questions(scenes) if question.level == "object"]
    with Image.open(questions[0].image.path) as image:
        pixels = np.asarray(image).transpose(2, 0, 1).astype(np.uint16) * 16
    fourth = np.random.default_rng(0).integers(0, 4000, (1, 2048, 2048), np.uint16)
    path = folder / "images" / "deep.tif"
    path.parent.mkdir()
    profile = {
        "driver": "GTiff",
        "tiled": True,
        "interleave": "band",
        "dtype": "uint16",
        "count": 4,
        "width": 2048,
        "height": 2048,
    }
    with rasterio.open(path, "w", **profile) as file:
        file.write(np.concatenate([pixels, fourth]))
    return path, [(question.text, question.answer) for question in questions]


def said(capsys, *args) -> dict:
    capsys.readouterr()
    assert cli.main(["ask", *map(str, args), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refusal(capsys, *args) -> str:
    capsys.readouterr()
    assert cli.main([*map(str, args)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def test_16_bit_files_and_stores_of_them_are_answered_right(deep, capsys):
    path, questions = deep
    text, answer = questions[0]
    assert "stretch" in refusal(capsys, "tile", path, "--out", path.parent / "t")
    assert "stretch" in refusal(capsys, "ask", path, text)
    file = said(capsys, path, text, "--stretch", 0, 4080)
    assert file["answer"] == answer
    store = path.parents[1] / "tiles"
    assert cli.main(["tile", str(path.parent), "--out", str(store), "--stretch", "0", "4080"]) == 0
    assert said(capsys, store, text) == file
    by_name = open_image(store / "deep.tif", ImageConfig((1, 2, 3), (0, 4080)))
    assert (by_name.directory, by_name.record.id) == (store, "deep.tif")
    assert "built with --stretch 0 4080, not --stretch 2% 98%" in refusal(
        capsys, "ask", store, text, "--stretch", "2%", "98%"
    )


@pytest.mark.parametrize("form", ["jp2", "sparse.tif"])
def test_jpeg_2000_and_sparse_files_are_answered_right(deep, capsys, tmp_path, form):
    path, questions = deep
    with rasterio.open(path) as file:
        pixels = file.read()
    sparse = {"driver": "GTiff", "tiled": True, "interleave": "band", "sparse_ok": True, "nodata": 0}
    options = sparse if form == "sparse.tif" else {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES"}
    other = tmp_path / f"a.{form}"
    with rasterio.open(other, "w", dtype="uint16", count=4, width=2048, height=2048, **options) as file:
        if form == "jp2":
            file.write(pixels)
        else:  # the fourth band's tiles aren't there
            file.write(pixels[:3], indexes=[1, 2, 3])
    text, answer = questions[0]
    assert said(capsys, other, text, "--stretch", 0, 4080)["answer"] == answer


def test_a_store_of_several_images_lists_how_to_name_one(tmp_path, capsys):
    for name in ("a.png", "sub/b.png"):
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True, parents=True)
        Image.new("RGB", (60, 50)).save(tmp_path / "images" / name)
    store = tmp_path / "tiles"
    assert cli.main(["tile", str(tmp_path / "images"), "--out", str(store)]) == 0
    assert f"holds 2 images; name one of them, such as {store}/a.png, {store}/sub/b.png" in refusal(
        capsys, "ask", store, "?"
    )
    assert "no image 'sub/c.png' among the 2" in refusal(capsys, "ask", store / "sub" / "c.png", "?")
    assert "did you mean 'sub/b.png'?" in refusal(capsys, "ask", store / "sub" / "c.png", "?")
    assert "a folder, not an image" in refusal(capsys, "ask", tmp_path, "?")
    assert "no such image file" in refusal(capsys, "ask", tmp_path / "none.tif", "?")
    assert "File name too long" in refusal(capsys, "ask", "x" * 300, "?")
    (store / "index.json").unlink()
    assert "not built to the end" in refusal(capsys, "ask", store / "a.png", "?")


def test_the_picture_s_place_is_checked_before_the_model_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zoomearth_jax.verbs.ask.load", None)  # never reached
    Image.new("RGB", (60, 50)).save("image.png")
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for place, message in (
        ("file/out.png", "file/out.png: can't be written ("),
        ("folder.png", "folder.png: can't be written (is a directory)"),
        ("/proc/nowhere/out.png", "/proc/nowhere/out.png: can't be written"),
        ("image.png", "would overwrite the image itself"),
        (str(tmp_path / "file" / ".." / "image.png"), "would overwrite the image itself"),
        ("x" * 251 + ".png", "File name too long"),
        ("out.gif", "--save writes PNG"),
    ):
        assert message in refusal(capsys, "ask", "image.png", "?", "--save", place), place
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("verb", ["ask x ?", "evaluate", "sft", "grpo", "tile x"])
def test_verbs_that_read_images_take_their_settings(verb, tmp_path):
    flags = "--bands 3 2 1 --max-pixels 7 --stretch"
    verbs = cli._verbs()
    for stretch, value in (("2% 98%", ("2%", "98%")), ("0 3000", (0.0, 3000.0)), ("min max", ("min", "max"))):
        config = cli._parse([*verb.split(), *flags.split(), *stretch.split()], verbs)
        assert config.images == ImageConfig((3, 2, 1), value, 7)
        write_yaml(tmp_path / "images.yaml", config.images)
        assert read_yaml(tmp_path / "images.yaml", ImageConfig) == config.images


def test_a_run_goes_on_with_its_own_image_settings_alone(nano, deep, tmp_path, capsys):
    path, _ = deep
    row = {"image": path.name, "question": "q", "answer": "a", "level": "global"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(row))
    (tmp_path / "images").symlink_to(path.parent)
    assert "stretch" in refusal(capsys, "sft", "--data", tmp_path, "--out", tmp_path / "run")
    images = ImageConfig((1, 2, 3), (0.0, 4080.0))
    config = SFTConfig(data=(str(tmp_path),), out=tmp_path / "run", batch_size=1, images=images)
    with open_loader(config, "sft", nano.rows.supervised, 1) as loader:
        with Run(config, *nano, loader) as run:
            run.begin()
        with Run(dataclasses.replace(config, resume=True), *nano, loader):
            pass
        for other in (ImageConfig(), dataclasses.replace(images, stretch=(0, 4079))):
            with pytest.raises(UserError, match="the run to resume has images="):
                Run(dataclasses.replace(config, resume=True, images=other), *nano, loader)


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    """A scene in a GeoTIFF that lies turned, and a question about it."""
    folder = tmp_path_factory.mktemp("turned")
    scenes = write_scenes(ScenesConfig(out=folder, count=1, side=1024, seed=5))
    question = next(question for question in read_questions(scenes) if question.level == "object")
    with Image.open(question.image.path) as image:
        pixels = np.asarray(image).transpose(2, 0, 1)
    transform = Affine(0.5, 0, 412_345.25, 0, -0.5, 5_654_321.75) @ Affine.rotation(30)
    profile = {"driver": "GTiff", "width": 1024, "height": 1024, "count": 3, "dtype": "uint8"}
    with rasterio.open(folder / "turned.tif", "w", **profile, transform=transform, crs="EPSG:32633") as file:
        file.write(pixels)
    return folder / "turned.tif", question.text, transform


def test_boxes_and_crops_are_found_again_on_the_map(turned, tmp_path, capsys):
    geopandas = pytest.importorskip("geopandas")
    path, text, transform = turned
    shown = said(capsys, path, text, "--geojson", tmp_path / "o.geojson", "--save-crop", tmp_path / "crop.png")
    earth, own = (geopandas.read_file(tmp_path / name) for name in ("o.geojson", "o.EPSG_32633.geojson"))
    assert list(own.kind) == ["box", "window"]
    assert set(own.answer) == {shown["answer"]}
    assert (own.crs.to_epsg(), earth.crs.to_epsg()) == (32633, 4326)
    for frame in (own, earth.to_crs(32633)):
        for shape, corners in zip(frame.geometry, (shown["turns"][0]["box"], shown["window"]), strict=True):
            px = np.array([~transform @ place for place in shape.exterior.coords])
            x1, y1, x2, y2 = corners
            np.testing.assert_allclose((*px.min(0), *px.max(0)), (x1, y1, x2, y2), atol=0.06)  # 0.05: rounded
    with rasterio.open(tmp_path / "crop.png") as crop:
        assert crop.crs.to_epsg() == 32633
        x1, y1, x2, y2 = shown["window"]
        np.testing.assert_allclose(crop.transform @ (0, 0), transform @ (x1, y1), atol=1e-3)
        np.testing.assert_allclose(crop.transform @ (crop.width, crop.height), transform @ (x2, y2), atol=1e-3)
        assert {crop.width, crop.height} <= set(range(28, 113, 28))  # as the model saw it


def test_files_for_the_map_are_refused_before_the_model_runs(turned, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zoomearth_jax.verbs.ask.load", None)  # never reached
    path, text, _ = turned
    Image.new("RGB", (60, 50)).save("plain.png")
    Image.new("RGB", (60, 50)).save("world.png")
    (tmp_path / "world.pgw").write_text("1\n0\n0\n-1\n5\n5\n")
    (tmp_path / "o.EPSG_32633.geojson").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for image, flags, message in (
        ("plain.png", ("--geojson", "p.geojson"), "plain.png: has no georeference, which --geojson needs"),
        ("world.png", ("--geojson", "p.geojson"), "world.png: has a transform but no CRS"),
        (path, ("--geojson", "o.shp"), "--geojson writes GeoJSON"),
        (path, ("--geojson", "o.geojson"), "o.EPSG_32633.geojson: can't be written"),
        (path, ("--save-crop", "crop.gif"), "--save-crop writes .tif, .png or .jpg"),
        (path, ("--save-crop", path), "would overwrite the image itself"),
        ("world.png", ("--save-crop", "world.png"), "would overwrite the image itself"),
    ):
        assert message in refusal(capsys, "ask", image, text, *flags)
    assert sorted(tmp_path.rglob("*")) == before
