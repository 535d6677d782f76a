"""`zoomearth bench pixels` on a stand-in for the photographs, whose pixels say where they are."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from zoomearth_jax.bench import crowns
from zoomearth_jax.bench.crowns import (
    ALIKE,
    ANSWERS,
    PARTS,
    PHOTOS,
    TILE,
    TILES,
    area,
    draw_closeups,
    draw_questions,
    find_places,
    panchromatic,
    read_photos,
)
from zoomearth_jax.cli import main
from zoomearth_jax.data_pipeline.questions.folders import read_questions

SIZES = (720, 420), (400, 760)  # one wider than high, one higher
GROUND, CROWN = (0, 120), (80, 200)  # blue of both photographs; red is x / 4, green y / 4


def _write_photos(folder):
    for number, (name, (width, height)) in enumerate(zip(PHOTOS, SIZES, strict=True)):
        x, y = np.meshgrid(np.arange(width), np.arange(height))
        pixels = np.stack([x // 4, y // 4, np.full_like(x, GROUND[number])], -1).astype(np.uint8)
        boxes = [(left, top, left + 30, top + 40) for left in range(25, width, 110) for top in range(25, height, 110)]
        objects = ""
        for box in boxes:
            left, top, right, bottom = box
            pixels[top : bottom + 1, left : right + 1, 2] = CROWN[number]
            corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
            objects += f"<object><bndbox>{''.join(f'<{k}>{v}</{k}>' for k, v in corners)}</bndbox></object>"
        Image.fromarray(pixels).save(folder / f"{name}.png")
        (folder / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return _write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def small(monkeypatch):
    """Mosaics that are quick to draw."""
    monkeypatch.setattr(crowns, "SIDE", 2560)
    crowns._ground.cache_clear()
    yield
    crowns._ground.cache_clear()


@pytest.mark.parametrize("part", PARTS)
def test_the_answer_is_whether_all_tiles_have_crowns_and_tiles_are_of_one_part(folder, small, part):
    photos = read_photos(folder)
    ((picture, questions),) = draw_questions(photos, part, 1)
    assert sorted(q.answer for q in questions) == sorted(ANSWERS * 4)
    assert len({q.text for q in questions}) == len(questions)
    for question in questions:
        x1, y1, x2, y2 = map(int, question.box.corners)
        assert x2 - x1 == y2 - y1 == crowns.PLATE
        margin = (crowns.PLATE - TILES * TILE) // 2
        seen = np.asarray(picture.crop((x1, y1, x2, y2)))[margin:, margin:]
        starts = range(0, TILES * TILE, TILE)
        for tile in (seen[y : y + TILE, x : x + TILE].astype(int) for y in starts for x in starts):
            number = int(tile[0, 0, 2] in (GROUND[1], CROWN[1]))
            assert (tile[..., 2] == CROWN[number]).any() == (question.answer == "yes")
            assert set(np.unique(tile[..., 2])) <= {CROWN[number], GROUND[number]}
            left, top, right, bottom = area(photos[number].pixels, part)
            assert left // 4 <= tile[..., 0].min() <= tile[..., 0].max() <= (right - 1) // 4
            assert top // 4 <= tile[..., 1].min() <= tile[..., 1].max() <= (bottom - 1) // 4


def test_the_parts_of_a_photograph_are_a_tile_apart():
    for height, width in (SIZES[0][::-1], SIZES[1][::-1]):
        train, test = (area(np.zeros((height, width, 3), np.uint8), part) for part in PARTS)
        gaps = test[0] - train[2], test[1] - train[3]
        assert max(gaps) == TILE
        assert max(test[2:]) == max(height, width)


def test_ground_has_nearly_the_colour_of_the_crown_that_it_stands_for(folder):
    photos = read_photos(folder)
    places = find_places(photos, "train")
    for crown in range(0, len(places.crowns), 7):
        rngs = (np.random.default_rng(crown), np.random.default_rng(crown))  # the same jitter
        tree, ground = (
            crowns._tile(r, photos, places, crown, kind) for r, kind in zip(rngs, (True, False), strict=True)
        )
        own = places.ground[:, 0] == places.crowns[crown, 0]
        distances = np.abs(places.colors[own] - tree.mean((0, 1))).sum(-1)
        limit = np.sort(distances)[ALIKE - 1]
        assert np.abs(ground.mean((0, 1)) - tree.mean((0, 1))).sum() <= limit + 1e-9
        assert limit < np.median(distances)


def test_panchromatic_photographs_have_the_luma_of_the_colours_in_every_band(folder):
    photos = read_photos(folder)
    for photo, grey in zip(photos, panchromatic(photos), strict=True):
        luma = photo.pixels @ np.array([0.299, 0.587, 0.114])
        assert np.abs(grey.pixels - luma[..., None]).max() <= 1
        assert np.array_equal(grey.boxes, photo.boxes)


def test_close_ups_show_crowns_of_the_training_part_where_the_answer_is_yes(folder):
    photos = read_photos(folder)
    drawn = [(np.asarray(picture), question) for picture, question in draw_closeups(photos, 6)]
    assert [question.answer for _, question in drawn] == ["yes", "no"] * 3
    for pixels, question in drawn:
        assert pixels.shape[0] == pixels.shape[1]
        assert crowns.CLOSEUP <= len(pixels) <= crowns.PLATE
        color = question.text.split()[-2]
        real = pixels[(pixels != crowns.COLORS[color]).any(-1)]
        assert len(real) > 6 * TILE * TILE
        assert np.isin(real[:, 2], CROWN).any() == (question.answer == "yes")
        assert not question.looks


def test_folders_read_back_with_boxes_and_without(folder, small, tmp_path):
    active, passive = tmp_path / "active", tmp_path / "passive"
    crowns.write_folder(active, read_photos(folder), "test", 1)
    crowns.write_passive(passive, active)
    with_boxes, without = read_questions(active), read_questions(passive)
    ((picture, drawn),) = draw_questions(read_photos(folder), "test", 1)
    assert [(q.text, q.answer, q.box.corners) for q in with_boxes] == [(q.text, q.answer, q.box.corners) for q in drawn]
    assert [(q.text, q.answer, q.looks, q.thought) for q in without] == [
        (q.text, q.answer, (), q.thought) for q in drawn
    ]
    for question in (with_boxes[0], without[0]):
        box = drawn[0].box
        size = type(box.frame)(int(box.x2 - box.x1), int(box.y2 - box.y1))
        shown = question.image.window(box, size)
        assert np.array_equal(shown, np.asarray(picture.crop(tuple(map(int, box.corners)))))


def test_a_missing_package_is_one_line_that_says_how_to_get_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(crowns, "find_spec", lambda name: None)
    assert main(["bench", "pixels", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "pip install --no-deps deepforest==2.1.0" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_bad_photographs_and_settings_are_one_line(folder, tmp_path, capsys):
    out, broken = ["--out", str(tmp_path / "out")], tmp_path / "broken"
    broken.mkdir()
    _write_photos(broken)
    (broken / f"{PHOTOS[1]}.xml").write_text("<annotation><object>")
    half = tmp_path / "half"
    (half / "train").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "questions.json").write_text(json.dumps({"mosaics": 3, "closeups": 1024, "held_out": 40}))
    for args, message in (
        (["--photos", str(tmp_path), *out], "no such image file"),
        (["--photos", str(broken), *out], "not Pascal VOC's boxes"),
        (["--out", str(tmp_path / "other")], "holds questions of other settings"),
        (["--out", str(half)], "not written to the end"),
        (["--seeds", "-1"], "no negative ones"),
        (["--mosaics", "0"], "must be positive"),
    ):
        assert main(["bench", "pixels", *args]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(find_spec("deepforest") is None, reason=f"needs the photographs: {crowns.INSTALL}")
def test_the_packages_photographs_have_places_for_both_parts():
    photos = read_photos(crowns.package_folder())
    assert [(p.pixels.shape, len(p.boxes)) for p in photos] == [((2472, 2299, 3), 574), ((1035, 1249, 3), 279)]
    assert [len(find_places(photos, part).crowns) for part in PARTS] == [370, 229]


@pytest.mark.slow
def test_the_whole_run_on_the_stand_in(folder, tmp_path, capsys):
    sizes = [
        "--mosaics",
        "2",
        "--closeups",
        "8",
        "--reading-steps",
        "2",
        "--held-out",
        "1",
        "--sft-steps",
        "2",
        "--steps",
        "1",
        "--seeds",
        "0",
        "1",
    ]
    args = ["bench", "pixels", "--photos", str(folder), "--out", str(tmp_path), *sizes, "--batch-size", "8", "--json"]
    assert main(args) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["accuracy"] for row in rows[:2]] == [0.5, 0.5]
    ways = [(row["policy"], row["crops"]) for row in rows[2:]]
    active = [(stage, way) for stage in ("SFT", "SFT + GRPO") for way in ("shown", "masked", "oracle")]
    assert ways == [*active, ("passive SFT", "none"), ("passive SFT + GRPO", "none")]
    assert all(0 <= row["accuracy"] <= 1 and "spread" in row for row in rows[2:])
    assert json.loads((tmp_path / "results.json").read_text()) == rows
