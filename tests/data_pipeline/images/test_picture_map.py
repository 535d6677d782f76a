"""Places in pictures and in the original, each mapping by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoomearth_jax.data_pipeline.images.boxes import Box, Frame, wider
from zoomearth_jax.data_pipeline.images.picture_map import AxisMap, crop_map

IMAGE = Frame(3000, 2000)


@pytest.mark.parametrize(
    ("window", "size", "inside", "outside"),
    [
        # a corner of the image, half size
        ((2000, 1000, 3000, 2000), (500, 500), (100, 50, 500, 500), (2200, 1100, 3000, 2000)),
        # not square, and sides rounded to visual tokens: 1000 x 600 px become 504 x 308, by 1000/504 and 600/308
        ((0, 0, 1000, 600), (504, 308), (252, 77, 504, 154), (500, 150, 1000, 300)),
        ((10, 20, 66, 48), (56, 28), (0, 0, 56, 28), (10, 20, 66, 48)),  # px by px
    ],
)
def test_boxes_of_a_crop(window, size, inside, outside):
    shown = crop_map(Box(*window, IMAGE), Frame(*size))
    assert shown.frame == Frame(*size)
    assert shown.area.corners == window
    there = shown.to_original(Box(*inside, shown.frame))
    assert there.corners == pytest.approx(outside)
    assert there.frame == IMAGE
    assert shown.to_picture(there).corners == pytest.approx(inside)


def test_what_a_picture_does_not_show_ends_at_its_border():
    shown = crop_map(Box(100, 100, 200, 200, IMAGE), Frame(50, 50))
    assert shown.to_picture(Box(0, 150, 150, 900, IMAGE)).corners == (0, 25, 25, 50)
    assert shown.shows(100, 200)
    assert not shown.shows(99, 150)


def test_three_pieces():
    axis = AxisMap((0, 10, 30, 40), (0, 100, 120, 200))
    places = {0: 0, 5: 50, 10: 100, 20: 110, 30: 120, 35: 160, 40: 200}
    assert {px: axis.to_original(px) for px in places} == places
    assert {px: axis.to_picture(place) for px, place in places.items()} == {px: px for px in places}


@pytest.mark.parametrize(
    ("window", "factor", "want"),
    [
        ((1000, 800, 1200, 900), 2, (900, 750, 1300, 950)),
        ((0, 0, 100, 100), 3, (0, 0, 300, 300)),  # moved inside
        ((2900, 1900, 3000, 2000), 2, (2800, 1800, 3000, 2000)),
        ((500, 500, 1500, 1500), 2, (0, 0, 2000, 2000)),  # as high as the image, which is wider
        ((0, 0, 10, 10), 1e308, (0, 0, 3000, 2000)),
        ((100, 100, 103, 103), 1.5, (99, 99, 104, 104)),  # 4.5 px become 5
    ],
)
def test_wider_windows(window, factor, want):
    assert wider(Box(*window, IMAGE), factor).corners == want


@given(st.data())
def test_a_wider_window_holds_the_window_and_stays_inside(data):
    x1, y1 = data.draw(st.integers(0, 2999)), data.draw(st.integers(0, 1999))
    window = Box(x1, y1, data.draw(st.integers(x1 + 1, 3000)), data.draw(st.integers(y1 + 1, 2000)), IMAGE)
    wide = wider(window, data.draw(st.floats(1, 100, exclude_min=True)))
    assert 0 <= wide.x1 <= window.x1 < window.x2 <= wide.x2 <= 3000
    assert 0 <= wide.y1 <= window.y1 < window.y2 <= wide.y2 <= 2000
