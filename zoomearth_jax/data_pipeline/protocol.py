"""What the policy writes: rendering it for fine-tuning, and parsing it. The paper's output protocol.

With a crop:     <think>…</think>[{"bbox_2d": [x1, y1, x2, y2], "label": "…"}]   then   <think>…</think><answer>…</answer>
Without a crop:  <think>…</think><answer>…</answer>

Boxes are in px of the overview as the model sees it. Model output is data: parsing returns a value or a reason.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re

from zoomearth_jax.data_pipeline.boxes import Box, Frame

_BOX = re.compile(r'"bbox_2d"\s*:\s*\[([^\[\]]*)\]')
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_LOOK = re.compile(r"\s*<think>((?!<think>|</think>).)*</think>\s*\[\s*\{[^{}]*\}\s*\]\s*", re.DOTALL)
_REPLY = re.compile(r"\s*<think>((?!<think>|</think>).)*</think>\s*<answer>((?!<answer>).)*</answer>\s*", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class ParsedBox:
    """A box, or why there is none: `absent`, `malformed`, `degenerate` (no area or inverted), `outside` the view."""

    box: Box | None
    reason: str = ""


def render_look(thought: str, box: Box, label: str) -> str:
    """Stage 1 when a crop is needed; the box in px of the view."""
    corners = [round(c) for c in box.corners]
    return f"<think>{thought}</think>" + json.dumps([{"bbox_2d": corners, "label": label}])


def render_answer(thought: str, answer: str) -> str:
    """The reply after the crop, or at once."""
    return f"<think>{thought}</think><answer>{answer}</answer>"


def parse_box(text: str, view: Frame) -> ParsedBox:
    """The first box of a text, clamped to the view.

    Exactly four finite numbers count; three or five are malformed, not a whole image.
    """
    match = _BOX.search(text)
    if match is None:
        return ParsedBox(None, "absent")
    try:
        corners = [float(part) for part in match[1].split(",")]
    except ValueError:
        return ParsedBox(None, "malformed")
    if len(corners) != 4 or not all(math.isfinite(c) for c in corners):
        return ParsedBox(None, "malformed")
    x1, y1, x2, y2 = corners
    if x1 >= x2 or y1 >= y2:
        return ParsedBox(None, "degenerate")
    if x1 >= view.width or y1 >= view.height or x2 <= 0 or y2 <= 0:
        return ParsedBox(None, "outside")
    return ParsedBox(Box(max(x1, 0.0), max(y1, 0.0), min(x2, view.width), min(y2, view.height), view))


def parse_answer(text: str) -> str | None:
    """What stands in the first <answer>…</answer>; None without one."""
    match = _ANSWER.search(text)
    return match and match[1].strip()


def wants_crop(text: str) -> bool:
    """Whether a first reply asks for a crop: it names a box and doesn't answer."""
    return _BOX.search(text) is not None and parse_answer(text) is None


def follows_protocol(stage1: str, stage2: str | None, view: Frame) -> bool:
    """Whether an episode has the right format throughout (paper: r_pattern).

    Args:
        stage2: the text after the crop; None if there was no crop.
    """
    if stage2 is None:
        return _REPLY.fullmatch(stage1) is not None
    well_formed = _LOOK.fullmatch(stage1) is not None and parse_box(stage1, view).box is not None
    return well_formed and _REPLY.fullmatch(stage2) is not None


def follows_reference(stage1: str, stage2: str | None) -> bool:
    """Whether an episode has the parts that the released code looks for: thoughts and an answer that aren't empty, and with a
    crop a list of numbers, however many, as the box; what else is written doesn't count.

    Args:
        stage2: the text after the crop; None if there was no crop.
    """

    def has(text: str, tag: str) -> bool:
        found = re.search(rf"<{tag}\s*>(.*?)</{tag}\s*>", text, re.DOTALL)
        return found is not None and bool(found[1].strip())

    answers = has(stage1 if stage2 is None else stage2, "answer")
    if stage2 is None:
        return answers and has(stage1, "think")
    return answers and has(stage1, "think") and has(stage2, "think") and any(map(_numbers, _BOX.findall(stage1)))


def _numbers(text: str) -> bool:
    try:
        return bool([float(part) for part in text.split(",")])
    except ValueError:
        return False


def normalize(answer: str) -> str:
    """Case, outer blanks and a final dot don't count."""
    return answer.strip().lower().removesuffix(".").strip()


def is_correct(answer: str | None, reference: str) -> bool:
    """Exact match after `normalize`; a missing answer is wrong."""
    return answer is not None and normalize(answer) == normalize(reference)
