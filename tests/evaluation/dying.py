"""Run by test_runner.py: dying.py N ARGUMENTS runs `zoomearth ARGUMENTS`, which is killed in the midst of writing batch N + 1."""

import os
import signal
import sys

from zoomearth_jax.cli import main
from zoomearth_jax.evaluation import record_store

append, left = record_store._append, int(sys.argv[1])


def dying(path, data):
    """Appends, but of the last batch only half of its bytes."""
    global left
    left -= 1
    append(path, data if left >= 0 else data[: len(data) // 2])
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)


record_store._append = dying
sys.exit(main(sys.argv[2:]))
