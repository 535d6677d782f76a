"""Pieces that the vision encoder and the decoder share, and the stacking of layers."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx


class Linear(nnx.Linear):
    """A linear layer over the last dimension, run on [tokens, width].

    With the batch and token dimensions merged XLA's CPU backend keeps the weight gradient's operands in place; otherwise
    it transposes them element by element, which doubles the time of a training step.
    """

    def __call__(self, x):
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], self.out_features)


class SwiGLU(nnx.Module):
    """down(silu(gate(x)) * up(x)); the vision encoder's has biases, the decoder's has none."""

    def __init__(self, width: int, mlp_dim: int, *, use_bias: bool, dtype, rngs: nnx.Rngs):
        self.gate_proj = Linear(width, mlp_dim, use_bias=use_bias, dtype=dtype, rngs=rngs)
        self.up_proj = Linear(width, mlp_dim, use_bias=use_bias, dtype=dtype, rngs=rngs)
        self.down_proj = Linear(mlp_dim, width, use_bias=use_bias, dtype=dtype, rngs=rngs)

    def __call__(self, x_BTD):
        return self.down_proj(jax.nn.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


def rms_norm(width: int, eps: float, *, dtype, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """Root-mean-square norm, statistics in float32."""
    return nnx.RMSNorm(width, epsilon=eps, dtype=dtype, rngs=rngs)


def stack(make_layer: Callable[[nnx.Rngs], nnx.Module], num_layers: int, rngs: nnx.Rngs) -> nnx.Module:
    """One module whose parameters carry a leading layer dimension: [L, ...]."""
    return nnx.split_rngs(splits=num_layers)(nnx.vmap(make_layer, in_axes=(0,), out_axes=0))(rngs)


def scan_layers(layers: nnx.Module, step: Callable, carry, xs):
    """Runs stacked layers in order as one compiled loop body.

    Args:
        layers: a module made by `stack`.
        step: (layer, carry, x) -> (carry, y).
        xs: a pytree with a leading layer dimension, or None leaves.

    Returns:
        the last carry, and the ys stacked by layer.
    """
    graph, params = nnx.split(layers)

    def body(carry, inputs):
        layer_params, x = inputs
        return step(nnx.merge(graph, layer_params), carry, x)

    return jax.lax.scan(body, carry, (params, xs))


def gelu(x):
    """The exact (erf) GELU of the patch merger."""
    return jax.nn.gelu(x, approximate=False)


def take_rows(x_BSD, index_BT):
    """Gathers along the second dimension: out[b, t] = x[b, index[b, t]]."""
    return jnp.take_along_axis(x_BSD, index_BT.reshape(*index_BT.shape, *[1] * (x_BSD.ndim - 2)), axis=1)
