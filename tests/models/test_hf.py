"""HF directories: what is refused, by name, and that a round trip changes nothing."""

import json
import shutil
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from zoomearth_jax.errors import UserError
from zoomearth_jax.models.families import read_config
from zoomearth_jax.models.qwen2_5_vl import weights as hf
from zoomearth_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from zoomearth_jax.runs.models import resolve

GOLDEN = Path(__file__).parents[1] / "goldens" / "untied"


@pytest.fixture
def checkpoint(tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / name, tmp_path / name)
    return tmp_path


def edit_config(directory, **changes):
    file = directory / "config.json"
    raw = json.loads(file.read_text())
    raw["text_config"] |= changes
    file.write_text(json.dumps(raw))


def edit_tensors(directory, change):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def test_round_trip(checkpoint, tmp_path):
    model = Qwen2_5_VL.from_pretrained(checkpoint)
    model.save_pretrained(tmp_path / "again")
    before, after = load_file(checkpoint / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key], after[key]) for key in before)
    assert Qwen2_5_VL.from_pretrained(tmp_path / "again").config == model.config


def test_both_key_layouts_and_several_files(checkpoint, tmp_path):
    want = nnx.to_flat_state(nnx.state(Qwen2_5_VL.from_pretrained(checkpoint)))
    tensors = load_file(checkpoint / "model.safetensors")

    def rename(key):
        if key.startswith("visual."):
            return f"model.{key}"
        return key.replace("model.", "model.language_model.", 1)

    keys = sorted(tensors)
    for part, chosen in enumerate((keys[::2], keys[1::2])):
        save_file({rename(key): tensors[key] for key in chosen}, checkpoint / f"model-{part}-of-2.safetensors")
    (checkpoint / "model.safetensors").unlink()
    got = nnx.to_flat_state(nnx.state(Qwen2_5_VL.from_pretrained(checkpoint)))
    assert all(np.array_equal(a[1][...], b[1][...]) for a, b in zip(want, got, strict=True))


LAYOUTS = {  # what other programs write, from the published names
    "published": lambda key: key,
    "transformers 5": lambda key: (
        f"model.{key}" if key.startswith("visual.") else key.replace("model.", "model.language_model.")
    ),
    "language_model first": lambda key: key if key.startswith("visual.") else f"language_model.{key}",
    "inside model": lambda key: f"model.{key}",
    "data parallel": lambda key: f"module.{key}",
    "compiled": lambda key: f"_orig_mod.{key}",
    "compiled layers": lambda key: key.replace(".self_attn.", "._orig_mod.self_attn."),
    "several": lambda key: f"module._orig_mod.{key}" if key.startswith("visual.") else f"module.language_model.{key}",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_keys_of_other_programs_and_stray_buffers(checkpoint, layout):
    tensors = load_file(checkpoint / "model.safetensors")
    written = {LAYOUTS[layout](key): x for key, x in tensors.items()}
    for buffer in (
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "visual.rotary_pos_emb.inv_freq",
        "model.rotary_emb.inv_freq",
    ):
        written[LAYOUTS[layout](buffer)] = np.ones(4, np.float32)
    source = hf._Source(checkpoint)
    save_file(written, checkpoint / "model.safetensors", metadata={"format": "pt"})
    renamed = hf._Source(checkpoint)
    assert renamed._slices.keys() == source._slices.keys() == tensors.keys()
    assert all(np.array_equal(renamed._slices[key][:], tensors[key]) for key in tensors)


def test_a_tensor_that_is_there_twice_is_named(checkpoint):
    edit_tensors(checkpoint, lambda t: t.update({"model.language_model.norm.weight": t["model.norm.weight"].copy()}))
    with pytest.raises(UserError, match=r"is there twice, as model\.norm\.weight"):
        Qwen2_5_VL.from_pretrained(checkpoint)


@pytest.mark.parametrize("wrong", [None, "x", [], {}, -1, 0, 1.5, 10**30, True, [1, "a"]])
def test_numbers_of_the_config_that_no_model_has(checkpoint, wrong):
    raw = json.loads((checkpoint / "config.json").read_text())
    for part in ("text_config", "vision_config"):
        for key in (
            "hidden_size",
            "num_attention_heads" if part == "text_config" else "num_heads",
            "intermediate_size",
        ):
            (checkpoint / "config.json").write_text(json.dumps(raw | {part: raw[part] | {key: wrong}}))
            with pytest.raises(UserError, match=r"config\.json.*(must be|missing)") as caught:
                read_config(checkpoint)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[" * 100_000,
        b'{"a": NaN}',
        b'{"a": ' + b"9" * 5000 + b"}",
        '{"ü": 1}'.encode("latin-1"),
        "{}".encode("utf-16"),
    ],
)
def test_config_files_that_are_no_json(checkpoint, content):
    (checkpoint / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json: (not readable JSON|expected an object)") as caught:
        read_config(checkpoint)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_read_over(checkpoint):
    raw = (checkpoint / "config.json").read_bytes()
    (checkpoint / "config.json").write_bytes(b"\xef\xbb\xbf" + raw)
    read_config(checkpoint)


@pytest.mark.parametrize("seed", range(12))
def test_weights_cut_or_with_headers_that_lie(checkpoint, seed):
    file, rng = checkpoint / "model.safetensors", np.random.default_rng(seed)
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    name = sorted(header.keys() - {"__metadata__"})[rng.integers(len(header) - 1)]
    change = [
        {"data_offsets": [0, 4]},
        {"shape": [2**62, 8]},
        {"dtype": "I8"},
        {"shape": "x"},
        {"data_offsets": [-4, 4]},
    ]
    header[name] |= change[seed % 5]
    lying = json.dumps(header).encode()
    cut = whole[: rng.integers(len(whole))]
    longer = (2 ** int(rng.integers(20, 64))).to_bytes(8, "little") + whole[8:]
    for broken in (cut, longer, len(lying).to_bytes(8, "little") + lying + whole[8 + length :]):
        file.write_bytes(broken)
        with pytest.raises(UserError, match=str(checkpoint)) as caught:
            Qwen2_5_VL.from_pretrained(checkpoint)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), "model.norm.weight is missing"),
        (lambda t: t.update(extra=np.zeros(3, np.float32)), "unknown tensors extra"),
        (lambda t: t.update({"model.norm.weight": np.zeros(32, np.int8)}), "is of type I8; quantised"),
        (lambda t: t.update({"model.norm.weight": np.zeros(5, np.float32)}), r"model.norm.weight has shape \(5,\)"),
    ],
)
def test_wrong_tensors_are_named(checkpoint, change, message):
    edit_tensors(checkpoint, change)
    with pytest.raises(UserError, match=message):
        Qwen2_5_VL.from_pretrained(checkpoint)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"head_dim": 64}, "head_dim 64 is not hidden_size / num_attention_heads"),
        ({"rope_parameters": {"rope_type": "yarn", "mrope_section": [1, 1, 2], "factor": 2.0}}, "rope scaling 'yarn'"),
        ({"rope_parameters": {"rope_type": "default"}}, "no mrope_section"),
    ],
)
def test_what_the_port_cannot_represent_is_refused(checkpoint, changes, message):
    edit_config(checkpoint, **changes)
    with pytest.raises(UserError, match=message):
        Qwen2_5_VL.from_pretrained(checkpoint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config is not supported"),
        ({"vision_config": {"rope_parameters": {"rope_type": "axial", "rope_theta": 5e5}}}, "vision_config rope_param"),
        ({"vision_config": {"rope_parameters": {"rope_type": "yarn"}}}, "vision_config rope_param"),
    ],
)
def test_quantised_checkpoints_and_other_vision_angles_are_refused(checkpoint, change, message):
    raw = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(raw | change))
    with pytest.raises(UserError, match=message):
        Qwen2_5_VL.from_pretrained(checkpoint)


def test_untied_needs_its_own_output_and_a_missing_flag_means_tied(checkpoint):
    edit_tensors(checkpoint, lambda t: t.pop("lm_head.weight"))
    with pytest.raises(UserError, match=r"lm_head\.weight is missing"):
        Qwen2_5_VL.from_pretrained(checkpoint)
    raw = json.loads((checkpoint / "config.json").read_text())
    del raw["tie_word_embeddings"]
    (checkpoint / "config.json").write_text(json.dumps(raw))
    assert Qwen2_5_VL.from_pretrained(checkpoint).config.text.tie_embeddings


def test_an_index_may_not_lead_outside_or_be_broken(checkpoint):
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "../../etc/model.safetensors"}}))
    Qwen2_5_VL.from_pretrained(checkpoint)  # the file of that name beside the index
    index.write_text("[]")
    with pytest.raises(UserError, match="expected an object of settings"):
        Qwen2_5_VL.from_pretrained(checkpoint)


def test_pickled_weights_are_not_read(checkpoint):
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no \*\.safetensors file, and pytorch_model\.bin is not read"):
        Qwen2_5_VL.from_pretrained(checkpoint)


def test_the_host_holds_a_few_layers_at_a_time(monkeypatch):
    monkeypatch.setattr(hf, "CHUNK_BYTES", 100_000)
    sizes = [x.nbytes for x in load_file(resolve("nano") / "model.safetensors").values()]
    Qwen2_5_VL.from_pretrained(resolve("nano"))  # compiles what fills the stacks
    tracemalloc.start()
    model = Qwen2_5_VL.from_pretrained(resolve("nano"))  # float32: twice the file's bytes
    kept, peak = tracemalloc.get_traced_memory()  # kept: what JAX took over without a copy
    tracemalloc.stop()
    assert sum(x.nbytes for x in jax.tree.leaves(nnx.state(model))) == 2 * sum(sizes)
    assert peak - kept < 6 * max(sizes) < sum(sizes), (peak, kept, max(sizes))


def test_broken_directories(checkpoint, tmp_path):
    (checkpoint / "model.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        Qwen2_5_VL.from_pretrained(checkpoint)
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(UserError, match="not readable JSON"):
        Qwen2_5_VL.from_pretrained(checkpoint)
    (checkpoint / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="model_type is 'llama'"):
        Qwen2_5_VL.from_pretrained(checkpoint)
    with pytest.raises(UserError, match="no such directory"):
        Qwen2_5_VL.from_pretrained(tmp_path / "nothing")
