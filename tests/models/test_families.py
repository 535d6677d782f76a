"""Another family of models plays, trains, is saved and counted by the same code."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

from tests.models import tiny_family
from zoomearth_jax.cli import main
from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.data_pipeline.rows.builder import RowBuilder
from zoomearth_jax.data_pipeline.text.nano_tokenizer import build_nano_tokenizer
from zoomearth_jax.errors import UserError
from zoomearth_jax.models.families import FAMILIES, read_config
from zoomearth_jax.models.presets import preset
from zoomearth_jax.rl.batches import row_batch
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.rl.steps import row_logprobs
from zoomearth_jax.runs.models import load_model, save_model


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(FAMILIES, "tiny", tiny_family)
    model = tiny_family.make(tiny_family.TinySizes(), ComputeConfig(), nnx.Rngs(0))
    episode = preset("nano")[1]
    rows = RowBuilder(build_nano_tokenizer(), episode, model.config.merged_px)
    assert (rows.layout.view_side, rows.layout.view_tokens) == (128, 16)  # 112 px in tokens of 32
    return model, rows


def test_it_plays_and_the_trainer_scores_the_same(tiny):
    model, rows = tiny
    questions = scene_questions("test", 1, 0, 3, 0.5)
    params, sampling = nnx.state(model, nnx.Param), SamplingConfig(temperature=1.0)
    played = RolloutEngine(model, rows)(params, questions, jax.random.key(0), sampling=sampling, group=2)
    assert played.overview_features.shape[1:] == (16, 64)
    batch = row_batch(played.prompts, played.replies, model.config)
    logp, _ = row_logprobs(model, batch, rows.layout, 1.0, rows.tokens.banned_ids)
    mask = played.replies.target[:, rows.layout.written()]
    assert np.abs(np.asarray(logp) - played.logprobs)[mask].max() < 2e-5


@pytest.mark.slow
def test_it_is_fine_tuned_saved_and_asked(tiny, tmp_path, capsys):
    model, rows = tiny
    save_model(tmp_path / "tiny", model, rows)
    again, loaded = load_model(tmp_path / "tiny")
    assert loaded.layout == rows.layout
    for a, b in zip(jax.tree.leaves(nnx.state(model)), jax.tree.leaves(nnx.state(again)), strict=True):
        np.testing.assert_array_equal(a, b)
    run = tmp_path / "run"
    how = ["--steps", "2", "--batch-size", "4", "--questions", "8", "--out", str(run)]
    assert main(["sft", "--model", str(tmp_path / "tiny"), *how]) == 0
    metrics = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert metrics["loss"] > 0
    scene_questions("test", 0, 0, 1)[0].image.write(tmp_path / "scene.png")
    assert main(["ask", str(tmp_path / "scene.png"), "Which season is it?", "--model", str(run), "--json"]) == 0
    assert "turns" in json.loads(capsys.readouterr().out)


def test_a_family_that_nobody_registered_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(UserError, match=r"config\.json: model_type is 'llava', expected 'qwen2_5_vl'"):
        read_config(tmp_path)
