"""The sampler's own layouts of the devices: the same episodes as in the trainer's."""

import numpy as np
import pytest

from tests.processes import address, result, start

SCRIPT = "rl/rollout/layouts_on_mesh.py"


def _check(played: list[dict]) -> None:
    trainer, *others = played
    assert trainer["size"] == 1
    assert set(trainer["turns"]) == {1, 2}
    for other in others:
        assert other["ids"] == trainer["ids"]
        assert np.abs(np.subtract(other["logprobs"], trainer["logprobs"])).max() < 1e-5
        assert other["turns"] == trainer["turns"]
    for one in played:
        assert one["narrowed"] > 0
        assert one["same_again"]
        assert one["recompiled"] == 0


@pytest.mark.slow
def test_layouts_play_the_same_episodes():
    played = result(start(SCRIPT, 8, "1,2,4,8", "sampled", "plain"))
    _check(played)
    for one in played[1:]:  # no logits of all rows come together
        of_a_group = one["vocabulary"] * one["size"] / 8
        assert one["gathered"] < of_a_group / 2


@pytest.mark.slow
def test_filters_and_retokenised_turns_are_the_same_in_all_layouts():
    _check(result(start(SCRIPT, 8, "1,4", "retokenised", "filtered")))


@pytest.mark.slow
def test_two_processes_play_what_one_does():
    one = result(start(SCRIPT, 8, "1", "sampled", "plain"))
    where = address()
    parts = [result(p) for p in [start(SCRIPT, 4, "1,2,8", "sampled", "plain", where, number) for number in (0, 1)]]
    joined = [
        first | {name: first[name] + second[name] for name in ("ids", "logprobs", "turns")}
        for first, second in zip(*parts, strict=True)
    ]
    _check(joined)
    _check([*one, *joined[1:]])


def test_tokens_are_drawn_on_shards_of_the_vocabulary():
    for one in result(start("rl/rollout/sampling_on_mesh.py", 8)):
        assert one["same"]
        assert one["gap"] < 1e-5
        assert one["gathered"] <= 640  # a few numbers a row and shard; the logits of all rows are 65,536
