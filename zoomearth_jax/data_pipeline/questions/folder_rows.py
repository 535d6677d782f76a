"""What becomes of a row of a folder: one judgement for training and for `zoomearth data check`."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from zoomearth_jax.data_pipeline.images.boxes import ANNOTATION_PX, Box, Frame, clamped, from_annotation, wider
from zoomearth_jax.data_pipeline.images.geometry import box_of_geometry
from zoomearth_jax.data_pipeline.images.georeference import located
from zoomearth_jax.data_pipeline.images.image_folder import ImageFolder
from zoomearth_jax.data_pipeline.images.sources import ImageSource
from zoomearth_jax.data_pipeline.questions.question import Look, Question
from zoomearth_jax.data_pipeline.questions.records import one_line
from zoomearth_jax.errors import BrokenImage, UserError

Effect = Literal["refused", "left out", "noted"]
_MARKS = re.compile(r"</?(?:think|answer)\s*>|bbox_2d")  # of the reply's parts (see `protocol`)
_REST = re.compile(r", not |; | \(")
UNREADABLE = "image can't be read"
_NORMALISED = 16  # px; in an image of this longest side or more a box with all corners within 0 … 1 is no box in px


@dataclasses.dataclass(frozen=True)
class GivenLook:
    """A look as a file has it.

    Attributes:
        corners: x1, y1, x2, y2 in px of the original or, of LRS-GRO, of the annotators' picture.
        label, thought: as of `Look`.
        geometry: a GeoJSON object in place of corners; see `in_px`.
        source, context: as of `Look`; a wider view has no corners before `in_px`.
    """

    corners: tuple[float, ...]
    label: str = ""
    thought: str = ""
    geometry: Mapping | None = None
    source: Literal["overview", "picture", "context"] = "overview"
    context: float = 0.0


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a folder, its texts cleaned, before its image is looked at.

    Attributes:
        where: file and line.
        image: the image's name in the folder.
        text, answer, level, looks, thought, category, choices: as of `Question`.
        boxes: corners of all that the question asks about, in px of the original.
        released: whether it is of a published set, whose noise leaves a row out where it is a fault in a folder of one's own.
        annotated: whether its looks are in px of the picture that LRS-GRO's annotators saw.
        needs_looks: whether the reference takes the looks that are given.
        scale: longest side of the image / 1024, as LRS-GRO has it.
        notes: what is odd about it, without consequence.
    """

    where: str
    image: str
    text: str
    answer: str
    level: str
    looks: tuple[GivenLook, ...] = ()
    thought: str = ""
    category: str = ""
    choices: tuple[str, ...] = ()
    boxes: tuple[tuple[float, ...], ...] = ()
    released: bool = False
    annotated: bool = False
    needs_looks: bool = True
    scale: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        """(image, question): what identifies a row across files."""
        return self.image, self.text

    @property
    def reasoned(self) -> bool:
        """Whether reasoning begins the reference."""
        return bool(self.looks[0].thought if self.looks and self.needs_looks else self.thought)

    def box(self, look: GivenLook, image: Frame) -> Box:
        """The box of one of its looks in px of the image, not yet cut at the border."""
        if self.annotated:
            return from_annotation(look.corners, image)
        x1, y1, x2, y2 = map(float, look.corners)
        return Box(x1, y1, x2, y2, image)

    def __str__(self) -> str:
        boxes = "".join(f" {list(corners)}" for corners in (*(look.corners for look in self.looks), *self.boxes[:4]))
        return f"{self.image[:200]}: {self.text[:70]}{boxes}"


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is wrong with a row or an image.

    Attributes:
        kind: in words that several rows may share.
        effect: `refused`: training and evaluation refuse the folder. `left out`: they go without the row, and say how many.
            `noted`: nothing comes of it.
        where: file and line; of an image, those of the first row that names it.
        detail: the row, or more about the fault.
    """

    kind: str
    effect: Effect
    where: str
    detail: str = ""

    def __str__(self) -> str:
        return one_line(": ".join(part for part in (self.where, self.kind, self.detail) if part))

    @property
    def family(self) -> str:
        """The kind without values, hints and reasons."""
        return _REST.split(self.kind, maxsplit=1)[0]

    @property
    def row(self) -> str:
        """File and line, and what `family` doesn't say."""
        rest = self.kind[len(self.family) :].lstrip(",; ")
        return one_line(": ".join(part for part in (self.where, rest, self.detail) if part))


class Judged(NamedTuple):
    """A split: its rows, those that training takes with the question that becomes of each, and what is wrong."""

    rows: list[Row]
    taken: list[tuple[Row, Question]]
    problems: list[Problem]

    def of_effect(self, effect: Effect) -> list[Problem]:
        """The problems with that effect."""
        return [problem for problem in self.problems if problem.effect == effect]


class OpenImages:
    """The images that rows name, each opened once."""

    def __init__(self, folder: ImageFolder):
        """Opens nothing yet."""
        self._folder = folder
        self._found: dict[str, ImageSource | tuple[str, Effect, str]] = {}

    def __getitem__(self, name: str) -> ImageSource | tuple[str, Effect, str]:
        """The image; or what is wrong with it, as kind, effect and detail."""
        if name not in self._found:
            self._found[name] = self._open(name)
        return self._found[name]

    def _open(self, name: str) -> ImageSource | tuple[str, Effect, str]:
        try:
            image = self._folder.get(name)
        except (UserError, OSError, ValueError) as error:
            said = (error.strerror or "") if isinstance(error, OSError) else str(error)
            said = said if name[:100] in said else f"{name[:100]!r}: {said}"
            if isinstance(error, BrokenImage):
                return UNREADABLE, "left out", said
            return "image is refused", "refused", said
        if image is None:
            slashes = "; folders are parted by /" if "\\" in name else ""
            where = f"no such file in {self._folder.directory}, its images/ or its tile store tiles/"
            return "image is missing", "refused", f"{name[:200]!r}, {where}{slashes}"
        return image


def judge(
    rows: Sequence[Row], faults: Sequence[Problem], images: OpenImages, drop_unreasoned: bool, seen: Callable = iter
) -> Judged:
    """Judges rows, in their order.

    Args:
        faults: messages about what in the file is no row.
        drop_unreasoned: whether rows without reasoning are left out where others have it.
        seen: wraps the rows as they are gone through, for a progress bar.
    """
    problems, taken, reported = list(faults), [], set()
    dropped = drop_unreasoned and any(row.reasoned for row in rows)
    for row in seen(rows):
        image = images[row.image]
        if isinstance(image, tuple):
            if row.image not in reported:
                reported.add(row.image)
                problems.append(Problem(image[0], image[1], row.where, image[2]))
            continue
        try:
            row = in_px(row, image)
        except UserError as error:
            problems.append(Problem(f"geometry is refused, {error}", "refused", row.where, str(row)))
            continue
        found = row_problems(row, image)
        if dropped and not row.reasoned:
            found.append(Problem("reasoning is missing", "left out", row.where, str(row)))
        problems += found
        if all(problem.effect == "noted" for problem in found):
            taken.append((row, to_question(row, image)))
    if not taken and not any(problem.effect == "refused" for problem in problems):
        first = next((str(problem) for problem in problems if problem.effect == "left out"), "")
        why = f"all are left out, the first: {first}" if rows else "no questions"
        problems.append(Problem(f"no row is left: {why}", "refused", ""))
    return Judged(list(rows), taken, problems)


def in_px(row: Row, image: ImageSource) -> Row:
    """The row with boxes in px of its image in place of geometries and wider views, which have no corners yet. That of a wider
    view is the place of the look before it, grown.

    Raises:
        UserError: the image doesn't say where it lies, or a geometry isn't in it.
    """
    looks = list(row.looks)
    for number, look in enumerate(looks):
        if look.geometry is not None:
            where = located(image, row.image, "a geometry")
            try:
                box = box_of_geometry(look.geometry, where, image)
            except ValueError as error:
                raise UserError(str(error)) from None
            looks[number] = dataclasses.replace(look, corners=box.corners)
        if look.source == "context":
            before = looks[number - 1]
            place = clamped(row.box(before, image.frame))
            looks[number] = dataclasses.replace(
                look, corners=wider(place, look.context).corners if place else before.corners
            )
    return dataclasses.replace(row, looks=tuple(looks))


def to_question(row: Row, image: ImageSource) -> Question:
    """The question of a row that is taken: its boxes in px of the image, cut at the border; none where nobody looks."""
    given = row.looks if row.needs_looks else ()
    boxes = [(look, clamped(row.box(look, image.frame))) for look in given]
    looks = tuple(
        Look(box, look.label, look.thought, look.source, look.context) for look, box in boxes if box is not None
    )
    found = tuple(box for given in row.boxes if (box := clamped(row.box(GivenLook(given), image.frame))) is not None)
    return Question(image, row.text, row.answer, row.level, looks, row.thought, row.category, row.choices, found)


def row_problems(row: Row, image: ImageSource) -> list[Problem]:
    """What is wrong with a row whose image is there."""
    broken: Effect = "left out" if row.released else "refused"
    found: list[tuple[str, Effect]] = [(note, "noted") for note in row.notes]
    if not row.answer.strip():
        found.append(("answer is empty", broken))
    elif _holds_marks(row):
        found.append(("thoughts, label or answer hold marks of the reply (<think>, <answer>, bbox_2d, braces)", broken))
    looks = (*row.looks, *map(GivenLook, row.boxes))
    for fault in [fault for look in looks if (fault := box_fault(row, look, image.frame))]:
        without_harm = fault == PARTLY or not row.needs_looks
        found.append((fault, "refused" if fault == NORMALISED else "noted" if without_harm else broken))
    if row.scale and row.looks and abs(row.scale * ANNOTATION_PX - max(image.frame.width, image.frame.height)) > 1:
        found.append(("scale isn't the image's longest side / 1024", "noted"))
    if row.choices and row.answer not in row.choices:
        found.append(("answer is none of the choices", "noted"))
    size = f" (image of {image.frame.width} x {image.frame.height} px)"
    return [Problem(kind, effect, row.where, str(row) + size * kind.startswith("box")) for kind, effect in found]


def _holds_marks(row: Row) -> bool:
    """Whether what fine-tuning would teach could not be read back as it was meant."""
    texts = [row.thought, row.answer] + [text for look in row.looks for text in (look.thought, look.label)]
    return any(map(_MARKS.search, texts)) or (
        row.needs_looks and any(re.search("[{}]", look.label) for look in row.looks)
    )


DEGENERATE, OUTSIDE, PARTLY = "box is degenerate", "box is outside the image", "box is partly outside the image"
NORMALISED = "box is normalised; corners are in px"


def box_fault(row: Row, look: GivenLook, image: Frame) -> str:
    """What is wrong with the box of one of a row's looks: one of the kinds above, or nothing.

    A box partly outside is cut at the border.

    The annotators' picture of LRS-GRO has its shorter side rounded up to whole px.
    """
    x1, y1, x2, y2 = look.corners
    if x1 >= x2 or y1 >= y2:
        return DEGENERATE
    if max(map(abs, look.corners)) <= 1 and max(image.width, image.height) >= _NORMALISED:
        return NORMALISED
    if clamped(row.box(look, image)) is None:
        return OUTSIDE
    factor = ANNOTATION_PX / max(image.width, image.height) if row.annotated else 1
    width, height = (math.ceil(side * factor) for side in (image.width, image.height))
    return PARTLY if min(x1, y1) < 0 or x2 > width or y2 > height else ""
