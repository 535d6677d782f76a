"""`zoomearth bench`: its rows, and what it says where it can't run."""

import json
import sys

import pytest

from zoomearth_jax.bench import table
from zoomearth_jax.cli import main


def test_table_aligns_rows_with_different_columns():
    rows = [{"what": "load", "seconds": 12.3456}, {"what": "answer", "seconds": 1.0, "tokens": 16}]
    assert table(rows).splitlines() == ["  what  seconds  tokens", "  load     12.3        ", "answer        1      16"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["bench", "peers", "--models", "nanno"], "unknown models nanno; known: nano, 100m, full_width"),
        (["bench", "peers", "--repeats", "0"], "must be positive"),
        (["bench", "full-size", "--tokens", "0"], "tokens must be positive"),
        (["bench", "full-size", "--preset", "nanno"], "did you mean 'nano'"),
        (["bench", "full-size", "--model", "nowhere"], "no such model"),
    ],
)
def test_bad_input_is_one_line(args, message, capsys):
    assert main(args) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_peers_without_torch_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["bench", "peers", "--models", "nano"]) == 2
    assert "pip install torch" in capsys.readouterr().err


def test_full_size_measures_loading_and_answers(capsys):
    assert main(["bench", "full-size", "--preset", "nano", "--tokens", "4", "--json"]) == 0
    load, first, again = json.loads(capsys.readouterr().out)
    assert load["parameters_gb"] == pytest.approx(556_512 * 2 / 1e9)
    assert load["seconds"] > 0
    assert first["tokens"] == again["tokens"] > 0
    assert again["peak_gb"] >= load["peak_gb"] > 0


@pytest.mark.parity
def test_peers_prints_rows_of_both(capsys):
    pytest.importorskip("torch", reason="make parity installs torch")
    assert main(["bench", "peers", "--models", "nano", "--repeats", "5", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"forward", "train", "decode"} <= {row["what"] for row in rows}
    for row in rows:
        assert row["model"] == "nano"
        assert row["ours_s"] > 0
        assert row["hf_s"] > 0
        assert row["ratio"] == pytest.approx(row["hf_s"] / row["ours_s"])
