"""Low-rank adapters on linear layers: y = x W + (x A) B alpha / rank, where A and B train and W doesn't."""

from __future__ import annotations

import functools
import re
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from zoomearth_jax.configs.lora import LoRAConfig
from zoomearth_jax.errors import UserError, suggestion
from zoomearth_jax.models.layers import Linear, stack

_Model = TypeVar("_Model")  # an `nnx.Module`, perhaps by the name of a protocol


class Adapter(nnx.LoRA):
    """Flax's low-rank layer with a scale: A [in, r] is random and B [r, out] zero, so that a fresh one changes nothing.

    Both are `nnx.LoRAParam`, float32 whatever the type of the layer's own parameters.
    """

    def __init__(self, linear: Linear, config: LoRAConfig, rngs: nnx.Rngs):
        in_axis, out_axis = linear.kernel.get_metadata()["axes"]
        super().__init__(
            linear.in_features,
            config.rank,
            linear.out_features,
            dtype=linear.dtype,
            a_metadata={"axes": (in_axis, None)},
            b_metadata={"axes": (None, out_axis)},
            rngs=rngs,
        )
        self.scale = config.alpha / config.rank

    def __call__(self, x):  # type: ignore[override]  # without `out_sharding`
        return super().__call__(x) * self.scale

    def merged(self, kernel):
        """The kernel [in, out] or [L, in, out] with the adapter's product added in float32, in the kernel's type."""

        def one(arrays):
            kernel, a, b = arrays
            delta = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
            return (kernel.astype(jnp.float32) + self.scale * delta).astype(kernel.dtype)

        arrays = kernel, self.lora_a[...], self.lora_b[...]
        return jax.lax.map(one, arrays) if kernel.ndim == 3 else one(arrays)  # one layer's float32 copy at a time


def _linears(model) -> dict[str, Linear]:
    modules = nnx.iter_modules(model)
    return {".".join(map(str, path)): module for path, module in modules if isinstance(module, Linear)}


def add_lora(model: _Model, config: LoRAConfig, rngs: nnx.Rngs) -> _Model:
    """Puts an adapter on each linear layer whose path matches, in place; returns the model. Rank 0 changes nothing.

    The layers of a stack have an adapter each: A [L, in, r] and B [L, r, out].

    Raises:
        UserError: the pattern matches no linear layer.
    """
    if not config.rank:
        return model
    linears = _linears(model)
    matched = [linear for name, linear in linears.items() if re.fullmatch(config.pattern, name)]
    if not matched:
        hint = suggestion(config.pattern, linears, cutoff=0.4)
        raise UserError(f"lora config: pattern {config.pattern!r} matches no linear layer; {hint}")
    for linear in matched:
        make, layers = functools.partial(Adapter, linear, config), linear.kernel.shape[:-2]
        linear.lora = stack(make, layers[0], rngs) if layers else make(rngs)
    return model


def merge_lora(model: _Model) -> _Model:
    """Adds every adapter to its kernel and takes it off, in place; returns the model, which is then an ordinary one."""
    for linear in _linears(model).values():
        if isinstance(linear.lora, Adapter):
            linear.kernel[...] = linear.lora.merged(linear.kernel[...])
            del linear.lora
    return model


def has_lora(model: object) -> bool:
    """Whether any layer has an adapter."""
    return bool(jax.tree.leaves(nnx.state(model, nnx.LoRAParam)))
