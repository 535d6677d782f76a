"""The steps in a run's `checkpoints/`: each is as it was written, or it is passed over.

A step is a folder of orbax items: arrays by name, and `run`, JSON with what the step is of and a hash of every array. The
hashes are made on the devices from the bits and their places, so they are the same for any mesh and number of processes;
orbax itself notices a truncated file, but not a changed byte in an array.
"""

from __future__ import annotations

import gc
import glob
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils.epath import gpath
from jax.experimental import multihost_utils

from zoomearth_jax.configs.training import TrainingConfig
from zoomearth_jax.errors import UserError
from zoomearth_jax.terminal.progress import say

Items = dict[str, dict[str, jax.Array]]  # item -> name -> array
GROUP_BYTES = 2**30  # read at once where numbers change their type


def _literal_glob(path, pattern: str, _plain=gpath.PosixGPath.glob):
    """etils' `glob`, which otherwise takes the path itself for a pattern too: orbax then finds none of the parts that it wrote
    under a folder named lr[1e-3]."""
    return _plain(type(path)(glob.escape(os.fspath(path))), pattern)


gpath.PosixGPath.glob = _literal_glob


class Unreadable(Exception):
    """Why a step can't be used, in one line."""


class Step(NamedTuple):
    """A step that was read: its number, what `run` says of it, and its arrays."""

    number: int
    record: dict
    items: Items


def numbers(directory: Path) -> list[int]:
    """The finished steps in a `checkpoints` folder, ascending. Half-written ones have other names."""
    if not directory.is_dir():
        return []
    return sorted(int(folder.name) for folder in directory.iterdir() if folder.name.isdigit())


def is_finished(run: TrainingConfig) -> bool:
    """Whether a run with these settings has its last checkpoint."""
    return numbers(run.out / "checkpoints")[-1:] == [run.steps]


def half_written(directory: Path) -> list[Path]:
    """The folders that interrupted writes have left behind."""
    return sorted(directory.glob("*.orbax-checkpoint-tmp*"))


@jax.jit
def _hashes(arrays: list[jax.Array]) -> jax.Array:
    """One uint32 per array: the sum of a hash (MurmurHash3's last steps) of each element's bits and place."""

    def one(x):
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)
        strides = np.cumprod([1, *x.shape[:0:-1]])[::-1].astype(np.uint32) if x.ndim else ()
        places = sum(
            (jax.lax.broadcasted_iota(jnp.uint32, x.shape, i) * s for i, s in enumerate(strides)), jnp.uint32(0)
        )
        h = bits + places * jnp.uint32(0x9E3779B9)
        h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
        h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
        return jnp.sum(h ^ (h >> 16), dtype=jnp.uint32)

    return jnp.stack([one(x) for x in arrays])


def describe(items: Items) -> dict[str, dict[str, dict]]:
    """Shape, number type and hash of every array: {item: {name: {"shape", "dtype", "hash"}}}."""
    flat = [x for arrays in items.values() for x in arrays.values()]
    hashes = iter(np.asarray(_hashes(flat)).tolist())
    return {
        item: {name: _form(x) | {"hash": next(hashes)} for name, x in arrays.items()} for item, arrays in items.items()
    }


def _form(x) -> dict:
    return {"shape": list(x.shape), "dtype": str(x.dtype)}


def seal(record: Mapping) -> dict:
    """A record with a digest of itself, to be written as JSON."""
    return {"record": dict(record), "sha256": _digest(record)}


def _digest(record: Mapping) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def read_record(folder: Path) -> dict:
    """What a step's `run` says.

    Raises:
        Unreadable: it isn't there, or isn't as it was written.
    """
    try:
        sealed = ocp.JsonCheckpointHandler().restore(folder / "run")
        if sealed["sha256"] == _digest(sealed["record"]):
            return sealed["record"]
    except Exception as error:  # of many kinds: the text may be anything
        raise Unreadable(f"run: {reason(error)}") from None
    raise Unreadable("run: not what was written")


def newest(directory: Path, wanted: Mapping[str, dict[str, Any]], step: int | None = None) -> Step:
    """Reads the newest step that can be read, or the given one; each that can't be is a warning.

    All processes must call it, on a file system that they share.

    Args:
        directory: the `checkpoints` folder.
        wanted: item -> name -> array or ShapeDtypeStruct, whose type and sharding the array gets.

    Raises:
        UserError: no such step, none that can be read, or steps of another model or optimizer.
    """
    known = numbers(directory)
    if step is not None and step not in known:
        raise UserError(f"{directory}: no step {step}; there are {', '.join(map(str, known)) or 'none'}")
    why = "no complete checkpoint"
    for number in [step] if step is not None else reversed(known):
        try:
            return Step(number, *_read(directory / str(number), wanted))
        except Unreadable as error:
            why = f"step {number} can't be read ({error})"
            if step is None and jax.process_index() == 0:
                say(f"warning: {directory}: {why}; trying the one before")
    raise UserError(f"{directory}: {why}" if step is not None or not known else f"{directory}: no step can be read")


def _read(folder: Path, wanted: Mapping[str, dict[str, Any]]) -> tuple[dict, Items]:
    """A step's record and arrays, once their hashes agree."""
    record = _all_or_none(lambda: read_record(folder))
    for item, arrays in wanted.items():
        _check_same(folder, record["arrays"].get(item, {}), arrays)
    return record, {item: _read_item(folder / item, arrays, record["arrays"][item]) for item, arrays in wanted.items()}


def _read_item(folder: Path, wanted: dict, saved: dict) -> dict[str, jax.Array]:
    """Arrays as they were saved, compared by hash, then in the wanted types."""
    found: dict[str, jax.Array] = {}
    for names in _groups(saved, wanted):
        arrays = _all_or_none(
            lambda names=names: _restore(folder, {name: wanted[name] for name in names}, saved), f"{folder.name}: "
        )
        hashes = np.asarray(_hashes(list(arrays.values()))).tolist()
        wrong = [name for name, value in zip(arrays, hashes, strict=True) if value != saved[name]["hash"]]
        if wrong:
            raise Unreadable(f"{folder.name}: {wrong[0]} is not what was written")
        found |= {name: arrays.pop(name).astype(wanted[name].dtype) for name in names}
    return found


def _groups(saved: dict, wanted: dict) -> list[list[str]]:
    """All names at once; where types change, groups of about a gigabyte, lest both types lie in memory side by side."""
    if all(saved[name]["dtype"] == str(x.dtype) for name, x in wanted.items()):
        return [list(wanted)]
    groups: list[list[str]] = [[]]
    size = 0
    for name, x in wanted.items():
        size += x.size * jnp.dtype(saved[name]["dtype"]).itemsize
        if groups[-1] and size > GROUP_BYTES:
            groups, size = [*groups, []], 0
        groups[-1].append(name)
    return groups


def _restore(folder: Path, wanted: dict, saved: dict) -> dict[str, jax.Array]:
    args = {
        name: ocp.ArrayRestoreArgs(sharding=_sharding(x), global_shape=x.shape, dtype=jnp.dtype(saved[name]["dtype"]))
        for name, x in wanted.items()
    }
    names = dict.fromkeys(wanted, 0)
    restore = ocp.args.PyTreeRestore(item=names, restore_args=args, partial_restore=True)
    found = ocp.PyTreeCheckpointHandler().restore(folder, args=restore)  # no barrier inside: a single process may fail
    return {name: found[name] for name in wanted}


def _sharding(x):
    return getattr(x, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])


def _all_or_none(read, what: str = ""):
    """The result of `read`, which all processes get or none; an error begins with `what`.

    Raises:
        Unreadable: it failed here or elsewhere for a reason that lies in the files.
    """
    result, why = None, ""
    with _quiet_leftovers():
        try:
            result = read()
        except (UserError, MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # orbax and tensorstore raise all kinds, bare Exception among them
            why = reason(error)
    if jax.process_count() > 1:
        failed = np.flatnonzero(multihost_utils.process_allgather(np.array(bool(why))))
        why = why or (f"process {failed[0]} can't read it" if failed.size else "")
    if why:
        raise Unreadable(what + why)
    return result


@contextmanager
def _quiet_leftovers() -> Iterator[None]:
    """Closes the reads that a failed one leaves behind; orbax answers their end with exceptions that Python would print."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
        gc.collect()
    finally:
        sys.unraisablehook = hook


def together(what: str) -> None:
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def reason(error: BaseException) -> str:
    """The first line of what lies behind an error, shortened in the middle, where tensorstore puts its paths."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = (str(error).splitlines() or [""])[0] or type(error).__name__
    return line if len(line) <= 200 else f"{line[:60]} ... {line[-120:]}"


def _check_same(folder: Path, saved: dict, wanted: dict) -> None:
    different = sorted(set(saved) ^ set(wanted))
    different += [
        name for name in sorted(set(saved) & set(wanted)) if tuple(saved[name]["shape"]) != wanted[name].shape
    ]
    if different:
        raise UserError(
            f"{folder}: a checkpoint of another model or optimizer; they differ in {', '.join(different[:3])}"
        )
