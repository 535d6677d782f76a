"""How many devices share out the weights while tokens are written: the estimate, and what it refuses."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.mesh import MeshConfig
from zoomearth_jax.errors import UserError
from zoomearth_jax.hardware import decoding
from zoomearth_jax.hardware.chips import CHIPS
from zoomearth_jax.hardware.decoding import EXCHANGES, STATES, Decoding, lay_out
from zoomearth_jax.models.families import abstract_model
from zoomearth_jax.models.presets import preset
from zoomearth_jax.models.sharding import make_mesh

V5E = CHIPS["TPU v5 lite"]


def torus(side: int):
    """A mesh of side x side devices of a torus, row by row."""
    devices = [SimpleNamespace(coords=(x, y, 0), slice_index=0) for x in range(side) for y in range(side)]
    return SimpleNamespace(
        size=side**2, devices=np.array(devices, object), shape={"data": 1, "fsdp": side**2, "tensor": 1}
    )


@pytest.fixture(scope="module")
def model():
    return abstract_model(preset("qwen2_5_vl_3b")[0], ComputeConfig(dtype="bfloat16"))


@pytest.fixture
def v5e(model, monkeypatch):
    monkeypatch.setattr(decoding, "sampler_mesh", lambda mesh, size: ("mesh", size))
    return Decoding(model, torus(4), prompts=16, group=4, slots=1472, chip=V5E, trains=True)


def test_seconds_are_weights_states_and_hops(v5e):
    weights = 2 * (36 * (2 * 2048 * 2048 + 2 * 2048 * 256 + 3 * 2048 * 11008) + 151936 * 2048)
    assert v5e.seconds(1) == pytest.approx(weights / V5E.hbm_bandwidth, rel=1e-3)
    sent = STATES * 32 * 2048 * 2 * 7 / 8 / (2 * V5E.link_bandwidth)
    hops = 1 + 3  # two rows of four devices, of which none closes to a ring
    expected = weights / 8 / V5E.hbm_bandwidth + 36 * (sent + EXCHANGES * hops * V5E.hop_seconds)
    assert v5e.seconds(8) == pytest.approx(expected, rel=1e-3)


def test_the_fastest_that_fits_is_chosen(v5e):
    assert v5e.sizes() == [1, 2, 4, 8, 16]
    assert v5e.chosen() == min(v5e.sizes(), key=v5e.seconds) == 8
    assert lay_out(v5e, 0) == (("mesh", 8), [])
    assert lay_out(v5e, 1) == (None, [])
    assert v5e.held_bytes(16) < v5e.held_bytes(8) < v5e.held_bytes(2) < v5e.held_bytes(1)
    small = dataclasses.replace(v5e, chip=V5E._replace(hbm_bytes=v5e.held_bytes(16)))
    assert small.chosen() == 16
    assert dataclasses.replace(v5e, chip=None).chosen() == 1


def test_what_does_not_fit_is_said_with_its_bytes(v5e):
    tiny = dataclasses.replace(v5e, chip=V5E._replace(hbm_bytes=2**30))
    sampler, (line,) = lay_out(tiny, 8)
    assert sampler == ("mesh", 8)
    assert f"{tiny.held_bytes(8) / 2**30:.1f} GiB of a device's 1.0 GiB" in line


def test_questions_that_do_not_divide_take_the_trainers_layout(v5e):
    few = dataclasses.replace(v5e, prompts=8)
    sampler, (line,) = lay_out(few, 0)
    assert sampler is None
    assert "8 questions at once don't divide over 16 devices" in line
    with pytest.raises(UserError, match=r"sampler 4: 8 questions .* sizes that do: 1, or 0"):
        lay_out(few, 4)


@pytest.mark.parametrize(("size", "words"), [(3, "groups of 3 devices"), (32, "groups of 32 devices")])
def test_sizes_that_do_not_divide_devices(v5e, size, words):
    with pytest.raises(UserError, match=rf"{words} .* sizes that do: 1, 2, 4, 8, 16, or 0"):
        lay_out(v5e, size)


def test_sizes_that_do_not_divide_the_vocabulary(v5e):
    many = dataclasses.replace(v5e, mesh=torus(16), prompts=256)
    assert 128 in many.sizes()
    with pytest.raises(UserError, match=r"decoder.embed.embedding, 151936 wide, doesn't divide by 256"):
        lay_out(many, 256)


def test_on_a_cpu_the_trainers_layout_is_the_default(model):
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    here = Decoding(model, mesh, 3, 1, 64, None, trains=False)
    assert lay_out(here, 0) == (None, [])
    with pytest.raises(UserError, match="groups of 2 devices"):
        lay_out(here, 2)
    with pytest.raises(UserError, match="sampler must be"):
        MeshConfig(sampler=-1)
