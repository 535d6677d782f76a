"""The one engine that plays episodes: look at the overview, name a box, see the crop, answer.

`ask`, `evaluate` and GRPO all run it. The prompt is prefilled once a group and its cache broadcast to the samples; each
stage is one jitted decode loop; crops are read on the host, encoded in one batch and appended to the same caches. Ids
that were sampled are the ids that are returned and trained on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.boxes import Box, Frame
from zoomearth_jax.data_pipeline.protocol import parse_answer, parse_box, wants_crop
from zoomearth_jax.data_pipeline.questions import Question
from zoomearth_jax.data_pipeline.rows import Prompts, Replies, RowBuilder
from zoomearth_jax.models.attention import KVCache
from zoomearth_jax.models.qwen2_5_vl import Qwen2_5_VL
from zoomearth_jax.models.sharding import batch_stretch, cast_kernels, constrain, local_rows, shard_batch
from zoomearth_jax.rl.policy import Images, device_images, last_valid, repeat_cache, repeat_rows
from zoomearth_jax.rl.sampling import mark_seen, row_keys, sample

MASK_LEVEL = 128  # grey of a masked crop


@dataclasses.dataclass(frozen=True)
class Episode:
    """What one sample did.

    Attributes:
        stage1, stage2: its texts; stage2 is None without a crop.
        box: the box it named, in px of the view; None without a valid one.
        box_reason: why there is none (see `ParsedBox`).
        window: what was read, in px of the original.
        answer: its final answer; None without one.
        truncated: a stage ran out of its slot.
    """

    stage1: str
    stage2: str | None
    box: Box | None
    box_reason: str
    window: Box | None
    answer: str | None
    truncated: bool

    @property
    def zoomed(self) -> bool:
        """Whether it saw a crop."""
        return self.stage2 is not None


class Look(NamedTuple):
    """What N questions show the policy first: the prompt slots, and on the devices their ids, validity and overviews."""

    prompts: Prompts
    on_devices: tuple[jax.Array, jax.Array, Images]


@dataclasses.dataclass(frozen=True)
class Trajectories:
    """A batch of N x G episodes with what the learner needs.

    Attributes:
        prompts: N prompt slots. replies: N x G reply slots. logprobs: of the sampled tokens, float32
            [N x G, stage1_len + stage2_len], under the distribution that the learner computes again (see `sample`).
        overview_features, crop_features: visual tokens [N, M, D] and [N x G, M, D], on the device.
        episodes: in the order of replies. overviews, crops: what was seen, uint8.
    """

    prompts: Prompts
    replies: Replies
    logprobs: np.ndarray
    overview_features: jax.Array
    crop_features: jax.Array
    episodes: list[Episode]
    overviews: list[np.ndarray]
    crops: list[np.ndarray | None]


def _pin(cache_LBKSH):
    """Keeps each row's keys or values on the devices that hold the row."""
    return constrain(cache_LBKSH, None, "batch", "kv_heads", None, None)


def _write(cache: KVCache, own: KVCache, offset) -> KVCache:
    """Puts a segment's keys and values into the cache's slots from `offset` on."""
    k = _pin(jax.lax.dynamic_update_slice_in_dim(cache.k, own.k, offset, axis=3))
    v = _pin(jax.lax.dynamic_update_slice_in_dim(cache.v, own.v, offset, axis=3))
    return KVCache(k, v, jax.lax.dynamic_update_slice_in_dim(cache.valid_BS, own.valid_BS, offset, axis=1))


def grow_cache(cache: KVCache, slots: int) -> KVCache:
    """Appends empty slots."""
    k, v = (_pin(jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, slots), (0, 0)))) for x in (cache.k, cache.v))
    return KVCache(k, v, jnp.pad(cache.valid_BS, ((0, 0), (0, slots))))


def prefill(model: Qwen2_5_VL, ids, valid, images: Images, group: int, slots: int):
    """Encodes the overviews of N prompts, runs each prompt once and broadcasts its cache to its G samples.

    Args:
        ids, valid: prompt slots [N, prompt_len].
        slots: empty ones to append to the cache.

    Returns:
        visual tokens [N, M, D]; of each sample [N x G]: the state that predicts its first token, its cache, and that
        token's position.
    """
    features = model.encode_views(images.pixels, images.layout)
    hidden, cache, next_N = model.segment(ids, valid, features, images.grids)
    hidden = repeat_rows(last_valid(hidden, valid), group)
    return features, hidden, grow_cache(repeat_cache(cache, group), slots), repeat_rows(next_N, group)


def append_crops(model: Qwen2_5_VL, cache: KVCache, ids, valid, images: Images, start_B, offset: int, slots: int):
    """Encodes crops and appends them to their rows' caches, at `offset`, with `slots` empty slots after them.

    Args:
        ids, valid: crop slots [B, crop_len]; rows without a crop have no valid token.
        start_B: position of the crop's first token.

    Returns:
        visual tokens [B, M, D], the state that predicts the next token, the cache, and that token's position.
    """
    features = model.encode_views(images.pixels, images.layout)
    hidden, own, next_B = model.segment(ids, valid, features, images.grids, start_B, cache)
    cache = _write(grow_cache(cache, ids.shape[1] + slots), own, offset)
    return features, last_valid(hidden, valid), cache, next_B


def decode(
    model: Qwen2_5_VL,
    cache: KVCache,
    offset: int,
    length: int,
    hidden_BD,
    start_B,
    active_B,
    keys_B,
    temperature,
    rows: RowBuilder,
    filters: SamplingConfig = SamplingConfig(),
    seen_BV=None,
):
    """Samples up to `length` tokens a row into the cache's slots from `offset` on; stops when every row has.

    Args:
        hidden_BD: the state that predicts the first token.
        start_B: its position.
        active_B: rows that write at all.
        keys_B, temperature, filters: of sampling (see `sample`).
        seen_BV: the tokens that each row holds, where the repetition penalty asks for them.

    Returns:
        cache, ids [B, length], log-probabilities [B, length], written [B, length] (stop tokens included), next_B, and
        seen_BV with what was added to the cache.
    """
    batch = hidden_BD.shape[0]
    stop_ids = jnp.array(rows.stop_ids)

    def write_token(step, state, hidden_BD):
        ids, logps, written, alive_B, position_B, seen_BV = state
        step_keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, step)
        logits_BV = model.decoder.logits(hidden_BD)
        token_B, logp_B = sample(logits_BV, step_keys_B, temperature, rows.banned_ids, filters, seen_BV)
        ids = ids.at[:, step].set(jnp.where(alive_B, token_B, rows.pad_id))
        logps = logps.at[:, step].set(jnp.where(alive_B, logp_B, 0.0))
        written = written.at[:, step].set(alive_B)
        alive_B = alive_B & ~jnp.isin(token_B, stop_ids)
        return ids, logps, written, alive_B, position_B, mark_seen(seen_BV, token_B[:, None], alive_B[:, None])

    def body(loop):
        step, state, cache = loop
        ids, _, _, alive_B, position_B, seen_BV = state
        previous_B1 = jax.lax.dynamic_slice_in_dim(ids, step - 1, 1, axis=1)
        hidden, own, next_B = model.segment(previous_B1, alive_B[:, None], start_B=position_B, past=cache)
        cache = _write(cache, own, offset + step - 1)
        state = (*state[:4], next_B, seen_BV)
        return step + 1, write_token(step, state, hidden[:, 0]), cache

    def going(loop):
        step, state, _ = loop
        return (step < length) & state[3].any()

    empty = jnp.full((batch, length), rows.pad_id, jnp.int32)
    state = (empty, jnp.zeros((batch, length)), jnp.zeros((batch, length), bool), active_B, start_B, seen_BV)
    state = write_token(0, state, hidden_BD)
    _, state, cache = jax.lax.while_loop(going, body, (1, state, cache))
    ids, logps, written, alive_B, position_B, seen_BV = state
    # A row that filled its slot has its last token still outside the cache; for all others this adds nothing valid.
    _, own, next_B = model.segment(ids[:, length - 1 :], alive_B[:, None], start_B=position_B, past=cache)
    ids, logps, written = (constrain(x, "batch", None) for x in (ids, logps, written))
    return _write(cache, own, offset + length - 1), ids, logps, written, next_B, seen_BV


class RolloutEngine:
    """Plays episodes with one compiled program for each stage and batch shape."""

    def __init__(self, model: Qwen2_5_VL, rows: RowBuilder, mesh: Mesh | None = None, gather: bool = False):
        """Takes the model's structure; parameters come with each call.

        Args:
            mesh: where rows go, as in context at the calls; the default device without one. Of several processes each
                plays its own questions, all at the same time.
            gather: see `MeshConfig`.
        """
        self.rows, self._mesh, self._gather = rows, mesh, gather
        self._vision, self._dtype = model.config.vision, model.compute.dtype
        self._graph = nnx.graphdef(model)
        options = model.compute.compiler_options
        self._look = jax.jit(self._look_step, static_argnames=("group", "filters"), compiler_options=options)
        self._zoom = jax.jit(self._zoom_step, static_argnames="filters", compiler_options=options)
        self._readers = ThreadPoolExecutor(8, thread_name_prefix="crop-reader")

    def _sampler(self, params) -> Qwen2_5_VL:
        """The model in the compute type, ahead of the loops over tokens."""
        return nnx.merge(self._graph, cast_kernels(params, self._dtype, self._gather))

    def _look_step(self, params, ids, valid, images: Images, keys, temperature, group: int, filters: SamplingConfig):
        model, episode = self._sampler(params), self.rows.episode
        features, hidden, cache, start = prefill(model, ids, valid, images, group, episode.stage1_len)
        active = jnp.ones(hidden.shape[:1], bool)
        seen = None
        if filters.repetition_penalty != 1:
            nothing = jnp.zeros((len(ids), model.config.text.vocab_size), bool)
            seen = repeat_rows(mark_seen(nothing, ids, valid), group)
        stage = cache, episode.prompt_len, episode.stage1_len, hidden, start, active
        return features, *decode(model, *stage, keys, temperature, self.rows, filters, seen)

    def _zoom_step(
        self, params, cache, start, seen, ids, valid, images: Images, active, keys, temperature, filters: SamplingConfig
    ):
        model, episode = self._sampler(params), self.rows.episode
        offset = episode.prompt_len + episode.stage1_len
        crop = ids, valid, images, start, offset, episode.stage2_len
        features, hidden, cache, next_B = append_crops(model, cache, *crop)
        stage = cache, offset + episode.crop_len, episode.stage2_len, hidden, next_B, active
        seen = mark_seen(seen, ids, valid)
        _, written_ids, logps, written, *_ = decode(model, *stage, keys, temperature, self.rows, filters, seen)
        return features, written_ids, logps, written

    def look(self, questions: Sequence[Question]) -> Look:
        """Makes the prompts of questions, reading overviews in threads; errors as of a call."""
        return self.send(self.rows.prompts(questions, list(self._readers.map(self.rows.overview, questions))))

    def send(self, prompts: Prompts) -> Look:
        """Sends prompts to the devices, overviews as uint8."""
        on_devices = prompts.ids, prompts.valid, device_images(prompts.views, self._vision)
        return Look(prompts, shard_batch(on_devices, self._mesh))

    def __call__(
        self,
        params,
        questions: Sequence[Question],
        key,
        *,
        sampling: SamplingConfig = SamplingConfig(),
        group: int = 1,
        seeds: Sequence[int] | None = None,
        mask_crop: bool = False,
        look: Look | None = None,
    ) -> Trajectories:
        """Plays `group` episodes of each question.

        Args:
            params: the model's state.
            key: random key; unused draws at temperature 0, which is greedy.
            sampling: each setting but the temperature has programs of its own.
            seeds: of each episode [N x G], not negative; what it draws follows from the key and its seed alone. Without
                them 0, 1, 2, …
            mask_crop: show grey instead of the crop's pixels, to measure what the crop is worth.
            look: what the questions show first, where it is ready; else it is made here.

        Raises:
            UserError: a question that doesn't fit the prompt slot, or an image that can't be read. What the model writes
                never raises.
        """
        rows = self.rows
        look = look or self.look(questions)
        prompts, overviews = look.prompts, rows.pictures(look.prompts.views)
        if seeds is None:
            first = batch_stretch(self._mesh)[0] * len(questions) * group
            seeds = range(first, first + len(questions) * group)
        look_keys, zoom_keys = row_keys(key, shard_batch(np.array(seeds, np.uint32), self._mesh))
        temperature, filters = sampling.temperature, sampling.filters
        overview_features, cache, ids1, logps1, written1, start, seen = self._look(
            params, *look.on_devices, look_keys, temperature, group=group, filters=filters
        )
        ids1, logps1, written1 = local_rows((ids1, logps1, written1))
        stage1 = _tokens(ids1, written1)
        asked = [q for q in questions for _ in range(group)]
        views = [rows.view_frame(view) for view in overviews for _ in range(group)]
        episodes = [self._looked(q, view, ids) for q, view, ids in zip(asked, views, stage1, strict=True)]

        windows = [e.window for e in episodes]
        crops = list(self._readers.map(lambda q, w: None if w is None else rows.crop(q.image, w), asked, windows))
        if mask_crop:
            crops = [None if crop is None else np.full_like(crop, MASK_LEVEL) for crop in crops]
        crop_views = rows.views(crops)
        crop_ids, crop_valid = rows.crop_slots(crop_views.grids)
        zooms = np.array([window is not None for window in windows])
        crop = shard_batch((crop_ids, crop_valid, device_images(crop_views, self._vision), zooms), self._mesh)
        crop_features, *written = self._zoom(params, cache, start, seen, *crop, zoom_keys, temperature, filters=filters)
        ids2, logps2, written2 = local_rows(written)
        stage2 = _tokens(ids2, written2)
        return Trajectories(
            prompts=prompts,
            replies=rows.replies(stage1, stage2, crop_views),
            logprobs=np.concatenate([logps1, logps2], axis=1),
            overview_features=overview_features,
            crop_features=crop_features,
            episodes=[self._zoomed(e, ids) for e, ids in zip(episodes, stage2, strict=True)],
            overviews=overviews,
            crops=crops,
        )

    def _looked(self, question: Question, view: Frame, ids: list[int]) -> Episode:
        """The episode after its first stage; a window is set where it goes on."""
        text = self.rows.decode(ids)
        parsed = parse_box(text, view)
        zooms = parsed.box is not None and wants_crop(text)
        window = self.rows.window(parsed.box, question.image.frame) if zooms else None
        return Episode(text, None, parsed.box, parsed.reason, window, parse_answer(text), not self._stopped(ids))

    def _zoomed(self, episode: Episode, ids: list[int]) -> Episode:
        """The whole episode; as it was where there was no second stage."""
        if episode.window is None:
            return episode
        text = self.rows.decode(ids)
        truncated = episode.truncated or not self._stopped(ids)
        return dataclasses.replace(episode, stage2=text, answer=parse_answer(text), truncated=truncated)

    def _stopped(self, ids: list[int]) -> bool:
        return bool(ids) and ids[-1] in self.rows.stop_ids


def _tokens(ids, written) -> list[list[int]]:
    """The ids that each row wrote."""
    return [row[mask].tolist() for row, mask in zip(ids, written, strict=True)]
