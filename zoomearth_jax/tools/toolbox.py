"""Image tools for a policy: it calls them in its turn's text, and is shown their pictures and told what came of them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from zoomearth_jax.configs.episode import CHAT_MARK, QUESTION
from zoomearth_jax.configs.tools import ToolsConfig
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.images.sources import ArrayImage, ImageSource, SideBySide, whole
from zoomearth_jax.data_pipeline.rows.builder import RowBuilder
from zoomearth_jax.data_pipeline.text.protocol import named_box, parse_answer
from zoomearth_jax.tools.calls import BadCall, Call, offer, parse_calls
from zoomearth_jax.tools.image_tool import ImageTool, ToolFailure, readable
from zoomearth_jax.tools.pasting import picture_of, provenance
from zoomearth_jax.tools.running import read_region, run_tool, window_of
from zoomearth_jax.tools.tool import Outcome, Request, Shown, View
from zoomearth_jax.tools.zoom import Zoom

NOTE_LEN = 256  # slots after each picture for what tools say
_NOTE_LETTERS = 300  # of one tool


@dataclasses.dataclass(frozen=True)
class Planned:
    """A call that can be made: its place is known. Box and window are in px of the original."""

    call: Call
    box: Box
    window: Box


@dataclasses.dataclass(frozen=True)
class ToolRequest(Request):
    """A request for image tools; its box and window are those of the first call that can be made.

    Attributes:
        calls: in the order of the text.
    """

    shows_window: ClassVar[bool] = False
    calls: tuple[Planned | BadCall, ...] = ()


def rows_with_tools(rows: RowBuilder, tools: Mapping[str, ImageTool], words: str = "") -> RowBuilder:
    """The same rows, whose prompts offer the tools, with room for what they say.

    The offer goes to the end of the system message; where the episode's instruction is a whole prompt, before its question.

    Args:
        words: see `offer`.
    """
    offered, episode = offer(tools.values(), words), rows.episode
    if CHAT_MARK in episode.instruction:
        instruction = episode.instruction.replace(QUESTION, f"{offered}\n\n{QUESTION}")
        return rows.replaced(instruction=instruction).with_notes(NOTE_LEN)
    return rows.replaced(system=f"{episode.system}\n\n{offered}".strip()).with_notes(NOTE_LEN)


class Toolbox:
    """Runs the image tools that a text calls; a text that calls none and names a box gets the zoom's window, as without tools.

    All calls of a turn are made, independently of each other. Their pictures are shown side by side, as one picture. What went
    wrong is told like what went well, and the episode goes on.
    """

    def __init__(self, rows: RowBuilder, tools: Mapping[str, ImageTool], settings: ToolsConfig = ToolsConfig()):
        """Takes the tools by name."""
        self._rows, self._tools, self._settings, self._zoom = rows, dict(tools), settings, Zoom(rows)

    def request(self, text: str, view: View) -> Request | str:
        """See `Tool`. A call that can't be made is part of the request, so that the policy is told."""
        calls = parse_calls(text, self._tools)
        if not calls:
            return self._zoom.request(text, view)
        planned = tuple(self._plan(call, view) for call in calls)
        first = next((plan for plan in planned if isinstance(plan, Planned)), None)
        wanted = self._rows.episode.gate == "box" or parse_answer(text) is None
        if first is None:
            return ToolRequest(wanted, calls=planned)
        return ToolRequest(wanted, first.box.to(view.frame), first.window, calls=planned)

    def _plan(self, call: Call | BadCall, view: View) -> Planned | BadCall:
        if isinstance(call, BadCall):
            return call
        tool, original = self._tools[call.tool], view.question.image.frame
        frames = {"overview": view.frame, "original": original, "thousandths": Frame(1000, 1000)}
        named = named_box(call.corners, frames[tool.frame])
        if named.box is None:
            return BadCall(call.tool, f"the box is {named.reason}")
        box = named.box.to(original)
        return Planned(call, box, window_of(tool, box, self._rows.episode.min_window_px))

    def run(self, image: ImageSource, request: Request) -> np.ndarray | Shown:
        """See `Tool`."""
        if not isinstance(request, ToolRequest):
            return self._zoom.run(image, request)
        outcomes = tuple(self._outcome(image, call) for call in request.calls)
        shown = [picture_of(o.result, o.region.pixels) for o in outcomes if o.result is not None]
        pictures = [ArrayImage(picture) for picture in shown if picture is not None]
        note = "".join(f"\n<tool_response>\n{_told(outcome)}\n</tool_response>\n" for outcome in outcomes)
        return Shown(self._together(pictures), note, outcomes)

    def _together(self, pictures: Sequence[ArrayImage]) -> np.ndarray:
        """One picture of several, as the model sees it; an empty one of none."""
        if not pictures:
            return np.zeros((0, 0, 3), np.uint8)
        beside = SideBySide(pictures) if len(pictures) > 1 else pictures[0]
        return self._rows.crop(beside, whole(beside))

    def _outcome(self, image: ImageSource, planned: Planned | BadCall) -> Outcome:
        if isinstance(planned, BadCall):
            return Outcome(planned.tool, error=planned.reason)
        call, tool = planned.call, self._tools[planned.call.tool]
        region = read_region(image, planned.window, planned.box, self._settings.max_side)
        try:
            result = run_tool(tool, region, self._settings.timeout_s, call.label, call.parameters)
        except ToolFailure as failure:
            return Outcome(tool.name, error=str(failure).removeprefix(f"tool {tool.name}: "))
        return Outcome(tool.name, result.text, "", provenance(tool, region, result, call.parameters), region, result)


def _told(outcome: Outcome) -> str:
    """What the policy reads of an outcome: JSON, as its calls are."""
    said = {"error": outcome.error} if outcome.error else {"text": outcome.text}
    said = {key: text[:_NOTE_LETTERS] for key, text in said.items()}
    boxes: dict[str, Any] = {}
    if outcome.record and outcome.record["boxes"] and not outcome.error:
        boxes = {"boxes_in_original_px": [[math.floor(c) for c in box] for box in outcome.record["boxes"][:8]]}
    return readable(json.dumps({"name": outcome.tool, **said, **boxes}, ensure_ascii=False))
