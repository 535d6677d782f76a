"""The words that a released checkpoint was trained with: its instruction, read from a file of the user's own copy."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path

from zoomearth_jax.configs.episode import CHAT_MARK, QUESTION
from zoomearth_jax.errors import UserError

MAX_BYTES = 2**20  # of a file with words
LEAST_LETTERS = 200  # of an instruction in a Python file: shorter texts there are names and messages
_FIELD = re.compile(r"\{\s*\w*\s*\}")


def read_words(given: str | Path) -> str:
    """The instruction that a file holds: a text without outer blanks, or a string of a Python file, which is parsed and never run.

    A Python file's string may be put together from others by `+`. What is not known of it, and one field to fill in such as
    {Question}, is the question's place (`QUESTION`); doubled braces are then single ones, as `str.format` has it. Otherwise the
    instruction stands after the question. Of several strings where one holds the others that one is taken.

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
    words = _string_of(path, text, name) if path.suffix == ".py" else text.strip()
    words = _with_place(words)
    if not words.strip():
        raise UserError(f"{path}: no words in it")
    if CHAT_MARK in words and words.count(QUESTION) != 1:
        raise UserError(f"{path}: a whole prompt with {CHAT_MARK} must have one place for the question, {QUESTION}")
    return words


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
            text = _text(node.value, found)
            if text is not None and text != QUESTION:
                found |= {target.id: text for target in targets if isinstance(target, ast.Name)}
    long = {key: text for key, text in found.items() if len(text) >= LEAST_LETTERS}
    if name and name not in found:
        raise UserError(f"{path}: no string named {name}; it has {', '.join(long or found) or 'none'}")
    if name:
        return found[name]
    whole = {text for text in long.values() if not any(text != other and text in other for other in long.values())}
    if len(whole) != 1:
        has = f"{len(long)} long strings ({', '.join(long)})" if long else "no long string with a name"
        raise UserError(
            f"{path}: {has}; give {path}:NAME with the name of the instruction, or a text file that holds it"
        )
    return whole.pop()


def _text(node: ast.expr, known: Mapping[str, str]) -> str | None:
    """The text of a string, or of a sum with strings in it, whose unknown part is the question; None for anything else."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.Name(id=name) if name in known:
            return known[name]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            parts = [_text(left, known), _text(right, known)]
            return None if parts == [None, None] else "".join(QUESTION if part is None else part for part in parts)
        case ast.JoinedStr(values=values):
            return "".join(str(v.value) if isinstance(v, ast.Constant) else QUESTION for v in values)
    return None


def _with_place(words: str) -> str:
    """The words with `QUESTION` where their one field is."""
    single = words.replace("{{", "\ufdd0").replace("}}", "\ufdd1")
    fields = _FIELD.findall(single)
    if len(fields) != 1:
        return words
    return single.replace(fields[0], QUESTION).replace("\ufdd0", "{").replace("\ufdd1", "}")
