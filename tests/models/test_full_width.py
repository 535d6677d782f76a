"""Qwen2.5-VL-3B's full widths with 2 + 2 layers against HF transformers (`make parity`); about 8 GiB and a minute."""

import dataclasses
import gc

import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="make parity installs torch")

from transformers import Qwen2_5_VLForConditionalGeneration  # noqa: E402

from zoomearth_jax.bench.random_checkpoint import shortened, write_random_checkpoint  # noqa: E402
from zoomearth_jax.configs.compute import ComputeConfig  # noqa: E402
from zoomearth_jax.models.presets import preset  # noqa: E402
from zoomearth_jax.models.qwen2_5_vl.model import Qwen2_5_VL  # noqa: E402

LENGTH = 640
GRIDS = np.array([[1, 36, 36], [1, 26, 34]])  # a 504 px view, and one with partial windows


def inputs(config):
    """Two rows with an image each, the second right-padded."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, config.bos_id, (2, LENGTH))
    for row, (_, h, w) in zip(ids, GRIDS, strict=True):
        end = 6 + h * w // 4
        row[5], row[6:end], row[end] = config.vision_start_id, config.image_token_id, config.vision_end_id
    mask = np.ones_like(ids)
    mask[1, -40:] = 0
    pixels = rng.normal(size=(GRIDS.prod(-1).sum(), config.vision.patch_dim)).astype(np.float32)
    return ids, pixels, GRIDS, mask


def hf_inputs(arrays, image_id):
    names = ("input_ids", "pixel_values", "image_grid_thw", "attention_mask")
    tensors = dict(zip(names, map(torch.tensor, arrays), strict=True))
    return tensors | {"mm_token_type_ids": (tensors["input_ids"] == image_id).int()}


def fit_readout(model, kwargs, seen):
    """Gives every position a token of its own that it predicts with a margin, by ridge regression of the output rows.

    The winners among a random readout's 151,936 logits are so close that HF's own bfloat16 and float32 disagree on 5 %.
    """
    hidden = model.model(**kwargs).last_hidden_state[seen]
    kernel = hidden @ hidden.T
    ridge = 0.03 * kernel.diag().mean() * torch.eye(len(hidden))
    tokens = torch.randperm(model.config.image_token_id)[: len(hidden)]
    model.lm_head.weight[tokens] = 20 * torch.linalg.solve(kernel + ridge, hidden)
    return tokens.numpy()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A sharded checkpoint that HF wrote, the inputs, HF's logits in both types, and the fitted tokens."""
    torch.manual_seed(0)
    random, fitted = (tmp_path_factory.mktemp(name) for name in ("random", "fitted"))
    config = shortened(preset("qwen2_5_vl_3b")[0], 2, 2)
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, tie_embeddings=False))
    write_random_checkpoint(random, config, "float32")
    arrays = inputs(config)
    kwargs, seen = hf_inputs(arrays, config.image_token_id), torch.tensor(arrays[-1] > 0)
    with torch.no_grad():
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(random, dtype=torch.float32).eval()
        tokens = fit_readout(model, kwargs, seen)
        model.save_pretrained(fitted, max_shard_size="1GB")
        logits = model(**kwargs).logits[seen].numpy()
        winners = model.to(torch.bfloat16)(**kwargs).logits[seen].argmax(-1).numpy()
    del model
    gc.collect()
    return fitted, arrays, logits, winners, tokens


def test_float32_logits(checkpoint):
    directory, arrays, want, _, tokens = checkpoint
    assert len(list(directory.glob("model-*.safetensors"))) > 1
    got = np.asarray(Qwen2_5_VL.from_pretrained(directory)(*arrays))[arrays[-1] > 0]
    assert np.abs(got - want).max() < 2e-5 * np.abs(want).max()
    assert (want.argmax(-1) == tokens).mean() > 0.98


def test_bfloat16_winners(checkpoint):
    directory, arrays, want, hf_winners, _ = checkpoint
    model = Qwen2_5_VL.from_pretrained(directory, compute=ComputeConfig(dtype="bfloat16", param_dtype="bfloat16"))
    winners = np.asarray(model(*arrays))[arrays[-1] > 0].argmax(-1)
    assert len(winners) > 1000
    assert (winners == hf_winners).mean() >= 0.999
    assert (winners == want.argmax(-1)).mean() >= 0.999


def test_export_gives_hf_the_same_logits_bit_for_bit(checkpoint, tmp_path):
    directory, arrays, want, _, _ = checkpoint
    Qwen2_5_VL.from_pretrained(directory).save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    gc.collect()
    with torch.no_grad():
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
        got = model(**hf_inputs(arrays, model.config.image_token_id)).logits[torch.tensor(arrays[-1] > 0)].numpy()
    np.testing.assert_array_equal(got, want)
