"""`zoomearth ablate`: what each part of the method is worth at nano scale, over several seeds. docs/ablations.md has a run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from flax import nnx
from jax.sharding import Mesh

from zoomearth_jax.configs.episode import LayoutConfig
from zoomearth_jax.configs.io import read_yaml, to_dict
from zoomearth_jax.configs.mesh import MeshConfig
from zoomearth_jax.configs.objective import ObjectiveConfig
from zoomearth_jax.configs.reward import RewardSpec
from zoomearth_jax.configs.rollout import RolloutConfig
from zoomearth_jax.configs.training import GRPOConfig, SFTConfig
from zoomearth_jax.errors import UserError, suggestion
from zoomearth_jax.files import check_writable, write_file
from zoomearth_jax.hardware.surroundings import surroundings
from zoomearth_jax.reports.ablation_table import BASE, FIGURES, picture, report, summed_up
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.runs.models import load_model
from zoomearth_jax.runs.saved_steps import is_finished
from zoomearth_jax.runs.start import FREE_SETTINGS, on_mesh
from zoomearth_jax.terminal.progress import Progress, say
from zoomearth_jax.tools.zoom import Masked
from zoomearth_jax.verbs.grpo import grpo
from zoomearth_jax.verbs.sft import sft
from zoomearth_jax.verbs.tasks import TASKS, play_stage

SFT_ONLY = "sft-only"
_REWARD = GRPOConfig.reward
_NO_KL = ObjectiveConfig(kl_weight=0.0)

# name -> what it changes in the demo's GRPOConfig; `sft-only` is the model that all others start from but those of SFT_CHANGES
VARIANTS: dict[str, dict] = {
    BASE: {},
    "no-region": {"reward": dataclasses.replace(_REWARD, region_weight=0.0)},
    "no-iou": {"reward": dataclasses.replace(_REWARD, iou_weight=0.0)},
    "no-box": {"reward": dataclasses.replace(_REWARD, region_weight=0.0, iou_weight=0.0)},
    SFT_ONLY: {},
    "no-crop": {"rollout": RolloutConfig(mask_crop=True)},
    "ahead": {
        "rollout": RolloutConfig(ahead=True),
        "objective": dataclasses.replace(_NO_KL, importance_cap=2.0),
    },
    "int8": {
        "rollout": RolloutConfig(weights="int8"),
        "objective": dataclasses.replace(_NO_KL, importance_cap=2.0),
    },
    "cispo": {"objective": dataclasses.replace(_NO_KL, loss="cispo")},
    "sapo": {"objective": dataclasses.replace(_NO_KL, loss="sapo")},
    "distill": {"objective": dataclasses.replace(_NO_KL, distill_weight=1.0)},
    "reference": {
        # 200 px in an image of 4,500 px, LRS-GRO's usual size; the windows of 512 px hold any site, as most boxes there
        "reward": dataclasses.replace(RewardSpec.named("reference"), region_alpha=0.044, region_unit="side"),
        "objective": dataclasses.replace(_NO_KL, advantage="mean", mask="reference"),
        "rollout": RolloutConfig(crop_gate="oracle", turn_ids="retokenised", crop="reference"),
        "freeze_vision": False,
    },
    "foveated": {},
    "context": {},
}


# variants of nested scenes, whose episodes have room for two looks
NESTED_VARIANTS: dict[str, dict] = {
    BASE: {},
    "one-look": {},
    SFT_ONLY: {},
    "best-look": {"reward": dataclasses.replace(_REWARD, looks="best")},
    "containment": {"reward": dataclasses.replace(_REWARD, containment_weight=1.0)},
    "necessity": {"reward": dataclasses.replace(_REWARD, necessity_weight=0.2)},
}
# name -> what it changes in the demo's SFTConfig, for a model of its own that it starts from
SFT_CHANGES: dict[str, dict] = {
    "foveated": {"layout": LayoutConfig(view="foveated")},
    "context": {"layout": LayoutConfig(view="context")},
    "one-look": {"layout": LayoutConfig(turn_lens=(20, 12))},
}


@dataclasses.dataclass(frozen=True)
class AblateConfig:
    """GRPO without parts of the method, and the released code's behaviour, over several seeds (nano, procedural scenes).

    The same command goes on where it was interrupted, and takes further variants and seeds.

    Attributes:
        looks: the demo's task: 1 look at sites, or up to 2 looks at nested scenes.
        model: the model that fine-tuning starts from; that of the demo by default.
        out: directory for results.json, results.svg and the runs, seedN/VARIANT.
        variants: any of paper, no-region, no-iou, no-box, sft-only, no-crop, ahead, int8, cispo, sapo, distill,
            reference, foveated and context; with 2 looks any of paper, one-look, sft-only, best-look, containment and
            necessity. All by default.
        seeds: of fine-tuning and GRPO; the held-out questions are the same for all.
        sft_steps: optimizer steps of fine-tuning, once per seed; 0 for the demo's.
        steps: rollouts of GRPO; 0 for the demo's.
        prompts: questions per GRPO step.
        questions: held-out questions that need a crop; a quarter as many that need none.
        batch_size: questions that the evaluation plays at once.
        json: print JSON.
    """

    looks: Literal[1, 2] = 1
    model: str = ""
    out: Path = Path("runs/ablate")
    variants: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    sft_steps: int = 0
    steps: int = 0
    prompts: int = GRPOConfig.prompts
    questions: int = 1024
    batch_size: int = 256
    json: bool = False

    def __post_init__(self):
        for name, value in (("model", TASKS[self.looks].base), ("variants", tuple(self.known))):
            object.__setattr__(self, name, getattr(self, name) or value)
        for name in self.variants:
            if name not in self.known:
                raise UserError(f"ablate: unknown variant {name!r}; {suggestion(name, self.known)}")
        if not self.seeds or min(self.seeds) < 0:
            raise UserError("ablate: give at least one seed, and no negative ones")
        if min(self.sft_steps, self.steps) < 0 or min(self.prompts, self.batch_size) < 1 or self.questions < 4:
            raise UserError("ablate: prompts and batch_size must be positive, steps not negative, questions at least 4")

    @property
    def known(self) -> dict[str, dict]:
        """The variants of the task."""
        return NESTED_VARIANTS if self.looks == 2 else VARIANTS


def ablate(config: AblateConfig) -> dict:
    """Trains and evaluates what isn't done yet; prints a table or JSON and returns what results.json holds.

    Raises:
        UserError: runs in `out` had other settings.
    """
    check_writable(config.out, directory=True)
    plan = {seed: _runs(config, seed) for seed in dict.fromkeys(config.seeds)}
    for run in (run for runs in plan.values() for run in runs.values()):
        _check_settings(run)
    scores: list[dict] = []
    results: dict = {}
    with (
        on_mesh(MeshConfig(), config.model, processes=False) as mesh,
        Progress("runs", sum(map(len, plan.values()))) as progress,
    ):
        evaluator, figures = _Evaluator(config, mesh), FIGURES[config.looks]
        shown = figures.drawn[0]
        for seed, runs in plan.items():
            for variant, run in runs.items():
                if not is_finished(run):
                    sft(run) if isinstance(run, SFTConfig) else grpo(run)
                if variant in config.variants:
                    scores.append({"variant": variant, "seed": seed} | evaluator(run))
                    results = _save(config, scores)
                    say(f"{variant}, seed {seed}: {figures.metrics[shown]} {scores[-1][shown]:.3f}")
                progress.update(notes=f"{variant}, seed {seed}")
    print(json.dumps(results, indent=2) if config.json else report(results))
    return results


def _save(config: AblateConfig, scores: list[dict]) -> dict:
    """Writes results.json and results.svg; returns what the former holds."""
    settings = {name: value for name, value in to_dict(config).items() if name not in ("out", "json", "batch_size")}
    settings |= {"variants": list(config.variants), "seeds": list(config.seeds)}  # as JSON has them
    results = {"settings": settings, **summed_up(scores, list(config.known), config.looks), "runs": list(scores)}
    write_file(config.out / "results.json", json.dumps(results, indent=2) + "\n")
    write_file(config.out / "results.svg", picture(results))
    return results


def _runs(config: AblateConfig, seed: int) -> dict[str, SFTConfig | GRPOConfig]:
    """The settings of a seed's runs; first that of fine-tuning, from which the others start, and before a variant of SFT_CHANGES
    its own."""
    folder, task = config.out / f"seed{seed}", TASKS[config.looks]
    sft_steps = {"steps": config.sft_steps} if config.sft_steps else {}
    tuning: dict[str, Any] = {**task.sft, **sft_steps, "model": config.model, "seed": seed, "overwrite": True}
    runs: dict[str, SFTConfig | GRPOConfig] = {SFT_ONLY: SFTConfig(out=folder / SFT_ONLY, **tuning)}
    steps = {"steps": config.steps} if config.steps else {}
    learning: dict[str, Any] = {**task.grpo, **steps, "prompts": config.prompts, "objective": _NO_KL, "panel_every": 0}
    for name, changes in config.known.items():
        if name not in config.variants or name == SFT_ONLY:
            continue
        start = f"{name}-sft" if name in SFT_CHANGES else SFT_ONLY
        if name in SFT_CHANGES:
            runs[start] = SFTConfig(out=folder / start, **tuning, **SFT_CHANGES[name])
        more = {"model": str(folder / start), "seed": seed, "overwrite": True}
        runs[name] = GRPOConfig(out=folder / name, **learning | more | changes)
    return runs


def _check_settings(run: SFTConfig | GRPOConfig) -> None:
    """Results of different settings must not end up in one table."""
    if not (run.out / "run.yaml").exists():
        return
    before, now = to_dict(read_yaml(run.out / "run.yaml", type(run))), to_dict(run)
    free = FREE_SETTINGS if isinstance(run, SFTConfig) else (*FREE_SETTINGS, "model")  # a path, spelled as `out` was
    changed = [key for key in now if before[key] != now[key] and key not in free]
    if changed:
        raise UserError(
            f"{run.out}: this run had {changed[0]}={before[changed[0]]!r}, now it is {now[changed[0]]!r}; take another --out, "
            "or delete the run's directory"
        )


class _Evaluator:
    """Plays the held-out questions with the final policy of a run, once."""

    def __init__(self, config: AblateConfig, mesh: Mesh):
        self._config, self._mesh, self._where = config, mesh, surroundings()
        self._task = task = TASKS[config.looks]
        self._engine: RolloutEngine | None = None
        self._local = task.questions("test", 0, 0, config.questions, global_share=0.0)
        self._whole = task.questions("test", 0, config.questions, config.questions // 4, global_share=1.0)

    def __call__(self, run: SFTConfig | GRPOConfig) -> dict:
        """What `ablation_table.METRICS` names, the number of questions and where it was computed; kept in the run's directory."""
        file = run.out / "evaluation.json"
        kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if kept.get("questions") != self._config.questions:
            grey = isinstance(run, GRPOConfig) and run.rollout.mask_crop
            kept = self._scores(run.out, grey) | {"surroundings": self._where}
            write_file(file, json.dumps(kept, indent=2) + "\n")
        return kept

    def _scores(self, directory: Path, is_grey: bool) -> dict:
        model, rows = load_model(directory, mesh=self._mesh)
        if self._engine is None or self._engine.rows.layout != rows.layout:
            self._engine = RolloutEngine(model, rows, self._mesh)
        engine, params = self._engine.with_rows(rows), nnx.state(model, nnx.Param)  # with the run's own windows
        tool = Masked(engine.tool) if is_grey else engine.tool
        how = {"seed": 0, "batch_size": self._config.batch_size}
        played = play_stage(engine, params, self._local, self._whole, tool, **how)
        return {"questions": len(self._local)} | self._task.scores(self._local, self._whole, played, rows.episode)
