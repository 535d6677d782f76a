"""The grid of a scan, what counts as found, and one box for what several windows show; and the verb itself."""

import itertools
import json
import re
import shutil
import signal

import numpy as np
import pytest
import rasterio
from PIL import Image

from tests.processes import ROOT, start
from zoomearth_jax.bench.scan import ScanBenchConfig, agreement, write_mosaic
from zoomearth_jax.cli import main
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.images.geometry import geometry
from zoomearth_jax.data_pipeline.images.sources import RawImage
from zoomearth_jax.errors import UserError
from zoomearth_jax.evaluation import runner
from zoomearth_jax.evaluation.records import Record
from zoomearth_jax.evaluation.scanning import grid, hits, merged, window_items

FRAME = Frame(1000, 700)
SIDE, SCENE = 1024, 512
QUESTION = "Which way do the stripes of the orange site run?"


def corners(windows) -> list[tuple]:
    return [window.corners for window in windows]


def test_a_grid_by_hand():
    assert corners(grid(Frame(800, 400), 400, 0)) == [(0, 0, 400, 400), (400, 0, 800, 400)]
    assert corners(grid(Frame(800, 300), 400, 0.5)) == [(0, 0, 400, 300), (200, 0, 600, 300), (400, 0, 800, 300)]
    assert corners(grid(Frame(900, 100), 400, 0)) == [(0, 0, 400, 100), (250, 0, 650, 100), (500, 0, 900, 100)]
    assert corners(grid(Frame(90, 100), 400, 0.25)) == [(0, 0, 90, 100)]
    assert corners(grid(Frame(400, 401), 400, 0)) == [(0, 0, 400, 400), (0, 1, 400, 401)]


@pytest.mark.parametrize("overlap", [0, 0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("size", [(1000, 700), (2048, 100), (100, 999), (2049, 2049)])
def test_a_grid_covers_the_image_and_neighbours_overlap(size, overlap):
    frame = Frame(*size)
    windows = grid(frame, 256, overlap)
    seen = np.zeros((frame.height, frame.width), bool)
    for window in windows:
        x1, y1, x2, y2 = window.corners
        assert (x2 - x1, y2 - y1) == (min(256, frame.width), min(256, frame.height))
        assert 0 <= x1 < x2 <= frame.width
        assert 0 <= y1 < y2 <= frame.height
        seen[y1:y2, x1:x2] = True
    assert seen.all()
    starts = sorted({window.x1 for window in windows})
    assert all(after - before <= 256 * (1 - overlap) + 1 for before, after in itertools.pairwise(starts))


def test_too_many_windows_are_one_line():
    with pytest.raises(UserError, match="windows; take a larger --tile-px or less --overlap"):
        grid(Frame(100_000, 100_000), 64, 0.9)


def record(id, answer, box=(1, 2, 3, 4)):
    return Record("scan", id, answer=answer, box=box)


def test_what_counts_as_found():
    records = [
        record("100,200", " Rising "),
        record("0,0", "None."),
        record("0,1", "NO"),
        record("0,2", "nowhere"),
        record("0,3", None),
        record("0,4", "rising", None),
    ]
    found = [(box.corners, answer) for box, answer in hits(records, FRAME, ("no", "none"))]
    assert found == [((101, 202, 103, 204), "Rising"), ((1, 4, 3, 6), "nowhere")]


def test_boxes_that_show_the_same_are_one():
    named = [
        (Box(0, 0, 10, 10, FRAME), "a"),
        (Box(500, 500, 600, 600, FRAME), "c"),
        (Box(2, 0, 12, 10, FRAME), "b"),  # IoU with the first is 80 / 120
        (Box(1, 1, 11, 11, FRAME), "b"),
        (Box(8, 0, 18, 10, FRAME), "d"),  # with the mean of the three, 1 to 11 and 1/3 to 10 1/3: under a third
    ]
    first, second, third = merged(named, 0.5)
    np.testing.assert_allclose(first.box.corners, (1, 1 / 3, 11, 31 / 3))
    assert first.to_json() == {"box": [1, 0.3, 11, 10.3], "answer": "b", "answers": {"a": 1, "b": 2}, "windows": 3}
    assert second.box.corners == (500, 500, 600, 600)
    assert (third.answer, third.windows) == ("d", 1)
    assert [one.windows for one in merged(named, 1.0)] == [1] * 5
    assert [one.answer for one in merged([(named[0][0], "x"), (named[0][0], "y")], 1.0)] == ["x"]  # of equals the first
    assert merged([], 0.5) == []


def test_windows_are_images_of_their_own(mosaic):
    path, _ = mosaic
    image = RawImage(path)
    items = window_items(image, "m.tif", "?", grid(image.frame, SCENE, 0))
    assert [item.id for item in items] == ["0,0", "512,0", "0,512", "512,512"]
    with rasterio.open(path) as file:
        whole = file.read().transpose(1, 2, 0)
    part = items[1].question.image
    np.testing.assert_array_equal(part.window(Box(3, 4, 203, 104, part.frame), Frame(200, 100)), whole[4:104, 515:715])
    assert part.georeference.places([(0, 0)]).tolist() == image.georeference.places([(512, 0)]).tolist()


@pytest.fixture(scope="module")
def mosaic(tmp_path_factory):
    """A GeoTIFF of four scenes, and its sites."""
    path = tmp_path_factory.mktemp("mosaic") / "m.tif"
    return path, write_mosaic(path, ScanBenchConfig(side=SIDE, scene=SCENE, seed=1))


def args(path, out, *more):
    how = ["--tile-px", SCENE, "--overlap", "0", "--batch-size", "2", *more]
    return list(map(str, ["scan", path, QUESTION, "--out", out, *how]))


@pytest.fixture(scope="module")
def scanned(mosaic, tmp_path_factory):
    """The folder of a scan from beginning to end."""
    out = tmp_path_factory.mktemp("scan") / "out"
    assert main(args(mosaic[0], out)) == 0
    return out


def results(out) -> dict:
    """What results.json holds, without what differs from time to time."""
    read = json.loads((out / "results.json").read_text())
    return {key: read[key] for key in ("image", "question", "model", "counts", "boxes", "config_hash")}


def test_a_scan_finds_the_sites_and_says_where_they_lie(mosaic, scanned):
    geopandas = pytest.importorskip("geopandas")
    path, sites = mosaic
    orange = [(box, site) for box, site in sites if site.color == "orange"]
    read = results(scanned)
    assert read["counts"] == {"windows": 4, "unreadable": 0, "named": 4, "boxes": len(read["boxes"])}
    figures = agreement(orange, read["boxes"], SCENE)
    assert figures["recall_centre"] == 1.0
    assert figures["answers"] == 1.0
    own, earth = (geopandas.read_file(scanned / f"boxes.{name}geojson") for name in ("EPSG_32633.", ""))
    with rasterio.open(path) as file:
        assert own.crs == file.crs.to_wkt()
        for row, box in zip(own.itertuples(), read["boxes"], strict=True):
            x1, y1, x2, y2 = box["box"]
            left, top = file.transform @ (x1, y1)
            right, bottom = file.transform @ (x2, y2)
            np.testing.assert_allclose(row.geometry.bounds, (left, bottom, right, top), atol=0.05)
            assert (row.answer, row.windows) == (box["answer"], 1)
    np.testing.assert_allclose(earth.to_crs(own.crs).total_bounds, own.total_bounds, atol=0.01)


def test_the_documentation_s_blocks_run(mosaic, scanned, tmp_path, monkeypatch, capsys):
    """The blocks of docs/map.md, on a mosaic as huge.tif and scene.tif, and a box that was drawn."""
    pytest.importorskip("geopandas")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(scanned, tmp_path / "runs" / "scan")
    for name in ("huge.tif", "scene.tif"):
        shutil.copy(mosaic[0], tmp_path / name)
    image = RawImage("scene.tif")
    drawn = geometry(Box(100, 200, 300, 260, image.frame), image.georeference)
    (tmp_path / "drawn.geojson").write_text(json.dumps(drawn))
    own: dict = {}
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "map.md").read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(code, "docs/map.md", "exec"), {} if "huge.tif" in code else own)  # which has an image of its own
    first, *rest = capsys.readouterr().out.splitlines()
    corners = [float(number) for number in re.findall(r"[xy][12]=([\d.]+)", first)]
    np.testing.assert_allclose(corners, (100, 200, 300, 260), atol=0.01)
    assert [line.split()[0] for line in rest] == [box["answer"] for box in results(scanned)["boxes"]]
    with rasterio.open("part.tif") as part, rasterio.open("scene.tif") as scene:
        np.testing.assert_allclose(part.transform @ (256, 256), scene.transform @ (612, 712))


def test_the_picture_has_the_boxes(mosaic, scanned):
    with Image.open(scanned / "picture.png") as picture:
        assert picture.size == (SIDE, SIDE)
        pixels = np.asarray(picture)
    for box in results(scanned)["boxes"]:
        x1, y1, _, y2 = (round(corner) for corner in box["box"])
        edge = pixels[(y1 + y2) // 2, x1 - 2 : x1 + 3].tolist()
        assert [255, 0, 200] in edge


def test_a_scan_goes_on_where_its_records_end(mosaic, scanned, tmp_path, monkeypatch):
    out, played = tmp_path / "out", []
    out.mkdir()
    lines = (scanned / "records.jsonl").read_text().splitlines(keepends=True)
    (out / "records.jsonl").write_text("".join([*lines[:2], lines[2][:50]]))  # killed in the midst of the third
    play = runner.play_batches

    def counted(engine, params, questions, *rest, **how):
        played.extend(questions)
        return play(engine, params, questions, *rest, **how)

    monkeypatch.setattr(runner, "play_batches", counted)
    assert main(args(mosaic[0], out, "--resume")) == 0
    assert len(played) == 2
    assert results(out) == results(scanned)
    for name in ("boxes.geojson", "boxes.EPSG_32633.geojson", "picture.png"):
        assert (out / name).read_bytes() == (scanned / name).read_bytes()


@pytest.mark.slow
def test_a_killed_scan_goes_on_as_if_nothing_had_been(mosaic, scanned, tmp_path):
    out = tmp_path / "out"
    process = start("evaluation/dying.py", 1, 1, *args(mosaic[0], out))
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    assert sorted(file.name for file in out.iterdir()) == [".lock", "records.jsonl"]
    assert main(args(mosaic[0], out, "--resume")) == 0
    assert results(out) == results(scanned)


def test_answers_that_mean_nothing_and_lonely_boxes_are_left_out(mosaic, scanned, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "play_batches", None)  # nothing is played anew
    answers = {box["answer"] for box in results(scanned)["boxes"]}
    for more in (["--absent", *answers], ["--min-windows", "2"]):
        out = shutil.copytree(scanned, tmp_path / more[0])
        assert main([*args(mosaic[0], out, "--resume"), *more]) == 0
        assert results(out)["boxes"] == []
        assert json.loads((out / "boxes.EPSG_32633.geojson").read_text())["features"] == []


def test_records_of_another_grid_question_or_image_are_refused(mosaic, scanned, tmp_path, capsys):
    for change in (["--tile-px", "400"], ["--overlap", "0.5"], ["--seed", "1"]):
        assert main([*args(mosaic[0], scanned, "--resume"), *change]) == 2
        assert "records of other settings" in capsys.readouterr().err
    assert main(args(mosaic[0], scanned)) == 2
    assert "records of a scan; pass --resume to go on" in capsys.readouterr().err
    other = tmp_path / "m.tif"
    write_mosaic(other, ScanBenchConfig(side=SIDE, scene=SCENE, seed=2))
    assert main(args(other, scanned, "--resume")) == 2
    assert "records of other settings" in capsys.readouterr().err


def test_an_image_without_a_georeference_has_boxes_in_px_alone(mosaic, scanned, tmp_path, capsys):
    plain = tmp_path / "m.png"
    with rasterio.open(mosaic[0]) as file:
        Image.fromarray(file.read().transpose(1, 2, 0)).save(plain)
    out = tmp_path / "out"
    assert main([*args(plain, out), "--json"]) == 0
    said = capsys.readouterr()
    assert "no georeference with a CRS: boxes are in px of it" in said.err
    assert json.loads(said.out) == json.loads((out / "results.json").read_text())
    assert results(out)["boxes"] == results(scanned)["boxes"]
    assert sorted(file.name for file in out.iterdir()) == ["picture.png", "records.jsonl", "results.json"]


def test_parts_that_can_t_be_read_are_counted(mosaic, scanned, tmp_path, capsys, monkeypatch):
    broken = tmp_path / "m.tif"
    with rasterio.open(mosaic[0]) as file:
        pixels, profile = file.read(), file.profile
    with rasterio.open(broken, "w", **(profile | {"compress": None, "blockxsize": 128, "blockysize": 128})) as file:
        file.write(pixels)
    broken.write_bytes(broken.read_bytes()[:-20_000])  # in the last tile
    monkeypatch.setattr("zoomearth_jax.data_pipeline.images.sources.KEPT_PIXELS", 0)  # as of a large file
    assert main(args(broken, tmp_path / "out")) == 0
    assert "left out" in capsys.readouterr().err
    assert results(tmp_path / "out")["counts"]["unreadable"] == 1
    kept = [box for box in results(scanned)["boxes"] if min(box["box"][:2]) < 512]
    assert results(tmp_path / "out")["boxes"] == kept


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tile-px", "63"], "tile_px must be at least 64"),
        (["--overlap", "1"], "overlap is a share between 0 and 0.9, not 1.0"),
        (["--merge-iou", "0"], "merge_iou is above 0"),
        (["--batch-size", "0"], "must be at least 64, batch_size and min_windows positive"),
        (["--resume", "--overwrite"], "choose one"),
        (["--model", "nowhere"], "no such model"),
        (["--layout.prompt-len", "8"], "prompt"),
    ],
)
def test_bad_settings_are_one_line_and_write_nothing(mosaic, tmp_path, capsys, more, message):
    assert main(["scan", str(mosaic[0]), QUESTION, "--out", str(tmp_path / "out"), *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_agreement_by_hand():
    sites = [(Box(0, 0, 10, 10, FRAME), None), (Box(100, 0, 110, 10, FRAME), None), (Box(200, 0, 210, 10, FRAME), None)]
    sites = [(box, type("Site", (), {"orientation": "rising"})) for box, _ in sites]
    boxes = [
        ([0, 0, 10, 11], "rising"),
        ([1, 0, 10, 10], "falling"),
        ([104, 0, 114, 10], "rising"),
        ([300, 0, 310, 9], "x"),
    ]
    figures = agreement(sites, [{"box": box, "answer": answer} for box, answer in boxes], 100)
    assert figures == {
        "boxes": 4,
        "recall_iou": 1 / 3,  # both boxes at the first are over 0.5, one counts; the one at the second has 3/7
        "precision_iou": 1 / 4,
        "recall_centre": 2 / 3,
        "precision_centre": 3 / 4,
        "elsewhere": 1 / 4,
        "answers": 2 / 3,
    }
    assert agreement(sites, [], 100)["recall_iou"] == 0
    assert agreement([], [{"box": [0, 0, 1, 1], "answer": "x"}], 100)["precision_centre"] == 0
