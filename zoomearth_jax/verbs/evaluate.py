"""`zoomearth evaluate`: accuracy per level, box IoU and zoom rate, with the crop shown and masked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import tyro
from flax import nnx
from jax.sharding import Mesh

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.episode import LayoutConfig
from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.configs.mesh import MeshConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.questions.mixture import open_sources
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.errors import UserError
from zoomearth_jax.evaluation.play import Guarded, fault_of, play_batches
from zoomearth_jax.evaluation.summary import summarize
from zoomearth_jax.files import check_writable
from zoomearth_jax.rl.episode import Episode
from zoomearth_jax.rl.records import sample_record
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.runs.models import load_model
from zoomearth_jax.runs.start import on_mesh
from zoomearth_jax.terminal.progress import say
from zoomearth_jax.tools.zoom import Masked

SCENE_QUESTIONS = 1024  # procedural ones, where nobody says how many


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Settings of an evaluation.

    Attributes:
        model: `nano-grpo`, a model directory, a run, or ORG/NAME of the Hugging Face hub.
        data: `scenes`, folders with questions.jsonl and images, or several of them.
        images: how image files become 8-bit RGB (bands, stretch, limit).
        questions: at most how many of each folder's, or how many procedural ones; left out, all of a folder's, and 1,024.
        global_share: share of procedural questions that need no crop.
        sampling: how tokens are drawn.
        compute: number types and backends.
        mesh: how the devices of one process share the work.
        layout: slots and views other than the model's own, such as `--layout.prompt-len 640` for long questions.
        match: when an answer is correct: `exact`, up to case, outer blanks and a final dot; `wordnet`, the paper's, also where a
            word's path similarity is 0.8 or more; `typed`, so for words only, not for numbers, yes and no.
        masked: evaluate a second time with grey crops.
        batch_size: questions played at once.
        seed: random seed of the procedural questions and of sampling.
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


class _Samples:
    """The file of samples: one line per question, on the disk as soon as its batch is done.

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
        """Names the broken images of a batch that has been played."""
        for fault in filter(None, map(fault_of, questions)):
            self._named.setdefault(fault, False)
        if any(self._named.values()) or not all(map(fault_of, questions)):
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
    scenes: dict[str, Any] = {
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
    rows = rows.widened(questions) if config.layout.prompt_len is None else rows
    rows.check_prompts(questions)
    engine, params = RolloutEngine(model, rows, mesh, config.mesh.gather), nnx.state(model, nnx.Param)
    tools = {"shown": engine.tool} | ({"masked": Masked(engine.tool)} if config.masked else {})
    how: dict[str, Any] = {"sampling": config.sampling, "batch_size": config.batch_size}
    played: dict[str, list[Episode | None]] = {}
    faults = _Faults()
    for name, tool in tools.items():
        episodes = played[name] = []
        for batch in play_batches(engine, params, questions, jax.random.key(config.seed), tool=tool, **how):
            asked = questions[len(episodes) : len(episodes) + len(batch)]
            faults.see(asked)
            if name == "shown":
                pairs = [(q, e) for q, e in zip(asked, batch, strict=True) if e and not fault_of(q)]
                samples.write([sample_record(q, e, match=config.match) for q, e in pairs])
            episodes += batch
    read = [i for i, question in enumerate(questions) if not fault_of(question)]
    if not read:
        raise UserError(
            f"none of the {len(questions):,} questions has an image that can be read; {fault_of(questions[0])}"
        )
    counts = {"of": total, "unreadable": len(questions) - len(read)}
    asked = [questions[i] for i in read]
    return {
        name: {"questions": len(read)}
        | counts
        | summarize(asked, [one for i in read if (one := e[i])], rows.episode, config.match)
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
