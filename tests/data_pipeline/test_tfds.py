"""The TensorFlow Datasets builders, without tensorflow; with Beam where it is installed (make beam)."""

import importlib.util
import json
import subprocess
import sys

import grain
import numpy as np
import pytest
from PIL import Image

from zoomearth_jax.data_pipeline.tfds_builders import LrsGro, UhrTiles, prepare
from zoomearth_jax.errors import UserError

ROW = {"image_name": "a.png", "category": "Object color / pattern", "ground_truth": " red ", "type": "object"}
RUNNERS = [
    None,
    pytest.param(
        "DirectRunner",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("apache_beam") is None, reason="Beam isn't installed: make beam"
        ),
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lrs_gro")
    (folder / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (600, 1200, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "images" / "a.png")
    Image.fromarray(pixels[:40, :30]).save(folder / "images" / "b.tif")
    rows = [{**ROW, "question_id": str(i), "question": f"question {i}", "bbox": [100, 0, 200, 900]} for i in range(20)]
    rows[3] = {**rows[3], "bbox": [], "type": "global", "label": None}
    rows[4] = {**rows[3]}  # a duplicate, as the released rows have one
    for split, part in (("rl", rows), ("test", rows[:2])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


@pytest.mark.parametrize("runner", RUNNERS)
def test_lrs_gro(folder, tmp_path, runner):
    builder = LrsGro(data_dir=tmp_path)
    prepare(builder, folder, beam_runner=runner)
    assert builder._on_beam is (runner is not None)
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {"rl": 20, "test": 2}
    source = builder.as_data_source(split="rl")
    texts = [source[i]["question"].decode() for i in range(20)]
    assert texts == [f"question {i if i != 4 else 3}" for i in range(20)]  # released order
    first, globally = source[0], source[3]
    assert first["bbox"].tolist() == pytest.approx([117.1875, 0, 234.375, 600])  # px of 1200 x 600, cut at the border
    assert first["image_size"].tolist() == [1200, 600]
    assert (first["ground_truth"], first["has_box"], globally["has_box"]) == (b"red", True, False)
    assert globally["bbox"].tolist() == [0, 0, 0, 0]
    assert next(iter(grain.MapDataset.source(source).batch(4)))["bbox"].shape == (4, 4)


@pytest.mark.parametrize("runner", RUNNERS)
def test_uhr_tiles(folder, tmp_path, runner):
    builder = UhrTiles(data_dir=tmp_path, config="tiles")
    prepare(builder, folder, beam_runner=runner)
    original = {name: np.asarray(Image.open(folder / "images" / name)) for name in ("a.png", "b.tif")}
    covered = {name: np.zeros(pixels.shape[:2], int) for name, pixels in original.items()}
    for record in builder.as_data_source(split="train"):
        name = record["name"].decode().removeprefix("images/")
        x1, y1, x2, y2 = record["window"]
        covered[name][y1:y2, x1:x2] += 1
        np.testing.assert_array_equal(record["image"], original[name][y1:y2, x1:x2])
    assert all((count == 1).all() for count in covered.values())


def test_overviews(folder, tmp_path):
    builder = UhrTiles(data_dir=tmp_path, config="overviews")
    prepare(builder, folder)
    sizes = {record["name"]: record["image"].shape for record in builder.as_data_source(split="train")}
    assert sizes == {b"images/a.png": (256, 512, 3), b"images/b.tif": (40, 30, 3)}


def test_what_is_lacking_is_said_in_one_line(folder, tmp_path):
    for builder in (LrsGro(data_dir=tmp_path), UhrTiles(data_dir=tmp_path)):
        with pytest.raises(UserError, match="no such folder, or it is empty"):
            prepare(builder, tmp_path / "none")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "rl.jsonl").write_bytes((folder / "rl.jsonl").read_bytes())
    with pytest.raises(UserError, match="1 of 1 images are missing"):
        prepare(LrsGro(data_dir=tmp_path), tmp_path / "rows")
    with pytest.raises(UserError, match="no images"):
        prepare(UhrTiles(data_dir=tmp_path), tmp_path / "rows")
    assert not list(tmp_path.glob("lrs_gro/1.*"))  # nothing half-written


def test_the_command_line_imports_no_builder():
    code = "import sys, zoomearth_jax.cli as cli; cli._verbs(); print([m for m in sys.modules if m.startswith('tensorflow')])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
