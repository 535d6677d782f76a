"""Box rewards against hand computation."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoomearth_jax.rl.rewards import box_iou, box_rewards, region_reward

numbers = st.floats(-100, 5000, width=32)
box_lists = st.lists(st.tuples(numbers, numbers, numbers, numbers), min_size=1, max_size=8)


def iou_by_hand(a, b):
    area = [max(x2 - x1, 0) * max(y2 - y1, 0) for x1, y1, x2, y2 in (a, b)]
    overlap = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return overlap / (area[0] + area[1] - overlap) if min(area) > 0 else 0.0


@given(box_lists)
def test_iou_equals_a_float64_loop(boxes):
    a, b = np.array(boxes, np.float32), np.array(boxes[::-1], np.float32)
    want = [iou_by_hand(*map(np.float64, pair)) for pair in zip(a, b, strict=True)]
    np.testing.assert_allclose(box_iou(a, b), want, atol=2e-5)


def test_iou_of_known_boxes():
    a = jnp.array([[0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 2, 2], [2, 2, 0, 0], [1, 1, 1, 5]], jnp.float32)
    b = jnp.array([[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 6, 6], [0, 0, 2, 2], [0, 0, 4, 4]], jnp.float32)
    np.testing.assert_allclose(box_iou(a, b), [1, 1 / 7, 0, 0, 0], atol=1e-7)


def test_region_reward_by_hand():
    a, b = jnp.array([[0.0, 0, 10, 10]]), jnp.array([[30.0, 40, 40, 50]])  # centres 50 px apart
    assert region_reward(a, b, 200.0, 0.2, 1.0)[0] == pytest.approx(1 / (1 + np.exp(-200 / 50.2)), abs=1e-6)
    assert region_reward(a, b, 0.5, 0.2, 100.0)[0] == pytest.approx(1 / (1 + np.exp(-0.5 / 0.7)), abs=1e-6)


def test_without_a_box_both_rewards_are_zero():
    boxes = jnp.ones((2, 4)) * jnp.array([0.0, 0, 5, 5])
    iou, region = box_rewards(boxes, boxes, np.array([True, False]), np.ones(2), alpha=200.0, eps=0.2)
    np.testing.assert_allclose(iou, [1, 0])
    np.testing.assert_allclose(region, [1, 0], atol=1e-6)
