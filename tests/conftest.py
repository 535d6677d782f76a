"""Shared fixtures: the shipped nano model and an engine for it, built once."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from flax import nnx
from hypothesis import settings

from zoomearth_jax.model_io import load_model
from zoomearth_jax.rl.rollout import RolloutEngine


@pytest.fixture(scope="session")
def nano():
    """The shipped model with its row builder."""
    return load_model("nano")


@pytest.fixture(scope="session")
def nano_params(nano):
    """The shipped model's parameters."""
    return nnx.state(nano.model, nnx.Param)


@pytest.fixture(scope="session")
def engine(nano):
    """One engine for all tests, so that its programs compile once."""
    return RolloutEngine(nano.model, nano.rows)


settings.register_profile("default", deadline=None, max_examples=60)  # the first example compiles
settings.load_profile("default")
