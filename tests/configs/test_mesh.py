"""Mesh sizes from settings, devices and the model's size."""

import pytest

from zoomearth_jax.configs.mesh import MeshConfig
from zoomearth_jax.errors import UserError

NANO, B3, B7, B72 = 556_512, 3_754_622_976, 8_292_166_656, 73_410_777_344


@pytest.mark.parametrize(
    ("devices", "parameters", "slices", "shape"),
    [
        (1, B3, 1, (1, 1, 1)),
        (8, NANO, 1, (8, 1, 1)),  # small models: copies
        (8, B3, 1, (1, 8, 1)),  # not enough devices: all of them
        (16, B3, 1, (1, 16, 1)),  # 60 GB over 16 devices
        (256, B3, 1, (16, 16, 1)),
        (256, B7, 1, (4, 64, 1)),
        (256, B72, 1, (1, 256, 1)),
        (64, B3, 4, (4, 16, 1)),  # fsdp stays inside a slice
        (64, B7, 4, (4, 16, 1)),
    ],
)
def test_default_shape(devices, parameters, slices, shape):
    assert MeshConfig().shape(devices, parameters, slices) == shape


@pytest.mark.parametrize(("gib", "fsdp"), [(15.75, 16), (31.24, 8), (95.73, 4)])
def test_larger_memories_take_fewer_shards(gib, fsdp):
    """60 GB of the 3B's state, a quarter of a chip's memory each."""
    assert MeshConfig().shape(64, B3, memory=gib * 2**30) == (64 // fsdp, fsdp, 1)


def test_what_is_given_stays():
    assert MeshConfig(tensor=4).shape(64, B3) == (4, 4, 4)  # a tensor group shares the state too
    assert MeshConfig(data=2).shape(16, NANO) == (2, 8, 1)
    assert MeshConfig(fsdp=2).shape(16, B72) == (8, 2, 1)
    assert MeshConfig(2, 2, 2).shape(8, NANO) == (2, 2, 2)


@pytest.mark.parametrize(
    ("config", "devices", "slices"),
    [(MeshConfig(3), 8, 1), (MeshConfig(tensor=3), 8, 1), (MeshConfig(2, 2, 1), 8, 1), (MeshConfig(1, 8), 8, 2)],
)
def test_sizes_that_are_not_the_devices(config, devices, slices):
    with pytest.raises(UserError, match="is not the 8 devices"):
        config.shape(devices, NANO, slices)


@pytest.mark.parametrize(
    "settings",
    [
        {"data": -1},
        {"tensor": 0},
        {"processes": 2},
        {"coordinator": "host"},
        {"coordinator": "host:1", "processes": 2, "process": 2},
    ],
)
def test_bad_settings(settings):
    with pytest.raises(UserError, match="mesh config"):
        MeshConfig(**settings)
