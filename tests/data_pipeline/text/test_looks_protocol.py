"""Looks that go on from a picture: rendering and parsing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data_pipeline.text.test_protocol import BOX, LOOK, PIECES, REPLY, VIEW, boxes
from zoomearth_jax.data_pipeline.images.boxes import Frame
from zoomearth_jax.data_pipeline.text.protocol import (
    ParsedLook,
    follows_protocol,
    parse_box,
    parse_look,
    render_context,
    render_look,
    wants_crop,
)

SMALL = Frame(84, 56)
MORE = ['"source":', '"picture"', '"observation_1"', '"source": "picture"', '"context": 2', '"context":', "null", '"']
texts = st.one_of(st.text(max_size=30), st.lists(st.sampled_from(PIECES + MORE), max_size=14).map("".join))
shown = st.lists(st.sampled_from([VIEW, SMALL, None]), max_size=3)


def look(rest, box="[10, 20, 30, 40]"):
    return f'<think>t</think>[{{"bbox_2d": {box}, "label": "a"{rest}}}]'


@given(boxes, texts, texts, st.sampled_from(["overview", "picture"]))
def test_rendered_looks_parse_back(box, thought, label, source):
    thought = thought.replace("bbox_2d", "").replace("context", "")
    parsed = parse_look(render_look(thought, box, label, source), VIEW, [SMALL, VIEW])
    assert parsed == ParsedLook(box, 1 if source == "picture" else None)


@given(st.floats(1, 1e9, exclude_min=True), texts, texts)
def test_rendered_wider_views_parse_back(factor, thought, label):
    text = render_context(thought.replace("bbox_2d", "").replace("context", ""), factor, label)
    assert parse_look(text, VIEW, [VIEW, SMALL]) == ParsedLook(None, 1, factor)
    assert wants_crop(text, several=True)
    assert parse_box(text, VIEW).reason == "absent"


@given(texts, texts, shown)
def test_any_text_parses_to_a_value_or_a_reason(text, other, pictures):
    parsed = parse_look(text, VIEW, pictures)
    assert bool(parsed.reason) == (parsed.box is None and not parsed.context)
    if parsed.picture is not None:
        assert pictures[parsed.picture] is not None
    follows_protocol([text, other], VIEW, pictures), wants_crop(text, several=True)
    if "source" not in text and "context" not in text:
        assert (parsed.box, parsed.reason) == (parse_box(text, VIEW).box, parse_box(text, VIEW).reason)


@pytest.mark.parametrize(
    ("rest", "want"),
    [
        ("", None),
        (', "source": "overview"', None),
        (', "source": "original_image"', None),
        (', "source": "picture"', 1),
        (',"source" :\n"observation_1"', 0),
        (', "source": "observation_2"', 1),
        (', "label": "a } \\" {", "source": "picture"', 1),  # braces and quotes in a text end nothing
        (', "label": "\\"source\\": \\"picture\\""', None),
        (', "source": "observation_3"', "no picture"),
        (', "source": "observation_0"', "no picture"),
        (', "source": "observation_٣"', "no picture"),
        (', "source": "Picture"', "no picture"),
        (', "source": ""', "no picture"),
        (', "source": "picture", "source": "overview"', "malformed"),
        (', "source": 1', "malformed"),
        (', "source": null', "malformed"),
        (', "source": ["picture"]', "malformed"),
        (', "source": "pict', "malformed"),
    ],
)
def test_sources(rest, want):
    pictures = [SMALL, Frame(112, 56)]
    parsed = parse_look(look(rest), VIEW, pictures)
    assert (parsed.reason or parsed.picture) == want
    assert bool(parsed.reason) or parsed.box.frame == (VIEW if want is None else pictures[want])


def test_the_source_is_that_of_the_box_s_own_object():
    first = '[{"source": "picture", "bbox_2d": [1, 2, 3, 4]}]'
    assert parse_look(first, VIEW, [SMALL]).picture == 0
    assert parse_look(first, VIEW, []).reason == "no picture"
    assert parse_look(first, VIEW, [None]).reason == "no picture"
    assert parse_look(BOX + first, VIEW, [SMALL]).picture is None
    assert parse_look('[{"source": "picture"}]' + BOX, VIEW, [SMALL]).picture is None


@pytest.mark.parametrize(
    ("box", "want"),
    [
        ("[-5, -5, 999, 999]", (0, 0, 84, 56)),
        ("[84, 0, 90, 9]", "outside"),
        ("[9, 9, 9, 20]", "degenerate"),
        ("[1, 2, 3]", "malformed"),
        ("[nan, 2, 3, 4]", "malformed"),
    ],
)
def test_boxes_inside_a_picture(box, want):
    parsed = parse_look(look(', "source": "picture"', box), VIEW, [SMALL])
    assert (parsed.reason or parsed.box.corners) == want


@pytest.mark.parametrize(
    ("value", "want"),
    [
        ("2", 2.0),
        ("1.5", 1.5),
        ("1e9", 1e9),  # the image ends it
        ("1", "degenerate"),
        ("0", "degenerate"),
        ("-3", "degenerate"),
        ("nan", "malformed"),
        ("1e999", "malformed"),
        ("[2]", "malformed"),
        ('"2"', "malformed"),
        ("true", "malformed"),
        ("", "malformed"),
    ],
)
def test_wider_views(value, want):
    text = f'<think>t</think>[{{"context": {value}, "label": "a"}}]'
    parsed = parse_look(text, VIEW, [VIEW, SMALL])
    assert (parsed.reason or parsed.context) == want
    if not parsed.reason:
        assert parsed.picture == 1
        assert parse_look(text, VIEW, []).reason == parse_look(text, VIEW, [VIEW, None]).reason == "no picture"


def test_the_first_look_counts():
    wide = '[{"context": 2, "label": ""}]'
    assert parse_look(wide + BOX, VIEW, [VIEW]).context == 2
    assert parse_look(BOX + wide, VIEW, [VIEW]).box.corners == (1, 2, 3, 4)
    assert parse_look('[{"context": k}]' + BOX, VIEW, [VIEW]).box.corners == (1, 2, 3, 4)  # a template


def test_formats_of_several_turns():
    inner, wide = look(', "source": "picture"'), render_context("t", 2, "a")
    for chain, shown, want in (
        ([LOOK, inner, REPLY], [SMALL, SMALL], True),
        ([LOOK, wide, inner, REPLY], [SMALL] * 3, True),
        ([inner, LOOK, REPLY], [SMALL, SMALL], False),
        ([wide, REPLY], [SMALL], False),
        ([LOOK, inner.replace("30", "10"), REPLY], [SMALL, SMALL], False),
        ([LOOK, inner + "x", REPLY], [SMALL, SMALL], False),
        ([LOOK, inner], [SMALL], False),
        ([LOOK, inner, REPLY], [None, SMALL], False),
    ):
        assert follows_protocol(chain, VIEW, shown) is want


@pytest.mark.parametrize("rest", ["", ', "source": "picture"', ', "source": 1', ', "context": 2'])
def test_two_turns_read_none_of_it(rest):
    assert parse_box(look(rest), VIEW) == parse_box(look(""), VIEW)
    assert follows_protocol([look(rest), REPLY], VIEW)
    assert wants_crop(look(rest))
    assert not wants_crop('<think>t</think>[{"context": 2, "label": "a"}]')
