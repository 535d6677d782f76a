"""Rows that read or write at the same time -> calls of the compiled programs, in their few sizes."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from zoomearth_jax.configs.generation import GeneratorConfig
from zoomearth_jax.data_pipeline.text.processor import read_image_config
from zoomearth_jax.errors import UserError
from zoomearth_jax.evaluation.asking import LoadedPolicy
from zoomearth_jax.serving.programs import Places, ServingPrograms, Stretch
from zoomearth_jax.serving.sampling import Draws

if TYPE_CHECKING:
    from zoomearth_jax.serving.generation import Job, Segment

LEAST_SLOTS, MOST_PX = 512, 1008  # of the settings that a user leaves open
KEY_WORDS = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape[-1]  # numbers that a key consists of
READ_TOGETHER = 8  # prompts of one call: more read no faster


class Batches:
    """The cache and its programs. One thread at a time may use them."""

    def __init__(self, policy: LoadedPolicy, config: GeneratorConfig):
        """Makes the cache; raises as of `Generator`.

        Attributes:
            config: with what was left open filled in.
        """
        self._rows, self._mesh, self._sizes = policy.rows, policy.mesh, policy.model.config
        layout = self._rows.layout
        self.config = config = _filled_in(config, policy)
        self._programs = ServingPrograms(policy.model, self._rows.tokens, config.visit)
        self._weights = policy.weights()
        together = tuple(size for size in config.sizes if size <= READ_TOGETHER)
        self._read_sizes = together or config.sizes[:1]
        longest_turn = max(layout.turn_lens) if self._rows.episode.gate == "box" else 0
        self._more = layout.picture_len + longest_turn
        self._lengths = config.lengths(layout.prompt_len)
        ends = {layout.prompt_len + layout.turn(k).stop for k in range(layout.num_turns)}
        self._pasts = tuple(sorted({*ends, *config.lengths(max(ends))}))
        doubled = (layout.view_side * 2**i for i in itertools.count())
        self._sides = sorted(
            {layout.view_side, layout.picture_side, *itertools.takewhile(lambda n: n < config.picture_px, doubled)}
            | {config.picture_px}
        )
        self._check_memory()
        self.reset()

    def _check_memory(self) -> None:
        """UserError where the cache can't fit the device; of CPUs nothing is known."""
        stats = jax.local_devices()[0].memory_stats() or {}
        need = self._programs.num_bytes(self.config.rows, self.config.slots) / max(1, self._mesh.size)
        limit, used = stats.get("bytes_limit", 0), stats.get("bytes_in_use", 0)
        if limit and need + used > limit:
            gb = [f"{x / 1e9:.1f}" for x in (need, used, limit)]
            raise UserError(
                f"the cache of {self.config.rows} rows with {self.config.slots:,} slots takes {gb[0]} GB of a device, beside the "
                f"{gb[1]} of {gb[2]} GB that are taken; lower rows or slots"
            )

    @property
    def num_bytes(self) -> int:
        """Bytes that the cache takes on all devices."""
        return self._programs.num_bytes(self.config.rows, self.config.slots)

    def reset(self) -> None:
        """Empties all rows, of which nothing is known any more."""
        with jax.set_mesh(self._mesh):
            self._slots = self._programs.empty(self.config.rows, self.config.slots)

    def warm_up(self) -> None:
        """Compiles all programs by running them without any row."""
        nobody: list = []
        for side in self._sides:
            for size in self._picture_sizes(side):
                self._see([np.zeros((side, side, 3), np.uint8)], side, size)
        for length in self._lengths:
            for size in self._segment_sizes(length):
                self._read(nobody, length, size, 0)
        for size in self._segment_sizes(self._more):
            self._read(nobody, self._more, size, self._pasts[0])
        for past in self._pasts:
            for size in self.config.sizes:
                self._write(nobody, size, past)

    def _picture_sizes(self, side: int) -> tuple[int, ...]:
        layout = self._rows.layout
        return self._read_sizes if side <= max(layout.view_side, layout.picture_side) else self._read_sizes[:1]

    def _segment_sizes(self, length: int) -> tuple[int, ...]:
        return self._read_sizes if length <= max(self._more, self._rows.layout.prompt_len) else self._read_sizes[:1]

    def read(self, jobs: Sequence[tuple[Job, Segment]]) -> None:
        """Lets rows read a segment each: those together that have like lengths."""
        features = self._features([segment for _, segment in jobs])
        groups = defaultdict(list)
        for (job, segment), own in zip(jobs, features, strict=True):
            past = _least(self._pasts, job.used) if job.used else 0
            lengths = sorted({self._more, *self._lengths}) if past else self._lengths
            groups[_least(lengths, len(segment.ids)), past].append((job, segment, own))
        for (length, past), group in sorted(groups.items(), key=lambda item: item[0]):
            for some, size in _cut(group, self._segment_sizes(length)):
                self._read(some, length, size, past)

    def _features(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """Visual tokens [M, D] of all pictures of each segment."""
        pictures = [(i, picture) for i, segment in enumerate(segments) for picture in segment.pictures]
        by_side = defaultdict(list)
        for number, (_, picture) in enumerate(pictures):
            by_side[_least(self._sides, max(picture.shape[:2]))].append((number, picture))
        seen: dict[int, np.ndarray] = {}
        for side, group in by_side.items():
            for some, size in _cut(group, self._picture_sizes(side)):
                seen |= zip((n for n, _ in some), self._see([picture for _, picture in some], side, size), strict=True)
        found: list[list[np.ndarray]] = [[] for _ in segments]
        for number, (i, _) in enumerate(pictures):
            found[i].append(seen[number])
        nothing = np.zeros((0, self._sizes.width), self._slots.hidden_BD.dtype)
        return [np.concatenate([nothing, *own]) for own in found]

    def _see(self, pictures: Sequence[np.ndarray], side: int, size: int) -> list[np.ndarray]:
        views = self._rows.views([*pictures, *[None] * (size - len(pictures))], side)
        with jax.set_mesh(self._mesh):
            features = np.asarray(self._programs.see(self._weights.reading, self._sizes.prepare(*views)))
        return [own[: grid.prod()] for own, grid in zip(features, views.grids, strict=True)][: len(pictures)]

    def _read(self, jobs: Sequence[tuple[Job, Segment, np.ndarray]], length: int, size: int, past: int) -> None:
        ids = np.full((size, length), self._rows.pad_id, np.int32)
        valid, again = np.zeros((size, length), bool), np.zeros(size, bool)
        features = np.zeros((size, length, self._sizes.width), self._slots.hidden_BD.dtype)
        grids = np.zeros((size, self.config.pictures, 2), np.int32)
        places = Places.none(size, self.config.rows)
        for i, (job, segment, own) in zip(self._own(size, jobs), jobs, strict=True):
            places.row_R[i], places.used_R[i], again[i] = job.row, job.used, job.again
            ids[i, : len(segment.ids)], valid[i, : len(segment.ids)] = segment.ids, True
            features[i, : len(own)] = own
            for number, picture in enumerate(segment.pictures):
                grids[i, number] = np.array(picture.shape[:2]) // self._rows.layout.merged_px
        stretch = Stretch(ids, valid, features, grids, again)
        with jax.set_mesh(self._mesh):
            self._slots = self._programs.read(self._weights.reading, self._slots, places, stretch, past=past)

    def write(self, jobs: Sequence[Job]) -> tuple[list[list[int]], list[bool]]:
        """Lets rows write a visit's tokens: the ids of each, and whether it stopped."""
        size = _least(self.config.sizes, len(jobs))
        return self._write(jobs, size, _least(self._pasts, max(job.used for job in jobs)))

    def _write(self, jobs: Sequence[Job], size: int, past: int) -> tuple[list[list[int]], list[bool]]:
        places, left = Places.none(size, self.config.rows), np.zeros(size, np.int32)
        draws = Draws.greedy(size, KEY_WORDS)
        order = self._own(size, [(job,) for job in jobs])
        for i, job in zip(order, jobs, strict=True):
            sampling = job.reply.sampling
            places.row_R[i], places.used_R[i], left[i] = job.row, job.used, job.left
            draws.keys_R[i], draws.step_R[i] = job.keys[job.turn % len(job.keys)], job.step
            draws.temperature_R[i], draws.penalty_R[i] = sampling.temperature, sampling.repetition_penalty
            draws.top_k_R[i], draws.top_p_R[i] = min(sampling.top_k, 2**31 - 1), sampling.top_p
        with jax.set_mesh(self._mesh):
            self._slots, *said = self._programs.write(
                self._weights.writing, self._slots, places, left, draws, past=past
            )
            ids, wrote, stopped = (np.asarray(x) for x in jax.device_get(said))
        return [ids[i, : wrote[i]].tolist() for i in order], [bool(stopped[i]) for i in order]

    def _own(self, size: int, jobs: Sequence[tuple]) -> list[int]:
        """Where in a batch each goes: its row's own place where the batch has all rows."""
        return [job[0].row for job in jobs] if size == self.config.rows else list(range(len(jobs)))


def _filled_in(config: GeneratorConfig, policy: LoadedPolicy) -> GeneratorConfig:
    """The settings with what was left open; UserError where no episode fits the slots."""
    layout = policy.rows.layout
    need = layout.prompt_len + layout.reply_len
    slots = config.slots or max(LEAST_SLOTS, need)
    if slots < need:
        raise UserError(
            f"generator config: {slots} slots hold no episode, which takes {need}; leave slots out for enough"
        )
    unit = layout.merged_px
    area = min(read_image_config(policy.directory).max_pixels, MOST_PX**2)
    px = config.picture_px or int(area**0.5)
    side = max(px // unit * unit, layout.view_side, layout.picture_side)
    return dataclasses.replace(config, slots=slots, picture_px=side)


def _least(sizes: Iterable[int], needed: int) -> int:
    """The smallest size that is enough."""
    return next(size for size in sizes if size >= needed)


def _cut(group: Sequence, sizes: Sequence[int]):
    """Stretches of a group, each with the smallest size that holds it."""
    for begin in range(0, len(group), sizes[-1]):
        some = group[begin : begin + sizes[-1]]
        yield some, _least(sizes, len(some))
