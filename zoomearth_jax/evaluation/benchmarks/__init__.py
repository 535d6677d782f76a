"""Benchmarks: one adapter per file, with the official rule and a strict one."""

from __future__ import annotations

from zoomearth_jax.evaluation.benchmarks.benchmark import Benchmark

BENCHMARKS: dict[str, Benchmark] = {}
