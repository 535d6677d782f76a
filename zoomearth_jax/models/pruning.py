"""Pruning of visual tokens: which of a picture's are kept, by their scores. What is kept keeps its features and its position.

Two scores, both without training and without a class token, which Qwen's vision encoder doesn't have:

- the attention that a token receives in the encoder's last block over the whole picture, mean over heads and queries, as
  VisionZip (arXiv 2412.04467) and VisPruner (arXiv 2412.01818) rank tokens; what they add to it (merged or diverse tokens
  beside those) is left out. The family computes it (`VisionLanguageModel.scored_views`).
- density peaks over the k nearest neighbours (Du et al. 2016, as token clustering takes it since TCFormer, arXiv 2204.08680):
  the centres of clusters are dense and far from anything denser. A cluster's centre stands for it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from zoomearth_jax.configs.prune import PruneConfig
from zoomearth_jax.models.family import Images, VisionLanguageModel
from zoomearth_jax.models.layers import take_rows

NEIGHBOURS = 5
_BLOCK = 256  # tokens whose distances to all others are computed at a time


def pruned_views(model: VisionLanguageModel, images: Images, prune: PruneConfig, count_I):
    """Visual tokens of pictures without those that are pruned.

    Args:
        prune: by attention or cluster.
        count_I: tokens kept of each picture: what `prune` keeps of its own.

    Returns:
        features [I, K, D] in raster order, K being what is kept of a whole canvas; and kept_IK, each one's number in the whole
        picture's raster order. Past a picture's count both are anything.
    """
    tokens_I = images.grids.prod((1, 2))
    if prune.kind == "attention":
        features_IMD, scores_IM = model.scored_views(images)
    else:
        features_IMD = model.encode_views(images)
        scores_IM = jax.vmap(density_peaks)(features_IMD, tokens_I)
    kept_IK = highest(scores_IM, tokens_I, count_I, prune.kept(features_IMD.shape[1]))
    return take_rows(features_IMD, kept_IK), kept_IK


def highest(scores_IM, tokens_I, count_I, budget: int):
    """Numbers [I, K] of the `count_I` tokens with the highest scores, in raster order; of equal ones the first. Only the first
    `tokens_I` exist."""
    exists_IM = jnp.arange(scores_IM.shape[1]) < tokens_I[:, None]
    order_IM = jnp.argsort(jnp.where(exists_IM, -scores_IM, jnp.inf), axis=1, stable=True)
    rank_IM = jnp.argsort(order_IM, axis=1)
    return jnp.argsort(rank_IM >= count_I[:, None], axis=1, stable=True)[:, :budget]


def density_peaks(x_MD, tokens):
    """Scores [M] of one picture's tokens as centres of clusters, of which the first `tokens` exist.

    A token's density is exp(-mean squared distance to its k nearest), its separation the distance to the nearest denser one
    (of the densest, to the farthest); the score is the logarithm of their product. Of equally dense tokens the first counts as
    denser.
    """
    x_MD = x_MD.astype(jnp.float32) / x_MD.shape[1] ** 0.5
    number_M = jnp.arange(len(x_MD))
    exists_M = number_M < tokens
    square_M = (x_MD * x_MD).sum(1)

    def distances(i):
        """Squared distances [M] of token i to all."""
        return jnp.maximum(square_M + square_M[i] - 2 * jnp.dot(x_MD, x_MD[i], precision="highest"), 0.0)

    def sparsity(i):
        """Minus the logarithm of its density."""
        others_M = jnp.where(exists_M & (number_M != i), distances(i), jnp.inf)
        near_K = -jax.lax.top_k(-others_M, min(NEIGHBOURS, len(x_MD)))[0]
        found_K = jnp.isfinite(near_K)
        return jnp.where(found_K, near_K, 0.0).sum() / jnp.maximum(found_K.sum(), 1).astype(jnp.float32)

    sparsity_M = jax.lax.map(sparsity, number_M, batch_size=_BLOCK)

    def score(i):
        denser_M = (sparsity_M < sparsity_M[i]) | ((sparsity_M == sparsity_M[i]) & (number_M < i))
        denser_M, distance_M = denser_M & exists_M, distances(i)
        farthest = jnp.where(exists_M, distance_M, 0.0).max()
        nearest = jnp.where(denser_M, distance_M, jnp.inf).min()
        return 0.5 * jnp.log(jnp.where(denser_M.any(), nearest, farthest)) - sparsity_M[i]

    return jax.lax.map(score, number_M, batch_size=_BLOCK)
