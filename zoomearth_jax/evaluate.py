"""`zoomearth evaluate`: accuracy per level, box IoU and zoom rate, with the crop shown and masked."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import tyro
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.episode import EpisodeConfig
from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.configs.mesh import MeshConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.questions import LEVELS, Question
from zoomearth_jax.data_pipeline.sources import open_sources
from zoomearth_jax.errors import UserError
from zoomearth_jax.model_io import load_model
from zoomearth_jax.rl.answers import answer_scores
from zoomearth_jax.rl.rewards import box_arrays, box_iou, window_arrays
from zoomearth_jax.rl.rollout import Episode, RolloutEngine
from zoomearth_jax.runs import look_ahead, on_mesh


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Settings of an evaluation.

    Attributes:
        model: `nano-grpo`, a model directory or a run.
        data: `scenes`, folders with questions.jsonl and images, or several of them.
        images: how image files become 8-bit RGB (bands, stretch, limit).
        questions: how many procedural questions, or at most how many of each folder's.
        global_share: share of procedural questions that need no crop.
        sampling: how tokens are drawn.
        compute: number types and backends.
        mesh: how the devices of one process share the work.
        match: when an answer is correct: `exact`, up to case, outer blanks and a final dot; `wordnet`, the paper's, also where a
            word's path similarity is 0.8 or more; `typed`, so for words alone, not for numbers, yes and no.
        masked: evaluate a second time with grey crops.
        batch_size: questions played at once.
        seed: of the procedural questions and of sampling.
        samples: write one JSON object per question to this file.
        json: print the summary as JSON.
    """

    model: str = "nano-grpo"
    data: tuple[str, ...] = ("scenes",)
    images: tyro.conf.OmitArgPrefixes[ImageConfig] = ImageConfig()
    questions: int = 1024
    global_share: float = 0.15
    sampling: tyro.conf.OmitArgPrefixes[SamplingConfig] = SamplingConfig()
    compute: ComputeConfig = ComputeConfig()
    mesh: MeshConfig = MeshConfig()
    match: Literal["exact", "wordnet", "typed"] = "exact"
    masked: bool = True
    batch_size: int = 256
    seed: int = 0
    samples: Path | None = None
    json: bool = False

    def __post_init__(self):
        if self.questions < 1 or self.batch_size < 1:
            raise UserError("evaluate: questions and batch_size must be positive")


def play(
    engine: RolloutEngine,
    params,
    questions: Sequence[Question],
    key,
    *,
    sampling: SamplingConfig,
    mask_crop: bool,
    batch_size: int,
) -> list[Episode]:
    """One episode of each question, in batches of one shape; the last is filled up and cut.

    A question's place among all is its seed, so that samples don't depend on the batch size.
    """
    episodes: list[Episode] = []
    batch_size = min(batch_size, len(questions))
    starts = range(0, len(questions), batch_size)
    batches = [list(questions[start : start + batch_size]) for start in starts]
    batches[-1] += batches[-1][:1] * (batch_size - len(batches[-1]))
    looks = look_ahead(iter(batches), engine.look)
    for start in tqdm(starts, desc="evaluate", disable=not sys.stderr.isatty(), leave=False):
        batch, seeds = batches[start // batch_size], range(start, start + batch_size)
        played = engine(params, batch, key, sampling=sampling, seeds=seeds, mask_crop=mask_crop, look=next(looks))
        episodes += played.episodes
    return episodes[: len(questions)]


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


def evaluate(config: EvaluateConfig) -> dict:
    """Runs the evaluation and prints a table or JSON; returns the summaries, `shown` and `masked`."""
    with on_mesh(config.mesh, config.model, processes=False) as mesh:
        results = _evaluate(config, mesh)
    print(json.dumps(results, indent=2) if config.json else _table(results))
    return results


def _evaluate(config: EvaluateConfig, mesh: Mesh) -> dict:
    model, rows = load_model(config.model, config.compute, mesh)
    scenes = {"seed": config.seed, "global_share": config.global_share, "questions": config.questions}
    sources = open_sources(config.data, "test", images=config.images, **scenes)
    questions = [s.questions[i] for s in sources for i in range(min(len(s.questions), config.questions))]
    engine, params = RolloutEngine(model, rows, mesh, config.mesh.gather), nnx.state(model, nnx.Param)
    key = jax.random.key(config.seed)
    results = {}
    for name in ("shown", "masked") if config.masked else ("shown",):
        episodes = play(
            engine,
            params,
            questions,
            key,
            sampling=config.sampling,
            mask_crop=name == "masked",
            batch_size=config.batch_size,
        )
        results[name] = summarize(questions, episodes, rows.episode, config.match)
        if name == "shown" and config.samples is not None:
            config.samples.parent.mkdir(parents=True, exist_ok=True)
            with open(config.samples, "w", encoding="utf-8") as file:
                for question, episode in zip(questions, episodes, strict=True):
                    record = sample_record(question, episode, match=config.match)
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return results


def _table(results: dict) -> str:
    shown = results["shown"]
    lines = [f"{'':28}" + "".join(f"{name:>10}" for name in results)]
    for key in shown:
        if key == "accuracy_by_level":
            for level in shown[key]:
                lines.append(
                    f"{'  accuracy ' + level:28}" + "".join(f"{r[key][level]:10.3f}" for r in results.values())
                )
        elif shown[key] is not None:
            form = "10d" if key == "questions" else "10.3f"
            lines.append(f"{key:28}" + "".join(f"{r[key]:{form}}" for r in results.values()))
    return "\n".join(lines)
