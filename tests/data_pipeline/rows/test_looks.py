"""Chains of looks: what texts ask for, what fine-tuning teaches, and the settings of it."""

import dataclasses
import json
import types

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from zoomearth_jax.configs.episode import EpisodeConfig, LayoutConfig, turns_of
from zoomearth_jax.configs.rollout import RolloutConfig
from zoomearth_jax.configs.training import GRPOConfig
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.questions.folders import read_questions
from zoomearth_jax.data_pipeline.questions.own_rows import write_questions
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.data_pipeline.questions.question import Look, Question
from zoomearth_jax.data_pipeline.rows.builder import RowBuilder
from zoomearth_jax.data_pipeline.rows.looks import Looks
from zoomearth_jax.data_pipeline.text.nano_tokenizer import build_nano_tokenizer
from zoomearth_jax.data_pipeline.text.protocol import follows_protocol
from zoomearth_jax.errors import UserError
from zoomearth_jax.models.presets import preset
from zoomearth_jax.rl.episode import Turn
from zoomearth_jax.rl.records import turn_record
from zoomearth_jax.tools.tool import View
from zoomearth_jax.tools.toolbox import ToolRequest
from zoomearth_jax.tools.zoom import Oracle, Zoom

IMAGE = Frame(4000, 2000)
EPISODE = EpisodeConfig(view_px=400, min_window_px=500, inner_window_px=200, turn_lens=(90, 90, 90, 40))
LOOKS = Looks(EPISODE, 20)  # overviews of 400 x 200 px


def said(corners, source=None):
    more = "" if source is None else f', "source": "{source}"'
    return f'<think>t</think>[{{"bbox_2d": {list(corners)}, "label": "a"{more}}}]'


def test_places_by_hand():
    first = LOOKS.place(said((100, 50, 200, 100)), IMAGE, [])
    assert first == (Box(100, 50, 200, 100, Frame(400, 200)), Box(1000, 500, 2000, 1000, IMAGE), "overview")
    shown = [LOOKS.picture_map(first.window)]
    assert shown[0].frame == Frame(400, 200)  # 1000 x 500 px, by 2.5
    second = LOOKS.place(said((40, 40, 240, 120), "picture"), IMAGE, shown)
    assert second.window.corners == (1100, 600, 1600, 800)
    assert second.box.corners == pytest.approx((110, 60, 160, 80))  # in px of the overview
    small = LOOKS.place(said((0, 0, 20, 20), "observation_1"), IMAGE, [*shown, LOOKS.picture_map(second.window)])
    assert small.window.corners == (925, 425, 1125, 625)  # 50 px grow to inner_window_px
    assert small.source == "picture"
    third = LOOKS.place('[{"context": 2, "label": ""}]', IMAGE, [*shown, LOOKS.picture_map(second.window)])
    assert third.window.corners == (850, 500, 1850, 900)
    assert third == (third.window.to(Frame(400, 200)), third.window, "context")
    again = LOOKS.place(said((100, 50, 110, 55)), IMAGE, shown)  # on the overview, so min_window_px
    assert again.window.corners == (800, 275, 1300, 775)
    assert LOOKS.place(said((0, 0, 9, 9), "picture"), IMAGE, []) == "no picture"
    assert LOOKS.place(said((0, 0, 9, 9), "observation_2"), IMAGE, shown) == "no picture"


def test_two_turns_keep_their_protocol():
    two = Looks(dataclasses.replace(EPISODE, turn_lens=(90, 40)), 20)
    for source in ("picture", "observation_1", "overview", "nothing"):
        assert two.place(said((100, 50, 200, 100), source), IMAGE, []) == two.place(
            said((100, 50, 200, 100)), IMAGE, []
        )
    assert two.place('[{"context": 2}]', IMAGE, []) == "absent"


@pytest.fixture(scope="module")
def rows():
    return RowBuilder(build_nano_tokenizer(), dataclasses.replace(preset("nano")[1], turn_lens=(40, 40, 40, 16)), 28)


def test_the_zoom_goes_on_from_its_pictures(rows):
    question = scene_questions("test", 0, 0, 1)[0]  # 2,048 px, of which 112 are seen
    view = View(question, Frame(112, 112))
    rows = rows.replaced(inner_window_px=56)
    zoom = Zoom(rows)
    first = zoom.request(said((28, 28, 56, 56)), view)
    second = zoom.request(said((56, 56, 112, 84), "picture"), view._replace(earlier=(first,)))
    assert first.window.corners == (512, 512, 1024, 1024)
    assert second.window.corners == (768, 768, 1024, 896)
    assert second.source == "picture"
    assert second.box.corners == (42, 42, 56, 49)
    assert second.box.frame == view.frame
    assert not zoom.request(
        said((0, 0, 9, 9), "picture") + "<answer>a</answer>", view._replace(earlier=(first,))
    ).wanted
    tools = ToolRequest(True, first.box, first.window)  # its picture is the tools' own
    assert zoom.request(said((0, 0, 9, 9), "picture"), view._replace(earlier=(tools,))) == "no picture"
    assert zoom.request('[{"context": 3}]', view._replace(earlier=(first, second))).window.corners == (
        512,
        640,
        1280,
        1024,
    )
    assert Oracle(zoom, rows).request(said((0, 0, 9, 9), "picture"), view).reason == "no picture"
    assert turn_record(Turn("t", second, picture=np.zeros((28, 28, 3))), question.image.frame) == {
        "text": "t",
        "box": [768, 768, 1024, 896],
        "source": "picture",
        "window": [768, 768, 1024, 896],
    }


def chain(*looks):
    return Question(types.SimpleNamespace(frame=IMAGE), "Which way?", "up", "object", looks, "seen")


def test_a_chain_is_taught_in_the_pictures_that_it_is_shown():
    question = chain(
        Look(Box(1000, 500, 2000, 1000, IMAGE), "area", "far"),
        Look(Box(1100, 600, 1600, 800, IMAGE), "roof", "near", "picture"),
        Look(Box(850, 500, 1850, 900, IMAGE), "street", "wide", "context", 2.0),
    )
    (first, a), (second, b), (third, c), (answer, none) = LOOKS.references(question)
    assert first == '<think>far</think>[{"bbox_2d": [100, 50, 200, 100], "label": "area"}]'
    assert second == '<think>near</think>[{"bbox_2d": [40, 40, 240, 120], "label": "roof", "source": "picture"}]'
    assert third == '<think>wide</think>[{"context": 2, "label": "street"}]'
    assert answer == "<think>seen</think><answer>up</answer>"
    assert [window and window.corners for window in (a, b, c, none)] == [
        (1000, 500, 2000, 1000),
        (1100, 600, 1600, 800),
        (850, 500, 1850, 900),
        None,
    ]


def test_a_look_outside_its_picture_names_question_and_look():
    question = chain(Look(Box(0, 0, 800, 800, IMAGE)), Look(Box(700, 0, 1000, 90, IMAGE), source="picture"))
    with pytest.raises(
        UserError, match=r"'Which way\?' look 2: the middle of its box \[700, 0, 1000, 90\] .* \[0, 0, 800, 800\]"
    ):
        LOOKS.references(question)


@given(st.data())
def test_what_is_taught_inside_a_picture_parses_and_holds_the_middle(data):
    width, height = (data.draw(st.integers(1, 40_000)) for _ in range(2))
    frame, boxes = Frame(width, height), []
    for _ in range(2):
        edges = [sorted(data.draw(st.tuples(*[st.floats(0, side)] * 2))) for side in (width, height)]
        assume(all(low < high for low, high in edges))
        boxes.append(Box(edges[0][0], edges[1][0], edges[0][1], edges[1][1], frame))
    looks = dataclasses.replace(preset("qwen2_5_vl_3b")[1], turn_lens=(640, 640, 256), inner_window_px=56)
    looks, question = Looks(looks, 28), chain(Look(boxes[0]), Look(boxes[1], source="picture"))
    question = dataclasses.replace(question, image=types.SimpleNamespace(frame=frame))
    try:
        (first, around), (second, window), _ = looks.references(question)
    except UserError:
        assume(False)
    shown = looks.picture_map(around)
    assert follows_protocol([first, second, "<think></think><answer>a</answer>"], looks.box_frame(frame), [shown.frame])
    slack = 1e-6 * max(width, height)
    assert window.x1 - slack <= (boxes[1].x1 + boxes[1].x2) / 2 <= window.x2 + slack
    assert window.y1 - slack <= (boxes[1].y1 + boxes[1].y2) / 2 <= window.y2 + slack


def test_rows_of_a_chain_hold_the_pictures_of_its_texts(rows):
    scene = scene_questions("sft", 5, 0, 1, global_share=0.0)[0]
    half = Look(Box(0, 0, 1024, 1024, scene.image.frame), "half")
    inner = Look(Box(256, 256, 512, 768, scene.image.frame), "half", source="picture")
    wide = Look(Box(0, 0, 1024, 1024, scene.image.frame), "half", source="context", context=4.0)
    replies = rows.replaced(inner_window_px=56).supervised([dataclasses.replace(scene, looks=(half, inner, wide))])[1]
    windows = [(0, 0, 1024, 1024), (256, 256, 512, 768), (0, 0, 1024, 2048)]  # the last is moved inside
    grids = replies.grids[0].tolist()
    for k, corners in enumerate(windows):
        picture = rows.crop(scene.image, Box(*corners, scene.image.frame))
        assert grids[k] == [side // 28 for side in picture.shape[:2]]
        np.testing.assert_array_equal(replies.pictures.pixels[k, : picture.shape[0], : picture.shape[1]], picture)


def test_questions_with_chains_are_written_and_read(tmp_path):
    frame = Frame(1200, 1100)
    looks = (
        Look(Box(0, 0, 1000, 1000, frame), "half", "far"),
        Look(Box(200, 300, 500, 600, frame), "roof", "near", "picture"),
        Look(Box(50, 150, 650, 750, frame), "street", "wide", "context", 2.0),
    )
    Image.new("RGB", (1200, 1100)).save(tmp_path / "a.png")
    write_questions(tmp_path / "questions.jsonl", [("a.png", chain(*looks))])
    (question,) = read_questions(tmp_path)
    assert question.looks == looks
    row = json.loads((tmp_path / "questions.jsonl").read_text())
    first, second, third = row["looks"]
    for changed, message in (
        ([second], "look 1: there is no picture yet"),
        ([third, first], "look 1: there is no picture yet"),
        ([first, second | {"source": "observation_1"}], "look 2: field 'source' must be overview or picture, not"),
        ([first, second | {"source": 1}], "look 2: field 'source' must be a text"),
        ([first, third | {"context": 1}], "look 2: field 'context' must be above 1"),
        ([first, third | {"box": [1, 2, 3, 4]}], "look 2: field 'context' is a wider view"),
        ([first, third | {"context": "2"}], "look 2: field 'context' must be a finite number"),
    ):
        (tmp_path / "questions.jsonl").write_text(json.dumps(row | {"looks": changed}) + "\n")
        with pytest.raises(UserError, match=f"line 1: {message}"):
            read_questions(tmp_path)


@pytest.mark.parametrize(
    ("lens", "looks", "want"),
    [
        ((640, 256), 1, (640, 256)),
        ((640, 256), 3, (640, 640, 640, 256)),
        ((640, 256), 0, (640,)),
        ((640, 300, 256), 1, (640, 256)),
        ((640,), 2, (640, 640, 640)),
    ],
)
def test_the_layout_of_a_number_of_looks(lens, looks, want):
    assert turns_of(lens, looks) == want
    episode = EpisodeConfig(turn_lens=lens)
    assert RolloutConfig(looks=looks).of(episode).turn_lens == want
    assert RolloutConfig().of(episode) == episode


def test_settings_that_contradict_each_other():
    with pytest.raises(UserError, match=r"rollout.looks 2 takes 3 turns, layout.turn_lens has 2; give one of the two"):
        GRPOConfig(rollout=RolloutConfig(looks=2), layout=LayoutConfig(turn_lens=(640, 256)))
    GRPOConfig(rollout=RolloutConfig(looks=2), layout=LayoutConfig(turn_lens=(640, 640, 256)))
    with pytest.raises(UserError, match="looks must be a number of pictures"):
        RolloutConfig(looks=-1)
    with pytest.raises(UserError, match="inner_window_px must be positive, or 0"):
        EpisodeConfig(inner_window_px=-1)
    changed = LayoutConfig(min_window_px=64, inner_window_px=32).of(EPISODE, 28)
    assert (changed.least_window("overview"), changed.least_window("picture")) == (64, 32)
    assert dataclasses.replace(changed, inner_window_px=0).least_window("picture") == 64
