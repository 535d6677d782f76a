"""int8 kernels for decoding, which is bound by reading weights: half the bytes of bfloat16.

Only the kernels of the decoder's layers become some: embeddings, the table or head that gives logits, biases, norms, adapters
and the vision encoder stay as they are. Rounding is symmetric, with one scale for each output channel and layer: a channel's
largest weight is ±127 scales. Products read the int8 values, convert them to the compute type on the way, and are scaled
afterwards.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

LEVELS = 127  # of either sign; -128 is left out, so that a weight and its negative round alike


class Int8Kernel(NamedTuple):
    """A linear layer's kernel as int8 numbers.

    Attributes:
        values: int8 [..., in, out].
        scale: float32 [..., 1, out]; the kernel is values x scale.
    """

    values: jax.Array
    scale: jax.Array


def quantize(kernel) -> Int8Kernel:
    """The nearest int8 numbers of a kernel [..., in, out]: each weight is off by at most half its channel's scale."""
    kernel = kernel.astype(jnp.float32)
    scale = jnp.abs(kernel).max(axis=-2, keepdims=True) / LEVELS
    scale = jnp.where(scale > 0, scale, 1.0)
    return Int8Kernel(jnp.round(kernel / scale).astype(jnp.int8), scale)


def int8_product(x, kernel: Int8Kernel):
    """x [T, in] times a kernel: [T, out] in the type of x.

    The int8 values are read in that type, and sums over devices are made in it; scaling is in float32. Sums in float16 would
    overflow before it, so they are in float32 too.
    """
    sums = jnp.float32 if x.dtype == jnp.float16 else x.dtype
    y = jnp.matmul(x, kernel.values.astype(x.dtype), preferred_element_type=sums)
    return (y.astype(jnp.float32) * kernel.scale).astype(x.dtype)


def is_layer_kernel(path, x: nnx.Variable) -> bool:
    """Whether a parameter is a stacked kernel [L, in, out] outside the vision encoder; a filter of Flax's."""
    names = [str(getattr(part, "key", part)) for part in path]
    return "vision" not in names and names[-1] == "kernel" and x.get_value().ndim == 3


def quantize_layers(params: nnx.State) -> nnx.State:
    """Parameters with an `Int8Kernel` as the value of each that `is_layer_kernel`."""

    def one(path, x):
        return x.replace(quantize(x.get_value())) if is_layer_kernel(path, x) else x

    return jax.tree_util.tree_map_with_path(one, params, is_leaf=lambda x: isinstance(x, nnx.Variable))
