"""Log-probabilities in chunks: values and gradients of the plain formula, on one device and on meshes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.processes import result, start
from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.lora import LoRAConfig
from zoomearth_jax.models.families import family_of
from zoomearth_jax.models.lora import add_lora
from zoomearth_jax.models.presets import preset
from zoomearth_jax.rl import policy

KINDS = "tied", "untied", "adapter"
ROWS, SLOTS, VOCAB, WIDTH = 8, 9, 608, 96
BANNED, TEMPERATURE = (3, 4), 0.7


def make_model(kind: str):
    """Structure and parameters of a nano model whose head is tied, untied, or untied with an adapter."""
    config, _ = preset("nano")
    text = dataclasses.replace(config.text, vocab_size=VOCAB, num_layers=1, tie_embeddings=kind == "tied")
    config = dataclasses.replace(config, text=text)
    model = family_of(config).make(config, ComputeConfig(), nnx.Rngs(0))
    if kind == "adapter":
        add_lora(model, LoRAConfig(4, pattern=r"decoder\.lm_head"), nnx.Rngs(1))
        adapter = model.decoder.lm_head.lora
        adapter.lora_b[...] = jax.random.normal(jax.random.key(4), adapter.lora_b.shape)
    return nnx.split(model)


def inputs():
    """Hidden states and targets."""
    hidden_BTD = jax.random.normal(jax.random.key(1), (ROWS, SLOTS, WIDTH))
    return hidden_BTD, jax.random.randint(jax.random.key(2), (ROWS, SLOTS), 5, VOCAB)


def weighted(logprobs):
    """A loss of log-probabilities and entropies, each token's of its own weight."""
    weights = jax.random.normal(jax.random.key(3), (2, ROWS, SLOTS))
    return (jnp.stack(logprobs) * weights).sum()


def values_and_gradients(graph, params, hidden, targets, chunks: int = 3):
    """Of `token_logprobs`, with a budget for so many chunks on any number of devices."""

    def loss(params, hidden):
        budget = -(-SLOTS // chunks) * ROWS * VOCAB // policy.num_devices() + 1
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(policy, "LOGITS_BUDGET", budget)
            found = policy.token_logprobs(nnx.merge(graph, params), hidden, targets, TEMPERATURE, BANNED)
        return weighted(found), found

    (_, found), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, hidden)
    return found, gradients


def plainly(graph, params, hidden, targets):
    """The same by the formula, all logits at once, those of banned ids cut out."""

    def loss(params, hidden):
        logits = nnx.merge(graph, params).logits(hidden) / TEMPERATURE
        logp = jax.nn.log_softmax(jnp.delete(logits, np.array(BANNED), axis=-1, assume_unique_indices=True))
        target = jnp.take_along_axis(logp, targets[..., None] - len(BANNED), axis=-1)[
            ..., 0
        ]  # all targets are above them
        found = target, -(jnp.exp(logp) * logp).sum(-1)
        return weighted(found), found

    (_, found), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, hidden)
    return found, gradients


def assert_close(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6 * max(1.0, float(np.abs(b).max())))


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_are_the_plain_formula(kind):
    (graph, params), arrays = make_model(kind), inputs()
    want = jax.jit(functools.partial(plainly, graph))(params, *arrays)
    head = "lm_head" if kind != "tied" else "embed"
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(want[1][0]["decoder"][head]))
    for chunks in (1, 3, 5):  # 5 chunks of 2 slots: one is padding
        got = jax.jit(functools.partial(values_and_gradients, graph, chunks=chunks))(params, *arrays)
        assert_close(got, want)


def test_a_frozen_head_has_no_gradient():
    (graph, params), arrays = make_model("tied"), inputs()

    def products(of):
        compiled = jax.jit(lambda *args: of(values_and_gradients(graph, *args)[1])).lower(params, *arrays).compile()
        return compiled.as_text().count(" dot(")

    assert products(lambda gradients: gradients[1]) < products(lambda gradients: gradients)


@pytest.mark.slow
def test_on_meshes_the_table_travels_once():
    found = result(start("rl/logprobs_check.py", 8))
    assert len(found) == 4 * len(KINDS)
    for name, (error, _) in found.items():
        assert error < 1e-5, name
    for kind in KINDS:
        assert found[f"{kind} (1, 8, 1)"][1] == 2, found  # gathered, and its gradient added up
