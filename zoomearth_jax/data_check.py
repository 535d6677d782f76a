"""What `zoomearth data check` finds out about a folder of questions: statistics, faults, and a picture of a sample."""

from __future__ import annotations

import collections
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from zoomearth_jax.data_pipeline.boxes import ANNOTATION_PX, Box, Frame, clamped, from_annotation, view_size
from zoomearth_jax.data_pipeline.image_folder import ImageFolder
from zoomearth_jax.data_pipeline.images import ImageSource, whole
from zoomearth_jax.data_pipeline.lrs_gro import CATEGORIES, LrsGroRow, box_fault, normalise
from zoomearth_jax.data_pipeline.lrs_gro_files import read_all
from zoomearth_jax.data_pipeline.questions import read_questions
from zoomearth_jax.errors import UserError
from zoomearth_jax.pictures import with_boxes

OWN = "questions"  # the one split of a folder with questions.jsonl
_CELL, _CAPTION, _LINES = 448, 86, 4  # px of the grid's pictures and of the text below, which has that many lines


def read_cleaned(directory) -> dict[str, list[LrsGroRow]]:
    """Normalised rows of all splits. A folder with questions.jsonl is one split; its boxes are brought to LRS-GRO's frame.

    Raises:
        UserError: no questions there, or broken ones.
    """
    if not (Path(directory) / "questions.jsonl").is_file():
        return {split: [normalise(row) for row in rows] for split, rows in read_all(directory).items()}
    lines = (Path(directory) / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = []
    for number, (line, question) in enumerate(zip(lines, read_questions(directory), strict=True), 1):
        frame, name = question.image.frame, str(json.loads(line)["image"])
        factor = max(frame.width, frame.height) / ANNOTATION_PX
        bbox = tuple(corner / factor for corner in question.box.corners) if question.box else ()
        rows.append(
            LrsGroRow(
                question_id=str(number),
                image_name=name,
                category="",
                question=question.text,
                ground_truth=question.answer,
                bbox=bbox,
                type=question.level,
                label=question.label,
                stage_1_reasoning=question.thoughts[0],
            )
        )
    return {OWN: rows}


def open_images(folder: ImageFolder, names: Iterable[str]) -> tuple[dict[str, ImageSource], dict[str, tuple[str, str]]]:
    """Images that open, by name, and what is wrong with the others: the kind of fault, and details."""
    images, faults = {}, {}
    for name in names:
        try:
            if (image := folder.get(name)) is None:
                faults[name] = "image is missing", name
            else:
                images[name] = image
        except UserError as error:
            faults[name] = "image can't be read", str(error)
    return images, faults


def row_faults(row: LrsGroRow, image: ImageSource | None) -> list[str]:
    """What is wrong with a normalised row."""
    faults = []
    if fault := box_fault(row, image and image.frame):
        faults.append(f"box is {fault}" + ("" if fault == "degenerate" else " the image"))
    if image and row.bbox and row.scale:
        longest = max(image.frame.width, image.frame.height)
        if abs(row.scale * ANNOTATION_PX - longest) > 1:
            faults.append("scale isn't the image's longest side / 1024")
    if row.cut and not row.bbox:
        faults.append("asks for a crop without a box")
    if not row.ground_truth:
        faults.append("answer is empty")
    if row.category and not any(row.category in names for names in CATEGORIES.values()):
        faults.append("category is none of the paper's")
    elif row.category and row.category not in CATEGORIES[row.level]:
        faults.append("category is of another level")
    return faults


def find_problems(
    splits: Mapping[str, Sequence[LrsGroRow]], images: Mapping[str, ImageSource], broken: Mapping[str, tuple[str, str]]
) -> list[dict]:
    """Problems as {"split", "problem", "count", "examples"}: of images, of rows, duplicates, and overlaps between splits."""
    found = collections.defaultdict(list)
    for split, rows in splits.items():
        for name in dict.fromkeys(row.image_name for row in rows):
            if name in broken:
                kind, detail = broken[name]
                found[split, kind].append(detail)
        for row in rows:
            for fault in row_faults(row, images.get(row.image_name)):
                found[split, fault].append(_example(row))
        counts = collections.Counter(row.key for row in rows)
        for row in {row.key: row for row in rows if counts[row.key] > 1}.values():
            found[split, "question is there more than once"].append(_example(row))
    for row in _unreasoned(splits.get("sft", ())):
        found["sft", "reasoning is missing; the row isn't trained on"].append(_example(row))
    for (one, rows), (other, others) in _pairs(splits):
        for what, shared in (
            ("question is in both", {row.key for row in rows} & {row.key for row in others}),
            ("image is in both", {row.image_name for row in rows} & {row.image_name for row in others}),
        ):
            found[f"{one}, {other}", what] += [
                ": ".join(key) if isinstance(key, tuple) else key for key in sorted(shared)
            ]
    return [
        {"split": split, "problem": problem, "count": len(examples), "examples": examples[:3]}
        for (split, problem), examples in found.items()
        if examples
    ]


def _unreasoned(rows: Sequence[LrsGroRow]) -> list[LrsGroRow]:
    """Rows without reasoning where others have it."""
    without = [row for row in rows if not row.stage_1_reasoning]
    return without if len(without) < len(rows) else []


def _pairs(splits: Mapping) -> list[tuple]:
    items = list(splits.items())
    return [(items[i], other) for i in range(len(items)) for other in items[i + 1 :]]


def _example(row: LrsGroRow) -> str:
    return f"{row.image_name}: {row.question[:70]}" + (f" {list(row.bbox)}" if row.bbox else "")


def statistics(rows: Sequence[LrsGroRow], images: Mapping[str, ImageSource]) -> dict:
    """Counts of a split, and what its answers and boxes are like; shares are of its rows."""
    answers = collections.Counter(row.ground_truth.lower() for row in rows)
    frequent = answers.most_common(5)
    share = {
        "yes or no": sum(answers[word] for word in ("yes", "no")),
        "a number": sum(count for answer, count in answers.items() if answer.isdigit()),
        "several words": sum(count for answer, count in answers.items() if " " in answer),
        "the most frequent": frequent[0][1] if frequent else 0,
    }
    areas = [area for row in rows if row.bbox and (area := _area(row, images.get(row.image_name))) is not None]
    return {
        "rows": len(rows),
        "images": len({row.image_name for row in rows}),
        "levels": dict(collections.Counter(row.level for row in rows)),
        "categories": dict(collections.Counter(row.category for row in rows if row.category).most_common()),
        "answers": {what: round(count / len(rows), 3) for what, count in share.items()},
        "frequent answers": dict(frequent),
        "boxes": sum(bool(row.bbox) for row in rows),
        "box area / image area (5 %, median, 95 %)": [float(f"{a:.2g}") for a in np.percentile(areas, (5, 50, 95))]
        if areas
        else [],
        "rows with reasoning": sum(bool(row.stage_1_reasoning) for row in rows),
    }


def _area(row: LrsGroRow, image: ImageSource | None) -> float | None:
    """The box's share of the image; of a square one where it isn't there."""
    frame = image.frame if image else Frame(ANNOTATION_PX, ANNOTATION_PX)
    box = clamped(from_annotation(row.bbox, frame))
    return box and (box.x2 - box.x1) * (box.y2 - box.y1) / (frame.width * frame.height)


def draw_grid(rows: Sequence[LrsGroRow], images: Mapping[str, ImageSource]) -> Image.Image:
    """Overviews with their boxes, and level, label, question and answer below."""
    columns = max(1, round(len(rows) ** 0.5))
    lines = -(-len(rows) // columns)
    grid = Image.new("RGB", (columns * (_CELL + 12), lines * (_CELL + _CAPTION)), (255, 255, 255))
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(16)
    for i, row in enumerate(rows):
        x, y = i % columns * (_CELL + 12), i // columns * (_CELL + _CAPTION)
        image = images[row.image_name]
        overview = image.window(whole(image), view_size(image.frame.width, image.frame.height, _CELL, unit=1))
        box: Box | None = clamped(from_annotation(row.bbox, image.frame)) if row.bbox else None
        picture = with_boxes(overview, [(box, "predicted")], _CELL)
        picture.thumbnail((_CELL, _CELL))
        grid.paste(picture, (x, y))
        label = f" [{row.label}]" if row.label else ""
        text = f"{row.level}{label}: {row.question} {row.ground_truth}"
        caption = "\n".join(textwrap.wrap(text, 56, max_lines=_LINES, placeholder=" ..."))
        draw.multiline_text((x + 4, y + _CELL + 4), caption, (0, 0, 0), font=font, spacing=3)
    return grid
