"""`zoomearth bench refill`: GRPO with and without refills, by steps and by seconds."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from pathlib import Path

from zoomearth_jax.configs.reward import RewardSpec
from zoomearth_jax.configs.training import GRPOConfig, SFTConfig, ValidateConfig
from zoomearth_jax.errors import UserError
from zoomearth_jax.runs.metric_rows import read_metrics
from zoomearth_jax.verbs.grpo import grpo
from zoomearth_jax.verbs.sft import sft

REWARDS = {
    "default": GRPOConfig().reward,
    "answer": RewardSpec(iou_weight=0.0, region_weight=0.0, pattern_weight=0.0),  # 1 or 0 for the whole episode
}


@dataclasses.dataclass(frozen=True)
class RefillConfig:
    """GRPO at nano from a short fine-tuning, with refills and without, to an accuracy at T = 1 on held-out scenes.

    Attributes:
        rewards: which of default, whose box terms differ between almost all episodes, and answer, 1 or 0 for an episode.
        refill: rounds of further questions that a step may play.
        target: the accuracy.
        steps: steps of a run.
        prompts, group: questions of a step and episodes of each.
        every: steps between validations.
        questions: of a validation.
        seeds: runs of each kind, whose medians count.
        sft_steps: steps of the fine-tuning.
        json: print JSON.
    """

    rewards: tuple[str, ...] = tuple(REWARDS)
    refill: int = 3
    target: float = 0.65
    steps: int = 60
    prompts: int = 16
    group: int = 4
    every: int = 5
    questions: int = 256
    seeds: int = 2
    sft_steps: int = 100
    json: bool = False

    def __post_init__(self):
        if not self.rewards or set(self.rewards) - set(REWARDS):
            raise UserError(f"bench refill: rewards are some of {', '.join(REWARDS)}")
        counts = (self.refill, self.steps, self.every, self.questions, self.seeds, self.sft_steps)
        if min(counts) < 1 or not 0 < self.target < 1:
            raise UserError("bench refill: counts must be positive, target between 0 and 1")


def bench_refill(config: RefillConfig) -> list[dict]:
    """Rows `reward, refill` with medians over seeds: means over a run's steps of the share of groups that teach, groups played and
    seconds; the accuracy before and after; steps and seconds up to the target, of the runs that `reached` it.

    Seconds are those of training: without compilations and validations.
    """
    found: dict[tuple[str, int], list[dict]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(config.seeds):
            start = Path(folder) / f"sft{seed}"
            sft(SFTConfig(out=start, steps=config.sft_steps, seed=seed))
            for reward in config.rewards:
                for refill in (0, config.refill):
                    out = Path(folder) / f"{reward}{refill}_{seed}"
                    found.setdefault((reward, refill), []).append(_run(config, start, out, reward, refill, seed))
    return [{"reward": reward, "refill": refill} | _medians(runs) for (reward, refill), runs in found.items()]


def _run(config: RefillConfig, start: Path, out: Path, reward: str, refill: int, seed: int) -> dict:
    """What came of one run."""
    grpo(
        GRPOConfig(
            model=str(start),
            out=out,
            steps=config.steps,
            prompts=config.prompts,
            group=config.group,
            refill=refill,
            reward=REWARDS[reward],
            validate_every=config.every,
            validate=ValidateConfig(limit=config.questions, temperature=1.0),
            checkpoint_every=config.steps,
            panel_every=0,
            seed=seed,
        )
    )
    return figures(read_metrics(out / "metrics.jsonl"), config.target)


def figures(rows: list[dict], target: float) -> dict:
    """The figures of a run by its metrics, the row of step 0 first; None for what it didn't come to."""
    first, *steps = rows
    seconds = [row["perf/seconds"] - row["perf/compile_s"] - row.get("perf/validation_s", 0.0) for row in steps]
    accuracy = {row["step"]: row["validation/accuracy"] for row in rows if "validation/accuracy" in row}
    reached = next((step for step, value in accuracy.items() if value >= target), None)
    return {
        "teaching_groups": statistics.mean(row["teaching_groups"] for row in steps),
        "played_groups": statistics.mean(row["played_groups"] for row in steps),
        "step_s": statistics.mean(seconds),
        "accuracy_before": first["validation/accuracy"],
        "accuracy": accuracy[max(accuracy)],
        "steps_to_target": reached,
        "seconds_to_target": None if reached is None else sum(seconds[:reached]),
    }


def _medians(runs: list[dict]) -> dict:
    known = {name: [run[name] for run in runs if run[name] is not None] for name in runs[0]}
    medians = {name: statistics.median(values) if values else None for name, values in known.items()}
    return medians | {"reached": f"{len(known['steps_to_target'])} of {len(runs)}"}
