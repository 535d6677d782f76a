"""The words that a released checkpoint was trained with: its instruction, read from a file of the user's own copy."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from zoomearth_jax.configs.episode import QUESTION
from zoomearth_jax.errors import UserError

MAX_BYTES = 2**20  # of a file with words
LEAST_LETTERS = 200  # of an instruction in a Python file: shorter texts there are names and messages
_FIELD = re.compile(r"\{\s*\w*\s*\}")


def read_words(given: str | Path) -> str:
    """The instruction that a file holds: the whole text, or a string of a Python file, which is parsed and never run.

    Where the string has one field to fill in, such as {Question}, the question's place is there (`QUESTION`), and doubled braces
    are single ones, as `str.format` has it. Otherwise the instruction stands after the question.

    Args:
        given: the file; for a Python file with several long strings, FILE:NAME.

    Raises:
        UserError: no such file, no text, or a Python file without one long string of that name.
    """
    path, name = _split(str(given))
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: {path.stat().st_size:,} bytes; give a file with words, of at most {MAX_BYTES:,}")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no UTF-8 text"
        raise UserError(
            f"{path}: {reason}; give a text file with the instruction, or the Python file it is in"
        ) from None
    words = _string_of(path, text, name) if path.suffix == ".py" else text
    if not words.strip():
        raise UserError(f"{path}: no words in it")
    return _with_place(words).strip()


def _split(given: str) -> tuple[Path, str]:
    """File and name of FILE or FILE:NAME."""
    head, colon, name = given.rpartition(":")
    if colon and head.endswith(".py") and name.isidentifier():
        return Path(head).expanduser(), name
    return Path(given).expanduser(), ""


def _string_of(path: Path, source: str, name: str) -> str:
    """The long string of a Python file, that of `name` where several are there."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{path}: no Python ({type(error).__name__}); give the instruction as a text file") from None
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            text = _constant(node.value)
            found |= {t.id: text for t in targets if isinstance(t, ast.Name) and text is not None}
    long = {key: text for key, text in found.items() if len(text) >= LEAST_LETTERS}
    if name and name not in found:
        raise UserError(f"{path}: no string named {name}; it has {', '.join(long or found) or 'none'}")
    if name:
        return found[name]
    if len(set(long.values())) != 1:
        has = f"{len(long)} long strings ({', '.join(long)})" if long else "no long string with a name"
        raise UserError(
            f"{path}: {has}; give {path}:NAME with the name of the instruction, or a text file that holds it"
        )
    return next(iter(long.values()))


def _constant(node: ast.expr) -> str | None:
    """The text of a string, or of strings that are added; an f-string's fields are places to fill in."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            first, second = _constant(left), _constant(right)
            return None if first is None or second is None else first + second
        case ast.JoinedStr(values=values):
            return "".join(str(v.value) if isinstance(v, ast.Constant) else "{question}" for v in values)
    return None


def _with_place(words: str) -> str:
    """The words with `QUESTION` where their one field is."""
    single = words.replace("{{", "\ufdd0").replace("}}", "\ufdd1")
    fields = _FIELD.findall(single)
    if len(fields) != 1:
        return words
    return single.replace(fields[0], QUESTION).replace("\ufdd0", "{").replace("\ufdd1", "}")
