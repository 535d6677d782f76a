"""Value and gradient of each variant against its paper's sum, written in torch token by token in float64."""

import itertools

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="make parity installs torch")

from zoomearth_jax.configs.objective import ObjectiveConfig  # noqa: E402
from zoomearth_jax.rl.objective import group_advantages, grpo_loss, row_weights  # noqa: E402

GROUP, ROWS, SLOTS = 3, 12, 9


@pytest.fixture(scope="module")
def data():
    """Four groups; one row without a token, one that fills its slots, tokens that are not contiguous."""
    rng = np.random.default_rng(0)
    mask = (np.arange(SLOTS) < rng.integers(2, SLOTS, (ROWS, 1))) & (rng.random((ROWS, SLOTS)) < 0.8)
    mask[4], mask[7] = False, True
    old = np.log(rng.uniform(0.05, 0.95, (ROWS, SLOTS)))
    rewards = rng.choice([0.0, 0.4, 1.0, 2.0], ROWS)
    rewards[3:6] = 1.0
    return {
        "mask": mask,
        "old": old,
        "new": old + rng.normal(size=old.shape) * 0.5,
        "sampler": old + rng.normal(size=old.shape) * 0.3,
        "ref": old + rng.normal(size=old.shape) * 0.4,
        "entropy_of": rng.uniform(0.1, 2.0, old.shape),
        "rewards": rewards,
    }


def torch_advantages(kind, rewards):
    groups = torch.tensor(rewards).split(GROUP)
    if kind == "std":
        groups = [(g - g.mean()) / (torch.std(g, unbiased=False) + 1e-6) for g in groups]
    elif kind == "mean":
        groups = [g - g.mean() for g in groups]
    else:
        groups = [torch.stack([r - torch.cat([g[:i], g[i + 1 :]]).mean() for i, r in enumerate(g)]) for g in groups]
    return torch.cat(groups)


def torch_loss(c: ObjectiveConfig, data, new):
    """-J, a row after the other. The entropy is any differentiable function of the log-probabilities: here H = c x p."""
    advantages = torch_advantages(c.advantage, data["rewards"])
    old, ref, scale = (torch.tensor(data[name]) for name in ("old", "ref", "entropy_of"))
    flat = [len(set(data["rewards"][i - i % GROUP : i - i % GROUP + GROUP])) == 1 for i in range(ROWS)]
    rows, tokens = [], 0
    for i in range(ROWS):
        if c.flat_groups == "drop" and flat[i]:
            continue
        places = [t for t in range(SLOTS) if data["mask"][i, t]]
        tokens += len(places)
        terms = []
        for t in places:
            if c.ratio == "sequence":
                ratio = torch.exp(sum(new[i, s] - old[i, s] for s in places) / len(places))
            else:
                ratio = torch.exp(new[i, t]) / torch.exp(old[i, t])
            a = advantages[i]
            if c.loss == "cispo":
                term = torch.clamp(ratio.detach(), max=c.cispo_max) * a * new[i, t]
            elif c.loss == "sapo":
                tau = c.sapo_temperature_pos if a > 0 else c.sapo_temperature_neg
                term = a * 4 / tau / (1 + torch.exp(-tau * (ratio - 1)))
            else:
                term = torch.min(ratio * a, torch.clamp(ratio, 1 - c.clip_low, 1 + c.clip_high) * a)
            if c.dual_clip and a < 0:
                term = torch.max(term, c.dual_clip * a)
            if c.importance_cap:
                scope, over = c.importance_mode.split("_")
                over_places = places if scope == "sequence" else [t]
                weight = float(np.prod([np.exp(data["old"][i, s] - data["sampler"][i, s]) for s in over_places]))
                term = term * (weight if weight <= c.importance_cap else 0 if over == "mask" else c.importance_cap)
            if c.kl_weight and c.kl_in == "loss":
                p, q = torch.exp(new[i, t]), torch.exp(ref[i, t])
                kl = {"k1": torch.log(p / q), "k2": torch.log(p / q) ** 2 / 2, "k3": q / p - 1 - torch.log(q / p)}
                term = term - c.kl_weight * kl[c.kl]
            terms.append(term + c.entropy_weight * scale[i, t] * torch.exp(new[i, t]))
        rows.append(torch.stack(terms) if terms else torch.zeros(1, dtype=torch.float64))
    if c.aggregation == "sequence":
        return -sum(row.mean() for row in rows) / len(rows)
    divisor = tokens if c.aggregation == "token" else len(rows) * (c.max_tokens or SLOTS)
    return -sum(row.sum() for row in rows) / divisor


def both(config, data):
    new = torch.tensor(data["new"], requires_grad=True)
    want = torch_loss(config, data, new)
    want.backward()
    advantages = group_advantages(data["rewards"], GROUP, config.advantage)
    flat = np.repeat(data["rewards"].reshape(-1, GROUP).std(axis=1) == 0, GROUP)
    kept = ~flat if config.flat_groups == "drop" else None
    old, sampler, ref, scale = (data[name].astype(np.float32) for name in ("old", "sampler", "ref", "entropy_of"))

    @jax.jit
    def loss(logp):
        weights = row_weights(config, data["mask"], kept)
        arrays = {"sampler_logp": sampler, "ref_logp": ref, "entropy": scale * jax.numpy.exp(logp)}
        return grpo_loss(config, logp, old, advantages, data["mask"], weights, **arrays)[0]

    got, gradient = jax.value_and_grad(loss)(data["new"].astype(np.float32))
    return float(want.detach()), new.grad.numpy(), float(got), np.asarray(gradient)


VARIANTS = [
    *({"advantage": x} for x in ("std", "mean", "rloo")),
    *({"aggregation": x, "ratio": y, "flat_groups": z}
      for x, y, z in itertools.product(("sequence", "token", "constant"), ("token", "sequence"), ("keep", "drop"))),
    {"aggregation": "constant", "max_tokens": 20},
    {"clip_low": 0.1, "clip_high": 0.28},
    {"dual_clip": 1.2},
    {"ratio": "sequence", "clip_low": 3e-2, "clip_high": 4e-2},
    *({"kl": x, "aggregation": y} for x, y in itertools.product(("k1", "k2", "k3"), ("sequence", "token"))),
    {"kl_in": "reward"},
    {"kl_weight": 0.0},
    {"importance_cap": 1.1},
    {"importance_cap": 1.1, "ratio": "sequence", "aggregation": "token"},
    *({"importance_cap": 1.1, "importance_mode": x} for x in ("token_mask", "sequence_truncate", "sequence_mask")),
    *({"loss": x, "aggregation": y, "ratio": z}
      for x, y, z in itertools.product(("cispo", "sapo"), ("sequence", "token"), ("token", "sequence"))),
    {"loss": "cispo", "cispo_max": 1.3, "aggregation": "token", "kl_weight": 0.0},  # MiniMax-M1
    {"loss": "sapo", "sapo_temperature_neg": 2.0, "kl_weight": 0.0},
    {"loss": "sapo", "importance_cap": 1.1, "importance_mode": "sequence_mask", "flat_groups": "drop"},
    {"entropy_weight": 0.3},
    {"entropy_weight": 0.3, "aggregation": "token"},
    {"advantage": "mean", "aggregation": "constant", "kl_weight": 0.0},  # Dr. GRPO
    {"aggregation": "token", "clip_high": 0.28, "kl_weight": 0.0, "flat_groups": "drop"},  # DAPO
    {"advantage": "rloo", "aggregation": "token", "clip_high": 0.28, "dual_clip": 1.2, "importance_cap": 1.1,
     "kl": "k2", "entropy_weight": 0.1, "flat_groups": "drop"},
]  # fmt: skip


@pytest.mark.parametrize("settings", VARIANTS, ids=lambda settings: ",".join(f"{k}={v}" for k, v in settings.items()))
def test_value_and_gradient_are_those_of_torch(settings, data):
    want, want_gradient, got, gradient = both(ObjectiveConfig(**{"kl_weight": 0.3, **settings}), data)
    assert got == pytest.approx(want, rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(gradient, want_gradient, rtol=2e-5, atol=1e-7)


def test_the_variants_differ(data):
    """No switch is without effect here, but for the KL in the reward, which is subtracted before."""
    configs = {ObjectiveConfig(**{"kl_weight": 0.3, **settings}) for settings in VARIANTS}
    gradients = {config: both(config, data)[3] for config in configs if not config.kl_in_reward}
    for (a, x), (b, y) in itertools.combinations(gradients.items(), 2):
        assert not np.allclose(x, y, atol=1e-6), (a, b)
