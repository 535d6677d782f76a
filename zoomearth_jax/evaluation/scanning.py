"""One question asked all over a huge image: the grid of windows, what counts as found, and boxes that show the same."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.images.sources import ImageSource, Part, RawImage
from zoomearth_jax.data_pipeline.images.tiles import StoredImage
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.errors import UserError
from zoomearth_jax.evaluation.identity import sampled
from zoomearth_jax.evaluation.records import Item, Record

MAX_WINDOWS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Found:
    """What was found in one place.

    Attributes:
        box: in px of the image.
        answers: what the model answered there, and how often.
        windows: the number of windows that it was named in.
    """

    box: Box
    answers: Mapping[str, int]
    windows: int

    @property
    def answer(self) -> str:
        """The most frequent answer, of several the first one that was given."""
        return max(self.answers, key=lambda answer: self.answers[answer])

    def to_json(self) -> dict[str, Any]:
        """Plain data, the box rounded."""
        corners = [round(corner, 1) for corner in self.box.corners]
        return {"box": corners, "answer": self.answer, "answers": dict(self.answers), "windows": self.windows}


def grid(frame: Frame, tile_px: int, overlap: float) -> list[Box]:
    """Windows of `tile_px` that cover an image, row by row; neighbours share at least `overlap` of their side.

    They are spread evenly, so the last one ends at the border. An image that is narrower than a window has narrower ones.

    Raises:
        UserError: too many.
    """
    columns, rows = (_starts(side, tile_px, overlap) for side in (frame.width, frame.height))
    if len(columns) * len(rows) > MAX_WINDOWS:
        raise UserError(f"scan: {len(columns) * len(rows):,} windows; take a larger --tile-px or less --overlap")
    wide, tall = min(tile_px, frame.width), min(tile_px, frame.height)
    return [Box(x, y, x + wide, y + tall, frame) for y in rows for x in columns]


def _starts(side: int, tile: int, overlap: float) -> list[int]:
    count = max(math.ceil((side - overlap * tile) / (tile - overlap * tile) - 1e-9), 1)
    return [round(index * (side - tile) / (count - 1)) if count > 1 else 0 for index in range(count)]


def window_items(image: ImageSource, name: str, question: str, windows: Iterable[Box]) -> list[Item]:
    """The question about each window, which is an image of its own; ids say its upper left corner."""
    return [
        Item(f"{int(box.x1)},{int(box.y1)}", Question(Part(image, box), question, "", "object"), name)
        for box in windows
    ]


def image_identity(image: ImageSource) -> Any:
    """What tells an image from others, wherever it lies."""
    if isinstance(image, StoredImage):
        return image.record.source_sha256
    assert isinstance(image, RawImage)
    return sampled(Path(image.path))


def hits(records: Iterable[Record], frame: Frame, absent: Sequence[str]) -> list[tuple[Box, str]]:
    """The boxes that were named, in px of the whole image, with their answers.

    A window without a valid box or without an answer, or whose answer is one of `absent` up to case, outer blanks and a
    final dot, found nothing.
    """
    gone = {_plain(answer) for answer in absent}
    found = []
    for record in records:
        if record.box is not None and record.answer is not None and _plain(record.answer) not in gone:
            left, top = map(int, record.id.split(","))
            x1, y1, x2, y2 = record.box
            found.append((Box(x1 + left, y1 + top, x2 + left, y2 + top, frame), record.answer.strip()))
    return found


def _plain(answer: str) -> str:
    return answer.strip().removesuffix(".").strip().casefold()


def merged(named: Sequence[tuple[Box, str]], iou: float) -> list[Found]:
    """Boxes that show the same, as one: each joins the place whose box it overlaps most, if by an IoU of at least `iou`, and
    the place's box becomes the mean of its boxes."""
    means, members = np.zeros((len(named), 4)), list[list[int]]()
    for index, (box, _) in enumerate(named):
        corners = np.array(box.corners)
        overlaps = ious(corners, means[: len(members)])
        if len(members) and overlaps.max() >= iou:
            place = int(overlaps.argmax())
            members[place].append(index)
            means[place] += (corners - means[place]) / len(members[place])
        else:
            means[len(members)] = corners
            members.append([index])
    places = []
    for mean, indices in zip(means, members, strict=False):
        answers = Counter(named[index][1] for index in indices)
        x1, y1, x2, y2 = mean.tolist()
        places.append(Found(Box(x1, y1, x2, y2, named[indices[0]][0].frame), dict(answers), len(indices)))
    return places


def ious(corners: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU of one box [4] with boxes [n, 4]."""
    low, high = np.maximum(corners[:2], boxes[:, :2]), np.minimum(corners[2:], boxes[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (corners[2:] - corners[:2]).prod()
    return shared / np.maximum(areas - shared, 1e-9)
