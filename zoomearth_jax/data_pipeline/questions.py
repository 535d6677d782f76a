"""Questions about images: the record that every stage works on, the procedural sets, and those of a folder."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.data_pipeline.boxes import Box, clamped, from_annotation
from zoomearth_jax.data_pipeline.image_folder import ImageFolder
from zoomearth_jax.data_pipeline.images import ImageSource
from zoomearth_jax.data_pipeline.lrs_gro import SPLITS as RELEASED_SPLITS
from zoomearth_jax.data_pipeline.lrs_gro import LrsGroRow, normalise, thoughts
from zoomearth_jax.data_pipeline.lrs_gro_files import WHERE_FROM, find_rows, images_of, read_split
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


def read_questions(directory, split: str | None = None, images: ImageConfig = ImageConfig()) -> list[Question]:
    """Reads the questions of a folder and opens their images (`ImageFolder` says where those are).

    Two forms: `questions.jsonl`, one split whatever `split` says (see `_read_own`); or the rows of LRS-GRO (see
    `lrs_gro_files.find_rows`), where a single file or saved folder will do as well.

    Args:
        split: sft, grpo or test, the names of SPLITS; LRS-GRO needs it. Its own name for grpo, rl, is taken too.
        images: how image files become RGB.

    Raises:
        UserError: a file, an image or a field is missing or wrong, with the row's number.
    """
    directory = Path(directory)
    if (directory / "questions.jsonl").is_file():
        return _read_own(directory, images)
    released = {"grpo": "rl"}.get(split, split)
    if split is None or find_rows(directory, released) is None:
        if split is None and any(find_rows(directory, name) for name in RELEASED_SPLITS):
            raise UserError(f"{directory}: holds LRS-GRO; say which split: {', '.join(RELEASED_SPLITS)}")
        rows = f"rows of LRS-GRO for split {released}" if released else "rows of LRS-GRO"
        raise UserError(
            f"{directory / 'questions.jsonl'}: no such file (`zoomearth scenes --out {directory}` writes an example), and no "
            f"{rows} in that folder. {WHERE_FROM}"
        )
    return _read_lrs_gro(directory, released, images)


def _read_own(directory: Path, config: ImageConfig) -> list[Question]:
    """Each line of questions.jsonl has `image` (a file name), `question`, `answer`, `level`, and where a crop is needed `box`
    (four numbers in px of the original)."""
    file = directory / "questions.jsonl"
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{file} line {number}"
        try:
            row = json.loads(line)
            name, text, answer, level = (str(row[key]) for key in ("image", "question", "answer", "level"))
            corners = row.get("box") and [float(c) for c in row["box"]]
            before, after = (str(text) for text in row.get("thoughts", ("", "")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{where}: not a question ({type(error).__name__}: {error})") from None
        if level not in LEVELS:
            raise UserError(f"{where}: level {level!r} is none of {', '.join(LEVELS)}")
        if corners and (len(corners) != 4 or not (corners[0] < corners[2] and corners[1] < corners[3])):
            raise UserError(f"{where}: box must be [x1, y1, x2, y2] with x1 < x2 and y1 < y2")
        rows.append((name, text, answer, level, corners, str(row.get("label", "")), (before, after)))
    if not rows:
        raise UserError(f"{file}: no questions")
    images = ImageFolder(directory, config).open(row[0] for row in rows)
    return [
        Question(images[name], text, answer, level, Box(*corners, images[name].frame) if corners else None, *rest)
        for name, text, answer, level, corners, *rest in rows
    ]


def _read_lrs_gro(path: Path, split: str, config: ImageConfig) -> list[Question]:
    """Rows that would teach or score nothing are left out and counted on standard error.

    Those are rows without an answer, or whose box has no area in the image; and for fine-tuning, rows without reasoning among
    rows with it: the last 11 of the released 1,011, so that the paper's 1,000 remain.
    """
    rows = [normalise(row) for row in read_split(path, split)]
    images = ImageFolder(images_of(path), config).open(row.image_name for row in rows)
    reasoned = split == "sft" and any(row.stage_1_reasoning for row in rows)
    kept = [row for row in rows if row.stage_1_reasoning or not reasoned]
    questions = [lrs_gro_question(row, images[row.image_name]) for row in kept]
    questions = [question for question in questions if question is not None]
    if len(questions) < len(rows):
        left_out = f"{len(rows) - len(questions)} of {len(rows)} rows of split {split} are left out"
        reason = "no reasoning, no answer, or no box in the image" if reasoned else "no answer, or no box in the image"
        print(f"{path}: {left_out} ({reason}); `zoomearth data check` lists them", file=sys.stderr)
    if not questions:
        raise UserError(f"{path}: no row of split {split} has an answer, and a box in its image if it has one")
    return questions


def lrs_gro_question(row: LrsGroRow, image: ImageSource) -> Question | None:
    """A question about an image from a normalised row: the box in px of the image, cut at its border.

    None where there is nothing to learn or to score: no answer, or a box without area in the image.
    """
    box = clamped(from_annotation(row.bbox, image.frame)) if row.needs_crop else None
    if not row.ground_truth or (row.needs_crop and box is None):
        return None
    return Question(image, row.question, row.ground_truth, row.level, box, row.label or "", thoughts(row))
