"""Rendering and parsing of what the policy writes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.text.protocol import (
    follows_protocol,
    follows_reference,
    is_correct,
    parse_answer,
    parse_box,
    released_numbers,
    render_answer,
    render_look,
    wants_crop,
)

VIEW = Frame(504, 336)


# texts of the pieces that parsing is about, and of anything else
PIECES = [
    *(
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "<answer\t>",
        "</answer >",
        "<THINK>",
        "</Answer>",
        "<think",
        "<ans",
    ),
    *(
        '"bbox_2d":',
        '"bbox_2d": [1,2,3,4]',
        "[1,2,3]",
        "[x1,y1,x2,y2]",
        "[nan,0,1,1]",
        "[",
        "]",
        ",",
        "1",
        "9e99",
        "-1",
    ),
    *("\\", "{", "}", '"label":', " "),
]
texts = st.one_of(st.text(max_size=30), st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
boxes = st.tuples(st.integers(0, 500), st.integers(0, 330), st.integers(1, 500), st.integers(1, 330)).map(
    lambda b: Box(b[0], b[1], min(b[0] + b[2], 504), min(b[1] + b[3], 336), VIEW)
)


@given(boxes, texts, texts)
def test_rendered_looks_parse_back(box, thought, label):
    text = render_look(thought.replace("bbox_2d", ""), box, label)
    assert parse_box(text, VIEW).box == box
    assert released_numbers(text) == list(box.corners)
    assert wants_crop(text)
    assert follows_reference([text, "<think>a</think><answer>b</answer>"]) == bool(parse_thought(text))


@given(texts, texts)
def test_rendered_answers_parse_back(thought, answer):
    text = render_answer(thought, answer)
    assert parse_answer(text) == text.split("<answer>")[1].removesuffix("</answer>").strip()  # no tags within
    if "<" not in answer:
        assert parse_answer(text) == answer.strip()
    assert not wants_crop(text)
    assert follows_protocol([text], VIEW)


def parse_thought(text):
    return text.removeprefix("<think>").split("</think>")[0].strip()


@given(texts, texts)
def test_any_text_parses_to_a_value_or_a_reason(text, other):
    parsed = parse_box(text, VIEW)
    assert (parsed.box is None) == bool(parsed.reason)
    assert all(isinstance(number, float) for number in released_numbers(text))
    parse_answer(text), wants_crop(text), follows_protocol([text, other], VIEW), follows_protocol([text], VIEW)
    follows_reference([text, other]), follows_reference([text])


@pytest.mark.parametrize(
    ("numbers", "want"),
    [
        ("1, 2, 3, 4", (1, 2, 3, 4)),
        ("1.5,2,3e1,4", (1.5, 2, 30, 4)),
        ("-5, -5, 9999, 9999", (0, 0, 504, 336)),
        ("1, 2, 3", "malformed"),
        ("1, 2, 3, 4, 5", "malformed"),
        ("", "malformed"),
        ("a, b, c, d", "malformed"),
        ("nan, 0, 1, 1", "malformed"),
        ("0, 0, inf, 1", "malformed"),
        ("9" * 400 + ", 0, 1, 1", "malformed"),  # overflows to inf
        ("5, 5, 5, 9", "degenerate"),
        ("9, 9, 1, 1", "degenerate"),
        ("504, 0, 600, 10", "outside"),
        ("-9, -9, 0, 0", "outside"),
    ],
)
def test_boxes(numbers, want):
    parsed = parse_box(f'<think>x</think>[{{"bbox_2d": [{numbers}], "label": "a"}}]', VIEW)
    assert (parsed.reason or parsed.box.corners) == want


TEMPLATE = '[{"bbox_2d": [x1, y1, x2, y2], "label": "..."}]'
BOX = '[{"bbox_2d": [1, 2, 3, 4], "label": "b"}]'


@pytest.mark.parametrize(
    "before", [TEMPLATE, TEMPLATE * 3, '"bbox_2d": []', '"bbox_2d": [1, 2, 3]', '"bbox_2d": [nan, 0, 1, 1]']
)
def test_the_first_box_that_parses_counts(before):
    text = f"<think>I write {before}.</think>{BOX}"
    assert parse_box(text, VIEW).box.corners == (1, 2, 3, 4)
    assert wants_crop(text)
    assert parse_box(text + BOX.replace("1", "2"), VIEW).box.corners == (1, 2, 3, 4)
    assert not wants_crop(f"<think>{before}</think>")
    assert parse_box(BOX.replace("3", "1") + BOX, VIEW).reason == "degenerate"  # it parses, so it counts


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        (BOX, [1, 2, 3, 4]),
        (TEMPLATE + BOX, [1, 2, 3, 4]),
        ('"bbox_2d": []' + BOX, [1, 2, 3, 4]),
        ('"bbox_2d": [1, 2, 3]' + BOX, [1, 2, 3]),  # a list of numbers, which means no box
        ('"bbox_2d" :\n[-9e1 , 5.5,\n3, inf]', [-90, 5.5, 3, float("inf")]),
        ("[1, 2, 3, 4]", []),
        ("", []),
    ],
)
def test_numbers_as_the_released_rewards_read_them(text, numbers):
    assert released_numbers(text) == numbers


def test_no_box_is_absent():
    assert parse_box("<think>nothing</think>", VIEW).reason == "absent"
    assert parse_box('[{"bbox_2d": [1, 2', VIEW).reason == "absent"  # cut off


LOOK = '<think>a</think>[{"bbox_2d": [1, 2, 3, 4], "label": "b"}]'
REPLY = "<think>a</think><answer>b</answer>"


def texts(first, after):
    return [first] if after is None else [first, after]


@pytest.mark.parametrize(
    ("first", "after", "want"),
    [
        (LOOK, REPLY, True),
        (REPLY, None, True),
        (LOOK, None, False),
        (LOOK, LOOK, False),
        (REPLY, REPLY, False),
        (LOOK.replace("3", "1"), REPLY, False),  # a box without area
        (LOOK + "x", REPLY, False),
        ("<think>a</think>" + REPLY, None, False),
        (REPLY + "<answer>c</answer>", None, False),
        (LOOK, "<answer>b</answer>", False),
        (LOOK, "", False),
    ],
)
def test_format(first, after, want):
    assert follows_protocol(texts(first, after), VIEW) is want


@pytest.mark.parametrize(
    ("first", "after", "want"),
    [
        (LOOK, REPLY, True),
        ("Well. " + LOOK + " So.", REPLY * 2, True),
        ('<think>a</think>"bbox_2d": [1, 2, 3]', REPLY, True),  # however many numbers
        ('<think>a</think>"bbox_2d": [1, 2, x, 4]', REPLY, False),
        ("<think>a</think>", REPLY, False),
        (LOOK, "<answer>b</answer>", False),
        (LOOK, "<think>a</think><answer> </answer>", False),
        (LOOK, None, False),
        (REPLY, None, True),
        ("<think> </think><answer>b</answer>", None, False),
    ],
)
def test_the_released_code_s_format(first, after, want):
    assert follows_reference(texts(first, after)) is want


def test_an_answer_goes_before_a_box():
    assert wants_crop(LOOK)
    assert not wants_crop(LOOK + "<answer>b</answer>")
    assert not wants_crop(REPLY)
    assert wants_crop("<think>Is it <answer>b</answer>? I look. </think>" + BOX)  # a draft is no answer
    assert not wants_crop(LOOK + "<answer >b</answer >")


@pytest.mark.parametrize(
    ("answer", "reference", "want"),
    [("Rising.", "rising", True), (" 3\n", "3", True), ("3", "4", False), (None, "3", False), ("", "3", False)],
)
def test_correctness(answer, reference, want):
    assert is_correct(answer, reference) is want


def test_answers_are_found():
    assert parse_answer(render_answer("t", "x y")) == "x y"
    assert parse_answer("<answer>open") is None
    assert parse_answer("<answer> a </answer><answer>b</answer>") == "a"


DRAFT = "<answer>draft</answer>"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer >x</answer\n>", "x"),
        ("<Answer>x</ANSWER>", "x"),
        (f"<think>{DRAFT}</think><answer>x</answer>", "x"),
        (f"<think >{DRAFT}</think >\n<answer>x</answer>", "x"),
        (f"<THINK>{DRAFT}</Think><answer>x</answer>", "x"),
        (f"<think>{DRAFT}</think>", None),
        (f"<think>a<think>{DRAFT}</think>{DRAFT}</think><answer>x</answer>", "x"),  # nested
        ("<think>a <answer>dra</think><answer>x</answer>", "x"),  # a draft that was not finished
        (f"<think>a</think><think>{DRAFT}</think><answer>x</answer>{DRAFT}", "x"),
        ("<think>never closed <answer>x</answer>", "x"),
        (f"<think>never closed <think>{DRAFT}</think><answer>x</answer>", "x"),
        ("</think><answer>x</answer>", "x"),
        ("<answer></answer>", ""),
        ("<answers>x</answers>", None),
    ],
)
def test_what_is_drafted_in_a_thought_is_not_the_answer(text, answer):
    assert parse_answer(text) == answer
