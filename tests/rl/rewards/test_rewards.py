"""Box, pattern and total rewards against hand computation and float64 loops; named specs; rewards of one's own."""

import dataclasses
import math
import types

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.episodes import made_episode
from zoomearth_jax.cli import main
from zoomearth_jax.configs.episode import EpisodeConfig, RowLayout
from zoomearth_jax.configs.io import from_dict, to_dict
from zoomearth_jax.configs.reward import SPECS, RewardSpec
from zoomearth_jax.configs.training import GRPOConfig
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame, crop_window, from_annotation
from zoomearth_jax.data_pipeline.questions.question import Look, Question
from zoomearth_jax.errors import UserError
from zoomearth_jax.rl.metrics import episode_table, rollout_metrics
from zoomearth_jax.rl.rewards.boxes import (
    box_iou,
    box_rewards,
    reference_window,
    region_reward,
)
from zoomearth_jax.rl.rewards.episodes import episode_box_rewards, episode_rewards
from zoomearth_jax.rl.rollout.engine import Trajectories

PAPER, REFERENCE = SPECS["paper"], SPECS["reference"]
numbers = st.floats(-100, 20_000, width=32).map(lambda x: round(x * 64) / 64)  # sides that float32 can square
# one shape, one compilation
box_lists = st.lists(st.tuples(numbers, numbers, numbers, numbers), min_size=8, max_size=8)


def iou_by_hand(a, b):
    if not all(x1 < x2 and y1 < y2 for x1, y1, x2, y2 in (a, b)):
        return 0.0
    overlap = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return overlap / (sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b)) - overlap)


def distance_by_hand(a, b):
    return math.hypot((a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2)


def window_by_hand(box, side=512):
    """The released code's window."""
    x1, y1, x2, y2 = (int(x) for x in box)
    if x2 - x1 >= side and y2 - y1 >= side:
        return box
    left, top = (x1 + x2) // 2 - side // 2, (y1 + y2) // 2 - side // 2
    return max(0, left), max(0, top), left + side, top + side


def released_by_hand(numbers, annotation, side, view=512):
    """What the released code pays for the numbers of a text, with annotations in px at a longest side of 1024."""
    if len(numbers) != 4:
        return 0, 0
    if list(numbers) == list(annotation):
        return 1, 1
    box, reference = [x * side / view for x in numbers], [x * side / 1024 for x in annotation]
    iou = iou_by_hand(window_by_hand(box), window_by_hand(reference))
    return iou, math.tanh(200 / (distance_by_hand(box, reference) + 1e-6))


@given(box_lists)
def test_iou_and_region_equal_a_float64_loop(boxes):
    a, b = np.array(boxes, np.float32), np.array(boxes[::-1], np.float32)
    pairs = [tuple(np.float64(x).tolist() for x in pair) for pair in zip(a, b, strict=True)]
    real = [all(x1 < x2 and y1 < y2 for x1, y1, x2, y2 in pair) for pair in pairs]
    np.testing.assert_allclose(box_iou(a, b), [iou_by_hand(*pair) for pair in pairs], atol=1e-6, rtol=0)
    shapes = {
        PAPER: lambda d: 1 / (1 + math.exp(-200 / (d + 0.2))),
        REFERENCE: lambda d: math.tanh(200 / (d + 1e-6)),
    }
    for spec, shape in shapes.items():
        counts = real if spec == PAPER else [True] * len(real)  # the release pays for any four numbers
        want = [shape(distance_by_hand(*pair)) if ok else 0 for pair, ok in zip(pairs, counts, strict=True)]
        np.testing.assert_allclose(region_reward(spec, a, b, np.ones(len(a))), want, atol=1e-6, rtol=0)


def test_region_is_exact_far_from_the_origin():
    """At 20,000 px float32 holds 1/512 px: too coarse for centres, where the reward falls by 1e-3 a px."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(15_000, 19_000, (10_000, 2))
    boxes = [np.concatenate([c, c + 300.3], axis=1) for c in (corner, corner + rng.normal(0, 150, corner.shape))]
    a, b = np.array(boxes, np.float32)
    d = np.linalg.norm((a - b.astype(np.float64)).reshape(-1, 2, 2).mean(axis=1), axis=1)
    got = region_reward(REFERENCE, a, b, np.ones(len(a)))
    np.testing.assert_allclose(got, np.tanh(200 / (d + 1e-6)), atol=1e-6, rtol=0)


def test_iou_of_known_boxes():
    a = jnp.array([[0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 2, 2]], jnp.float32)
    b = jnp.array([[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 6, 6]], jnp.float32)
    np.testing.assert_allclose(box_iou(a, b), [1, 1 / 7, 0], atol=1e-7)
    np.testing.assert_allclose(box_iou(a.reshape(1, 3, 4), b.reshape(1, 3, 4)), [[1, 1 / 7, 0]], atol=1e-7)


def test_region_reward_by_hand():
    a, b = jnp.array([[0.0, 0, 10, 10]]), jnp.array([[30.0, 40, 40, 50]])  # centres 50 px apart
    assert region_reward(PAPER, a, b, 100.0)[0] == pytest.approx(1 / (1 + np.exp(-200 / 50.2)), abs=1e-6)
    side = RewardSpec(region_alpha=0.5, region_unit="side")
    assert region_reward(side, a, b, 100.0)[0] == pytest.approx(1 / (1 + np.exp(-0.5 / 0.7)), abs=1e-6)
    # the paper's figure: 0.1 far away, 0.5 near
    far, near = jnp.array([[2000.0, 0, 2010, 10]]), jnp.array([[364.0, 0, 374, 10]])
    assert region_reward(REFERENCE, a, far, 1.0)[0] == pytest.approx(0.1, abs=1e-3)
    assert region_reward(REFERENCE, a, near, 1.0)[0] == pytest.approx(0.5, abs=1e-3)


NO_BOXES = {
    "no width": (5, 0, 5, 10),
    "a point": (5, 5, 5, 5),
    "inverted": (10, 10, 0, 0),
    "inverted along y": (0, 10, 10, 0),
    "nan": (0, math.nan, 10, 10),
    "infinite": (0, 0, math.inf, 10),
    "minus infinity": (-math.inf, 0, 10, 10),
    "beyond all images": (0, 0, 3e38, 3e38),
}


FOUR_NUMBERS = ("no width", "a point", "inverted", "inverted along y")  # which are a box to the released code


@pytest.mark.parametrize(
    ("kind", "iou"),
    [
        (k, iou)
        for k in NO_BOXES
        for iou in ("box", "window", "reference")
        if not (iou == "reference" and k in FOUR_NUMBERS)
    ],
)
@pytest.mark.parametrize("region", ["sigmoid", "tanh"])
def test_what_is_no_box_scores_nothing(kind, iou, region):
    spec = dataclasses.replace(PAPER, iou=iou, region=region)
    none, box = np.array([NO_BOXES[kind]], np.float32), np.array([[0, 0, 10, 10]], np.float32)
    for pair in ((none, box), (box, none), (none, none)):
        for scores in box_rewards(spec, *pair, np.array([True]), np.array([100.0], np.float32), pair):
            np.testing.assert_array_equal(scores, [0.0])


def test_parts_out_of_the_image_count_as_any_other():
    inside, across, beyond = np.array([[0, 0, 10, 10], [-10, 0, 10, 10], [5000, 0, 5010, 10]], np.float32)[:, None]
    yes, side = np.array([True]), np.array([10.0], np.float32)
    iou, region = box_rewards(PAPER, across, inside, yes, side)
    assert (iou[0], region[0]) == pytest.approx((0.5, 1 / (1 + math.exp(-200 / 5.2))))
    iou, region = box_rewards(PAPER, beyond, inside, yes, side)
    assert (iou[0], region[0]) == pytest.approx((0, 1 / (1 + math.exp(-200 / 5000.2))))


def test_without_a_box_both_rewards_are_zero():
    boxes = jnp.ones((2, 4)) * jnp.array([0.0, 0, 5, 5])
    iou, region = box_rewards(RewardSpec(), boxes, boxes, np.array([True, False]), np.ones(2))
    np.testing.assert_allclose(iou, [1, 0])
    np.testing.assert_allclose(region, [1, 0], atol=1e-6)


@given(st.lists(st.tuples(*[st.floats(0, 5000, width=32)] * 4), min_size=8, max_size=8))
def test_reference_iou_is_the_released_one(corners):
    boxes = np.array([(min(a, c), min(b, d), max(a, c) + 1, max(b, d) + 1) for a, b, c, d in corners], np.float32)
    windows = [window_by_hand(box) for box in boxes.astype(float).tolist()]
    np.testing.assert_allclose(reference_window(boxes), windows)
    applies, side = np.ones(len(boxes), bool), np.full(len(boxes), 5000, np.float32)
    iou, _ = box_rewards(REFERENCE, boxes, boxes[::-1], applies, side)
    want = [iou_by_hand(*pair) for pair in zip(windows, windows[::-1], strict=True)]
    np.testing.assert_allclose(iou, want, atol=1e-6)


IMAGE, VIEW = Frame(4096, 4096), Frame(504, 504)
THOUGHT = "<think>.</think>"
SAID = THOUGHT + '[{"bbox_2d": [100, 100, 130, 130], "label": "x"}]'


def play(*episodes, box=(800, 800, 1040, 1040), answer="urban"):
    """Rewards by spec of episodes about one question."""
    question = Question(types.SimpleNamespace(frame=IMAGE), "?", answer, "object", (Look(Box(*box, IMAGE)),))
    played = Trajectories(None, None, None, None, None, list(episodes), [np.zeros((*(504, 504), 3), np.uint8)])
    rows = types.SimpleNamespace(box_frame=lambda image: VIEW, episode=EpisodeConfig(min_window_px=512))
    return question, played, lambda spec, judge=None: episode_rewards(spec, [question], played.episodes, rows, judge)


def episode(corners=(100, 100, 130, 130), first=SAID, after=f"{THOUGHT}<answer>rural</answer>", answer="rural"):
    box = corners and Box(*corners, VIEW)
    if box and first == SAID:
        first = SAID.replace("100, 100, 130, 130", ", ".join(map(str, corners)))
    return made_episode(first, after, box, window=box and crop_window(box.to(IMAGE), 512), answer=answer)


def test_the_paper_s_and_the_release_s_numbers():
    chatty = episode(first="Well. " + SAID)  # not the protocol, but all that the release looks for
    silent = episode(None, first="?", after=None, answer=None)
    question, _, scored = play(episode(), chatty, silent)
    box = [x * 4096 / 504 for x in (100, 100, 130, 130)]
    reference = question.box.corners
    iou, d = iou_by_hand(box, reference), distance_by_hand(box, reference)
    paper, release = scored(PAPER), scored(REFERENCE)
    sigmoid = 1 / (1 + math.exp(-200 / (d + 0.2)))
    total = iou + sigmoid + 1 / 3
    np.testing.assert_allclose(paper["total"], [total + 0.05, total, 0], atol=1e-6)
    total = iou_by_hand(window_by_hand(box), window_by_hand(reference)) + math.tanh(200 / d) + 1 / 3 + 1
    np.testing.assert_allclose(release["total"], [total, total, 0], atol=1e-5)
    np.testing.assert_allclose(release["pattern"], [1, 1, 0])
    np.testing.assert_allclose(scored(RewardSpec())["answer"], [0, 0, 0])


def test_window_iou_is_of_the_windows_that_are_read():
    corner = episode((0, 0, 10, 10))
    question, _, scored = play(corner, box=(100, 100, 140, 140))
    iou = scored(RewardSpec(iou="window"))["iou"][0]
    assert crop_window(question.box, 512).corners == corner.window.corners == (0, 0, 512, 512)
    assert iou == 1.0
    assert scored(RewardSpec())["iou"][0] == 0.0


def test_the_release_pays_two_for_the_annotation_s_own_numbers():
    """Though they are of another frame: 512 px against 1024."""
    _, _, scored = play(episode((200, 200, 260, 260)), box=(800, 800, 1040, 1040))  # annotated as 200, 200, 260, 260
    assert [float(scored(REFERENCE)[name][0]) for name in ("iou", "region")] == [1, 1]
    assert scored(PAPER)["iou"][0] == 0


ANNOTATION, SIDE = (400, 400, 480, 480), 5000  # in px of the original 1953, 1953, 2344, 2344


@pytest.mark.parametrize(
    ("text", "iou", "region"),
    [
        ("220, 220, 220, 220", 1, 1),  # a point at the centre: the same 512 px window
        ("240, 240, 200, 200", 1, 1),  # inverted, all the same
        ("200, 240, 240, 200", 1, 1),
        ("220, 220, 220, 220, 9", 0, 0),
        ("220, 220, 220", 0, 0),
        ("400, 400, 480, 480", 1, 1),  # the annotation's own numbers
        ("400.0, 4e2, 480, 480", 1, 1),
        ("480, 480, 400, 400", 0, None),
        ("600, 600, 700, 700", 0, None),  # out of the image
        ("-90, -90, -80, -80", 0, None),
        ("-1e5, 0, 1e5, 512", None, None),
        ("nan, 0, 1, 1", 0, 0),
        ("0, 0, inf, 1", 0, 0),
        ("0, 0, 1e300, 1", 0, 0),
        ("x1, y1, x2, y2", 0, 0),
    ],
)
def test_the_release_pays_for_whatever_numbers(text, iou, region):
    """With and without a crop, before an answer, after a template; the numbers of None follow from the rule."""
    frame = Frame(SIDE, SIDE)
    question = Question(
        types.SimpleNamespace(frame=frame), "?", "", "object", (Look(from_annotation(ANNOTATION, frame)),)
    )
    named = f'"bbox_2d": [{text}]'
    firsts = (named, f'"bbox_2d": [x1, y1, x2, y2] {named} "bbox_2d": [1, 2, 3, 4]', f"{named}<answer>x</answer>")
    if text == "x1, y1, x2, y2":
        firsts = firsts[::2]
    episodes = [made_episode(first, after) for first in firsts for after in (None, "")]
    views = [Frame(512, 512)] * len(episodes)
    got = episode_box_rewards(REFERENCE, [question] * len(episodes), episodes, views, EpisodeConfig())
    if None in (iou, region):
        by_hand = released_by_hand([float(x) for x in text.split(",")], ANNOTATION, SIDE)
        iou, region = (known if known is not None else x for known, x in zip((iou, region), by_hand, strict=True))
    np.testing.assert_allclose(got, [[iou] * len(episodes), [region] * len(episodes)], atol=2e-5)


def test_what_the_release_pays_on_random_numbers():
    """Ordered, inverted, points, three and five numbers, out of the image, fractional and the annotation's own."""
    rng = np.random.default_rng(0)
    asked, episodes, want = [], [], []
    for number in range(4000):
        side = int(rng.choice([1500, 4000, 4904, 5000, 20_000]))
        corner, sides = rng.integers(0, 900, 2), rng.integers(1, 124, 2)
        annotation = np.concatenate([corner, corner + sides]).tolist()
        near = [x / 2 + rng.normal(0, 10) for x in annotation]
        numbers = (near, near[::-1], near[:2] * 2, near[:3], [*near, 1.0], annotation)[number % 6]
        numbers = [round(x) + float(rng.choice([0, 0, 0, -600, 600]) * (number % 6 != 5)) for x in numbers]
        frame = Frame(side, side)
        asked.append(
            Question(types.SimpleNamespace(frame=frame), "?", "", "object", (Look(from_annotation(annotation, frame)),))
        )
        episodes.append(made_episode(f'"bbox_2d": {numbers}'))
        want.append(released_by_hand(numbers, annotation, side))
    views = [Frame(512, 512)] * len(episodes)
    got = np.stack(episode_box_rewards(REFERENCE, asked, episodes, views, EpisodeConfig()), axis=1)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert (got > 0).mean() > 0.3


CUSTOM = """
def brevity(episodes, questions):
    assert len(episodes) == len(questions)
    return [None if e.answer is None else 1 / len(e.answer) for e in episodes]

def short(episodes, questions): return [1.0]
def endless(episodes, questions): return [float("inf")] * len(episodes)
def words(episodes, questions): return ["two words"] * len(episodes)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module name in the working directory, fresh for each test."""
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(CUSTOM)
    (tmp_path / f"{name}_broken.py").write_text("import nothing_of_that_name")
    monkeypatch.chdir(tmp_path)
    return name


def test_own_rewards_count_where_they_apply(own):
    spec = RewardSpec(custom=(f"{own}:brevity",), custom_weights=(10.0,))
    _, played, scored = play(episode(), episode(answer=None))
    rewards, plain = scored(spec), scored(RewardSpec())
    np.testing.assert_allclose(rewards["brevity"], [0.2, np.nan])
    np.testing.assert_allclose(rewards["total"], plain["total"] + [2.0, 0.0], rtol=1e-6)
    target = types.SimpleNamespace(target=np.ones((2, 3), bool))
    table = episode_table(
        [Question(types.SimpleNamespace(frame=IMAGE), "?", "", "object")],
        dataclasses.replace(played, replies=target),
        rewards,
        np.zeros(2),
        RowLayout(1, (3,), 28, 28),
    )
    metrics = rollout_metrics(table, 2)
    assert metrics["reward_brevity"] == pytest.approx(0.2)  # the mean of what applies
    assert metrics["reward_brevity_std"] == 0


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{}:nothing", "has no function nothing"),
        ("{}_missing:f", "importing .* failed .ModuleNotFoundError"),
        ("{}_broken:f", "importing .* failed .ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("{}:short", "gave 1 values for 2 episodes"),
        ("{}:endless", "gave inf; give a finite number, or None"),
        ("{}:words", "failed .ValueError"),
    ],
)
def test_what_is_wrong_with_own_rewards_is_one_line(path, message, own):
    _, _, scored = play(episode(), episode())
    with pytest.raises(UserError, match=message) as said:
        scored(RewardSpec(custom=(path.format(own),)))
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iou": "raw"}, "iou must be 'box' or 'window' or 'reference', not 'raw'"),
        ({"region": "relu"}, "region must be 'sigmoid' or 'tanh'"),
        ({"answer_match": "typo"}, "answer_match"),
        ({"pattern": "loose"}, "pattern must be"),
        ({"region_eps": 0.0}, "region_eps must be positive"),
        ({"custom": ("brevity",)}, "custom must be MODULE:FUNCTION, not 'brevity'"),
        ({"custom": ("a:f", "b:f")}, "two rewards are called 'f'"),
        ({"custom": ("a:iou",)}, "two rewards are called 'iou'"),
        ({"custom": ("a:f",), "custom_weights": (1.0, 2.0)}, "2 custom_weights for 1 custom rewards"),
        ({"looks": "first"}, "looks must be 'last' or 'best'"),
        ({"looks": "best", "iou": "reference"}, "looks must be 'last' with it"),
        ({"spare_cost": -1.0}, "spare_cost and missing_cost must be 0 or positive"),
        ({"missing_cost": math.nan}, "spare_cost and missing_cost must be 0 or positive"),
        ({"judge": "http://x", "custom": ("a:judge",)}, "two rewards are called 'judge'"),
        ({"version": 2}, "version 2, but this package computes version 1"),
    ],
)
def test_impossible_specs_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        RewardSpec(**settings)


def test_a_spec_tells_what_it_pays():
    assert PAPER.describe() == (
        "paper, version 1: 1 IoU (box) + 1 sigmoid(200 / (d + 0.2)), d in px + 1 answer (wordnet) + 0.05 pattern (protocol)"
    )
    assert REFERENCE.describe().startswith(
        "reference, version 1: 1 IoU (reference) + 1 tanh(200 / (d + 1e-06)), d in px"
    )
    own = RewardSpec(custom=("a.b:f",), custom_weights=(0.5,)).describe()
    assert own.startswith("version 1: ")
    assert own.endswith(" + 0.5 f")


def test_named_specs_in_yaml_and_on_the_command_line(monkeypatch, capsys):
    assert from_dict(GRPOConfig, {"reward": "reference"}, "x.yaml").reward == REFERENCE
    assert from_dict(RewardSpec, to_dict(REFERENCE), "x.yaml") == REFERENCE
    with pytest.raises(UserError, match=r"x\.yaml: reward: unknown reward spec 'papers'; did you mean 'paper'"):
        from_dict(GRPOConfig, {"reward": "papers"}, "x.yaml")
    taken = []
    monkeypatch.setattr("zoomearth_jax.verbs.grpo.grpo", taken.append)
    assert main(["grpo", "--reward", "reference", "--reward.pattern-weight", "0.5"]) == 0
    assert main(["grpo"]) == 0
    assert [config.reward for config in taken] == [
        dataclasses.replace(REFERENCE, pattern_weight=0.5),
        GRPOConfig().reward,
    ]
    assert main(["grpo", "--reward", "nonsense"]) == 2
    assert main(["grpo", "--reward"]) == 2
    assert [line.count("zoomearth: ") for line in capsys.readouterr().err.splitlines()] == [1, 1]
