"""Frames, windows and view sizes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoomearth_jax.data_pipeline.images.boxes import Box, Frame, crop_window, view_size

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


def test_the_released_window_moves_inside_the_image():
    small = Frame(1000, 1000)
    assert crop_window(Box(100, 100, 200, 200, small), 512, "reference").corners == (0, 0, 512, 512)
    assert crop_window(Box(900, 950, 1000, 1000, small), 512, "reference").corners == (488, 488, 1000, 1000)
    assert crop_window(Box(0, 0, 9, 9, Frame(300, 2000)), 512, "reference").corners == (0, 0, 300, 512)


def test_the_released_window_of_a_large_box_loses_fractions():
    frame = Frame(5000, 4000)
    assert crop_window(Box(10.5, 20.5, 900.9, 700.9, frame), 512, "reference").corners == (10, 20, 900, 700)
    # 511 px once the fractions are gone: the square
    assert crop_window(Box(10.9, 1000, 521.1, 2000, frame), 512, "reference").corners == (9, 1244, 521, 1756)


def released_window(corners, width, height):
    """The rule in other words: the first pixel of 512 that are centred, then pushed back from either border."""
    first, last = [int(c) for c in corners[:2]], [int(c) for c in corners[2:]]
    if all(b - a >= 512 for a, b in zip(first, last, strict=True)):
        return *first, *last
    spans = []
    for a, b, limit in zip(first, last, (width, height), strict=True):
        room = range(max(limit - 512, 0) + 1)
        start = min(max((a + b) // 2 - 256, room[0]), room[-1])
        spans.append((start, min(start + 512, limit)))
    return spans[0][0], spans[1][0], spans[0][1], spans[1][1]


def test_released_windows_of_20000_random_boxes():
    """Points, slivers, boxes at the borders and of the whole image, whole and fractional, in images of 1 to 30,000 px."""
    rng = np.random.default_rng(0)
    different = 0
    for number in range(20_000):
        width, height = (int(10 ** rng.uniform(0, 4.5)) for _ in range(2))
        kind = rng.integers(5, size=2)
        low, high = np.sort(rng.uniform(0, 1, (2, 2)), axis=0) * (width, height)
        high = np.where(kind == 0, np.minimum(low + rng.uniform(0, 1500, 2), (width, height)), high)
        low, high = np.where(kind == 1, 0, low), np.where(kind == 2, (width, height), high)
        corners = [*low.tolist(), *high.tolist()]
        if number % 2:
            corners = [float(round(c)) for c in corners]
        window = crop_window(Box(*corners, Frame(width, height)), 512, "reference").corners
        different += window != released_window(corners, width, height)
        assert 0 <= window[0] < window[2] <= width
        assert 0 <= window[1] < window[3] <= height
    assert different == 0


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


@given(
    st.integers(1, 30_000),
    st.integers(1, 30_000),
    st.sampled_from([(112, 112), (512, 504), (1024, 1036), (3333, 3332)]),
)
def test_views_always_fit_the_budget(width, height, sides):
    view_px, most = sides
    view = view_size(width, height, view_px, 28)
    assert view.width % 28 == view.height % 28 == 0
    assert 28 <= view.width <= most
    assert 28 <= view.height <= most


def test_a_view_of_1024_px_has_the_paper_s_tokens():
    assert (view_size(5000, 5000, 1024, 28).width // 28) ** 2 == 1369
    assert (view_size(5000, 5000, 3333, 28).width // 28) ** 2 == 14_161
