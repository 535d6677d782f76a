"""The boxes of an evaluation on the earth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.images.georeference import Georeference, georeference_of
from zoomearth_jax.errors import UserError
from zoomearth_jax.evaluation.records import Item, Record
from zoomearth_jax.reports.geojson import Placed
from zoomearth_jax.terminal.progress import say

_KINDS = {"box": "box", "window": "window", "reference_box": "reference"}


def where_items_lie(items: Sequence[Item], flag: str) -> dict[str, Georeference]:
    """Where the images of questions lie, by the questions' ids; those that nobody can place are counted on standard error.

    Args:
        flag: the setting that needs it.

    Raises:
        UserError: none of them can be placed.
    """
    known: dict[int, Georeference | None] = {}
    for item in items:
        image = item.question.image
        if id(image) not in known:
            known[id(image)] = _where(image)
    lie = {item.id: where for item in items if (where := known[id(item.question.image)]) is not None}
    if not lie:
        raise UserError(f"none of the images has a georeference with a CRS, which {flag} needs")
    if len(lie) < len(items):
        say(
            f"{len(items) - len(lie):,} of {len(items):,} questions are left out of {flag}: their images have no georeference"
        )
    return lie


def _where(image) -> Georeference | None:
    try:
        where = georeference_of(image)
    except UserError as error:
        say(str(error))
        return None
    return where if where and where.crs else None


def placed_records(records: Sequence[Record], lie: Mapping[str, Georeference]) -> list[Placed]:
    """The boxes, windows and reference boxes of records whose images lie somewhere."""
    placed = []
    for record in records:
        frame = Frame(record.width, record.height)
        known = {
            "id": record.id,
            "image": record.image,
            "question": record.question,
            "answer": record.answer,
            "reference": record.reference,
        }
        for field, kind in _KINDS.items():
            corners = getattr(record, field)
            if corners is not None and record.id in lie:
                x1, y1, x2, y2 = corners
                placed.append(Placed(Box(x1, y1, x2, y2, frame), lie[record.id], {**known, "kind": kind}))
    return placed
