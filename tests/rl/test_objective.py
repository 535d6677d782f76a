"""The GRPO objective and each of its variants against numbers computed by hand; parts of a batch add up to the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoomearth_jax.configs.objective import ObjectiveConfig
from zoomearth_jax.rl.objective import (
    disagreeing,
    distilled_advantages,
    group_advantages,
    grpo_loss,
    kl_estimate,
    row_weights,
)

# Three rows: two tokens, one token, none. What stands where the mask is 0 must not matter.
MASK = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
OLD = np.log(np.array([[0.5, 0.5, 0.9], [0.2, 0.4, 0.9], [0.7, 0.7, 0.7]], np.float32))
NEW = np.log(np.array([[0.75, 0.4, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.1]], np.float32))
REF = np.log(np.array([[0.5, 0.4, 0.3], [0.1, 0.5, 0.2], [0.3, 0.3, 0.3]], np.float32))
A = np.array([1.0, -2.0, 5.0], np.float32)
# ratios 1.5, 0.8; 0.5. Row 0, A = 1: min(1.5, 1.2), 0.8. Row 1, A = -2: min(-1, 0.8 x -2)
S00, S01, S10 = 1.2, 0.8, -1.6


def loss_of(new=NEW, old=OLD, advantages=A, mask=MASK, kept=None, *, arrays=None, **settings):
    """The loss and metrics of a whole batch; without a KL unless asked for."""
    objective = ObjectiveConfig(**{"kl_weight": 0.0, **settings})
    weights = row_weights(objective, jnp.asarray(mask), kept)
    return grpo_loss(objective, new, old, advantages, mask, weights, **(arrays or {}))


def test_advantages_by_hand():
    rewards = np.array([1.0, 2.0, 3.0, 5.0, 5.0, 5.0])
    for kind, want in (
        ("std", [-np.sqrt(1.5), 0, np.sqrt(1.5)]),
        ("std_trl", [-1 / 1.0001, 0, 1 / 1.0001]),  # the sample's deviation is 1
        ("mean", [-1, 0, 1]),
        ("rloo", [1 - 2.5, 2 - 2, 3 - 1.5]),
    ):
        atol = 1e-7 if kind == "std_trl" else 1e-5
        np.testing.assert_allclose(group_advantages(rewards, 3, kind), [*want, 0, 0, 0], atol=atol)
    assert disagreeing(rewards, 3).tolist() == [True] * 3 + [False] * 3


def test_the_default_by_hand():
    loss, metrics = loss_of()
    assert loss == pytest.approx(-((S00 + S01) / 2 + S10) / 3, abs=1e-6)
    assert metrics["clip_fraction"] == pytest.approx((1 / 2 + 1) / 3)
    assert metrics["clip_fraction_low"] == pytest.approx(1 / 3)  # row 1
    assert metrics["clip_fraction_high"] == pytest.approx(1 / 2 / 3)  # half of row 0
    assert metrics["ratio_max"] == pytest.approx(1.5)
    assert set(metrics) == {"clip_fraction", "clip_fraction_low", "clip_fraction_high", "ratio_max"}


@pytest.mark.parametrize(
    ("settings", "want"),
    [
        ({"aggregation": "token"}, (S00 + S01 + S10) / 3),  # three tokens
        ({"aggregation": "constant"}, (S00 + S01 + S10) / (3 * 3)),  # three rows of three slots
        ({"aggregation": "constant", "max_tokens": 10}, (S00 + S01 + S10) / (3 * 10)),
        ({"clip_high": 0.4}, ((1.4 + S01) / 2 + S10) / 3),
        ({"clip_low": 0.6}, ((S00 + S01) / 2 + 0.5 * -2) / 3),
        ({"dual_clip": 3.0}, ((S00 + S01) / 2 + S10) / 3),  # nothing so far off
    ],
    ids=str,
)
def test_aggregation_and_clipping_by_hand(settings, want):
    assert loss_of(**settings)[0] == pytest.approx(-want, abs=1e-6)


def test_dual_clip_by_hand():
    """A = -2 and a ratio of 8: the term is 3 x -2 instead of -16; where A is positive nothing changes."""
    new, old, mask = np.log([[0.8, 0.8]]), np.log([[0.1, 0.8]]), np.ones((1, 2))
    assert loss_of(new, old, np.array([-2.0]), mask)[0] == pytest.approx((16 + 2) / 2, rel=1e-6)
    loss, metrics = loss_of(new, old, np.array([-2.0]), mask, dual_clip=3.0)
    assert loss == pytest.approx((6 + 2) / 2, rel=1e-6)
    assert metrics["clip_fraction_dual"] == pytest.approx(1 / 2)
    assert loss_of(new, old, np.array([2.0]), mask, dual_clip=3.0)[0] == pytest.approx(-(2.4 + 2) / 2, rel=1e-6)
    gradient = jax.grad(lambda new: loss_of(new, old, np.array([-2.0]), mask, dual_clip=3.0)[0])(jnp.asarray(new))
    np.testing.assert_allclose(gradient, [[0, 1]], atol=1e-6)  # the first token no longer pulls


def test_sequence_ratio_by_hand():
    """GSPO: row 0's ratio is sqrt(1.5 x 0.8), row 1's 0.5."""
    loss, metrics = loss_of(ratio="sequence")
    assert loss == pytest.approx(-(np.sqrt(1.2) + S10) / 3, abs=1e-6)
    assert metrics["ratio_max"] == pytest.approx(np.sqrt(1.2))
    assert metrics["clip_fraction"] == pytest.approx(1 / 3)  # row 1
    loss, _ = loss_of(ratio="sequence", clip_low=3e-4, clip_high=4e-4)
    assert loss == pytest.approx(-(1.0004 - 2 * (1 - 3e-4)) / 3, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "token"), [("k1", lambda x: -x), ("k2", lambda x: x * x / 2), ("k3", lambda x: np.exp(x) - x - 1)]
)
def test_kl_in_the_loss_by_hand(kind, token):
    """Tokens 0.75 : 0.5, 0.4 : 0.4; 0.1 : 0.1."""
    kl = token(np.log(0.5 / 0.75)) / 2 / 3
    loss, metrics = loss_of(kl_weight=0.5, kl=kind, arrays={"ref_logp": REF})
    assert metrics["kl"] == pytest.approx(kl, abs=1e-6)
    assert loss == pytest.approx(float(loss_of()[0]) + 0.5 * kl, abs=1e-6)
    without, _ = loss_of(aggregation="constant")
    loss, metrics = loss_of(kl_weight=0.5, kl=kind, aggregation="constant", arrays={"ref_logp": REF})
    assert metrics["kl"] == pytest.approx(kl, abs=1e-6)  # still a token, mean by episode
    assert loss == pytest.approx(float(without) + 0.5 * token(np.log(0.5 / 0.75)) / 9, abs=1e-6)


def test_kl_in_the_reward_is_not_in_the_loss():
    loss, metrics = loss_of(kl_weight=0.5, kl_in="reward")
    assert loss == loss_of()[0]
    assert "kl" not in metrics


def test_truncated_importance_weights_by_hand():
    """Old policy over sampler: 4 -> 2, 0.5; 1. They multiply the terms and pass no gradient."""
    sampler = OLD - np.log(np.array([[4, 0.5, 9], [1, 9, 9], [9, 9, 9]], np.float32))
    loss, metrics = loss_of(importance_cap=2.0, arrays={"sampler_logp": sampler})
    assert loss == pytest.approx(-((2 * S00 + 0.5 * S01) / 2 + S10) / 3, abs=1e-6)
    assert metrics["importance_weight"] == pytest.approx(((2 + 0.5) / 2 + 1) / 3)
    assert metrics["importance_truncated"] == pytest.approx(1 / 2 / 3)

    def on_policy(new):  # where the current policy is the old one
        old = jax.lax.stop_gradient(new)
        return loss_of(new, old, importance_cap=2.0, arrays={"sampler_logp": sampler})[0]

    want = -np.array([[2 * 1 / 2, 0.5 * 1 / 2, 0], [-2, 0, 0], [0, 0, 0]]) / 3
    np.testing.assert_allclose(jax.grad(on_policy)(jnp.asarray(OLD)), want, atol=1e-6)


def sampled_by(row0, row1):
    """Log-probabilities of a sampler that the old policy has these ratios to."""
    return OLD - np.log(np.array([[*row0, 9], [row1, 9, 9], [9, 9, 9]], np.float32))


@pytest.mark.parametrize(
    ("mode", "cap", "weights"),
    [
        ("token_mask", 2.0, (0, 0.5, 1)),
        ("sequence_truncate", 3.0, (2, 2, 1)),  # row 0's product is 4 x 0.5
        ("sequence_truncate", 1.5, (1.5, 1.5, 1)),
        ("sequence_mask", 3.0, (2, 2, 1)),
        ("sequence_mask", 1.5, (0, 0, 1)),
    ],
)
def test_modes_of_importance_weights_by_hand(mode, cap, weights):
    """A masked row stays among those that the loss is divided by."""
    a, b, c = weights
    arrays = {"sampler_logp": sampled_by((4, 0.5), 1)}
    loss, metrics = loss_of(importance_cap=cap, importance_mode=mode, arrays=arrays)
    assert loss == pytest.approx(-((a * S00 + b * S01) / 2 + c * S10) / 3, abs=1e-6)
    assert metrics["importance_weight"] == pytest.approx(((a + b) / 2 + c) / 3)
    over = {("token_mask", 2.0): 1 / 2 / 3}.get((mode, cap), 1 / 3 if cap == 1.5 else 0)
    assert metrics["importance_truncated"] == pytest.approx(over)


def test_a_masked_ratio_too_large_for_a_float_is_no_nan():
    arrays = {"sampler_logp": OLD - 100.0}
    loss, gradient = jax.value_and_grad(
        lambda new: loss_of(new, importance_cap=3.0, importance_mode="sequence_mask", arrays=arrays)[0]
    )(jnp.asarray(NEW))
    assert loss == 0
    assert not gradient.any()


def test_cispo_by_hand():
    """Ratios 1.5, 0.8; 0.5, cut at 1.2, weigh the log-probabilities; what is cut keeps its gradient."""
    settings = {"loss": "cispo", "cispo_max": 1.2}
    loss, metrics = loss_of(**settings)
    want = ((1.2 * np.log(0.75) + 0.8 * np.log(0.4)) / 2 + 0.5 * -2 * np.log(0.1)) / 3
    assert loss == pytest.approx(-want, abs=1e-6)
    assert metrics["clip_fraction"] == pytest.approx(1 / 2 / 3)
    assert set(metrics) == {"clip_fraction", "ratio_max"}
    gradient = jax.grad(lambda new: loss_of(new, **settings)[0])(jnp.asarray(NEW))
    np.testing.assert_allclose(gradient, -np.array([[1.2 / 2, 0.8 / 2, 0], [0.5 * -2, 0, 0], [0, 0, 0]]) / 3, atol=1e-6)


def test_sapo_by_hand():
    """4 / tau sigmoid(tau (rho - 1)), tau 1 where A is positive and 1.05 where it is negative; slopes sigmoid' x 4 x rho."""

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    loss, metrics = loss_of(loss="sapo")
    gates = 4 * sigmoid(0.5), 4 * sigmoid(-0.2), 4 / 1.05 * sigmoid(1.05 * -0.5)
    assert loss == pytest.approx(-((gates[0] + gates[1]) / 2 - 2 * gates[2]) / 3, abs=1e-6)
    assert set(metrics) == {"ratio_max"}
    slopes = [4 * s * (1 - s) * rho for s, rho in ((sigmoid(0.5), 1.5), (sigmoid(-0.2), 0.8), (sigmoid(-0.525), 0.5))]
    gradient = jax.grad(lambda new: loss_of(new, loss="sapo")[0])(jnp.asarray(NEW))
    want = -np.array([[slopes[0] / 2, slopes[1] / 2, 0], [-2 * slopes[2], 0, 0], [0, 0, 0]]) / 3
    np.testing.assert_allclose(gradient, want, atol=1e-6)


@pytest.mark.parametrize("loss", ["clip", "cispo", "sapo"])
def test_on_policy_all_forms_have_the_policy_gradient(loss):
    gradient = jax.grad(lambda new: loss_of(new, OLD, loss=loss)[0])(jnp.asarray(OLD))
    np.testing.assert_allclose(gradient, -np.array([[1 / 2, 1 / 2, 0], [-2, 0, 0], [0, 0, 0]]) / 3, atol=1e-6)


def test_advantages_of_tokens_by_hand():
    """Row 0's tokens have 1 and -1: min(1.5, 1.2), and min(-0.8, -0.8). The same number for all of a row is that of the row."""
    tokens = np.array([[1.0, -1.0, 7.0], [-2.0, 7.0, 7.0], [7.0, 7.0, 7.0]], np.float32)
    assert loss_of(advantages=tokens)[0] == pytest.approx(-((1.2 - 0.8) / 2 + S10) / 3, abs=1e-6)
    assert loss_of(advantages=np.repeat(A[:, None], 3, axis=1))[0] == loss_of()[0]


def test_self_distillation_by_hand():
    """The second token of two rows: 0.6 by the teacher and 0.2 by the policy; 0.01 and 0.9, which is clipped."""
    objective = ObjectiveConfig(kl_weight=0.0, distill_weight=0.5, distill_clip=1.5)
    old = np.log(np.array([[0.5, 0.2], [0.5, 0.9]], np.float32))
    teacher = np.log(np.array([[0.9, 0.6], [0.9, 0.01]], np.float32))
    distilled = np.array([[False, True], [False, True]])
    advantages, gap = distilled_advantages(objective, np.array([1.0, -1.0], np.float32), teacher, old, distilled)
    np.testing.assert_allclose(gap, [[0, np.log(3)], [0, -1.5]], atol=1e-6)
    np.testing.assert_allclose(advantages, [[1, 1 + 0.5 * np.log(3)], [-1, -1.75]], atol=1e-6)
    mask = np.ones((2, 2))
    gradient = jax.grad(lambda new: loss_of(new, old, advantages, mask)[0])(jnp.asarray(old))
    np.testing.assert_allclose(gradient, -np.asarray(advantages) / 4, atol=1e-6)  # ratios of 1, two rows of two tokens


def test_entropy_bonus_by_hand():
    entropy = np.array([[0.3, 0.5, 9], [0.2, 9, 9], [9, 9, 9]], np.float32)
    loss, _ = loss_of(entropy_weight=0.1, arrays={"entropy": entropy})
    assert loss == pytest.approx(float(loss_of()[0]) - 0.1 * (0.4 + 0.2) / 3, abs=1e-6)


def test_dropped_rows_count_nowhere():
    kept = np.array([True, False, False])
    ref = {"ref_logp": REF}
    for settings in ({}, {"aggregation": "token"}, {"aggregation": "constant"}):
        loss, _ = loss_of(kept=kept, kl_weight=0.5, arrays=ref, **settings)
        want, _ = loss_of(NEW[:1], OLD[:1], A[:1], MASK[:1], kl_weight=0.5, arrays={"ref_logp": REF[:1]}, **settings)
        assert loss == pytest.approx(float(want), abs=1e-6)
    assert loss_of(kept=np.zeros(3, bool))[0] == 0


@pytest.mark.parametrize("aggregation", ["sequence", "token", "constant"])
def test_parts_add_up_to_the_whole_batch(aggregation):
    """With rows of different lengths and one without a token, in parts of one and two rows."""
    settings = {"aggregation": aggregation, "ratio": "sequence", "kl_weight": 0.1, "entropy_weight": 0.1}
    objective = ObjectiveConfig(**settings)
    kept = np.array([True, True, False])
    weights = row_weights(objective, jnp.asarray(MASK), kept)

    def part(rows):
        arrays = {"ref_logp": REF[rows], "entropy": np.abs(NEW[rows])}
        return grpo_loss(objective, NEW[rows], OLD[rows], A[rows], MASK[rows], weights[rows], **arrays)[0]

    assert part(slice(0, 1)) + part(slice(1, 3)) == pytest.approx(float(part(slice(0, 3))), abs=1e-6)


def test_on_policy_gradient_is_the_policy_gradient():
    logp = jnp.log(jnp.array([[0.3, 0.6], [0.5, 0.5]]))
    gradient = jax.grad(lambda x: loss_of(x, logp, jnp.array([1.0, -1.0]), jnp.ones((2, 2)))[0])(logp)
    np.testing.assert_allclose(gradient, [[-0.25, -0.25], [0.25, 0.25]], atol=1e-6)


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_masked_positions_cannot_overflow(ratio):
    old, mask = np.array([[0.0, -999.0]]), np.array([[1, 0]])

    def loss(new):
        arrays = {"sampler_logp": -old, "ref_logp": -old}
        return loss_of(
            new, old, np.ones(1), mask, ratio=ratio, importance_cap=2.0, kl_weight=0.1, dual_clip=3.0, arrays=arrays
        )[0]

    value, gradient = jax.value_and_grad(loss)(jnp.array([[0.0, 999.0]]))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@given(st.floats(-20, 0), st.floats(-20, 0))
def test_k2_and_k3_are_never_negative(logp, ref_logp):
    assert kl_estimate("k2", jnp.float32(logp), jnp.float32(ref_logp)) >= 0
    assert kl_estimate("k3", jnp.float32(logp), jnp.float32(ref_logp)) >= -1e-6


def test_k1_and_k3_estimate_the_kl_without_bias():
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.2, 0.4])
    want = (p * np.log(p / q)).sum()
    for kind in ("k1", "k3"):
        assert (p * np.asarray(kl_estimate(kind, np.log(p), np.log(q)))).sum() == pytest.approx(want, abs=1e-6)
