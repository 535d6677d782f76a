import dataclasses
import json
import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.processes import ROOT
from tests.real_tokenizer import write_tokenizer
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame, clamped, from_annotation
from zoomearth_jax.data_pipeline.questions.folder_rows import OUTSIDE, PARTLY, box_fault, row_problems, to_question
from zoomearth_jax.data_pipeline.questions.folders import read_questions
from zoomearth_jax.data_pipeline.questions.lrs_gro import CATEGORIES, LrsGroRow, normalise, read_row, thoughts, to_row
from zoomearth_jax.data_pipeline.questions.lrs_gro_files import find_split, read_all, read_split
from zoomearth_jax.data_pipeline.questions.scenes import random_scene
from zoomearth_jax.data_pipeline.rows.builder import RowBuilder
from zoomearth_jax.data_pipeline.text.protocol import parse_box
from zoomearth_jax.errors import UserError
from zoomearth_jax.models.presets import preset
from zoomearth_jax.verbs.data_check import manifest

RELEASED = ROOT / "../shared/data/lrs_gro"
needs_released = pytest.mark.skipif(not RELEASED.is_dir(), reason="no released rows in ../shared/data/lrs_gro")

RAW = {
    "question_id": "LRS-GRO-7",
    "image_name": "a.png",
    "category": "object Color/ Pattern",
    "question": " What colour is\n the  roof? ",
    "ground_truth": "  a qlarge Red roof\n",
    "bbox": [100, 200, 300, 500],
    "type": "object",
    "split": "SFT",
    "label": "the  roof",
    "cut": True,
    "global": "  \nA town by a river.  \n",
    "stage_1_reasoning": "\nIntent: a colour.  \n\nReasoning Result:  \nI need to pay attention to\n```json\n[\n    "
    '{"bbox_2d": [100, 200, 300, 500], "label": "the roof"}\n]\n```  \n',
    "stage_2_reasoning": "The roof is <answer>red</answer>. ",
    "scale": 2.0,
}
BARE = {key: RAW[key] for key in ("question_id", "image_name", "category", "question", "ground_truth")}


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_saved(folder, rows, shards=1):
    """A folder in the form of datasets.Dataset.save_to_disk, with a column of images among the others."""
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist(rows)
    table = table.append_column("image", pa.array([{"bytes": b"x", "path": "p"}] * len(rows)))
    names = [f"data-{i:05}-of-{shards:05}.arrow" for i in range(shards)]
    size = -(-len(rows) // shards)
    for i, name in enumerate(names):
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table.slice(i * size, size))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")


def parsed(record) -> LrsGroRow:
    row, faults = read_row(record)
    assert not faults
    return row


def judged(record):
    return to_row(parsed(record), "here")


def complaint(call) -> str:
    """What a call complains of as the user's error; nothing else may come out of it."""
    try:
        call()
    except UserError as error:
        return str(error)
    return ""


# frames


@pytest.mark.parametrize(
    ("size", "corners"),
    [
        ((5000, 5000), (488.28125, 976.5625, 1464.84375, 2441.40625)),
        ((1500, 900), (146.484375, 292.96875, 439.453125, 732.421875)),
        ((512, 256), (50, 100, 150, 250)),  # the annotators' picture was an enlarged one
    ],
)
def test_annotation_frame(size, corners):
    box = from_annotation((100, 200, 300, 500), Frame(*size))
    assert box.corners == pytest.approx(corners)
    assert box.frame == Frame(*size)


def fault_of(row, image):
    (look,) = row.looks
    return box_fault(row, look, image)


def test_the_border_of_the_annotators_picture():
    image = Frame(5000, 3000)  # 1024 x 614.4 px
    for low, fault in ((614, ""), (615, ""), (616, PARTLY)):
        assert fault_of(judged({**RAW, "bbox": (0, 0, 1024, low)}), image) == fault
    assert fault_of(judged({**RAW, "bbox": (0, 615, 9, 700)}), image) == OUTSIDE


def test_clamped():
    frame = Frame(100, 50)
    assert clamped(Box(-5, 10, 120, 60, frame)).corners == (0, 10, 100, 50)
    assert clamped(Box(100, 0, 120, 10, frame)) is None
    assert clamped(Box(20, 10, 10, 20, frame)) is None


@given(st.integers(100, 9000), st.integers(100, 9000), st.lists(st.integers(-50, 1100), min_size=4, max_size=4))
def test_box_faults_agree_with_clamping(width, height, bbox):
    fault = fault_of(judged({**RAW, "bbox": bbox}), Frame(width, height))
    box = from_annotation(bbox, Frame(width, height))
    left_out = fault not in ("", PARTLY)
    assert left_out is (clamped(box) is None or max(map(abs, bbox)) <= 1)
    if fault == "":  # within a px of the annotators' picture
        assert (
            max(abs(a - b) for a, b in zip(clamped(box).corners, box.corners, strict=True)) <= box.x2 / bbox[2] + 1e-6
        )


# rows


def test_a_row_round_trips_raw_and_is_cleaned_in_one_place():
    row = parsed(RAW)
    assert row.to_dict() == RAW
    clean = normalise(row)
    assert (clean.category, clean.question, clean.ground_truth, clean.split, clean.label) == (
        "Object color / pattern",
        "What colour is the roof?",
        "a qlarge Red roof",
        "sft",
        "the roof",
    )
    assert normalise(clean) == clean


def test_null_and_unknown_fields_count_as_absent():
    assert parsed({**BARE, "label": None, "image": {"bytes": ""}}).to_dict() == {**BARE, "bbox": []}


@pytest.mark.parametrize(
    ("category", "bbox", "level"),
    [
        ("Counting", [], "global"),
        ("Counting", [1, 2, 3, 4], "region"),
        ("Object category", [1, 2, 3, 4], "region"),
        ("Object category refinement", [1, 2, 3, 4], "object"),
    ],
)
def test_a_level_that_is_lacking_follows(category, bbox, level):
    assert normalise(parsed({**BARE, "category": category, "bbox": bbox})).type == level
    assert normalise(parsed({**BARE, "category": category, "bbox": bbox, "type": " Region"})).type == "region"


def test_categories():
    assert len({name for names in CATEGORIES.values() for name in names}) == 16  # Counting is on two levels
    for stray in ("Localization", "scene  composition"):
        assert normalise(parsed({**BARE, "category": stray})).category == "Scene Type"
    assert normalise(parsed({**BARE, "category": " Weather "})).category == "Weather"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": None}, "field 'question' is null; it must be a text"),
        ({"question": 3}, "'question' must be a text, not 3"),
        ({"image_name": " "}, "must not be empty"),
        ({"bbox": [1, 2, 3]}, "'bbox' must be four finite numbers"),
        ({"bbox": [1, 2, 3, True]}, "'bbox' must be four"),
        ({"bbox": [1, 2, 3, float("nan")]}, "'bbox' must be four"),
        ({"bbox": "1, 2, 3, 4"}, "'bbox' must be four"),
        ({"type": "city"}, 'type "city" is none of global, region, object'),
        ({"cut": 1}, "'cut' must be true or false"),
        ({"scale": float("inf")}, "'scale' must be a finite number"),
    ],
)
def test_wrong_rows_are_named(change, message):
    row, faults = read_row({**RAW, **change})
    assert row is None
    assert len(faults) == 1
    assert message in faults[0]


def test_fields_that_nobody_knows_pass_unless_they_are_meant_otherwise():
    assert read_row({**RAW, "image": {"bytes": ""}, "note": 1})[1] == []
    assert read_row({**BARE, "BBox": [1, 2, 3, 4]})[1] == ["unknown field \"BBox\"; did you mean 'bbox'?"]


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_hostile_values_give_a_row_or_one_line(value):
    for key in RAW:
        row, faults = read_row({**RAW, key: value})
        assert (row is None) is bool(faults)
        assert not row or normalise(row)
        assert "\n" not in "".join(faults)


# thoughts


def test_thoughts_hold_no_box_and_no_tags():
    before, after = thoughts(normalise(parsed(RAW)))
    assert before == "A town by a river. Intent: a colour.\n\nReasoning Result:\nI need to pay attention to"
    assert after == "The roof is red."


def test_thoughts_without_a_crop_are_one():
    row = normalise(parsed({**RAW, "cut": False}))
    assert thoughts(row)[0] == ""
    assert thoughts(row)[1].startswith("A town")
    assert thoughts(row)[1].endswith("The roof is red.")
    assert thoughts(normalise(parsed(BARE))) == ("", "")


@given(
    st.sampled_from(["```json\n", "```", ""]),
    st.sampled_from(["\n```", ""]),
    st.sampled_from(["[\n  %s\n]", "[%s]", "%s"]),
    st.integers(1, 3),
)
def test_boxes_in_any_dress_are_cut(opening, closing, form, count):
    boxes = form % ",\n".join(['{"bbox_2d": [1, 2, 3, 4], "label": "a [b]"}'] * count)
    row = parsed({**RAW, "stage_1_reasoning": f"look at\n{opening}{boxes}{closing}\nnow"})
    assert " ".join(thoughts(normalise(row))[0].split()) == "A town by a river. look at now"


# files


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (2048, 1024)).save(tmp_path / "images" / "a.png")
    return tmp_path


def test_questions_in_px_of_the_original(folder, capsys):
    last = {**BARE, "bbox": [0, 0, 1024, 600]}  # lower than the image
    gone = [{**last, "bbox": [5, 5, 5, 9]}, {**last, "bbox": [0, 600, 9, 700]}, {**last, "ground_truth": " "}]
    write_jsonl(folder / "test.jsonl", [RAW, last, *gone])
    first, second = read_questions(folder, "test")
    assert first.box == Box(200, 400, 600, 1000, Frame(2048, 1024))
    assert second.box == Box(0, 0, 2048, 1024, Frame(2048, 1024))
    assert (first.text, first.answer, first.level) == ("What colour is the roof?", "a qlarge Red roof", "object")
    assert (second.looks[0].thought, second.thought) == ("", "")
    assert "3 of 5 rows are left out (box is degenerate: 1, box is outside the image: 1, ans" in capsys.readouterr().err
    write_jsonl(folder / "test.jsonl", gone)
    with pytest.raises(UserError, match="no row is left: all are left out, the first: "):
        read_questions(folder, "test")


def test_fine_tuning_takes_rows_with_reasoning(folder, capsys):
    write_jsonl(folder / "sft.jsonl", [RAW, BARE])
    assert [q.thought for q in read_questions(folder, "sft")] == ["The roof is red."]
    assert "1 of 2 rows are left out (reasoning is missing: 1)" in capsys.readouterr().err
    write_jsonl(folder / "sft.jsonl", [BARE, BARE])  # nobody has any: then it isn't meant to be taught
    assert len(read_questions(folder, "sft")) == 2
    assert capsys.readouterr().err == ""


def test_where_rows_are_found(folder):
    test = {**RAW, "split": "test", "question": "of test"}
    write_jsonl(folder / "LRS-GRO.jsonl", [RAW, test])
    assert {split: len(rows) for split, rows in read_all(folder).items()} == {"sft": 1, "test": 1}
    assert [q.text for q in read_questions(folder, "test")] == ["of test"]
    with pytest.raises(UserError, match="no rows of split 'rl'; it has sft, test"):
        read_questions(folder, "grpo")
    write_jsonl(folder / "LRS-GRO.jsonl", [RAW])  # of one split alone: still not the others' rows
    with pytest.raises(UserError, match="no rows of split 'rl'; it has sft"):
        read_questions(folder, "grpo")
    write_jsonl(folder / "RL.jsonl", [{**RAW, "split": "train"}] * 3)  # a split's own file wins, whatever its rows say
    assert len(read_questions(folder, "grpo")) == 3
    write_saved(folder / "sft", [RAW, RAW])
    assert len(read_questions(folder, "sft")) == 2
    for alone in ("RL.jsonl", "sft"):  # a file or saved folder itself
        assert read_questions(folder / alone, "test")[0].image.frame == Frame(2048, 1024)
    with pytest.raises(UserError, match="say which split"):
        read_questions(folder)


def test_single_files(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", [RAW, {**RAW, "split": "test"}, {**RAW, "split": "test"}])
    assert {split: len(rows) for split, rows in read_all(tmp_path / "x.jsonl").items()} == {"sft": 1, "test": 2}
    assert [len(read_split(tmp_path / "x.jsonl", split)) for split in ("sft", "test")] == [1, 2]
    for rows, names in (([RAW, BARE], ["sft"]), ([BARE, BARE], ["rows"])):
        write_jsonl(tmp_path / "x.jsonl", rows)
        assert {split: len(rows) for split, rows in read_all(tmp_path / "x.jsonl").items()} == dict.fromkeys(names, 2)


def test_saved_folders(tmp_path):
    rows = [{**RAW, "question": f"question {i}", "label": None if i else "roof"} for i in range(5)]
    write_saved(tmp_path / "rl", rows, shards=2)
    read = [row.to_dict() for row in read_split(tmp_path, "rl")]
    assert read == [{k: v for k, v in row.items() if v is not None} for row in rows]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("sft/state.json", b"{}", "no list _data_files"),
        ("sft/state.json", b"{", "not JSON"),
        ("sft/state.json", b"\xff", "byte 0xff at column 1 is not UTF-8"),
        ("sft/data-00000-of-00001.arrow", b"ARROW1 or not", "not a readable Arrow stream"),
        ("sft/data-00000-of-00001.arrow", None, "not a readable Arrow stream"),
        ("sft.jsonl", b"{\n", "sft.jsonl line 1: not JSON"),
        ("sft.jsonl", b"\xff", "line 1: byte 0xff at column 1 is not UTF-8"),
        ("sft.jsonl", b'{"a":' * 60_000, "line 1: not a row: lists or objects nested too deeply"),
        ("sft.jsonl", b'"' + b"x" * (1 << 20) + b'"', "line 1: over 1,048,576 characters"),
        ("sft.jsonl", b"3\n", "line 1: not an object in braces, but a int"),
        ("sft.jsonl", b"[]\n", "begins with a list"),
        ("sft.jsonl", b"\n", "no rows of split 'sft'"),
    ],
)
def test_broken_files_are_named(tmp_path, file, content, message):
    if file != "sft.jsonl":
        write_saved(tmp_path / "sft", [RAW])
    (tmp_path / file).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_split(tmp_path, "sft")
    assert "\n" not in str(caught.value)


def test_a_cut_arrow_file_is_an_error_not_a_crash(tmp_path):
    write_saved(tmp_path / "sft", [RAW] * 20)
    file = tmp_path / "sft" / "data-00000-of-00001.arrow"
    data = bytearray(file.read_bytes())
    for place in range(0, len(data), 997):  # overwritten in places, then cut short
        broken = bytearray(data)
        broken[place : place + 8] = b"\xff" * 8
        file.write_bytes(broken[: len(data) - place])
        assert "\n" not in complaint(lambda: read_split(tmp_path, "sft"))


def test_broken_texts_of_arrow_files(tmp_path):
    """They matter in the columns that are read alone."""
    broken = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])
    write_saved(tmp_path / "sft", [{**BARE, "note": ""}])
    file = tmp_path / "sft" / "data-00000-of-00001.arrow"
    table = pa.ipc.open_stream(file.read_bytes()).read_all()
    for column in ("note", "question"):
        changed = table.set_column(table.schema.get_field_index(column), column, broken)
        with pa.OSFile(str(file), "wb") as out, pa.ipc.new_stream(out, changed.schema) as stream:
            stream.write_table(changed)
        assert ("not a readable Arrow stream" in complaint(lambda: read_split(tmp_path, "sft"))) is (
            column == "question"
        )


def test_nothing_there_tells_where_it_comes_from(tmp_path):
    with pytest.raises(
        UserError, match=r"huggingface.co/datasets/HappyBug/LRS-GRO.*images/.*zoomearth data check"
    ) as caught:
        read_questions(tmp_path, "sft")
    assert "\n" not in str(caught.value)


def test_missing_images_are_counted(folder):
    write_jsonl(folder / "rl.jsonl", [{**RAW, "image_name": f"{i}.png"} for i in range(5)] + [RAW])
    with pytest.raises(
        UserError, match=r"5 faults: rl.jsonl line 1: image is missing: '0.png', .* line 3: .* lists all"
    ):
        read_questions(folder, "rl")


def test_manifests_go_by_key_and_content():
    one, other = judged(RAW), judged({**RAW, "question": "another"})
    assert manifest([one, other])["sha256"] == manifest([other, judged({**RAW, "question_id": "x"})])["sha256"]
    assert manifest([one])["sha256"] != manifest([judged({**RAW, "ground_truth": "blue"})])["sha256"]
    assert manifest([one])["keys"] == [["a.png", "What colour is the roof?"]]


# the released rows


@needs_released
def test_released_rows_round_trip():
    for name, count in (("rl", 2500), ("sft_sample", 3)):
        file = RELEASED / f"{name}.jsonl"
        rows = read_split(file, "sft" if "sft" in name else "rl")
        assert len(rows) == count
        assert [row.to_dict() for row in rows] == [
            json.loads(line) for line in file.read_text(encoding="utf-8").strip().split("\n")
        ]
        clean = [normalise(row) for row in rows]
        known = {category for names in CATEGORIES.values() for category in names}
        assert {row.category for row in clean} <= known
        assert all(row.type == dataclasses.replace(row, type=None).level for row in clean)  # files without levels


@needs_released
def test_released_rows_fit_the_prompt_and_render(tmp_path):
    """Every row becomes a prompt of the published models' episode; references write their box once, in the view's frame."""
    episode = preset("qwen2_5_vl_3b")[1]
    rows = RowBuilder(write_tokenizer(tmp_path), dataclasses.replace(episode, turn_lens=(2048, 1024)), 28)
    scene = random_scene(np.random.default_rng(0), 5000)

    def questions(name):
        released = [to_row(row, where) for where, row in find_split(RELEASED / name, "rl").rows]
        faults = [str(problem) for row in released for problem in row_problems(row, scene)]
        assert {fault.split(": ")[1] for fault in faults} <= {"scale isn't the image's longest side / 1024"}
        return [to_question(row, scene) for row in released]

    rows.check_prompts(questions("rl.jsonl"))
    references = questions("sft_sample.jsonl")
    rows.check_supervised(references)
    overviews = [rows.overview(question) for question in references]
    prompts, replies = rows.prompts(references, overviews), rows.reference_replies(references)
    assert prompts.valid.sum(1).max() < episode.prompt_len
    for question, ids, written in zip(references, replies.ids, replies.target, strict=True):
        text = rows.decode(ids[rows.layout.turn(0)][written[rows.layout.turn(0)]])
        box = parse_box(text, Frame(504, 504)).box
        assert text.count("bbox_2d") == 1
        assert box.to(question.box.frame).corners == pytest.approx(question.box.corners, abs=0.6 * 5000 / 504)


@pytest.mark.parity
def test_folders_of_the_datasets_library(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{**RAW, "question": f"question {i}", "cut": None if i == 2 else True} for i in range(7)]
    whole = datasets.Dataset.from_list(rows)
    datasets.DatasetDict(sft=whole, rl=whole.select([1, 2, 5])).save_to_disk(
        tmp_path / "both", num_shards={"sft": 2, "rl": 1}
    )
    plain = [{k: v for k, v in row.items() if v is not None} for row in rows]
    assert [row.to_dict() for row in read_split(tmp_path / "both", "sft")] == plain
    assert [row.question for row in read_split(tmp_path / "both", "rl")] == ["question 1", "question 2", "question 5"]
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    whole.add_column("image", [str(tmp_path / "a.png")] * 7).cast_column("image", datasets.Image()).save_to_disk(
        tmp_path / "sft"
    )
    assert [row.to_dict() for row in read_split(tmp_path / "sft", "sft")] == plain
