"""Which groups make up a refilled step, and that all of an episode goes with its group."""

import dataclasses
import types
from concurrent.futures import Future

import numpy as np
import pytest

from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.configs.training import GRPOConfig
from zoomearth_jax.data_pipeline.rows.builder import Prompts, Replies, Views
from zoomearth_jax.errors import UserError
from zoomearth_jax.rl.grpo import GRPO, Asked, Played, Round
from zoomearth_jax.rl.rollout.engine import Trajectories
from zoomearth_jax.rl.rollout.refill import refilled_places, replace_groups
from zoomearth_jax.rl.rollout.scored import play_scored

GROUP, PICTURES = 2, 2


def numbered(batch, groups, per_group, width=3):
    """An array whose rows tell their batch, group and number in the group."""
    rows = [100 * batch + 10 * group + i for group in range(groups) for i in range(per_group)]
    return np.repeat(np.array(rows)[:, None], width, axis=1)


def trajectories(batch, groups=3):
    """Episodes of 3 questions, 2 each with 2 pictures."""
    one, replies, pictures = (numbered(batch, groups, n) for n in (1, GROUP, GROUP * PICTURES))
    return Trajectories(
        Prompts(one, one, Views(one, one)),
        Replies(replies, replies, replies, Views(pictures, pictures)),
        replies.astype(np.float32),
        one[:, None].astype(np.float32),
        pictures[:, None].astype(np.float32),
        [str(x) for x in replies[:, 0]],
        [str(x) for x in one[:, 0]],
    )


@pytest.mark.parametrize(
    ("teaches", "further", "places"),
    [
        ("1111", "1111", [0, 1, 2, 3]),
        ("0101", "0011", [6, 1, 7, 3]),
        ("0101", "0010", [6, 1, 2, 3]),  # one too few: a flat one stays
        ("0111", "1111", [4, 1, 2, 3]),
        ("0000", "0000", [0, 1, 2, 3]),
    ],
)
def test_groups_that_teach_keep_their_place_and_further_ones_take_the_others(teaches, further, places):
    found = refilled_places(*(np.array([x == "1" for x in one]) for one in (teaches, further)))
    assert found.tolist() == places


def test_all_of_an_episode_goes_with_its_group():
    joined = replace_groups(trajectories(0), trajectories(1), np.array([0, 4, 2]), None)
    prompts, replies = [0, 110, 20], [0, 1, 110, 111, 20, 21]
    pictures = [0, 1, 2, 3, 110, 111, 112, 113, 20, 21, 22, 23]
    assert joined.prompts.views.pixels[:, 0].tolist() == joined.overview_features[:, 0, 0].tolist() == prompts
    assert joined.replies.target[:, 2].tolist() == joined.logprobs[:, 1].tolist() == replies
    assert joined.replies.pictures.grids[:, 0].tolist() == joined.picture_features[:, 0, 0].tolist() == pictures
    assert (joined.episodes, joined.overviews) == (list(map(str, replies)), list(map(str, prompts)))
    alone = dataclasses.replace(trajectories(0), picture_features=None)
    assert replace_groups(alone, alone, np.arange(3), None).picture_features is None


def test_each_episode_of_a_step_has_a_seed_of_its_own():
    """Those of the first questions are as without refills, however many parts a step is played in."""
    seen = []

    class Engine:
        mesh = None

        def weights(self, params):
            return params

        def __call__(self, weights, asked, key, *, seeds, **more):
            seen.append((key, list(seeds)))
            return trajectories(0, len(asked))

    def play(refill, parts):
        seen.clear()
        how = {"sampling": SamplingConfig(), "group": GROUP, "score": lambda *_: {"total": np.zeros(8)}}
        play_scored(Engine(), None, [None] * 4, [None] * parts, "key", **how, refill=refill)
        assert {key for key, _ in seen} == {"key"}
        return [seed for _, seeds in seen for seed in seeds]

    assert play(0, 1) == play(0, 2) == list(range(8))
    assert play(1, 2) == list(range(8, 16))
    assert play(2, 1) == list(range(16, 24))


def scores(flat):
    """Rewards of 3 groups, the given ones of which agree."""
    total = np.array([[0.0, 0.0] if group in flat else [0.0, 1.0] for group in range(3)]).reshape(-1)
    future = Future()
    future.set_result({"total": total, "answer": total})
    return future


@pytest.mark.parametrize(
    ("rounds", "played", "questions"),
    [
        ([(), ()], 0, "0a 0b 0c"),
        ([(0, 2), (1,)], 1, "1a 0b 1c"),
        ([(0, 2), (0, 1), (1, 2)], 2, "1c 0b 2a"),
        ([(0, 1, 2), (0, 1, 2), (0, 1)], 2, "2c 0b 0c"),  # the bound is reached
    ],
)
def test_a_step_is_refilled_until_all_groups_teach_or_the_bound_is_reached(rounds, played, questions):
    training = object.__new__(GRPO)
    training._config, training._mesh, training._refilled = GRPOConfig(group=GROUP, refill=2), None, False
    training.state = types.SimpleNamespace(params=None)
    training.engine = types.SimpleNamespace(weights=lambda params: "weights")
    batches = [(trajectories(i), scores(flat)) for i, flat in enumerate(rounds)]
    training._scored = lambda asked, weights: batches[asked.refill]
    training._rows = lambda episodes: episodes.prompts.ids[:, 0].tolist()
    names = [[f"{i}{letter}" for letter in "abc"] for i in range(3)]
    episodes, future = batches[0]
    first = Played(names[0], episodes, future, "rows", [Round(episodes.prompts, episodes.replies, future)])
    found = training.refill(first, lambda number: Asked(names[number], [], 0, number))
    assert " ".join(found.questions) == questions
    assert len(found.rounds) == 1 + played
    wanted = [100 * int(name[0]) + 10 * "abc".index(name[1]) for name in found.questions]
    assert found.episodes.prompts.ids[:, 0].tolist() == wanted
    assert found.rows == ("rows" if not played else wanted)
    assert found.correct(GROUP).tolist() == [int(g not in flat) for flat in rounds[: 1 + played] for g in range(3)]
    flat = [name for name in found.questions if "abc".index(name[1]) in rounds[int(name[0])]]
    assert found.rewards["total"].reshape(3, GROUP).std(axis=1).tolist().count(0.0) == len(flat)


def test_bad_settings_are_one_line():
    with pytest.raises(UserError, match="refill must be a number of rounds"):
        GRPOConfig(refill=-1)
