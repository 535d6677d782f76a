"""What the attached device can do, measured, where it isn't a known chip."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from zoomearth_jax.hardware.chips import Chip

SIDE = 2048  # of the matrices: large enough to reach the peak, a tenth of a second on two cores
COPIED = 2**28  # bytes, more than caches hold


def measured_chip(devices: Sequence, dtype: str) -> Chip:
    """Peak FLOP/s by a matrix product in `dtype`, bandwidth by a copy, each the best of five; devices share the host's memory."""
    square = jnp.ones((SIDE, SIDE), dtype)
    peak = 2.0 * SIDE**3 / best_seconds(jax.jit(jnp.matmul), square, square)
    bandwidth = 2.0 * COPIED / _in_place_seconds(jnp.ones(COPIED // 4, jnp.float32))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / len(devices)
    stats = devices[0].memory_stats() or {}
    return Chip(devices[0].device_kind, peak, stats.get("bytes_limit", memory), bandwidth, bandwidth, 1, bandwidth)


def _in_place_seconds(line, times: int = 5) -> float:
    """The shortest time of reading and writing an array, in memory that is there already."""
    add = jax.jit(lambda x: x + 1.0, donate_argnums=0)
    seconds = []
    for _ in range(times + 1):
        began = time.perf_counter()
        line = jax.block_until_ready(add(line))
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def best_seconds(run: Callable, *args, times: int = 5) -> float:
    """The shortest of several runs after a first one."""
    jax.block_until_ready(run(*args))
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        jax.block_until_ready(run(*args))
        seconds.append(time.perf_counter() - began)
    return min(seconds)
