"""Rollout panels: some of a step's episodes as a picture and as JSON, to see what the policy does while it trains."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.files import write_file
from zoomearth_jax.reports.pictures import annotate
from zoomearth_jax.rl.records import sample_record
from zoomearth_jax.rl.rollout.engine import Trajectories

QUESTIONS = 4  # on a panel; the best and the worst episode of each
PICTURE_PX, PAD = 336, 12  # about what a picture's longer side has at least
FONT_PX, LINE_PX, CHARACTERS, LINES = 13, 17, 90, 18  # a line's characters, and the lines that a card has room for


def write_panel(
    directory: Path,
    step: int,
    questions: Sequence[Question],
    played: Trajectories,
    scores: Mapping[str, np.ndarray],
) -> Path:
    """Writes `directory`/step_N.json and .png, the picture last; returns the picture's path.

    Args:
        step: 1 is the first.
        scores: figures of each episode [A x G]: the rewards and what else is to be shown; `total` decides which are best and worst.
    """
    group = len(played.episodes) // len(questions)
    shown = chosen(scores["total"], group)
    records = [
        {"sample": i % group, **sample_record(questions[i // group], played.episodes[i], float(scores["iou"][i]))}
        | {"scores": {name: round(float(values[i]), 4) for name, values in scores.items() if not np.isnan(values[i])}}
        for i in shown
    ]
    pictures = [_picture(questions[i // group], played, i, group) for i in shown]
    texts = [_lines(record) for record in records]
    size = max([2 * PICTURE_PX + PAD, *(p.width for p in pictures)]), max(p.height for p in pictures)
    cards = [_card(*card, size, max(map(len, texts))) for card in zip(records, texts, pictures, strict=True)]
    path = Path(directory) / f"step_{step:06d}.png"
    text = json.dumps({"step": step, "episodes": records}, indent=2)  # plain ASCII, whatever was written
    write_file(path.with_suffix(".json"), text + "\n")
    write_file(path, lambda file: _stacked(cards, columns=2).save(file, format="PNG", compress_level=1))
    return path


def chosen(total: np.ndarray, group: int) -> list[int]:
    """Numbers of the best and the worst episode of each of the first questions (the first of equals; one if all are equal)."""
    shown: list[int] = []
    for first in range(0, min(len(total), QUESTIONS * group), group):
        own = total[first : first + group]
        shown += dict.fromkeys((first + int(own.argmax()), first + int(own.argmin())))
    return shown


def _picture(question: Question, played: Trajectories, i: int, group: int) -> Image.Image:
    episode = played.episodes[i]
    boxes = [(question.box, "reference"), *((box, "predicted") for box in episode.boxes)]
    return annotate(played.overviews[i // group], episode.pictures, boxes, PICTURE_PX)


def _card(record: dict, lines: list[str], picture: Image.Image, size: tuple[int, int], room: int) -> Image.Image:
    """A picture with the lines under it, in the size of the largest picture and `room` lines."""
    width, height = size
    card = Image.new("RGB", (width, height + room * LINE_PX + 8), "white")
    card.paste(picture, (0, 0))
    draw, font = ImageDraw.Draw(card), ImageFont.load_default(FONT_PX)
    for number, line in enumerate(lines):
        draw.text((6, height + 4 + number * LINE_PX), line, fill="black", font=font)
    draw.rectangle((0, height, width - 1, card.height - 1), outline="#14804a" if record["correct"] else "#b3261e")
    return card


def _lines(record: dict) -> list[str]:
    answer = "none" if record["answer"] is None else record["answer"]
    scores = "  ".join(f"{name} {value:.2f}" for name, value in record["scores"].items())
    head = [record["question"], f"answer: {answer}   reference: {record['reference']}", scores]
    box = "" if record["box_reason"] in ("", "absent") else f"box: {record['box_reason']}"
    turns = [f"turn {number}: {turn['text']}" for number, turn in enumerate(record["turns"], 1)]
    said = [box, *turns] if box else turns
    lines = [line for text in head + said for line in textwrap.wrap(printable(text), CHARACTERS) or [""]]
    return lines if len(lines) <= LINES else [*lines[: LINES - 1], "…"]


def printable(text: str) -> str:
    """The text without control characters and lone surrogates, which some of Pillow's text layouts refuse; the font draws
    boxes for what it lacks."""
    return "".join(c if c.isprintable() else " " for c in text.encode("utf-8", "replace").decode("utf-8"))


def _stacked(cards: Sequence[Image.Image], columns: int) -> Image.Image:
    width, height = cards[0].width + PAD, cards[0].height + PAD
    rows = -(-len(cards) // columns)
    panel = Image.new("RGB", (columns * width + PAD, rows * height + PAD), "#f6f7f9")
    for i, card in enumerate(cards):
        panel.paste(card, (PAD + i % columns * width, PAD + i // columns * height))
    return panel
