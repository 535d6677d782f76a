"""`zoomearth bench generation`: one row, nothing lost or mixed."""

import json

import pytest

from zoomearth_jax.cli import main


@pytest.mark.slow
def test_nothing_is_lost_or_mixed(capsys):
    sizes = ["--generator.rows", "8", "--generator.steps", "1", "--clients", "12", "--questions", "2", "--repeats", "1"]
    assert main(["bench", "generation", *sizes, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["clients"], row["lost"], row["mixed"]) == (12, 0, 0)
    assert row["episodes_per_s"] > 0
    assert row["throughput_ratio"] == pytest.approx(row["episodes_per_s"] / row["alone_per_s"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--clients", "0"], "must be positive"),
        (["--generator.rows", "2", "--generator.queue", "3"], "more clients than rows and queue hold"),
        (["--generator.visit", "0"], "visit must be positive"),
    ],
)
def test_bad_settings_are_one_line(flags, message, capsys):
    assert main(["bench", "generation", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
