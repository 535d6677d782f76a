"""Which visual tokens are kept, against plain NumPy; and the positions that they keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoomearth_jax.configs.prune import PruneConfig
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.errors import UserError
from zoomearth_jax.models import attention
from zoomearth_jax.models.attention import received_attention
from zoomearth_jax.models.pruning import density_peaks, highest, pruned_views
from zoomearth_jax.models.qwen2_5_vl.vision import patchify
from zoomearth_jax.models.rope import mrope_positions, vision_angles


def test_keep_is_a_share_or_a_number():
    assert [PruneConfig("attention", 0.25).kept(n) for n in (0, 1, 4, 5, 324)] == [0, 1, 1, 2, 81]
    assert [PruneConfig("cluster", 64).kept(n) for n in (0, 10, 64, 324)] == [0, 10, 64, 64]
    assert PruneConfig("attention", 1).kept(324) == PruneConfig().kept(324) == 324
    for keep in (0, -0.5, 1.5, float("inf"), float("nan")):
        with pytest.raises(UserError, match="prune: keep must be"):
            PruneConfig("attention", keep)
    with pytest.raises(UserError, match="prune: kind must be"):
        PruneConfig("fastest")


def test_the_highest_come_in_raster_order():
    scores = jnp.array([[1.0, 5.0, 3.0, 5.0, 9.0], [0.0, -jnp.inf, 2.0, 7.0, 7.0]])
    kept = highest(scores, jnp.array([4, 2]), jnp.array([2, 2]), 3)
    assert kept[0, :2].tolist() == [1, 3]  # the fifth doesn't exist
    assert kept[1, :2].tolist() == [0, 1]
    assert highest(scores, jnp.array([4, 2]), jnp.array([1, 0]), 3)[0, 0] == 1  # of equal ones the first


def test_density_peaks_are_the_plain_sum():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 8)) * 20
    x = (centres[np.arange(40) % 3] + rng.normal(size=(40, 8))).astype(np.float32)
    tokens = 36  # the last four don't exist
    distance = ((x[:tokens, None] - x[None, :tokens]) ** 2).sum(-1) / 8
    near = np.sort(distance + np.diag(np.full(tokens, np.inf)), axis=1)[:, :5]
    density = np.exp(-near.mean(1))
    want = []
    for i in range(tokens):
        denser = density > density[i]
        apart = distance[i][denser].min() if denser.any() else distance[i].max()
        want.append(np.log(density[i] * np.sqrt(apart)))
    got = np.asarray(density_peaks(jnp.asarray(x), jnp.int32(tokens)))
    np.testing.assert_allclose(got[:tokens], want, atol=1e-3)
    assert sorted(np.argsort(-got[:tokens])[:3] % 3) == [0, 1, 2]  # one of each cluster
    equal = np.asarray(density_peaks(jnp.ones((6, 4)), jnp.int32(6)))
    assert not np.isnan(equal).any()


def test_received_attention_is_the_plain_mean(monkeypatch):
    monkeypatch.setattr(attention, "QUERY_BLOCK", 16)
    rng = np.random.default_rng(0)
    q, k = (rng.normal(size=(2, 50, 3, 8)).astype(np.float32) for _ in range(2))
    valid = np.arange(50) < np.array([[50], [37]])
    scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(8)
    weights = np.exp(scores) * valid[:, None, None]
    weights /= weights.sum(-1, keepdims=True)
    want = (weights * valid[:, None, :, None]).sum(2).mean(1)
    np.testing.assert_allclose(received_attention(q, k, valid), want, atol=1e-5)


@pytest.fixture(scope="module")
def images(nano):
    """An oblong picture and a square one on one canvas."""
    overview = nano.rows.overview(scene_questions("test", 0, 0, 1)[0])
    return nano.model.config.prepare(*nano.rows.views([overview[:84], overview]))


def test_scores_are_the_attention_of_the_last_whole_block(nano, images):
    """Block after block in NumPy's order, with all weights of the last one in one array."""
    vision, layout = nano.model.vision, images.layout
    features, scores = jax.jit(lambda images: nano.model.scored_views(images))(images)
    np.testing.assert_array_equal(features, jax.jit(lambda images: nano.model.encode_views(images))(images))
    graph, params = nnx.split(vision.blocks)
    first, last = (nnx.merge(graph, jax.tree.map(lambda x, i=i: x[i], params)) for i in (0, 1))
    angles = vision_angles(layout.positions_IP2, 16)
    x = vision.patch_embed(patchify(images.pixels, layout.positions_IP2, vision.config))
    x = first(x, angles, layout, False)
    q, k, _ = last._projected(last.norm1(x), angles)
    weights = jnp.einsum("ITNH,ISNH->INTS", q, k) / 4.0
    weights = np.asarray(jax.nn.softmax(jnp.where(layout.valid_IP[:, None, None], weights, -jnp.inf), axis=-1))
    received = (weights * np.asarray(layout.valid_IP)[:, None, :, None]).sum(2).mean(1)
    for i, tokens in enumerate((12, 16)):
        grid = np.zeros((8, 8))
        count = tokens * 4
        rows, columns = np.asarray(layout.positions_IP2[i, :count]).T
        grid[rows, columns] = received[i, :count]
        merged = grid.reshape(4, 2, 4, 2).mean((1, 3)).ravel()[:tokens]
        np.testing.assert_allclose(scores[i, :tokens], merged, atol=1e-5)
        assert merged.std() > 1e-3


@pytest.mark.parametrize("kind", ["attention", "cluster"])
def test_kept_tokens_keep_their_features(nano, images, kind):
    prune, features = PruneConfig(kind, 0.5), np.asarray(nano.model.encode_views(images))
    got, kept = pruned_views(nano.model, images, prune, jnp.array([6, 8]))
    assert got.shape == (2, 8, 96)
    for i, count in enumerate((6, 8)):
        assert (np.diff(kept[i, :count]) > 0).all()
        np.testing.assert_allclose(got[i, :count], features[i][kept[i, :count]], atol=1e-5)


def test_positions_are_those_of_the_whole_picture():
    valid = jnp.ones((2, 9), bool)
    is_image = jnp.array([[0, 1, 1, 1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0, 0]], bool)
    kept, grids = jnp.array([[1, 5, 6], [0, 3, 0]]), jnp.array([[[2, 4]], [[3, 2]]])
    positions, after = mrope_positions(is_image, valid, grids, jnp.array([10, 0]), kept)
    assert positions[:, 0, :5].T.tolist() == [[10] * 3, [11, 11, 12], [11, 12, 12], [11, 12, 13], [15] * 3]
    assert positions[:, 1, :4].T.tolist() == [[0] * 3, [1, 1, 1], [1, 2, 2], [4] * 3]
    assert after.tolist() == [20, 10]
