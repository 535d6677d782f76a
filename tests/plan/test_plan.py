"""`zoomearth plan` at nano size on the attached CPU, and its parts; TPU topologies where libtpu is there."""

import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import re
from types import SimpleNamespace

import jax
import pytest

from zoomearth_jax.bench import plan as bench
from zoomearth_jax.bench import published
from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.episode import EpisodeConfig
from zoomearth_jax.configs.plan import FillConfig, PlanConfig
from zoomearth_jax.errors import UserError
from zoomearth_jax.hardware.chips import CHIPS, Chip
from zoomearth_jax.hardware.flops import full_counts, maxtext_flops, rollout_flops
from zoomearth_jax.hardware.tpu_flags import set_tpu_flags
from zoomearth_jax.models.presets import preset
from zoomearth_jax.models.qwen2_5_vl.config import TextConfig
from zoomearth_jax.models.sharding import make_mesh
from zoomearth_jax.plan import fit, report
from zoomearth_jax.plan.cost import Network
from zoomearth_jax.plan.iteration import filled_counts, filled_trips
from zoomearth_jax.plan.steps import Training, count_parameters
from zoomearth_jax.verbs import plan as verb

STEPS = ("sft", "prefill", "decode", "pictures", "grpo")
CHIP = Chip("test", 1e12, 2**30, 1e11, 1e10, 4, 1e9, 4)


@pytest.fixture(scope="module")
def printed():
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(verb, "measured_chip", lambda devices, dtype: CHIP)
        verb.plan(PlanConfig(preset="nano", prompts=2, group=2, hottest=2, json=True))
    return out.getvalue()


@pytest.fixture(scope="module")
def planned(printed):
    return json.loads(printed)


def test_what_json_promises(planned):
    """`chips` and `hbm_bytes`, and of each step memory, FLOPs, seconds and MFU, as numbers."""
    assert isinstance(planned["chips"], int)
    assert isinstance(planned["hbm_bytes"], int | float)
    assert set(planned["steps"]) == {"sft", "prefill", "decode", "pictures", "grpo"}
    for row in planned["steps"].values():
        assert isinstance(row["total_bytes"], int)
        assert isinstance(row["fits"], bool)
        assert all(isinstance(row[key], float) for key in ("flops", "seconds", "mfu"))


def test_every_step_is_there(planned):
    assert planned["chips"] == jax.device_count()
    assert planned["hbm_bytes"] == 2**30
    assert tuple(planned["steps"]) == STEPS
    for row in planned["steps"].values():
        assert row["fits"]
        assert row["flops"] > 0
        assert row["seconds"] > 0
        assert 0 < row["mfu"] < 1
        assert len(row["hottest"]) == 2


def test_memory_adds_up(planned):
    for row in planned["steps"].values():
        parts = ("parameters", "optimizer", "reference", "cache", "activations")
        assert row["total_bytes"] == sum(row[f"{part}_bytes"] for part in parts)
    parameters = 4 * count_parameters(preset("nano")[0])
    assert {row["parameters_bytes"] for row in planned["steps"].values()} == {parameters}
    assert parameters < planned["steps"]["grpo"]["optimizer_bytes"] < 2 * parameters  # a frozen encoder has no moments
    assert planned["steps"]["decode"]["total_bytes"] > parameters + planned["steps"]["grpo"]["optimizer_bytes"]


def test_seconds_are_those_of_the_bounds(planned):
    for row in planned["steps"].values():
        parts = [row[f"{part}_bound_seconds"] for part in ("compute", "memory", "links", "copies")]
        assert row["seconds"] == pytest.approx(sum(parts))
        assert row["seconds"] == pytest.approx(row["cycle_seconds"])  # a CPU's compiler counts no cycles


def test_program_flops_are_near_the_model_flops(planned):
    """Padding aside, which nano's rows have little of: no step does less than it must, nor three times as much."""
    for name in ("sft", "prefill", "pictures", "grpo"):
        row = planned["steps"][name]
        assert 0.95 * row["model_flops"] < row["flops"] < 3 * row["model_flops"], name


def test_the_rollout_is_its_parts(planned):
    model, episode = preset("nano")
    parts = sum(planned["steps"][name]["model_flops"] for name in ("prefill", "decode", "pictures"))
    assert parts == pytest.approx(rollout_flops(model, full_counts(episode.layout(28), 2, 2)))
    decode = planned["steps"]["decode"]
    assert decode["token_seconds"] == decode["seconds"] / sum(episode.turn_lens)


def test_the_text_has_what_the_json_has(planned):
    text = verb.text(planned)
    for line in (*STEPS, "assumptions:", "total GiB", "MFU", "latency s"):
        assert line in text
    assert text.startswith("a GRPO iteration of 4 episodes, every slot written: ")


def test_the_iteration_is_the_sum_of_its_parts(planned):
    whole, steps = planned["iteration"], planned["steps"]
    rewards = 4 / 309_000
    parts = [steps[name]["seconds"] for name in ("prefill", "decode", "pictures", "grpo")]
    assert whole["seconds"] == pytest.approx(sum(parts) + rewards)
    assert whole["episodes_per_s"] == pytest.approx(4 / whole["seconds"])
    assert sum(whole["shares"].values()) == pytest.approx(1)
    assert whole["shares"]["decode"] == pytest.approx(steps["decode"]["seconds"] / whole["seconds"])
    assert whole["shares"]["update"] == pytest.approx(steps["grpo"]["seconds"] / whole["seconds"])
    work = sum(steps[name]["model_flops"] for name in ("prefill", "decode", "pictures", "grpo"))
    assert whole["mfu"] == pytest.approx(work / whole["seconds"] / 1e12 / planned["chips"])
    filled = whole["filled"]  # nano's slots are shorter than all measured lengths
    assert filled["seconds"] == pytest.approx(whole["seconds"])
    assert filled["mfu"] < whole["mfu"]  # a quarter has no second look


def test_turns_end_with_their_longest_row():
    """By hand: the first turn goes on to the visit after its longest row, 64 of 256 tokens, in loops over 31, 96 and 128."""
    decode = [SimpleNamespace(name="decode", tokens=n) for n in (1, 31, 96, 128, 1)]
    programs = [SimpleNamespace(name="prefill", tokens=1), *decode, SimpleNamespace(name="pictures", tokens=1), *decode]
    layout = EpisodeConfig(turn_lens=(256, 256)).layout(28)
    found = filled_trips(programs, FillConfig(longest=(50, 200)), layout)
    assert found == [
        1,
        1,
        31,
        32,
        0,
        1,
        1,
        1,
        31,
        96,
        96,
        1,
    ]  # the second one: 1 + 31 + 96 + 96 = 224, seven visits of 32


def test_measured_lengths_fill_the_slots():
    layout = EpisodeConfig().layout(28)
    counts = filled_counts(layout, PlanConfig(prompts=2, group=4, fill=FillConfig()))
    assert counts.prompt_A.tolist() == [422, 422]
    assert counts.scored_B.tolist() == [245 + 122] * 6 + [324] * 2  # three of four look
    assert counts.reply_B.tolist() == [245 + 326 + 122] * 6 + [324] * 2
    assert counts.picture_BI2[:, 0, 0].tolist() == [18] * 6 + [0] * 2


def test_maxtext_counts_every_slot_and_all_pairs():
    model, episode = preset("nano")
    layout = episode.layout(model.merged_px)
    prompt, reply, width = layout.prompt_len, layout.reply_len, 96
    weights = model.token_flops + 2 * width * 597
    tokens, pairs = prompt + 2 * reply, prompt**2 + 2 * ((prompt + reply) ** 2 - prompt**2)  # the prompt once
    by_hand = 3 * (tokens * weights + pairs * 3 * 4 * width)
    assert maxtext_flops(model, full_counts(layout, 1, 2)) == by_hand
    assert maxtext_flops(model, full_counts(layout, 1, 2), 4) == by_hand * 4 / 3


def test_too_large_does_not_fit():
    training = report._training(PlanConfig(preset="nano"), jax.devices(), CHIP)[0]
    row = {"total_bytes": 2**31, "seconds": 1.0, "cycle_seconds": 2.0}
    found = report._finished("sft", row, PlanConfig(preset="nano"), training, CHIP)
    assert found["mfu"] == 2 * found["cycle_mfu"] > 0
    assert not found["fits"]


def test_what_the_compiler_gave_up_on():
    row = report._too_large(
        "RESOURCE_EXHAUSTED: E1000: the memory required (17.50G) exceeds available HBM (15.75G)\nmore"
    )
    assert row["total_bytes"] == 17.5 * 2**30
    row = report._too_large("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.00M of 15.75G hbm.")
    assert row["total_bytes"] == 2**29


def test_candidates_divide_the_work():
    config = PlanConfig(preset="qwen2_5_vl_3b", prompts=16, group=4, programs=("sft", "grpo"))
    found = fit.candidates(config, [object()] * 16, CHIPS["TPU v5 lite"])
    assert {candidate.mesh for candidate in found} >= {(1, 16, 1), (4, 4, 1), (8, 1, 2)}
    for candidate in found:
        data, fsdp, tensor = candidate.mesh
        assert data * fsdp * tensor == 16
        assert 16 % (data * fsdp * candidate.accumulate) == 0
    assert found == sorted(found, key=lambda c: (c.guessed_seconds, c.guessed_bytes))
    assert {candidate.sampler for candidate in found} == {1}  # no rollout is planned


def test_fit_takes_the_fastest_that_fits(monkeypatch):
    seconds = {"none": 1.0, "dots": 2.0, "full": 3.0}

    def reported(config, devices, known):
        remat = config.compute.remat
        return {
            "steps": {"sft": {"seconds": seconds[remat], "fits": remat != "none", "total_bytes": 1}},
            "remat": remat,
        }

    monkeypatch.setattr(fit, "report_of", reported)
    config = PlanConfig(preset="nano", prompts=1, group=1, tries=3)
    best = fit.fastest(config, jax.devices()[:1], CHIP)
    assert best["remat"] == "dots"
    assert [row["fits"] for row in best["tried"]].count("NO") == 1
    seconds["dots"] = seconds["full"] = 0.0
    monkeypatch.setattr(
        fit, "report_of", lambda c, *_: {"steps": {"sft": {"fits": False, "total_bytes": 1, "seconds": None}}}
    )
    with pytest.raises(UserError, match="nothing fits"):
        fit.fastest(config, jax.devices()[:1], CHIP)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mesh": (1, 2)}, "three sizes"),
        ({"mesh": (1, 2, 1)}, "not the 1 devices"),
        ({"accumulate": 4}, "doesn't divide"),
        ({"preset": "qwen"}, "unknown preset"),
        ({"programs": ()}, "programs"),
        ({"group": 0}, "must be positive"),
        ({"sampler": -1}, "sampler must be"),
        ({"sampler": 2}, "groups of 2 devices don't divide the 1 devices"),
    ],
)
def test_bad_settings(settings, message, monkeypatch):
    monkeypatch.setattr(verb, "measured_chip", lambda devices, dtype: CHIP)
    with pytest.raises(UserError, match=message):
        verb.plan(PlanConfig(**{"preset": "nano", "prompts": 2, "group": 2, **settings}))


def test_a_topology_needs_libtpu(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=re.escape("zoomearth_jax[plan]")):
        verb.plan(PlanConfig(preset="nano", topology="v5e:4x4"))


def test_tpu_flags_leave_what_is_set(monkeypatch):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--a=1")
    set_tpu_flags()
    set_tpu_flags()
    assert os.environ["LIBTPU_INIT_ARGS"].split()[0] == "--a=1"
    assert len(os.environ["LIBTPU_INIT_ARGS"].split()) == 2


@pytest.mark.slow
def test_bench_plan(monkeypatch):
    programs = bench._programs
    monkeypatch.setattr(
        bench, "_programs", lambda *args: {k: v for k, v in programs(*args).items() if k in ("decode 4", "sft")}
    )
    monkeypatch.setattr(Training, "grpo", lambda *_: None)
    rows = bench.bench_plan(bench.PlanBenchConfig(models=("nano",), prompts=1, group=2, repeats=1))
    assert [row["step"] for row in rows] == ["sft", "decode 4"]
    for row in rows:
        assert row["ratio"] == row["measured_s"] / row["predicted_s"] > 0


def test_the_program_of_text_alone():
    """Its products are those of the decoder over all slots, three times the forward pass, and its rows need no pictures."""
    model, episode = preset("nano")
    training = Training(model, episode, ComputeConfig(), make_mesh((1, 1, 1), jax.devices()[:1]))
    program = training.text(4, 128)
    found = bench.play(program.compiled, training, Network(CHIP, jax.devices()[:1]), False).flops
    tokens = 4 * 128
    by_hand = 3 * tokens * (model.token_flops + 2 * model.width * model.vocab_size + model.pair_flops * 128)
    assert found == pytest.approx(by_hand, rel=0.03)  # the frozen encoder doesn't run


@pytest.mark.parity
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu; pip install 'zoomearth_jax[plan]'")
def test_published_runs():
    text = TextConfig(512, 128, 2, 1, 1, 256, tie_embeddings=False, mrope_section=(16, 24, 24))
    (row,) = published.published((published.Run("small", "v5e:2x2", 2, 256, 1.0, text),))
    assert 0 < row["latency_s"] < row["roofline_s"] < row["by_cycles_s"] < 1
    assert row["roofline_ratio"] == 1 / row["roofline_s"]


@pytest.mark.parity
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu; pip install 'zoomearth_jax[plan]'")
def test_tpu_topology():
    config = PlanConfig(preset="nano", topology="v5e:2x2", mesh=(1, 4, 1), prompts=4, group=2, programs=("grpo",))
    found = verb.plan(dataclasses.replace(config))["steps"]["grpo"]
    assert found["fits"]
    assert 0 < found["seconds"] < found["cycle_seconds"]
    assert set(found["collectives"]) >= {"all-reduce"}


@pytest.mark.parity
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu; pip install 'zoomearth_jax[plan]'")
def test_candidates_rank_the_samplers_layouts_as_runs_choose_them():
    config, devices = PlanConfig(prompts=16, group=4, programs=("rollout", "grpo")), verb.topology_devices("v5e:4x4")
    found = fit.candidates(config, devices, CHIPS["TPU v5 lite"])
    assert {candidate.sampler for candidate in found} >= {1, 2, 4, 8, 16}
    chosen = report.decoding(config, make_mesh((1, 16, 1), devices)).chosen()
    first = next(c for c in found if c.mesh == (1, 16, 1) and c.guessed_bytes < CHIPS["TPU v5 lite"].hbm_bytes)
    assert first.sampler == chosen > 1


@pytest.mark.parity
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu; pip install 'zoomearth_jax[plan]'")
def test_meshes_may_cut_a_dimension_of_the_torus():
    devices = verb.topology_devices("v6e:4x4")
    mesh = make_mesh((2, 8, 1), devices)
    assert mesh.devices.shape == (2, 8, 1)
    assert set(mesh.devices.flat) == set(devices)
