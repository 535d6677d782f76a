"""Averages with 95 % intervals by the bootstrap, whose draws follow from a fixed seed: the same records give the same intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zoomearth_jax.data_pipeline.questions.question import LEVELS

RESAMPLES, SEED = 1000, 0
_FEW = 10  # different values
BOUNDS = (2.5, 97.5)  # percentiles: a 95 % interval


def resampled_means(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means of as many values again, drawn from `values` [N] with replacement: float64 [RESAMPLES].

    How often each different value is drawn is multinomial, so 0 and 1 cost two numbers per resample, however many there are;
    IoUs, of which most differ, are drawn one by one.
    """
    values = np.asarray(values, np.float64)
    different, counts = np.unique(values, return_counts=True)
    if len(different) <= _FEW:
        return rng.multinomial(len(values), counts / counts.sum(), size=RESAMPLES) @ different / len(values)
    return np.array([values[rng.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)])


def average(name: str, values: np.ndarray) -> dict:
    """The mean of values [N] under `name`, and its interval under `name` with `_interval`; {} without values."""
    if not len(values):
        return {}
    return _with_interval(name, float(np.mean(values)), resampled_means(values, np.random.default_rng(SEED)))


def average_of_groups(name: str, values: np.ndarray, groups: Sequence[str]) -> dict:
    """As `average`, of the means of groups, each of which counts the same; values are drawn within their group.

    Args:
        groups: the group of each value, N names.
    """
    parts = list(split(values, groups).values())
    if not parts:
        return {}
    rng = np.random.default_rng(SEED)
    drawn = np.mean([resampled_means(part, rng) for part in parts], axis=0)
    return _with_interval(name, float(np.mean([part.mean() for part in parts])), drawn)


def split(values: np.ndarray, groups: Sequence[str]) -> dict[str, np.ndarray]:
    """The values of each group, groups in the order of their names, where those of the levels come in theirs."""
    names, values = np.asarray(groups, object), np.asarray(values)
    return {name: values[names == name] for name in sorted(set(groups), key=_place)}


def _place(name: str) -> tuple[int, str]:
    level = name.partition(":")[0]
    return (LEVELS.index(level) if level in LEVELS else len(LEVELS)), name


def _with_interval(name: str, mean: float, drawn: np.ndarray) -> dict:
    return {name: mean, f"{name}_interval": [float(bound) for bound in np.percentile(drawn, BOUNDS)]}
