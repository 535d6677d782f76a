"""Runs with adapters: only these train, resume bit-exactly, and load anywhere as an ordinary model."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from zoomearth_jax.cli import main
from zoomearth_jax.configs.lora import LoRAConfig
from zoomearth_jax.configs.optimizer import OptimizerConfig
from zoomearth_jax.configs.training import GRPOConfig, SFTConfig
from zoomearth_jax.errors import UserError
from zoomearth_jax.models.lora import add_lora, has_lora
from zoomearth_jax.rl.batches import row_batch
from zoomearth_jax.rl.state import init_state
from zoomearth_jax.rl.steps import make_sft_step
from zoomearth_jax.runs.checkpoints import Checkpoints
from zoomearth_jax.runs.metric_rows import read_metrics
from zoomearth_jax.runs.models import load_model
from zoomearth_jax.runs.start import open_loader
from zoomearth_jax.verbs.evaluate import EvaluateConfig, evaluate
from zoomearth_jax.verbs.grpo import grpo
from zoomearth_jax.verbs.sft import sft

LORA = LoRAConfig(rank=8)
FAST = OptimizerConfig(lr=1e-2, decay=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lora_runs")


@pytest.fixture(scope="module")
def sft_run(folder):
    config = SFTConfig(
        out=folder / "sft", questions=48, steps=24, batch_size=16, checkpoint_every=12, optimizer=FAST, lora=LORA
    )
    sft(config)
    return config


def flat(state):
    return dict(nnx.to_flat_state(state))


def params(directory):
    return flat(nnx.state(load_model(directory).model, nnx.Param))


def rows_of(config):
    rows = read_metrics(config.out / "metrics.jsonl")
    return [{name: x for name, x in row.items() if not name.startswith("perf/")} for row in rows]


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[path][...], b[path][...]) for path in a)


@pytest.mark.slow
def test_three_steps_move_the_adapters_alone():
    model, rows = load_model("nano")
    add_lora(model, LORA, nnx.Rngs(0))
    optimizer = FAST.build(3)
    graph, state = init_state(model, optimizer, freeze_vision=True)
    before = jax.tree.map(np.asarray, (flat(state.trainable), flat(state.frozen)))
    assert {path[-1] for path in before[0]} == {"lora_a", "lora_b"}
    assert before[1].keys() == params("nano").keys()
    held = sum(x.size for x in jax.tree.leaves(state.opt_state) if np.ndim(x))
    assert held == 2 * sum(x.size for x in jax.tree.leaves(state.trainable))  # AdamW's two moments
    config = SFTConfig(questions=16, batch_size=8)
    step = make_sft_step(graph, optimizer, rows.layout)
    with open_loader(config, "sft", rows.supervised, config.batch_size, config.questions) as loader:
        for batch in loader.batches(0, 3):
            state, _ = step(state, row_batch(*batch, model.config))
    assert_same(flat(state.frozen), before[1])
    assert not any(np.array_equal(x[...], before[0][path][...]) for path, x in flat(state.trainable).items())


@pytest.mark.slow
def test_fine_tuning_lowers_the_loss(sft_run):
    losses = [row["loss"] for row in rows_of(sft_run)]
    assert np.mean(losses[-3:]) < 0.8 * losses[0]


@pytest.mark.slow
def test_resume_is_bit_exact(sft_run, folder):
    cut = dataclasses.replace(sft_run, out=shutil.copytree(sft_run.out, folder / "cut"))
    with Checkpoints(cut.out) as checkpoints:
        checkpoints._manager.delete(24)  # as if the run had died after step 12
    sft(dataclasses.replace(cut, resume=True))
    assert rows_of(cut) == rows_of(sft_run)
    assert_same(params(cut.out), params(sft_run.out))
    with pytest.raises(UserError, match="has lora="):
        sft(dataclasses.replace(cut, resume=True, lora=LoRAConfig(rank=4)))


@pytest.mark.slow
def test_a_run_loads_merged(sft_run):
    model = load_model(sft_run.out).model
    assert not has_lora(model)
    before, after = params("nano"), params(sft_run.out)
    assert before.keys() == after.keys()
    for path in before:
        adapted = path[:2] == ("decoder", "layers") and path[-1] == "kernel"
        assert np.array_equal(before[path][...], after[path][...]) != adapted, path
    results = evaluate(EvaluateConfig(model=str(sft_run.out), limit=8, batch_size=8, crops=("shown",)))
    assert results["counts"]["scored"] == 8


@pytest.mark.slow
def test_grpo_starts_at_its_reference_and_leaves_it(sft_run, folder):
    """From a run with adapters, with fresh ones in the decoder and in the vision encoder."""
    config = GRPOConfig(
        model=str(sft_run.out),
        out=folder / "grpo",
        steps=2,
        prompts=3,
        group=4,
        optimizer=FAST,
        lora=LoRAConfig(rank=2, pattern="vision.*|decoder.layers.(q|v)_proj"),
        freeze_vision=False,
    )
    grpo(config)
    first, second = rows_of(config)
    assert abs(first["kl"]) < 1e-8  # the reference is the model without adapters
    assert second["kl"] > 1e-6
    assert max(first["sampler_gap_max"], second["sampler_gap_max"]) < 1e-3  # rollout and learner see the same adapters
    before, after = params(sft_run.out), params(config.out)
    changed = {".".join(path[:-1]) for path in before if not np.array_equal(before[path][...], after[path][...])}
    assert {"vision.patch_embed", "vision.blocks.qkv", "decoder.layers.q_proj", "decoder.layers.v_proj"} <= changed
    assert not any(name.startswith(("decoder.layers.o", "decoder.layers.mlp", "decoder.embed")) for name in changed)


def test_adapters_in_a_frozen_encoder_are_refused(folder, capsys):
    config = SFTConfig(out=folder / "no", questions=8, lora=LoRAConfig(rank=2, pattern=".*"))
    with pytest.raises(UserError, match="layers of the frozen vision encoder"):
        sft(config)
    assert not config.out.exists()
    assert main(["sft", "--out", str(folder / "no"), "--lora.rank", "4", "--lora.pattern", "q_proj"]) == 2
    assert "did you mean 'decoder.layers.q_proj'?" in capsys.readouterr().err
