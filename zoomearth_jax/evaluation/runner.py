"""Plays a benchmark's questions with one model, and makes a record of each: in batches, in one or several processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.errors import UserError
from zoomearth_jax.evaluation.baselines import CROPS
from zoomearth_jax.evaluation.play import Batch, Guarded, fault_of, play_batches
from zoomearth_jax.evaluation.record_store import RecordStore
from zoomearth_jax.evaluation.records import Item, Record, record_of, unread
from zoomearth_jax.models.sharding import process_share
from zoomearth_jax.reports.thumbnails import Thumbnails
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.terminal.progress import say

THUMBNAILS = "thumbnails*.jsonl"  # of the way of showing crops that the page is about


@dataclasses.dataclass(frozen=True)
class Runner:
    """What is played, and how.

    Attributes:
        engine, params: the policy.
        benchmark: its name.
        items: all questions of the benchmark, in the order of its file.
        chosen: the places of those that are to be played.
        sampling: how tokens are drawn.
        seed: random seed; what is drawn for a question follows from it and the question's place.
        batch_size: questions that each process plays at once.
        label: text before the progress; by default it says how crops are shown.
    """

    engine: RolloutEngine
    params: Any
    benchmark: str
    items: Sequence[Item]
    chosen: Sequence[int]
    sampling: SamplingConfig = SamplingConfig()
    seed: int = 0
    batch_size: int = 256
    label: str = ""

    def run(self, crops: str, store: RecordStore, thumbnails: Path | None = None) -> list[Record]:
        """Plays what the store, which has begun, lacks of the chosen questions; all its records, by place.

        All processes must call it; each plays a share of the questions, and all as many batches. Of several, only the first
        gets the records of all.

        Args:
            crops: how crops are shown, a name in `CROPS`.
            thumbnails: folder for thumbnails of what was seen; None makes none.

        Raises:
            UserError: an image that can't be read, unless it is `Guarded`.
        """
        lacking, (share, shares) = store.lacking(self.chosen), process_share(self.engine.mesh)
        if lacking:
            own = lacking[share::shares]
            filled = own + lacking[:1] * (-(-len(lacking) // shares) - len(own))
            self._play(filled, len(own), crops, store, thumbnails)
        return store.end()

    def _play(self, places: list[int], count: int, crops: str, store: RecordStore, thumbnails: Path | None) -> None:
        """Plays questions; only the first `count` are recorded. A thread keeps a batch while the next one plays."""
        faults, pictures = _Faults(), _Pictures(thumbnails)
        batches = play_batches(
            self.engine,
            self.params,
            [self.items[place].question for place in places],
            jax.random.key(self.seed),
            sampling=self.sampling,
            tool=CROPS[crops](self.engine.tool, self.engine.rows),
            batch_size=self.batch_size,
            seeds=places,
            label=self.label or f"evaluate, crops {crops}",
        )

        def keep(batch: Batch) -> None:
            items = [self.items[places[place]] for place in batch.places if place < count]
            faults.see([item.question for item in items])
            pictures.add(items, batch)
            store.append(self._records(items, batch, store))

        with ThreadPoolExecutor(1, thread_name_prefix="keeper") as keeper:
            kept: Future | None = None
            for batch in batches:
                if kept:
                    kept.result()
                kept = keeper.submit(keep, batch)
        if kept:
            kept.result()

    def _records(self, items: Sequence[Item], batch: Batch, store: RecordStore) -> list[Record]:
        """The records of a batch's questions, which come first in it."""
        played, records = batch.trajectories, []
        tokens = played.replies.target.sum(axis=1)
        image_id = self.engine.rows.image_id
        overviews, pictures = ((ids == image_id).sum(axis=1) for ids in (played.prompts.ids, played.replies.ids))
        seconds = round(batch.seconds / len(batch.places), 6)
        for row, item in enumerate(items):
            fault = fault_of(item.question)
            if fault:
                records.append(unread(self.benchmark, store.config, item, fault))
                continue
            measured: dict[str, Any] = {
                "tokens": int(tokens[row]),
                "visual_tokens": int(overviews[row] + pictures[row]),
                "seconds": seconds,
            }
            rules, episode = self.engine.rows.episode, played.episodes[row]
            records.append(record_of(self.benchmark, store.config, item, episode, rules, **measured))
        return records


def guarded(items: Sequence[Item]) -> list[Item]:
    """The items with images of which the broken ones show grey and say why."""
    return [
        dataclasses.replace(i, question=dataclasses.replace(i.question, image=Guarded(i.question.image))) for i in items
    ]


def run_summary(records: Sequence[Record]) -> dict[str, float]:
    """What a question took on average: seconds, tokens written, and visual tokens read; 0 where no image could be read."""
    read = [record for record in records if not record.fault]
    names = {
        "seconds": "seconds_per_sample",
        "tokens": "tokens_per_sample",
        "visual_tokens": "visual_tokens_per_sample",
    }
    return {name: float(np.mean([getattr(r, field) for r in read])) if read else 0.0 for field, name in names.items()}


class _Faults:
    """Names images that can't be read, each once; none as long as no other could be."""

    def __init__(self):
        self._named: dict[str, bool] = {}

    def see(self, questions: Sequence[Question]) -> None:
        """Names the broken images of a batch that has been played."""
        for fault in filter(None, map(fault_of, questions)):
            self._named.setdefault(fault, False)
        if any(self._named.values()) or not all(map(fault_of, questions)):
            for fault in [fault for fault, said in self._named.items() if not said]:
                say(f"{fault}; its questions are left out")
                self._named[fault] = True


class _Pictures:
    """Keeps thumbnails as long as they can be written."""

    def __init__(self, folder: Path | None):
        several = jax.process_count() > 1
        name = THUMBNAILS.replace("*", f".part{jax.process_index()}" if several else "")
        self._file = None if folder is None else Thumbnails(folder / name)

    def add(self, items: Sequence[Item], batch: Batch) -> None:
        """Adds the pictures of a batch's questions, which come first in it."""
        played = batch.trajectories
        for item, overview, episode in zip(items, played.overviews, played.episodes, strict=False):
            try:
                if self._file is not None and not fault_of(item.question):
                    self._file.add(item.id, overview, [picture for picture in episode.pictures if picture.size])
            except UserError as error:
                say(f"{error}; questions from here on have no thumbnails")
                self._file = None
