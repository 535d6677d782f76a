"""Rendering and parsing of what the policy writes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoomearth_jax.data_pipeline.boxes import Box, Frame
from zoomearth_jax.data_pipeline.protocol import (
    follows_protocol,
    follows_reference,
    is_correct,
    parse_answer,
    parse_box,
    render_answer,
    render_look,
    wants_crop,
)

VIEW = Frame(504, 336)


@given(
    st.integers(0, 500),
    st.integers(0, 330),
    st.integers(1, 500),
    st.integers(1, 330),
    st.text(max_size=20),
    st.text(max_size=20),
)
def test_rendered_boxes_parse_back(x, y, w, h, thought, label):
    box = Box(x, y, min(x + w, 504), min(y + h, 336), VIEW)
    text = render_look(thought.replace("bbox_2d", ""), box, label)
    assert parse_box(text, VIEW).box == box


@given(st.text(max_size=300))
def test_any_text_parses_to_a_value_or_a_reason(text):
    parsed = parse_box(text, VIEW)
    assert (parsed.box is None) == bool(parsed.reason)
    parse_answer(text), wants_crop(text), follows_protocol(text, text, VIEW), follows_protocol(text, None, VIEW)


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


def test_no_box_is_absent():
    assert parse_box("<think>nothing</think>", VIEW).reason == "absent"
    assert parse_box('[{"bbox_2d": [1, 2', VIEW).reason == "absent"  # cut off


LOOK = '<think>a</think>[{"bbox_2d": [1, 2, 3, 4], "label": "b"}]'
REPLY = "<think>a</think><answer>b</answer>"


@pytest.mark.parametrize(
    ("stage1", "stage2", "want"),
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
def test_format(stage1, stage2, want):
    assert follows_protocol(stage1, stage2, VIEW) is want


@pytest.mark.parametrize(
    ("stage1", "stage2", "want"),
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
def test_the_released_code_s_format(stage1, stage2, want):
    assert follows_reference(stage1, stage2) is want


def test_an_answer_goes_before_a_box():
    assert wants_crop(LOOK)
    assert not wants_crop(LOOK + "<answer>b</answer>")
    assert not wants_crop(REPLY)


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
