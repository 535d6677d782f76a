"""Panels show episodes as they are, whatever was written in them."""

import json

import numpy as np
import pytest
from PIL import Image

from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.reports.panel import chosen, printable, write_panel
from zoomearth_jax.reports.pictures import COLORS
from zoomearth_jax.rl.episode import Episode, Turn
from zoomearth_jax.rl.rollout.engine import Trajectories
from zoomearth_jax.tools.tool import Request

VIEW = Frame(112, 112)
EVIL = "<script>alert(1)</script> {{ 7*7 }} \x00\x1b[31m 漢字 \ud800 \u202e ﷽ 🛰️ %s " + "W" * 3000


def trajectories(questions, texts):
    """One episode of each question a text, that names a box and sees a grey crop."""
    box = Box(10, 20, 60, 70, VIEW)
    crop = np.full((56, 112, 3), 60, np.uint8)
    episodes = [
        Episode((Turn(text, Request(True, box, box.to(q.image.frame)), "", crop), Turn(text[::-1])), text[:9], False)
        for q in questions
        for text in texts
    ]
    overviews = [np.full((112, 112, 3), 90, np.uint8) for _ in questions]
    return Trajectories(None, None, None, None, None, episodes, overviews)


def test_a_panel_of_hostile_texts(tmp_path):
    questions = scene_questions("test", 0, 0, 5, global_share=0.0)
    played = trajectories(questions, [EVIL, "short", ""])
    scores = {"total": np.tile([0.0, 1.0, 0.5], 5), "iou": np.zeros(15)}
    path = write_panel(tmp_path / "panels", 50, questions, played, scores)
    assert path == tmp_path / "panels" / "step_000050.png"
    assert sorted(p.name for p in path.parent.iterdir()) == ["step_000050.json", "step_000050.png"]
    panel = json.loads(path.with_suffix(".json").read_text(encoding="ascii"))
    assert panel["step"] == 50
    assert [e["sample"] for e in panel["episodes"]] == [1, 0] * 4  # best and worst of four questions
    assert panel["episodes"][1]["turns"][0]["text"] == EVIL
    assert panel["episodes"][0]["scores"] == {"total": 1.0, "iou": 0.0}
    assert panel["episodes"][0]["reference"] == questions[0].answer
    assert panel["episodes"][0]["reference_box"] == pytest.approx(questions[0].box.corners, abs=0.1)
    with Image.open(path) as picture:
        colors = {color for _, color in picture.convert("RGB").getcolors(2**20)}
    assert set(COLORS.values()) <= colors


def test_texts_are_made_printable():
    assert printable("a\x00b\x1b[31m \u202e漢\ud800\n") == "a b [31m  漢? "


def test_best_and_worst_are_chosen():
    assert chosen(np.array([1.0, 3.0, 2.0, 5.0, 5.0, 5.0]), 3) == [1, 0, 3]
