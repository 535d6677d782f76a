"""The benchmarks of GRPO: what they compare is the same, and their rows say so."""

import pytest

from zoomearth_jax import bench
from zoomearth_jax.bench.grpo import GRPOBenchConfig, bench_grpo
from zoomearth_jax.bench.loader import WholeFile
from zoomearth_jax.bench.rollout import RolloutBenchConfig, bench_rollout

pytestmark = pytest.mark.parity


def test_an_iteration_has_torch_s_loss_and_gradient():
    """bench_grpo compares them and raises where they differ."""
    pytest.importorskip("torch")
    rows = bench_grpo(GRPOBenchConfig(models=("nano",), group=2, repeats=1))
    assert [(row["model"], row["variant"]) for row in rows] == [("nano", "released"), ("nano", "fair")]
    for row in rows:
        assert row["ratio"] == row["torch_s"] / row["ours_s"]
        assert row["ours_s"] == pytest.approx(row["ours_rollout_s"] + row["ours_update_s"])
        assert row["episodes"] == 32
        assert 10 < row["tokens_an_episode"] < 32


def test_images_may_be_files(monkeypatch):
    """As released, a file is decoded for every rollout and every crop; the fair way decodes it once."""
    pytest.importorskip("torch")
    monkeypatch.setattr(bench.grpo, "SIDE", 2048)
    monkeypatch.setitem(bench.grpo.QUESTIONS, "nano", 2)
    decoded = []
    pixels = WholeFile.pixels
    monkeypatch.setattr(WholeFile, "pixels", lambda self: decoded.append(type(self).__name__) or pixels(self))
    rows = bench_grpo(GRPOBenchConfig(models=("nano",), images="tif", group=2, repeats=1))
    assert [row["images"] for row in rows] == ["tif", "tif"]
    assert decoded.count("HeldFile") == 2 * 2  # two files, two iterations
    assert 2 * 4 < decoded.count("WholeFile") <= 2 * 8  # four overviews an iteration, and a crop where an episode zooms


def test_savings_change_no_sample():
    prompts, crops, stopped = bench_rollout(RolloutBenchConfig(models=("nano",), prompts=4, group=4, repeats=1))
    assert prompts["flop_ratio"] == pytest.approx(4)
    assert crops["flop_ratio"] > 2
    assert 0 < stopped["mean_tokens"] < stopped["max_tokens"]
    for row in (prompts, crops, stopped):
        assert row["same_tokens"]
        assert row["logp_gap"] < 1e-5
