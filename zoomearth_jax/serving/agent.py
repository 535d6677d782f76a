"""The agent: an episode played on the server, its looks read from the original, told turn by turn.

What it plays is what `ask` plays: the same prompts, pictures and turns, so that at temperature 0, and with the same seed at
others, the texts, boxes and answers are the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import weakref
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from zoomearth_jax.configs.generation import ReplyConfig
from zoomearth_jax.configs.rollout import RolloutConfig
from zoomearth_jax.data_pipeline.images.boxes import Box, clamped
from zoomearth_jax.data_pipeline.images.sources import ImageSource
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.data_pipeline.rows.builder import RowBuilder
from zoomearth_jax.data_pipeline.rows.looks import taught_box
from zoomearth_jax.data_pipeline.text.protocol import render_look
from zoomearth_jax.errors import UserError
from zoomearth_jax.rl.episode import Episode, Turn, final_answer
from zoomearth_jax.serving.generation import Finished, Generation, Generator, Segment
from zoomearth_jax.tools import chosen_tool
from zoomearth_jax.tools.tool import Outcome, Request, Tool, View, as_shown


class TurnStarted(NamedTuple):
    """A turn begins, counted from 0."""

    turn: int


class TextDelta(NamedTuple):
    """New text of a turn."""

    turn: int
    text: str


class LookRequested(NamedTuple):
    """A turn has asked for a picture: the box that it named and the window that it will be shown, in px of the original."""

    turn: int
    box: Box | None
    window: Box | None


class PictureShown(NamedTuple):
    """The picture that follows a turn, as the model sees it, uint8 [h, w, 3], its window in px of the original, and what came of
    the image tools that the turn called."""

    turn: int
    window: Box | None
    picture: np.ndarray
    outcomes: tuple[Outcome, ...] = ()


class Answered(NamedTuple):
    """The end.

    Attributes:
        answer: None where the model gave none. box: as `Answer.box` has it, in px of the original.
        truncated: whether a turn ran out of room. reason: of the last turn, see `Finished`; message: of an error.
        prompt_tokens, completion_tokens: of all turns.
        episode: all that was recorded; its boxes are in px of the overview.
    """

    answer: str | None
    box: Box | None
    truncated: bool
    reason: str
    message: str
    prompt_tokens: int
    completion_tokens: int
    episode: Episode


AgentEvent = TurnStarted | TextDelta | LookRequested | PictureShown | Answered


class Agent:
    """Plays episodes on a generator. Images are read in threads of its own; close it at the end."""

    def __init__(self, generator: Generator, tool: Tool | None = None, threads: int = 8):
        """Takes the tool that turns can ask for, by default the zoom."""
        self.generator, self.rows = generator, generator.rows
        self.tool = tool or chosen_tool(RolloutConfig(), self.rows)
        self._overviews: dict[int, tuple[weakref.ref, np.ndarray]] = {}  # by id of an image that lives
        self._readers = ThreadPoolExecutor(threads, thread_name_prefix="agent")

    def close(self) -> None:
        """Ends the threads."""
        self._readers.shutdown(cancel_futures=True)

    async def read(self, function, *args):
        """Calls a function in one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, function, *args)

    async def overview(self, question: Question) -> np.ndarray:
        """The overview of a question's image; kept for further questions about it, for as long as somebody else keeps the image."""
        image = question.image
        known = self._overviews.get(id(image))
        if known is not None:
            return known[1]
        overview = await self.read(self.rows.overview, question)
        gone = functools.partial(self._overviews.pop, id(image), None)
        self._overviews[id(image)] = weakref.ref(image, lambda _: gone()), overview
        return overview

    async def run(
        self,
        image: ImageSource,
        question: str,
        reply: ReplyConfig = ReplyConfig(),
        *,
        choice: int = 0,
        box: Box | None = None,
        rows: RowBuilder | None = None,
        tool: Tool | None = None,
    ) -> AsyncGenerator[AgentEvent, None]:
        """Plays one episode; leaving the iterator gives its row back.

        Args:
            reply: its `max_tokens` count those of all turns.
            choice: which of several replies to the same request this is; each draws in its own way.
            box: a box in px of the original that the question is about: the first turn is then written by us, and asks for it.
            rows, tool: others for this episode, such as rows whose words offer a tool; of the same tokenizer and picture sizes.

        Raises:
            UserError: a question that doesn't fit its slot, an image that can't be read, or a box outside of it.
            Busy, Closed: see `Generator.submit`.
        """
        asked = Question(image, question, answer="", level="global")
        playing = _Playing(self, rows or self.rows, tool or self.tool, asked, reply, choice)
        async with contextlib.aclosing(playing.events(box)) as events:
            async for event in events:
                yield event


class _Playing:
    """One episode."""

    def __init__(self, agent: Agent, rows: RowBuilder, tool: Tool, question: Question, reply: ReplyConfig, choice: int):
        self._agent, self._rows, self._tool, self._question = agent, rows, tool, question
        self._reply, self._choice = reply, choice
        self._turns: list[Turn] = []
        self._truncated, self._end = False, Finished("stop", 0, 0)

    async def events(self, box: Box | None) -> AsyncGenerator[AgentEvent, None]:
        """See `Agent.run`."""
        self._agent.generator.check_room()
        overview = await self._agent.overview(self._question)
        prompts = self._rows.prompts([self._question], [overview])
        prompt, told = Segment(prompts.ids[prompts.valid].tolist(), [overview]), list[AgentEvent]()
        if box is not None:
            text = self._naming(box)
            told = [
                TurnStarted(0),
                TextDelta(0, text),
                *[event async for event in self._look(text, self._request(text))],
            ]
            prompt = _joined(prompt, Segment(self._rows.encode(text)), self._seen())
        limit = min(self._room(), self._rows.layout.turn_lens[len(self._turns)])
        reply = dataclasses.replace(self._reply, max_tokens=limit)
        (generation,) = self._agent.generator.submit(prompt, reply, choices=[self._choice], hold=True)
        try:
            for event in told:
                yield event
            going = True
            while going:
                async for event in self._turn(generation):
                    yield event
                if going := self._turns[-1].picture is not None:
                    self._go_on(generation)
        finally:
            generation.cancel()
        yield self._answered()

    async def _turn(self, generation: Generation) -> AsyncGenerator[AgentEvent, None]:
        """Lets the model write a turn, and looks where it asks to."""
        turn = len(self._turns)
        yield TurnStarted(turn)
        async for news in generation:
            if isinstance(news, Finished):
                self._end = news
            elif news.text:
                yield TextDelta(turn, news.text)
        self._truncated |= self._end.reason != "stop"
        last = self._end.reason in ("cancelled", "error") or generation.ended or not self._room()
        async for event in self._look(generation.text, "" if last else self._request(generation.text)):
            yield event

    def _room(self) -> int:
        """Tokens that the reply may still have."""
        most = self._reply.max_tokens
        return self._rows.layout.written_len if most is None else most - self._end.completion_tokens

    def _request(self, text: str) -> Request | str:
        """What a turn's text asks for; nothing where there is no room for another turn."""
        if len(self._turns) == self._rows.layout.num_pictures:
            return ""
        earlier = tuple(turn.request for turn in self._turns if turn.request)
        frame = self._rows.box_frame(self._question.image.frame)
        return self._tool.request(text, View(self._question, frame, earlier, self._choice))

    async def _look(self, text: str, request: Request | str) -> AsyncGenerator[AgentEvent, None]:
        """Ends a turn: reads the picture that it asks for."""
        turn, picture, image = len(self._turns), None, self._question.image
        note, outcomes = "", tuple[Outcome, ...]()
        if isinstance(request, str):
            self._turns.append(Turn(text, None, request))
            return
        if request.wanted:
            yield LookRequested(turn, request.box and request.box.to(image.frame), request.window)
            picture, note, outcomes = as_shown(await self._agent.read(self._tool.run, image, request))
            yield PictureShown(turn, request.window, picture, outcomes)
        self._turns.append(Turn(text, request, request.reason, picture, note=note, outcomes=outcomes))

    def _seen(self) -> Segment:
        """The picture that the last turn was shown, between its marks."""
        picture = self._turns[-1].picture
        assert picture is not None
        grids = np.array([picture.shape[:2]]) // self._rows.layout.merged_px
        ids, valid = self._rows.picture_slots(grids, np.ones(1, bool), [self._turns[-1].note])
        return Segment(ids[valid].tolist(), [picture] if picture.size else [])

    def _go_on(self, generation: Generation) -> None:
        """Shows a row its picture. Episodes with the gate `box` read their text up to an answer again, as the release does."""
        again, segment = self._rows.episode.gate == "box", self._seen()
        limit = self._rows.layout.turn_lens[len(self._turns)]
        if again:
            read = self._rows.encode(self._turns[-1].text.strip().split("<answer>")[0])
            written = self._rows.layout.turn_lens[len(self._turns) - 1]
            segment = _joined(Segment([i for i in read[:written] if i not in self._rows.stop_ids]), segment)
        generation.go_on(segment, min(limit, self._room()), again)

    def _naming(self, box: Box) -> str:
        """A first turn that asks for a box of the original.

        Raises:
            UserError: a box outside of the image, or a model that looks once only.
        """
        image = self._question.image.frame
        inside = clamped(dataclasses.replace(box, frame=image))
        if inside is None:
            raise UserError(
                f"box {list(box.corners)} has no area inside the image of {image.width} x {image.height} px"
            )
        if not self._rows.layout.num_pictures:
            raise UserError("box: this model has one turn, without a second look")
        return render_look("", taught_box(inside, self._rows.box_frame(image)), "")

    def _answered(self) -> Answered:
        texts = [turn.text for turn in self._turns]
        answer = final_answer(texts, self._rows.episode.gate)
        turns = tuple(
            dataclasses.replace(turn, picture=turn.picture if turn.picture is not None and turn.picture.size else None)
            for turn in self._turns
        )
        episode = Episode(turns, answer, self._truncated)
        box = episode.box and episode.box.to(self._question.image.frame)
        end = self._end
        counts = end.prompt_tokens, end.completion_tokens
        return Answered(answer, box, self._truncated, end.reason, end.message, *counts, episode)


def _joined(*segments: Segment) -> Segment:
    ids = [i for segment in segments for i in segment.ids]
    return Segment(ids, [picture for segment in segments for picture in segment.pictures])
