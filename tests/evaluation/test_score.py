"""Predictions that are scored again: our records, lmms-eval's samples, the released code's results, and rows of anybody's."""

import dataclasses
import json

import pytest

from zoomearth_jax.cli import main
from zoomearth_jax.errors import UserError
from zoomearth_jax.evaluation.predictions import read_predictions
from zoomearth_jax.evaluation.records import Record
from zoomearth_jax.verbs.score import ScoreConfig, score

RIGHT = Record(
    "lrs-gro",
    "a.tif: Which?",
    "c0ffee",
    "a.tif",
    100,
    50,
    "Which?",
    "ship",
    "object",
    "Object category refinement",
    output="<think>b</think><answer>ships</answer>",
    answer="ships",
    reference_box=(0, 0, 10, 10),
    reference_window=(0, 0, 50, 50),
    turns=({"text": "a", "box": [0, 0, 10, 20], "window": [0, 0, 50, 50]}, {"text": "b"}),
    box=(0, 0, 10, 20),
    window=(0, 0, 50, 50),
)
WRONG = dataclasses.replace(
    RIGHT, id="b", answer=None, output="rambling", turns=({"text": "x"},), box=None, window=None
)


def write(path, rows, as_list=False):
    path.write_text(json.dumps(rows) if as_list else "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def summary_of(capsys, *args) -> dict:
    assert main(["score", *map(str, args), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_our_records_are_scored_as_they_were(tmp_path, capsys):
    first = write(tmp_path / "one.jsonl", [RIGHT.to_json(), WRONG.to_json()])
    unread = dataclasses.replace(RIGHT, id="c", fault="c.tif: broken", answer=None)
    second = write(tmp_path / "two.jsonl", [dataclasses.replace(WRONG, answer="ship").to_json(), unread.to_json()])
    result = summary_of(capsys, first)
    assert result["benchmark"] == "lrs-gro"
    assert result["summary"]["official"] == 0.5
    assert result["summary"]["apo_iou"] == 0.25
    assert result["published"]["ZoomEarth 3B, 512 px"]["official"] == 53.76
    merged = summary_of(capsys, first, second)["summary"]  # of a question that comes again the last one counts
    assert (merged["questions"], merged["official"], merged["unreadable"]) == (2, 1.0, 1)
    assert summary_of(capsys, first, "--match", "exact")["summary"]["official"] == 0.0


def test_the_table_has_every_average_with_its_interval(tmp_path, capsys):
    write(tmp_path / "r.jsonl", [RIGHT.to_json(), WRONG.to_json(), {"benchmark": "lrs-gro", "turns": [], "id": "d"}])
    assert main(["score", str(tmp_path / "r.jsonl"), "--without", str(tmp_path / "r.jsonl")]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0].startswith("LRS-GRO, test split: 2 of 3 questions;")
    accuracy = next(line for line in lines if line.startswith("accuracy"))
    assert accuracy.split() == ["accuracy", "50.0", "[0.0,", "100.0]", "0.0", "[0.0,", "0.0]", "53.76"]
    assert any(line.split()[:2] == ["object", "(2)"] and line.endswith("51.80") for line in lines)
    assert any("object: Object category refinement (2)" in line for line in lines)
    assert any(line.startswith("crops, over 2 questions") and "0 answers fixed, 0 broken" in line for line in lines)
    assert any(line.startswith("published, InternVL3 8B: accuracy 53.67, global 71.60") for line in lines)
    assert "r.jsonl row 3: field 'reference' is missing" in said.err


def released(number, **changes) -> dict:
    return {
        "question_id": number,
        "ground_truth": "ship",
        "answer1": None,
        "answer2": "ships",
        "bbox_ref": [100, 200, 300, 400],
        "bbox": [[50.0, 100.0, 150.0, 200.0], [1, 2, 3, 4]],
        "prompt": "Which?",
        "category": "Counting",
        "stage1": '<think>a</think>[{"bbox_2d": [50, 100, 150, 200]}]',
        "stage2": "<answer>ships</answer>",
        "type": "region",
        "image": "a.tif",
        "error": False,
        "model_id": "ZoomEarth",
    } | changes


def test_results_of_the_released_code(tmp_path, capsys):
    rows = [
        released(0),
        released(1, answer1="ship", answer2="tank"),  # broken by the crop
        released(2, answer1="boat", answer2=None),  # nothing after the crop: the first answer stands
        released(3, answer1="ship", answer2=None, bbox=[], stage2="", error=True, type="global", bbox_ref=[]),
        released(4, ground_truth=None),
        released(5, answer2=7),
    ]
    result = summary_of(capsys, write(tmp_path / "results.jsonl", rows))
    summary = result["summary"]
    assert (result["benchmark"], result["refused_rows"], summary["questions"]) == ("lrs-gro", 2, 4)
    assert summary["official"] == 2 / 4
    assert summary["apo_iou"] == 1.0  # boxes of a view of 512 px, references of one of 1024
    assert "apo_iou_window" not in summary  # sizes of the images aren't there
    assert (summary["zoom_rate"], summary["zoom_precision"], summary["zoom_recall"]) == (3 / 4, 1.0, 1.0)
    crops = summary["crops"]
    assert (crops["before"], crops["after"], crops["fixed"], crops["broken"]) == (2 / 4, 2 / 4, 1, 1)
    assert list(summary["by_type"]) == ["global: Counting", "region: Counting"]


def lmms(
    number, output, answer="A", name="xlrs_micro_score", category="Counting", sub="Overall counting", **more
) -> dict:
    scored = {
        "question_id": number,
        "category": category,
        "sub_category": sub,
        "task_category": "color",
        "pred_answer": "A",
        "answer": answer,
    }
    prompt = "How many?The choices are listed below:\n(A) one roof\n(B) two\nSelect"
    return {
        "doc_id": number,
        "target": answer,
        "filtered_resps": [output],
        "doc_hash": "x",
        name: scored,
        "input": prompt,
    } | more


def test_samples_of_lmms_eval(tmp_path, capsys):
    rows = [
        lmms(0, "A"),
        lmms(1, "B"),
        lmms(2, "<answer>A</answer>", sub="Regional counting"),
        lmms(3, [["(A) and (C)"]], "AC"),
    ]
    file = write(tmp_path / "20251126_samples_xlrs-lite.jsonl", rows)
    result = summary_of(capsys, file)
    assert result["benchmark"] == "xlrs-bench"
    assert result["summary"]["by_task"]["Counting/Regional counting"]["official"] == 1.0  # the payload, not the tags
    assert result["summary"]["official"] == pytest.approx((2 / 3 + 1) / 2)
    assert summary_of(capsys, file, "--benchmark", "geollava")["benchmark"] == "geollava"

    name = {"name": "mme_realworld_score", "category": "Perception"}
    rows = [lmms(0, "one roof", sub="Remote Sensing", **name), lmms(1, "A", sub="Monitoring", **name)]
    result = summary_of(capsys, write(tmp_path / "x_samples_mmerealworld.jsonl", rows))
    assert result["benchmark"] == "mme-realworld-rs"
    assert (result["summary"]["questions"], result["summary"]["official"]) == (1, 1.0)  # by the choices in its prompt
    assert list(result["summary"]["by_category"]) == ["color"]

    rows = [lmms(0, 5), {"filtered_resps": ["A"]}, lmms(2, "A")]
    result = summary_of(capsys, write(tmp_path / "x_samples_xlrs-lite.jsonl", rows))
    assert (result["refused_rows"], result["summary"]["questions"]) == (2, 1)


def test_rows_of_anybody(tmp_path, capsys):
    rows = [
        {"question": "?", "answer": "ship", "prediction": "<answer>ships</answer>", "bbox": [1, 2, 3, 4]},
        {"question": "?", "answer": "tree", "prediction": " Tree "},
        {"question": "?", "answer": "tree"},
    ]
    file = write(tmp_path / "rows.json", rows, as_list=True)
    result = summary_of(capsys, file, "--benchmark", "lrs-vqa")
    assert (result["summary"]["official"], result["refused_rows"]) == (1.0, 1)
    twice = write(tmp_path / "more.json", rows[1:2], as_list=True)  # rows without ids are different ones
    assert summary_of(capsys, file, twice, "--benchmark", "lrs-vqa")["summary"]["questions"] == 3
    named = write(
        tmp_path / "named.jsonl", [{"gold": "ship", "reply": "ship", "ground_truth": "x"}, {"gold": "a", "reply": "b"}]
    )
    fields = ["--fields", "reference=gold", "output=reply"]
    assert summary_of(capsys, named, "--benchmark", "lrs-vqa", *fields)["summary"]["official"] == 0.5
    row = {"Question_id": "a", "Ground truth": "B", "output": "B", "Category": "color"}
    mme = [row | {"Subtask": kind} for kind in ("Remote Sensing", "OCR")]
    result = summary_of(capsys, write(tmp_path / "mme.jsonl", mme))
    assert (result["benchmark"], result["summary"]["questions"]) == ("mme-realworld-rs", 1)


@pytest.mark.parametrize(
    ("rows", "args", "said"),
    [
        ([], [], "no row can be scored"),
        ([{"a": 1}], [], "say it by --benchmark"),
        ([{"a": 1}], ["--benchmark", "lrs-vqa"], "is missing"),
        ([{"a": 1}], ["--benchmark", "lrs-gr"], "did you mean 'lrs-gro'?"),
        ([RIGHT.to_json() | {"benchmark": "lrs-gr"}], [], "did you mean 'lrs-gro'?"),
        ([RIGHT.to_json(), RIGHT.to_json() | {"benchmark": "lrs-vqa"}], [], "choose one by --benchmark"),
        ([RIGHT.to_json(), RIGHT.to_json() | {"config": "other"}], [], "one run at a time"),
        ([RIGHT.to_json() | {"answer": 5}], [], "field 'answer' must be a text, not 5"),
        ([RIGHT.to_json() | {"box": [1, 2, 3]}], [], "field 'box' must be four finite numbers"),
        ([RIGHT.to_json() | {"extra": 3}], [], "field 'extra' must be an object"),
        ([RIGHT.to_json() | {"fault": "a.tif: broken"}], [], "no image of these records could be read"),
        ([RIGHT.to_json()], ["--fields", "ouput=x"], "did you mean 'output'?"),
        ([RIGHT.to_json()], ["--fields", "output"], "write KEY=NAME"),
        ([RIGHT.to_json() | {"benchmark": "xlrs-bench"}], ["--match", "exact"], "has a rule of its own"),
        ([{"filtered_resps": ["A"]}], [], "Say it by --benchmark"),
    ],
)
def test_what_can_not_be_scored_is_said_in_one_line(rows, args, said, tmp_path, capsys):
    file = write(tmp_path / "rows.jsonl", rows)
    assert main(["score", str(file), *args]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error.splitlines()[-1]
    assert len(error.splitlines()) == 1


def test_files_that_are_none(tmp_path, capsys):
    assert main(["score", str(tmp_path / "absent.jsonl")]) == 2
    assert "no such file" in capsys.readouterr().err
    (tmp_path / "broken.jsonl").write_bytes(b"\x00\x01\x02{")
    assert main(["score", str(tmp_path / "broken.jsonl")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_damaged_lines_are_named_and_the_rest_is_scored(tmp_path):
    file = tmp_path / "records.jsonl"
    file.write_text(json.dumps(RIGHT.to_json()) + "\n" + json.dumps(WRONG.to_json())[:-9] + "\n[1]\n")
    read = read_predictions([file])
    assert [record.id for record in read.records] == [RIGHT.id]
    assert [fault.partition(": ")[0] for fault in read.faults] == ["records.jsonl row 2", "records.jsonl row 3"]
    assert read.records[0] == dataclasses.replace(
        RIGHT,
        **{
            key: read.records[0].to_json()[key]
            for key in ("turns", "reference_box", "reference_window", "box", "window")
        },
    )
    with pytest.raises(UserError, match="give a file"):
        ScoreConfig(())
    assert score(ScoreConfig((file,)))["refused_rows"] == 2
