"""The one engine that plays episodes: look at the overview, name a box, see the crop, answer.

`ask`, `evaluate` and GRPO all run it. The prompt is prefilled once a group and its cache broadcast to the samples; stages
are decoded some tokens a call; crops are read on the host as rows end their first stage, encoded in one batch and appended
to the same caches. Ids that were sampled are the ids that are returned and trained on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from zoomearth_jax.configs.rollout import RolloutConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.boxes import Box, Frame
from zoomearth_jax.data_pipeline.protocol import parse_answer, parse_box, wants_crop
from zoomearth_jax.data_pipeline.questions import Question
from zoomearth_jax.data_pipeline.rows import Prompts, Replies, RowBuilder
from zoomearth_jax.models.qwen2_5_vl import Qwen2_5_VL
from zoomearth_jax.models.sharding import batch_stretch, cast_kernels, constrain, local_rows, row_shards, shard_batch
from zoomearth_jax.rl.decoding import Sampler, Stage, append_crops, close, narrow, prefill, reread, widen
from zoomearth_jax.rl.policy import Images, device_images, repeat_rows
from zoomearth_jax.rl.sampling import mark_seen, row_keys

MASK_LEVEL = 128  # grey of a masked crop
LEAST_ROWS = 8  # of a device: fewer don't decode faster


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


class _Looked:
    """What a batch's rows did in their first stage. Crops are read in threads from the moment that a row ends it."""

    def __init__(self, engine: RolloutEngine, asked: Sequence[Question], views: Sequence[Frame], config: RolloutConfig):
        """Of B rows of this process, each with its question and the frame of its overview."""
        self._engine, self._asked, self._views, self._config = engine, asked, views, config
        self._first = batch_stretch(engine.mesh)[0] * len(asked)
        self.episodes: list[Episode | None] = [None] * len(asked)
        self._crops: list[Future | None] = [None] * len(asked)

    def see(self, stage: Stage) -> None:
        """Takes the rows that have ended; others come again."""
        ended = local_rows((stage.row_B, stage.ids_BT, stage.written_BT, stage.alive_B))
        full = int(stage.step) == stage.ids_BT.shape[1]
        for row, ids, written, alive in zip(*ended, strict=True):
            place = row - self._first
            if self.episodes[place] is None and (full or not alive):
                self._end(place, ids[written].tolist())

    def _end(self, place: int, ids: list[int]) -> None:
        engine, question = self._engine, self._asked[place]
        text = engine.rows.decode(ids)
        parsed = parse_box(text, self._views[place])
        frame = question.image.frame
        if self._config.crop_gate == "oracle":
            zooms, asked_for = question.box is not None, parsed.box or Box(0, 0, frame.width, frame.height, frame)
        else:
            zooms, asked_for = parsed.box is not None and wants_crop(text), parsed.box
        window = engine.rows.window(asked_for, frame) if zooms else None
        truncated = not engine.stopped(ids)
        self.episodes[place] = Episode(text, None, parsed.box, parsed.reason, window, parse_answer(text), truncated)
        if window is not None:
            self._crops[place] = engine.readers.submit(engine.rows.crop, question.image, window)

    def crops(self) -> list[np.ndarray | None]:
        """What the rows see, uint8; None where a row sees none."""
        return [None if crop is None else crop.result() for crop in self._crops]


class RolloutEngine:
    """Plays episodes with a few compiled programs for each batch shape."""

    def __init__(
        self,
        model: Qwen2_5_VL,
        rows: RowBuilder,
        mesh: Mesh | None = None,
        gather: bool = False,
        config: RolloutConfig = RolloutConfig(),
    ):
        """Takes the model's structure; parameters come with each call.

        Args:
            mesh: where rows go, as in context at the calls; the default device without one. Of several processes each
                plays its own questions, all at the same time.
            gather: see `MeshConfig`.
            config: its `crop` and `batches` are the caller's to see to.
        """
        self.rows, self.mesh, self._gather, self._config = rows, mesh, gather, config
        self._vision, self._dtype = model.config.vision, model.compute.dtype
        self._graph = nnx.graphdef(model)
        options = model.compute.compiler_options
        settings = {"static_argnames": "filters", "compiler_options": options}
        self._look = jax.jit(self._look_step, **settings | {"static_argnames": ("group", "filters")})
        self._zoom = jax.jit(self._zoom_step, **settings)
        self._more = jax.jit(self._more_step, donate_argnames="cache", **settings)
        self._cast = jax.jit(self._sampler_weights)
        self._narrow = jax.jit(narrow, static_argnames="rows")
        self._widen = jax.jit(widen)
        self._warm: set = set()
        self.readers = ThreadPoolExecutor(8, thread_name_prefix="crop-reader")

    def _sampler_weights(self, params):
        return cast_kernels(params, self._dtype, self._gather)

    def weights(self, params):
        """What the programs run on: the parameters themselves, or once a rollout in the compute type and gathered, where
        that makes a difference."""
        alone = self.mesh is None or not self._gather or self.mesh.shape["fsdp"] == 1
        wide = any(x.dtype.itemsize > jnp.dtype(self._dtype).itemsize for x in jax.tree.leaves(params))
        return params if alone and not wide else self._cast(params)

    def _look_step(self, weights, ids, valid, images: Images, keys, temperature, group: int, filters: SamplingConfig):
        model, episode, sampler = (
            nnx.merge(self._graph, weights),
            self.rows.episode,
            Sampler(self.rows, temperature, filters),
        )
        features, hidden, cache, start = prefill(model, ids, valid, images, group, episode.stage1_len)
        seen = None
        if filters.repetition_penalty != 1:
            nothing = jnp.zeros((len(ids), model.config.text.vocab_size), bool)
            seen = repeat_rows(mark_seen(nothing, ids, valid), group)
        active = jnp.ones(hidden.shape[:1], bool)
        stage = sampler.begin(model, hidden, episode.prompt_len, episode.stage1_len, start, active, keys, seen)
        return features, *sampler.go_on(model, cache, stage, self._config.visit)

    def _more_step(self, weights, cache, stage: Stage, temperature, filters: SamplingConfig):
        sampler = Sampler(self.rows, temperature, filters)
        return sampler.go_on(nnx.merge(self._graph, weights), cache, stage, self._config.visit)

    def _zoom_step(
        self,
        weights,
        cache,
        looked: Stage,
        own,
        ids,
        valid,
        images: Images,
        active,
        keys,
        temperature,
        filters: SamplingConfig,
    ):
        model, episode, sampler = (
            nnx.merge(self._graph, weights),
            self.rows.episode,
            Sampler(self.rows, temperature, filters),
        )
        cache, next_B = close(model, cache, looked) if own is None else reread(model, cache, looked, *own)
        offset = episode.prompt_len + episode.stage1_len
        features, hidden, cache, next_B = append_crops(
            model, cache, ids, valid, images, next_B, offset, episode.stage2_len
        )
        seen = mark_seen(looked.seen_BV, ids, valid)
        offset += episode.crop_len
        stage = sampler.begin(model, hidden, offset, episode.stage2_len, next_B, active, keys, seen)
        return features, *sampler.go_on(model, cache, stage, self._config.visit)

    def look(self, questions: Sequence[Question]) -> Look:
        """Makes the prompts of questions, reading overviews in threads; errors as of a call."""
        return self.send(self.rows.prompts(questions, list(self.readers.map(self.rows.overview, questions))))

    def send(self, prompts: Prompts) -> Look:
        """Sends prompts to the devices, overviews as uint8."""
        on_devices = prompts.ids, prompts.valid, device_images(prompts.views, self._vision)
        return Look(prompts, shard_batch(on_devices, self.mesh))

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
            params: the model's state, or what `weights` made of it.
            key: random key; unused draws at temperature 0, which is greedy.
            sampling: each setting but the temperature has programs of its own.
            seeds: of each episode [N x G], not negative; what it draws follows from the key and its seed alone. Without
                them 0, 1, 2, …
            mask_crop: show grey instead of the crop's pixels, to measure what the crop is worth; also where the
                engine's config says so.
            look: what the questions show first, where it is ready; else it is made here.

        Raises:
            UserError: a question that doesn't fit the prompt slot, or an image that can't be read. What the model writes
                never raises.
        """
        rows = self.rows
        look = look or self.look(questions)
        prompts, overviews = look.prompts, rows.pictures(look.prompts.views)
        if seeds is None:
            first = batch_stretch(self.mesh)[0] * len(questions) * group
            seeds = range(first, first + len(questions) * group)
        look_keys, zoom_keys = row_keys(key, shard_batch(np.array(seeds, np.uint32), self.mesh))
        weights, how = self.weights(params), {"temperature": sampling.temperature, "filters": sampling.filters}
        overview_features, *stage = self._look(weights, *look.on_devices, look_keys, group=group, **how)
        asked = [q for q in questions for _ in range(group)]
        looked = _Looked(self, asked, [rows.view_frame(v) for v in overviews for _ in range(group)], self._config)
        cache, stage = self._finish(weights, *stage, how, looked.see)
        ids1, logps1, written1 = local_rows((stage.ids_BT, stage.logps_BT, stage.written_BT))
        stage1, own = self._own_ids(_tokens(ids1, written1), looked.episodes)

        crops = looked.crops()
        if mask_crop or self._config.mask_crop:
            crops = [None if crop is None else np.full_like(crop, MASK_LEVEL) for crop in crops]
        crop_views = rows.views(crops)
        zooms = np.array([crop is not None for crop in crops])
        if _anywhere(zooms.any()):
            crop = *rows.crop_slots(crop_views.grids), device_images(crop_views, self._vision), zooms
            own = None if own is None else shard_batch(own, self.mesh)
            crop = shard_batch(crop, self.mesh)
            crop_features, *stage = self._zoom(weights, cache, stage, own, *crop, zoom_keys, **how)
            _, stage = self._finish(weights, *stage, how)
            ids2, logps2, written2 = local_rows((stage.ids_BT, stage.logps_BT, stage.written_BT))
        else:
            crop_features = self._no_features(overview_features, group)
            ids2, logps2, written2 = (
                np.zeros((len(asked), rows.episode.stage2_len), t) for t in (np.int32, np.float32, bool)
            )
        stage2 = _tokens(ids2, written2)
        return Trajectories(
            prompts=prompts,
            replies=rows.replies(stage1, stage2, crop_views),
            logprobs=np.concatenate([logps1, logps2], axis=1),
            overview_features=overview_features,
            crop_features=crop_features,
            episodes=[self._zoomed(e, ids) for e, ids in zip(looked.episodes, stage2, strict=True)],
            overviews=overviews,
            crops=crops,
        )

    def _finish(self, weights, cache, stage: Stage, how: dict, see: Callable[[Stage], None] | None = None):
        """Writes a stage to its end.

        Args:
            see: called with the stage after each visit, while the devices write on; without it the stage is a last one, and
                no cache comes back.
        """
        length, outer = stage.ids_BT.shape[1], []
        cache = self._warm_up(weights, cache, stage, how, see is not None)
        while int(stage.step) < length and (alive := int(stage.most_alive)):
            fresh = stage
            while size := _half(len(stage.alive_B), alive):
                small_cache, small, places = self._narrow(cache, stage, rows=size)
                outer.append((cache, stage, places))
                cache, stage = small_cache, small
            cache, following = self._more(weights, cache, stage, **how)
            if see:
                see(fresh)
            stage = following
        if see:
            see(stage)
        for whole_cache, whole, places in reversed(outer):
            wide = (whole_cache, whole, cache) if see else (None, whole, None)
            cache, stage = self._widen(*wide, stage, places)
        return cache, stage

    def _warm_up(self, weights, cache, stage: Stage, how: dict, keep_cache: bool):
        """Compiles what later calls with these shapes may need, by a run in which no row goes on; gives the cache back."""
        shape = (stage.ids_BT.shape, how["filters"])
        if shape in self._warm or stage.ids_BT.shape[1] <= self._config.visit:
            return cache
        self._warm.add(shape)
        stage = stage._replace(alive_B=jnp.zeros_like(stage.alive_B))
        cache, stage = self._more(weights, cache, stage, **how)
        if size := _half(len(stage.alive_B), 0):
            small_cache, small, places = self._narrow(cache, stage, rows=size)
            small_cache = self._warm_up(weights, small_cache, small, how, keep_cache)
            self._widen(*((cache, stage, small_cache) if keep_cache else (None, stage, None)), small, places)
        return cache

    def _own_ids(self, stage1: list[list[int]], episodes: Sequence[Episode]):
        """The ids that go on from the first stage: those sampled; or of rows that zoom, their texts' up to an answer, and
        then ids and validity [B, stage1_len] for the cache too. The crop follows these without a stop token, as in the release."""
        if self._config.stage1_ids == "sampled":
            return stage1, None
        rows, length = self.rows, self.rows.episode.stage1_len
        stage1 = [
            ids if e.window is None else rows.encode(e.stage1.split("<answer>")[0])[:length]
            for e, ids in zip(episodes, stage1, strict=True)
        ]
        replies = rows.replies(stage1, [[]] * len(stage1), rows.views([None] * len(stage1)))
        return stage1, (replies.ids[:, :length], replies.valid[:, :length])

    def _no_features(self, overview_features, group: int):
        """Visual tokens in place of crops, of rows without any."""
        rows, tokens, width = overview_features.shape
        own = rows // batch_stretch(self.mesh)[1] * group
        return shard_batch(np.zeros((own, tokens, width), overview_features.dtype), self.mesh)

    def _zoomed(self, episode: Episode, ids: list[int]) -> Episode:
        """The whole episode; as it was where there was no second stage."""
        if episode.window is None:
            return episode
        text = self.rows.decode(ids)
        truncated = episode.truncated or not self.stopped(ids)
        return dataclasses.replace(episode, stage2=text, answer=parse_answer(text), truncated=truncated)

    def stopped(self, ids: list[int]) -> bool:
        """Whether a stage's ids end as the policy wanted, not where its slot does."""
        return bool(ids) and ids[-1] in self.rows.stop_ids


def join(parts: Sequence[Trajectories]) -> Trajectories:
    """The episodes of several batches, one after the other."""
    if len(parts) == 1:
        return parts[0]
    prompts, replies = (
        jax.tree.map(lambda *x: np.concatenate(x), *(getattr(part, name) for part in parts))
        for name in ("prompts", "replies")
    )
    overviews, crops = (
        _join_features(*(getattr(part, f"{name}_features") for part in parts)) for name in ("overview", "crop")
    )
    lists = {name: [x for part in parts for x in getattr(part, name)] for name in ("episodes", "overviews", "crops")}
    return Trajectories(prompts, replies, np.concatenate([p.logprobs for p in parts]), overviews, crops, **lists)


@jax.jit
def _join_features(*parts_IMD):
    return constrain(jnp.concatenate(parts_IMD), "batch", None, None)


def _half(rows: int, alive: int) -> int:
    """Half as many rows, if that holds the rows that go on (on the fullest device); else 0."""
    shards = row_shards(rows)
    half, odd = divmod(rows // shards, 2)
    return 0 if odd or half < max(alive, LEAST_ROWS) else half * shards


def _anywhere(here: bool) -> bool:
    """Whether it is so in any process."""
    return here if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(here)).any())


def _tokens(ids, written) -> list[list[int]]:
    """The ids that each row wrote."""
    return [row[mask].tolist() for row, mask in zip(ids, written, strict=True)]
