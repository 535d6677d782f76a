"""The agent plays what `ask` plays, whoever else is being served."""

import asyncio
import contextlib
import gc

import numpy as np
import pytest

import zoomearth_jax as ze
from zoomearth_jax.configs.episode import LayoutConfig
from zoomearth_jax.configs.generation import GeneratorConfig, ReplyConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.errors import BrokenImage, UserError
from zoomearth_jax.evaluation.asking import LoadedPolicy
from zoomearth_jax.runs.models import LoadedModel
from zoomearth_jax.serving.agent import Agent, Answered, LookRequested, PictureShown, TextDelta, TurnStarted
from zoomearth_jax.serving.generation import Generator

CONFIG = GeneratorConfig(rows=8, steps=(1,), visit=4, slots=128)  # that of test_generation.py: the same programs
HOT = ReplyConfig(SamplingConfig(1.0), seed=3)


@contextlib.contextmanager
def serving(policy, config=CONFIG, **settings):
    agent = Agent(Generator(policy, config), **settings)
    try:
        yield agent
    finally:
        agent.generator.close(timeout=60)
        agent.close()


@pytest.fixture(scope="module")
def policy():
    return ze.load("nano-grpo")


@pytest.fixture(scope="module")
def agent(policy):
    with serving(policy) as agent:
        yield agent


@pytest.fixture(scope="module")
def questions():
    return scene_questions("test", 5, 0, 12, global_share=0.3)


async def told(agent, question, reply=ReplyConfig(), **settings):
    return [event async for event in agent.run(question.image, question.text, reply, **settings)]


def play(agent, questions, reply=ReplyConfig(), **settings):
    """The events of each question, all asked at once."""

    async def all_at_once():
        return await asyncio.gather(*(told(agent, question, reply, **settings) for question in questions))

    return asyncio.run(all_at_once())


def same(events, answer):
    """Whether an episode that was served is that of an answer of `ask`."""
    end = events[-1]
    assert end.episode == answer.episode
    assert (end.answer, end.box) == (answer.answer, answer.box)
    for turn, text in enumerate(answer.episode.texts):
        assert "".join(e.text for e in events if isinstance(e, TextDelta) and e.turn == turn) == text
    shown = [event.picture for event in events if isinstance(event, PictureShown)]
    for ours, theirs in zip(shown, answer.episode.pictures, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_agent_answers_as_ask_does(agent, policy, questions):
    answers = policy.ask(questions)
    assert len({answer.episode.zoomed for answer in answers}) == 2  # some look twice
    for events, answer in zip(play(agent, questions), answers, strict=True):
        same(events, answer)


def test_a_seed_draws_what_it_draws_for_ask(agent, policy, questions):
    question = questions[0]
    for seed in (3, 4):
        (events,) = play(agent, [question], ReplyConfig(SamplingConfig(1.0), seed=seed))
        answers = policy.ask([question] * 12, temperature=1.0, seed=seed)
        same(events, answers[0])
    several = [play(agent, [question], HOT, choice=choice)[0][-1].episode for choice in range(4)]
    assert several == [answer.episode for answer in policy.ask([question] * 12, temperature=1.0, seed=3)[:4]]
    assert len({tuple(episode.texts) for episode in several}) > 1


def test_events_come_in_order(agent, questions):
    question = next(q for q in questions if q.level == "object")
    (events,) = play(agent, [question])
    kinds = [type(event) for event in events]
    assert kinds[0] is TurnStarted
    assert kinds[-1] is Answered
    look, picture = kinds.index(LookRequested), kinds.index(PictureShown)
    assert kinds[look - 1] is TextDelta
    assert (picture, kinds[picture + 1]) == (look + 1, TurnStarted)
    assert events[look].box.frame == events[look].window.frame == question.image.frame
    assert events[look].window == events[picture].window
    end = events[-1]
    assert (end.reason, end.truncated) == ("stop", False)
    written = sum(len(agent.rows.encode(text)) + 1 for text in end.episode.texts)
    assert end.completion_tokens == written
    prompt = len(agent.rows.question_ids(question.text, 16))
    height, width, _ = events[picture].picture.shape
    assert end.prompt_tokens == prompt + height * width // 28**2 + 2


@pytest.mark.parametrize(
    "changes",
    [
        {"turn_lens": (20, 20, 12), "gate": "box", "repetition_penalty": 1.3},
        pytest.param({"turn_lens": (40,)}, marks=pytest.mark.slow),
        pytest.param({"picture_px": 84}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_other_episodes_are_played_as_ask_plays_them(policy, questions, changes):
    rows = policy.rows.replaced(**changes)
    other = LoadedPolicy("nano-grpo", LoadedModel(policy.model, rows), policy.mesh, False)
    with serving(other, GeneratorConfig(rows=4, steps=(), visit=4)) as agent:
        for events, answer in zip(play(agent, questions[:4]), other.ask(questions[:4]), strict=True):
            same(events, answer)


def test_a_box_that_was_drawn_is_looked_at_first(agent, questions):
    question = next(q for q in questions if q.level == "object")
    (events,) = play(agent, [question], box=question.box)
    assert [e.turn for e in events if isinstance(e, TurnStarted)] == [0, 1]
    (look,) = (e for e in events if isinstance(e, LookRequested))
    scale = question.image.frame.width / 112
    for ours, drawn in zip(look.box.corners, question.box.corners, strict=True):
        assert abs(ours - drawn) <= scale / 2  # whole px of the overview
    assert look.window == agent.rows.window(look.box, question.image.frame)
    assert events[-1].episode.looks[0].window == look.window
    frame = question.image.frame
    with pytest.raises(UserError, match="no area inside the image"):
        play(agent, [question], box=Box(frame.width + 1, 0, frame.width + 9, 9, frame))


def test_max_tokens_and_stop_texts_end_episodes(agent, questions):
    question = next(q for q in questions if q.level == "object")
    whole = play(agent, [question])[0][-1]
    for most in (1, 5, whole.completion_tokens - 1):
        end = play(agent, [question], ReplyConfig(max_tokens=most))[0][-1]
        assert (end.completion_tokens, end.reason, end.truncated) == (most, "length", True)
        assert "".join(whole.episode.texts).startswith("".join(end.episode.texts))
    end = play(agent, [question], ReplyConfig(stop=("bbox",)))[0][-1]
    assert end.episode.texts == [whole.episode.texts[0].split("bbox")[0]]
    assert (end.answer, end.reason) == (None, "stop")


def test_who_goes_away_frees_the_row(agent, questions):
    async def leave_after(kind):
        events = agent.run(questions[0].image, questions[0].text)
        async for event in events:
            if isinstance(event, kind):
                break
        await events.aclose()

    for kind in (TurnStarted, TextDelta):
        asyncio.run(leave_after(kind))
        assert agent.generator.stats.busy == 0

    async def cancelled():
        task = asyncio.create_task(told(agent, questions[0]))
        while not agent.generator.stats.busy:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert agent.generator.stats.busy == 0


def test_an_image_is_looked_at_once_for_many_questions_and_not_kept(agent, questions):
    image = Broken(questions[0].image)
    question = type(questions[0])(image, "Which season is it?", "", "global")
    first, second = (play(agent, [question])[0][-1] for _ in "ab")
    assert first.episode == second.episode
    assert len(agent._overviews) == 1 + len({id(q.image) for q in questions} & agent._overviews.keys())
    del image, question
    gc.collect()
    assert agent._overviews.keys() <= {id(q.image) for q in questions}


class Broken:
    """An image that breaks when it is looked at for the second time."""

    def __init__(self, image):
        self._image, self.frame, self._looks = image, image.frame, 0

    def window(self, box: Box, size: Frame, exact: bool = False):
        self._looks += 1
        if self._looks > 1:
            raise BrokenImage("broken")
        return self._image.window(box, size, exact)


def test_an_image_that_breaks_is_an_error_of_that_request_only(agent, questions):
    question = next(q for q in questions if q.level == "object")

    async def both():
        broken = told(agent, type(question)(Broken(question.image), question.text, "", "object"))
        return await asyncio.gather(broken, told(agent, question), return_exceptions=True)

    error, events = asyncio.run(both())
    assert isinstance(error, BrokenImage)
    assert events[-1].answer == question.answer
    assert agent.generator.stats.busy == 0


def test_a_question_that_does_not_fit_is_refused(agent, questions):
    with pytest.raises(UserError, match="for the 48 of the prompt"):
        asyncio.run(told(agent, type(questions[0])(questions[0].image, "why " * 90, "", "global")))
    small = ze.load("nano-grpo", layout=LayoutConfig(prompt_len=64))
    with pytest.raises(UserError, match="hold no episode, which takes 114"):
        Generator(small, GeneratorConfig(slots=100))
