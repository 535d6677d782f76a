"""Questions about images: the record that every stage works on, and the procedural sets."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zoomearth_jax.data_pipeline.boxes import Box
from zoomearth_jax.data_pipeline.images import ImageSource, RawImage
from zoomearth_jax.data_pipeline.scenes import Scene, Site, random_scene
from zoomearth_jax.errors import UserError

LEVELS = ("global", "region", "object")


@dataclasses.dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        image: what is looked at.
        text, answer: as a person writes them.
        level: global, region or object, as in LRS-GRO.
        box: the reference box in px of the original; None where the overview is enough.
        label: what the box shows.
        thoughts: reasoning before the crop (or before the answer), and after the crop; for fine-tuning.
    """

    image: ImageSource
    text: str
    answer: str
    level: str
    box: Box | None = None
    label: str = ""
    thoughts: tuple[str, str] = ("", "")


def site_question(scene: Scene, site: Site) -> Question:
    """Object level: needs the crop."""
    return Question(
        image=scene,
        text=f"Which way do the stripes of the {site.color} site run?",
        answer=site.orientation,
        level="object",
        box=scene.box(site),
        label=f"{site.color} site",
        thoughts=(f"find the {site.color} site", f"the stripes are {site.orientation}"),
    )


def count_question(scene: Scene) -> Question:
    """Global level: the overview is enough."""
    count = str(len(scene.sites))
    return Question(scene, "How many sites are there?", count, "global", thoughts=(f"there are {count} sites", ""))


def season_question(scene: Scene) -> Question:
    """Global level: the overview is enough."""
    return Question(
        scene, "Which season is it?", scene.season, "global", thoughts=(f"it looks like {scene.season}", "")
    )


# Streams of independent scenes: (stream, seed, index) seeds one question, so no question of one split is in another.
SPLITS = ("pretrain", "sft", "grpo", "test")


def scene_questions(split: str, seed: int, start: int, count: int, global_share: float = 0.0) -> list[Question]:
    """Questions number start … start + count - 1 of a split, one scene each; the same whatever the start.

    Args:
        global_share: probability of a question on the whole scene (sites counted, season) instead of on one site.
    """
    stream = SPLITS.index(split)
    questions = []
    for index in range(start, start + count):
        rng = np.random.default_rng([stream, seed, index])
        scene = random_scene(rng)
        if rng.uniform() < global_share:
            questions.append(count_question(scene) if rng.uniform() < 0.5 else season_question(scene))
        else:
            questions.append(site_question(scene, scene.sites[rng.integers(len(scene.sites))]))
    return questions


def write_questions(path: Path, rows: Sequence[tuple[str, Question]]) -> None:
    """Writes (image file name, question) pairs as JSON lines beside the images; `read_questions` reads them."""
    with open(path, "w", encoding="utf-8") as file:
        for name, q in rows:
            box = None if q.box is None else [round(c, 2) for c in q.box.corners]
            row = {
                "image": name,
                "question": q.text,
                "answer": q.answer,
                "level": q.level,
                "box": box,
                "label": q.label,
            }
            file.write(json.dumps({**row, "thoughts": list(q.thoughts)}, ensure_ascii=False) + "\n")


def read_questions(directory) -> list[Question]:
    """Reads `questions.jsonl` of a folder and opens its images.

    Each line has `image` (a file in the folder), `question`, `answer`, `level`, and where a crop is needed `box`
    (four numbers in px of the original).

    Raises:
        UserError: the file, an image or a field is missing or wrong, with the line's number.
    """
    directory = Path(directory)
    file = directory / "questions.jsonl"
    if not file.is_file():
        raise UserError(f"{file}: no such file; `zoomearth scenes --out {directory}` writes an example")
    images: dict[str, RawImage] = {}
    questions = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{file} line {number}"
        try:
            row = json.loads(line)
            name, text, answer, level = (str(row[key]) for key in ("image", "question", "answer", "level"))
            corners = row.get("box") and [float(c) for c in row["box"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{where}: not a question ({type(error).__name__}: {error})") from None
        if level not in LEVELS:
            raise UserError(f"{where}: level {level!r} is none of {', '.join(LEVELS)}")
        if corners and (len(corners) != 4 or not (corners[0] < corners[2] and corners[1] < corners[3])):
            raise UserError(f"{where}: box must be [x1, y1, x2, y2] with x1 < x2 and y1 < y2")
        if name not in images:
            if not (directory / name).resolve().is_relative_to(directory.resolve()):
                raise UserError(f"{where}: image {name!r} is not inside the folder")
            images[name] = RawImage(directory / name)
        image = images[name]
        box = Box(*corners, image.frame) if corners else None
        thoughts = tuple(row.get("thoughts", ("", "")))
        questions.append(Question(image, text, answer, level, box, str(row.get("label", "")), thoughts))
    if not questions:
        raise UserError(f"{file}: no questions")
    return questions
