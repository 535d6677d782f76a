"""Averages and their intervals, against counting by hand and against resampling one value at a time."""

import numpy as np
import pytest

from zoomearth_jax.evaluation.statistics import RESAMPLES, average, average_of_groups, resampled_means, split


def test_an_average_has_its_interval_beside_it():
    values = np.array([1.0, 0.0, 1.0, 1.0])
    found = average("official", values)
    assert found["official"] == 0.75
    assert found["official_interval"] == [0.25, 1.0]  # 2 of 1,000 draws of four have no 1 at all
    assert average("official", values) == found
    assert average("x", np.zeros(0)) == {}
    assert average("x", np.ones(5)) == {"x": 1.0, "x_interval": [1.0, 1.0]}


def test_intervals_are_those_of_drawing_with_replacement():
    rng = np.random.default_rng(3)
    values = np.where(rng.uniform(size=400) < 0.3, 0.0, rng.uniform(size=400))  # IoUs: many zeros, others different
    one_by_one = np.array([np.mean([values[rng.integers(400)] for _ in range(400)]) for _ in range(300)])
    drawn = resampled_means(values, np.random.default_rng(0))
    assert drawn.shape == (RESAMPLES,)
    assert drawn.mean() == pytest.approx(values.mean(), abs=0.004)
    assert drawn.std() == pytest.approx(values.std() / 20, rel=0.08)
    assert drawn.std() == pytest.approx(one_by_one.std(), rel=0.15)
    low, high = average("x", values)["x_interval"]
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        low, high = average("x", (rng.uniform(size=200) < 0.4).astype(float))["x_interval"]
        covered += low <= 0.4 <= high
    assert 0.91 <= covered / 300 <= 0.98


def test_groups_count_the_same_whatever_their_size():
    values, groups = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 1.0]), ["a", "a", "a", "a", "b", "b"]
    found = average_of_groups("macro", values, groups)
    assert found["macro"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    low, high = found["macro_interval"]
    assert 0 < low < found["macro"] < high <= 1
    of_one = average_of_groups(
        "macro", np.array([1.0, 0.0]), ["a", "b"]
    )  # within a group of one there is nothing to draw
    assert of_one == {"macro": 0.5, "macro_interval": [0.5, 0.5]}


def test_groups_come_by_name_and_levels_in_their_order():
    names = ["object: b", "global: z", "region: a", "global: c"]
    assert list(split(np.arange(4), names)) == ["global: c", "global: z", "region: a", "object: b"]
    assert list(split(np.arange(3), ["region", "global", "object"])) == ["global", "region", "object"]
    assert list(split(np.arange(2), ["b", "a"])) == ["a", "b"]
