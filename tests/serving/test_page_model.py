"""The page with a real server, a real model and a scene of 5,000 px; what it shows is what `ask` gives.

With ZOOMEARTH_PAGE_PNG the picture that docs/page.md shows is written there.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import zoomearth_jax as ze
from tests.serving.test_page_browser import answered, ask, browser, by_hand, on_screen, settled  # noqa: F401
from zoomearth_jax.data_pipeline.questions.questions import read_questions

pytestmark = pytest.mark.slow
SIDE = 5_000


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A folder with a scene as TIFF, and the questions about it."""
    folder = tmp_path_factory.mktemp("scene")
    command = [sys.executable, "-m", "zoomearth_jax.cli", "scenes", "--out", folder / "s", "--side", str(SIDE), "--count", "1"]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "s"


@pytest.fixture(scope="module")
def address():
    command = [sys.executable, "-m", "zoomearth_jax.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        for line in server.stdout:
            if "is served at" in line:
                break
        yield line.split("served at ")[1].split()[0]
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=60)
    assert server.returncode in (0, -signal.SIGTERM)
