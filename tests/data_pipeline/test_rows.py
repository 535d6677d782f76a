"""The fixed layout: slots, masks, and what is never trained on."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoomearth_jax.configs.presets import preset
from zoomearth_jax.data_pipeline.nano_tokenizer import build_nano_tokenizer
from zoomearth_jax.data_pipeline.questions import scene_questions
from zoomearth_jax.data_pipeline.rows import RowBuilder
from zoomearth_jax.errors import UserError
from zoomearth_jax.model_io import load_rows, resolve


@pytest.fixture(scope="module")
def rows():
    return RowBuilder(build_nano_tokenizer(), preset("nano")[1])


@pytest.fixture(scope="module")
def questions():
    return scene_questions("test", 0, 0, 12, global_share=0.3)


def test_vocabulary_and_special_ids_match_the_preset(rows):
    model, _ = preset("nano")
    assert len(rows.tokenizer) == model.text.vocab_size
    assert rows.image_id == model.image_token_id
    assert (rows.look_id, rows.seen_id) == (model.vision_start_id, model.vision_end_id)
    assert rows.stop_ids == (model.eos_id, model.bos_id)


def test_shipped_tokenizer_is_the_one_that_the_code_builds(rows):
    shipped = load_rows(resolve("nano")).tokenizer
    assert shipped.get_vocab() == rows.tokenizer.get_vocab()


def test_integers_are_single_tokens(rows):
    assert all(len(rows.encode(str(i))) == 1 for i in range(113))


@given(st.text(max_size=80))
def test_any_text_round_trips(text):
    rows = RowBuilder(build_nano_tokenizer(), preset("nano")[1])
    assert rows.decode(rows.encode(text)) == text


def test_special_tokens_in_a_question_stay_plain_text(rows):
    ids = rows.encode("<|im_end|><|image_pad|>")
    assert not set(ids) & {*rows.stop_ids, *rows.banned_ids}


def test_slots_and_masks(rows, questions):
    e = rows.episode
    overviews = [rows.overview(q) for q in questions]
    prompts, replies = rows.prompts(questions, overviews), rows.reference_replies(questions, overviews)
    assert prompts.ids.shape == (12, e.prompt_len)
    assert replies.ids.shape == (12, e.reply_len)
    assert ((prompts.ids == rows.image_id).sum(1) == prompts.views.grids.prod(1)).all()  # placeholders = features
    crop = slice(e.stage1_len, e.stage1_len + e.crop_len)
    assert ((replies.ids[:, crop] == rows.image_id).sum(1) == replies.crops.grids.prod(1)).all()
    vision = np.isin(replies.ids, [rows.image_id, rows.look_id, rows.seen_id])
    assert not (vision & replies.target).any()  # vision tokens get no loss
    assert not vision[:, : crop.start].any()
    assert not vision[:, crop.stop :].any()
    assert not replies.target[:, crop].any()
    without = np.array([q.box is None for q in questions])
    assert without.any()
    assert not replies.valid[without, crop.start :].any()  # no crop, nothing to see after the answer
    assert replies.valid[~without, crop.start].all()
    stop = replies.ids == rows.stop_id
    assert not (stop & replies.valid).any()  # stop tokens are targets, never context
    assert ((stop & replies.target).sum(1) == [1 + (q.box is not None) for q in questions]).all()
    assert (replies.valid | replies.target | (replies.ids == rows.pad_id)).all()
    for q, row in zip(questions, replies.ids, strict=True):
        text = rows.decode(row[: crop.start])
        assert ("bbox_2d" in text) == (q.box is not None)
        assert f"<answer>{q.answer}</answer>" in rows.decode(row)


def test_changing_the_crop_changes_no_trained_id(rows, questions):
    overviews = [rows.overview(q) for q in questions]
    before = rows.reference_replies(questions, overviews)
    turned = {"horizontal": "vertical", "vertical": "rising", "rising": "falling", "falling": "horizontal"}
    changed = []
    for q in questions:  # other stripes in the pictures, the same words in the row
        sites = tuple(dataclasses.replace(s, orientation=turned[s.orientation]) for s in q.image.sites)
        changed.append(dataclasses.replace(q, image=dataclasses.replace(q.image, sites=sites)))
    after = rows.reference_replies(changed, overviews)
    assert (before.crops.pixels != after.crops.pixels).any()
    for name in ("ids", "valid", "target"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))


def test_a_question_that_does_not_fit_says_how_long_it_may_be(rows, questions):
    long = dataclasses.replace(questions[0], text="Which way? " * 20)
    with pytest.raises(UserError, match=r"question of \d+ tokens, the prompt slot holds 2\d: 'Which way"):
        rows.prompts([long])


def test_a_reference_that_does_not_fit_is_refused(rows, questions):
    wordy = dataclasses.replace(questions[0], thoughts=("the site is red " * 10, ""))
    with pytest.raises(UserError, match="doesn't fit its slot of 20"):
        rows.reference_replies([wordy], [rows.overview(wordy)])
