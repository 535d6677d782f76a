"""Dataclasses from and to plain data and YAML, strictly: an unknown key is an error with a suggestion."""

from __future__ import annotations

import dataclasses
import difflib
import json
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from zoomearth_jax.errors import UserError


def from_dict(cls, data: Any, where: str):
    """Builds a (nested) dataclass from a mapping.

    Raises:
        UserError: not a mapping, an unknown key, or a value of the wrong type, naming `where` and the key.
    """
    if not isinstance(data, dict):
        raise UserError(f"{where}: expected a mapping of settings, got {type(data).__name__}")
    fields, hints = {f.name: f for f in dataclasses.fields(cls)}, get_type_hints(cls)
    values = {}
    for key, value in data.items():
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            raise UserError(
                f"{where}: unknown key {key!r}; "
                + (f"did you mean {close[0]!r}?" if close else f"known: {', '.join(fields)}")
            )
        values[key] = _convert(hints[key], value, f"{where}: {key}")
    return cls(**values)


def _convert(hint, value, where: str):
    if dataclasses.is_dataclass(hint):
        if isinstance(value, str) and hasattr(hint, "named"):
            return _named(hint, value, where)
        return from_dict(hint, value, where)
    if get_origin(hint) is tuple:  # of any length; one value may stand alone
        return tuple(
            _convert(get_args(hint)[0], v, where) for v in (value if isinstance(value, list | tuple) else [value])
        )
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise UserError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def _named(cls, name: str, where: str):
    """A dataclass that has names for some of its values."""
    try:
        return cls.named(name)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def to_dict(config) -> dict[str, Any]:
    """Plain data of a (nested) dataclass; paths as strings."""
    return dataclasses.asdict(
        config, dict_factory=lambda items: {k: str(v) if isinstance(v, Path) else v for k, v in items}
    )


def write_yaml(path: Path, config) -> None:
    """Writes a config as YAML, keys in the order of its fields."""
    Path(path).write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")


def read_yaml(path: Path, cls):
    """Reads a config that `write_yaml` wrote, or a part of one; UserError for a missing file or a bad key."""
    return from_dict(cls, load_yaml(path), str(path))


def load_yaml(path: Path) -> Any:
    """A YAML file's data, {} if it is empty; UserError for a missing or broken file."""
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({str(error).splitlines()[0]})") from None


def read_json(file: Path, absent: dict | None = None) -> dict[str, Any]:
    """The object in a JSON file, in UTF-8 with or without a byte order mark.

    Args:
        absent: what stands for a file that isn't there.

    Raises:
        UserError: no such file, or no readable JSON object in it; NaN and infinities are no JSON.
    """

    def refuse(name: str):
        raise ValueError(f"{name} is not a JSON number")

    try:
        if Path(file).exists() and not Path(file).is_file():
            raise OSError("not a regular file")
        raw = json.loads(Path(file).read_text(encoding="utf-8-sig"), parse_constant=refuse)
    except FileNotFoundError:
        if absent is None:
            raise UserError(f"{file}: no such file") from None
        return dict(absent)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable JSON ({str(error).splitlines()[0]})") from None
    except RecursionError:
        raise UserError(f"{file}: not readable JSON (nested too deeply)") from None
    if not isinstance(raw, dict):
        raise UserError(f"{file}: expected an object of settings, got {type(raw).__name__}")
    return raw
