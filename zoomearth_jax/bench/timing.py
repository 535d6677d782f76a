"""Seconds of calls."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import jax


def seconds_of(run: Callable) -> float:
    """Seconds of one call, until its arrays are there."""
    began = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - began


def median_seconds(run: Callable, repeats: int) -> float:
    """Median seconds of several calls after one to warm up."""
    seconds_of(run)
    return statistics.median(seconds_of(run) for _ in range(repeats))
