"""`zoomearth data check` and `zoomearth data prepare`."""

import contextlib
import json

import numpy as np
import pytest
from PIL import Image

from zoomearth_jax import cli
from zoomearth_jax.errors import UserError
from zoomearth_jax.verbs import data
from zoomearth_jax.verbs.data import CheckConfig, check

ROW = {
    "question_id": "1",
    "image_name": "a.png",
    "category": "Object color / pattern",
    "question": "What color is the roof?",
    "ground_truth": "red",
    "bbox": [256, 256, 768, 512],
    "type": "object",
    "label": "the roof",
    "scale": 2.0,
}
GLOBAL = ROW | {"question": "Which season is it?", "bbox": [], "type": "global", "category": "Season", "scale": 1.0}


def write(folder, **splits):
    """A folder with one green image of 2048 x 1024 px and rows of splits."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2048, 1024), (0, 90, 0)).save(folder / "images" / "a.png")
    for split, rows in splits.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text)


def asked(row, question, **changes):
    return {**row, "question": question, **changes}


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the check on tmp_path; gives its report and what it printed, whether the folder is refused or not."""

    def run(**settings):
        with contextlib.suppress(UserError):
            check(CheckConfig(tmp_path, out=tmp_path / "grid.png", json=True, **settings))
        report = json.loads(capsys.readouterr().out)
        return report, data._text(report)

    return run


def problems(report):
    return {(p["split"], p["problem"]): (p["count"], p["rows"]) for p in report["problems"]}


def test_a_clean_folder(tmp_path, run):
    write(tmp_path, rl=[ROW, GLOBAL])
    report, printed = run(strict=True)
    assert report["problems"] == []
    assert "no problems" in printed
    numbers = report["splits"]["rl"]
    assert (numbers["rows"], numbers["images"], numbers["boxes"]) == (2, 1, 1)
    assert numbers["levels"] == {"object": 1, "global": 1}
    assert numbers["box area / image area (5 %, median, 95 %)"] == [0.25] * 3  # of an oblong image


def test_every_fault_is_found(tmp_path, run):
    twin = asked(ROW, "twice")
    write(
        tmp_path,
        rl=[
            asked(ROW, "flat", bbox=[5, 5, 5, 9]),
            asked(ROW, "below", bbox=[0, 600, 9, 700]),  # the image ends at 512
            asked(ROW, "over", bbox=[0, 400, 9, 700]),
            asked(ROW, "scale", scale=3.0),
            asked(ROW, "gone", image_name="gone.png"),
            asked(ROW, "broken", image_name="broken.png"),
            asked(ROW, "outside", image_name="../../x.png"),
            asked(ROW, "no answer", ground_truth=" "),
            asked(ROW, "odd", category="Weather"),
            asked(ROW, "level", category="Season"),
            asked(GLOBAL, "cut", cut=True),
            asked(ROW, "shared "),
            twin,
            {**twin, "question_id": "2"},
        ],
        test=[asked(ROW, " shared")],
        sft=[asked(ROW, "sft"), asked(ROW, "with reasoning", stage_1_reasoning="look")],
    )
    (tmp_path / "images" / "broken.png").write_text("no image")
    found = problems(run()[0])
    counts = {what: count for what, (count, _) in found.items()}
    assert counts == {
        ("rl", "box is degenerate"): 1,
        ("rl", "box is outside the image"): 1,
        ("rl", "box is partly outside the image"): 1,
        ("rl", "scale isn't the image's longest side / 1024"): 1,
        ("rl", "image is missing"): 1,
        ("rl", "image can't be read"): 1,
        ("rl", "image is refused"): 1,
        ("rl", "answer is empty"): 1,
        ("rl", "category is none of the paper's"): 1,
        ("rl", "category is of another level"): 1,
        ("rl", "asks for a crop without a box"): 1,
        ("rl", "question is there more than once"): 1,
        ("sft", "reasoning is missing"): 1,
        ("rl, test", "question is in both"): 1,
        ("rl, test", "image is in both"): 1,
        ("sft, rl", "image is in both"): 1,
        ("sft, test", "image is in both"): 1,
    }
    assert "rl.jsonl line 5: 'gone.png', no such file in" in found["rl", "image is missing"][1][0]
    assert found["rl", "box is degenerate"][1] == [
        "rl.jsonl line 1: a.png: flat [5, 5, 5, 9] (image of 2048 x 1024 px)"
    ]
    assert found["rl", "question is there more than once"][1] == [
        "rl.jsonl line 14: as rl.jsonl line 13: a.png: twice [256, 256, 768, 512]"
    ]
    assert found["rl, test", "question is in both"][1] == ["a.png: shared"]
    assert {split for split, _ in problems(run(split="test")[0])} == {"rl, test", "sft, test"}


def test_the_picture_shows_boxes_where_they_are(tmp_path, run):
    write(tmp_path, rl=[ROW])
    assert run()[0]["picture"]
    grid = np.asarray(Image.open(tmp_path / "grid.png")).astype(int)
    drawn = np.argwhere((np.abs(grid - (255, 0, 200)).sum(-1) < 30)[:224])  # the overview is 448 x 224
    top, left = drawn.min(0)
    bottom, right = drawn.max(0)
    assert (left, top, right, bottom) == pytest.approx(
        (112, 112, 336, 224), abs=4
    )  # a quarter to three quarters across
    assert (grid[230:] < 128).any()  # the caption


def test_the_sample_follows_the_seed(tmp_path, run):
    write(tmp_path, rl=[asked(ROW, f"question {i}") for i in range(40)])
    pictures = []
    for seed in (0, 0, 1):
        run(seed=seed, sample=2)
        pictures.append((tmp_path / "grid.png").read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


def test_nothing_is_drawn_without_images(tmp_path, run):
    write(tmp_path, rl=[asked(ROW, "x", image_name="gone.png")])
    assert run()[0]["picture"] is None
    assert not (tmp_path / "grid.png").exists()


def test_manifests(tmp_path, run):
    manifests = tmp_path / "manifests"
    write(tmp_path, rl=[ROW, asked(ROW, "more")])
    assert run(manifests=manifests)[0]["problems"] == []
    assert json.loads((manifests / "rl.json").read_text())["rows"] == 2
    write(tmp_path, rl=[{**ROW, "ground_truth": "blue"}, asked(ROW, "more", question_id="99")])
    assert list(problems(run(manifests=manifests)[0])) == [("rl", "answers or boxes differ from the manifest")]
    write(tmp_path, rl=[ROW])
    found = problems(run(manifests=manifests)[0])
    assert found == {("rl", "rows differ from the manifest"): (1, ["a.png: more"])}


def test_own_questions_are_checked_too(tmp_path, run):
    write(tmp_path)
    row = {"image": "a.png", "question": "q", "answer": "a", "level": "object", "box": [512, 512, 1536, 1024]}
    (tmp_path / "questions.jsonl").write_text(json.dumps(row))
    report, _ = run(strict=True)
    assert report["problems"] == []
    assert report["splits"]["questions"]["box area / image area (5 %, median, 95 %)"] == [0.25] * 3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("check {0}", "LRS-GRO comes from the authors"),
        ("check {0}/full --split sft", "no split 'sft'; it has rl"),
        ("check {0}/full --out grid.jpg", "--out writes PNG"),
        ("check {0}/full --sample -1", "--sample: between"),
        ("check {0}/full --manifests {0}/bad", "rl.json: not a manifest"),
        ("check {0}/bad", "rl.jsonl line 1: not JSON"),
        ("chek {0}", "did you mean 'check'"),
        ("prepare {0}/none", "no such folder"),
        ("prepare {0}/full --out {0}/tfds --dataset uhr_tiles/tile", "invalid choice"),
    ],
)
def test_bad_input_ends_with_one_line(tmp_path, capsys, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "full", rl=[ROW])
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "rl.json").write_text("{}")
    (tmp_path / "bad" / "rl.jsonl").write_text("{")
    code = cli.main(["data", *args.format(tmp_path).split()])
    said = capsys.readouterr().err
    assert code == 2
    assert said.count("\n") == 1
    assert message in said
    assert not (tmp_path / "runs").exists()


def test_strict_and_json(tmp_path, capsys):
    write(tmp_path, rl=[asked(ROW, "x", scale=1.0)])
    args = ["data", "check", str(tmp_path), "--out", str(tmp_path / "grid.png"), "--json"]
    assert cli.main(args) == 0
    assert json.loads(capsys.readouterr().out)["problems"][0]["count"] == 1
    assert cli.main([*args, "--strict"]) == 2
    assert "1 kinds of problems, first: rl: scale" in capsys.readouterr().err


def test_prepare(tmp_path, capsys):
    write(tmp_path, rl=[ROW, GLOBAL])
    assert cli.main(["data", "prepare", str(tmp_path), "--out", str(tmp_path / "tfds")]) == 0
    assert json.loads(capsys.readouterr().out)["splits"] == {"rl": 2}
