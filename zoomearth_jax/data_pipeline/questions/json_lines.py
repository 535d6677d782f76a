"""JSON lines as people and programs write them: one object a line, in UTF-8, or in UTF-16 or UTF-32 with a byte order mark."""

from __future__ import annotations

import codecs
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from zoomearth_jax.errors import UserError

MAX_LINE = 1 << 20  # characters; the longest row of LRS-GRO has some 5,000
MAX_LIST = 1 << 28  # characters of a file that is one list; MME-RealWorld's has some 20 million
_MARKS = {  # UTF-32's first: in little-endian order it begins like UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_MAX_DIGITS = 300  # of a whole number; more don't fit a float
_ONE_A_LINE = "write one JSON object a line (pandas: `df.to_json(file, orient='records', lines=True)`)"


class Line(NamedTuple):
    """A line that isn't blank: its number, from 1, and its object; or why there is none."""

    number: int
    record: dict
    fault: str = ""


def read_json_lines(file) -> Iterator[Line]:
    """The lines of a file, good and bad. Lines end with LF, CRLF or CR, never inside of a string.

    Raises:
        UserError: what is there is no file, can't be read, or isn't JSON lines as a whole.
    """
    file = Path(file)
    try:
        with open(file, encoding=_encoding(file), errors="surrogateescape") as text:
            first = True
            for number, line in enumerate(iter(functools.partial(text.readline, MAX_LINE + 1), ""), 1):
                if len(line) > MAX_LINE:
                    while (rest := text.readline(MAX_LINE)) and not rest.endswith("\n"):
                        pass
                    yield Line(number, {}, f"over {MAX_LINE:,} characters; {_ONE_A_LINE}")
                elif line := line.strip("\ufeff \t\r\n"):
                    if first and line.startswith("["):
                        raise UserError(f"{file}: begins with a list; {_ONE_A_LINE}")
                    first = False
                    yield _line(number, line)
    except OSError as error:
        raise UserError(f"{file}: can't be read ({error.strerror or error})") from None
    except UnicodeError as error:
        raise UserError(f"{file}: broken text ({error}); save it as UTF-8") from None


def read_json_rows(file) -> Iterator[Line]:
    """The objects of a file of JSON lines, or of a file that is one JSON list of objects, numbered from 1.

    Raises:
        UserError: what is there is neither, or can't be read.
    """
    file = Path(file)
    encoding = _encoding(file)
    try:
        with open(file, encoding=encoding, errors="surrogateescape") as text:
            start = text.read(MAX_LINE).lstrip("\ufeff \t\r\n")
            whole = start + text.read(MAX_LIST) if start.startswith("[") else ""
    except (OSError, UnicodeError) as error:
        raise UserError(f"{file}: can't be read ({error})") from None
    return _list_rows(file, whole) if whole else read_json_lines(file)


def _list_rows(file: Path, text: str) -> Iterator[Line]:
    if len(text) >= MAX_LIST:
        raise UserError(f"{file}: a list of over {MAX_LIST:,} characters; {_ONE_A_LINE}")
    try:
        values = _DECODER.decode(text.rstrip())
    except json.JSONDecodeError as error:
        raise UserError(f"{file}: not JSON ({error.msg} at line {error.lineno}, column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not a list of rows ({str(error)[:200]})") from None
    for number, value in enumerate(values, 1):
        try:
            yield Line(number, parse_object(json.dumps(value)))
        except ValueError as error:
            yield Line(number, {}, str(error))


def _encoding(file: Path) -> str:
    """The file's encoding by its first bytes."""
    if not file.is_file():
        what = "a folder, not a file" if file.is_dir() else "not a plain file" if file.exists() else "no such file"
        raise UserError(f"{file}: {what}")
    with open(file, "rb") as opened:
        start = opened.read(64)
    if b"\0" in start and not start.startswith(tuple(_MARKS)):
        raise UserError(f"{file}: not UTF-8 text (zero bytes, as in UTF-16 without its mark); save it as UTF-8")
    return next((encoding for mark, encoding in _MARKS.items() if start.startswith(mark)), "utf-8-sig")


def _line(number: int, text: str) -> Line:
    try:
        return Line(number, parse_object(text))
    except ValueError as error:
        return Line(number, {}, str(error))


def parse_object(text: str) -> dict:
    """A JSON object that is nothing but JSON: no NaN or infinity, no key twice, and texts that can be written as UTF-8.

    Args:
        text: bytes that aren't UTF-8 stand in it as Python's surrogateescape puts them.

    Raises:
        ValueError: something else, with what is wrong in one line.
    """
    for place, letter in enumerate(text, 1):
        if "\udc80" <= letter <= "\udcff":
            byte = ord(letter) - 0xDC00
            raise ValueError(f"byte 0x{byte:02x} at column {place} is not UTF-8 (Latin-1?); save the file as UTF-8")
    try:
        value = _DECODER.decode(text)
        written = json.dumps(value, ensure_ascii=False) if "\\u" in text else ""
    except json.JSONDecodeError as error:
        hint = f"; {_ONE_A_LINE}, no commas between" if error.msg == "Extra data" else ""
        raise ValueError(f"not JSON ({error.msg} at column {error.colno}){hint}") from None
    except RecursionError:
        raise ValueError("not a row: lists or objects nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"not an object in braces, but a {type(value).__name__}")
    _check_texts(written)
    return value


def _check_texts(written: str) -> None:
    r"""JSON can spell, as \ud800 or \u0000, what no text file and no tokenizer takes."""
    if any("\ud800" <= letter <= "\udfff" for letter in written):
        raise ValueError(r"half of a surrogate pair (\ud800 to \udfff alone) is no character; leave it out")
    if r"\u0000" in written.replace(r"\\", ""):
        raise ValueError(r"a zero character (\u0000) in a text; leave it out")


def _pairs(pairs: list[tuple[str, Any]]) -> dict:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return record


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


def _real(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {digits[:40]} is too large")
    return value


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON; write null, or leave the field out")


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_int=_integer, parse_float=_real, parse_constant=_constant)
