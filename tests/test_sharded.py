"""Meshes of simulated devices, and two processes: the same numbers as on one device."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from zoomearth_jax.model_io import resolve

SCRIPT = Path(__file__).with_name("sharded_check.py")


def start(devices, *args):
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "PYTHONPATH": str(SCRIPT.parents[1])}
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    return subprocess.Popen(command, env=os.environ | flags, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


def test_loss_and_gradients_on_meshes_of_8_devices():
    found = result(start(8, "losses"))
    assert list(found) == ["(8, 1, 1)", "(2, 4, 1)", "(2, 2, 2)"]
    for shape, errors in found.items():
        assert errors["loss"] < 1e-5, shape
        assert errors["gradient"] < 1e-5, shape  # relative to each parameter's largest
    layers, width, mlp = found["(2, 2, 2)"]["kernel"]
    assert found["(8, 1, 1)"]["shard"] == [layers, width, mlp]
    assert found["(2, 4, 1)"]["shard"] == [layers, width // 4, mlp]
    assert found["(2, 2, 2)"]["shard"] == [layers, width // 2, mlp // 2]


def test_two_processes_load_shards_and_save_one_checkpoint(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [start(4, "load", address, number, tmp_path / "out") for number in (0, 1)]
    for found in [result(process) for process in processes]:
        assert found == {"addressable": False, "shards": 4}
    saved, shipped = (folder / "model.safetensors" for folder in (tmp_path / "out", resolve("nano")))
    assert saved.read_bytes() == shipped.read_bytes()
