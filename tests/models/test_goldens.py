"""The port against committed outputs of HF transformers: no torch needed. `make parity` compares live, and more widely."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tiny_inputs import IMAGE, VIDEO, batch
from zoomearth_jax.data_pipeline.rows.builder import TokenIds
from zoomearth_jax.models.attention import KVCache, one_sample
from zoomearth_jax.models.qwen2_5_vl.model import Qwen2_5_VL, _assign_images, _row_features
from zoomearth_jax.models.qwen2_5_vl.patches import vision_layout
from zoomearth_jax.models.rope import mrope_positions
from zoomearth_jax.rl.policy import last_valid
from zoomearth_jax.rl.rollout.decoding import Ready, Sampler, grow_cache

GOLDENS = Path(__file__).parents[1] / "goldens"
TOLERANCE = 1e-4  # absolute, fp32


@pytest.fixture(scope="module", params=["tied", "untied"])
def golden(request):
    directory = GOLDENS / request.param
    return Qwen2_5_VL.from_pretrained(directory), np.load(directory / "expected.npz")


@nnx.jit  # op by op a segment takes four times as long
def segment(model, *args, **kwargs):
    return model.segment(*args, **kwargs)


@nnx.jit
def encode(model, patches_IPC, layout):
    return model.vision(patches_IPC, layout)


def row_inputs(model, ids, grids):
    """Row-wise feature indices and merged grids of a batch."""
    merged = grids[:, 1:] // 2
    rows = _assign_images(ids == IMAGE, merged)
    return _row_features(rows, merged, merged.prod(-1).max())


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_equal_hf(golden, side):
    model, expected = golden
    ids, mask, pixels, grids = batch(side)
    ours = np.asarray(model(ids, pixels, grids, mask))
    theirs = expected[f"{side}_logits"]
    assert np.abs(ours - theirs)[mask > 0].max() < TOLERANCE
    assert np.abs(theirs[mask > 0]).max() > 1  # the tolerance means something


def test_visual_tokens_equal_hf(golden):
    model, expected = golden
    _, _, pixels, grids = batch("left")
    layout = vision_layout(grids[:, 1:], model.config.vision)
    offsets = np.cumsum([0, *grids.prod(-1)])[:-1]
    features = encode(
        model, jnp.asarray(pixels)[np.where(layout.valid_IP, layout.source_IP + offsets[:, None], 0)], layout
    )
    ours = np.concatenate([f[: h * w // 4] for f, (_, h, w) in zip(np.asarray(features), grids, strict=True)])
    assert np.abs(ours - expected["features"]).max() < TOLERANCE


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_equal_hf(golden, side):
    model, expected = golden
    ids, mask, _, grids = batch(side)
    _, grids_BI2 = row_inputs(model, ids, grids)
    positions, following = jax.jit(mrope_positions)(
        jnp.asarray(ids == IMAGE), jnp.asarray(mask > 0), jnp.asarray(grids_BI2)
    )
    theirs = expected[f"{side}_positions"]
    np.testing.assert_array_equal(np.asarray(positions)[:, mask > 0], theirs[:, mask > 0])
    np.testing.assert_array_equal(following, np.where(mask > 0, theirs.max(0), 0).max(1) + 1)


def test_greedy_generation_equals_hf_token_for_token(golden):
    model, expected = golden
    ids, mask, pixels, grids = batch("left")
    feature_BM, grids_BI2 = row_inputs(model, ids, grids)
    layout = vision_layout(grids[:, 1:], model.config.vision)
    offsets = np.cumsum([0, *grids.prod(-1)])[:-1]
    features = encode(
        model, jnp.asarray(pixels)[np.where(layout.valid_IP, layout.source_IP + offsets[:, None], 0)], layout
    )
    features_BMD = features.reshape(-1, features.shape[-1])[feature_BM]
    hidden, cache, following = segment(
        model, jnp.asarray(ids), one_sample(mask > 0), features_BMD, jnp.asarray(grids_BI2)
    )
    tokens = TokenIds(0, (-1,), (IMAGE, VIDEO))
    first = last_valid(hidden, jnp.asarray(mask > 0))
    keys = jax.random.split(jax.random.key(0), len(ids))

    @nnx.jit
    def decoded(model, cache, first, following):
        sampler, cache = Sampler(tokens, 0.0), grow_cache(cache, 12)
        writing = sampler.begin(model, Ready(first, cache, ids.shape[1], following), 12, None, keys)
        return sampler.go_on(model, cache, writing, 12)[1]

    writing = decoded(model, cache, first, following)
    assert np.asarray(writing.written_BT).all()
    np.testing.assert_array_equal(writing.ids_BT, expected["greedy"])


def test_cache_equals_full_forward(golden):
    model, _ = golden
    ids, mask, _, _ = batch("right")
    text, samples = jnp.where(ids == IMAGE, 5, jnp.asarray(ids)), one_sample(mask > 0)
    full, _, _ = segment(model, text, samples)
    cut = 9
    first, cache, following = segment(model, text[:, :cut], samples[:, :cut])
    rest, _, _ = segment(model, text[:, cut:], samples[:, cut:], start_B=following, past=cache)
    both = np.concatenate([first, rest], axis=1)
    assert np.abs(both - np.asarray(full))[mask > 0].max() < 1e-5


def test_cache_slots_that_are_not_valid_change_nothing(golden):
    model, _ = golden
    ids = jnp.arange(2, 14)[None]
    samples = jnp.ones_like(ids)
    _, cache, following = segment(model, ids[:, :8], samples[:, :8])
    want, _, _ = segment(model, ids[:, 8:], samples[:, 8:], start_B=following, past=cache)
    noise = [jnp.concatenate([x, 100 * x[:, :, :, :3]], axis=3) for x in (cache.k, cache.v)]
    noisy = KVCache(*noise, jnp.pad(cache.samples_BS, ((0, 0), (0, 3))))
    got, _, _ = segment(model, ids[:, 8:], samples[:, 8:], start_B=following, past=noisy)
    np.testing.assert_allclose(
        got, want, atol=1e-5
    )  # sums of another length; a slot that counted would change it by far more


def test_padding_changes_nothing(golden):
    model, _ = golden
    ids, mask, pixels, grids = batch("right")
    alone = np.asarray(model(ids[:1, : mask[0].sum()], pixels[: grids[:2].prod(-1).sum()], grids[:2]))
    padded = np.asarray(model(ids, pixels, grids, mask))[:1, : mask[0].sum()]
    np.testing.assert_allclose(padded, alone, atol=2e-5)


def test_no_token_sees_a_later_one(golden):
    model, _ = golden
    ids = jnp.arange(2, 12)[None]
    embedded = model.embed(ids)
    positions = jnp.broadcast_to(jnp.arange(10), (3, 1, 10))

    def score(x):
        return model.decoder(x, positions, jnp.ones((1, 10), bool))[0][0, 4].sum()

    by_position = np.abs(jax.jit(jax.grad(score))(embedded))[0].sum(-1)
    assert (by_position[:5] > 0).all()
    assert (by_position[5:] == 0).all()


def test_placeholders_must_match_features(golden):
    model, _ = golden
    ids, mask, pixels, grids = batch("left")
    ids = ids.copy()
    ids[1, np.flatnonzero(ids[1] == IMAGE)[0]] = 5
    with pytest.raises(ValueError, match="row 1: placeholders and features"):
        model(ids, pixels, grids, mask)
    with pytest.raises(ValueError, match="patches for grids"):
        model(ids, pixels[:-1], grids, mask)
    with pytest.raises(ValueError, match="one frame"):
        model(ids, pixels, grids * [2, 1, 1], mask)
