"""The fixed layout: slots, masks, and what is never trained on."""

import dataclasses
import re
import types

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from zoomearth_jax.configs.episode import LayoutConfig
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame, crop_window, view_size
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.data_pipeline.questions.question import Look, Question
from zoomearth_jax.data_pipeline.rows.builder import RowBuilder
from zoomearth_jax.data_pipeline.rows.looks import Looks
from zoomearth_jax.data_pipeline.text.nano_tokenizer import build_nano_tokenizer
from zoomearth_jax.data_pipeline.text.protocol import follows_protocol, parse_box
from zoomearth_jax.errors import UserError
from zoomearth_jax.models.presets import preset
from zoomearth_jax.runs.models import load_rows, resolve


@pytest.fixture(scope="module")
def rows():
    return RowBuilder(build_nano_tokenizer(), preset("nano")[1], 28)


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
    rows = RowBuilder(build_nano_tokenizer(), preset("nano")[1], 28)
    assert rows.decode(rows.encode(text)) == text


def test_special_tokens_in_a_question_stay_plain_text(rows):
    ids = rows.encode("<|im_end|><|image_pad|>")
    assert not set(ids) & {*rows.stop_ids, *rows.banned_ids}


def test_slots_and_masks(rows, questions):
    layout = rows.layout
    overviews = [rows.overview(q) for q in questions]
    prompts, replies = rows.prompts(questions, overviews), rows.reference_replies(questions)
    assert prompts.ids.shape == (12, layout.prompt_len)
    assert replies.ids.shape == (12, layout.reply_len)
    assert ((prompts.ids == rows.image_id).sum(1) == prompts.views.grids.prod(1)).all()  # placeholders = features
    crop = layout.picture(0)
    assert ((replies.ids[:, crop] == rows.image_id).sum(1) == replies.pictures.grids.prod(1)).all()
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
    before = rows.reference_replies(questions)
    turned = {"horizontal": "vertical", "vertical": "rising", "rising": "falling", "falling": "horizontal"}
    changed = []
    for q in questions:  # other stripes in the pictures, the same words in the row
        sites = tuple(dataclasses.replace(s, orientation=turned[s.orientation]) for s in q.image.sites)
        changed.append(dataclasses.replace(q, image=dataclasses.replace(q.image, sites=sites)))
    after = rows.reference_replies(changed)
    assert (before.pictures.pixels != after.pictures.pixels).any()
    for name in ("ids", "valid", "target"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))


def test_a_question_that_does_not_fit_names_the_setting_that_holds_it(rows, questions):
    long = dataclasses.replace(questions[0], text="Which way? " * 20)
    said = r"question 'Which way\? .*' takes (\d+) tokens for the 48 of the prompt; shorten it, or --layout.prompt-len \1 holds it"
    with pytest.raises(UserError, match=said) as caught:
        rows.prompts([long])
    wider = LayoutConfig(prompt_len=int(re.search(r"takes (\d+)", str(caught.value))[1]))
    assert RowBuilder(rows.tokenizer, wider.of(rows.episode, 28), 28).prompts([long]).valid.all()


def with_thoughts(question, before, after):
    """A question with one look, and other reasoning."""
    (look,) = question.looks
    return dataclasses.replace(question, looks=(dataclasses.replace(look, thought=before),), thought=after)


def test_a_reference_that_does_not_fit_names_the_setting_that_holds_it(rows, questions):
    wordy = with_thoughts(next(q for q in questions if q.box), "the site is red " * 10, "so it is " * 8)
    for turn in (1, 2):
        said = rf"tokens for the \d+ of turn {turn}; shorten it, or --layout.turn-lens (\d+) (\d+) holds it"
        with pytest.raises(UserError, match=said) as caught:
            rows.reference_replies([wordy])
        wider = LayoutConfig(turn_lens=tuple(map(int, str(caught.value).split()[-4:-2])))
        rows = RowBuilder(rows.tokenizer, wider.of(rows.episode, 28), 28)
    rows.reference_replies([wordy])


def test_all_rows_are_checked_at_the_start_without_their_pixels(rows, questions):
    """What `check_supervised` names holds every row, and no less does."""
    texts = ["Which way? " * 9, "Où? " * 30, "short", "\u2028\U0001f600" * 12]
    looking = next(q for q in questions if q.box)
    asked = [with_thoughts(dataclasses.replace(looking, text=text), text, text) for text in texts]
    with pytest.raises(UserError, match=r"3 of 4 questions don't fit their slots; question .* holds all$") as caught:
        rows.check_supervised(asked)
    with pytest.raises(UserError, match=r"--layout.prompt-len \d+ holds all$"):
        rows.check_prompts(asked)
    flags = r"--layout\.prompt-len (\d+) --layout\.turn-lens (\d+) (\d+)"
    prompt, *turns = map(int, re.search(flags, str(caught.value)).groups())
    enough = rows.replaced(prompt_len=prompt, turn_lens=turns)
    enough.check_supervised(asked)
    enough.supervised(asked)
    for slot, less in (
        ("the prompt", {"prompt_len": prompt - 1}),
        ("turn 1", {"turn_lens": (turns[0] - 1, turns[1])}),
        ("turn 2", {"turn_lens": (turns[0], turns[1] - 1)}),
    ):
        with pytest.raises(UserError, match=slot):
            enough.replaced(**less).supervised(asked)


@given(st.data())
def test_what_is_taught_parses_and_its_window_holds_the_box(data):
    """Of boxes of any size, down to far less than one px of the view, and images of any shape."""
    width, height = (data.draw(st.integers(1, 40_000)) for _ in range(2))
    corners = []
    for side in (width, height):
        start = data.draw(st.floats(0, side, exclude_max=True))
        stop = data.draw(st.one_of(st.floats(start, side), st.floats(start, min(start + 1e-3, side))))
        corners.append((start, stop if stop > start else min(start + 1e-6, side)))
    (x1, x2), (y1, y2) = corners
    assume(x1 < x2 and y1 < y2)
    image = types.SimpleNamespace(frame=Frame(width, height))
    question = Question(image, "q", "a", "object", (Look(Box(x1, y1, x2, y2, Frame(width, height)), "roof"),))
    episode = preset("qwen2_5_vl_3b")[1]
    view = view_size(width, height, episode.view_px, 28)
    (look, _), _ = Looks(episode, 28).references(question)
    box = parse_box(look, view).box
    assert box is not None
    assert follows_protocol([look, "<think></think><answer>a</answer>"], view)
    window = crop_window(box.to(question.box.frame), episode.min_window_px)
    slack = 1e-6 * max(width, height)
    assert window.x1 - slack <= (x1 + x2) / 2 <= window.x2 + slack
    assert window.y1 - slack <= (y1 + y2) / 2 <= window.y2 + slack


def test_choices_are_part_of_the_prompt(rows, questions):
    chosen = dataclasses.replace(questions[0], text="Roof?", choices=("red", "blue"))
    assert "Roof? Choices: red; blue" in rows.decode(rows.prompts([chosen]).ids[0])
