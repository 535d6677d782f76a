"""The toolbox: calls of a turn become a picture, a note and outcomes; what goes wrong is told and ends nothing."""

import json
import threading

import jax
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("jsonschema", reason="needs the extra `tools`")

from zoomearth_jax.configs.episode import LayoutConfig
from zoomearth_jax.configs.tools import ToolsConfig
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.errors import UserError
from zoomearth_jax.evaluation.asking import load
from zoomearth_jax.evaluation.scripted import play_script
from zoomearth_jax.rl.records import turn_record
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.tools.image_tool import ImageTool, ToolResult
from zoomearth_jax.tools.pasting import pasted, pasted_all
from zoomearth_jax.tools.running import Region
from zoomearth_jax.tools.tool import View
from zoomearth_jax.tools.toolbox import Toolbox, ToolRequest, rows_with_tools
from zoomearth_jax.tools.zoom import Masked

SCENE = scene_questions("test", 0, 0, 1)[0]  # 2,048 px, of which the nano model sees 112
FRAME = Frame(112, 112)
RELEASE = threading.Event()


def inverted(region, context):
    return ToolResult(255 - region, text="inverted")


def hangs(region, context):
    RELEASE.wait(20)
    return ToolResult(text="late")


def broken(region, context):
    raise RuntimeError("broken")


TOOLS = {
    "invert": ImageTool("invert", "Inverts.", inverted, {"much": {"type": "boolean"}}),
    "outline": ImageTool(
        "outline", "Outlines.", lambda r, c: ToolResult(mask=r[..., 0] > 0, boxes=((0, 0, 9, 9),)), around=False
    ),
    "tell": ImageTool("tell", "Tells.", lambda r, c: ToolResult(text=f"{c.label} {c.full.width}"), frame="thousandths"),
    "exact": ImageTool("exact", "Exact.", lambda r, c: ToolResult(text=str(r.shape)), frame="original", around=False),
    "broken": ImageTool("broken", "Breaks.", broken),
    "hang": ImageTool("hang", "Hangs.", hangs),
}


@pytest.fixture(scope="module")
def rows(nano):
    return nano.rows.replaced(min_window_px=256)


@pytest.fixture(scope="module")
def box(rows):
    return Toolbox(rows, TOOLS, ToolsConfig(timeout_s=0.3))


def called(*calls):
    return "".join(f"<tool_call>{json.dumps({'name': name, 'arguments': given})}</tool_call>" for name, given in calls)


def shown(box, text):
    request = box.request(text, View(SCENE, FRAME))
    assert isinstance(request, ToolRequest)
    return request, box.run(SCENE.image, request)


def told(note):
    return [json.loads(part.split("</tool_response>")[0]) for part in note.split("<tool_response>")[1:]]


def test_a_call_reads_the_window_at_full_resolution_and_shows_the_result(box, rows):
    request, (picture, note, outcomes) = shown(box, called(("invert", {"bbox_2d": [28, 56, 35.0, 63.5]})))
    px = 2048 / 112
    assert request.wanted
    assert request.box.corners == pytest.approx((28, 56, 35, 63.5))
    assert request.window == rows.window(Box(28, 56, 35, 63.5, FRAME), SCENE.image.frame)
    (outcome,) = outcomes
    window = request.window
    size = Frame(round(window.x2 - window.x1), round(window.y2 - window.y1))
    np.testing.assert_array_equal(outcome.region.pixels, SCENE.image.window(window, size))
    np.testing.assert_array_equal(outcome.result.image, 255 - outcome.region.pixels)
    assert outcome.region.box == pytest.approx(
        tuple(np.subtract((28 * px, 56 * px, 35 * px, 63.5 * px), (window.x1, window.y1) * 2))
    )
    assert np.abs(255 - picture.astype(int) - rows.crop(SCENE.image, window)).max() <= 1
    assert told(note) == [{"name": "invert", "text": "inverted"}]
    assert outcome.record["tool"] == "invert"
    assert outcome.record["window"] == list(map(round, window.corners))


def test_boxes_in_every_frame_and_regions_without_surroundings(box):
    _, (picture, note, _) = shown(
        box,
        called(
            ("tell", {"bbox_2d": [0, 0, 1000, 500], "label": "all"}), ("exact", {"bbox_2d": [100, 200, 164.2, 300]})
        ),
    )
    assert told(note) == [{"name": "tell", "text": "all 2048"}, {"name": "exact", "text": "(100, 65, 3)"}]
    assert picture.shape == (0, 0, 3)


def test_pictures_of_several_calls_are_shown_side_by_side(box, rows):
    one = called(("invert", {"bbox_2d": [28, 56, 35, 63]}))
    two = one + called(("outline", {"bbox_2d": [0, 0, 20, 20]}))
    _, (picture, note, outcomes) = shown(box, two)
    side = rows.layout.picture_side
    assert picture.dtype == np.uint8
    assert max(picture.shape) <= side
    assert all(length % 28 == 0 for length in picture.shape[:2])
    assert picture.shape[1] > picture.shape[0]
    assert told(note)[1]["boxes_in_original_px"] == [[0, 0, 9, 9]]
    assert [o.tool for o in outcomes] == ["invert", "outline"]


def test_what_goes_wrong_is_told_and_the_episode_goes_on(box):
    text = called(
        ("invert", {"bbox_2d": [1, 2, 3]}),
        ("none", {}),
        ("broken", {"bbox_2d": [0, 0, 9, 9]}),
        ("hang", {"bbox_2d": [0, 0, 9, 9]}),
    )
    request, (picture, note, outcomes) = shown(box, text)
    RELEASE.set()
    assert request.wanted
    assert picture.size == 0
    errors = [one["error"] for one in told(note)]
    assert errors[0] == "bbox_2d: [1, 2, 3] is too short"
    assert "there is no tool of that name" in errors[1]
    assert errors[2] == "failed (RuntimeError: broken)"
    assert "was given up" in errors[3]
    assert [o.error for o in outcomes] == errors
    for given in ([5, 5, 5, 9], [200, 0, 300, 9]):
        _, (_, note, _) = shown(box, called(("invert", {"bbox_2d": given})))
        assert told(note)[0]["error"] in ("the box is degenerate", "the box is outside")
    _, (_, note, _) = shown(box, '<tool_call>{"name": "\\ud800"}')
    rows_can_read = told(note)[0]["name"].encode()
    assert rows_can_read == b"?"


def test_texts_without_a_call_get_the_zoom_and_answers_get_nothing(box, rows):
    view = View(SCENE, FRAME)
    zoomed = box.request('<think>a</think>[{"bbox_2d": [10, 10, 40, 40], "label": "x"}]', view)
    np.testing.assert_array_equal(box.run(SCENE.image, zoomed), rows.crop(SCENE.image, zoomed.window))
    assert box.request("nothing", view) == "absent"
    answered = box.request(called(("invert", {"bbox_2d": [0, 0, 9, 9]})) + "<answer>two</answer>", view)
    assert not answered.wanted
    grey = Masked(box)
    request = grey.request(called(("invert", {"bbox_2d": [0, 0, 9, 9]})), view)
    assert set(np.unique(grey.run(SCENE.image, request).picture)) == {128}


def test_the_offer_stands_in_the_prompt(nano):
    rows = rows_with_tools(nano.rows, {"invert": TOOLS["invert"]}, "You have {tools}.").widened([SCENE])
    prompt = rows.decode(rows.prompts([SCENE]).ids[0])
    assert 'system\nYou have {"type": "function", "function": {"name": "invert"' in prompt
    assert SCENE.text in prompt
    whole = nano.rows.replaced(
        instruction="<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{question}<|im_end|>"
    )
    spelled = rows_with_tools(whole, {"invert": TOOLS["invert"]}, "You have {tools}.").widened([SCENE])
    prompt = spelled.decode(spelled.prompts([SCENE]).ids[0])
    assert prompt.index("You have") < prompt.index(SCENE.text)


def test_the_engine_plays_calls(nano, rows, monkeypatch):
    """The nano model can't call tools: what it writes in its first turn is read as a call and one that is broken."""
    rows = rows.replaced(turn_lens=(4, 4)).with_notes(40)
    texts = iter([called(("invert", {"bbox_2d": [28, 56, 35, 63]})) + "<tool_call>?", "<answer>two</answer>"])
    monkeypatch.setattr(rows, "decode", lambda ids: next(texts))
    engine = RolloutEngine(nano.model, rows)
    played = engine(nnx.state(nano.model, nnx.Param), [SCENE], jax.random.key(0), tool=Toolbox(rows, TOOLS))
    (episode,) = played.episodes
    first, last = episode.turns
    assert (episode.answer, last.outcomes) == ("two", ())
    assert first.picture.shape == (112, 112, 3)
    record = turn_record(first, SCENE.image.frame)
    assert record["tools"][0]["text"] == "inverted"
    assert record["tools"][1] == {"tool": "", "error": "the call is no JSON (no JSON object)"}
    json.dumps(record)
    slots = rows.layout.picture(0)
    read = played.replies.ids[0, slots][played.replies.valid[0, slots]]
    assert len(read) == rows.layout.picture_len  # more is said than there is room for
    assert first.note.startswith(rows.tokenizer.decode(read[-40:]))


def test_a_script_runs_the_same_tools_and_says_so(rows):
    texts = [called(("invert", {"bbox_2d": [28, 56, 35, 63]})), "<answer>two</answer>", "never"]
    answer = play_script(texts, SCENE, Toolbox(rows, TOOLS), rows)
    assert answer.answer == "two"
    assert answer.note.startswith("scripted")
    assert len(answer.turns) == 2
    assert answer.turns[0].outcomes[0].text == "inverted"
    assert json.loads(answer.turns[0].note.split("\n")[2]) == {"name": "invert", "text": "inverted"}


def test_asked_from_python_with_tools(monkeypatch):
    monkeypatch.setattr("zoomearth_jax.tools.toolbox.NOTE_LEN", 8)
    policy, offered = load("nano-grpo", layout=LayoutConfig(turn_lens=(3, 3))), []
    look = policy._look
    monkeypatch.setattr(
        policy, "_look", lambda engine, questions: offered.append(engine.rows) or look(engine, questions)
    )
    answer = policy.ask(SCENE, tools=[TOOLS["invert"]], tool_words="{tools}")
    assert len(answer.turns) == 1
    assert "Inverts." in offered[0].episode.system
    assert offered[0].layout.note_len == 8
    assert policy.rows.episode.system == ""
    with pytest.raises(UserError, match="no tool 'x'"):
        policy.ask(SCENE, tools=["x"])


def region_at(x1, y1, x2, y2, frame, box):
    return Region(np.zeros((y2 - y1, x2 - x1, 3), np.uint8), Box(x1, y1, x2, y2, frame), 1.0, box)


def test_results_are_pasted_with_soft_edges():
    original, frame = np.full((60, 80, 3), 100, np.uint8), Frame(80, 60)
    white = ToolResult(np.full((40, 40, 3), 200, np.uint8))
    whole = pasted(original, region_at(20, 10, 60, 50, frame, (10, 10, 30, 30)), white, 4)
    np.testing.assert_array_equal(whole[20:40, 30:50], 200)
    assert whole[30, 25:31, 0].tolist() == [100, 120, 140, 160, 180, 200]
    assert whole[30, 50:55, 0].tolist() == [180, 160, 140, 120, 100]
    np.testing.assert_array_equal(whole[:16], 100)
    corner = pasted(original, region_at(0, 0, 40, 40, frame, (0, 0, 40, 40)), white, 4)
    assert corner[0, 0].tolist() == [200] * 3
    assert corner[20, 35:41, 0].tolist() == [200, 180, 160, 140, 120, 100]
    hard = pasted(original, region_at(0, 0, 40, 40, frame, (0, 0, 40, 40)), white, 0)
    np.testing.assert_array_equal(hard[:40, :40], 200)
    with pytest.raises(UserError, match="nothing to paste: the result has 40 x 40 px, the region 30 x 40"):
        pasted(original, region_at(0, 0, 30, 40, frame, (0, 0, 9, 9)), white, 4)


def test_all_results_of_an_episode_are_pasted_that_can_be(box):
    text = called(
        ("invert", {"bbox_2d": [0, 0, 28, 28]}),
        ("tell", {"bbox_2d": [0, 0, 9, 9]}),
        ("broken", {"bbox_2d": [0, 0, 9, 9]}),
    )
    _, (_, _, outcomes) = shown(box, text)
    pixels, put = pasted_all(SCENE.image, outcomes, 0)
    original = SCENE.image.window(Box(0, 0, 2048, 2048, SCENE.image.frame), SCENE.image.frame)
    np.testing.assert_array_equal(pixels[:512, :512], 255 - original[:512, :512])
    np.testing.assert_array_equal(pixels[512:], original[512:])
    assert [one["tool"] for one in put] == ["invert"]
