"""Chains of zooms as conversations: what becomes of them, what is left out, and that `data check` shows it."""

import json

import numpy as np
import pytest
from PIL import Image

from zoomearth_jax import cli
from zoomearth_jax.configs.episode import EpisodeConfig
from zoomearth_jax.data_pipeline.questions.folders import read_questions
from zoomearth_jax.data_pipeline.questions.geo_eyes import read_chain
from zoomearth_jax.data_pipeline.rows.looks import Looks
from zoomearth_jax.errors import UserError

HOW = "\nThink first, call **image_zoom_in_tool** if needed, then answer. Format strictly as: <think>...</think>"
ASKED = {"role": "user", "content": f"<image>\nWhich colour is the  roof?{HOW}"}
SEEN = {"role": "user", "content": "<tool_response><image></tool_response>"}


def zoom(box, thought="closer", label="roof"):
    call = {"name": "image_zoom_in_tool", "arguments": {"bbox_2d": box, "label": label}}
    return {"role": "assistant", "content": f"<think>{thought}</think>\n<tool_call>\n{json.dumps(call)}\n</tool_call>"}


ANSWER = {"role": "assistant", "content": "<think>it is red</think>\n<answer>red</answer>"}


def chain(*rounds, images=("/data/uhr/part1/a.png", "/data/uhr/crops/1.png")):
    messages = [{"role": "system", "content": "You zoom."}, ASKED]
    for one in rounds:
        messages += [one, SEEN]
    return {"messages": messages[:-1], "images": list(images)}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images" / "part1").mkdir(parents=True)
    Image.new("RGB", (600, 400), (0, 90, 0)).save(tmp_path / "images" / "part1" / "a.png")
    return tmp_path


def written(folder, *records, name="UHR-CoZ.json"):
    (folder / name).write_text(json.dumps(records))
    return read_questions(folder, "sft")


def test_a_chain_becomes_a_question_with_looks(folder):
    (question,) = written(folder, chain(zoom([0, 0, 300, 200], "somewhere there"), zoom([10, 20, 60.5, 70]), ANSWER))
    assert (question.text, question.answer, question.thought) == ("Which colour is the roof?", "red", "it is red")
    assert [(look.box.corners, look.thought, look.label) for look in question.looks] == [
        ((0, 0, 300, 200), "somewhere there", "roof"),
        ((10, 20, 60.5, 70), "closer", "roof"),
    ]
    assert (question.level, question.image.frame.width) == ("object", 600)
    (first, _), (second, _), (last, _) = Looks(EpisodeConfig(box_px=600, turn_lens=(9, 9, 9)), 28).references(question)
    assert '"bbox_2d": [0, 0, 300, 200]' in first
    assert second.startswith("<think>closer</think>")
    assert last == "<think>it is red</think><answer>red</answer>"


def test_chains_without_zooms_and_in_other_dialects(folder):
    call = json.dumps({"name": "zoom", "arguments": json.dumps({"bbox_2d": [1, 2, 30, 40]})})
    turns = [
        ("human", "<image>Question: How many?"),
        ("function_call", call),
        ("observation", "<image>"),
        ("gpt", "Two of them.<answer>2</answer>"),
    ]
    dialect = {"conversations": [{"from": who, "value": said} for who, said in turns], "images": ["part1/a.png"]}
    plain, other = written(folder, chain(ANSWER), dialect | {"category": "Counting"}, name="uhr-coz.JSON")
    assert (plain.level, plain.looks, plain.thought) == ("global", (), "it is red")
    assert (other.text, other.answer, other.thought, other.category) == ("How many?", "2", "Two of them.", "Counting")
    assert (other.looks[0].box.corners, other.looks[0].thought, other.looks[0].label) == ((1, 2, 30, 40), "", "")


OUTSIDE, NONE = "box is outside the image", "no chain of zooms, "
FAULTS = {
    "outside": (chain(zoom([10, 10, 50, 50]), zoom([700, 10, 800, 50]), ANSWER), OUTSIDE),
    "inverted": (chain(zoom([50, 10, 10, 50]), ANSWER), "box is degenerate"),
    "no answer": (chain(zoom([10, 10, 50, 50]), {"role": "assistant", "content": "red"}), "answer is empty"),
    "marks": (chain(zoom([10, 10, 50, 50], label="{x}"), ANSWER), "thoughts, label or answer hold marks of the reply"),
    "never answers": (chain(zoom([10, 10, 50, 50])), NONE + "no round without a zoom"),
    "goes on": (chain(ANSWER, ANSWER), NONE + "it goes on after its answer"),
    "three numbers": (chain(zoom([10, 10, 50]), ANSWER), NONE + "a tool call must name four numbers"),
    "huge": (chain(zoom([10, 10, 50, 10**400]), ANSWER), NONE),
    "no box": (chain(zoom(None), ANSWER), NONE + "a tool call must name a box"),
    "two at once": (
        chain({"role": "assistant", "content": zoom([1, 2, 3, 4])["content"] * 2}, ANSWER),
        NONE + "a round with several zooms",
    ),
    "no images": ({"messages": [ASKED, ANSWER]}, NONE + "images must be a list of names"),
    "no messages": ({"images": ["a.png"]}, NONE + "messages must be a list"),
    "a strange role": (chain({"role": "critic", "content": "no"}, ANSWER), NONE + "a message must have a role"),
    "no question": ({"messages": [ANSWER], "images": ["part1/a.png"]}, NONE + "no question"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_leave_a_chain_out(folder, capsys, kind):
    record, said = FAULTS[kind]
    assert len(written(folder, record, chain(ANSWER))) == 1
    assert "1 of 2 rows are left out (" + said in capsys.readouterr().err


def test_normalised_boxes_are_refused(folder):
    with pytest.raises(UserError, match="box is normalised; corners are in px"):
        written(folder, chain(zoom([0.1, 0.1, 0.2, 0.2]), ANSWER))


def test_the_check_shows_chains(folder, capsys):
    good = chain(zoom([0, 0, 300, 200]), zoom([10, 20, 60, 70]), ANSWER)
    written(folder, good, chain(ANSWER), FAULTS["outside"][0], FAULTS["never answers"][0])
    capsys.readouterr()
    grid = folder / "grid.png"
    assert cli.main(["data", "check", str(folder), "--json", "--out", str(grid)]) == 0
    report = json.loads(capsys.readouterr().out)
    numbers = report["splits"]["questions"]
    assert (numbers["rows taken"], numbers["looks"]) == (2, {"0": 1, "2": 2})
    assert [(p["effect"], p["count"]) for p in report["problems"]][:2] == [("left out", 1)] * 2
    assert (np.array(Image.open(grid)) == (255, 0, 200)).all(-1).sum() > 500  # two boxes


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("/data/uhr/part1/a.png", "part1/a.png"),
        ("C:\\data\\part1\\a.png", "part1/a.png"),
        ("part1/a.png", "part1/a.png"),
        ("/data/part2/a.png", "a.png"),
        ("/" + "x" * 5000, "x" * 5000),
    ],
)
def test_whole_paths_are_those_of_another_machine(folder, name, found):
    assert read_chain(chain(ANSWER, images=[name]), "row 1", folder).image == found
