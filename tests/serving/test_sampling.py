"""Rows with settings of their own draw what the programs with static settings draw."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.rl.rollout.sampling import filtered_logits, sample
from zoomearth_jax.serving.sampling import Draws, draw, filtered_rows

SETTINGS = st.builds(
    SamplingConfig,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 40]),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.5, 0.5]),
)
WORDS, BANNED = 24, (3, 7)


def draws(settings, seed: int) -> Draws:
    keys = jax.random.split(jax.random.key(seed), len(settings))
    columns = zip(*((s.temperature, s.top_k, s.top_p, s.repetition_penalty) for s in settings), strict=True)
    temperature, top_k, top_p, penalty = (np.array(column) for column in columns)
    steps = np.arange(len(settings), dtype=np.int32)
    floats = (
        temperature.astype(np.float32),
        top_k.astype(np.int32),
        top_p.astype(np.float32),
        penalty.astype(np.float32),
    )
    return Draws(np.asarray(jax.random.key_data(keys)), steps, *floats)


@profile(max_examples=6, deadline=None)  # the static programs compile for each setting
@given(st.lists(SETTINGS, min_size=4, max_size=4), st.integers(0, 1000))
def test_each_row_draws_by_its_own_settings(settings, seed):
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(np.round(rng.normal(size=(4, WORDS)) * 3), jnp.float32)  # with ties
    seen = jnp.asarray(rng.random((4, WORDS)) < 0.4)
    rows = draws(settings, seed)
    tokens = np.asarray(draw(logits, rows, BANNED, seen))
    kept = np.asarray(filtered_rows(logits, rows, seen))
    for row, own in enumerate(settings):
        filters = own.filters
        expected = filtered_logits(logits[row : row + 1], filters, seen[row : row + 1])
        np.testing.assert_array_equal(np.isfinite(kept[row]), np.isfinite(expected[0]))
        key = jax.random.fold_in(jax.random.wrap_key_data(rows.keys_R[row]), rows.step_R[row])
        token, _ = sample(logits[row : row + 1], key[None], own.temperature, BANNED, filters, seen[row : row + 1])
        assert tokens[row] == token[0]


def test_settings_of_others_change_nothing():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, WORDS)), jnp.float32)
    seen = jnp.zeros((2, WORDS), bool)
    plain, hot = SamplingConfig(0.0), SamplingConfig(1.0, top_k=3, top_p=0.5, repetition_penalty=2.0)
    alone, among = (draw(logits, draws([plain, other], 0), (), seen) for other in (plain, hot))
    assert alone[0] == among[0] == logits[0].argmax()
