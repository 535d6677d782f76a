"""Typed reading of a row's fields: what is missing, null, of another type, or unknown is named, all of it."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from zoomearth_jax.errors import UserError


def _is_text(value) -> bool:
    return isinstance(value, str)


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_texts(value) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_text, value))


def _is_box(value) -> bool:
    return isinstance(value, list | tuple) and len(value) in (0, 4) and all(map(_is_number, value))


def _are_boxes(value) -> bool:
    return isinstance(value, list | tuple) and all(_is_box(one) and len(one) == 4 for one in value)


_KINDS: dict[str, Callable[[Any], bool]] = {  # what a field must be, in words, and the test for it
    "a text": _is_text,
    "a finite number": _is_number,
    "true or false": lambda value: isinstance(value, bool),
    "a list of texts": _are_texts,
    "a list of two texts": lambda value: _are_texts(value) and len(value) == 2,
    "four finite numbers or an empty list": _is_box,
    "a list of boxes, four finite numbers each": _are_boxes,
    "an object": lambda value: isinstance(value, dict),
    "a list of objects": lambda value: isinstance(value, list) and all(isinstance(one, dict) for one in value),
}


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a row.

    Attributes:
        kind: what it must be, a key of _KINDS.
        required: whether a row must have it; null stands for a field that is lacking where it needn't.
    """

    kind: str = "a text"
    required: bool = False


def read_fields(
    record: Mapping, fields: Mapping[str, Field], aliases: Mapping[str, str], strict: bool
) -> tuple[dict[str, Any], list[str]]:
    """The values of the fields that a row has, lists as tuples, and what is wrong with it.

    Args:
        aliases: names that others give the fields, in lower case, and the right ones.
        strict: whether every unknown field is a fault; else only one that is spelled like a known field.
    """
    faults, values = [], {}
    for key in record:
        if key not in fields and (meant := _meant(key, fields, aliases, strict)) is not None:
            faults.append(f"unknown field {short(key)}; " + (f"did you mean {meant!r}?" if meant else _known(fields)))
    for key, field in fields.items():
        value = record.get(key)
        if value is None:
            if field.required:
                faults.append(f"field {key!r} is {'null' if key in record else 'missing'}; it must be {field.kind}")
        elif not _KINDS[field.kind](value):
            quote = f"; put it in quotes: {short(short(value))}" if field.kind == "a text" and _plain(value) else ""
            faults.append(f"field {key!r} must be {field.kind}, not {short(value)}{quote}")
        else:
            values[key] = tuple(value) if isinstance(value, list) else value
    return values, faults


def _meant(key: str, fields: Mapping[str, Field], aliases: Mapping[str, str], strict: bool) -> str | None:
    """The field that an unknown key stands for, "" if that is unclear; None where the key is let pass."""
    spelled = {_spelling(name): name for name in fields} | dict(aliases)
    if meant := spelled.get(_spelling(key)):
        return meant
    if not strict:
        return None
    close = difflib.get_close_matches(_spelling(key), spelled, n=1)
    return spelled[close[0]] if close else ""


def _spelling(key: str) -> str:
    return re.sub(r"[\W_]+", "", key).casefold()


def _known(fields: Mapping[str, Field]) -> str:
    return f"known: {', '.join(fields)}"


def _plain(value) -> bool:
    return isinstance(value, int | float)  # true and false too


def short(value) -> str:
    """A value as JSON writes it, in at most 60 characters of one line."""
    try:
        return one_line(json.dumps(value, ensure_ascii=False, default=str)[:60])
    except (RecursionError, ValueError):
        return f"a nested {type(value).__name__}"


def one_line(text: str) -> str:
    """The text with blanks in place of line ends and of what else can't be printed."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def refuse(path, faults: list[str]) -> None:
    """Ends in one line that says how many faults there are and the first three; does nothing without any.

    Raises:
        UserError: there is a fault.
    """
    if faults:
        count = f"{len(faults):,} faults: " if len(faults) > 1 else ""
        rest = f"; `zoomearth data check {path}` lists all" if len(faults) > 3 else ""
        raise UserError(f"{path}: {count}{one_line('; '.join(faults[:3]))}{rest}")
