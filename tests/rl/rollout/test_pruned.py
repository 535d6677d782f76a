"""Passive views, and rollouts with pruned views, against one pass over whole rows in which pruned tokens are masked."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models import tiny_family
from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.episode import LayoutConfig
from zoomearth_jax.configs.prune import PruneConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.images.sources import ArrayImage
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.data_pipeline.rows.builder import RowBuilder
from zoomearth_jax.models.pruning import pruned_views
from zoomearth_jax.models.rope import mrope_positions
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.runs.models import load_model

KEY, T1 = jax.random.key(1), SamplingConfig(temperature=1.0)


@pytest.fixture(scope="module")
def tuned():
    return load_model("nano-grpo")


@pytest.fixture(scope="module")
def questions():
    """Square scenes, and an oblong picture."""
    scenes = scene_questions("test", 1, 0, 3, global_share=0.0)
    oblong = ArrayImage(np.random.default_rng(0).integers(0, 255, (300, 500, 3), np.uint8))
    return [*scenes, dataclasses.replace(scenes[0], image=oblong)]


def masked_logprobs(model, rows, questions, played, i, prune):
    """Log-probabilities of what episode i wrote, from one pass over it with whole pictures, of which the pruned tokens are seen
    by nobody; positions are those of the whole pictures."""
    layout, e, replies, config = rows.layout, played.episodes[i], played.replies, model.config
    ids, written, features, grids, seen = rows.prompt_ids(questions[i].asked, 1), [], [], [], []
    place = ids.index(rows.image_id)
    row, ids = ids[place + 1 :], ids[:place]

    def look(picture):
        images = config.prepare(*rows.views([picture]))
        tokens = int(images.grids.prod())
        count = prune.kept(tokens)
        own = np.asarray(model.encode_views(images))[0, :tokens]
        kept = pruned_views(model, images, prune, jnp.array([count]))[1][0, :count] if count < tokens else slice(None)
        visible = np.zeros(tokens, bool)
        visible[kept] = True
        seen[len(ids) :] = [True] * (len(ids) - len(seen))
        ids.extend([rows.image_id] * tokens)
        seen.extend(visible)
        features.append(own)
        grids.append(images.grids[0, 0])

    look(played.overviews[i])
    ids += row
    for k, turn in enumerate(e.turns):
        slots = layout.turn(k)
        for token in replies.ids[i, slots][replies.target[i, slots]].tolist():
            written.append((len(ids) - 1, token))
            ids += [] if token in rows.stop_ids else [token]
        if turn.picture is not None:
            ids.append(rows.look_id)
            look(turn.picture)
            ids.append(rows.seen_id)
    seen += [True] * (len(ids) - len(seen))
    ids, seen = np.array([ids]), np.array([seen])
    is_image = ids == rows.image_id
    positions, _ = mrope_positions(is_image, np.ones_like(is_image), np.array([grids]))
    x = model.embed(ids, np.concatenate(features)[None])
    hidden, _ = model.decoder(x, positions, seen.astype(np.int32))
    logits = np.array(model.logits(hidden)[0])
    logits[:, list(rows.banned_ids)] = -np.inf
    predicting, targets = map(list, zip(*written, strict=True))
    return np.asarray(jax.nn.log_softmax(logits))[predicting, targets], int(seen.sum()), seen.size


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cluster", "attention"])
def test_pruned_rollouts_are_whole_rows_with_masked_tokens(tuned, questions, kind):
    prune = PruneConfig(kind, 0.25)
    rows = tuned.rows.pruned(prune)
    assert (rows.layout.view_tokens, rows.layout.picture_len) == (4, 6)
    assert rows.layout.prompt_len == tuned.rows.layout.prompt_len - 12  # what is pruned takes no slots
    played = RolloutEngine(tuned.model, rows)(nnx.state(tuned.model, nnx.Param), questions, KEY, sampling=T1)
    assert played.overview_features.shape[1] == 4
    assert any(e.zoomed for e in played.episodes)
    for i in (next(i for i, e in enumerate(played.episodes) if e.zoomed), 3):
        mask = played.replies.target[i, rows.layout.written()]
        want, seen, whole = masked_logprobs(tuned.model, rows, questions, played, i, prune)
        np.testing.assert_allclose(played.logprobs[i][mask], want, rtol=1e-5, atol=1e-5)
        stops = np.isin(played.replies.ids[i], rows.stop_ids) & played.replies.target[i]
        assert seen == played.prompts.valid[i].sum() + (played.replies.valid[i] & ~stops).sum() < whole


@pytest.mark.parametrize(("kind", "keep"), [("attention", 1.0), pytest.param("cluster", 16, marks=pytest.mark.slow)])
def test_keeping_all_changes_no_bit(tuned, questions, kind, keep, engine):
    params = nnx.state(tuned.model, nnx.Param)
    want = engine(params, questions, KEY, sampling=T1)
    got = RolloutEngine(tuned.model, tuned.rows.pruned(PruneConfig(kind, keep)))(params, questions, KEY, sampling=T1)
    jax.tree.map(np.testing.assert_array_equal, (got.prompts, got.replies), (want.prompts, want.replies))
    np.testing.assert_array_equal(got.logprobs, want.logprobs)
    assert got.episodes == want.episodes


@pytest.mark.slow
@pytest.mark.parametrize("px", [448, 1008])
def test_passive_views_answer_without_a_tool(questions, px):
    """The prompt's slot grows with the view; what is written is what a pass over the row by itself gives."""
    plain = load_model("nano-grpo").rows
    model, rows = load_model("nano-grpo", layout=LayoutConfig(view_px=px, turn_lens=(8,)))
    tokens = (px // 28) ** 2
    assert rows.layout.view_tokens == tokens
    assert rows.layout.prompt_len - tokens == plain.layout.prompt_len - plain.layout.view_tokens
    asked = questions[:1]
    played = RolloutEngine(model, rows)(nnx.state(model, nnx.Param), asked, KEY, sampling=T1)
    assert [len(e.turns) for e in played.episodes] == [1]
    assert played.prompts.ids.tolist()[0].count(rows.image_id) == tokens
    mask = played.replies.target[0, rows.layout.written()]
    want, _, _ = masked_logprobs(model, rows, asked, played, 0, PruneConfig())
    np.testing.assert_allclose(played.logprobs[0][mask], want, atol=2e-5)


def test_rows_stay_pruned(tuned, questions):
    rows = tuned.rows.pruned(PruneConfig("attention", 4))
    long = [dataclasses.replace(questions[0], text=questions[0].text * 4)]
    wider = rows.widened(long)
    assert wider.layout.view_tokens == 4
    assert wider.layout.prompt_len > rows.layout.prompt_len
    assert wider.prompts(long).ids[0].tolist().count(rows.image_id) == 4
    assert rows.pruned(PruneConfig()).layout == tuned.rows.layout


@pytest.mark.slow
def test_another_family_is_pruned_too(tuned, questions):
    model = tiny_family.make(tiny_family.TinySizes(), ComputeConfig(), nnx.Rngs(0))
    rows = RowBuilder(tuned.rows.tokenizer, tuned.rows.episode, model.config.merged_px)
    params = nnx.state(model, nnx.Param)
    want = RolloutEngine(model, rows)(params, questions, KEY, sampling=T1)
    assert rows.layout.view_tokens == 16
    for kind, keep, same in (("attention", 16, True), ("cluster", 3, False)):
        own = rows.pruned(PruneConfig(kind, keep))
        got = RolloutEngine(model, own)(params, questions, KEY, sampling=T1)
        assert (got.episodes == want.episodes) == same
        assert got.overview_features.shape[1] == keep
