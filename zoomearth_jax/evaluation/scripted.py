"""Episodes whose turns somebody wrote beforehand: what tools do with them, without a model that could call tools."""

from __future__ import annotations

from collections.abc import Sequence

from zoomearth_jax.configs.io import read_json
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.data_pipeline.rows.builder import RowBuilder
from zoomearth_jax.data_pipeline.text.protocol import parse_answer
from zoomearth_jax.errors import UserError
from zoomearth_jax.evaluation.asking import Answer
from zoomearth_jax.rl.episode import Episode, Turn
from zoomearth_jax.tools.tool import Request, Tool, View, as_shown

NOTE = "scripted: these turns were written beforehand, no model wrote them"


def read_script(path) -> list[str]:
    """The turns of a script, a JSON file {"turns": [text, text, ...]}.

    Raises:
        UserError: it can't be read, or isn't that.
    """
    turns = read_json(path).get("turns")
    if not isinstance(turns, list) or not turns or not all(isinstance(text, str) for text in turns):
        raise UserError(f'{path}: no script; it must be {{"turns": ["text of turn 1", "text of turn 2", ...]}}')
    return turns


def play_script(texts: Sequence[str], question: Question, tool: Tool, rows: RowBuilder) -> Answer:
    """Plays an episode with these texts in place of a model's, as the engine would: until a turn asks for nothing.

    Raises:
        UserError: the image can't be read.
    """
    turns: list[Turn] = []
    frame = rows.box_frame(question.image.frame)
    for number, text in enumerate(texts, 1):
        earlier = tuple(turn.request for turn in turns if turn.request)
        asked = tool.request(text, View(question, frame, earlier)) if number < len(texts) else None
        if not isinstance(asked, Request):
            turns.append(Turn(text, None, asked or ""))
            break
        if not asked.wanted:
            turns.append(Turn(text, asked, asked.reason))
            break
        picture, note, outcomes = as_shown(tool.run(question.image, asked))
        turns.append(Turn(text, asked, asked.reason, picture if picture.size else None, note, outcomes))
    episode = Episode(tuple(turns), parse_answer(turns[-1].text), truncated=False)
    return Answer.of(question, episode, rows.overview(question), NOTE)
