"""`zoomearth evaluate`: accuracy per level, box IoU and zoom rate, with the crop shown and masked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import tyro
from flax import nnx
from jax.sharding import Mesh

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.episode import EpisodeConfig, LayoutConfig
from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.configs.mesh import MeshConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.boxes import Box, Frame
from zoomearth_jax.data_pipeline.images import ImageSource
from zoomearth_jax.data_pipeline.questions import LEVELS, Question
from zoomearth_jax.data_pipeline.sources import open_sources
from zoomearth_jax.errors import UserError
from zoomearth_jax.files import check_writable
from zoomearth_jax.model_io import load_model
from zoomearth_jax.progress import say, tracked
from zoomearth_jax.rl.answers import answer_scores
from zoomearth_jax.rl.rewards import box_arrays, box_iou, window_arrays
from zoomearth_jax.rl.rollout import MASK_LEVEL, Episode, RolloutEngine
from zoomearth_jax.runs import look_ahead, on_mesh

SCENE_QUESTIONS = 1024  # procedural ones, where nobody says how many


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Settings of an evaluation.

    Attributes:
        model: `nano-grpo`, a model directory or a run.
        data: `scenes`, folders with questions.jsonl and images, or several of them.
        images: how image files become 8-bit RGB (bands, stretch, limit).
        questions: at most how many of each folder's, or how many procedural ones; left out, all of a folder's, and 1,024.
        global_share: share of procedural questions that need no crop.
        sampling: how tokens are drawn.
        compute: number types and backends.
        mesh: how the devices of one process share the work.
        layout: slots and views other than the model's own, such as `--layout.prompt-len 640` for long questions.
        match: when an answer is correct: `exact`, up to case, outer blanks and a final dot; `wordnet`, the paper's, also where a
            word's path similarity is 0.8 or more; `typed`, so for words alone, not for numbers, yes and no.
        masked: evaluate a second time with grey crops.
        batch_size: questions played at once.
        seed: of the procedural questions and of sampling.
        samples: write one JSON object per question to this file, as they are played.
        strict: stop at the first image that can't be read; otherwise it is named, and its questions are left out and counted.
        json: print the summary as JSON.
    """

    model: str = "nano-grpo"
    data: tuple[str, ...] = ("scenes",)
    images: tyro.conf.OmitArgPrefixes[ImageConfig] = ImageConfig()
    questions: int | None = None
    global_share: float = 0.15
    sampling: tyro.conf.OmitArgPrefixes[SamplingConfig] = SamplingConfig()
    compute: ComputeConfig = ComputeConfig()
    mesh: MeshConfig = MeshConfig()
    layout: LayoutConfig = LayoutConfig()
    match: Literal["exact", "wordnet", "typed"] = "exact"
    masked: bool = True
    batch_size: int = 256
    seed: int = 0
    samples: Path | None = None
    strict: bool = False
    json: bool = False

    def __post_init__(self):
        if (self.questions is not None and self.questions < 1) or self.batch_size < 1:
            raise UserError("evaluate: questions and batch_size must be positive")


class Guarded:
    """An image source that stands in for another: where that can't be read it shows grey, and `fault` says why.

    So a broken image changes neither a batch's shape nor what is sampled for the questions beside it.
    """

    def __init__(self, source: ImageSource):
        self._source, self.frame, self.fault = source, source.frame, ""

    def window(self, box: Box, size: Frame, exact: bool = False) -> np.ndarray:
        """See `ImageSource.window`."""
        try:
            return self._source.window(box, size, exact)
        except (UserError, OSError) as error:
            self.fault = str(error)
            return np.full((size.height, size.width, 3), MASK_LEVEL, np.uint8)


def _fault(question: Question) -> str:
    """Why a question's image can't be read; empty where it can, or hasn't been."""
    return getattr(question.image, "fault", "")


def play_batches(
    engine: RolloutEngine,
    params,
    questions: Sequence[Question],
    key,
    *,
    sampling: SamplingConfig,
    mask_crop: bool,
    batch_size: int,
) -> Iterator[list[Episode | None]]:
    """As `play`, a batch at a time. Where no image of a batch can be read it isn't played: None in place of its episodes."""
    batch_size = min(batch_size, len(questions))
    starts = range(0, len(questions), batch_size)
    batches = [list(questions[start : start + batch_size]) for start in starts]
    counts = [len(batch) for batch in batches]
    batches[-1] += batches[-1][:1] * (batch_size - len(batches[-1]))
    looks = look_ahead(iter(batches), engine.look)
    for start, batch, count in zip(tracked(starts, "evaluate"), batches, counts, strict=True):
        look = next(looks)
        if all(map(_fault, batch)):
            yield [None] * count
            continue
        seeds = range(start, start + batch_size)
        played = engine(params, batch, key, sampling=sampling, seeds=seeds, mask_crop=mask_crop, look=look)
        yield played.episodes[:count]


def play(engine: RolloutEngine, params, questions: Sequence[Question], key, **how) -> list[Episode]:
    """One episode of each question, in batches of one shape; the last is filled up and cut.

    A question's place among all is its seed, so that samples depend neither on the batch size nor on other questions.
    """
    return [episode for batch in play_batches(engine, params, questions, key, **how) for episode in batch]


def are_correct(questions: Sequence[Question], episodes: Sequence[Episode], match: str) -> np.ndarray:
    """bool [N]: whether each answer scores full marks by `answer_scores`."""
    return answer_scores(match, [e.answer for e in episodes], [q.answer for q in questions]) == 1


def summarize(
    questions: Sequence[Question], episodes: Sequence[Episode], layout: EpisodeConfig, match: str = "exact"
) -> dict:
    """Accuracy over all questions and per level, APO IoU, zoom rate and the rates of what went wrong.

    apo_iou is the mean IoU of raw boxes over the questions with a reference box, 0 where no valid box was named;
    apo_iou_window the same of the windows that were read, against those of the references.

    Args:
        layout: how a reference box becomes its window.
        match: when an answer is correct (see `EvaluateConfig`).
    """
    correct = are_correct(questions, episodes, match)
    levels = np.array([q.level for q in questions])
    has_box = np.array([q.box is not None for q in questions])
    iou = ious(questions, [e.box if e.zoomed else None for e in episodes])
    window_iou = _iou(*window_arrays(questions, episodes, layout))
    zoomed = np.array([e.zoomed for e in episodes])
    return {
        "questions": len(questions),
        "accuracy": float(correct.mean()),
        "accuracy_by_level": {
            level: float(correct[levels == level].mean()) for level in LEVELS if (levels == level).any()
        },
        "apo_iou": float(iou[has_box].mean()) if has_box.any() else None,
        "apo_iou_window": float(window_iou[has_box].mean()) if has_box.any() else None,
        "zoom_rate": float(zoomed.mean()),
        "zoom_rate_without_reference": float(zoomed[~has_box].mean()) if not has_box.all() else None,
        "no_answer": float(np.mean([e.answer is None for e in episodes])),
        "broken_box": float(np.mean([e.box_reason not in ("", "absent") for e in episodes])),
        "truncated": float(np.mean([e.truncated for e in episodes])),
    }


def ious(questions: Sequence[Question], boxes) -> np.ndarray:
    """IoU of each box with its question's reference; 0 where either is missing."""
    return _iou(*box_arrays(questions, boxes))


def _iou(predicted: np.ndarray, reference: np.ndarray, applies: np.ndarray) -> np.ndarray:
    return np.asarray(box_iou(predicted, reference)) * applies


def sample_record(question: Question, episode: Episode, iou: float | None = None, match: str = "exact") -> dict:
    """What is kept of one episode; its `iou` (see `ious`) is computed where it isn't known yet."""
    return {
        "question": question.text,
        "level": question.level,
        "reference": question.answer,
        "reference_box": None if question.box is None else [round(c, 1) for c in question.box.corners],
        "answer": episode.answer,
        "correct": bool(are_correct([question], [episode], match)[0]),
        "iou": float(ious([question], [episode.box if episode.zoomed else None])[0]) if iou is None else iou,
        "box": None if episode.box is None else [round(c, 1) for c in episode.box.to(question.image.frame).corners],
        "box_reason": episode.box_reason,
        "window": None if episode.window is None else list(episode.window.corners),
        "stage1": episode.stage1,
        "stage2": episode.stage2,
        "truncated": episode.truncated,
    }


class _Samples:
    """The file of samples: a line a question, on the disk as soon as its batch is done.

    Where it can't be written any more the evaluation goes on without it, and `fault` tells.
    """

    def __init__(self, path: Path | None):
        self._path, self.fault, self._count = path, "", 0

    def write(self, records: Sequence[dict]) -> None:
        """Appends records; the first ones replace what an earlier evaluation left there."""
        if self._path is None or self.fault:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "a" if self._count else "w", encoding="utf-8") as file:
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        except OSError as error:
            self.fault = f"{self._path}: {error.strerror}; it holds {self._count:,} questions, the rest is lost"
            say(self.fault)
        self._count += len(records)


class _Faults:
    """Names images that can't be read, each once; none as long as no other could be."""

    def __init__(self):
        self._named: dict[str, bool] = {}

    def see(self, questions: Sequence[Question]) -> None:
        """Of a batch that has been played."""
        for fault in filter(None, map(_fault, questions)):
            self._named.setdefault(fault, False)
        if any(self._named.values()) or not all(map(_fault, questions)):
            for fault in [fault for fault, said in self._named.items() if not said]:
                say(f"{fault}; its questions are left out")
                self._named[fault] = True


def evaluate(config: EvaluateConfig) -> dict:
    """Runs the evaluation and prints a table or JSON; returns the summaries, `shown` and `masked`.

    Raises:
        UserError: what can't be read or written. Where it was the file of samples, and only in the midst, the summary has
            been printed before.
    """
    if config.samples is not None:
        check_writable(config.samples)
    samples = _Samples(config.samples)
    with on_mesh(config.mesh, config.model, processes=False) as mesh:
        results = _evaluate(config, mesh, samples)
    print(json.dumps(results, indent=2) if config.json else _table(results))
    if samples.fault:
        raise UserError(samples.fault)
    return results


def _open_questions(config: EvaluateConfig) -> tuple[list[Question], int]:
    """What to play, and how many questions there are; procedural ones are as many as are asked for."""
    scenes = {
        "seed": config.seed,
        "global_share": config.global_share,
        "questions": config.questions or SCENE_QUESTIONS,
    }
    sources = [
        source.questions
        for source in open_sources(config.data, "test", images=config.images, strict=config.strict, **scenes)
    ]
    questions = [s[i] for s in sources for i in range(min(len(s), config.questions or len(s)))]
    if not config.strict:
        questions = [dataclasses.replace(q, image=Guarded(q.image)) for q in questions]
    return questions, sum(map(len, sources))


def _evaluate(config: EvaluateConfig, mesh: Mesh, samples: _Samples) -> dict:
    model, rows = load_model(config.model, config.compute, mesh, config.layout)
    questions, total = _open_questions(config)
    rows.check_prompts(questions)
    engine, params = RolloutEngine(model, rows, mesh, config.mesh.gather), nnx.state(model, nnx.Param)
    how = {"sampling": config.sampling, "batch_size": config.batch_size}
    played, faults = {}, _Faults()
    for name in ("shown", "masked") if config.masked else ("shown",):
        played[name] = episodes = []
        for batch in play_batches(
            engine, params, questions, jax.random.key(config.seed), mask_crop=name == "masked", **how
        ):
            asked = questions[len(episodes) : len(episodes) + len(batch)]
            faults.see(asked)
            if name == "shown":
                pairs = [(q, e) for q, e in zip(asked, batch, strict=True) if not _fault(q)]
                samples.write([sample_record(q, e, match=config.match) for q, e in pairs])
            episodes += batch
    read = [i for i, question in enumerate(questions) if not _fault(question)]
    if not read:
        raise UserError(
            f"none of the {len(questions):,} questions has an image that can be read; {_fault(questions[0])}"
        )
    counts = {"of": total, "unreadable": len(questions) - len(read)}
    asked = [questions[i] for i in read]
    return {
        name: {"questions": len(read)} | counts | summarize(asked, [e[i] for i in read], rows.episode, config.match)
        for name, e in played.items()
    }


def _table(results: dict) -> str:
    shown = results["shown"]
    width = 10 if shown["of"] == shown["questions"] else 18  # for "1,024 of 9,734"
    lines = [f"{'':28}" + "".join(f"{name:>{width}}" for name in results)]
    for key in shown:
        if key == "accuracy_by_level":
            for level in shown[key]:
                lines.append(
                    f"{'  accuracy ' + level:28}" + "".join(f"{r[key][level]:{width}.3f}" for r in results.values())
                )
        elif key == "questions":
            of = f" of {shown['of']:,}" if shown["of"] != shown[key] else ""
            lines.append(f"{key:28}" + "".join(f"{f'{r[key]:,}{of}':>{width}}" for r in results.values()))
        elif key == "unreadable":
            if shown[key]:
                lines.append(f"{key:28}" + "".join(f"{r[key]:{width},}" for r in results.values()))
        elif key != "of" and shown[key] is not None:
            lines.append(f"{key:28}" + "".join(f"{r[key]:{width}.3f}" for r in results.values()))
    return "\n".join(lines)
