import json

import numpy as np
import pytest
from PIL import Image

from zoomearth_jax.data_pipeline.image_folder import ImageFolder
from zoomearth_jax.data_pipeline.images import RawImage, whole
from zoomearth_jax.data_pipeline.questions import read_questions
from zoomearth_jax.data_pipeline.tile_build import build_store
from zoomearth_jax.data_pipeline.tiles import StoredImage, StoreSettings
from zoomearth_jax.errors import UserError


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
