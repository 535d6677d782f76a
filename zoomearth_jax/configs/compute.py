"""How a model is computed, as against what it is: number types, attention backend, what is kept for the backward pass."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from zoomearth_jax.errors import UserError, suggestion

DTYPES = ("float32", "bfloat16", "float16")
ATTENTION_BACKENDS = ("auto", "xla", "cudnn", "splash")
REMAT_POLICIES = ("none", "dots", "full")


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """Settings that change speed and memory, and numbers only by rounding.

    Attributes:
        dtype: number type of activations and matrix products; softmax, rotary angles, norms and log-probabilities stay float32.
        param_dtype: number type of the parameters as they are held; float32 masters for training, bfloat16 to fit inference.
        attention: xla, cudnn (GPU, not float32), splash (TPU), or auto: the best for the platform.
        remat: what the backward pass recomputes within a layer: none keeps everything, dots keeps the outputs of weight
            products, full keeps only the layer's input.
    """

    dtype: str = "float32"
    param_dtype: str = "float32"
    attention: str = "auto"
    remat: str = "none"

    def __post_init__(self):
        for name, known in (
            ("dtype", DTYPES),
            ("param_dtype", DTYPES),
            ("attention", ATTENTION_BACKENDS),
            ("remat", REMAT_POLICIES),
        ):
            value = getattr(self, name)
            if value not in known:
                raise UserError(f"compute config: unknown {name} {value!r}; {suggestion(value, known)}")

    @property
    def dtypes(self) -> dict[str, Any]:
        """`dtype` and `param_dtype` as Flax's layers take them."""
        return {"dtype": jnp.dtype(self.dtype), "param_dtype": jnp.dtype(self.param_dtype)}

    @property
    def compiler_options(self) -> dict[str, str] | None:
        """What `jax.jit` needs to know for inference.

        XLA's CPU backend computes bfloat16 products in float32, and would convert the weights of all layers before the
        loop over them: 12 GB for the 3B model, instead of one layer's at a time.
        """
        if self.param_dtype == "float32" or jax.default_backend() != "cpu":
            return None
        return {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}
