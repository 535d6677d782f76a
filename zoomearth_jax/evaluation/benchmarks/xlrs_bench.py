"""XLRS-Bench: choices about very large images, some with several right ones; the images are inside the Parquet files."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.data_pipeline.images.boxes import Frame
from zoomearth_jax.data_pipeline.images.embedded import EmbeddedImage, read_embedded
from zoomearth_jax.data_pipeline.images.sources import SideBySide
from zoomearth_jax.data_pipeline.images.tiles import expanded
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.data_pipeline.questions.records import Field
from zoomearth_jax.errors import UserError
from zoomearth_jax.evaluation.benchmarks.benchmark import Opened, Scores
from zoomearth_jax.evaluation.benchmarks.official import RowFault, choice_letters, fields_of, open_rows
from zoomearth_jax.evaluation.figures import figures
from zoomearth_jax.evaluation.records import Item, Record
from zoomearth_jax.evaluation.scorers import LETTERS, letters, listed_letters, payload

LITE_ROWS = 3080  # a set with more is the full one
OVERALL = "Overall Land use classification"  # the task with several right choices
FIELDS = {
    "question": Field(required=True),
    "multi-choice options": Field("a list of texts", required=True),
    "answer": Field(required=True),
    "category": Field(required=True),
    "path": Field(),
}
_ASK = "Which choice is right, by the image? Answer with its letter only."
_ASK_ALL = (
    "Which choices are right, by the image? There may be several. Answer with their letters only, with blanks between."
)
_RESOLUTION = re.compile(r"(Image resolution:\s*)(\d+)(\s*[x×*]\s*)(\d+)", re.IGNORECASE)
_BOXES = re.compile(r"(?<=bounding box:)\s*\[[-\d.,\s\[\]]*\]", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


class XlrsBench:
    """XLRS-Bench-lite, 3,080 rows in 13 tasks ("L2/L3"), or the full set in the same form.

    The headline is the mean over tasks for the lite set, as its leaderboard has it, and over questions for the full one.
    """

    name = "xlrs-bench"
    title = "XLRS-Bench"
    where = (
        "the Parquet files are published at https://huggingface.co/datasets/initiacms/XLRS-Bench-lite: "
        "`hf download initiacms/XLRS-Bench-lite --repo-type dataset --local-dir DIR`, and give DIR"
    )
    published: ClassVar[dict] = {
        "ZoomEarth 3B, 1024 px": {"official": 40.20},
        "ZoomEarth 3B, 1024 px, without crops": {"official": 30.00},
        "ZoomEarth 3B, measured by RS-OPSD's authors": {"official": 39.2},
        "VLM-R3": {"official": 39.10},
        "InternVL3 8B": {"official": 36.70},
        "Qwen2.5-VL-3B": {"official": 36.00},
        "RS-OPSD 8B": {"official": 53.1},
    }

    def open(self, data: Path, images: Path | None, config: ImageConfig) -> Opened:
        """See `Benchmark.open`; the images are in the files, so `images` must be left out.

        Every row's header is read once, without decoding. What it says of the size decides how boxes in questions are rescaled.
        """
        if images is not None:
            raise UserError(f"{self.name}: the images are inside the Parquet files; leave the folder of images out")
        path = expanded(data)
        files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
        if not files:
            raise UserError(f"{path}: no .parquet there. {self.where}")
        rows = (
            (f"{file.name} row {number}", (values, found), fault)
            for file in files
            for number, (values, found, fault) in enumerate(read_embedded(file, ("index", *FIELDS), "image", config), 1)
        )
        opened = open_rows(str(path), self.where, rows, _item)
        form = "full" if opened.total > LITE_ROWS else "lite"
        items = [dataclasses.replace(item, extra={**item.extra, "form": form}) for item in opened.items]
        return dataclasses.replace(opened, items=items)

    def score(self, records: Sequence[Record]) -> Scores:
        """See `Benchmark.score`: `letters` are the reference's; strictly, `listed_letters` are."""
        read = [letters(payload(record)) for record in records]
        wanted = [frozenset(record.reference) & set(LETTERS) for record in records]
        strict = [listed_letters(record.answer or "") for record in records]
        return Scores(
            np.array([given == want for given, want in zip(read, wanted, strict=True)], float),
            np.array([given == want for given, want in zip(strict, wanted, strict=True)], float),
            np.array([bool(given) for given in read], bool),
        )

    def summarize(self, records: Sequence[Record], scores: Scores) -> dict[str, Any]:
        """See `Benchmark.summarize`."""
        full = any(record.extra.get("form") == "full" for record in records)
        return figures(
            records, scores, {"by_task": [r.category for r in records]}, headline="micro" if full else "macro"
        )


def _item(place: str, row: tuple[dict, list[EmbeddedImage]]) -> Item:
    record, images = row
    values = fields_of(record, FIELDS)
    choices, answer, task = values["multi-choice options"], values["answer"].strip(), values["category"].strip()
    wanted = set(re.findall("[A-Z]", answer))
    if not wanted or not wanted <= set(choice_letters(choices)) & set(LETTERS):
        raise RowFault(f"field 'answer' is {answer[:40]!r}, which is none of the choices")
    image = images[0] if len(images) == 1 else SideBySide(images)
    text = rescaled(values["question"], images[0].frame)
    ask = _ASK_ALL if task.endswith(OVERALL) else _ASK
    return Item(
        id=str(record.get("index") if record.get("index") is not None else place),
        question=Question(image, "\n".join([text, *choices, ask]), answer, "global", category=task),
        image=values.get("path") or place,
        choices=choices,
        extra={"images": len(images)},
    )


def rescaled(question: str, frame: Frame) -> str:
    """A question whose "Image resolution: W x H" and "Bounding box: […]" are in px of the image as it is stored.

    The numbers of a box are x and y in turns. A question without both parts stays as it is.
    """
    said = _RESOLUTION.search(question)
    if said is None or not int(said[2]) or not int(said[4]):
        return question
    scales = frame.width / int(said[2]), frame.height / int(said[4])

    def box(found: re.Match) -> str:
        place = iter(range(len(found[0])))
        return _NUMBER.sub(lambda number: str(round(float(number[0]) * scales[next(place) % 2])), found[0])

    question = _RESOLUTION.sub(lambda found: f"{found[1]}{frame.width}{found[3]}{frame.height}", question)
    return _BOXES.sub(box, question)
