"""`zoomearth demo`: base -> SFT -> GRPO -> evaluation at nano scale, with a table, results.json and report.html."""

from __future__ import annotations

import dataclasses
import json
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import jax
from flax import nnx

from zoomearth_jax.configs.mesh import MeshConfig
from zoomearth_jax.configs.objective import ObjectiveConfig
from zoomearth_jax.configs.training import GRPOConfig, SFTConfig
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.errors import UserError
from zoomearth_jax.files import check_writable, write_file
from zoomearth_jax.reports.report import episode_card, run_curves, write_report
from zoomearth_jax.rl.records import sample_record
from zoomearth_jax.rl.rewards.episodes import episode_rewards
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.runs.models import load_model, save_model
from zoomearth_jax.runs.start import on_mesh
from zoomearth_jax.verbs.grpo import grpo
from zoomearth_jax.verbs.sft import sft
from zoomearth_jax.verbs.tasks import TASKS, Task, play_stage

STAGES = ("base", "sft", "grpo")


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """Settings of the demo.

    Attributes:
        out: directory for results.json, report.html and the two runs; runs in it are replaced.
        looks: what is taught: 1 look at sites, or up to 2 looks at nested scenes, where some questions need none or one.
        questions: held-out questions that need a crop.
        global_questions: held-out questions that need none.
        episodes: number of episodes in the report.
        seed: random seed of everything.
        batch_size: questions that the evaluation plays at once.
        export: write the final policy to this directory too, as an HF checkpoint in bfloat16.
    """

    out: Path = Path("runs/demo")
    looks: Literal[1, 2] = 1
    questions: int = 1024
    global_questions: int = 256
    episodes: int = 24
    seed: int = 0
    batch_size: int = 256
    export: Path | None = None

    def __post_init__(self):
        if self.questions < self.episodes or min(self.questions, self.global_questions, self.batch_size) < 1:
            raise UserError("demo: questions must be at least episodes, and all counts positive")


class _Clock:
    """Seconds by phase."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str):
        print(f"{name} …", flush=True)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)


def _episode_cards(engine, params, questions: list[Question], rows, reward) -> list[dict]:
    played = engine(params, questions, jax.random.key(0))
    rewards = episode_rewards(reward, questions, played.episodes, rows)
    return [
        episode_card(
            sample_record(question, episode),
            {name: values[i] for name, values in rewards.items()},
            played.overviews[i],
            episode.pictures,
            [(question.box, "reference"), *((box, "predicted") for box in episode.boxes)],
        )
        for i, (question, episode) in enumerate(zip(questions, played.episodes, strict=True))
    ]


def demo(config: DemoConfig) -> dict:
    """Runs it all; returns what results.json holds."""
    check_writable(config.out, directory=True)
    if config.export is not None:
        check_writable(config.export, directory=True)
    clock, task = _Clock(), TASKS[config.looks]
    runs = {stage: config.out / stage for stage in ("sft", "grpo")}
    sft_config = SFTConfig(model=task.base, out=runs["sft"], seed=config.seed, overwrite=True, **task.sft)
    no_kl = ObjectiveConfig(kl_weight=0.0)
    grpo_config = GRPOConfig(
        model=str(runs["sft"]), out=runs["grpo"], seed=config.seed, overwrite=True, objective=no_kl, **task.grpo
    )
    local = task.questions("test", config.seed, 0, config.questions, global_share=0.0)
    whole = task.questions("test", config.seed, config.questions, config.global_questions, global_share=1.0)
    models: dict[str, str | Path] = {"base": task.base, "sft": runs["sft"], "grpo": runs["grpo"]}
    results: dict = {"seconds": clock.seconds}

    def save():
        write_file(config.out / "results.json", json.dumps(results, indent=2) + "\n")

    with on_mesh(MeshConfig(), task.base, processes=False) as mesh:
        with clock.phase("sft"):
            sft(sft_config)
        with clock.phase("grpo"):
            grpo(grpo_config)
        base, rows = load_model(models["base"], mesh=mesh)
        engine = RolloutEngine(base, rows, mesh)
        with clock.phase("evaluation"):
            for stage in STAGES:
                model = load_model(models[stage], mesh=mesh).model
                params = nnx.state(model, nnx.Param)
                how = {"seed": config.seed, "batch_size": config.batch_size}
                played = play_stage(engine, params, local, whole, engine.tool, **how)
                results[stage] = task.scores(local, whole, played, rows.episode) | {"questions": len(local)}
        save()
        if config.export is not None:
            save_model(config.export, model, rows, "bfloat16")
        with clock.phase("report"):
            shown = local[: config.episodes * 3 // 4] + whole[: config.episodes - config.episodes * 3 // 4]
            cards = _episode_cards(engine, params, shown, rows, grpo_config.reward)
            _write(config, results, cards, runs)
    clock.seconds["total"] = round(sum(clock.seconds.values()), 1)
    save()
    print(_table(results, task))
    print(f"report: {config.out / 'report.html'}")
    return results


def _write(config: DemoConfig, results: dict, cards: list[dict], runs: dict[str, Path]) -> None:
    task = TASKS[config.looks]
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in results["seconds"].items())
    write_report(
        config.out / "report.html",
        title=task.title,
        summary=f"{config.questions} held-out questions that need a crop, {config.global_questions} that need none, "
        f"seed {config.seed}. Time: {seconds}.",
        note=task.note,
        columns=STAGES,
        table=[(label, [f"{results[stage][key]:.3f}" for stage in STAGES]) for key, label in task.rows.items()],
        curves=run_curves(runs),
        episodes=cards,
    )


def _table(results: dict, task: Task) -> str:
    lines = [f"\n{'':28}" + "".join(f"{stage:>9}" for stage in STAGES)]
    lines += [
        f"{label:28}" + "".join(f"{results[stage][key]:9.3f}" for stage in STAGES) for key, label in task.rows.items()
    ]
    seconds = results["seconds"]
    lines.append(f"{results['grpo']['questions']} questions that need a crop; {seconds['total']:.0f} s in all")
    return "\n".join(lines)
