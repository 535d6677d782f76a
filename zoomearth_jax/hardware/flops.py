"""Model FLOPs: what a step has to compute, by the sizes of the model and of what really is in the rows.

The convention is PaLM's (Chowdhery et al. 2022, appendix B): only matrix products, a multiply-add is two FLOPs, what the
backward pass computes anew (remat) is not counted. Otherwise it is stricter than the usual 6 x parameters x tokens:

- Padding is not counted: tokens, patches and windows are those that exist.
- Attention goes by the (query, key) pairs that see each other: causal in the decoder, inside windows of at most 64 patches in
  the vision encoder's windowed blocks, over the whole image in its full ones. A pair costs 4 x width per layer.
- A prompt counts once per group. Embedding lookups cost nothing; logits are counted for the tokens that are scored or sampled.
- All views are counted: overviews and the pictures after each turn.

What a token, a pair and a picture cost is the family's to say (`models.family.Sizes`). A scored token costs 2 D V.

The backward pass of what trains costs twice its forward pass: one product for the gradient of the input, one for that of the
weights. Of products whose weights are frozen under adapters it costs as much as the forward pass; of a frozen vision
encoder nothing. Adapters' own products are left out (rank / width of the layer's).

MFU = model FLOPs / (seconds x chips x peak FLOP/s of a chip).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zoomearth_jax.configs.episode import RowLayout
from zoomearth_jax.data_pipeline.rows.builder import Prompts, Replies
from zoomearth_jax.models.family import Sizes


class RowCounts(NamedTuple):
    """What is in rows of A prompts with G replies each, B = A x G; integers.

    Attributes:
        prompt_A, reply_B: tokens that exist, visual ones included; stop tokens are none.
        scored_B: tokens that the policy wrote, stop tokens included.
        overview_A2, picture_BI2: merged grids of the views; 0 x 0 where there is none.
    """

    prompt_A: np.ndarray
    reply_B: np.ndarray
    scored_B: np.ndarray
    overview_A2: np.ndarray
    picture_BI2: np.ndarray

    @property
    def tokens(self) -> int:
        """Number of tokens that the model runs over, each prompt once per group."""
        return int(self.prompt_A.sum() + self.reply_B.sum())

    @property
    def images(self) -> int:
        """Number of views that exist."""
        return int(sum((grids.prod(-1) > 0).sum() for grids in (self.overview_A2, self.picture_BI2)))

    @property
    def samples(self) -> int:
        """Number of replies."""
        return len(self.reply_B)


class Flops(NamedTuple):
    """FLOPs of a forward pass by part: the vision encoder, the decoder's layers, its attention pairs, logits."""

    vision: float
    layers: float
    attention: float
    logits: float


def row_counts(prompts: Prompts, replies: Replies) -> RowCounts:
    """The counts of a batch."""
    reply_B, scored_B = replies.valid.sum(1), replies.target.sum(1)
    return RowCounts(prompts.valid.sum(1), reply_B, scored_B, prompts.views.grids, replies.grids)


def joined_counts(parts: Sequence[RowCounts]) -> RowCounts:
    """The counts of several batches together."""
    return RowCounts(*(np.concatenate(x) for x in zip(*parts, strict=True)))


def full_counts(layout: RowLayout, prompts: int, group: int = 1) -> RowCounts:
    """Rows whose every slot is filled, with the largest square views: the most that a batch can hold."""
    replies = prompts * group
    overview, picture = (side // layout.merged_px for side in (layout.view_side, layout.picture_side))
    return RowCounts(
        np.full(prompts, layout.prompt_len),
        np.full(replies, layout.reply_len),
        np.full(replies, layout.written_len),
        np.full((prompts, 2), overview),
        np.full((replies, layout.num_pictures, 2), picture),
    )


def forward_flops(config: Sizes, counts: RowCounts) -> Flops:
    """FLOPs of one forward pass over whole rows. A rollout costs the same: prefill, decoding and crops run each token once."""
    past_B = np.repeat(counts.prompt_A, len(counts.reply_B) // len(counts.prompt_A))
    pairs = segment_pairs(counts.prompt_A) + segment_pairs(counts.reply_B, past_B)
    return Flops(
        config.vision_flops(np.concatenate([counts.overview_A2, counts.picture_BI2.reshape(-1, 2)])),
        float(config.token_flops * counts.tokens),
        float(config.pair_flops * pairs),
        float(2 * config.width * config.vocab_size * int(counts.scored_B.sum())),
    )


def segment_pairs(length_B, past_B=0) -> int:
    """(query, key) pairs of segments that see themselves causally and all of their past."""
    length_B = np.asarray(length_B, np.int64)
    return int((length_B * (length_B + 1) // 2 + length_B * past_B).sum())


def rollout_flops(config: Sizes, counts: RowCounts) -> float:
    """FLOPs of a rollout of the rows: all turns, prompts once per group, a row of logits for each sampled token."""
    return sum(forward_flops(config, counts))


def sft_flops(config: Sizes, counts: RowCounts, *, freeze_vision: bool, lora: bool = False) -> float:
    """FLOPs of a fine-tuning step.

    Args:
        freeze_vision: nothing of the vision encoder trains.
        lora: only adapters train.
    """
    forward = forward_flops(config, counts)
    return _trained(forward, lora) + forward.vision * (1 if freeze_vision else _passes(lora))


def grpo_flops(
    config: Sizes,
    counts: RowCounts,
    *,
    freeze_vision: bool,
    kl: bool,
    lora: bool = False,
    updates: int = 1,
    scorings: int = 0,
    distills: bool = False,
) -> float:
    """FLOPs of the updates on one rollout, without the rollout; a frozen vision encoder's tokens come from there.

    Args:
        freeze_vision, lora: see `sft_flops`.
        kl: each update takes the reference policy's forward pass too.
        updates: passes over the rollout.
        scorings: forward passes ahead of them, of the reference or of the policy itself.
        distills: whether there is one of self-distillation's teacher too, which reads as many tokens, but sees other pictures: they
            are encoded with a frozen vision encoder too.
    """
    forward = forward_flops(config, counts)
    text, vision = _trained(forward, lora), forward.vision * _passes(lora)
    if kl:
        text, vision = text + sum(forward[1:]), vision + forward.vision
    if freeze_vision:
        vision = 0.0
    scored = sum(forward) - (forward.vision if freeze_vision else 0.0)
    seen = config.vision_flops(counts.picture_BI2.reshape(-1, 2)) if freeze_vision else 0.0
    return updates * (text + vision) + scorings * scored + distills * (scored + seen)


def maxtext_flops(config: Sizes, counts: RowCounts, passes: int = 3) -> float:
    """FLOPs of a training step as MaxText counts them (`calculate_tflops_training_per_device`), to read our MFU beside its own.

    Forward and backward pass over every slot, with logits for all of them and attention over all pairs of a row, as if it were not
    causal: so in what it published. Since commit 6288c233 (April 2026) MaxText halves attention. Vision is left out here.

    Args:
        counts: rows with every slot filled (`full_counts`).
        passes: forward passes that the step is worth: 3, and 4 with a reference policy, as MaxText counts DPO's.
    """
    prompt_B = np.repeat(counts.prompt_A, counts.samples // len(counts.prompt_A)).astype(np.int64)
    row_B = prompt_B + counts.reply_B
    pairs = int((counts.prompt_A.astype(np.int64) ** 2).sum() + (row_B**2 - prompt_B**2).sum())
    token = config.token_flops + 2 * config.width * config.vocab_size
    return float(passes * (token * counts.tokens + config.pair_flops * pairs))


def _trained(forward: Flops, lora: bool) -> float:
    """FLOPs of the decoder's forward and backward pass."""
    return (forward.layers + forward.logits) * _passes(lora) + forward.attention * 3


def _passes(lora: bool) -> int:
    """Forward passes that training of a matrix product costs; without its weights' gradient under adapters one less."""
    return 2 if lora else 3


def mfu(flops: float, seconds: float, chips: int, peak_flops: float) -> float:
    """Model FLOPs utilisation, 0 to 1; `peak_flops` is one chip's FLOP/s."""
    return flops / (seconds * chips * peak_flops)
