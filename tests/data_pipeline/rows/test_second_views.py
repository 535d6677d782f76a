"""Second views: what a picture around or beside the box shows, each px of it, and boxes that are named inside."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoomearth_jax.configs.episode import EpisodeConfig, LayoutConfig
from zoomearth_jax.configs.rollout import RolloutConfig
from zoomearth_jax.configs.training import GRPOConfig
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.images.picture_map import fovea_map
from zoomearth_jax.data_pipeline.images.sources import ArrayImage, Part, mapped_view, view_of, whole
from zoomearth_jax.data_pipeline.rows.looks import Looks
from zoomearth_jax.errors import UserError

IMAGE = Frame(800, 400)
CROP = EpisodeConfig(view_px=200, min_window_px=80, turn_lens=(90, 90, 40))


def looks(view):
    return Looks(dataclasses.replace(CROP, view=view), 20)


class Coordinates:
    """An image whose pixels say where they are: exact at any scale, since it is the mean of the places that a px covers."""

    def __init__(self, frame):
        self.frame, self.read = frame, []

    def window(self, box, size, exact=False):
        self.read.append((box.corners, size))
        x = box.x1 + (np.arange(size.width) + 0.5) * (box.x2 - box.x1) / size.width
        y = box.y1 + (np.arange(size.height) + 0.5) * (box.y2 - box.y1) / size.height
        x, y = x * 255 / self.frame.width, y * 255 / self.frame.height
        return np.stack(np.broadcast_arrays(x[None], y[:, None], 0.0), -1).round().astype(np.uint8)


def test_a_fovea_by_hand():
    """An image of 800 x 400 px in 200 x 100: the window's 100 x 100 px get 100 x 50 of them."""
    shown = fovea_map(Box(200, 300, 300, 400, IMAGE), Frame(200, 100))
    # 100 px are left for 200 px before and 500 px after: 29 and 71; below there is nothing
    assert (shown.x.picture, shown.x.original) == ((0, 29, 129, 200), (0, 200, 300, 800))
    assert (shown.y.picture, shown.y.original) == ((0, 50, 100), (0, 300, 400))
    assert shown.area == Box(0, 0, 800, 400, IMAGE)
    inside = shown.to_original(Box(79, 75, 129, 100, shown.frame))
    assert inside.corners == (250, 350, 300, 400)
    assert shown.to_picture(inside).corners == (79, 75, 129, 100)


@pytest.mark.parametrize(
    ("low", "high", "picture"),
    [
        (0, 800, (0, 200)),  # the whole side
        (0, 100, (0, 100, 200)),  # at a border
        (700, 800, (0, 100, 200)),
        (100, 700, (0, 25, 175, 200)),  # larger than half of the side: as on the overview
        (1, 799, (0, 1, 199, 200)),  # what is there gets a px at least
        (1, 101, (0, 1, 101, 200)),
    ],
)
def test_pieces_of_an_axis(low, high, picture):
    assert fovea_map(Box(low, 0, high, 400, IMAGE), Frame(200, 100)).x.picture == picture


@settings(max_examples=40)
@given(st.data())
def test_every_px_shows_the_place_that_the_map_says(data):
    frame = Frame(data.draw(st.integers(1, 900)), data.draw(st.integers(1, 900)))
    x1, y1 = data.draw(st.integers(0, frame.width - 1)), data.draw(st.integers(0, frame.height - 1))
    x2, y2 = data.draw(st.integers(x1 + 1, frame.width)), data.draw(st.integers(y1 + 1, frame.height))
    window, size = Box(x1, y1, x2, y2, frame), Frame(*(20 * data.draw(st.integers(1, 12)) for _ in range(2)))
    shown, image = fovea_map(window, size), Coordinates(frame)
    picture = mapped_view(image, shown)
    assert picture.shape == (size.height, size.width, 3)
    assert sum(read.width * read.height for _, read in image.read) == size.width * size.height
    assert len(image.read) <= 9
    xs = [shown.x.to_original(px + 0.5) * 255 / frame.width for px in range(size.width)]
    ys = [shown.y.to_original(px + 0.5) * 255 / frame.height for px in range(size.height)]
    assert np.abs(picture[..., 0] - np.array(xs)[None]).max() <= 0.51
    assert np.abs(picture[..., 1] - np.array(ys)[:, None]).max() <= 0.51
    for axis, side in ((shown.x, size.width), (shown.y, size.height)):
        assert all(low < high for low, high in zip(axis.picture[:-1], axis.picture[1:], strict=True))
        assert (axis.picture[0], axis.picture[-1]) == (0, side)
    box = shown.to_picture(window)
    assert (box.x2 - box.x1) * frame.width >= (x2 - x1) * size.width - 2 * frame.width  # never shrunk, but for whole px
    assert shown.to_original(box).corners == pytest.approx(window.corners)


@pytest.fixture(scope="module")
def photo():
    pixels = np.random.default_rng(0).integers(0, 256, (400, 800, 3), np.uint8)
    return ArrayImage(pixels), pixels


def test_the_whole_image_is_the_plain_view(photo):
    image, _ = photo
    plain = view_of(image, whole(image), 200, 20)
    for view in ("crop", "foveated", "context"):
        shown = looks(view).picture_map(whole(image))
        np.testing.assert_array_equal(mapped_view(image, shown), plain)


def test_a_crop_is_the_view_of_its_window(photo):
    image, window = photo[0], Box(100, 50, 350, 180, IMAGE)
    shown = looks("crop").picture_map(window)
    np.testing.assert_array_equal(mapped_view(image, shown), view_of(image, window, 200, 20))


def test_context_shows_the_window_at_twice_its_size(photo):
    image, window = photo[0], Box(300, 100, 400, 160, IMAGE)
    shown = looks("context").picture_map(window)
    assert shown.area.corners == (250, 70, 450, 190)
    assert shown.window == window  # what rewards score, and what a wider view grows from
    np.testing.assert_array_equal(mapped_view(image, shown), view_of(image, shown.area, 200, 20))
    corner = looks("context").picture_map(Box(700, 320, 800, 400, IMAGE))
    assert corner.area.corners == (600, 240, 800, 400)  # moved inside


def test_boxes_inside_second_views_are_those_of_the_original():
    text = '[{"bbox_2d": [79, 75, 129, 100], "label": "a", "source": "picture"}]'
    own = looks("foveated")
    place = own.place(text, IMAGE, [own.picture_map(Box(200, 300, 300, 400, IMAGE))])
    assert place.box.corners == (62.5, 87.5, 75, 100)  # of an overview of 200 x 100 px
    assert place.window.corners == (235, 320, 315, 400)  # 50 px grow to 80, and move inside
    wide = own.place('[{"context": 2}]', IMAGE, [own.picture_map(Box(200, 300, 300, 400, IMAGE))])
    assert wide.window.corners == (150, 200, 350, 400)


def test_a_part_of_an_image_shows_what_an_image_of_its_own_would(photo):
    image, pixels = photo
    shown = fovea_map(Box(200, 100, 300, 240, IMAGE), Frame(200, 100))
    want = mapped_view(image, shown)
    around = ArrayImage(np.pad(pixels, ((7, 9), (5, 3), (0, 0)), mode="edge"))
    part = Part(around, Box(5, 7, 805, 407, around.frame))
    inner = shown.x.picture[1] + 4, shown.x.picture[2] - 4  # beyond a part's border its neighbours count
    np.testing.assert_array_equal(mapped_view(part, shown)[40:60, slice(*inner)], want[40:60, slice(*inner)])


def test_settings():
    with pytest.raises(UserError, match="view must be crop or foveated or context, not 'round'"):
        EpisodeConfig(view="round")
    with pytest.raises(UserError, match=r"rollout.view is context, layout.view foveated; give one of the two"):
        GRPOConfig(rollout=RolloutConfig(view="context"), layout=LayoutConfig(view="foveated"))
    GRPOConfig(rollout=RolloutConfig(view="context"), layout=LayoutConfig(view="context"))
    assert LayoutConfig(view="foveated").of(CROP, 20).view == "foveated"
    assert RolloutConfig(view="context").of(CROP).view == "context"
    assert RolloutConfig().of(dataclasses.replace(CROP, view="foveated")).view == "foveated"
