"""What tests run inside workers; imports nothing that rows don't."""

import os
import sys
import time


class RowsThenModules:
    """Makes rows, then tells which modules are there and in which process."""

    def __init__(self, rows):
        self.rows = rows

    def __call__(self, questions):
        self.rows.supervised(questions)
        return {name: name in sys.modules for name in ("jax", "grain", "transformers")}, os.getpid()


def nap(questions):
    """A slow batch."""
    time.sleep(0.2)
