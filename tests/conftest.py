"""Shared fixtures: the shipped nano model and an engine for it, built once. Compiled programs are shared too."""

import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "JAX_NUMPY_DTYPE_PROMOTION", "strict"
)  # no type is chosen silently; the tests' own processes inherit it
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# half the seconds of compiling, which most tests consist of; `make parity` and `make slow` compile as users do
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_parallel_codegen_split_count=1",
)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # pytest's workers and the tests' own processes inherit it
    _PROGRAMS = tempfile.TemporaryDirectory(prefix="zoomearth-tests-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["ZOOMEARTH_CACHE"] = _PROGRAMS.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"

import pytest
from flax import nnx
from hypothesis import settings

from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.runs.models import load_model

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    """An installed Chromium, driven by Playwright."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed (the extra `browser`)")
    if CHROMIUM is None:
        pytest.skip("no chromium on the path (Debian's package chromium)")
    with api.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


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
