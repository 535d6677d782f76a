"""Pure, jitted update steps of SFT and GRPO over rows of the fixed layout."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from zoomearth_jax.configs.episode import RowLayout
from zoomearth_jax.configs.objective import ObjectiveConfig
from zoomearth_jax.models.family import Images
from zoomearth_jax.models.sharding import constrain, constrain_params
from zoomearth_jax.rl.batches import GRPOBatch, PackedBatch, RowBatch, split_batch
from zoomearth_jax.rl.objective import distilled_advantages, grpo_loss, row_weights
from zoomearth_jax.rl.policy import Segment, packed_logprobs, reply_logprobs, row_features
from zoomearth_jax.rl.state import TrainState


def _features(model, images: Images | jax.Array):
    return model.encode_views(images) if isinstance(images, Images) else images


def scored_slots(layout: RowLayout, mask: str) -> np.ndarray:
    """The reply's slots that have tokens of the loss: see `ObjectiveConfig.mask`."""
    return np.arange(layout.reply_len) if mask == "reference" else layout.written()


def row_logprobs(model, batch: RowBatch, layout: RowLayout, temperature: float, banned_ids, mask: str = "sampled"):
    """Log-probabilities and entropies at the scored slots, [A x G, slots] each; see `ObjectiveConfig.mask`."""
    prompt = Segment(batch.prompt_ids, batch.prompt_valid, _features(model, batch.overviews), batch.overview_grids)
    pictures = batch.pictures
    if pictures is not None:
        pictures = row_features(_features(model, pictures), batch.picture_grids)
    reply = Segment(batch.reply_ids, batch.reply_valid, pictures, batch.picture_grids)
    banned_ids = () if mask == "reference" else banned_ids  # the pictures' ids are among them
    return reply_logprobs(model, prompt, reply, scored_slots(layout, mask), temperature, banned_ids, batch.places)


def _update(
    state: TrainState, optimizer, loss_fn, micros, decay: float = 0.0
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Takes one optimizer step on the sum of loss_fn(trainable, micro) over microbatches, gradients added up in float32.
    The state's moving average, if it has one, keeps its share `decay` and takes the rest from the new parameters.

    loss_fn also gives metrics that add up likewise, but for those named `*_max`; its loss is one of them. A step whose loss,
    gradient or update is not finite leaves the state as it is.
    """
    gradient = jax.grad(loss_fn, has_aux=True)
    parts = jax.tree.leaves(micros)[0].shape[0]
    if parts == 1:
        grads, metrics = gradient(state.trainable, jax.tree.map(lambda x: x[0], micros))
    else:

        def add(total, micro):
            grads, metrics = gradient(state.trainable, micro)
            total = jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, constrain_params(grads))
            return constrain_params(total), metrics

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), state.trainable)
        grads, metrics = jax.lax.scan(add, constrain_params(zeros), micros)
        grads = jax.tree.map(lambda g, x: g.astype(x.dtype), grads, state.trainable)
        metrics = {name: x.max() if name.endswith("_max") else x.sum() for name, x in metrics.items()}
    grads = constrain_params(grads)
    with jax.numpy_dtype_promotion("standard"):  # optax takes b1 to the power of an int32 count
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    metrics["grad_norm"] = optax.tree.norm(grads)
    metrics["update_ratio"] = optax.tree.norm(updates) / jnp.maximum(optax.tree.norm(state.trainable), 1e-12)
    finite = jnp.isfinite(metrics["loss"] + metrics["grad_norm"] + metrics["update_ratio"])
    average = state.average
    if average is not None:
        average = jax.tree.map(lambda a, x: decay * a + (1.0 - decay) * x.astype(a.dtype), average, trainable)
    changed = (
        (trainable, opt_state, state.step + 1, average),
        (state.trainable, state.opt_state, state.step, state.average),
    )
    trainable, opt_state, step, average = jax.tree.map(lambda new, old: jnp.where(finite, new, old), *changed)
    return TrainState(*constrain_params((trainable, state.frozen, opt_state, step, average))), metrics


def make_sft_step(graph, optimizer, layout: RowLayout, accumulate: int = 1) -> Callable:
    """step(state, RowBatch or PackedBatch) -> (state, metrics): mean cross-entropy over the target tokens, the full
    vocabulary at T = 1. Both forms of the same samples give the same loss.

    Args:
        accumulate: microbatches that a batch is cut into, one after the other; packed rows are not cut.
    """
    slots = layout.written()

    def step(state: TrainState, batch: RowBatch | PackedBatch):
        packed = isinstance(batch, PackedBatch)
        count = (batch.target if packed else batch.target[:, slots]).sum().astype(jnp.float32)

        def loss_fn(trainable, micro):
            model = nnx.merge(graph, trainable, state.frozen)
            if packed:
                mask, (logp, entropy) = micro.target, packed_logprobs(model, micro, _features(model, micro.views))
            else:
                mask, (logp, entropy) = micro.target[:, slots], row_logprobs(model, micro, layout, 1.0, ())
            mask = mask.astype(jnp.float32)
            loss = -(logp * mask).sum() / count
            return loss, {"loss": loss, "entropy": (entropy * mask).sum() / count}

        return _update(state, optimizer, loss_fn, split_batch(batch, len(batch.target), accumulate))

    return jax.jit(step, donate_argnums=0)


def make_scorer(
    graph, layout: RowLayout, *, temperature: float, banned_ids, objective: ObjectiveConfig, accumulate: int = 1
) -> Callable:
    """score(trainable, frozen, RowBatch) -> log-probabilities [A x G, scored slots], as `make_grpo_step` computes them."""

    def score(trainable, frozen, rows: RowBatch):
        count, replies = len(rows.prompt_ids), len(rows.reply_ids)
        model = nnx.merge(graph, trainable, frozen)

        def one(micro):
            return row_logprobs(model, micro, layout, temperature, banned_ids, objective.mask)[0]

        logp = jax.lax.map(one, split_batch(rows, count, accumulate))
        logp = logp.reshape(accumulate, count // accumulate, replies // count, -1).swapaxes(0, 1).reshape(replies, -1)
        return constrain(logp, "batch", None)

    return jax.jit(score)


def make_grpo_step(
    graph,
    optimizer,
    layout: RowLayout,
    *,
    temperature: float,
    banned_ids,
    objective: ObjectiveConfig,
    accumulate: int = 1,
) -> Callable:
    """step(state, ref_trainable, GRPOBatch) -> (state, metrics).

    Log-probabilities are of the distribution that was sampled from (temperature and banned ids). The prompt runs once per
    group. ref_trainable are the reference policy's trainable parameters (with LoRA fresh adapters, which change nothing);
    unused where the loss has no KL.

    Args:
        accumulate: microbatches that a batch is cut into, whole groups each, one after the other.
    """
    slots = scored_slots(layout, objective.mask)
    written = np.flatnonzero(np.isin(slots, layout.written()))

    def step(state: TrainState, ref_trainable, batch: GRPOBatch):
        count = batch.rows.target[:, slots].sum().astype(jnp.float32)
        distilled = 0 if batch.distilled is None else jnp.maximum(batch.distilled.sum(), 1).astype(jnp.float32)

        def loss_mask(rows: RowBatch):
            return (rows.target | rows.reply_valid if objective.mask == "reference" else rows.target)[:, slots]

        def logprobs(trainable, rows):
            model = nnx.merge(graph, trainable, state.frozen)
            return row_logprobs(model, rows, layout, temperature, banned_ids, objective.mask)

        def loss_fn(trainable, weighted):
            micro, weights = weighted
            target, ref_logp = micro.rows.target[:, slots].astype(jnp.float32), None
            if objective.kl_in_loss:
                ref_logp = jax.lax.stop_gradient(logprobs(ref_trainable, micro.rows)[0])
            logp, entropy = logprobs(trainable, micro.rows)
            old_logp = micro.sampler_logp
            if objective.old_by_trainer:
                old_logp = jax.lax.stop_gradient(logp) if micro.old_logp is None else micro.old_logp
            advantages, extra = micro.advantages, {}
            if objective.distill_weight:
                advantages, gap = distilled_advantages(
                    objective, advantages, micro.teacher_logp, old_logp, micro.distilled
                )
                share = micro.distilled.sum().astype(jnp.float32) / count
                extra = {"distill_gap": gap.sum() / distilled, "distill_share": share}
            loss, metrics = grpo_loss(
                objective,
                logp,
                old_logp,
                advantages,
                loss_mask(micro.rows),
                weights,
                sampler_logp=micro.sampler_logp,
                ref_logp=ref_logp,
                entropy=entropy,
            )
            metrics = {name: x if name.endswith("_max") else x / accumulate for name, x in metrics.items()}
            gap = jnp.abs(logp[:, written] - micro.sampler_logp) * target[:, written]
            metrics |= extra | {
                "loss": loss,
                "entropy": (entropy * target).sum() / count,
                "sampler_gap": gap.sum() / count,
                "sampler_gap_max": jnp.max(gap),
            }
            return loss, metrics

        weights = row_weights(objective, loss_mask(batch.rows), batch.kept)
        micros = split_batch((batch, weights), len(batch.rows.prompt_ids), accumulate)
        return _update(state, optimizer, loss_fn, micros, objective.distill_decay)

    return jax.jit(step, donate_argnums=0)
