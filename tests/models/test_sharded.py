"""Meshes of simulated devices, and two processes: the same numbers as on one device."""

import pytest

from tests.processes import address, result, start
from zoomearth_jax.runs.models import resolve

SCRIPT = "models/sharded_check.py"


@pytest.mark.slow
def test_loss_and_gradients_on_meshes_of_8_devices():
    found = result(start(SCRIPT, 8, "losses"))
    assert list(found) == ["(8, 1, 1)", "(2, 4, 1)", "(2, 2, 2)"]
    for shape, errors in found.items():
        assert errors["loss"] < 1e-5, shape
        assert errors["gradient"] < 1e-5, shape  # relative to each parameter's largest
    layers, width, mlp = found["(2, 2, 2)"]["kernel"]
    assert found["(8, 1, 1)"]["shard"] == [layers, width, mlp]
    assert found["(2, 4, 1)"]["shard"] == [layers, width // 4, mlp]
    assert found["(2, 2, 2)"]["shard"] == [layers, width // 2, mlp // 2]


def test_two_processes_load_shards_and_save_one_checkpoint(tmp_path):
    where = address()
    processes = [start(SCRIPT, 4, "load", where, number, tmp_path / "out") for number in (0, 1)]
    for found in [result(process) for process in processes]:
        assert found == {"addressable": False, "shards": 4}
    saved, shipped = (folder / "model.safetensors" for folder in (tmp_path / "out", resolve("nano")))
    assert saved.read_bytes() == shipped.read_bytes()
