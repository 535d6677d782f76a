"""Rewards and the GRPO objective against hand computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoomearth_jax.rl.objective import group_advantages, grpo_loss, k3_kl
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


def test_advantages_by_hand():
    got = group_advantages(np.array([1.0, 2.0, 3.0, 5.0, 5.0, 5.0]), 3)
    np.testing.assert_allclose(got, [-np.sqrt(1.5), 0, np.sqrt(1.5), 0, 0, 0], atol=1e-5)


def test_loss_by_hand():
    old = np.log(np.array([[0.5, 0.5, 0.9], [0.2, 0.4, 0.9]], np.float32))
    new = np.log(np.array([[0.75, 0.4, 0.1], [0.1, 0.9, 0.1]], np.float32))
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    advantages = np.array([1.0, -2.0], np.float32)
    # row 0, A = 1: ratios 1.5 -> clipped to 1.2, 0.8; row 1, A = -2: ratio 0.5 -> clipped to 0.8, min(-1, -1.6) = -1.6
    want = -(((1.2 + 0.8) / 2) + (-1.6)) / 2
    loss, metrics = grpo_loss(new, old, advantages, mask, clip=0.2)
    assert loss == pytest.approx(want, abs=1e-6)
    assert metrics["clip_fraction"] == pytest.approx((1 / 2 + 1) / 2)
    assert metrics["clip_fraction_low"] == pytest.approx(1 / 2)  # row 1
    assert metrics["clip_fraction_high"] == pytest.approx(1 / 2 / 2)  # half of row 0
    assert "kl" not in metrics
    ref = np.log(np.array([[0.5, 0.4, 0.3], [0.1, 0.5, 0.2]], np.float32))
    kl_row0 = (0.5 / 0.75 - np.log(0.5 / 0.75) - 1) / 2
    loss, metrics = grpo_loss(new, old, advantages, mask, clip=0.2, kl_weight=0.5, ref_logp=ref)
    assert metrics["kl"] == pytest.approx(kl_row0 / 2, abs=1e-6)
    assert loss == pytest.approx(want + 0.5 * kl_row0 / 2, abs=1e-6)


def test_on_policy_gradient_is_the_policy_gradient():
    logp = jnp.log(jnp.array([[0.3, 0.6], [0.5, 0.5]]))
    mask, advantages = jnp.ones((2, 2)), jnp.array([1.0, -1.0])
    gradient = jax.grad(lambda x: grpo_loss(x, logp, advantages, mask, clip=0.2)[0])(logp)
    np.testing.assert_allclose(gradient, [[-0.25, -0.25], [0.25, 0.25]], atol=1e-6)


def test_masked_positions_cannot_overflow():
    loss, _ = grpo_loss(np.array([[0.0, 999.0]]), np.array([[0.0, -999.0]]), np.ones(1), np.array([[1, 0]]), clip=0.2)
    assert np.isfinite(loss)


@given(st.floats(-20, 0), st.floats(-20, 0))
def test_kl_is_never_negative(logp, ref_logp):
    assert k3_kl(jnp.float32(logp), jnp.float32(ref_logp)) >= -1e-6


def test_sampled_k3_estimates_the_kl():
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.2, 0.4])
    want = (p * np.log(p / q)).sum()
    assert (p * np.asarray(k3_kl(np.log(p), np.log(q)))).sum() == pytest.approx(want, abs=1e-6)
