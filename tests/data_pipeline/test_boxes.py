"""Frames, windows and view sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoomearth_jax.data_pipeline.boxes import Box, Frame, crop_window, view_size

frames = st.builds(Frame, st.integers(1, 30_000), st.integers(1, 30_000))


@st.composite
def boxes(draw):
    frame = draw(frames)
    unit = st.floats(0, 1)
    x1, x2 = sorted(draw(st.tuples(unit, unit)))
    y1, y2 = sorted(draw(st.tuples(unit, unit)))
    return Box(x1 * frame.width, y1 * frame.height, x2 * frame.width, y2 * frame.height, frame)


@given(boxes(), frames)
def test_conversion_goes_there_and_back(box, frame):
    back = box.to(frame).to(box.frame)
    assert back.corners == pytest.approx(box.corners, rel=1e-9, abs=1e-6)


@given(boxes(), st.integers(1, 1024))
def test_window_holds_the_box_and_stays_inside(box, min_side):
    window = crop_window(box, min_side)
    assert window.x1 <= box.x1 + 1e-6
    assert window.x2 >= box.x2 - 1e-6
    assert window.y1 <= box.y1 + 1e-6
    assert window.y2 >= box.y2 - 1e-6
    assert window.x1 >= 0
    assert window.x2 <= box.frame.width
    assert window.y1 >= 0
    assert window.y2 <= box.frame.height
    assert window.x2 - window.x1 >= min(min_side, box.frame.width)
    assert window.y2 - window.y1 >= min(min_side, box.frame.height)
    assert all(isinstance(c, int) for c in window.corners)


def test_window_grows_around_the_centre_and_moves_at_the_border():
    frame = Frame(5000, 4000)
    assert crop_window(Box(1000, 1000, 1100, 1100, frame), 512).corners == (794, 794, 1306, 1306)
    assert crop_window(Box(0, 3990, 10, 4000, frame), 512).corners == (0, 3488, 512, 4000)
    assert crop_window(Box(0, 0, 3000, 100, frame), 512).corners == (0, 0, 3000, 512)  # long sides are never cut


def test_the_released_window_cuts_long_boxes():
    frame = Frame(5000, 4000)
    assert crop_window(Box(1000, 1000, 1100, 1100, frame), 512, "reference").corners == (794, 794, 1306, 1306)
    assert crop_window(Box(1000, 1000, 4000, 1100, frame), 512, "reference").corners == (2244, 794, 2756, 1306)
    assert crop_window(Box(0, 3990, 10, 4000, frame), 512, "reference").corners == (
        0,
        3739,
        261,
        4000,
    )  # cut, not moved
    assert crop_window(Box(10.5, 20.5, 900.2, 700.9, frame), 512, "reference").corners == (10, 20, 901, 701)


@pytest.mark.parametrize(
    ("size", "view"),
    [
        ((5000, 5000), (504, 504)),  # 324 tokens (paper)
        ((5000, 2500), (504, 252)),
        ((300, 200), (308, 196)),  # not enlarged
        ((30, 30), (56, 56)),  # Qwen's least: 4 tokens
        ((30_000, 40), (504, 28)),  # clamped to the budget
        ((1, 30_000), (28, 504)),
    ],
)
def test_view_sizes(size, view):
    assert view_size(*size, 512, 28) == Frame(*view)


@given(st.integers(1, 30_000), st.integers(1, 30_000), st.sampled_from([112, 512, 1024]))
def test_views_always_fit_the_budget(width, height, view_px):
    view = view_size(width, height, view_px, 28)
    assert view.width % 28 == view.height % 28 == 0
    assert 28 <= view.width <= view_px
    assert 28 <= view.height <= view_px
