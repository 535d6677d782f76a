"""`zoomearth ablate`: its table is that of the runs, nothing runs twice, and bad settings are one line."""

import dataclasses
import json
import shutil
import statistics

import pytest

from zoomearth_jax.ablate import METRICS, VARIANTS, AblateConfig, _results, _runs, ablate, report
from zoomearth_jax.cli import main
from zoomearth_jax.configs.reward import RewardSpec
from zoomearth_jax.errors import UserError
from zoomearth_jax.grpo import GRPOConfig, grpo
from zoomearth_jax.metrics import read_metrics


def row(variant, seed, **scores):
    return {"variant": variant, "seed": seed} | dict.fromkeys(METRICS, 0.5) | scores


def test_statistics_and_paired_differences_by_hand():
    scores = [
        row("paper", 0, accuracy=0.8),
        row("no-iou", 0, accuracy=0.6),
        row("paper", 1, accuracy=0.9),
        row("no-iou", 1, accuracy=0.8),
        row("no-iou", 2, accuracy=0.4),  # its pair hasn't run yet
    ]
    results = _results(AblateConfig(), scores)
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


def test_one_seed_has_no_spread():
    results = _results(AblateConfig(), [row("paper", 3), row("no-box", 3, accuracy=0.25)])
    assert results["minus_paper"][0]["accuracy"] == {"mean": -0.25, "std": None}
    assert "±" not in report(results).split("; mean")[0]


def test_variants_change_what_they_say_and_nothing_else():
    runs = _runs(AblateConfig(), seed=4)
    paper, base = runs["paper"], GRPOConfig.reward
    assert list(runs) == ["sft-only", *(name for name in VARIANTS if name != "sft-only")]
    assert paper.objective.kl_weight == 0
    assert {run.seed for run in runs.values()} == {4}
    assert all(run.model == str(runs["sft-only"].out) for name, run in runs.items() if name != "sft-only")
    weights = {name: tuple(runs[name].reward.weights.values()) for name in ("paper", "no-region", "no-iou", "no-box")}
    assert weights == {
        "paper": (1, 1, 1, 0.05),
        "no-region": (1, 0, 1, 0.05),
        "no-iou": (0, 1, 1, 0.05),
        "no-box": (0, 0, 1, 0.05),
    }
    assert dataclasses.replace(runs["no-box"], reward=base, out=paper.out) == paper
    assert dataclasses.replace(runs["no-crop"], mask_crop=False, out=paper.out) == paper
    released = runs["reference"]
    assert (released.objective.advantage, released.objective.mask, released.freeze_vision) == (
        "mean",
        "reference",
        False,
    )
    unscaled = {"region_alpha": 200.0, "region_unit": "px"}
    assert dataclasses.replace(released.reward, **unscaled) == RewardSpec.named("reference")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--variants", "no-iuo"], "unknown variant 'no-iuo'; did you mean 'no-iou'?"),
        (["--variants", "zzz"], "unknown variant 'zzz'; known: paper, no-region"),
        (["--seeds", "-1"], "no negative seeds"),
        (["--steps", "0"], "must be positive"),
        (["--model", "nanno"], "did you mean 'nano'?"),
    ],
)
def test_bad_settings_are_one_line(args, message, tmp_path, capsys):
    assert main(["ablate", "--out", str(tmp_path / "out"), *args]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
    assert not (tmp_path / "out").exists()


def test_masked_crops_are_what_grpo_plays_with(tmp_path):
    """One rollout of a policy that reads crops: grey ones cost it its answers, not its boxes."""
    base = GRPOConfig(model="nano-grpo", out=tmp_path / "shown", steps=1, prompts=16, group=2, global_share=0.0)
    grpo(base)
    grpo(dataclasses.replace(base, out=tmp_path / "grey", mask_crop=True))
    (shown,), (grey,) = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("shown", "grey"))
    assert shown["reward_answer"] > 0.6
    assert grey["reward_answer"] < 0.5
    assert grey["reward_iou"] == shown["reward_iou"] > 0.2


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    config = AblateConfig(
        model="nano-grpo",
        out=tmp_path_factory.mktemp("ablate"),
        variants=("paper", "no-crop"),
        seeds=(0, 1),
        sft_steps=1,
        steps=1,
        prompts=2,
        questions=32,
        batch_size=32,
    )
    return config, ablate(config)


def test_a_run_and_its_resumption(tiny, monkeypatch, capsys):
    config, results = tiny
    assert json.loads((config.out / "results.json").read_text()) == results
    assert [(r["variant"], r["seed"]) for r in results["runs"]] == [
        ("paper", 0), ("no-crop", 0), ("paper", 1), ("no-crop", 1),
    ]  # fmt: skip
    paper, grey = results["table"]
    accuracies = [r["accuracy"] for r in results["runs"] if r["variant"] == "paper"]
    assert paper["accuracy"]["mean"] == statistics.fmean(accuracies) > 0.6
    assert grey["accuracy"] == grey["accuracy_masked_crop"] != paper["accuracy"]

    def never(*_, **__):
        raise AssertionError("a finished run was run again")

    monkeypatch.setattr("zoomearth_jax.ablate.grpo", never)
    monkeypatch.setattr("zoomearth_jax.ablate.sft", never)
    monkeypatch.setattr("zoomearth_jax.ablate.play", never)
    assert ablate(dataclasses.replace(config, json=True)) == results
    assert json.loads(capsys.readouterr().out) == results
    with pytest.raises(UserError, match=r"seed0/sft-only: this run had steps=1, now it is 2; take another --out"):
        ablate(dataclasses.replace(config, sft_steps=2))
    shutil.rmtree(config.out / "seed1" / "no-crop")
    with pytest.raises(AssertionError, match="run again"):
        ablate(config)
