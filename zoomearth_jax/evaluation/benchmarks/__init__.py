"""Benchmarks: one adapter per file, with the official rule and a strict one."""

from __future__ import annotations

from zoomearth_jax.evaluation.benchmarks.benchmark import Benchmark
from zoomearth_jax.evaluation.benchmarks.geollava import GeoLlava
from zoomearth_jax.evaluation.benchmarks.lrs_gro import LrsGro
from zoomearth_jax.evaluation.benchmarks.lrs_vqa import LrsVqa
from zoomearth_jax.evaluation.benchmarks.mme_realworld_rs import MmeRealWorldRs
from zoomearth_jax.evaluation.benchmarks.questions import Questions
from zoomearth_jax.evaluation.benchmarks.xlrs_bench import XlrsBench

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (LrsGro(), MmeRealWorldRs(), XlrsBench(), LrsVqa(), GeoLlava(), Questions())
}
