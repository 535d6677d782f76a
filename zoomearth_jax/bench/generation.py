"""`zoomearth bench generation`: episodes per second that a server's rows play for many clients and for one, without HTTP."""

from __future__ import annotations

import asyncio
import dataclasses
import statistics
import time
from collections.abc import Sequence

from zoomearth_jax.configs.generation import GeneratorConfig
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.errors import UserError
from zoomearth_jax.evaluation.asking import Answer, load
from zoomearth_jax.serving.agent import Agent, Answered
from zoomearth_jax.serving.generation import Generator


@dataclasses.dataclass(frozen=True)
class GenerationBenchConfig:
    """Episodes per second that a server's rows play for many clients and for one, without HTTP.

    Each client asks about scenes of its own, one question after the other. Overviews are read before, as those of uploaded
    images are; crops are read from the scene.

    Attributes:
        model: as of `zoomearth ask`.
        clients: that ask at the same time.
        questions: that each asks.
        repeats: timings of both, in turns, of which the median counts.
        generator: the rows of the server's model.
        json: print JSON.
    """

    model: str = "nano-grpo"
    clients: int = 64
    questions: int = 4
    repeats: int = 5
    generator: GeneratorConfig = GeneratorConfig()
    json: bool = False

    def __post_init__(self):
        if min(self.clients, self.questions, self.repeats) < 1:
            raise UserError("bench generation: clients, questions and repeats must be positive")
        if self.clients > self.generator.rows + self.generator.queue:
            raise UserError("bench generation: more clients than rows and queue hold")


async def _client(agent: Agent, questions: Sequence[Question]) -> list[Answered | None]:
    """The last event of each question, asked one after the other."""
    ends: list[Answered | None] = []
    for question in questions:
        last = None
        async for event in agent.run(question.image, question.text):
            last = event
        ends.append(last if isinstance(last, Answered) else None)
    return ends


def _texts(answer: Answer | list[Answer]) -> list[str]:
    assert isinstance(answer, Answer)  # of one question
    return answer.episode.texts


def bench_generation(config: GenerationBenchConfig) -> list[dict]:
    """One row: `clients, episodes_per_s, alone_per_s, throughput_ratio, lost, mixed, cache_mb`.

    Lost are episodes without an end, mixed are those whose texts are others than those that `ask` gives.
    """
    policy = load(config.model)
    questions = scene_questions("test", 0, 0, config.clients * config.questions, global_share=0.3)
    shares = [questions[i :: config.clients] for i in range(config.clients)]
    expected = [[_texts(policy.ask(question)) for question in share] for share in shares]
    agent = Agent(Generator(policy, config.generator, warm=True))

    async def many():
        return await asyncio.gather(*(_client(agent, share) for share in shares))

    def timed(play) -> float:
        began = time.perf_counter()
        asyncio.run(play)
        return time.perf_counter() - began

    try:
        ends = asyncio.run(many())
        together, alone = [], []
        for _ in range(config.repeats):
            together.append(timed(many()))
            alone.append(timed(_client(agent, shares[0])))
    finally:
        agent.generator.close()
        agent.close()
    pairs = [pair for share, texts in zip(ends, expected, strict=True) for pair in zip(share, texts, strict=True)]
    many_per_s = len(questions) / statistics.median(together)
    alone_per_s = config.questions / statistics.median(alone)
    return [
        {
            "clients": config.clients,
            "episodes_per_s": many_per_s,
            "alone_per_s": alone_per_s,
            "throughput_ratio": many_per_s / alone_per_s,
            "lost": sum(end is None or end.reason not in ("stop", "length") for end, _ in pairs),
            "mixed": sum(end is not None and end.episode.texts != texts for end, texts in pairs),
            "cache_mb": agent.generator.cache_bytes / 1e6,
        }
    ]
