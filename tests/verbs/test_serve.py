"""`zoomearth serve` as a command: bad settings, and how it ends."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from zoomearth_jax.bench.serve import Reply, Round, ServeBenchConfig, _row
from zoomearth_jax.cli import main


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--port", "70000"], "--port 70000: must be between 0 and 65535"),
        (["--host", "0.0.0.0", "--port", "0"], "give it a key (ZOOMEARTH_API_KEY or --api-key-file)"),
        (["--host", "nowhere.invalid"], "--host nowhere.invalid --port 8000: can't be served at"),
        (["--root", "nowhere"], "--root nowhere: no such folder"),
        (["--api-key-file", "nowhere"], "nowhere: can't be read (No such file or directory)"),
        (["--api-key-file", "/dev/null"], "/dev/null: holds no key"),
        (["--model", "nano-grpoo", "--port", "0"], "no such model; did you mean 'nano-grpo'?"),
        (["--limits.files", "0"], "limits: files must be positive"),
        (["--generator.rows", "0"], "rows must be positive"),
        (["--drain-seconds", "-1"], "drain_seconds must not be negative"),
        (["--generator.slots", "10", "--port", "0"], "10 slots hold no episode"),
    ],
)
def test_bad_settings_are_one_line(args, message, capsys, monkeypatch):
    monkeypatch.delenv("ZOOMEARTH_API_KEY", raising=False)
    assert main(["serve", *args]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert message in said[0]


def test_a_taken_port_is_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    assert f"--port {port}: can't be served at (Address already in use)" in capsys.readouterr().err


def test_a_key_of_the_environment_is_checked(monkeypatch, capsys):
    monkeypatch.setenv("ZOOMEARTH_API_KEY", "a key")
    assert main(["serve", "--port", "0"]) == 2
    assert "ZOOMEARTH_API_KEY: a key consists of printable ASCII characters without spaces" in capsys.readouterr().err


def test_ctrl_c_ends_it_with_zero():
    command = [sys.executable, "-m", "zoomearth_jax.cli", "serve", "--port", "0", "--no-warm"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()}
    ) as server:
        line = next(line for line in server.stderr if "is served at" in line)
        url = line.split(" is served at ")[1].split()[0]
        with urllib.request.urlopen(f"{url}health") as health:
            assert health.status == 200
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0
        assert server.stderr.read() == "zoomearth: the server has stopped\n"


def test_the_benchmark_tells_lost_mixed_and_changed_replies_apart():
    expected = [("a",), ("b",)]
    alone = [Round([Reply(0, ("a",), 0.1), Reply(1, ("b",), 0.1)], 0.2, 0.1)]
    replies = [Reply(0, ("b",), 0.2), Reply(0, None, 0.2), Reply(1, ("c",), 0.2), Reply(1, ("b",), 0.2)]
    together = [Round(replies, 0.1, 0.1)]
    row = _row(ServeBenchConfig(clients=2), expected, alone, together)
    assert (row["lost"], row["mixed"], row["changed"], row["requests"]) == (1, 1, 1, 6)
    assert row["throughput_ratio"] == pytest.approx(4)
    assert (row["alone_processor_ms"], row["together_processor_ms"]) == (50, 25)
    assert main(["bench", "serve", "--clients", "0"]) == 2


@pytest.mark.slow
def test_the_benchmark_runs(capsys):
    import json

    assert (
        main(["bench", "serve", "--clients", "4", "--requests", "1", "--rounds", "1", "--side", "512", "--json"]) == 0
    )
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["lost"], row["mixed"], row["changed"]) == (0, 0, 0)
