"""`zoomearth tile` and `zoomearth bench tiles` as a user meets them."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from zoomearth_jax.bench import memory
from zoomearth_jax.bench.memory import write_clouds
from zoomearth_jax.cli import main
from zoomearth_jax.data_pipeline.images.decoding import ImageFile
from zoomearth_jax.data_pipeline.images.tiles import FORMAT, VERSION, StoreSettings, TileStore
from zoomearth_jax.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


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


def deep_file(folder, value=3000):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((50, 60), value, np.uint16)).save(folder / "deep.tif")
    return folder


def test_nothing_stored_is_an_error_and_leaves_nothing(tmp_path, capsys):
    images, out = deep_file(tmp_path / "images"), tmp_path / "made" / "tiles"
    command = ["tile", str(images), "--out", str(out)]
    before = sorted(tmp_path.rglob("*"))
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"zoomearth: {out}: nothing was stored: {images / 'deep.tif'}: ")
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
    (images / "b.png").write_bytes(b"")
    assert main([*command, "--json"]) == 2
    said = capsys.readouterr()
    assert [Path(line["file"]).name for line in json.loads(said.out)["refused_files"]] == ["b.png", "deep.tif"]
    assert said.err.count("refused: ") == 2
    assert "all 2 images were refused" in said.err.splitlines()[-1]
    out.mkdir(parents=True)  # a folder that is the user's own stays
    assert main(command) == 2
    assert list(out.iterdir()) == []
    assert main([*command, "--stretch", "0", "6000"]) == 0
    assert set(TileStore.open(out).records) == {"deep.tif"}


def test_settings_of_a_build_that_stored_nothing_bind_nobody(tmp_path):
    """Neither an empty store of an earlier version, nor what a first build leaves that is killed."""
    images, out = deep_file(tmp_path / "images"), tmp_path / "tiles"

    def leave(*names):
        for folder in ("shards", "records"):
            (out / folder).mkdir(parents=True)
        (out / "shards" / "x.array_record.partial").write_bytes(b"half")
        said = {"format": FORMAT, "version": VERSION, "settings": dataclasses.asdict(StoreSettings()), "images": []}
        for name in names:
            (out / name).write_text("" if name.endswith("l") else json.dumps(said))

    for names in (("settings.json",), ("settings.json", "index.json", "quarantine.jsonl")):
        leave(*names)
        assert main(["tile", str(images), "--out", str(out), "--stretch", "0", "6000", "--codec", "webp"]) == 0
        shutil.rmtree(out)
    leave("settings.json", "index.json")
    assert main(["tile", str(images), "--out", str(out), "--strict"]) == 2
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("name", ["settings.json", "index.json", "quarantine.jsonl", "shards/a", "records/a.json"])
def test_another_program_s_files_stay(tmp_path, capsys, name):
    deep_file(tmp_path / "images")
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).write_text('{"mine": 1}')
    before = sorted(tmp_path.rglob("*"))
    assert main(["tile", str(tmp_path / "images"), "--out", str(tmp_path / "out"), "--stretch", "0", "9"]) == 2
    assert "use another folder" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_everything_that_is_passed_over_is_named(folder, capsys):
    for name in ("a.TIF.aux.xml", "a.tfw", "süd west/c.tfw", ".hidden.png", "notes.docx"):
        (folder / "images" / name).write_text("x")
    assert tile(folder, "--json") == 0
    said = capsys.readouterr()
    lines = [line.removeprefix("passed over: ") for line in said.err.splitlines() if line.startswith("passed over: ")]
    images = folder / "images"
    assert lines == [
        f"{images / '.hidden.png'}: hidden",
        f"{images / 'notes.docx'}: not an image by its name",
        f"{images / 'questions.jsonl'}: not an image by its name",
        "3 sidecar files (.tfw, .xml)",
    ]
    summary = json.loads(said.out)
    assert summary["passed_over"] == len(summary["passed_over_files"]) == 6
    assert {"file": str(images / "a.tfw"), "reason": "a sidecar file"} in summary["passed_over_files"]
    assert [Path(line["file"]).name for line in summary["refused_files"]] == ["cut.png"]


def test_one_unforeseen_failure_doesn_t_end_the_build(folder, capsys, monkeypatch):
    strips = ImageFile.strips

    def failing(self, height):
        if self.path.name == "a.TIF":
            raise IndexError("palette")
        return strips(self, height)

    monkeypatch.setattr(ImageFile, "strips", failing)
    assert tile(folder) == 0
    assert "a.TIF: can't be read (IndexError: palette)" in capsys.readouterr().err
    (folder / "images" / "cut.png").unlink()
    assert tile(folder, "--strict") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_real_clashes_alone_are_refused(tmp_path, capsys):
    for number, name in enumerate(("a/train/1.png", "a/val/1.png", "b/train/1.png")):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("RGB", (50 + number, 40)).save(tmp_path / name)
    one, two, out = str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "s")
    assert main(["tile", one, two, "--out", out]) == 2
    assert "two images are named train/1.png: " in capsys.readouterr().err
    assert main(["tile", one, "--out", out]) == 0
    assert main(["tile", two, "--out", out]) == 2  # not in silence instead of the first one
    assert "the store has another image of the name train/1.png" in capsys.readouterr().err
    assert main(["tile", f"{one}/train/1.png", f"{one}/val/1.png", "--out", out]) == 0  # known by other names
    assert "kept 2" in capsys.readouterr().out
    assert main(["tile", str(tmp_path), "--out", str(tmp_path / "t")]) == 0
    assert set(TileStore.open(tmp_path / "t").records) == {"a/train/1.png", "a/val/1.png", "b/train/1.png"}
    capsys.readouterr()
    (tmp_path / "a").rename(tmp_path / "c")  # moved, the same content
    assert main(["tile", str(tmp_path / "c"), "--out", out]) == 0
    assert "kept 2" in capsys.readouterr().out


def test_bench_memory_measures_both_verbs(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "measured", lambda args: (1.5, 2.0) if Path(args[1]).is_file() else None)
    assert main(["bench", "memory", "--sizes", "1300x700", "--folder", str(tmp_path), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert list(row) == ["image", "file_gb", "ask_peak_gb", "ask_s", "tile_peak_gb", "tile_s"]
    monkeypatch.undo()
    write_clouds(tmp_path / "a.tif", 1300, 700, 0)
    with rasterio.open(tmp_path / "a.tif") as file:
        assert (file.shape, file.compression.value, file.profile["tiled"]) == ((700, 1300), "JPEG", True)
    peak, seconds = memory.measured(["tile", str(tmp_path / "a.tif"), "--out", str(tmp_path / "s")])
    assert 0.05 < peak < 1
    assert seconds > 0
    with pytest.raises(UserError, match="bench: `tile` failed: zoomearth: "):
        memory.measured(["tile", str(tmp_path / "none.tif")])
    for sizes in ("9", "0x9", "99999x99999", "axb"):
        assert main(["bench", "memory", "--sizes", sizes]) == 2
