"""Whole stages, small: a run repeats itself, resumes bit-exactly, and feeds the next stage."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from tests.processes import ROOT
from zoomearth_jax.configs.objective import ObjectiveConfig
from zoomearth_jax.configs.training import GRPOConfig, SFTConfig
from zoomearth_jax.data_pipeline.questions.folders import read_questions
from zoomearth_jax.errors import UserError
from zoomearth_jax.rl.batches import row_batch
from zoomearth_jax.rl.rewards.boxes import box_iou
from zoomearth_jax.rl.state import init_state
from zoomearth_jax.rl.steps import make_sft_step
from zoomearth_jax.runs.checkpoints import Checkpoints
from zoomearth_jax.runs.metric_rows import read_metrics
from zoomearth_jax.runs.models import SHIPPED, load_model, resolve
from zoomearth_jax.runs.start import open_loader
from zoomearth_jax.verbs.ask import AskConfig, ask
from zoomearth_jax.verbs.demo import DemoConfig
from zoomearth_jax.verbs.evaluate import EvaluateConfig, evaluate
from zoomearth_jax.verbs.grpo import grpo
from zoomearth_jax.verbs.make_scenes import ScenesConfig, write_scenes
from zoomearth_jax.verbs.sft import sft


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def sft_run(folder):
    config = SFTConfig(out=folder / "sft", questions=48, steps=4, batch_size=16, checkpoint_every=2)
    sft(config)
    return config


@pytest.fixture(scope="module")
def grpo_run(folder, sft_run):
    objective = ObjectiveConfig(kl_in="reward", importance_cap=2.0, dual_clip=3.0, flat_groups="drop")
    config = GRPOConfig(
        model=str(sft_run.out),
        out=folder / "grpo",
        steps=4,
        prompts=4,
        group=4,
        refill=1,
        checkpoint_every=2,
        updates=2,
        minibatches=2,
        objective=objective,
        dump=1,
    )
    grpo(config)
    return config


def params(directory):
    return nnx.to_flat_state(nnx.state(load_model(directory).model, nnx.Param))


def assert_same(a, b):
    assert all(np.array_equal(x[1][...], y[1][...]) for x, y in zip(a, b, strict=True))


def losses(config):
    rows = read_metrics(config.out / "metrics.jsonl")
    return [{name: x for name, x in row.items() if not name.startswith("perf/")} for row in rows]


def dumps(out):
    """The files of a run's rollouts."""
    return {path.name: path.read_bytes() for path in (out / "rollouts").glob("*")}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_seeded_run_repeats_itself_exactly(stage, request, folder):
    config, run = request.getfixturevalue(f"{stage}_run"), {"sft": sft, "grpo": grpo}[stage]
    again = dataclasses.replace(config, out=folder / f"{stage}_again")
    run(again)
    assert losses(again) == losses(config)
    assert_same(params(again.out), params(config.out))
    other = dataclasses.replace(config, out=folder / f"{stage}_other", seed=1, steps=1)
    run(other)
    assert losses(other)[0]["entropy"] != losses(config)[0]["entropy"]


@pytest.mark.parametrize(("stage", "workers"), [pytest.param("sft", 2, marks=pytest.mark.slow), ("grpo", 0)])
def test_resume_is_bit_exact(stage, workers, request, folder):
    """On another number of workers too."""
    config, run = request.getfixturevalue(f"{stage}_run"), {"sft": sft, "grpo": grpo}[stage]
    out = shutil.copytree(config.out, folder / f"{stage}_cut")
    with Checkpoints(out) as checkpoints:
        checkpoints._manager.delete(4)  # as if the run had died after step 2
        assert checkpoints.latest == 2
    run(dataclasses.replace(config, out=out, resume=True, workers=workers))
    assert losses(dataclasses.replace(config, out=out)) == losses(config)
    assert_same(params(out), params(config.out))
    assert dumps(out) == dumps(config.out)


@pytest.mark.slow
def test_packed_rows_train_as_fixed_ones_do(sft_run, folder):
    config = dataclasses.replace(sft_run, out=folder / "sft_packed", pack_len=160)
    sft(config)
    packed, fixed = (read_metrics(run.out / "metrics.jsonl") for run in (config, sft_run))
    np.testing.assert_allclose([m["loss"] for m in packed], [m["loss"] for m in fixed], rtol=1e-3)
    with pytest.raises(UserError, match="raise pack_len"):
        sft(dataclasses.replace(config, out=folder / "sft_short", pack_len=20))


def test_every_metric_is_documented(sft_run, grpo_run):
    """Names in docs/metrics.md, where a row may give suffixes that others of its names take too."""
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    known = set(re.findall(r"`([a-z0-9_/]+)`", page))
    known |= {name + ending for name in known for ending in ("_std", "_low", "_high")}
    for run in (sft_run, grpo_run):
        names = {name for row in read_metrics(run.out / "metrics.jsonl") for name in row}
        assert {"schema", "step", "loss", "update_ratio", "lr", "perf/tokens_per_s", "perf/compile_s"} <= names
        assert names - {"alarms"} <= known


def test_a_dump_has_every_episode_of_a_step(grpo_run):
    """As it is rewarded: the means of its lines are the step's metrics."""
    assert len(dumps(grpo_run.out)) == 2 * grpo_run.steps
    for row in read_metrics(grpo_run.out / "metrics.jsonl"):
        text = (grpo_run.out / "rollouts" / f"step_{row['step']:06d}_0.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        assert [(line["group"], line["sample"]) for line in lines] == [(i // 4, i % 4) for i in range(16)]
        for name in ("total", "answer", "iou"):
            assert np.mean([line["rewards"][name] for line in lines]) == pytest.approx(row[f"reward_{name}"], abs=1e-3)
        assert np.mean([line["tokens"] for line in lines]) == pytest.approx(row["tokens"], rel=1e-4)
        assert np.mean([line["kl"] for line in lines]) == pytest.approx(row["kl"], abs=1e-3)


def test_training_moves_text_and_leaves_frozen_vision(sft_run, nano_params):
    before, after = dict(nnx.to_flat_state(nano_params)), dict(params(sft_run.out))
    for path in before:
        same = np.array_equal(before[path][...], after[path][...])
        assert same == (path[0] == "vision"), path


@pytest.mark.slow
def test_unfrozen_vision_trains(folder):
    config = SFTConfig(out=folder / "open", questions=16, steps=1, batch_size=8, freeze_vision=False)
    sft(config)
    before, after = dict(params("nano")), dict(params(config.out))
    assert not np.array_equal(
        before["vision", "merger_out", "kernel"][...], after["vision", "merger_out", "kernel"][...]
    )


def test_runs_are_not_overwritten_or_resumed_by_accident(sft_run, folder):
    with pytest.raises(UserError, match="holds a run; pass --resume"):
        sft(sft_run)
    with pytest.raises(UserError, match="no run to resume"):
        sft(dataclasses.replace(sft_run, out=folder / "nothing", resume=True))
    with pytest.raises(UserError, match="has batch_size=16, not 8"):
        sft(dataclasses.replace(sft_run, resume=True, batch_size=8))
    assert not (folder / "nothing").exists()


def test_a_checkpoint_of_another_model_is_refused(sft_run, tmp_path):
    for file in sft_run.out.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "checkpoints").symlink_to(sft_run.out / "checkpoints")
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"intermediate_size": 64}))
    with pytest.raises(UserError, match="a checkpoint of another model"):
        load_model(tmp_path)


def test_evaluate_and_ask_load_a_run_and_read_files(grpo_run, folder, capsys):
    scenes = write_scenes(ScenesConfig(out=folder / "scenes", count=2, side=600))
    out = folder / "evaluated"
    results = evaluate(EvaluateConfig(model=str(grpo_run.out), data=(str(scenes),), out=out, batch_size=8))
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    summary = results["runs"]["shown"]["summary"]
    assert len(records) == summary["questions"] == len((scenes / "questions.jsonl").read_text().splitlines())
    assert np.mean([r["answer"] == r["reference"] for r in records]) == pytest.approx(summary["official"])
    assert set(summary["by_level"]) == {"global", "object"}
    capsys.readouterr()
    image = next(scenes.glob("*.tif"))
    ask(AskConfig(image, "Which season is it?", model=str(grpo_run.out), save=folder / "a" / "out.png", json=True))
    said = json.loads(capsys.readouterr().out)
    assert set(said) == {"answer", "box", "window", "turns", "truncated", "note"}
    with Image.open(folder / "a" / "out.png") as picture:
        assert picture.height >= 448


@pytest.mark.parametrize(
    "side", [pytest.param(2048, marks=pytest.mark.slow), pytest.param(5000, marks=pytest.mark.slow)]
)
def test_shipped_policy_answers_about_a_file(side, folder, capsys):
    """On real TIFFs: right answers about most sites, and boxes that lie on them."""
    scenes = write_scenes(ScenesConfig(out=folder / f"tiff{side}", count=2, side=side, seed=5))
    questions = [q for q in read_questions(scenes) if q.level == "object"]
    right, ious = 0, []
    for question in questions:
        capsys.readouterr()
        ask(AskConfig(question.image.path, question.text, json=True))
        said = json.loads(capsys.readouterr().out)
        right += said["answer"] == question.answer
        ious.append(float(box_iou(np.array(said["box"], np.float32), np.array(question.box.corners, np.float32))))
    assert right >= len(questions) - 1
    assert np.mean(ious) > 0.3


def test_shipped_models_stay_small():
    total = sum(file.stat().st_size for name in SHIPPED for file in resolve(name).iterdir())
    assert total < 4e6


@pytest.mark.slow
def test_a_step_compiles_once(sft_run):
    """Started from a checkpoint, whose arrays are committed to a device, and fresh optimizer state, whose aren't."""
    model, rows = load_model(sft_run.out)
    optimizer = sft_run.optimizer.build(3)
    graph, state = init_state(model, optimizer, freeze_vision=True)
    step = make_sft_step(graph, optimizer, rows.layout)
    with open_loader(sft_run, "sft", rows.supervised, 16, sft_run.questions) as loader:
        for batch in loader.batches(0, 3):
            state, metrics = step(state, jax.device_put(row_batch(*batch, model.config)))
    assert step._cache_size() == 1
    assert metrics["loss"] > 0


@pytest.mark.slow
def test_stages_train_on_a_folder_of_files(folder):
    scenes = write_scenes(ScenesConfig(out=folder / "own", count=2, side=500, format="png"))
    first = SFTConfig(out=folder / "own_sft", data=(str(scenes),), steps=2, batch_size=4)
    sft(first)
    second = GRPOConfig(model=str(first.out), out=folder / "own_grpo", data=(str(scenes),), steps=2, prompts=3, group=2)
    grpo(second)
    assert [row["step"] for row in losses(second)] == [1, 2]
    file = scenes / "questions.jsonl"
    file.write_text(file.read_text().replace("How many", "What number of"))
    with pytest.raises(UserError, match=r"the questions of .*own have changed since the run began"):
        grpo(dataclasses.replace(second, resume=True))


def test_demo_settings_are_checked():
    with pytest.raises(UserError, match="demo: questions"):
        DemoConfig(questions=3)
