"""`zoomearth ablate`: its table is that of the runs, nothing runs twice, and bad settings are one line."""

import dataclasses
import json
import shutil
from xml.etree import ElementTree

import pytest

from zoomearth_jax.cli import main
from zoomearth_jax.configs.episode import LayoutConfig
from zoomearth_jax.configs.io import write_yaml
from zoomearth_jax.configs.reward import RewardSpec
from zoomearth_jax.configs.rollout import RolloutConfig
from zoomearth_jax.configs.training import GRPOConfig, SFTConfig
from zoomearth_jax.errors import UserError
from zoomearth_jax.reports.ablation_table import FIGURES, LINE, METRICS, PANEL, picture, report, summed_up
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.runs.metric_rows import read_metrics
from zoomearth_jax.verbs.ablate import VARIANTS, AblateConfig, _runs, ablate
from zoomearth_jax.verbs.grpo import grpo


def row(variant, seed, **scores):
    return {"variant": variant, "seed": seed} | dict.fromkeys(METRICS, 0.5) | scores


def results_of(scores):
    return {"settings": {"questions": 8}, "runs": scores} | summed_up(scores, VARIANTS)


def test_statistics_and_paired_differences_by_hand():
    scores = [
        row("paper", 0, accuracy=0.8),
        row("no-iou", 0, accuracy=0.6),
        row("paper", 1, accuracy=0.9),
        row("no-iou", 1, accuracy=0.8),
        row("no-iou", 2, accuracy=0.4),  # its pair hasn't run yet
    ]
    results = results_of(scores)
    paper, other = results["table"]
    assert (paper["variant"], paper["seeds"], other["seeds"]) == ("paper", [0, 1], [0, 1, 2])
    assert paper["accuracy"] == {"mean": pytest.approx(0.85), "std": pytest.approx(0.1 / 2**0.5)}
    assert other["accuracy"] == {"mean": pytest.approx(0.6), "std": pytest.approx(0.2)}
    (difference,) = results["minus_paper"]
    assert difference["seeds"] == [0, 1]
    assert difference["accuracy"] == {"mean": pytest.approx(-0.15), "std": pytest.approx(0.1 / 2**0.5)}
    said = report(results)
    assert "0.600 ± 0.200" in said
    assert "-0.150 ± 0.071 " in said
    assert "-0.150 ± 0.071 ~" not in said
    assert "+0.000 ± 0.000 ~" in said


@pytest.mark.parametrize("looks", FIGURES)
def test_every_figure_has_a_column_of_its_own(looks):
    metrics = FIGURES[looks].metrics
    assert len({*metrics.values()}) == len(metrics)
    assert {*FIGURES[looks].drawn} <= {*metrics}


def test_one_seed_has_no_spread():
    results = results_of([row("paper", 3), row("no-box", 3, accuracy=0.25)])
    assert results["minus_paper"][0]["accuracy"] == {"mean": -0.25, "std": None}
    assert "±" not in report(results).split("; mean")[0]


def test_the_picture_has_a_dot_for_each_run_at_its_value():
    scores = [row("paper", 0, accuracy_t1=0.2), row("paper", 1, accuracy_t1=0.6), row("no-iou", 0, accuracy_t1=0.4)]
    drawn = ElementTree.fromstring(picture(results_of(scores)))
    dots = [(float(d.get("cx")), float(d.get("cy"))) for d in drawn.findall(".//{*}circle")]
    (left, top), (right, _), (middle, below) = dots[:3]
    assert len(dots) == 6
    assert right - left == PANEL
    assert middle == (left + right) / 2
    assert below - top == LINE
    strokes = [path.get("d") for path in drawn.findall(".//{*}path")]
    assert strokes[1].startswith(f"M{middle} ")  # paper's mean
    assert "0.600" in [text.text for text in drawn.findall(".//{*}text")]


def test_variants_change_what_they_say_and_nothing_else():
    runs = _runs(AblateConfig(), seed=4)
    paper, base = runs["paper"], GRPOConfig.reward
    own = {name: [f"{name}-sft"] for name in ("foveated", "context")}
    assert list(runs) == [
        "sft-only",
        *(run for name in VARIANTS if name != "sft-only" for run in [*own.get(name, []), name]),
    ]
    assert paper.objective.kl_weight == 0
    assert {run.seed for run in runs.values()} == {4}
    for name, run in runs.items():
        if not isinstance(run, SFTConfig):
            assert run.model == str(runs[f"{name}-sft" if name in own else "sft-only"].out)
    assert runs["foveated-sft"].layout == LayoutConfig(view="foveated")
    nested = _runs(AblateConfig(looks=2), seed=4)
    assert list(nested) == ["sft-only", "paper", "one-look-sft", "one-look", "best-look", "containment", "necessity"]
    assert {run.data for run in nested.values()} == {("nested",)}
    assert nested["one-look"].model == str(nested["one-look-sft"].out)
    assert nested["one-look-sft"].layout.turn_lens == (20, 12)
    assert dataclasses.replace(nested["best-look"], reward=base, out=nested["paper"].out) == nested["paper"]
    weights = {name: tuple(runs[name].reward.weights.values()) for name in ("paper", "no-region", "no-iou", "no-box")}
    assert weights == {
        "paper": (1, 1, 1, 0.05),
        "no-region": (1, 0, 1, 0.05),
        "no-iou": (0, 1, 1, 0.05),
        "no-box": (0, 0, 1, 0.05),
    }
    assert dataclasses.replace(runs["no-box"], reward=base, out=paper.out) == paper
    assert dataclasses.replace(runs["no-crop"], rollout=RolloutConfig(), out=paper.out) == paper
    released = runs["reference"]
    assert (released.objective.advantage, released.objective.mask, released.freeze_vision) == (
        "mean",
        "reference",
        False,
    )
    assert (runs["int8"].rollout.weights, runs["int8"].objective.importance_cap) == ("int8", 2.0)
    assert released.rollout == RolloutConfig(crop_gate="oracle", turn_ids="retokenised", crop="reference")
    unscaled = {"region_alpha": 200.0, "region_unit": "px"}
    assert dataclasses.replace(released.reward, **unscaled) == RewardSpec.named("reference")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--variants", "no-iuo"], "unknown variant 'no-iuo'; did you mean 'no-iou'?"),
        (["--variants", "zzz"], "unknown variant 'zzz'; known: paper, no-region"),
        (["--seeds", "-1"], "no negative ones"),
        (["--steps", "-1"], "steps not negative"),
        (["--prompts", "0"], "must be positive"),
        (["--looks", "2", "--variants", "no-iou"], "unknown variant 'no-iou'; known: paper, one-look"),
        (["--model", "nanno"], "did you mean 'nano'?"),
    ],
)
def test_bad_settings_are_one_line(args, message, tmp_path, capsys):
    assert main(["ablate", "--out", str(tmp_path / "out"), *args]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
    assert not (tmp_path / "out").exists()


def test_grpo_hands_its_settings_to_the_engine(tmp_path, monkeypatch):
    class Seen(Exception):
        pass

    def engine(self, params, questions, key, **how):
        raise Seen(self.config)

    monkeypatch.setattr(RolloutEngine, "__call__", engine)
    for rollout in (RolloutConfig(), RolloutConfig(mask_crop=True, crop_gate="oracle", visit=5)):
        config = GRPOConfig(model="nano", out=tmp_path / "run", steps=1, prompts=2, rollout=rollout, overwrite=True)
        with pytest.raises(Seen) as seen:
            grpo(config)
        assert seen.value.args == (rollout,)


@pytest.fixture
def fake_runs(monkeypatch):
    """Training and playing that leave only what tells of them; the list of what ran."""
    ran = []

    def train(run):
        ran.append((run.out.parent.name, run.out.name))
        write_yaml(mkdir(run.out) / "run.yaml", run)
        mkdir(run.out / "checkpoints" / str(run.steps))

    def score(self, model, grey):
        ran.append((model.parent.name, f"score {model.name}"))
        return {"questions": self._config.questions} | dict.fromkeys(METRICS, 0.25 if grey else len(ran) / 100)

    def mkdir(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    monkeypatch.setattr("zoomearth_jax.verbs.ablate.grpo", train)
    monkeypatch.setattr("zoomearth_jax.verbs.ablate.sft", train)
    monkeypatch.setattr("zoomearth_jax.verbs.ablate._Evaluator._scores", score)
    return ran


def test_nothing_runs_twice_and_other_settings_are_refused(fake_runs, tmp_path, capsys):
    config = AblateConfig(out=tmp_path, variants=("paper", "no-crop"), seeds=(0,), questions=8, json=True)
    first = ablate(config)
    one = [("seed0", name) for name in ("sft-only", "paper", "score paper", "no-crop", "score no-crop")]
    assert fake_runs == one
    assert [r["accuracy"] for r in first["runs"]] == [0.03, 0.25]
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(capsys.readouterr().out) == first
    assert ablate(config) == first
    assert fake_runs == one
    ablate(dataclasses.replace(config, questions=16))  # the models stay
    assert fake_runs[5:] == [one[2], one[4]]
    more = ablate(dataclasses.replace(config, questions=16, variants=("sft-only", "paper"), seeds=(0, 1)))
    seed1 = ("sft-only", "score sft-only", "paper", "score paper")
    assert fake_runs[7:] == [("seed0", "score sft-only"), *(("seed1", name) for name in seed1)]
    assert more["minus_paper"][0]["seeds"] == [0, 1]
    with pytest.raises(UserError, match=r"seed0/sft-only: this run had steps=100, now it is 2; take another --out"):
        ablate(dataclasses.replace(config, sft_steps=2))
    shutil.rmtree(tmp_path / "seed0" / "no-crop")
    ablate(dataclasses.replace(config, questions=16))
    assert fake_runs[12:] == [one[3], one[4]]


@pytest.mark.slow
def test_real_runs(tmp_path):
    config = AblateConfig(
        model="nano-grpo",
        out=tmp_path,
        variants=("paper", "no-crop", "reference"),
        seeds=(0, 1),
        sft_steps=1,
        steps=1,
        prompts=2,
        questions=64,
        batch_size=32,
    )
    results = ablate(config)
    assert [(r["variant"], r["seed"]) for r in results["runs"]] == [
        (variant, seed) for seed in config.seeds for variant in config.variants
    ]
    paper, grey, released = results["table"]
    assert paper["accuracy"]["mean"] > 0.7
    assert released["accuracy"]["mean"] > 0.7
    assert grey["accuracy"] == grey["accuracy_masked_crop"]
    assert grey["accuracy"]["mean"] < 0.5
    assert grey["zoom_rate"]["mean"] > 0.9
    assert ablate(config) == results


@pytest.mark.slow
def test_masked_crops_cost_answers_and_not_boxes(tmp_path):
    """One rollout of a policy that reads crops."""
    base = GRPOConfig(model="nano-grpo", out=tmp_path / "shown", steps=1, prompts=16, group=2, global_share=0.0)
    grpo(base)
    grpo(dataclasses.replace(base, out=tmp_path / "grey", rollout=RolloutConfig(mask_crop=True)))
    (shown,), (grey,) = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("shown", "grey"))
    assert shown["reward_answer"] > 0.6
    assert grey["reward_answer"] < 0.5
    assert grey["reward_iou"] == shown["reward_iou"] > 0.2
