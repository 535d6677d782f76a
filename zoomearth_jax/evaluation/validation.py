"""Validation: what the policy in training does on questions that it doesn't train on."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.configs.training import TrainingConfig
from zoomearth_jax.data_pipeline.questions.mixture import SceneQuestions, open_sources
from zoomearth_jax.data_pipeline.questions.question import LEVELS, Question
from zoomearth_jax.errors import UserError
from zoomearth_jax.evaluation.play import Guarded, fault_of
from zoomearth_jax.models.sharding import process_share
from zoomearth_jax.rl.episode import Episode
from zoomearth_jax.rl.records import are_correct, ious
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.runs.start import check_source, look_ahead, of_all_processes
from zoomearth_jax.terminal.progress import say

SHOWN = ("accuracy", "apo_iou", "zoom_rate")  # in the line about a validation


class Validation:
    """The validation of a training run. What it draws follows from its own seed, so the run trains as it would without."""

    def __init__(self, config: TrainingConfig, engine: RolloutEngine, mesh: Mesh, batch_size: int):
        """Opens the questions of the settings `validate`, where `validate_every` asks for any.

        Args:
            engine: plays the policy that trains.
            batch_size: questions played at once, over all devices, where the settings leave it open.

        Raises:
            UserError: questions that can't be read or don't fit their slot, or a batch that doesn't divide over the devices.
        """
        self._config, self._engine = config.validate, engine
        self._every, self._steps = config.validate_every, config.steps
        self._questions = _open_questions(config, engine) if self._every else []
        self._share, self._said = process_share(mesh), set[str]()
        self._batch_size = config.validate.batch_size or batch_size
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        if self._batch_size % shards:
            config.refuse(f"validate.batch_size {self._batch_size} doesn't divide over {shards} devices (data x fsdp)")

    def due(self, step: int) -> bool:
        """Whether to validate after so many steps."""
        return self._every > 0 and (step % self._every == 0 or step == self._steps)

    def before_training(self, params, start: int) -> dict[str, float]:
        """The metrics of step 0, where the settings ask for them; empty for a run that goes on after `start` steps."""
        return self(params, 0) if self._every and self._config.before_training and not start else {}

    def __call__(self, params, step: int) -> dict[str, float]:
        """Plays all questions; all processes must call it at the same time.

        Args:
            params: all parameters of the policy.
            step: steps done, for the line that tells the outcome.

        Returns:
            metrics, named `validation/…` (docs/metrics.md).

        Raises:
            UserError: no image can be read.
        """
        began, weights, rows = time.perf_counter(), self._engine.weights(params), []
        places = self._own_places()
        batches = [[self._questions[place] for place in batch] for batch in places]
        looks = look_ahead(iter(batches), self._engine.look)
        for batch, asked, look in zip(places, batches, looks, strict=True):
            played = self._engine(
                weights,
                asked,
                jax.random.key(self._config.seed),
                sampling=SamplingConfig(self._config.temperature),
                seeds=batch.tolist(),
                look=look,
            )
            rows.append(self._judge(batch, asked, played.episodes))
        self._name_faults()
        table = of_all_processes({name: np.concatenate([one[name] for one in rows]) for name in rows[0]})
        metrics = self._summarize(table)
        if jax.process_index() == 0:
            self._tell(step, metrics, time.perf_counter() - began)
        return metrics

    def _tell(self, step: int, metrics: Mapping[str, float], seconds: float) -> None:
        figures = {name: metrics.get(f"validation/{name}") for name in SHOWN}
        shown = [f"{name} {value:.3f}" for name, value in figures.items() if value is not None]
        count = f"{metrics['validation/questions']:,} questions in {seconds:.0f} s"
        say(f"step {step}: validation: {', '.join(shown)} ({count})")

    def _own_places(self) -> list[np.ndarray]:
        """This process's stretch of each batch, as places among all questions; the last batch is filled up with the first ones."""
        which, of = self._share
        count = -(-len(self._questions) // self._batch_size) * self._batch_size
        places = (np.arange(count) % len(self._questions)).reshape(-1, of, self._batch_size // of)
        return list(places[:, which])

    def _judge(
        self, places: np.ndarray, asked: Sequence[Question], episodes: Sequence[Episode]
    ) -> dict[str, np.ndarray]:
        """Each question's figures, of which NaN stands for none."""
        iou = ious(asked, [episode.box if episode.zoomed else None for episode in episodes])
        return {
            "place": places,
            "read": np.array([not fault_of(question) for question in asked]),
            "accuracy": are_correct(asked, episodes, self._config.match).astype(np.float32),
            "apo_iou": np.where([question.box is not None for question in asked], iou, np.nan).astype(np.float32),
            "zoom_rate": np.array([episode.zoomed for episode in episodes], np.float32),
            "no_answer": np.array([episode.answer is None for episode in episodes], np.float32),
            "truncated": np.array([episode.truncated for episode in episodes], np.float32),
        }

    def _summarize(self, table: dict[str, np.ndarray]) -> dict[str, float]:
        """Means over the questions of all processes, each once, whose images could be read."""
        places, first = np.unique(table["place"], return_index=True)
        read = table["read"][first]
        if not read.any():
            raise UserError(
                f"validate: none of the {len(places):,} questions has an image that can be read; {min(self._said)}"
            )
        rows = first[read]
        asked = [self._questions[place] for place in places[read]]
        metrics: dict[str, float] = {"validation/questions": len(asked)}
        for name in ("accuracy", "apo_iou", "zoom_rate", "no_answer", "truncated"):
            values = table[name][rows]
            if not np.isnan(values).all():
                metrics[f"validation/{name}"] = float(np.nanmean(values, dtype=np.float64))
        correct = table["accuracy"][rows]
        groups = [(f"accuracy_by_level/{level}", [q.level == level for q in asked]) for level in LEVELS]
        kinds = [_short(question.category) for question in asked]
        groups += [(f"accuracy/{kind}", [kind == one for one in kinds]) for kind in sorted({*kinds} - {""})]
        for name, members in groups:
            if any(members):
                metrics[f"validation/{name}"] = float(correct[members].mean(dtype=np.float64))
        return metrics

    def _name_faults(self) -> None:
        """Names the images that can't be read, each once."""
        for fault in sorted({*map(fault_of, self._questions)} - {""} - self._said):
            self._said.add(fault)
            say(f"{fault}; its questions are left out of the validation")


def _open_questions(config: TrainingConfig, engine: RolloutEngine) -> list[Question]:
    wanted, chosen = config.validate, []
    for source in open_sources(
        wanted.data,
        "test",
        seed=wanted.seed,
        global_share=wanted.global_share,
        questions=wanted.limit,
        images=config.images,
        strict=config.strict,
        looks=engine.rows.layout.num_pictures,
    ):
        if not isinstance(source.questions, SceneQuestions):
            check_source(engine.rows.check_prompts, source)
        count = min(wanted.limit, len(source.questions))
        chosen += [source.questions[place * len(source.questions) // count] for place in range(count)]
    if not chosen:
        config.refuse(f"validate.data {', '.join(wanted.data)} has no questions")
    if config.strict:
        return chosen
    return [dataclasses.replace(question, image=Guarded(question.image)) for question in chosen]


def _short(kind: str) -> str:
    """A kind of question as part of a metric's name: lower case, with underscores for all that is no letter or digit."""
    return re.sub(r"\W+", "_", kind.lower()).strip("_")
