"""Pieces that the vision encoder and the decoder share, and the stacking of layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.models.fused_attention import compile_platform
from zoomearth_jax.models.quantize import Int8Kernel, int8_product
from zoomearth_jax.models.sharding import constrain

Array = jax.Array | np.ndarray  # on the devices, or on the host before it goes there
_Layer = TypeVar("_Layer", bound=nnx.Module)

_REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Linear(nnx.Linear):
    """A linear layer over the last dimension, run on [tokens, width], but on TPUs on [batch, tokens, width].

    With the batch and token dimensions merged XLA's CPU backend keeps the weight gradient's operands in place; otherwise
    it transposes them element by element, which doubles the time of a training step. On TPUs it is the merging that copies:
    into another layout, or where a row's tokens aren't whole tiles. In decoding the kernel may be an `Int8Kernel`; an adapter is
    then added in the compute type as ever.

    Attributes:
        lora: an adapter whose output is added, see `models.lora`.
    """

    lora: nnx.LoRA | None = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        axes: tuple[str | None, str],
        *,
        use_bias: bool = True,
        compute: ComputeConfig,
        rngs: nnx.Rngs,
    ):
        """`axes` are the logical axes of the kernel (see `models.sharding`)."""
        super().__init__(
            in_features,
            out_features,
            use_bias=use_bias,
            kernel_metadata={"axes": axes},
            bias_metadata={"axes": axes[1:]},
            rngs=rngs,
            **compute.dtypes,
        )

    def __call__(self, x):  # type: ignore[override]  # without `out_sharding`
        flat = x if compile_platform() == "tpu" else x.reshape(-1, x.shape[-1])
        kernel = self.kernel.get_value()
        y = self._int8(flat, kernel) if isinstance(kernel, Int8Kernel) else super().__call__(flat)
        if self.lora is not None:
            y = y + self.lora(flat)
        return y.reshape(*x.shape[:-1], self.out_features)

    def _int8(self, x_TD, kernel: Int8Kernel):
        y_TD = int8_product(x_TD.astype(self.dtype), kernel)
        return y_TD if self.bias is None else y_TD + self.bias[...].astype(self.dtype)


class SwiGLU(nnx.Module):
    """down(silu(gate(x)) * up(x)); the vision encoder's has biases, the decoder's has none."""

    def __init__(self, width: int, mlp_dim: int, *, use_bias: bool, compute: ComputeConfig, rngs: nnx.Rngs):
        settings: dict[str, Any] = {"use_bias": use_bias, "compute": compute, "rngs": rngs}
        self.gate_proj = Linear(width, mlp_dim, ("embed", "mlp"), **settings)
        self.up_proj = Linear(width, mlp_dim, ("embed", "mlp"), **settings)
        self.down_proj = Linear(mlp_dim, width, ("mlp", "embed"), **settings)

    def __call__(self, x_BTD):
        hidden_BTF = jax.nn.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD)
        return self.down_proj(constrain(hidden_BTF, "batch", None, "mlp"))


class RMSNorm(nnx.RMSNorm):
    """Flax's norm, which multiplies states of the compute type by statistics and a scale in float32."""

    def __call__(self, x, mask=None):
        with jax.numpy_dtype_promotion("standard"):
            return super().__call__(x, mask=mask)


def rms_norm(width: int, eps: float, *, compute: ComputeConfig, rngs: nnx.Rngs) -> RMSNorm:
    """Root-mean-square norm, statistics in float32."""
    return RMSNorm(width, epsilon=eps, scale_metadata={"axes": (None,)}, rngs=rngs, **compute.dtypes)


def stack(make_layer: Callable[[nnx.Rngs], _Layer], num_layers: int, rngs: nnx.Rngs) -> _Layer:
    """One module whose parameters carry a leading layer dimension: [L, ...]."""
    return nnx.split_rngs(splits=num_layers)(nnx.vmap(make_layer, in_axes=(0,), out_axes=0))(rngs)


def scan_layers(layers: nnx.Module, step: Callable, carry, xs, remat: str = "none"):
    """Runs stacked layers in order as one compiled loop body.

    Args:
        layers: a module made by `stack`.
        step: (layer, carry, x) -> (carry, y).
        xs: a pytree with a leading layer dimension, or None leaves.
        remat: what the backward pass recomputes, see `ComputeConfig`.

    Returns:
        the last carry, and the ys stacked by layer.
    """
    graph, params = nnx.split(layers)

    def body(carry, inputs):
        layer_params, x = inputs
        carry, y = step(nnx.merge(graph, layer_params), carry, x)
        return constrain(carry, "batch", None, None), y

    if remat != "none":
        body = jax.checkpoint(body, policy=_REMAT[remat], prevent_cse=False)  # a scan's body is not merged with others
    return jax.lax.scan(body, carry, (params, xs))


def gelu(x):
    """The exact (erf) GELU of the patch merger."""
    return jax.nn.gelu(x, approximate=False)


def take_rows(x_BSD, index_BT):
    """Gathers along the second dimension: out[b, t] = x[b, index[b, t]]."""
    return jnp.take_along_axis(x_BSD, index_BT.reshape(*index_BT.shape, *[1] * (x_BSD.ndim - 2)), axis=1)


class Places(NamedTuple):
    """Which of S slots a row really computes: those that exist, in order, in R <= S rows.

    kept_AR: the slot of each (S: none). place_AS: where each slot is among them (R: nowhere).
    """

    kept_AR: Array
    place_AS: Array


@jax.custom_vjp
def move_rows(x_BSD, index_BT, inverse_BS):
    """Gathers along the second dimension, 0 where the index is none; `inverse_BS` is the way back, so that the gradient is a
    gather too (XLA's CPU backend adds scattered rows up one by one)."""
    del inverse_BS
    index = index_BT.reshape(*index_BT.shape, *[1] * (x_BSD.ndim - 2))
    return jnp.take_along_axis(x_BSD, index, axis=1, mode="fill", fill_value=0)


def _move_forward(x_BSD, index_BT, inverse_BS):
    return move_rows(x_BSD, index_BT, inverse_BS), (index_BT, inverse_BS)


def _move_backward(ways, gradient_BTD):
    index_BT, inverse_BS = ways
    return move_rows(gradient_BTD, inverse_BS, index_BT), None, None


move_rows.defvjp(_move_forward, _move_backward)
