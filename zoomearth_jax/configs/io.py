"""Dataclasses from and to plain data and YAML, strictly: an unknown key is an error with a suggestion."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import reprlib
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from zoomearth_jax.errors import UserError, suggestion
from zoomearth_jax.files import write_file


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
        if not isinstance(key, str) or key not in fields:
            raise UserError(f"{where}: unknown key {_shown(key)}; {suggestion(key, fields)}")
        values[key] = _convert(hints[key], value, f"{where}: {key}")
    missing = [name for name, field in fields.items() if name not in values and _required(field)]
    if missing:
        raise UserError(f"{where}: {', '.join(missing)} must be given")
    return cls(**values)


def _required(field: dataclasses.Field) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _convert(hint, value, where: str):
    if dataclasses.is_dataclass(hint):
        if isinstance(value, str) and hasattr(hint, "named"):
            return _named(hint, value, where)
        return from_dict(hint, value, where)
    if get_origin(hint) in (Union, UnionType):
        return _convert_union(get_args(hint), value, where)
    if get_origin(hint) is tuple:
        return _convert_tuple(get_args(hint), value, where)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise UserError(f"{where}: expected one of {', '.join(map(str, get_args(hint)))}, got {_shown(value)}")
        return value
    return _convert_scalar(hint, value, where) if isinstance(hint, type) else value


def _convert_union(hints: tuple, value, where: str):
    """Converts by the first of the types that takes the value as it is, or turns it into its own."""
    for hint in sorted(hints, key=lambda hint: hint is not type(value)):
        with contextlib.suppress(UserError):
            return _convert(hint, value, where)
    names = [getattr(hint, "__name__", str(hint)) for hint in hints if hint is not type(None)]
    raise UserError(f"{where}: expected {' or '.join(names)}, got {_shown(value)}")


def _convert_tuple(hints: tuple, value, where: str) -> tuple:
    """Converts a tuple: one of any length, where one value needs no list, or one of as many values as there are types."""
    values = value if isinstance(value, list | tuple) else [value]
    if hints[1:] == (Ellipsis,):
        hints = hints[:1] * len(values)
    if len(values) != len(hints):
        raise UserError(f"{where}: expected {len(hints)} values, got {_shown(value)}")
    return tuple(_convert(hint, one, where) for hint, one in zip(hints, values, strict=True))


_WORDS = {"yes": True, "on": True, "no": False, "off": False}  # which PyYAML reads as truth values, YAML 1.2 doesn't


def _convert_scalar(hint: type, value, where: str):
    if hint is bool and isinstance(value, str):
        value = _WORDS.get(value.lower(), value)
    if hint is Path and isinstance(value, str):
        return _path(value, where)
    if hint is float and type(value) is int:
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():  # 1e5
        return int(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        quote = ", in quotes" if hint in (str, Path) and isinstance(value, int | float) else ""
        raise UserError(f"{where}: expected {hint.__name__.replace('NoneType', 'null')}{quote}, got {_shown(value)}")
    return value


def _path(text: str, where: str) -> Path:
    """A path that a file can have."""
    try:
        if b"\0" not in os.fsencode(text):
            return Path(text)
    except UnicodeEncodeError:
        pass
    raise UserError(f"{where}: no path: {_shown(text)}")


def _shown(value) -> str:
    return "null" if value is None else reprlib.repr(value)


def _named(cls, name: str, where: str):
    """A dataclass that has names for some of its values."""
    try:
        return cls.named(name)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


_PATHS = ("model", "data")  # settings that are text, of which some are paths


def at_home(value, name: str = ""):
    """A path, or a (nested) dataclass with all its paths, with a leading `~` expanded, as shells do where they see it.

    Raises:
        UserError: nobody knows where home is.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        known = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        new = {name: at_home(old, name) for name, old in known.items()}
        return dataclasses.replace(value, **new) if new != known else value
    if isinstance(value, tuple):
        return tuple(at_home(one, name) for one in value)
    if not isinstance(value, Path) and not (isinstance(value, str) and name in _PATHS):
        return value
    try:
        return type(value)(Path(value).expanduser()) if str(value).startswith("~") else value
    except RuntimeError:
        if Path(value).parts[0] == "~":
            raise UserError(f"{value}: there is no home directory; give the whole path") from None
        return value  # a name that only looks like somebody's home


def to_dict(config) -> dict[str, Any]:
    """Plain data of a (nested) dataclass; paths as strings."""
    return dataclasses.asdict(
        config, dict_factory=lambda items: {k: str(v) if isinstance(v, Path) else v for k, v in items}
    )


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema: 1e-7 is a number; no, off, 010, 1:30 and dates are not what YAML 1.1 makes of them. A key that
    stands twice is an error."""

    yaml_implicit_resolvers: ClassVar[dict] = {}

    def construct_mapping(self, node, deep=False):
        """Constructs a mapping as the parent does, but refuses keys that stand twice."""
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for place, key in enumerate(keys):
            if key.value in (before.value for before in keys[:place]):
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node):
        """Leaves mappings as they are: YAML 1.2 knows no merge keys."""


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would take for something else than text."""


_CORE = {  # tag -> pattern, and what it may begin with
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
}
for _tag, (_pattern, _first) in _CORE.items():
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^({_pattern})$"), _first)


def _core_int(loader, node) -> int:
    text = node.value
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _core_int)
_Loader.add_constructor(
    "tag:yaml.org,2002:float", lambda loader, node: float(re.sub(r"\.(?=inf|nan)", "", node.value.lower()))
)


def write_yaml(path: Path, config) -> None:
    """Writes a config as YAML, keys in the order of its fields; UserError where it can't be written."""
    write_file(path, yaml.dump(to_dict(config), Dumper=_Dumper, sort_keys=False))


def read_yaml(path: Path, cls):
    """Reads a config that `write_yaml` wrote, or a part of one; UserError for a missing file or a bad key."""
    return from_dict(cls, load_yaml(path), str(path))


MAX_BYTES = 2**20  # of a file of settings


def load_yaml(path: Path) -> Any:
    """A YAML file's data, {} if it is empty; UserError for a missing, broken or oversized file."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UserError(f"{path}: over a megabyte; not a file of settings")
        return yaml.load(content, _Loader) or {}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error})") from None
    except RecursionError:
        raise UserError(f"{path}: not YAML (nested too deeply)") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: not YAML ({_complaint(error)})") from None


def _complaint(error: Exception) -> str:
    """One line that says what is wrong and where, from an error of PyYAML's that takes several lines."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}: " if mark else ""
    return where + (problem or str(error).splitlines()[0])


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
