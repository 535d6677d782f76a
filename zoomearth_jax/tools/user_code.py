"""Functions of the user's own, by import path."""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path
from typing import Any

from zoomearth_jax.errors import UserError


@functools.cache
def imported(path: str, what: str) -> Any:
    """What MODULE:NAME names; modules are looked for where Python does, then in the working directory.

    The module's code runs: it is trusted as the command line that names it.

    Args:
        what: what it is to be, for messages, such as `reward`.

    Raises:
        UserError: it can't be imported, or has nothing of that name that can be called.
    """
    module, _, name = path.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # whatever the user's code does
        raise UserError(f"{what} {path}: importing {module} failed ({said(error)})") from error
    if not callable(found) and not hasattr(found, "call"):
        raise UserError(f"{what} {path}: {module} has no function {name}")
    return found


def said(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
