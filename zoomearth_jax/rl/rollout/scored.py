"""A step's episodes with their rewards, played in parts: those of one are scored while the next one plays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np

from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.data_pipeline.rows.builder import Prompts
from zoomearth_jax.models.sharding import process_share
from zoomearth_jax.rl.rollout.engine import RolloutEngine, SentPrompts, Trajectories, join

Score = Callable[[Sequence[Question], Trajectories], dict[str, np.ndarray]]


def send_parts(engine: RolloutEngine, prompts: Prompts, parts: int) -> list[SentPrompts]:
    """A step's prompts on the devices, in equal parts."""
    cut = [jax.tree.map(lambda x, part=part: np.split(x, parts)[part], prompts) for part in range(parts)]
    return [engine.send(one) for one in cut]


def play_scored(
    engine: RolloutEngine,
    params,
    questions: Sequence[Question],
    looks: Sequence[SentPrompts],
    key,
    *,
    sampling: SamplingConfig,
    group: int,
    score: Score,
    meanwhile: Callable[[], None] | None = None,
    refill: int = 0,
) -> tuple[Trajectories, Future[dict[str, np.ndarray]]]:
    """Plays a step's questions, and scores them in a thread.

    Args:
        params: the model's state, or what `RolloutEngine.weights` made of it.
        looks: what `send_parts` gives. Samples don't depend on their number.
        score: (questions, their episodes) -> rewards [rows] by name; called once per part, in their order.
        meanwhile: see `RolloutEngine`; called in the first part.
        refill: how many times as many questions the step has played before; what is drawn differs from theirs.

    Returns:
        all episodes, and all rewards once they are known.
    """
    weights, count = engine.weights(params), len(questions) // len(looks)
    index, shares = process_share(engine.mesh)
    first, played, scores = (refill * shares + index) * len(questions), [], []
    scorer = ThreadPoolExecutor(1, thread_name_prefix="score")
    try:
        for part, look in enumerate(looks):
            begin = part * count
            asked = questions[begin : begin + count]
            seeds = range((first + begin) * group, (first + begin + count) * group)
            one = engine(
                weights,
                asked,
                key,
                sampling=sampling,
                group=group,
                seeds=seeds,
                look=look,
                meanwhile=None if part else meanwhile,
            )
            played.append(one)
            scores.append(scorer.submit(score, asked, one))
        return join(played), scorer.submit(_all_rewards, scores)
    finally:
        scorer.shutdown(wait=False)


def _all_rewards(parts: Sequence[Future[dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    rewards = [part.result() for part in parts]
    return {name: np.concatenate([one[name] for one in rewards]) for name in rewards[0]}
