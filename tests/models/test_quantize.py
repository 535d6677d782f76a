"""int8 kernels: how far they are off, what products of them give, and which kernels become some."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.lora import LoRAConfig
from zoomearth_jax.models.families import abstract_model
from zoomearth_jax.models.layers import Linear
from zoomearth_jax.models.lora import add_lora
from zoomearth_jax.models.presets import preset
from zoomearth_jax.models.quantize import LEVELS, Int8Kernel, quantize, quantize_layers


def kernel(*shape):
    """Channels of very different sizes, one of them all zeros."""
    rng = np.random.default_rng(0)
    sizes = 10.0 ** rng.uniform(-3, 1, shape[-1])
    sizes[1] = 0
    return jnp.asarray(rng.normal(size=shape) * sizes, jnp.float32)


def dequantized(x: Int8Kernel):
    return x.values.astype(jnp.float32) * x.scale


def test_each_weight_is_off_by_at_most_half_its_channels_scale():
    exact = kernel(3, 64, 32)
    rounded = quantize(exact)
    assert (rounded.values.dtype, rounded.values.shape) == (jnp.int8, exact.shape)
    assert (rounded.scale.dtype, rounded.scale.shape) == (jnp.float32, (3, 1, 32))
    off = np.abs(dequantized(rounded) - exact)
    assert (off <= 0.5001 * rounded.scale).all()
    assert off.max() > 0
    largest = np.abs(rounded.values).max(axis=1)
    assert (np.delete(largest, 1, axis=1) == LEVELS).all()  # every channel has its own scale, and uses all of the range
    assert (largest[:, 1] == 0).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 5e-3)])
def test_a_linear_layer_multiplies_by_the_rounded_kernel(dtype, tolerance):
    """Bias and adapter are added as ever."""
    rngs = nnx.Rngs(0)
    layer = Linear(64, 32, ("embed", "mlp"), compute=ComputeConfig(dtype=dtype), rngs=rngs)
    layer.kernel[...], layer.bias[...] = kernel(64, 32), jnp.arange(32.0)
    add_lora(nnx.List([layer]), LoRAConfig(rank=2, pattern=".*"), rngs)
    layer.lora.lora_b[...] = jnp.ones((2, 32))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 64)), dtype)
    rounded = quantize(layer.kernel[...])
    layer.kernel[...] = dequantized(rounded)
    want = np.asarray(layer(x), np.float32)
    layer.kernel.set_value(rounded)
    got = layer(x)
    assert (got.dtype, got.shape) == (x.dtype, want.shape)
    assert np.abs(np.asarray(got, np.float32) - want).max() < tolerance * np.abs(want).max()


def test_kernels_of_the_decoders_layers_alone_are_rounded():
    """Of the 3B: half the bytes of what decoding reads, but for the table; adapters stay beside their kernels."""
    model = abstract_model(preset("qwen2_5_vl_3b")[0], ComputeConfig(param_dtype="bfloat16"))
    params = nnx.state(model, nnx.Param)
    rounded = jax.eval_shape(quantize_layers, params)
    changed = {path for path, x in nnx.to_flat_state(rounded) if isinstance(x.get_value(), Int8Kernel)}
    names = [*(f"{name}_proj" for name in "qkvo"), *(f"mlp.{name}_proj" for name in ("gate", "up", "down"))]
    assert changed == {("decoder", "layers", *name.split("."), "kernel") for name in names}
    before, after = (sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(s["decoder"])) for s in (params, rounded))
    table = model.decoder.embed.embedding.size * 2
    assert (after - table) / (before - table) == pytest.approx(0.5, abs=2e-3)
    others = (s for s in (nnx.to_flat_state(params), nnx.to_flat_state(rounded)))
    kept = [{path: (x.shape, x.dtype) for path, x in state if path not in changed} for state in others]
    assert kept[0] == kept[1]
