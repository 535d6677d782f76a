"""The one engine that plays episodes: look at the overview, ask for a picture, see it, and so on until the answer.

`ask`, `evaluate` and GRPO all run it. The prompt is prefilled once per group, whose samples share its cache; turns are
decoded some tokens per call; tools run on the host as rows end their turn, and their pictures are encoded in one batch and
appended to the same caches. Ids that were sampled are the ids that are returned and trained on.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from zoomearth_jax.configs.rollout import RolloutConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.data_pipeline.rows.builder import Prompts, Replies, RowBuilder, interleaved
from zoomearth_jax.models.attention import KVCache, Prefix
from zoomearth_jax.models.family import Images, VisionLanguageModel
from zoomearth_jax.models.sharding import constrain, local_rows, process_share, row_shards, shard_batch
from zoomearth_jax.rl.episode import Episode, Turn, final_answer
from zoomearth_jax.rl.rollout.decoding import Writing
from zoomearth_jax.rl.rollout.programs import RolloutPrograms, Weights
from zoomearth_jax.rl.rollout.sampling import row_keys
from zoomearth_jax.tools import chosen_tool
from zoomearth_jax.tools.tool import Request, Tool, View, as_shown

LEAST_ROWS = 8  # of a device: fewer don't decode faster


class SentPrompts(NamedTuple):
    """What A questions show the policy first: the prompt slots, and on the devices their ids, validity and overviews."""

    prompts: Prompts
    on_devices: tuple[jax.Array, jax.Array, Images]


@dataclasses.dataclass(frozen=True)
class Trajectories:
    """A batch of A x G episodes with what the learner needs.

    Attributes:
        prompts: A prompt slots. replies: A x G reply slots. logprobs: of the sampled tokens, float32
            [A x G, written slots], under the distribution that the learner computes again (see `sample`).
        overview_features: visual tokens [A, M, D], on the device. picture_features: of the K - 1 pictures of each episode one
            after the other, [A x G x (K - 1), M, D]; None where K is 1.
        episodes: in the order of replies. overviews: what was seen first, uint8.
    """

    prompts: Prompts
    replies: Replies
    logprobs: np.ndarray
    overview_features: jax.Array
    picture_features: jax.Array | None
    episodes: list[Episode]
    overviews: list[np.ndarray]


class _Turns:
    """What the rows of this process have done so far. Tools run in threads from the moment that a row ends its turn."""

    def __init__(self, engine: RolloutEngine, asked: Sequence[Question], seeds: Sequence[int], tool: Tool):
        """Takes B rows, each with its question and its seed."""
        self._engine, self._asked, self._seeds, self._tool = engine, asked, seeds, tool
        self._frames = [engine.rows.box_frame(question.image.frame) for question in asked]
        self._first = process_share(engine.mesh)[0] * len(asked)
        self._done: list[list[Turn]] = [[] for _ in asked]
        self._stopped = [True] * len(asked)
        self._ended: dict[int, tuple[Turn, Future | None]] = {}
        self.active = np.ones(len(asked), bool)
        self.notes: list[list[str]] = []  # by turn, then by row: what is read after the picture

    def see(self, writing: Writing, last: bool = False) -> None:
        """Takes the rows that have ended their turn; others come again.

        Args:
            last: whether the turn is the last one that there is room for, which asks for nothing.
        """
        ended = local_rows((writing.row_B, writing.ids_BT, writing.written_BT, writing.alive_B))
        full = int(writing.step) == writing.ids_BT.shape[1]
        for row, ids, written, alive in zip(*ended, strict=True):
            place = row - self._first
            if self.active[place] and place not in self._ended and (full or not alive):
                self._end(place, ids[written].tolist(), last)

    def _end(self, place: int, ids: list[int], last: bool) -> None:
        rows, question = self._engine.rows, self._asked[place]
        text, request, picture = rows.decode(ids), None, None
        if not last:
            earlier = tuple(turn.request for turn in self._done[place] if turn.request)
            request = self._tool.request(text, View(question, self._frames[place], earlier, self._seeds[place]))
            if isinstance(request, Request) and request.wanted:
                picture = self._engine.readers.submit(self._tool.run, question.image, request)
        self._stopped[place] &= bool(ids) and ids[-1] in rows.stop_ids
        reason = request if isinstance(request, str) else request.reason if request else ""
        self._ended[place] = Turn(text, None if isinstance(request, str) else request, reason), picture

    def close(self) -> list[np.ndarray | None]:
        """Ends the turn of all rows that wrote; the pictures that they are shown, uint8, None for rows that are done."""
        pictures: list[np.ndarray | None] = [None] * len(self._asked)
        self.notes.append([""] * len(self._asked))
        for place, (turn, running) in self._ended.items():
            if running is not None:
                picture, note, outcomes = as_shown(running.result())
                pictures[place], self.notes[-1][place] = picture, note
                seen = picture if picture.size else None
                turn = dataclasses.replace(turn, picture=seen, note=note, outcomes=outcomes)
            self._done[place].append(turn)
        self._ended = {}
        self.active = np.array([picture is not None for picture in pictures])
        return pictures

    def texts(self) -> list[str]:
        """The last text of each row."""
        return [turns[-1].text for turns in self._done]

    def episodes(self) -> list[Episode]:
        """The episodes, once no row goes on."""
        return [
            Episode(
                tuple(turns), final_answer([turn.text for turn in turns], self._engine.rows.episode.gate), not stopped
            )
            for turns, stopped in zip(self._done, self._stopped, strict=True)
        ]


class RolloutEngine:
    """Plays episodes with a few compiled programs for each batch shape."""

    def __init__(
        self,
        model: VisionLanguageModel,
        rows: RowBuilder,
        mesh: Mesh | None = None,
        gather: bool = False,
        config: RolloutConfig = RolloutConfig(),
        sampler: Mesh | None = None,
    ):
        """Takes the model's structure; parameters come with each call.

        Args:
            mesh: where rows go, as in context at the calls; the default device without one. Of several processes each
                plays its own questions, all at the same time.
            gather: see `MeshConfig`.
            sampler: the same devices as tokens are written on them, see `sampler_mesh`; as the mesh without one.
            config: settings of the rollout; the caller sees to its `crop` and `batches`.

        Raises:
            UserError: nobody registered the tool that the config names.
        """
        self.rows, self.mesh, self.config = rows, mesh, config
        self.tool = chosen_tool(config, rows)
        self.programs = RolloutPrograms(model, rows.layout, rows.tokens, mesh, gather, config, sampler)
        self._sizes = model.config
        self._warm: set = set()
        self.readers = ThreadPoolExecutor(8, thread_name_prefix="tool")

    def with_rows(self, rows: RowBuilder) -> RolloutEngine:
        """The same programs with rows of the same layout, and the tool of these rows."""
        other = copy.copy(self)
        other.rows, other.tool = rows, chosen_tool(self.config, rows)
        return other

    def weights(self, params) -> Weights:
        """See `RolloutPrograms.weights`; what it made itself stays as it is."""
        return params if isinstance(params, Weights) else self.programs.weights(params)

    def look(self, questions: Sequence[Question]) -> SentPrompts:
        """Makes the prompts of questions, reading overviews in threads; errors as of a call."""
        return self.send(self.rows.prompts(questions, list(self.readers.map(self.rows.overview, questions))))

    def send(self, prompts: Prompts) -> SentPrompts:
        """Sends prompts to the devices, overviews as uint8."""
        on_devices = prompts.ids, prompts.valid, self._sizes.prepare(*prompts.views)
        return SentPrompts(prompts, shard_batch(on_devices, self.mesh))

    def __call__(
        self,
        params,
        questions: Sequence[Question],
        key,
        *,
        sampling: SamplingConfig = SamplingConfig(),
        group: int = 1,
        seeds: Sequence[int] | None = None,
        tool: Tool | None = None,
        look: SentPrompts | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> Trajectories:
        """Plays `group` episodes of each question.

        Args:
            params: the model's state, or what `weights` made of it.
            key: random key; unused draws at temperature 0, which is greedy.
            sampling: each setting but the temperature has programs of its own.
            seeds: a seed for each episode [A x G], not negative; what it draws follows from the key and its seed only. Without
                them 0, 1, 2, …
            tool: a tool in place of the engine's own.
            look: what the questions show first, where it is ready; else it is made here.
            meanwhile: called once, while the tools of the first turn run: what it sends to the devices fills the time that
                they would wait for pictures.

        Raises:
            UserError: a question that doesn't fit the prompt slot, or an image that can't be read. What the model writes
                never raises.
        """
        rows, layout = self.rows, self.rows.layout
        look = look or self.look(questions)
        prompts, overviews = look.prompts, rows.pictures(look.prompts.views)
        if seeds is None:
            first = process_share(self.mesh)[0] * len(questions) * group
            seeds = range(first, first + len(questions) * group)
        keys = row_keys(key, shard_batch(np.array(seeds, np.uint32), self.mesh), turns=layout.num_turns)
        sampling = sampling.of(rows.episode)
        weights = self.weights(params)
        how: dict[str, Any] = {"temperature": sampling.temperature, "filters": sampling.filters, "group": group}
        asked = [q for q in questions for _ in range(group)]
        turns = _Turns(self, asked, seeds, tool or self.tool)
        ids: list[list[list[int]]] = [[] for _ in asked]
        logprobs = [np.zeros((len(asked), length), np.float32) for length in layout.turn_lens]
        views, features = [], []
        overview_features, shared, ready = self.programs.read(
            weights, *look.on_devices, group=group, filters=sampling.filters
        )
        active = None
        for k, length in enumerate(layout.turn_lens):
            cache, writing = self.programs.start(weights, shared.writing, ready, active, keys[k], length=length, **how)
            cache, writing = self._finish(weights, shared.writing, cache, writing, how, turns, k)
            ids_BT, logprobs[k], written_BT = local_rows((writing.ids_BT, writing.logps_BT, writing.written_BT))
            if meanwhile and k == 0:
                meanwhile()
            pictures = turns.close()
            read, own = self._read_on(_written(ids_BT, written_BT), turns, length)
            for row, one in zip(ids, read, strict=True):
                row.append(one)
            if not anywhere(bool(turns.active.any())):
                break
            views.append(rows.views(pictures, layout.picture_side))
            picture = *rows.picture_slots(views[k].grids, turns.active, turns.notes[k]), self._sizes.prepare(*views[k])
            *picture, active = shard_batch((*picture, turns.active), self.mesh)
            own = None if own is None else shard_batch(own, self.mesh)
            ended = self.programs.end(weights, shared, cache, writing, own)
            seen, ready = self.programs.append(
                weights.reading, shared.reading, *ended, *picture, length=layout.turn_lens[k + 1]
            )
            features.append(seen)
        if unseen := layout.num_pictures - len(views):
            views += [rows.views([None] * len(asked), layout.picture_side)] * unseen
            features += [self._no_features(overview_features, group)] * unseen
        return Trajectories(
            prompts=prompts,
            replies=rows.replies(ids, interleaved(views, rows.views([], layout.picture_side)), turns.notes),
            logprobs=np.concatenate(logprobs, axis=1),
            overview_features=overview_features,
            picture_features=_interleaved(*features) if features else None,
            episodes=turns.episodes(),
            overviews=overviews,
        )

    def _finish(
        self, weights: Weights, prompts: Prefix, cache: KVCache, writing: Writing, how: dict, turns: _Turns, k: int
    ):
        """Writes turn k to its end. `turns` sees it after each visit, while the devices write on.

        After the last turn that there is room for `turns` sees it once, and no cache comes back; else one with all its slots.
        """
        length, last = writing.ids_BT.shape[1], k == self.rows.layout.num_pictures
        outer: list[tuple[KVCache, Writing, jax.Array]] = []
        cache = self._warm_up(weights, prompts, cache, writing, how, k)
        while (step := int(writing.step)) < length and (alive := int(writing.most_alive)):
            fresh = writing
            while size := self._half(len(writing.alive_B), alive):
                prompts, small_cache, small, places = self._narrow(prompts, cache, writing, size, how)
                outer.append((cache, writing, places))
                cache, writing = small_cache, small
            cache = self._grown(cache, k, self.programs.slots(length, step))
            cache, following = self.programs.go_on(weights.writing, prompts, cache, writing, **how)
            if not last:
                turns.see(fresh)
            writing = following
        if not last:
            turns.see(writing)
            cache = self._grown(cache, k, length)
        for whole_cache, whole, places in reversed(outer):
            wide = (None, whole, None) if last else (self._grown(whole_cache, k, length), whole, cache)
            cache, writing = self.programs.widen(*wide, writing, places)
        if last:
            turns.see(writing, last)
        return cache, writing

    def _narrow(self, prompts: Prefix, cache: KVCache, writing: Writing, rows: int, how: dict):
        own, *left = self.programs.narrow(prompts, cache, writing, rows=rows, group=how["group"])
        return prompts if own is None else own, *left

    def _grown(self, cache: KVCache, k: int, slots: int) -> KVCache:
        """The cache with so many slots of turn k at least, bucket by bucket, so that few programs exist."""
        turn = self.rows.layout.turn(k)
        for size in self.programs.buckets(turn.stop - turn.start):
            if size <= slots and (more := turn.start + size - cache.k.shape[3]) > 0:
                cache = self.programs.grow(cache, slots=more)
        return cache

    def _warm_up(self, weights: Weights, prompts: Prefix, cache: KVCache, writing: Writing, how: dict, k: int):
        """Compiles what later calls with these shapes may need, by runs in which no row goes on; gives the cache back."""
        length, turn = writing.ids_BT.shape[1], self.rows.layout.turn(k)
        shape = (writing.ids_BT.shape, cache.k.shape, prompts.k.shape, how["group"], how["filters"])
        if shape in self._warm or length <= self.config.visit:
            return cache
        self._warm.add(shape)
        writing = writing._replace(alive_B=jnp.zeros_like(writing.alive_B))
        cache, writing = self.programs.go_on(weights.writing, prompts, cache, writing, **how)
        slots = cache.k.shape[3] - turn.start
        if size := self._half(len(writing.alive_B), 0):
            small_prompts, small_cache, small, places = self._narrow(prompts, cache, writing, size, how)
            small_cache = self._warm_up(weights, small_prompts, small_cache, small, how, k)
            if slots == length:
                last = k == self.rows.layout.num_pictures
                self.programs.widen(*((None, writing, None) if last else (cache, writing, small_cache)), small, places)
        if larger := [size for size in self.programs.buckets(length) if size > slots]:
            self._warm_up(weights, prompts, self._grown(cache, k, larger[0]), writing, how, k)
        return cache

    def _half(self, rows: int, alive: int) -> int:
        """Half the number of rows, if that holds the rows that go on (on the fullest device); else 0."""
        shards = row_shards(rows, self.programs.sampler)
        half, odd = divmod(rows // shards, 2)
        return 0 if odd or half < max(alive, LEAST_ROWS) else half * shards

    def _read_on(self, written: list[list[int]], turns: _Turns, length: int):
        """The ids of a turn that later turns read: those written; or of rows that go on, their texts' up to an answer, and then
        ids and validity [B, T] for the cache too. The picture follows these without a stop token, as in the release."""
        if self.config.turn_ids == "sampled" and self.rows.episode.gate != "box":
            return written, None
        rows, read = self.rows, list(written)
        ids, valid = np.full((len(read), length), rows.pad_id, np.int32), np.zeros((len(read), length), bool)
        for place, text in enumerate(turns.texts()):
            if turns.active[place]:
                said = (
                    text.strip() if rows.episode.gate == "box" else text
                )  # the released evaluation's texts have no outer blanks
                read[place] = rows.encode(said.split("<answer>")[0])[:length]
            ids[place, : len(read[place])] = read[place]
            valid[place, : len(read[place])] = ~np.isin(read[place], rows.stop_ids)
        return read, (ids, valid)

    def _no_features(self, overview_features, group: int):
        """Empty visual tokens, for rows without any picture."""
        rows, _, width = overview_features.shape
        shape = rows // process_share(self.mesh)[1] * group, self.rows.layout.picture_tokens, width
        return shard_batch(np.zeros(shape, overview_features.dtype), self.mesh)


def join(parts: Sequence[Trajectories]) -> Trajectories:
    """The episodes of several batches, one after the other."""
    if len(parts) == 1:
        return parts[0]
    prompts, replies = (
        jax.tree.map(lambda *x: np.concatenate(x), *(getattr(part, name) for part in parts))
        for name in ("prompts", "replies")
    )
    overviews = _join_features(*(part.overview_features for part in parts))
    shown = [part.picture_features for part in parts if part.picture_features is not None]
    pictures = _join_features(*shown) if shown else None
    lists = [[x for part in parts for x in getattr(part, name)] for name in ("episodes", "overviews")]
    return Trajectories(prompts, replies, np.concatenate([p.logprobs for p in parts]), overviews, pictures, *lists)


@jax.jit
def _join_features(*parts_IMD):
    return constrain(jnp.concatenate(parts_IMD), "batch", None, None)


def _interleaved(*features_BMD):
    """Visual tokens of a batch's first, second, … pictures, those of a row one after the other."""
    return features_BMD[0] if len(features_BMD) == 1 else _stack_features(*features_BMD)


@jax.jit
def _stack_features(*features_BMD):
    stacked = jnp.stack(features_BMD, axis=1)
    return constrain(stacked.reshape(-1, *stacked.shape[2:]), "batch", None, None)


def anywhere(here: bool) -> bool:
    """Whether a condition holds in any process."""
    return here if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(here)).any())


def _written(ids, written) -> list[list[int]]:
    """The ids that each row wrote."""
    return [row[mask].tolist() for row, mask in zip(ids, written, strict=True)]
