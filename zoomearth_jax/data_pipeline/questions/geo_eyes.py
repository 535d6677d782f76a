"""Chains of zooms as GeoEyes (arXiv 2602.14201) fine-tunes on them: conversations whose tool calls name a box a round.

The file is UHR-CoZ.json, read by LLaMA-Factory: objects with "messages" and "images". What stands in the messages is taken to be
the convention of DeepEyes, on whose tool GeoEyes trains; docs/data.md has the form as it is read here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from zoomearth_jax.data_pipeline.questions.folder_rows import GivenLook, Problem, Row
from zoomearth_jax.data_pipeline.questions.json_lines import read_json_rows
from zoomearth_jax.data_pipeline.questions.records import short
from zoomearth_jax.data_pipeline.text.protocol import parse_answer

NAMES = ("uhr-coz.json", "uhr-coz.jsonl")
_USER, _POLICY, _TOOL = (
    ("user", "human"),
    ("assistant", "gpt", "function_call"),
    ("tool", "observation", "function_response"),
)
_TOLD = re.compile(r"\n[ \t]*Think first\b")  # how to answer, for which the episode has words of its own
_NO_THOUGHT = re.compile(r"</?(?:think|answer|tool_call)>")


def find_chains(path: Path) -> Path | None:
    """The file of a folder, or the path itself, that holds such chains; None if there is none. Case doesn't count."""
    if path.is_dir():
        return min((file for file in path.iterdir() if file.name.lower() in NAMES), default=None)
    return path if path.name.lower() in NAMES else None


def read_chains(file: Path) -> tuple[list[Row], list[Problem]]:
    """The chains of a file, and what in it is none.

    Raises:
        UserError: it can't be read as a list of objects, or as JSON lines.
    """
    rows, problems = [], []
    for number, record, fault in read_json_rows(file):
        where = f"{file.name} row {number}"
        try:
            if fault:
                problems.append(Problem(fault, "refused", where))
            else:
                rows.append(read_chain(record, where, file.parent))
        except ValueError as error:
            problems.append(Problem(f"no chain of zooms, {error}", "left out", where))
    return rows, problems


def read_chain(record: Mapping[str, Any], where: str, folder: Path) -> Row:
    """The question of a conversation; each tool call is a look, in px of the first image.

    Args:
        where: file and row.
        folder: where the images are, or their subfolder images/.

    Raises:
        ValueError: it isn't of the form, with what is wrong.
    """
    images = record.get("images")
    if not isinstance(images, list) or not images or not all(isinstance(name, str) and name for name in images):
        raise ValueError(f"images must be a list of names, not {short(images)}")
    question, looks, last = "", [], ""
    for role, text in _messages(record):
        if role in _USER and not question:
            question = " ".join(_TOLD.split(text)[0].replace("<image>", " ").split()).removeprefix("Question: ")
        elif role in _POLICY:
            if last:
                raise ValueError("it goes on after its answer")
            calls = [text.rpartition("</think>")[2]] if role == "function_call" else _within(text, "tool_call")
            if len(calls) > 1:
                raise ValueError("a round with several zooms")
            if calls:
                looks.append(_look(calls[0], "" if calls[0] == text else _thought(text)))
            else:
                last = text
    if not question:
        raise ValueError("no question")
    if not last:
        raise ValueError("no round without a zoom, which would answer")
    return Row(
        where=where,
        image=_inside(images[0], folder),
        text=question,
        answer=parse_answer(last) or "",
        level="object" if looks else "global",
        looks=tuple(looks),
        thought=_thought(last),
        category=record["category"] if isinstance(record.get("category"), str) else "",
        released=True,
    )


def _messages(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(role, text) of each message, of "messages" with "role" and "content" or "conversations" with "from" and "value"."""
    given = record.get("messages", record.get("conversations"))
    if not isinstance(given, list):
        raise ValueError(f"messages must be a list, not {short(given)}")
    for message in given:
        fields = message if isinstance(message, dict) else {}
        role, text = fields.get("role", fields.get("from")), fields.get("content", fields.get("value"))
        if role not in ("system", *_USER, *_POLICY, *_TOOL) or not isinstance(text, str):
            raise ValueError(f"a message must have a role and a text, not {short(message)}")
        yield role, text


def _look(call: str, thought: str) -> GivenLook:
    """What a tool call {"name", "arguments": {"bbox_2d": [x1, y1, x2, y2], "label"}} looks at."""
    try:
        arguments = json.loads(call)["arguments"]
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        corners, label = [float(x) for x in arguments["bbox_2d"]], arguments.get("label") or ""
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise ValueError(f"a tool call must name a box, not {short(call.strip())}") from None
    if len(corners) != 4 or not all(abs(x) < 1e9 for x in corners) or not isinstance(label, str):
        raise ValueError(f"a tool call must name four numbers and perhaps a label, not {short(call.strip())}")
    return GivenLook(tuple(corners), " ".join(label.split()), thought)


def _thought(text: str) -> str:
    """What a round thinks: what stands in <think>…</think>, or without that all before its call or answer."""
    thoughts = _within(text, "think") or [text.split("<tool_call>")[0].split("<answer>")[0]]
    return _NO_THOUGHT.sub("", thoughts[0]).strip()


def _within(text: str, tag: str) -> list[str]:
    """What stands between a tag and the end of the tag, each time."""
    parts = (part.partition(f"</{tag}>") for part in text.split(f"<{tag}>")[1:])
    return [inside for inside, end, _ in parts if end]


def _inside(name: str, folder: Path) -> str:
    """The image's name in the folder: of a whole path, which is that of another machine, the longest end that is there."""
    path = PurePosixPath(name.replace("\\", "/"))
    if not path.is_absolute() and ":" not in name:
        return name
    ends = ["/".join(path.parts[first:]) for first in range(1, len(path.parts))]
    places = ((end, place) for end in ends for place in (folder / "images" / end, folder / end))
    return next((end for end, place in places if os.path.isfile(place)), path.name)  # which no name makes raise
