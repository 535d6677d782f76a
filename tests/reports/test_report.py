"""The report is one self-contained page, and what the model wrote can't become markup."""

import re

import numpy as np

from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.reports.report import curve, episode_card, write_report


def test_report_is_self_contained_and_escapes(tmp_path):
    record = {
        "question": "q", "correct": False, "answer": None, "reference": "r",
        "turns": [{"text": "<script>alert(1)</script><think>"}],
    }  # fmt: skip
    overview = np.full((112, 84, 3), 90, np.uint8)
    frame = Frame(84, 112)
    boxes = [(Box(10, 20, 40, 60, frame), "predicted"), (None, "reference")]
    card = episode_card(record, {"iou": 0.5}, overview, [np.zeros((28, 112, 3), np.uint8)], boxes)
    curves = [curve("loss", [1, 2, 3], [3.0, 1.0, 2.0])]
    path = tmp_path / "report.html"
    write_report(
        path, title="t", summary="s", note="n", columns=("a",), table=[("x", ["1"])], curves=curves, episodes=[card]
    )
    page = path.read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not re.search(r'(src|href)="(?!data:image/png;base64,)', page)
    assert page.count("<img") == 2
    assert page.count("<polyline") == 2


def test_curve_points():
    drawn = curve("loss", [1, 3], [0.0, 10.0])
    assert drawn["points"] == "34.0,96.0 256.0,6.0"
    assert (drawn["low"], drawn["high"], drawn["last_step"]) == ("0", "10", 3)
    # the mean of 0 and 10 with weights 0.9 and 1
    assert drawn["mean_points"] == f"34.0,96.0 256.0,{96 - 90 * 10 / 1.9 / 10:.1f}"
