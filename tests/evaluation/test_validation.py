"""Validation while training: it changes nothing of the training, is the same however it is cut, and chooses checkpoints."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from tests.processes import ROOT
from zoomearth_jax.configs.lora import LoRAConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.configs.training import GRPOConfig, SFTConfig, ValidateConfig
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.errors import UserError
from zoomearth_jax.evaluation import validation as module
from zoomearth_jax.evaluation.play import play
from zoomearth_jax.evaluation.summary import summarize
from zoomearth_jax.evaluation.validation import Validation
from zoomearth_jax.models.sharding import make_mesh
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.runs import saved_steps
from zoomearth_jax.runs.checkpoints import Checkpoints
from zoomearth_jax.runs.metric_rows import read_metrics
from zoomearth_jax.runs.models import load_model
from zoomearth_jax.verbs.grpo import grpo
from zoomearth_jax.verbs.sft import sft

ASKED = ValidateConfig(limit=10, seed=7)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh((1, 1, 1), jax.devices()[:1])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of four steps that is validated before them and after each second one."""
    out = tmp_path_factory.mktemp("validated") / "grpo"
    config = GRPOConfig(
        model="nano-grpo",
        out=out,
        steps=4,
        prompts=4,
        group=2,
        checkpoint_every=2,
        keep=9,
        panel_every=0,
        validate_every=2,
        validate=ASKED,
    )
    grpo(config)
    return config


def rows(out):
    return [
        {name: x for name, x in row.items() if not name.startswith("perf/")}
        for row in read_metrics(out / "metrics.jsonl")
    ]


def of_training(row):
    return {name: x for name, x in row.items() if not name.startswith("validation/")}


def of_validation(row):
    return {name.removeprefix("validation/"): x for name, x in row.items() if name.startswith("validation/")}


def params(directory):
    return [x for _, x in nnx.to_flat_state(nnx.state(load_model(directory).model, nnx.Param))]


@pytest.mark.slow
def test_a_run_trains_as_it_does_without_validation(run, tmp_path):
    plain = dataclasses.replace(run, out=tmp_path / "plain", validate_every=0)
    grpo(plain)
    validated = rows(run.out)
    assert [row["step"] for row in validated if of_validation(row)] == [0, 2, 4]
    assert [of_training(row) for row in validated[1:]] == rows(plain.out)
    assert all(np.array_equal(a[...], b[...]) for a, b in zip(params(run.out), params(plain.out), strict=True))


@pytest.mark.slow
def test_the_metrics_are_documented(run):
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    names = {name for row in rows(run.out) for name in of_validation(row)}
    assert "accuracy_by_level/object" in names
    assert not [name for name in names if f"`validation/{name.split('/')[0]}" not in page]


@pytest.mark.slow
def test_step_0_is_what_an_evaluation_of_the_model_gives(run):
    policy, questions = load_model("nano-grpo"), scene_questions("test", 7, 0, 10, ASKED.global_share)
    engine = RolloutEngine(policy.model, policy.rows)
    how = {"sampling": SamplingConfig(), "tool": engine.tool, "batch_size": 3}
    played = play(engine, nnx.state(policy.model, nnx.Param), questions, jax.random.key(0), **how)
    want, got = summarize(questions, played, policy.rows.episode), of_validation(rows(run.out)[0])
    assert min(want["accuracy"], want["apo_iou"], want["zoom_rate"]) > 0
    for name in ("questions", "accuracy", "apo_iou", "zoom_rate", "no_answer", "truncated"):
        assert got[name] == pytest.approx(want[name], abs=1e-5), name
    for level, accuracy in want["accuracy_by_level"].items():
        assert got[f"accuracy_by_level/{level}"] == pytest.approx(accuracy, abs=1e-5)


@pytest.mark.slow
def test_resume_is_bit_exact(run, tmp_path):
    out = shutil.copytree(run.out, tmp_path / "cut")
    with Checkpoints(out) as checkpoints:
        checkpoints._manager.delete(4)  # as if the run had died after step 2
    grpo(dataclasses.replace(run, out=out, resume=True))
    assert rows(out) == rows(run.out)
    assert all(np.array_equal(a[...], b[...]) for a, b in zip(params(out), params(run.out), strict=True))


@pytest.mark.slow
def test_checkpoints_have_the_validated_accuracy_as_score(run):
    folder, validated = run.out / "checkpoints", {row["step"]: of_validation(row) for row in rows(run.out)}
    for step in (2, 4):
        record = saved_steps.read_record(folder / str(step))
        assert record["score_of"] == "validation/accuracy"
        assert record["score"] == pytest.approx(validated[step]["accuracy"], abs=1e-5)
    assert run.score({"loss": 3.0, "reward_total": 2.0}) is None
    assert dataclasses.replace(run, validate_every=0).score({"reward_total": 2.0}) == 2.0
    assert SFTConfig().score({"loss": 3.0}) == -3.0


@pytest.mark.slow
def test_fine_tuning_of_adapters_is_validated(run, tmp_path):
    config = SFTConfig(
        model="nano-grpo",
        out=tmp_path,
        questions=8,
        steps=1,
        batch_size=8,
        lora=LoRAConfig(rank=2),
        validate_every=5,
        validate=ASKED,
    )
    sft(config)
    before, after = rows(tmp_path)
    assert of_validation(before) == of_validation(rows(run.out)[0])  # fresh adapters change nothing
    assert after["step"] == 1
    assert of_validation(after)["questions"] == 10  # the last step


@pytest.fixture
def folder(tmp_path):
    """Seven questions of two kinds about three images, of which one is broken."""
    (tmp_path / "images").mkdir()
    for name in ("a", "b", "broken"):
        Image.fromarray(np.full((300, 400, 3), ord(name[0]), np.uint8)).save(tmp_path / "images" / f"{name}.png")
    file = tmp_path / "images" / "broken.png"
    file.write_bytes(file.read_bytes()[:-40])
    kinds = [("a", "Object Count"), ("b", "color"), ("broken", "color"), ("a", "color"), ("b", "Object Count")]
    questions = [
        {"image": f"{name}.png", "question": f"Which of {i}?", "answer": "1", "level": "global", "category": kind}
        for i, (name, kind) in enumerate([*kinds, ("a", ""), ("b", "color")])
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in questions))
    return tmp_path


def validate(folder, engine, mesh, batch_size, **more):
    wanted = ValidateConfig(data=(str(folder),), temperature=3.0, **more)  # so high that the seeds show
    return Validation(SFTConfig(validate_every=1, validate=wanted), engine, mesh, batch_size)


def test_two_processes_play_what_one_plays(folder, engine, nano_params, mesh, monkeypatch):
    """Sampled, so that seeds matter; the last batch is filled up, and a question counts once. In place of its correctness
    stands the length of what was written, which differs by seed."""
    monkeypatch.setattr(module, "are_correct", lambda _, played, *__: np.array([len(e.turns[0].text) for e in played]))
    want = validate(folder, engine, mesh, 4)(nano_params, 0)
    tables = []
    for process in (0, 1):
        monkeypatch.setattr(module, "process_share", lambda mesh, process=process: (process, 2))
        monkeypatch.setattr(module, "of_all_processes", lambda table: tables.append(table) or table)
        own = validate(folder, engine, mesh, 4)
        own(nano_params, 0)
    assert [len(table["place"]) for table in tables] == [4, 4]
    joined = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    assert sorted(joined["place"]) == [0, 0, 1, 2, 3, 4, 5, 6]
    assert own._summarize(joined) == want


def test_kinds_are_told_apart_and_broken_images_left_out(folder, engine, nano_params, mesh, monkeypatch, capsys):
    correct = {0: 1, 1: 0, 2: 1, 3: 1, 4: 1, 5: 0, 6: 0}  # by the question's number; the image of the third is broken
    monkeypatch.setattr(
        module, "are_correct", lambda asked, *_: np.array([correct[int(q.text[9])] == 1 for q in asked])
    )
    metrics = validate(folder, engine, mesh, 4)(nano_params, 3)
    assert metrics["validation/questions"] == 6
    again = validate(folder, engine, mesh, 4)
    assert again.before_training(nano_params, 0) == metrics
    assert again.before_training(nano_params, 1) == {}  # a run that goes on
    assert validate(folder, engine, mesh, 4, before_training=False).before_training(nano_params, 0) == {}
    capsys.readouterr()
    assert validate(folder, engine, mesh, 4)(nano_params, 3) == metrics
    assert metrics["validation/accuracy"] == pytest.approx(3 / 6)
    assert metrics["validation/accuracy/object_count"] == 1
    assert metrics["validation/accuracy/color"] == pytest.approx(1 / 3)
    assert metrics["validation/accuracy_by_level/global"] == metrics["validation/accuracy"]
    assert "validation/apo_iou" not in metrics  # no question has a box
    said = capsys.readouterr().err
    assert said.count("broken.png") == 1
    assert "step 3: validation: accuracy 0.500, zoom_rate" in said


def test_a_limit_is_spread_over_a_folder(folder, engine, mesh):
    assert [q.text for q in validate(folder, engine, mesh, 4, limit=3)._questions] == [
        "Which of 0?",
        "Which of 2?",
        "Which of 4?",
    ]


def test_what_cannot_be_is_refused(folder, engine, nano_params, mesh):
    for bad in ({"limit": 0}, {"batch_size": -1}, {"temperature": -1.0}):
        with pytest.raises(UserError, match=r"validate config: |sampling config: "):
            ValidateConfig(**bad)
    with pytest.raises(UserError, match="validate_every must be a number of steps"):
        SFTConfig(validate_every=-1)
    with pytest.raises(UserError, match="checkpoint_every must be a multiple of validate_every"):
        SFTConfig(validate_every=3, checkpoint_every=4, keep_best=1)
    lines = (folder / "questions.jsonl").read_text().splitlines()
    (folder / "questions.jsonl").write_text(lines[2] + "\n")
    with pytest.raises(UserError, match=r"none of the 1 questions has an image that can be read; .*broken\.png"):
        validate(folder, engine, mesh, 4)(nano_params, 0)
    (folder / "questions.jsonl").write_text(lines[0].replace("Which", "Which " * 400) + "\n")
    with pytest.raises(UserError, match="prompt"):
        validate(folder, engine, mesh, 4)
