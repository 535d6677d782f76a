"""What the policy writes: rendering it for fine-tuning, and parsing it. The paper's output protocol.

With a crop:     <think>…</think>[{"bbox_2d": [x1, y1, x2, y2], "label": "…"}]   then   <think>…</think><answer>…</answer>
Without a crop:  <think>…</think><answer>…</answer>

Boxes are in px of the overview as the model sees it. Model output is data: parsing returns a value or a reason. `parse_box`
and `parse_answer` are what episodes are played by; `released_numbers` and `follows_reference` read texts as the released
code's rewards do.

Where an episode has room for several pictures, a turn after the first may look on from what it was shown (docs/looks.md):
Inside a picture:  [{"bbox_2d": [x1, y1, x2, y2], "label": "…", "source": "picture"}], in px of the last picture
Around a picture:  [{"context": 2, "label": "…"}], the last picture's place with its sides twice as long
`parse_look` reads these too.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Sequence

from zoomearth_jax.data_pipeline.images.boxes import Box, Frame

_BOX = re.compile(r'"bbox_2d"\s*:\s*\[([^\[\]]*)\]')
_CONTEXT = re.compile(r'"context"\s*:\s*([^,{}\[\]]*)')
_SOURCE = re.compile(r'"source"\s*:\s*("(?:\\.|[^"\\])*"|)')
_REST = re.compile(r'(?:"(?:\\.|[^"\\])*"|[^{}"])*')  # of an object; braces in texts don't end it
_OVERVIEWS = ("overview", "original_image")  # names of the first picture
_PICTURE = re.compile(r"picture|observation_(\d{1,3})")
_RELEASED_BOX = re.compile(r'"bbox_2d"\s*:\s*\[(.*?)\]', re.DOTALL)
_THOUGHT = re.compile(r"<think\s*>((?!</?think\s*>).)*</think\s*>", re.DOTALL | re.IGNORECASE)
_ANSWER = re.compile(r"<answer\s*>(.*?)</answer\s*>", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"</?(think|answer)\s*>", re.IGNORECASE)
_LOOK = re.compile(r"\s*<think>((?!<think>|</think>).)*</think>\s*\[\s*\{[^{}]*\}\s*\]\s*", re.DOTALL)
_REPLY = re.compile(r"\s*<think>((?!<think>|</think>).)*</think>\s*<answer>((?!<answer>).)*</answer>\s*", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class ParsedBox:
    """A box, or why there is none: `absent`, `malformed`, `degenerate` (no area or inverted), `outside` the view."""

    box: Box | None
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class ParsedLook:
    """Where a turn asks to look, or why nowhere.

    Attributes:
        box: in px of the picture that it is named on; None where none is named.
        picture: which one that is of the pictures that were shown, counted from 0; None for the overview. Of a wider view the one
            that it goes around.
        context: how many times as long the sides of a wider view are, above 1; 0 where a box is named.
        reason: empty, or as of `ParsedBox`; or `no picture`: its source is none that was shown.
    """

    box: Box | None = None
    picture: int | None = None
    context: float = 0.0
    reason: str = ""


def render_look(thought: str, box: Box, label: str, source: str = "overview") -> str:
    """A turn that asks for a crop; the box in px of its source. Tags within the texts are left out, so that it parses back.

    Args:
        source: the picture that the box is named on: `overview`, or `picture` for the last one.
    """
    look = {"bbox_2d": [round(c) for c in box.corners], "label": _untagged(label)}
    return _rendered(thought, look if source == "overview" else look | {"source": source})


def render_context(thought: str, factor: float, label: str) -> str:
    """A turn that asks for a wider view of the last picture's place, its sides `factor` times as long."""
    return _rendered(thought, {"context": int(factor) if factor == int(factor) else factor, "label": _untagged(label)})


def _rendered(thought: str, look: dict) -> str:
    return f"<think>{_untagged(thought)}</think>" + json.dumps([look])


def render_answer(thought: str, answer: str) -> str:
    """The turn that answers; without tags within the texts."""
    return f"<think>{_untagged(thought)}</think><answer>{_untagged(answer)}</answer>"


def _untagged(text: str) -> str:
    return _all_gone(_TAG, text)


def _all_gone(pattern: re.Pattern, text: str) -> str:
    """The text without what the pattern finds, and without what it finds in the rest."""
    count = 1
    while count:
        text, count = pattern.subn("", text)
    return text


def _number_lists(pattern: re.Pattern, text: str) -> Iterator[list[float]]:
    """Lists of numbers that follow each "bbox_2d"; templates such as [x1, y1, x2, y2] are passed over."""
    for found in pattern.finditer(text):
        try:
            yield [float(part) for part in found[1].split(",")]
        except ValueError:
            continue


def _corners(text: str) -> list[float] | None:
    """The first four finite numbers that are written as a box."""
    lists = _number_lists(_BOX, text)
    return next((n for n in lists if len(n) == 4 and all(map(math.isfinite, n))), None)


def parse_box(text: str, view: Frame) -> ParsedBox:
    """The first box of a text that is four finite numbers, clamped to the view.

    What is written as a box before it and isn't four finite numbers is passed over: three or five are malformed, not a
    whole image.
    """
    corners = _corners(text)
    if corners is None:
        return ParsedBox(None, "malformed" if _BOX.search(text) else "absent")
    return named_box(corners, view)


def parse_look(text: str, view: Frame, shown: Sequence[Frame | None]) -> ParsedLook:
    """The first look of a text: a box of four finite numbers, clamped to its picture, or a wider view with a finite number.

    What is written as either before it and isn't that is passed over. A box without "source" is on the overview; a source that
    is given twice, or is no text, is malformed. A wider view of at most once the sides is degenerate.

    Args:
        view: the overview's frame.
        shown: frames of the pictures that were shown after it; None for one that boxes can't be named on.
    """
    for found in sorted([*_BOX.finditer(text), *_CONTEXT.finditer(text)], key=lambda found: found.start()):
        numbers = _numbers(found)
        if found.re is _BOX and len(numbers) == 4:
            return _named_on(numbers, _sources(text, found), view, shown)
        if found.re is _CONTEXT and numbers:
            reason = "degenerate" if numbers[0] <= 1 else "" if shown and shown[-1] else "no picture"
            return ParsedLook(reason=reason) if reason else ParsedLook(None, len(shown) - 1, numbers[0])
    return ParsedLook(reason="malformed" if _BOX.search(text) or _CONTEXT.search(text) else "absent")


def _numbers(found: re.Match) -> list[float]:
    """The numbers of a box or a wider view; none where something else is written."""
    try:
        numbers = [float(part) for part in found[1].split(",")]
    except ValueError:
        return []
    return numbers if all(map(math.isfinite, numbers)) else []


def _sources(text: str, found: re.Match) -> list[str]:
    """What the object of a box says of its source, as JSON."""
    begin = max(text.rfind("{", 0, found.start()), text.rfind("}", 0, found.start())) + 1
    rest = _REST.match(text, found.end())
    fields = text[begin : found.start()] + (rest[0] if rest else "")
    return [source[1] for source in _SOURCE.finditer(fields)]


def _named_on(
    corners: Sequence[float], sources: Sequence[str], view: Frame, shown: Sequence[Frame | None]
) -> ParsedLook:
    name = sources[0][1:-1] if sources else "overview"
    if len(sources) > 1 or (sources and not sources[0]):
        return ParsedLook(reason="malformed")
    if name in _OVERVIEWS:
        named = named_box(corners, view)
        return ParsedLook(named.box, reason=named.reason)
    picture = _PICTURE.fullmatch(name)
    number = len(shown) if picture is None or picture[1] is None else int(picture[1])
    frame = shown[number - 1] if picture and 0 < number <= len(shown) else None
    if frame is None:
        return ParsedLook(reason="no picture")
    named = named_box(corners, frame)
    return ParsedLook(named.box, number - 1, reason=named.reason)


def named_box(corners: Sequence[float], view: Frame) -> ParsedBox:
    """The box of four finite numbers, clamped to the view, or why they name none."""
    x1, y1, x2, y2 = corners
    if x1 >= x2 or y1 >= y2:
        return ParsedBox(None, "degenerate")
    if x1 >= view.width or y1 >= view.height or x2 <= 0 or y2 <= 0:
        return ParsedBox(None, "outside")
    return ParsedBox(Box(max(x1, 0.0), max(y1, 0.0), min(x2, view.width), min(y2, view.height), view))


def parse_answer(text: str) -> str | None:
    """What stands in the first <answer>…</answer> outside of thoughts; None without one.

    An answer within <think>…</think>, nested or not, is a draft. A thought that is never closed hides nothing: what is
    answered after it counts. Upper case and blanks in the tags don't matter.
    """
    found = _ANSWER.search(without_thoughts(text))
    return found and found[1].strip()


def without_thoughts(text: str) -> str:
    """The text without its <think>…</think>; a thought that is never closed stays."""
    return _all_gone(_THOUGHT, text)


def wants_crop(text: str, several: bool = False) -> bool:
    """Whether a turn asks for a crop: it names a box and doesn't answer.

    Args:
        several: whether the episode has room for several pictures; then a wider view counts as a box does.
    """
    wider = several and any(map(_numbers, _CONTEXT.finditer(text)))
    return (wider or _corners(text) is not None) and parse_answer(text) is None


def follows_protocol(texts: Sequence[str], view: Frame, shown: Sequence[Frame | None] | None = None) -> bool:
    """Whether an episode has the right format throughout (paper: r_pattern).

    Args:
        texts: the texts of its turns: the last one answers, each one before names a box.
        shown: as of `parse_look`, by which texts are then read, each against the pictures before it; None in episodes that have
            room for one picture.
    """

    def looks(k: int, text: str) -> bool:
        reason = parse_box(text, view).reason if shown is None else parse_look(text, view, shown[:k]).reason
        return not reason and _LOOK.fullmatch(text) is not None

    return all(looks(k, text) for k, text in enumerate(texts[:-1])) and _REPLY.fullmatch(texts[-1]) is not None


def follows_reference(texts: Sequence[str]) -> bool:
    """Whether an episode has the parts that the released code looks for: thoughts and an answer that aren't empty, and before
    a crop a list of numbers, however many, as the box; what else is written doesn't count.

    Args:
        texts: the texts of its turns.
    """

    def has(text: str, tag: str) -> bool:
        found = re.search(rf"<{tag}\s*>(.*?)</{tag}\s*>", text, re.DOTALL)
        return found is not None and bool(found[1].strip())

    return (
        has(texts[-1], "answer")
        and all(has(text, "think") for text in texts)
        and all(map(released_numbers, texts[:-1]))
    )


def released_numbers(text: str) -> list[float]:
    """The box of a text as the released code's rewards read it: the first list of numbers after "bbox_2d", however many,
    as they are written; empty without one. They may be inverted, out of the image, nan or infinite."""
    return next(_number_lists(_RELEASED_BOX, text), [])


def normalize(answer: str) -> str:
    """A text without what doesn't count in comparisons: case, outer blanks and a final dot."""
    return answer.strip().lower().removesuffix(".").strip()


def is_correct(answer: str | None, reference: str) -> bool:
    """Exact match after `normalize`; a missing answer is wrong."""
    return answer is not None and normalize(answer) == normalize(reference)
