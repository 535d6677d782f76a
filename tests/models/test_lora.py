"""Adapters: fresh ones change nothing, merged ones change nothing either, and each layer of a stack has its own."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec
from safetensors.numpy import load_file, save_file

from tests.tiny_inputs import batch
from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.lora import LoRAConfig
from zoomearth_jax.errors import UserError
from zoomearth_jax.models.families import abstract_model
from zoomearth_jax.models.lora import add_lora, has_lora, merge_lora
from zoomearth_jax.models.presets import preset
from zoomearth_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from zoomearth_jax.models.qwen2_5_vl.patches import vision_layout
from zoomearth_jax.models.sharding import MESH_AXES, param_shardings

GOLDENS = Path(__file__).parents[1] / "goldens"
IDS, MASK, PIXELS, GRIDS = batch("right")
TOLERANCE = 5e-5  # absolute, fp32; what the adapters of `trained` do is over 0.1
# a layer of each form, and HF's keys of it: stacks of text and vision, a single layer, the convolution, the head
KEYS = {
    "decoder.layers.q_proj": "model.layers.{}.self_attn.q_proj.weight",
    "decoder.layers.mlp.down_proj": "model.layers.{}.mlp.down_proj.weight",
    "decoder.lm_head": "lm_head.weight",
    "vision.blocks.qkv": "visual.blocks.{}.attn.qkv.weight",
    "vision.merger_out": "visual.merger.mlp.2.weight",
    "vision.patch_embed": "visual.patch_embed.proj.weight",
}


def load(name="untied", **compute):
    return Qwen2_5_VL.from_pretrained(GOLDENS / name, compute=ComputeConfig(**compute))


def logits(model):
    return np.asarray(model(IDS, PIXELS, GRIDS, MASK))[MASK > 0]


def adapters(model):
    return dict(nnx.to_flat_state(nnx.state(model, nnx.LoRAParam)))


def trained(model, pattern=".*", rank=3):
    """With adapters as training might leave them."""
    add_lora(model, LoRAConfig(rank, alpha=6.0, pattern=pattern), nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for path, param in adapters(model).items():
        if path[-1] == "lora_b":
            value = jnp.asarray(rng.normal(size=param.shape) * 0.02, param.dtype)
            nnx.update(model, nnx.from_flat_state({path: param.replace(value)}))
    return model


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_fresh_adapters_change_no_bit(name):
    model = load(name)
    before = logits(model)
    add_lora(model, LoRAConfig(4, pattern=".*"), nnx.Rngs(0))
    assert has_lora(model.vision)
    assert has_lora(model.decoder)
    np.testing.assert_array_equal(logits(model), before)
    assert not has_lora(add_lora(load(name), LoRAConfig(), nnx.Rngs(0)))


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_merged_model_computes_the_same(name):
    plain, model = logits(load(name)), trained(load(name))
    want = logits(model)
    assert np.abs(want - plain).max() > 0.1
    paths = [path for path, _ in nnx.to_flat_state(nnx.state(load(name)))]
    assert [path for path, _ in nnx.to_flat_state(nnx.state(merge_lora(model)))] == paths
    np.testing.assert_allclose(logits(model), want, atol=TOLERANCE)


def test_adapters_equal_weights_merged_by_hand_in_numpy(tmp_path):
    model = trained(load(), "|".join(KEYS))
    state, tensors = adapters(model), load_file(GOLDENS / "untied" / "model.safetensors")
    assert len(state) == 2 * len(KEYS)
    for module, key in KEYS.items():
        a, b = (np.asarray(state[*module.split("."), "lora", f"lora_{x}"][...], np.float64) for x in "ab")
        for layer, (a_DR, b_RF) in enumerate(zip(a, b, strict=True) if a.ndim == 3 else [(a, b)]):
            weight = tensors[key.format(layer)]
            tensors[key.format(layer)] = (weight + 6.0 / 3 * (a_DR @ b_RF).T.reshape(weight.shape)).astype(np.float32)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((GOLDENS / "untied" / "config.json").read_bytes())
    np.testing.assert_allclose(logits(model), logits(Qwen2_5_VL.from_pretrained(tmp_path)), atol=TOLERANCE)


def test_export_of_a_merged_model_is_an_ordinary_checkpoint(tmp_path):
    model = merge_lora(trained(load()))
    model.save_pretrained(tmp_path)
    keys = load_file(GOLDENS / "untied" / "model.safetensors").keys()
    assert load_file(tmp_path / "model.safetensors").keys() == keys
    np.testing.assert_array_equal(logits(Qwen2_5_VL.from_pretrained(tmp_path)), logits(model))


def test_each_layer_of_a_stack_has_its_own_adapter():
    model = load()
    add_lora(model, LoRAConfig(4), nnx.Rngs(0))
    a_LDR = np.asarray(model.decoder.layers.q_proj.lora.lora_a[...])
    assert len(a_LDR) == model.config.text.num_layers > 1
    assert not np.array_equal(a_LDR[0], a_LDR[1])
    assert not np.array_equal(a_LDR, model.decoder.layers.o_proj.lora.lora_a[...])


@pytest.mark.slow
def test_gradients_reach_every_adapter_and_remat_keeps_them():
    layout = vision_layout([(8, 8)], load().config.vision)
    patches_IPC = np.random.default_rng(0).normal(size=(1, 64, 1176)).astype(np.float32)

    def gradients(remat):
        graph, state, rest = nnx.split(trained(load(remat=remat)), nnx.LoRAParam, ...)

        def loss(state):
            model = nnx.merge(graph, state, rest)
            hidden_BTD, _, _ = model.segment(jnp.arange(2, 10)[None], jnp.ones((1, 8), jnp.int32))
            features_IMD = model.vision(patches_IPC, layout)
            return (jax.nn.log_softmax(model.decoder.logits(hidden_BTD)) ** 2).mean() + (features_IMD**2).mean()

        return dict(nnx.to_flat_state(jax.jit(jax.grad(loss))(state)))

    want, got = gradients("none"), gradients("full")
    assert all(np.abs(g[...]).max() > 0 for g in want.values())
    for path in want:
        np.testing.assert_allclose(got[path][...], want[path][...], atol=1e-6)


def test_number_of_trainable_parameters():
    config, _ = preset("qwen2_5_vl_3b")
    lora = LoRAConfig(16, pattern=r"decoder\.layers\.(q|k)_proj|vision\.blocks\.mlp\.gate_proj")
    model = nnx.eval_shape(lambda model: add_lora(model, lora, nnx.Rngs(0)), abstract_model(config))
    text = 36 * 16 * ((2048 + 2048) + (2048 + 256))  # layers x rank x (in + out)
    vision = 32 * 16 * (1280 + 3420)
    assert sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.LoRAParam))) == text + vision


def test_types_and_shardings():
    model = trained(load(param_dtype="bfloat16", dtype="bfloat16"))
    assert {x.dtype for x in adapters(model).values()} == {jnp.dtype("float32")}
    head = model.decoder.lm_head
    assert head(jnp.ones((2, 3, head.in_features), jnp.bfloat16)).dtype == jnp.bfloat16
    specs = param_shardings(nnx.state(model, nnx.LoRAParam), AbstractMesh((1, 2, 2), MESH_AXES))
    lora = specs["decoder"]["layers"]["mlp"]["down_proj"]["lora"]
    assert lora["lora_a"].get_value().spec == PartitionSpec(None, "tensor", None)
    assert lora["lora_b"].get_value().spec == PartitionSpec(None, None, "fsdp")
    assert {x.dtype for x in jax.tree.leaves(nnx.state(merge_lora(model)))} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": -1}, "rank must not be negative"),
        ({"rank": 4, "alpha": 0.0}, "alpha must be positive"),
        ({"pattern": "("}, "not a regular expression"),
        ({"rank": 4, "pattern": "q_proj"}, "matches no linear layer; did you mean 'decoder.layers.q_proj'"),
        ({"rank": 4, "pattern": "decoder.layer.mlp.up_proj"}, "did you mean 'decoder.layers.mlp.up_proj'"),
        ({"rank": 4, "pattern": "decoder.embed"}, "matches no linear layer"),
        ({"rank": 4, "pattern": "!"}, "known: decoder.layers.k_proj, .*vision.patch_embed"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        add_lora(abstract_model(preset("nano")[0]), LoRAConfig(**settings), nnx.Rngs(0))
