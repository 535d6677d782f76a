"""What `zoomearth data check` finds out about a folder of questions: statistics, faults, and a picture of a sample."""

from __future__ import annotations

import collections
import hashlib
import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.images.sources import ImageSource, RawImage, global_view, view_of, whole
from zoomearth_jax.data_pipeline.questions.folder_rows import Judged, Problem, Row
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.errors import UserError
from zoomearth_jax.reports.pictures import with_boxes

_CELL, _CAPTION, _LINES = 448, 86, 4  # px of the grid's pictures and of the text below, which has that many lines
_DECODED = 2048  # px per side of the windows in which a stored image is decoded


def decode_all(image: ImageSource) -> None:
    """Decodes every pixel of an image.

    Raises:
        UserError: it is broken somewhere.
    """
    if isinstance(image, RawImage):
        global_view(image, 112, 28)  # which every pixel goes into
        return
    width, height = image.frame.width, image.frame.height
    for top in range(0, height, _DECODED):
        for left in range(0, width, _DECODED):
            right, bottom = min(left + _DECODED, width), min(top + _DECODED, height)
            image.window(Box(left, top, right, bottom, image.frame), Frame(right - left, bottom - top), exact=True)


def broken_images(images: Iterable[tuple[str, ImageSource]]) -> dict[str, str]:
    """Messages about the images that are broken somewhere in their pixels, by name."""
    broken = {}
    for name, image in images:
        try:
            decode_all(image)
        except UserError as error:
            broken[name] = str(error)
    return broken


def problems_of_pixels(splits: Mapping[str, Judged], broken: Mapping[str, str]) -> Iterator[tuple[str, Problem]]:
    """The broken images of each split, with the first row that asks about one."""
    for split, judged in splits.items():
        first = {row.image: row for row, _ in reversed(judged.taken) if row.image in broken}
        for row in reversed(first.values()):
            yield split, Problem("image can't be decoded", "left out", row.where, broken[row.image])


def problems_between(splits: Mapping[str, Sequence[Row]]) -> Iterator[tuple[str, Problem]]:
    """Duplicates in a split and overlaps between splits, each with the split or splits."""
    for split, rows in splits.items():
        first: dict[tuple[str, str], Row] = {}
        for row in rows:
            if (before := first.setdefault(row.key, row)) is not row:
                yield (
                    split,
                    Problem("question is there more than once", "noted", row.where, f"as {before.where}: {row}"),
                )
    for (one, rows), (other, others) in _pairs(splits):
        for kind, shared in (
            ("question is in both", {row.key for row in rows} & {row.key for row in others}),
            ("image is in both", {row.image for row in rows} & {row.image for row in others}),
        ):
            for key in sorted(shared):
                yield f"{one}, {other}", Problem(kind, "noted", "", ": ".join(key) if isinstance(key, tuple) else key)


def _pairs(splits: Mapping) -> list[tuple]:
    items = list(splits.items())
    return [(items[i], other) for i in range(len(items)) for other in items[i + 1 :]]


def grouped(found: Iterable[tuple[str, Problem]]) -> list[dict]:
    """Problems as {"split", "problem", "effect", "count", "rows"}, where `rows` are all of them, with file and line."""
    groups = collections.defaultdict(list)
    for split, problem in found:
        groups[split, problem.family, problem.effect].append(problem)
    return [
        {
            "split": split,
            "problem": kind,
            "effect": effect,
            "count": len(problems),
            "rows": [problem.row for problem in problems],
        }
        for (split, kind, effect), problems in groups.items()
    ]


def manifest(rows: Sequence[Row]) -> dict:
    """What a split consists of: its keys (image, question) in order, and a hash over keys, answers and boxes as given.

    Ids aren't in it: they differ between LRS-GRO's files.
    """
    content = sorted(
        json.dumps(
            [
                *row.key,
                row.answer,
                [look.corners or look.geometry or look.context for look in row.looks] + list(row.boxes),
            ],
            ensure_ascii=False,
        )
        for row in rows
    )
    digest = hashlib.sha256("\n".join(content).encode()).hexdigest()
    return {"format": 1, "rows": len(rows), "sha256": digest, "keys": [list(row.key) for row in rows]}


def statistics(judged: Judged) -> dict:
    """Counts of a split, and what its answers and boxes are like; shares are of its rows, areas of those that are taken."""
    rows = judged.rows
    answers = collections.Counter(row.answer.lower() for row in rows)
    frequent = answers.most_common(5)
    share = {
        "yes or no": sum(answers[word] for word in ("yes", "no")),
        "a number": sum(count for answer, count in answers.items() if answer.isdigit()),
        "several words": sum(count for answer, count in answers.items() if " " in answer),
        "the most frequent": frequent[0][1] if frequent else 0,
    }
    looks = collections.Counter(len(row.looks) for row in rows)
    areas = [_area(question.box) for _, question in judged.taken if question.box]
    return {
        "rows": len(rows),
        "rows taken": len(judged.taken),
        "images": len({row.image for row in rows}),
        "levels": dict(collections.Counter(row.level for row in rows)),
        "categories": dict(collections.Counter(row.category for row in rows if row.category).most_common()),
        "answers": {what: round(count / max(len(rows), 1), 3) for what, count in share.items()},
        "frequent answers": dict(frequent),
        "boxes": sum(bool(row.looks) for row in rows),
        **({"looks": {str(n): count for n, count in sorted(looks.items())}} if max(looks, default=0) > 1 else {}),
        "box area / image area (5 %, median, 95 %)": [float(f"{a:.2g}") for a in np.percentile(areas, (5, 50, 95))]
        if areas
        else [],
        "rows with reasoning": sum(row.reasoned for row in rows),
    }


def _area(box: Box) -> float:
    return (box.x2 - box.x1) * (box.y2 - box.y1) / (box.frame.width * box.frame.height)


def draw_grid(pictures: Sequence[tuple[Question, np.ndarray]]) -> Image.Image:
    """Overviews with their boxes, and level, label, question and answer below."""
    columns = max(1, round(len(pictures) ** 0.5))
    lines = -(-len(pictures) // columns)
    grid = Image.new("RGB", (columns * (_CELL + 12), lines * (_CELL + _CAPTION)), (255, 255, 255))
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(16)
    for i, (question, overview) in enumerate(pictures):
        x, y = i % columns * (_CELL + 12), i // columns * (_CELL + _CAPTION)
        boxes = [(look.box, "predicted") for look in question.looks] + [(box, "reference") for box in question.boxes]
        picture = with_boxes(overview, boxes, _CELL)
        picture.thumbnail((_CELL, _CELL))
        grid.paste(picture, (x, y))
        label = "".join(f" [{look.label}]" for look in question.looks if look.label)
        text = f"{question.level}{label}: {question.text} {question.answer}"
        caption = "\n".join(textwrap.wrap(text, 56, max_lines=_LINES, placeholder=" ..."))
        draw.multiline_text((x + 4, y + _CELL + 4), caption, (0, 0, 0), font=font, spacing=3)
    return grid


def overview_of(image: ImageSource) -> np.ndarray:
    """The whole image at the size that the grid shows it, uint8 [h, w, 3]."""
    return view_of(image, whole(image), _CELL, 1)
