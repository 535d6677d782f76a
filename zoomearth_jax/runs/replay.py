"""Batches that broke a run, saved to be replayed."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zoomearth_jax.errors import UserError
from zoomearth_jax.files import write_file
from zoomearth_jax.models.sharding import local_rows


def save_replay(path: Path, batch) -> None:
    """Writes this process's rows of a batch, a tree of arrays, under the names of its leaves; whole or not at all."""
    arrays = {}
    for name, x in _named(local_rows(batch)).items():
        plain = x.dtype.kind in "biufc"  # others, such as bfloat16, go as their bits
        arrays[name if plain else f"{name}:{x.dtype}"] = x if plain else x.view(f"u{x.dtype.itemsize}")

    def fill(partial: Path) -> None:
        with open(partial, "wb") as file:
            np.savez_compressed(file, **arrays)

    write_file(path, fill)


def load_replay(path: Path, like):
    """The batch that a broken run saved, as NumPy arrays in the form of `like`: another batch of the same run.

    Raises:
        UserError: no such file, or a batch of another form.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(_unpacked(name, file[name]) for name in file.files)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a batch that was saved for replay ({error})") from None
    wanted = _named(like)
    different = sorted(set(arrays) ^ set(wanted))
    if different:
        raise UserError(f"{path}: a batch of another form; it differs in {', '.join(different[:3])}")
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in wanted])


def _named(tree) -> dict[str, Any]:
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in jax.tree.leaves_with_path(tree)}


def _unpacked(name: str, x: np.ndarray) -> tuple[str, np.ndarray]:
    name, _, kind = name.partition(":")
    return name, x.view(jax.numpy.dtype(kind)) if kind else x
