"""Rollouts made by hand, and their dumps."""

import json

import numpy as np

from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.images.sources import ArrayImage
from zoomearth_jax.data_pipeline.questions.question import Look, Question
from zoomearth_jax.reports.rollouts import RolloutDump
from zoomearth_jax.rl.episode import Episode, Turn
from zoomearth_jax.rl.rollout.engine import Trajectories
from zoomearth_jax.tools.tool import Request

GROUP, VIEW = 3, Frame(100, 100)
IMAGE = ArrayImage(np.zeros((200, 400, 3), np.uint8))


def questions(count=2):
    """The first needs a look at the right half of an image of 400 x 200 px, the others none."""
    look = Look(Box(200, 0, 400, 200, IMAGE.frame))
    return [
        Question(IMAGE, f"Is it dry? {i}", "yes", "global" if i else "object", () if i else (look,))
        for i in range(count)
    ]


def plain(side, value):
    """A picture of one grey."""
    return np.full((side, 56, 3), value % 256, np.uint8)


def played(asked, text="<think>look</think>", picture=plain):
    """Three episodes of each question: right with a crop, wrong with one, and without either; pictures by their height and a
    number."""
    episodes = []
    for i, _ in enumerate(asked):
        for sample, answer in enumerate(("yes", "no", None)):
            box = Box(50, 0, 100, 100, VIEW)
            window = Box(200 - 100 * sample, 0, 400 - 100 * sample, 200, IMAGE.frame)
            crop = picture(56, 40 + 60 * sample + 20 * i)
            first = Turn(text) if answer is None else Turn(text, Request(True, box, window), "", crop)
            episodes.append(
                Episode(
                    (first, Turn(f"<answer>{answer}</answer>"))[: 1 if answer is None else 2], answer, answer is None
                )
            )
    overviews = [picture(28, 200 - 10 * i) for i in range(len(asked))]
    return Trajectories(None, None, None, None, None, episodes, overviews)


def table(count=2):
    """Rewards, advantages and tokens of these episodes; the last has no second turn, and no reward of its own."""
    rewards = {
        "total": np.tile([2.0, 1.0, 0.0], count),
        "iou": np.zeros(3 * count),
        "own": np.tile([0.5, 0.25, np.nan], count),
    }
    return {f"reward_{name}": x.astype(np.float32) for name, x in rewards.items()} | {
        "advantage": np.tile([1.0, 0.0, -1.0], count),
        "iou": np.tile([1.0, 0.5, np.nan], count),
        "tokens": np.tile([30.0, 20.0, 10.0], count),
        "turn1_tokens": np.tile([20.0, 15.0, 10.0], count),
        "turn2_tokens": np.tile([10.0, 5.0, np.nan], count),
    }


def dumped(out, steps, text="<think>look</think>", count=2, **settings):
    """Dumps steps into a run's directory."""
    with RolloutDump(out, **{"every": 1, "thumbnails_px": 64} | settings) as dump:
        for step in steps:
            dump.add(step, asked := questions(count), played(asked, text), table(count))
    return dump


def lines(out, name):
    """The lines of a file of dumps."""
    return [json.loads(line) for line in (out / "rollouts" / name).read_text(encoding="ascii").splitlines()]
