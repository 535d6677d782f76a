"""`zoomearth tile` and `zoomearth bench tiles` as a user meets them."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from zoomearth_jax.cli import main
from zoomearth_jax.data_pipeline.tiles import TileStore


@pytest.fixture
def folder(tmp_path):
    """Two images, one of them in a subfolder, one broken, and a text."""
    (tmp_path / "images" / "süd west").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "images" / "a.TIF")
    Image.fromarray(noise).save(tmp_path / "images" / "süd west" / "b c.png")
    (tmp_path / "images" / "cut.png").write_bytes((tmp_path / "images" / "süd west" / "b c.png").read_bytes()[:9000])
    (tmp_path / "images" / "questions.jsonl").write_text("{}\n")
    return tmp_path


def tile(folder, *args) -> int:
    return main(["tile", str(folder / "images"), "--out", str(folder / "store"), *args])


def test_builds_resumes_verifies(folder, capsys):
    assert tile(folder, "--json") == 0
    said = capsys.readouterr()
    summary = json.loads(said.out)
    assert (summary["built"], summary["kept"], summary["refused"]) == (2, 0, 1)
    assert "cut.png: broken image data" in said.err
    assert "quarantine.jsonl" in said.err
    assert set(TileStore.open(folder / "store").records) == {"a.TIF", "süd west/b c.png"}
    line = json.loads((folder / "store" / "quarantine.jsonl").read_text())
    assert line["file"] == str(folder / "images" / "cut.png")
    assert line["reason"].startswith("broken image data")
    assert tile(folder) == 0
    assert "built 0, kept 2, refused 1" in capsys.readouterr().out
    assert main(["tile", "--out", str(folder / "store"), "--verify"]) == 0
    assert "verified 2" in capsys.readouterr().out
    shard = folder / "store" / "shards" / TileStore.open(folder / "store")["süd west/b c.png"].record.shard
    shard.write_bytes(shard.read_bytes()[:-1])
    assert main(["tile", "--out", str(folder / "store"), "--verify"]) == 2
    error = capsys.readouterr().err
    assert "damaged: süd west/b c.png: " in error
    assert "1 of 2 images are damaged" in error.splitlines()[-1]


def test_strict_ends_with_one_line_and_no_store(folder, capsys):
    assert tile(folder, "--strict") == 2
    error = capsys.readouterr().err
    assert "cut.png: broken image data" in error
    assert error.count("\n") == 1
    assert main(["tile", "--out", str(folder / "store"), "--verify"]) == 2
    assert re.search("not built to the end|no tile store", capsys.readouterr().err)
    (folder / "images" / "cut.png").unlink()
    assert tile(folder, "--strict") == 0


def test_bands_and_stretch(tmp_path, capsys):
    Image.fromarray(np.full((50, 60), 3000, np.uint16)).save(tmp_path / "deep.tif")
    assert main(["tile", str(tmp_path), "--out", str(tmp_path / "s"), "--strict"]) == 2
    assert "stretch" in capsys.readouterr().err
    args = ["--strict", "--stretch", "0", "6000", "--bands", "1", "1", "1"]
    assert main(["tile", str(tmp_path), "--out", str(tmp_path / "t"), *args]) == 0
    assert TileStore.open(tmp_path / "t").settings.stretch == (0, 6000)
    assert main(["tile", str(tmp_path), "--out", str(tmp_path / "t")]) == 2
    assert "was built with bands (1, 1, 1), not None" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "give image files or folders"),
        (["nowhere.tif"], "nowhere.tif: no such file"),
        (["."], "holds no TIFF"),
        (["--views", "10"], "views must be between 56 and 4096"),
        (["--workers", "-1"], "workers must be positive"),
        (["--bands", "0", "1", "2"], "numbers from 1"),
        (["--stretch", "9", "1"], "LOW must be below HIGH"),
        (["a.tif", "--verify"], "give no images"),
        (["--verify"], "no tile store"),
        (["--codec", "png"], "codec"),
    ],
)
def test_bad_input_is_one_line(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["tile", *args]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_bench_prints_its_row(capsys, tmp_path):
    args = ["--side", "700", "--big", "900", "--windows", "1", "--folder", str(tmp_path), "--json"]
    assert main(["bench", "tiles", *args]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert list(row)[:4] == ["striped_tiff_ratio", "png_ratio", "big_ratio", "build_s"]
    for name in ("striped_tiff", "png", "big"):
        assert row[f"{name}_ratio"] == pytest.approx(row[f"{name}_whole_ms"] / row[f"{name}_store_ms"])
        assert 0 < row[f"{name}_build_peak_gb"] < 2
    assert row["build_s"] == max(row["striped_tiff_build_s"], row["png_build_s"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("args", [["--side", "100"], ["--windows", "0"], ["--big", "90000"]])
def test_bench_refuses_impossible_sizes(args, capsys):
    assert main(["bench", "tiles", *args]) == 2
    assert "bench tiles: " in capsys.readouterr().err
