"""Edits: what changes is inside of the box, and what is made up is marked."""

import colorsys

import numpy as np
import pytest

pytest.importorskip("cv2", reason="needs the extra `tools`")

from tests.tools.pictures import ground
from zoomearth_jax.configs.tools import ToolsConfig
from zoomearth_jax.data_pipeline.images.boxes import Frame
from zoomearth_jax.errors import UserError
from zoomearth_jax.tools.editing import edit_tool
from zoomearth_jax.tools.image_tool import Context, ToolFailure, checked

REGION = ground(96)
INSIDE = np.zeros((96, 96), bool)
INSIDE[20:50, 10:60] = True


def edit(box=(10, 20, 60, 50), mask=None, **parameters):
    result = edit_tool(ToolsConfig()).call(REGION.copy(), Context(box, Frame(96, 96), "", parameters, 1.0, mask))
    return checked("edit", result, REGION)


@pytest.mark.parametrize(
    "parameters",
    [
        {"operation": "recolour", "colour": "red"},
        {"operation": "sharpen"},
        {"operation": "blur"},
        {"operation": "erase"},
    ],
)
def test_only_the_inside_changes(parameters):
    result = edit(**parameters)
    np.testing.assert_array_equal(result.image[~INSIDE], REGION[~INSIDE])
    assert (result.image[INSIDE] != REGION[INSIDE]).any()
    assert (result.made_up is not None) == (parameters["operation"] == "erase")
    if result.made_up is not None:
        np.testing.assert_array_equal(result.made_up, INSIDE)


@pytest.mark.parametrize(("colour", "hue"), [("red", 0), ("green", 120), ("#0000ff", 240), ("#ffff00", 60)])
def test_the_new_colour_is_the_one_that_was_named(colour, hue):
    mean = edit(operation="recolour", colour=colour).image[INSIDE].mean(0) / 255
    assert abs((colorsys.rgb_to_hsv(*mean)[0] * 360 - hue + 180) % 360 - 180) < 4


def test_sharpening_strengthens_detail_and_blurring_weakens_it():
    def detail(picture):
        return np.abs(np.diff(picture[22:48, 12:58].astype(int), axis=0)).mean()

    assert detail(edit(operation="sharpen", amount=2).image) > 1.2 * detail(REGION)
    assert detail(edit(operation="blur", amount=4).image) < 0.7 * detail(REGION)


def test_a_mask_of_the_user_s_comes_before_the_box():
    mask = np.zeros((96, 96), bool)
    mask[:5, :5] = True
    changed = (edit(mask=mask, operation="recolour", colour="blue").image != REGION).any(-1)
    assert changed.any()
    assert not changed[~mask].any()


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({}, "name an operation"),
        ({"operation": "recolour"}, "recolour needs a colour"),
        ({"operation": "recolour", "colour": "beautiful"}, "or #rrggbb"),
        ({"operation": "erase", "box": (0, 0, 96, 96)}, "name a smaller box"),
        ({"operation": "blur", "box": (10, 10, 10.2, 60)}, "holds no px"),
    ],
)
def test_what_can_t_be_done_is_said(parameters, said):
    with pytest.raises(ToolFailure, match=said):
        edit(**parameters)


def test_edits_in_words_are_offered_only_with_an_address():
    assert "instruction" not in edit_tool(ToolsConfig()).parameters
    told = edit_tool(ToolsConfig(editor="http://127.0.0.1:9/edit"))
    assert "instruction" in told.parameters["operation"]["enum"]
    with pytest.raises(ToolFailure, match="needs an instruction"):
        told.call(REGION, Context((0, 0, 9, 9), Frame(96, 96), "", {"operation": "instruction"}))
    with pytest.raises(UserError, match="http"):
        ToolsConfig(editor="ftp://a/b")
