"""Pure, jitted update steps of SFT and GRPO over rows of the fixed layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from zoomearth_jax.configs.episode import EpisodeConfig
from zoomearth_jax.configs.model import VisionConfig
from zoomearth_jax.data_pipeline.packing import PackedRows
from zoomearth_jax.data_pipeline.rows import Prompts, Replies
from zoomearth_jax.errors import UserError
from zoomearth_jax.models.lora import has_lora
from zoomearth_jax.models.qwen2_5_vl import Qwen2_5_VL
from zoomearth_jax.rl.objective import grpo_loss
from zoomearth_jax.rl.policy import Images, Segment, device_images, packed_logprobs, reply_logprobs


class TrainState(NamedTuple):
    """All that a step changes or needs: parameters with and without gradients, optimizer state, steps done."""

    trainable: nnx.State
    frozen: nnx.State
    opt_state: optax.OptState
    step: jax.Array

    @property
    def params(self) -> nnx.State:
        """All parameters, for the rollout."""
        return nnx.merge_state(self.trainable, self.frozen)


class RowBatch(NamedTuple):
    """Rows on the device: N prompts, N x G replies. Images come as pixels, or as visual tokens that are final."""

    prompt_ids: jax.Array
    prompt_valid: jax.Array
    overviews: Images | jax.Array
    overview_grids: jax.Array
    reply_ids: jax.Array
    reply_valid: jax.Array
    target: jax.Array
    crops: Images | jax.Array
    crop_grids: jax.Array


class PackedBatch(NamedTuple):
    """Packed rows on the device: as `PackedRows`, the views ready to encode or as visual tokens that are final."""

    ids: jax.Array
    samples: jax.Array
    places: jax.Array
    targets: jax.Array
    target: jax.Array
    features: jax.Array
    grids: jax.Array
    views: Images | jax.Array


class GRPOBatch(NamedTuple):
    """Rows with the log-probabilities they were sampled at [N x G, written slots] and their advantages [N x G]."""

    rows: RowBatch
    old_logp: jax.Array
    advantages: jax.Array


def row_batch(prompts: Prompts, replies: Replies, config: VisionConfig, overviews=None, crops=None) -> RowBatch:
    """Rows from NumPy arrays; `overviews` and `crops` are visual tokens to use instead of the pixels."""
    return RowBatch(
        prompts.ids,
        prompts.valid,
        device_images(prompts.views, config) if overviews is None else overviews,
        prompts.views.grids[:, None],
        replies.ids,
        replies.valid,
        replies.target,
        device_images(replies.crops, config) if crops is None else crops,
        replies.crops.grids[:, None],
    )


def packed_batch(rows: PackedRows, config: VisionConfig) -> PackedBatch:
    """Packed rows from NumPy arrays."""
    return PackedBatch(*rows[:-1], device_images(rows.views, config))


def written_slots(episode: EpisodeConfig) -> np.ndarray:
    """The reply's slots that the policy writes: stage 1 and stage 2, not the crop."""
    stage2 = episode.stage1_len + episode.crop_len
    return np.concatenate([np.arange(episode.stage1_len), np.arange(stage2, episode.reply_len)])


def init_state(model: Qwen2_5_VL, optimizer: optax.GradientTransformation, *, freeze_vision: bool):
    """The model's structure and a fresh TrainState; what is frozen has no optimizer state and no backward.

    A model with adapters trains these alone; otherwise all parameters train, those of a frozen vision encoder excepted.

    Raises:
        UserError: adapters in a frozen vision encoder.
    """
    if freeze_vision and has_lora(model.vision):
        raise UserError(
            "lora config: pattern matches layers of the frozen vision encoder; narrow it or unfreeze vision"
        )

    adapted = has_lora(model)

    def is_frozen(path, variable):
        if adapted:
            return not isinstance(variable, nnx.LoRAParam)
        return freeze_vision and path[0] == "vision"

    graph, frozen, trainable = nnx.split(model, is_frozen, ...)
    state = TrainState(trainable, frozen, optimizer.init(trainable), jnp.zeros((), jnp.int32))
    return graph, jax.device_put(state, jax.devices()[0])  # all committed, as a step's results are: one compilation


def _features(model, images: Images | jax.Array):
    return model.encode_views(images.pixels, images.layout) if isinstance(images, Images) else images


def row_logprobs(model, batch: RowBatch, episode: EpisodeConfig, temperature: float, banned_ids):
    """Log-probabilities and entropies at the written slots, [N x G, written slots] each."""
    prompt = Segment(batch.prompt_ids, batch.prompt_valid, _features(model, batch.overviews), batch.overview_grids)
    reply = Segment(batch.reply_ids, batch.reply_valid, _features(model, batch.crops), batch.crop_grids)
    return reply_logprobs(model, prompt, reply, written_slots(episode), temperature, banned_ids)


def _update(state: TrainState, optimizer, loss_fn) -> tuple[TrainState, dict[str, jax.Array]]:
    grads, metrics = jax.grad(loss_fn, has_aux=True)(state.trainable)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    metrics["grad_norm"] = optax.tree.norm(grads)
    return TrainState(trainable, state.frozen, opt_state, state.step + 1), metrics


def make_sft_step(graph, optimizer, episode: EpisodeConfig) -> Callable:
    """step(state, RowBatch or PackedBatch) -> (state, metrics): mean cross-entropy over the target tokens, the full
    vocabulary at T = 1. Both forms of the same samples give the same loss."""
    slots = written_slots(episode)

    def step(state: TrainState, batch: RowBatch | PackedBatch):
        packed = isinstance(batch, PackedBatch)
        mask = (batch.target if packed else batch.target[:, slots]).astype(jnp.float32)

        def loss_fn(trainable):
            model = nnx.merge(graph, trainable, state.frozen)
            if packed:
                logp, entropy = packed_logprobs(model, batch, _features(model, batch.views))
            else:
                logp, entropy = row_logprobs(model, batch, episode, 1.0, ())
            loss = -(logp * mask).sum() / mask.sum()
            return loss, {"loss": loss, "entropy": (entropy * mask).sum() / mask.sum()}

        return _update(state, optimizer, loss_fn)

    return jax.jit(step, donate_argnums=0)


def make_grpo_step(
    graph, optimizer, episode: EpisodeConfig, *, temperature: float, banned_ids, clip: float, kl_weight: float
) -> Callable:
    """step(state, ref_trainable, GRPOBatch) -> (state, metrics).

    Log-probabilities are of the distribution that was sampled from (temperature and banned ids). The prompt runs once a
    group. ref_trainable are the reference policy's trainable parameters (with LoRA fresh adapters, which change nothing);
    unused where kl_weight is 0.
    """
    slots = written_slots(episode)

    def step(state: TrainState, ref_trainable, batch: GRPOBatch):
        rows, mask = batch.rows, batch.rows.target[:, slots]

        def logprobs(trainable):
            return row_logprobs(nnx.merge(graph, trainable, state.frozen), rows, episode, temperature, banned_ids)

        ref_logp = jax.lax.stop_gradient(logprobs(ref_trainable)[0]) if kl_weight else None

        def loss_fn(trainable):
            logp, entropy = logprobs(trainable)
            loss, metrics = grpo_loss(
                logp, batch.old_logp, batch.advantages, mask, clip=clip, kl_weight=kl_weight, ref_logp=ref_logp
            )
            count = mask.sum()
            metrics |= {
                "loss": loss,
                "entropy": (entropy * mask).sum() / count,
                "sampler_gap": jnp.max(jnp.abs(logp - batch.old_logp) * mask),
            }
            return loss, metrics

        return _update(state, optimizer, loss_fn)

    return jax.jit(step, donate_argnums=0)
