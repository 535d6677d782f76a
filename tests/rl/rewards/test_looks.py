"""Rewards of several looks and of several boxes, against hand computation."""

import dataclasses
import json
import types

import numpy as np
from hypothesis import given

from tests.episodes import made_episode
from tests.rl.rewards.test_rewards import IMAGE, SAID, THOUGHT, VIEW, box_lists, play
from zoomearth_jax.configs.reward import RewardSpec
from zoomearth_jax.data_pipeline.images.boxes import Box, crop_window
from zoomearth_jax.data_pipeline.questions.question import Look, Question
from zoomearth_jax.data_pipeline.text.box_lists import listed_boxes
from zoomearth_jax.rl.episode import Episode, Turn
from zoomearth_jax.rl.rewards.boxes import containment, greedy_iou
from zoomearth_jax.rl.rewards.episodes import list_scores, necessity_scores
from zoomearth_jax.tools.tool import Request


@given(box_lists)
def test_containment_equals_a_float64_loop(boxes):
    a, b = np.array(boxes, np.float32), np.array(boxes[::-1], np.float32)

    def by_hand(window, box):
        if not all(x1 < x2 and y1 < y2 for x1, y1, x2, y2 in (window, box)):
            return 0.0
        width = min(window[2], box[2]) - max(window[0], box[0])
        height = min(window[3], box[3]) - max(window[1], box[1])
        return max(width, 0) * max(height, 0) / ((box[2] - box[0]) * (box[3] - box[1]))

    want = [by_hand(*pair) for pair in zip(a.astype(np.float64).tolist(), b.astype(np.float64).tolist(), strict=True)]
    np.testing.assert_allclose(containment(a, b), want, atol=1e-6, rtol=0)


def looker(*corners, answer="urban", last=f"{THOUGHT}<answer>urban</answer>"):
    """An episode with a look at each box, in px of the view, and an answer."""
    looks = [made_episode(SAID, "", Box(*c, VIEW), window=crop_window(Box(*c, VIEW).to(IMAGE), 512)) for c in corners]
    return Episode((*(look.turns[0] for look in looks), Turn(last)), answer, False)


def test_the_best_look_is_paid_where_it_is_asked_for():
    reference = [x * 4096 / 504 for x in (100, 100, 130, 130)]
    good, near, far = (100, 100, 130, 130), (110, 100, 140, 130), (400, 400, 430, 430)
    _, _, scored = play(looker(good, far), looker(near), looker(), looker(far, near, far), box=reference)
    last, best = scored(RewardSpec()), scored(RewardSpec(looks="best"))
    half = 20 / 40  # 10 of 30 px aside
    np.testing.assert_allclose(last["iou"], [0, half, 0, 0], atol=1e-6)
    np.testing.assert_allclose(best["iou"], [1, half, 0, half], atol=1e-6)
    assert (best["region"] >= last["region"]).all()
    assert best["region"][0] == 1
    np.testing.assert_array_equal(best["answer"], last["answer"])
    windows = scored(RewardSpec(looks="best", iou="window"))["iou"]
    assert windows[0] == 1
    assert 0 < scored(RewardSpec(iou="window"))["iou"][1] == windows[1] < 1


def test_containment_is_of_the_window_that_was_shown():
    box = (1000, 1000, 1400, 1200)  # px of the original: half of it beside a window that ends at 1200
    at_once = looker((10, 10, 20, 20))  # px 81 … 163, so a window of 0 … 512
    beside = Episode(
        (dataclasses.replace(at_once.turns[0], request=Request(True, None, Box(700, 700, 1200, 1200, IMAGE))),),
        "",
        False,
    )
    whole = Episode(
        (dataclasses.replace(at_once.turns[0], request=Request(True, None, Box(0, 0, 4096, 4096, IMAGE))),), "", False
    )
    _, _, scored = play(at_once, beside, whole, looker(), box=box)
    rewards = scored(RewardSpec(containment_weight=2.0))
    np.testing.assert_allclose(rewards["containment"], [0, 0.5, 1, 0])
    plain = scored(RewardSpec())
    assert "containment" not in plain
    np.testing.assert_allclose(rewards["total"], plain["total"] + [0, 1, 2, 0], rtol=1e-6)
    two = Episode((*beside.turns, *at_once.turns), "", False)
    _, _, scored = play(two, two, box=box)
    np.testing.assert_allclose(scored(RewardSpec(containment_weight=1.0))["containment"], [0, 0])
    np.testing.assert_allclose(scored(RewardSpec(containment_weight=1.0, looks="best"))["containment"], [0.5, 0.5])


def test_what_looks_cost():
    """One look is necessary: none costs 2, two cost 0.5, three cost 1."""
    look = (100, 100, 130, 130)
    _, _, scored = play(looker(), looker(look), looker(look, look), looker(look, look, look))
    spec = RewardSpec(necessity_weight=1.0, spare_cost=0.5, missing_cost=2.0)
    np.testing.assert_array_equal(scored(spec)["necessity"], [-2, 0, -0.5, -1])
    none = Question(types.SimpleNamespace(frame=IMAGE), "?", "urban", "global")
    np.testing.assert_array_equal(necessity_scores(spec, [none] * 2, [looker(), looker(look)]), [0, -0.5])


def test_several_boxes_are_matched_greedily():
    a, b = (0, 0, 10, 10), (0, 0, 10, 20)  # IoU 1/2
    c, d = (100, 100, 110, 110), (0, 10, 10, 20)  # d and b: 1/2
    none = (0, 0, 0, 0)
    cases = {  # predicted, reference, by hand
        "in any order": ([a, c], [c, a], 1.0),
        "the largest first": (
            [a, b],
            [b, d],
            (1 + 0) / 2,
        ),  # b takes b, though a with b and b with d would give 1/2 + 1/2
        "one too many": ([a, c], [a, none], 1 / 2),
        "one missing": ([a, none], [a, c], 1 / 2),
        "twice the same": ([a, a], [a, none], 1 / 2),
        "nothing": ([none, none], [a, none], 0.0),
        "no reference": ([a, none], [none, none], 0.0),
    }
    predicted, reference, want = (np.array(x, np.float32) for x in zip(*cases.values(), strict=True))
    counts = [max(sum(x != none for x in p), sum(x != none for x in r)) for p, r, _ in cases.values()]
    np.testing.assert_allclose(greedy_iou(predicted, reference, np.array(counts, np.float32)), want, atol=1e-6)


def test_boxes_that_a_text_lists():
    entry = '{{"bbox_2d": [{}], "label": "x"{}}}'.format
    text = "<think>" + entry("1, 1, 2, 2", "") + "</think>["
    text += ", ".join(
        [
            entry("0, 0, 10, 10", ""),
            entry("500, 500, 600, 600", ', "source": "overview"'),
            entry("0, 0, 10, 10", ', "source": "picture"'),
            entry("5, 5, 1, 1", ""),
            entry("x1, y1, x2, y2", ""),
            entry("1, 2, 3", ""),
            entry("1, 2, 3, inf", ""),
        ]
    )
    boxes = listed_boxes(text + "]", VIEW)
    assert [box and box.corners for box in boxes] == [(0, 0, 10, 10), (500, 500, 504, 504), *[None] * 4]
    assert listed_boxes("no boxes", VIEW) == []
    assert listed_boxes("{" * 10_000 + '"bbox_2d": [' * 10_000, VIEW) == []


def test_the_list_reward_is_of_the_last_list_and_all_reference_boxes():
    scale = 4096 / 504
    wanted = tuple(Box(*(x * scale for x in c), IMAGE) for c in ((0, 0, 10, 10), (20, 20, 40, 40), (100, 0, 110, 10)))
    question = Question(types.SimpleNamespace(frame=IMAGE), "?", "3", "object", (Look(wanted[0]),), boxes=wanted)
    named = ([20, 20, 40, 40], [0, 0, 10, 5], [9, 9, 9, 9], [300, 300, 310, 310])
    listed = f"<answer>{json.dumps([{'bbox_2d': box} for box in named])}</answer>"
    episodes = [looker((100, 100, 130, 130), last=last) for last in (listed, "nothing listed")]
    # IoU 1 and 1/2, of four listed; else the look's own box, which touches none
    np.testing.assert_allclose(list_scores([question] * 2, episodes, [VIEW] * 2), [1.5 / 4, 0], atol=1e-5)
    one = dataclasses.replace(question, boxes=())
    np.testing.assert_allclose(list_scores([one] * 2, episodes, [VIEW] * 2), [0.5 / 4, 0], atol=1e-5)
    free = dataclasses.replace(one, looks=())
    np.testing.assert_array_equal(list_scores([free] * 2, episodes, [VIEW] * 2), [0, 0])
