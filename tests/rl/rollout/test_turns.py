"""Episodes of any number of turns: rows, cache, gradients and packing against one pass over each episode by itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.processes import result, start
from tests.rl.rollout.wandering import Wander
from zoomearth_jax.cli import main
from zoomearth_jax.configs.episode import EpisodeConfig, RowLayout
from zoomearth_jax.configs.rollout import RolloutConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.images.boxes import Box
from zoomearth_jax.data_pipeline.questions.own_rows import write_questions
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.data_pipeline.questions.question import Look
from zoomearth_jax.data_pipeline.rows.packing import pack
from zoomearth_jax.errors import UserError
from zoomearth_jax.models.qwen2_5_vl.vision import pixel_values
from zoomearth_jax.rl.batches import packed_batch, row_batch
from zoomearth_jax.rl.policy import row_features
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.rl.state import init_state
from zoomearth_jax.rl.steps import make_sft_step, row_logprobs
from zoomearth_jax.runs.metric_rows import read_metrics
from zoomearth_jax.runs.models import load_model
from zoomearth_jax.tools import TOOLS
from zoomearth_jax.tools.tool import Shown

T1, KEY, GROUP = SamplingConfig(temperature=1.0), jax.random.key(5), 2


@pytest.fixture(scope="module")
def questions():
    return scene_questions("test", 1, 0, 4, global_share=0.5)


@pytest.fixture(scope="module")
def tuned():
    return load_model("nano-grpo")


@pytest.fixture(scope="module")
def three(tuned, questions):
    """Rows, engine and episodes of three turns, with a tool that looks around."""
    rows = tuned.rows.replaced(turn_lens=(20, 16, 12))
    engine = RolloutEngine(tuned.model, rows)
    params, tool = nnx.state(tuned.model, nnx.Param), Wander(rows)
    return rows, engine, engine(params, questions, KEY, sampling=T1, group=GROUP, tool=tool)


@pytest.mark.parametrize("turns", [(7,), (5, 3), (5, 3, 4, 2)])
def test_slots_lie_one_after_the_other(turns):
    layout, slots, after = RowLayout(20, turns, 84, 28), [], 0
    for k, length in enumerate(turns):
        assert layout.turn(k) == slice(after, after + length)
        slots += range(after, after + length)
        after += length
        if k < layout.num_pictures:
            assert layout.picture(k) == slice(after, after + 9 + 2)
            after += 11
    assert layout.reply_len == after
    assert layout.written().tolist() == slots
    assert (layout.num_turns, layout.num_pictures, layout.written_len) == (len(turns), len(turns) - 1, sum(turns))


def test_episodes_end_in_any_turn_and_see_pictures_of_any_shape(three):
    rows, _, played = three
    assert {len(e.turns) for e in played.episodes} == {1, 2, 3}
    grids = played.replies.grids.reshape(-1, 2)
    assert len({tuple(grid) for grid in grids.tolist()}) > 2
    for e, ids, target, own in zip(
        played.episodes, played.replies.ids, played.replies.target, played.replies.grids, strict=True
    ):
        for k, turn in enumerate(e.turns):
            assert rows.decode(ids[rows.layout.turn(k)][target[rows.layout.turn(k)]]) == turn.text
            assert (turn.picture is None) == (k == len(e.turns) - 1)
        assert [tuple(28 * side for side in grid) for grid in own.tolist() if grid[0]] == [
            p.shape[:2] for p in e.pictures
        ]
        assert not target[rows.layout.turn(len(e.turns) - 1).stop :].any()


def logprobs_by_itself(model, rows, played, i):
    """Log-probabilities of what episode i wrote, from one forward pass over it, in HF's form and without slots."""
    prompts, replies, layout, e = played.prompts, played.replies, rows.layout, played.episodes[i]
    prompt = i // GROUP
    ids = prompts.ids[prompt][prompts.valid[prompt]].tolist()
    pictures, predicting, targets = [played.overviews[prompt]], [], []
    for k, turn in enumerate(e.turns):
        slots = layout.turn(k)
        for token in replies.ids[i, slots][replies.target[i, slots]].tolist():
            predicting.append(len(ids) - 1)
            targets.append(token)
            if token not in rows.stop_ids:
                ids.append(token)
        if k + 1 < len(e.turns):
            area = 0 if turn.picture is None else turn.picture.shape[0] * turn.picture.shape[1] // 28**2
            ids += [rows.look_id, *[rows.image_id] * area, rows.seen_id]
            ids += rows.encode(turn.note)[: layout.picture_len - area - 2]
            pictures += [] if turn.picture is None else [turn.picture]
    pixels = np.concatenate([np.asarray(pixel_values(p, model.config.vision)) for p in pictures])
    grids = np.array([[1, p.shape[0] // 14, p.shape[1] // 14] for p in pictures])
    logits = np.array(model(np.array([ids]), pixels, grids)[0])
    logits[:, list(rows.banned_ids)] = -np.inf
    return np.asarray(jax.nn.log_softmax(logits))[predicting, targets]


def test_cached_turns_are_one_forward_pass_over_each_episode(three, tuned):
    rows, _, played = three
    longest = sorted(range(len(played.episodes)), key=lambda i: -len(played.episodes[i].turns))
    for i in [*longest[:2], longest[-1]]:
        written = played.replies.target[i, rows.layout.written()]
        want = logprobs_by_itself(tuned.model, rows, played, i)
        np.testing.assert_allclose(played.logprobs[i][written], want, atol=2e-5)


def test_the_trainer_gives_the_sampler_s_log_probabilities_and_their_gradient(three, tuned):
    """From the rollout's visual tokens, from the pixels anew, and without the slots that are empty."""
    rows, _, played = three
    graph, params = nnx.split(load_model("nano-grpo").model)
    mask = played.replies.target[:, rows.layout.written()]
    vision, results = tuned.model.config, []

    @jax.jit
    def run(params, batch):
        def loss(params):
            logp, _ = row_logprobs(nnx.merge(graph, params), batch, rows.layout, 1.0, rows.banned_ids)
            return (logp * mask.astype(np.float32)).sum() / float(mask.sum()), logp

        (_, logp), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return logp, gradient["decoder"]

    for tokens, parts in (
        ((played.overview_features, played.picture_features), 0),
        ((None, None), 0),
        ((None, None), 16),
    ):
        results.append(run(params, row_batch(played.prompts, played.replies, vision, *tokens, parts=parts)))
    for logp, gradient in results:
        assert np.abs(np.asarray(logp) - played.logprobs)[mask].max() < 2e-5
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(results[0][1]), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


class Telling(Wander):
    """Says something of each picture, and of every third request only that there is none."""

    def run(self, image, request):
        """See `Tool`."""
        picture = super().run(image, request)
        if round(request.window.x1 + request.window.y1) % 3 == 0:
            return Shown(np.zeros((0, 0, 3), np.uint8), "<tool_response>no picture</tool_response>")
        return Shown(picture, f" a picture of {picture.shape[0]} px" + " and more" * picture.shape[1])


def test_what_a_tool_says_is_read_after_its_picture_and_never_trained_on(tuned, questions):
    rows = tuned.rows.replaced(turn_lens=(20, 16, 12)).with_notes(6)
    engine, params = RolloutEngine(tuned.model, rows), nnx.state(tuned.model, nnx.Param)
    played = engine(params, questions, KEY, sampling=T1, group=GROUP, tool=Telling(rows))
    silent = engine(params, questions, KEY, sampling=T1, group=GROUP, tool=Wander(rows))
    assert any(a.texts[1:] != b.texts[1:] for a, b in zip(played.episodes, silent.episodes, strict=True))
    said = [i for i, e in enumerate(played.episodes) if any(turn.note for turn in e.turns)]
    assert any(turn.note and turn.picture is None for e in played.episodes for turn in e.turns)
    for i in sorted(said, key=lambda i: -len(played.episodes[i].turns))[:2]:
        for k, turn in enumerate(played.episodes[i].turns[:-1]):
            slots = rows.layout.picture(k)
            ids, valid = played.replies.ids[i, slots], played.replies.valid[i, slots]
            seen = ids.tolist().index(rows.seen_id)
            assert turn.note.startswith(rows.decode(ids[seen + 1 :][valid[seen + 1 :]]))
            assert valid[seen + 1 :].sum() >= 6
            assert not played.replies.target[i, slots].any()
        written = played.replies.target[i, rows.layout.written()]
        want = logprobs_by_itself(tuned.model, rows, played, i)
        np.testing.assert_allclose(played.logprobs[i][written], want, atol=2e-5)


def test_nothing_recompiles_after_warm_up(three, tuned):
    rows, engine, _ = three
    params, compilations = nnx.state(tuned.model, nnx.Param), []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compilations.append(name) if "backend_compile" in name else None
    )
    for number in range(1, 4):
        other = scene_questions("test", 2, 4 * number, 4, global_share=0.5)
        engine(params, other, jax.random.key(number), sampling=T1, group=GROUP, tool=Wander(rows))
    assert not compilations


@pytest.mark.slow
def test_on_several_devices():
    found = result(start("rl/rollout/turns_on_mesh.py", 8))
    assert max(found["gaps"]) < 2e-5
    assert {1, 2, 3} == set(found["turns"][0])
    assert found["same"]


def chains(questions):
    """Questions with no, one, two and three looks: ever closer to the site."""
    out = []
    for number, question in enumerate(questions):
        frame, (look,) = question.image.frame, question.looks
        x1, y1, x2, y2 = look.box.corners
        around = [
            Look(
                Box(max(x1 - m, 0), max(y1 - m, 0), min(x2 + m, frame.width), min(y2 + m, frame.height), frame),
                "area",
                "far",
            )
            for m in (600, 200)
        ]
        out.append(dataclasses.replace(question, looks=((*around, look)[3 - number % 4 :])))
    return out


@pytest.mark.parametrize(
    "turns",
    [
        pytest.param((20,), marks=pytest.mark.slow),
        pytest.param((20, 12), marks=pytest.mark.slow),
        pytest.param((20, 20, 20, 12), marks=pytest.mark.slow),
    ],
)
def test_packed_rows_train_as_fixed_ones_do(tuned, turns):
    """Of K = 1, 2 and 4: loss and gradients, with fewer looks than there are turns and as many."""
    rows = tuned.rows.replaced(turn_lens=turns)
    asked = chains(scene_questions("sft", 3, 0, 8, global_share=0.0))
    asked = [dataclasses.replace(q, looks=q.looks[: len(turns) - 1]) for q in asked]
    fixed, vision = rows.supervised(asked), tuned.model.config
    assert [(grid.prod(-1) > 0).sum() for grid in fixed[1].grids] == [len(q.looks) for q in asked]
    packed = pack(*fixed, rows.layout.view_tokens, 240)
    assert packed.samples.max() > 1

    def stepped(batch):
        graph, state = init_state(load_model("nano").model, optax.sgd(1.0), freeze_vision=False)
        before = jax.tree.map(np.asarray, nnx.to_pure_dict(state.trainable))
        state, metrics = make_sft_step(graph, optax.sgd(1.0), rows.layout)(state, batch)
        return float(metrics["loss"]), jax.tree.map(np.subtract, before, nnx.to_pure_dict(state.trainable))

    (want, want_grads), (got, got_grads) = stepped(row_batch(*fixed, vision)), stepped(packed_batch(packed, vision))
    assert got == pytest.approx(want, rel=1e-5)
    for a, b in zip(jax.tree.leaves(got_grads), jax.tree.leaves(want_grads), strict=True):
        assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(b) + 1e-6


def test_visual_tokens_of_a_row_lie_one_after_the_other():
    grids = np.array([[[1, 2], [2, 2], [0, 0]], [[2, 1], [1, 1], [1, 3]]])
    features = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(6, 4, 5)
    got = np.asarray(row_features(jnp.asarray(features), jnp.asarray(grids)))
    for row in range(2):
        want = np.concatenate([features[3 * row + i, : grids[row, i].prod()] for i in range(3)])
        np.testing.assert_array_equal(got[row, : len(want)], want)


@pytest.mark.slow
def test_one_turn_is_an_episode_without_tools(tuned, questions):
    rows = tuned.rows.replaced(turn_lens=(32,))
    engine = RolloutEngine(tuned.model, rows)
    played = engine(nnx.state(tuned.model, nnx.Param), questions, KEY, group=GROUP)
    assert all(len(e.turns) == 1 and not e.zoomed for e in played.episodes)
    batch = row_batch(played.prompts, played.replies, tuned.model.config, played.overview_features, None)
    logp, _ = row_logprobs(tuned.model, batch, rows.layout, 1.0, rows.banned_ids)
    mask = played.replies.target
    assert np.abs(np.asarray(logp) - played.logprobs)[mask].max() < 2e-5


def test_a_chain_that_takes_more_turns_than_there_are_names_the_setting(tuned):
    asked = chains(scene_questions("sft", 3, 0, 4, global_share=0.0))
    with pytest.raises(UserError, match=r"takes 4 turns, the layout has 2; .*--layout\.turn-lens 20 20 20 12 holds it"):
        tuned.rows.check_supervised(asked)
    with pytest.raises(UserError, match="takes 3 turns"):
        tuned.rows.supervised(asked[2:3])


def test_a_tool_is_one_file_and_one_line(tuned, questions, monkeypatch):
    monkeypatch.setitem(TOOLS, "wander", Wander)
    rows = tuned.rows.replaced(turn_lens=(20, 12))
    engine = RolloutEngine(tuned.model, rows, config=RolloutConfig(tool="wander"))
    played = engine(nnx.state(tuned.model, nnx.Param), questions, KEY)
    assert any(e.zoomed and e.box is None for e in played.episodes)
    with pytest.raises(UserError, match="no tool 'wonder'; there is zoom, wander"):
        RolloutEngine(tuned.model, rows, config=RolloutConfig(tool="wonder"))


@pytest.mark.parametrize("lens", [(), (5, 0), (-1,)])
def test_turns_that_are_none(lens):
    with pytest.raises(UserError, match="turn_lens must be positive"):
        EpisodeConfig(turn_lens=lens)


@pytest.mark.slow
def test_a_chain_of_two_looks_is_learned(tmp_path):
    """SFT on chains of two looks, then GRPO on the run with its three turns: the loss falls, and the policy looks twice."""
    asked, pairs = scene_questions("sft", 5, 0, 96, global_share=0.0), []
    for number, question in enumerate(asked):
        (look,) = question.looks
        frame = question.image.frame
        x1, y1, x2, y2 = look.box.corners
        left, top = (frame.width / 2 * (low + high >= frame.width) for low, high in ((x1, x2), (y1, y2)))
        half = Look(Box(left, top, left + frame.width / 2, top + frame.height / 2, frame), "half", "a part first")
        question.image.write(tmp_path / f"{number}.png")
        pairs.append((f"{number}.png", dataclasses.replace(question, looks=(half, look))))
    write_questions(tmp_path / "questions.jsonl", pairs)
    common = ["--data", str(tmp_path), "--layout.turn-lens", "32", "24", "12"]
    assert (
        main(
            ["sft", "--model", "nano", "--steps", "150", "--batch-size", "16", "--out", str(tmp_path / "sft"), *common]
        )
        == 0
    )
    losses = [row["loss"] for row in read_metrics(tmp_path / "sft" / "metrics.jsonl")]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])
    out = tmp_path / "grpo"
    assert (
        main(["grpo", "--model", str(tmp_path / "sft"), "--data", str(tmp_path), "--steps", "3", "--out", str(out)])
        == 0
    )
    last = read_metrics(out / "metrics.jsonl")[-1]
    assert last["turn3_tokens"] > 3
    assert last["zoom_rate"] > 0.8
    assert last["looks"] > 1.6


@pytest.mark.slow
def test_a_run_gets_as_many_looks_as_are_asked_for(tmp_path):
    """GRPO of a model of one look with two: its rows, its saved episode, and those who ask the run afterwards."""
    out = tmp_path / "grpo"
    small = ["--steps", "1", "--prompts", "2", "--group", "2", "--panel-every", "0"]
    assert main(["grpo", "--model", "nano-grpo", "--rollout.looks", "2", "--out", str(out), *small]) == 0
    assert load_model(out).rows.episode.turn_lens == (20, 20, 12)
    assert {"looks", "turn1_tokens"} <= read_metrics(out / "metrics.jsonl")[-1].keys()
