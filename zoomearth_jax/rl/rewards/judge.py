"""Scores of a judge behind an address, such as a larger language model: asked in batches, kept, and done without where it fails.

What is posted: {"items": [{"question", "choices", "reference", "answer", "level", "category"}, …]}, with the spec's `judge_reads`
`turns` also "turns", the texts of the episode. What must come back: {"scores": [a number from 0 to 1, or null, …]}, one for each
item, in their order; null is "not applicable". An empty list of items is answered with an empty list of scores.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from zoomearth_jax.configs.judge import JudgeConfig
from zoomearth_jax.configs.reward import RewardSpec
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.data_pipeline.questions.records import short
from zoomearth_jax.errors import UserError
from zoomearth_jax.files import writing
from zoomearth_jax.rl.episode import Episode
from zoomearth_jax.terminal.progress import say
from zoomearth_jax.tools.http_post import Address, HttpFailure

JUDGE_NOTES = (
    "judge_failed",
    "perf/judge_cached",
)  # what `Judge.scores` tells beside the scores; metrics of these names
MAX_BYTES = 2**20  # of an answer
_WAIT_S = 0.5  # before the second try


class Judge:
    """A judge, and the scores that it has given, which are asked for once. Use as a context manager.

    It never ends a run: where it fails, an episode has no score. Methods may be called from several threads.
    """

    def __init__(self, spec: RewardSpec, config: JudgeConfig, folder: Path, process: int = 0, resume: bool = False):
        """Takes the judge that the spec names; asks nothing yet.

        Args:
            folder: where the scores are kept, as JSON lines; made by `save`.
            process: number of this process, each of which keeps a file of its own.
            resume: whether the scores that are there are used.
        """
        self._spec, self._config = spec, config
        self._address = Address(spec.judge, proxies=False)
        self._file = Path(folder) / f"scores-{process}.jsonl"
        self._known: dict[str, float | None] = _read(folder) if resume else {}
        self._unsaved: list[str] = []
        self._asked, self._failed, self._complained = 0, 0, False
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._threads = ThreadPoolExecutor(config.parallel, thread_name_prefix="judge")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Stops asking; says how many scores failed, if any."""
        self._closed.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._failed:
            say(f"judge: {self._failed:,} of {self._asked:,} scores that were asked for failed")

    def check(self) -> None:
        """Asks for no score at all.

        Raises:
            UserError: the judge doesn't answer that as it should.
        """
        try:
            self._exchange([])
        except HttpFailure as failure:
            raise UserError(f"reward.judge: {failure}; start it, or leave reward.judge out") from None

    def scores(self, questions: Sequence[Question], episodes: Sequence[Episode]) -> dict[str, np.ndarray]:
        """The scores of episodes as `judge`, float32 [B], and JUDGE_NOTES.

        Without an answer the score is 0, and nobody is asked. NaN stands where the judge says null or fails. The notes are 1 where
        it failed, and where the score was known before; NaN where nobody is asked.

        Args:
            questions: each episode's question.
        """
        items = [None if e.answer is None else self._item(q, e) for q, e in zip(questions, episodes, strict=True)]
        keys = ["" if item is None else self._key(item) for item in items]
        with self._lock:
            known = {key: self._known[key] for key in keys if key in self._known}
        wanted = {key: item for key, item in zip(keys, items, strict=True) if item is not None and key not in known}
        given = {"": 0.0} | known | self._ask(wanted)
        scores = np.array([math.nan if (score := given[key]) is None else score for key in keys], np.float32)
        nobody_asked = np.array([key == "" for key in keys])
        failed = np.isnan(scores) & [given[key] is not None for key in keys]
        notes = [
            np.where(nobody_asked, np.nan, note).astype(np.float32) for note in (failed, [key in known for key in keys])
        ]
        return {"judge": scores, **dict(zip(JUDGE_NOTES, notes, strict=True))}

    def save(self) -> None:
        """Appends the scores that are new to the folder's file.

        Raises:
            UserError: it can't be written.
        """
        with self._lock:
            lines, self._unsaved = self._unsaved, []
        if lines:
            with writing(self._file):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with open(self._file, "a", encoding="ascii") as file:
                    # a line that a crash cut short stays one of its own
                    file.write("".join(f"\n{line}" for line in lines))

    def _item(self, question: Question, episode: Episode) -> dict[str, Any]:
        item: dict[str, Any] = {
            "question": question.text,
            "choices": list(question.choices),
            "reference": question.answer,
            "answer": episode.answer,
            "level": question.level,
            "category": question.category,
        }
        return item | ({"turns": episode.texts} if self._spec.judge_reads == "turns" else {})

    def _key(self, item: Mapping[str, Any]) -> str:
        return hashlib.sha256(json.dumps([self._spec.judge, item], sort_keys=True).encode()).hexdigest()

    def _ask(self, wanted: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
        """Scores by key, NaN of those that failed; the others are kept."""
        keys, size = list(wanted), self._config.batch_size
        batches = [keys[begin : begin + size] for begin in range(0, len(keys), size)]
        answers = self._threads.map(self._tried, [[wanted[key] for key in batch] for batch in batches])
        given = dict(zip(keys, itertools.chain.from_iterable(answers), strict=True))
        good = {key: score for key, score in given.items() if score is None or not math.isnan(score)}
        with self._lock:
            self._known |= good
            self._unsaved += [json.dumps({"key": key, "score": score}) for key, score in good.items()]
            self._asked, self._failed = self._asked + len(given), self._failed + len(given) - len(good)
        return given

    def _tried(self, items: Sequence[Mapping[str, Any]]) -> list[float | None]:
        """The scores of one request, after as many tries as may be; NaN where there are none."""
        for number in range(self._config.retries + 1):
            if number and self._closed.wait(_WAIT_S * 2 ** (number - 1)):
                break
            try:
                return self._exchange(items)
            except HttpFailure as failure:
                why = str(failure)
        self._complain(why)
        return [math.nan] * len(items)

    def _exchange(self, items: Sequence[Mapping[str, Any]]) -> list[float | None]:
        answer = self._address.post(json.dumps({"items": items}).encode(), self._config.timeout_s, MAX_BYTES)
        try:
            scores = json.loads(answer)["scores"]
        except (ValueError, RecursionError, TypeError, KeyError):
            raise HttpFailure(f'{self._spec.judge} answered with no JSON object that has "scores"') from None
        if not isinstance(scores, list) or len(scores) != len(items):
            count = f"{len(scores)} scores" if isinstance(scores, list) else "something that is no list"
            raise HttpFailure(f"{self._spec.judge} answered {len(items)} items with {count}")
        wrong = [score for score in scores if score is not None and not _is_score(score)]
        if wrong:
            self._complain(f"{self._spec.judge} gave a score of {short(wrong[0])}, which is no number from 0 to 1")
        return [None if score is None else float(score) if _is_score(score) else math.nan for score in scores]

    def _complain(self, why: str) -> None:
        """Says so, the first time."""
        with self._lock:
            first, self._complained = not self._complained, True
        if first:
            say(f"judge: {why}; its episodes go without a score (metric judge_failed)")


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _read(folder: Path) -> dict[str, float | None]:
    """The scores that the processes of a run kept; lines that are none are passed over.

    Raises:
        UserError: a file can't be read.
    """
    known: dict[str, float | None] = {}
    for file in sorted(Path(folder).glob("scores-*.jsonl")):
        try:
            lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError as error:
            raise UserError(f"{file}: can't be read ({error.strerror or error})") from None
        for line in lines:
            try:
                row = json.loads(line)
                key, score = row["key"], row["score"]
            except (ValueError, RecursionError, TypeError, KeyError):
                continue
            if isinstance(key, str) and (score is None or _is_score(score)):
                known[key] = score
    return known
