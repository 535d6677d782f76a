"""Off a terminal a line every so often; on one a bar."""

import re

import pytest

from zoomearth_jax.terminal import progress
from zoomearth_jax.terminal.progress import Progress, tracked


@pytest.fixture
def now(monkeypatch):
    """A clock that the test sets."""
    time = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
    return time


def test_a_line_every_so_often(now, capsys):
    with Progress("sft", 100, start=20) as bar:
        for _ in range(60):
            now[0] += 1.0
            bar.update(1, {"loss": "0.123"})
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "zoomearth: sft: 35 of 100, 1 a second, 65 s left, loss 0.123"
    assert len(said) == 4


def test_what_is_counted_without_an_end(now, capsys):
    with Progress("tiles", unit="px") as bar:
        now[0] += 30.0
        bar.update(12_345_678)
    assert capsys.readouterr().err == "zoomearth: tiles: 12.3M px, 411,523 a second\n"


def test_short_work_and_other_processes_say_nothing(now, capsys):
    assert list(tracked(range(5), "scenes")) == [0, 1, 2, 3, 4]
    with Progress("sft", 9, quiet=True) as bar:
        now[0] += 1000
        bar.update()
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress, "terminal", lambda: True)
    with Progress("sft", 4, start=1) as bar:
        bar.update(2, {"loss": "0.5"})
        bar._bar.refresh()
    assert re.search(r"sft:  75%.*3/4.*loss 0.5", capsys.readouterr().err)
