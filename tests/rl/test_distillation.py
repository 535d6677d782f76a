"""Self-distillation: who is distilled, what the teacher reads, its moving average, and a run that goes on from a checkpoint."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.episodes import PICTURE
from zoomearth_jax.configs.episode import RowLayout
from zoomearth_jax.configs.objective import ObjectiveConfig
from zoomearth_jax.configs.training import GRPOConfig
from zoomearth_jax.data_pipeline.images.boxes import crop_window
from zoomearth_jax.data_pipeline.images.sources import view_of
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.data_pipeline.rows.builder import Views
from zoomearth_jax.errors import UserError
from zoomearth_jax.models.sharding import local_rows, make_mesh
from zoomearth_jax.rl.distillation import distilled_episodes, distilled_slots, reference_pictures, teacher_replies
from zoomearth_jax.rl.episode import Episode, Turn
from zoomearth_jax.rl.grpo import GRPO, Asked
from zoomearth_jax.rl.state import TrainState
from zoomearth_jax.rl.steps import _update
from zoomearth_jax.runs.checkpoints import Checkpoints
from zoomearth_jax.runs.metric_rows import read_metrics
from zoomearth_jax.runs.models import load_model
from zoomearth_jax.runs.saved_steps import numbers, read_record
from zoomearth_jax.tools.tool import Request
from zoomearth_jax.verbs.grpo import grpo

LOOK = Request(True)
DISTILL = GRPOConfig(
    model="nano-grpo",
    steps=4,
    prompts=4,
    group=4,
    objective=ObjectiveConfig(kl_weight=0.0, distill_weight=0.5, distill_gate="all"),
    checkpoint_every=2,
    panel_every=0,
)


def looked(*pictures):
    """An episode that saw these pictures, one a turn; None is a turn that was answered without one."""
    return Episode((*(Turn("", LOOK, picture=picture) for picture in pictures), Turn("")), None, False)


def test_who_is_distilled():
    """Four questions with a box, of which one is answered without a look, and one question without a box."""
    boxed, plain = (scene_questions("sft", 0, 0, 1, share)[0] for share in (0.0, 1.0))
    assert boxed.box is not None
    assert plain.box is None
    asked, episodes = [boxed] * 4 + [plain], [looked(PICTURE)] * 3 + [looked()] + [looked(PICTURE)]
    rewards = np.array([1.0, 0.5, 0.0, 0.0, 0.0], np.float32)
    for gate, want in (("all", [0, 1, 2]), ("wrong", [1, 2]), ("right", [0])):
        assert np.flatnonzero(distilled_episodes(gate, asked, episodes, rewards)).tolist() == want


def test_the_last_turn_of_chosen_episodes_is_distilled():
    """Turns of 3, 2 and 2 slots and pictures of 3: an episode of three turns, one of two, one that isn't chosen."""
    layout = RowLayout(prompt_len=4, turn_lens=(3, 2, 2), view_side=28, merged_px=28)
    assert layout.reply_len == 13
    target = np.zeros((3, 13), bool)
    target[:, [0, 1, 6, 7, 11]] = True  # the third turn stops after one token
    target[1, 11] = False
    episodes, chosen = [looked(PICTURE, PICTURE), looked(PICTURE), looked(PICTURE)], np.array([True, True, False])
    got = distilled_slots(layout, episodes, target, chosen)
    assert [np.flatnonzero(row).tolist() for row in got] == [[5], [3, 4], []]


def test_the_teacher_reads_what_a_policy_that_named_the_reference_box_would(nano):
    """Rows as fine-tuning makes them, with other pictures of other sizes in their place, are turned back into themselves."""
    rows, questions = nano.rows, scene_questions("sft", 3, 0, 3, global_share=0.0)
    want = rows.reference_replies(questions)
    side, grids = rows.layout.picture_side, want.pictures.grids // 2
    assert grids.all()
    turns = [
        [row[rows.layout.turn(k)][keep[rows.layout.turn(k)]].tolist() for k in range(2)]
        for row, keep in zip(want.ids, want.target, strict=True)
    ]
    seen = Views(np.full((3, side, side, 3), 7, np.uint8), grids)
    replies, chosen = rows.replies(turns, seen), np.array([True, False, True])
    assert (replies.ids != want.ids).any(axis=1).all()
    references = reference_pictures(rows, questions, chosen)
    assert sorted(references) == [0, 2]
    got = teacher_replies(rows, [looked(PICTURE)] * 3, replies, references)
    box = questions[0].box
    window = crop_window(box, rows.episode.min_window_px, rows.episode.crop)
    seen_first = view_of(questions[0].image, window, rows.layout.picture_side, rows.layout.merged_px)
    np.testing.assert_array_equal(references[0], seen_first)
    for row in range(3):
        source = want if chosen[row] else replies
        for name in ("ids", "valid", "target"):
            np.testing.assert_array_equal(getattr(got, name)[row], getattr(source, name)[row])
        np.testing.assert_array_equal(got.pictures.grids[row], source.pictures.grids[row])
    pictures = rows.views([references[0], None, references[2]], side).pixels
    np.testing.assert_array_equal(got.pictures.pixels[[0, 2]], pictures[[0, 2]])
    np.testing.assert_array_equal(got.pictures.pixels[1], seen.pixels[1])
    assert (replies.pictures.pixels == 7).all()  # the policy's own rows stay as they are


def test_only_the_last_picture_is_another_one_and_its_note_stays(nano):
    rows = nano.rows.replaced(turn_lens=(4, 4, 4)).with_notes(16)
    side, notes, turns = rows.layout.picture_side, [["one"], ["two"]], [[[5, rows.stop_id]] * 3]
    first, last, other = (np.full((28 * h, 28 * w, 3), 9 * h + w, np.uint8) for h, w in ((1, 1), (1, 2), (2, 2)))
    replies, want = (
        rows.replies(turns, rows.views(pictures, side), notes) for pictures in ([first, last], [first, other])
    )
    shown = [Turn("", LOOK, picture=seen, note=note[0]) for seen, note in zip((first, last), notes, strict=True)]
    got = teacher_replies(rows, [Episode((*shown, Turn("")), None, False)], replies, {0: other})
    assert (replies.ids != want.ids).any()
    for array, expected in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(array, expected)


def test_a_question_is_read_once(nano):
    question = scene_questions("sft", 3, 0, 1, global_share=0.0)[0]
    counts = []

    def read_all(read, questions):
        counts.append(len(questions))
        return map(read, questions)

    pictures = reference_pictures(nano.rows, [question] * 4, np.array([True, False, True, True]), read_all)
    assert (counts, sorted(pictures)) == ([1], [0, 2, 3])


def test_the_moving_average_by_hand():
    """A step of 0.5 down a slope of 1, of which the average takes a tenth; a step that isn't finite changes nothing."""
    optimizer, start = optax.sgd(0.5), {"w": jnp.float32(2.0)}
    state = TrainState(start, {}, optimizer.init(start), jnp.int32(0), {"w": jnp.float32(3.0)})

    def loss_fn(trainable, scale):
        loss = trainable["w"] * scale
        return loss, {"loss": loss}

    step = jax.jit(lambda state, scale: _update(state, optimizer, loss_fn, scale, 0.9)[0])
    new, same = step(state, np.ones(1, np.float32)), step(state, np.full(1, np.nan, np.float32))
    assert float(new.trainable["w"]) == 1.5
    assert float(new.average["w"]) == pytest.approx(0.9 * 3 + 0.1 * 1.5)
    assert (float(same.trainable["w"]), float(same.average["w"]), int(same.step)) == (2, 3, 0)


def test_rows_without_pictures_are_refused(nano):
    with pytest.raises(UserError, match=r"objective\.distill_weight: rows of one turn"):
        GRPO(DISTILL, nano.model, nano.rows.replaced(turn_lens=(32,)), make_mesh((1, 1, 1)))


@pytest.mark.slow
def test_before_the_first_step_the_teacher_differs_by_what_it_sees():
    """Its parameters are the policy's then, so that tokens before the last picture are as likely as the policy found them."""
    mesh = make_mesh((1, 1, 1))
    with jax.set_mesh(mesh):
        loaded = load_model("nano-grpo", mesh=mesh)
        training = GRPO(DISTILL, loaded.model, loaded.rows, mesh)
        questions = scene_questions("grpo", 0, 0, 4, global_share=0.25)
        played = training.play(Asked(questions, training.send(training.rows.prompts(questions)), 0))
        average = jax.tree.map(np.array, training.state.average)
        updated, _ = training.update(played)
        metrics = updated.metrics()
        gap = local_rows(updated.batch.teacher_logp) - played.episodes.logprobs
        distilled = local_rows(updated.batch.distilled)
        first = played.episodes.replies.target[:, training.rows.layout.turn(0)]
        assert np.abs(gap[:, : first.shape[1]][first]).max() < 1e-4
        assert distilled.any()
        assert not distilled[:, : first.shape[1]].any()
        assert np.abs(gap[distilled]).max() > 0.1
        want = np.clip(gap[distilled], -2, 2).mean()
        assert metrics["distill_gap"] == pytest.approx(want, abs=1e-4)
        assert metrics["distill_share"] == pytest.approx(distilled.sum() / played.episodes.replies.target.sum())
        for old, new, trained in zip(
            *map(jax.tree.leaves, (average, training.state.average, training.state.trainable)), strict=True
        ):
            np.testing.assert_allclose(new, 0.95 * old + 0.05 * np.asarray(trained), atol=1e-6)


def rows_of(out):
    return [{k: x for k, x in row.items() if not k.startswith("perf/")} for row in read_metrics(out / "metrics.jsonl")]


def last_arrays(out):
    folder = out / "checkpoints"
    return read_record(folder / str(max(numbers(folder))))["arrays"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["plain", "minibatches, parts, microbatches, vision"])
def test_a_run_that_goes_on_from_a_checkpoint_is_bit_equal(how, tmp_path):
    config = dataclasses.replace(DISTILL, out=tmp_path / "whole")
    if how != "plain":
        more = {"minibatches": 2, "accumulate": 2, "freeze_vision": False, "compact": 8}
        config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, batches=2), **more)
    grpo(config)
    rows = rows_of(config.out)
    assert all(np.isfinite(row["distill_gap"]) and row["distill_share"] > 0 for row in rows)
    out = shutil.copytree(config.out, tmp_path / "cut")
    with Checkpoints(out) as checkpoints:
        checkpoints._manager.delete(4)  # as if the run had died after step 2
        assert checkpoints.latest == 2
    grpo(dataclasses.replace(config, out=out, resume=True))
    assert rows_of(out) == rows
    arrays = last_arrays(config.out)
    assert last_arrays(out) == arrays
    averages = [name for name in arrays["training"] if name.startswith("average.")]
    assert averages
    assert {arrays["training"][name]["dtype"] for name in averages} == {"float32"}
