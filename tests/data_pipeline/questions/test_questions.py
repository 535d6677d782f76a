"""Folders with questions.jsonl: what is taken, what is refused, and that `data check` says the same as training."""

import json
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from tests.data_pipeline.questions.question_folders import PX, ROW, bad, good, lines, row
from tests.processes import ROOT
from zoomearth_jax import cli
from zoomearth_jax.data_pipeline.images.boxes import Frame
from zoomearth_jax.data_pipeline.questions.folders import read_questions
from zoomearth_jax.data_pipeline.questions.own_rows import FIELDS, write_questions
from zoomearth_jax.errors import UserError
from zoomearth_jax.runs.models import load_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "images").mkdir()
    Image.new("RGB", PX, (0, 90, 0)).save(folder / "images" / "a.png")
    return folder


def both(folder, content: bytes, capsys):
    """Questions and complaint of training's reader, and exit code, report and complaint of the check: they must agree."""
    (folder / "questions.jsonl").write_bytes(content)
    questions, refused = None, ""
    try:
        questions = read_questions(folder)
    except UserError as error:
        refused = str(error)
    capsys.readouterr()
    code = cli.main(["data", "check", str(folder), "--sample", "0", "--json"])
    out, err = capsys.readouterr()
    assert code == (2 if refused else 0), (refused, err)
    assert err.count("\n") == (1 if refused else 0)
    for text in (refused, err.rstrip("\n")):
        assert text.isprintable()
        assert len(text) < 2500
    return questions, refused, json.loads(out) if out else None


@pytest.mark.parametrize("name", good())
def test_good_files(folder, capsys, name):
    content, count = good()[name]
    questions, refused, report = both(folder, content, capsys)
    assert not refused
    assert len(questions) == count == report["splits"]["questions"]["rows"]
    assert {q.image.frame for q in questions} == {Frame(*PX)}


@pytest.mark.parametrize("name", bad())
def test_bad_files(folder, capsys, name):
    content, said = bad()[name]
    questions, refused, report = both(folder, content, capsys)
    assert questions is None
    assert said in refused
    if report:
        faults = [row for problem in report["problems"] for row in problem["rows"] if problem["effect"] == "refused"]
        assert faults


def test_pairs_of_files_joined_agree_too(folder, capsys):
    """All faults are found wherever they stand, with the numbers of their lines."""
    rng, fine, broken = (
        random.Random(0),
        lines(ROW).encode(),
        [c for c, said in bad().values() if " line 1: " in f" {said}"],
    )
    broken = [c for c in broken if c.count(b"\n") == 1 and c.strip()[:1] != b"["]
    for _ in range(20):
        chosen = rng.sample(broken, 3)
        _, refused, report = both(folder, fine + fine.join([fine, *chosen, fine]), capsys)
        rows = [row for problem in report["problems"] for row in problem["rows"] if problem["effect"] == "refused"]
        assert {row.split(":")[0] for row in rows} == {
            f"questions.jsonl line {n}" for n in (2 + 1, 4 + 1, 6 + 1)
        } or refused


def test_what_rows_hold_arrives(folder, capsys):
    full = row(label="the roof", thoughts=["look", "see"], category="Object color / pattern", choices=["red", "blue"])
    (question,), _, _ = both(folder, lines(full).encode(), capsys)
    assert (question.text, question.answer, question.level, question.looks[0].label) == (
        "Which roof?",
        "red",
        "object",
        "the roof",
    )
    assert (question.category, question.choices) == (full["category"], ("red", "blue"))
    assert (question.looks[0].thought, question.thought, question.box.corners) == ("look", "see", (10, 20, 200, 150))
    (question,), _, _ = both(folder, lines(row(boxes=[[1, 2, 3, 4], [490, 290, 501, 301]])).encode(), capsys)
    assert [box.corners for box in question.boxes] == [(1, 2, 3, 4), (490, 290, 500, 300)]
    write_questions(folder / "questions.jsonl", [("a.png", question)])
    assert read_questions(folder)[0].boxes == question.boxes
    (question,), _, report = both(folder, lines(row(box=[-5, 20, 501, 150])).encode(), capsys)
    assert question.box.corners == (0, 20, 500, 150)  # cut, and listed in the frame that it was given in
    (problem,) = report["problems"]
    assert (problem["problem"], problem["effect"]) == ("box is partly outside the image", "noted")
    assert problem["rows"] == ["questions.jsonl line 1: a.png: Which roof? [-5, 20, 501, 150] (image of 500 x 300 px)"]


def test_all_faults_are_listed(folder, capsys):
    rows = [ROW, *[row(box=[600, 0, 700, 9])] * 30, "{", row(answer=None, bbox=[]), row(image="gone.png")]
    _, refused, report = both(folder, lines(*rows).encode(), capsys)
    assert "34 faults: questions.jsonl line 32: not JSON" in refused
    assert refused.endswith(f"`zoomearth data check {folder}` lists all")
    found = {
        p["problem"]: [r.split(":")[0].split()[-1] for r in p["rows"]]
        for p in report["problems"]
        if p["effect"] == "refused"
    }
    assert sorted(int(n) for lines in found.values() for n in lines) == [*range(2, 33), 33, 33, 34]
    assert cli.main(["data", "check", str(folder), "--sample", "0"]) == 2
    printed = capsys.readouterr().out
    assert all(
        f"line {n}: a.png: Which roof? [600, 0, 700, 9] (image of 500 x 300 px)" in printed for n in range(2, 32)
    )


@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling link", "no permission"])
def test_what_is_no_file(tmp_path, capsys, kind):
    file = tmp_path / "questions.jsonl"
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "dangling link":
        file.symlink_to("gone")
    else:
        file.write_text(lines(ROW))
        file.chmod(0)
        if os.access(file, os.R_OK):
            pytest.skip("this user reads every file")
    with pytest.raises(UserError, match=r"questions.jsonl: (a folder, not|not a plain|no such|can't be read)"):
        read_questions(tmp_path)
    assert cli.main(["data", "check", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("path", ["x" * 300, "x/" * 3000, "a\0b", ""])
def test_impossible_folders(path, capsys):
    with pytest.raises(UserError):
        read_questions(path, "sft")


def test_the_file_itself_will_do(folder):
    (folder / "questions.jsonl").write_text(lines(ROW))
    assert read_questions(folder / "questions.jsonl")[0].text == "Which roof?"


def test_every_pixel_is_decoded_where_asked(tmp_path, capsys):
    Image.effect_noise((300, 200), 50).convert("RGB").save(tmp_path / "fine.png")
    data = (tmp_path / "fine.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    asked = [
        {"image": name, "question": q, "answer": "a", "level": "global"}
        for q in "xy"
        for name in ("cut.png", "fine.png")
    ]
    (tmp_path / "questions.jsonl").write_text(lines(*asked))
    check = ["data", "check", str(tmp_path), "--out", str(tmp_path / "grid.png"), "--json"]
    assert cli.main([*check, "--sample", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []  # headers are fine
    for more in (["--sample", "0", "--decode"], ["--sample", "4"]):  # of the drawn ones too
        assert cli.main([*check, *more]) == 0
        (problem,) = json.loads(capsys.readouterr().out)["problems"]
        assert (problem["problem"], problem["effect"], problem["count"]) == ("image can't be decoded", "left out", 1)
        assert problem["rows"][0].startswith(f"questions.jsonl line 1: {tmp_path / 'cut.png'}: broken image data")
    assert cli.main([*check, "--decode", "--strict"]) == 2


def test_the_folder_of_the_documentation(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/data.md", "exec"), {})
    assert cli.main(["data", "check", "my_questions", "--decode", "--strict", "--out", "grid.png"]) == 0
    assert "no problems" in capsys.readouterr().out
    assert Path("grid.png").is_file()
    barn, city = read_questions("my_questions")
    assert (barn.box.corners, barn.thought, city.box) == ((2400, 300, 2520, 380), "its roof is red", None)
    fields = re.findall(r"^\| `(\w+)` \| (yes|no) \|", page, re.MULTILINE)
    assert {name: needed == "yes" for name, needed in fields} == {name: f.required for name, f in FIELDS.items()}


@pytest.mark.slow
def test_a_question_too_long_is_met_before_the_run_by_a_setting(folder, tmp_path, capsys):
    rows = [row(question="What is the colour of the roof by the bridge? " * n) for n in (2, 3)]
    (folder / "questions.jsonl").write_text(lines(*rows))
    out = tmp_path / "run"
    sft = ["sft", "--data", str(folder), "--out", str(out), "--steps", "1", "--batch-size", "2"]
    assert cli.main(sft) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"zoomearth: {folder}: 2 of 2 questions don't fit their slots")
    assert said.count("\n") == 1
    assert not out.exists()
    flags = re.findall(r"--layout\S+ \d+", said)
    assert cli.main([*sft, *" ".join(flags).split()]) == 0
    saved = json.loads((out / "episode.json").read_text())
    assert f"--layout.prompt-len {saved['prompt_len']}" == flags[0]
    assert load_rows(out).prompts(read_questions(folder)).valid.any()  # the run holds them by itself


def test_boxes_may_be_geometries_on_the_earth(tmp_path):
    """A box of an image in UTM, given as WGS 84 and as UTM, and a chain of looks; pyproj placed the corners."""
    lonlat = pytest.importorskip("pyproj").Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True)
    utm = [(412_350.0, 5_654_300.0), (412_360.0, 5_654_300.0), (412_360.0, 5_654_280.0), (412_350.0, 5_654_280.0)]
    profile = {"driver": "GTiff", "width": 200, "height": 100, "count": 3, "dtype": "uint8", "crs": "EPSG:32633"}
    transform = rasterio.Affine(0.5, 0, 412_345, 0, -0.5, 5_654_320)
    with rasterio.open(tmp_path / "a.tif", "w", **profile, transform=transform) as file:
        file.write(np.zeros((3, 100, 200), np.uint8))
    earth = {"type": "Polygon", "coordinates": [[lonlat.transform(x, y) for x, y in utm]]}
    own = {"type": "Polygon", "coordinates": [utm], "crs": {"type": "name", "properties": {"name": "EPSG:32633"}}}
    row = {"image": "a.tif", "question": "?", "answer": "a", "level": "object"}
    looks = [{"geometry": earth, "label": "x"}, {"box": [1, 2, 30, 40]}]
    rows = [
        row | {"geometry": earth},
        row | {"question": "?!", "geometry": own},
        row | {"question": "!", "looks": looks},
    ]
    write = lambda *rows: (tmp_path / "questions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))  # noqa: E731
    write(*rows)
    first, second, third = read_questions(tmp_path)
    for box in (first.box, second.box, third.looks[0].box):
        np.testing.assert_allclose(box.corners, (10, 40, 30, 80), atol=1e-3)
    assert third.box.corners == (1, 2, 30, 40)
    Image.new("RGB", (200, 100)).save(tmp_path / "b.png")
    for changed, message in (
        ({"geometry": earth, "box": [1, 2, 3, 4]}, "give 'box', in px, or 'geometry', not both"),
        ({"geometry": [1, 2, 3, 4]}, "field 'geometry' must be an object"),
        ({"geometry": {"type": "Polygon"}}, "geometry is refused, not a GeoJSON geometry"),
        ({"geometry": earth, "image": "b.png"}, "b.png: has no georeference, which a geometry needs"),
        (
            {"geometry": {**own, "crs": None}},
            "no place in the image's CRS, EPSG:32633; are its coordinates in WGS 84",
        ),
        ({"looks": [{"label": "x"}]}, "look 1: field 'box' is missing"),
        ({"looks": looks, "geometry": earth}, "field 'looks' doesn't go with 'box', 'geometry'"),
    ):
        write(row | changed)
        with pytest.raises(UserError, match=re.escape(message)):
            read_questions(tmp_path)
