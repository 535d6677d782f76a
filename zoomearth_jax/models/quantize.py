"""int8 kernels for decoding, which is bound by reading weights: half the bytes of bfloat16.

Symmetric, with one scale for each output channel (and layer): a channel's largest weight is ±127 scales. Products read the int8
values, convert them to the compute type on the way, and are scaled in float32 afterwards.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

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
    """x [T, in] times a kernel, [T, out] in the type of x, in which the int8 values are read; sums and scaling are in float32."""
    y = jnp.matmul(x, kernel.values.astype(x.dtype), preferred_element_type=jnp.float32)
    return (y * kernel.scale).astype(x.dtype)
