"""Packing: every token and target once, in order; deterministic; what doesn't fit is refused."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.data_pipeline.rows.packing import PackedRows, first_fit, pack, padded
from zoomearth_jax.errors import UserError


@pytest.fixture(scope="module")
def fixed(nano):
    return nano.rows.supervised(scene_questions("sft", 5, 0, 12, global_share=0.4))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40))
def test_first_fit_places_each_sample_once_and_no_two_rows_would_fit_into_one(lengths):
    rows = first_fit(lengths, 50)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    filled = [sum(lengths[i] for i in row) for row in rows]
    assert max(filled) <= 50
    assert all(a + b > 50 for n, a in enumerate(filled) for b in filled[:n])


def test_a_sample_longer_than_a_row_is_refused():
    with pytest.raises(UserError, match="a sample of the batch has 51 tokens, a packed row 50; raise pack_len"):
        first_fit([3, 51], 50)


@pytest.mark.parametrize("length", [128, 300])
def test_each_sample_is_whole_and_its_targets_follow_the_tokens_before_them(nano, fixed, length):
    prompts, replies = fixed
    packed = pack(prompts, replies, nano.rows.layout.view_tokens, length)
    want, tokens = [], 0
    for i in range(len(prompts.ids)):
        ids = np.concatenate([prompts.ids[i][prompts.valid[i]], replies.ids[i][replies.valid[i]]])
        want.append((tuple(ids), tuple(replies.ids[i][replies.target[i]])))
    got = []
    for row in range(len(packed.ids)):
        assert (np.diff(packed.samples[row].nonzero()[0]) == 1).all()  # no gaps
        for sample in range(1, packed.samples[row].max() + 1):
            own = packed.target[row] & (packed.samples[row, packed.places[row]] == sample)
            ids, places = packed.ids[row][packed.samples[row] == sample], packed.places[row][own]
            got.append((tuple(ids), tuple(packed.targets[row][own])))
            start = np.argmax(packed.samples[row] == sample)
            for place, target in zip(places, packed.targets[row][own], strict=True):  # the next token, or an end
                after = ids[place - start + 1 : place - start + 2]
                assert target == nano.rows.stop_id or after.tolist() == [target]
        images = (packed.ids[row] == nano.rows.image_id) & (packed.samples[row] > 0)
        assert images.sum() == packed.grids[row].prod(-1).sum()
        tokens += images.sum()
    assert sorted(got) == sorted(want)
    assert tokens == packed.views.grids.prod(-1).sum()
    assert len(packed.ids) < len(prompts.ids) or length < 100
    assert packed.views.pixels.shape[0] == 2 * len(prompts.ids)


def test_features_are_those_of_the_samples_own_views(nano, fixed):
    packed = pack(*fixed, nano.rows.layout.view_tokens, 200)
    views = packed.features[0] // nano.rows.layout.view_tokens
    for row in range(len(packed.ids)):
        images = packed.grids[row].prod(-1)
        used = np.repeat(np.arange(len(images)), images)  # which of the row's images each placeholder is of
        sample = packed.samples[row][(packed.ids[row] == nano.rows.image_id) & (packed.samples[row] > 0)]
        assert (used // 2 + 1 == sample).all()
        is_crop = views[row, : images.sum()] >= len(fixed[0].ids)
        np.testing.assert_array_equal(is_crop, used % 2 == 1)  # a sample's first view is the overview
        owner = views[row, : images.sum()] % len(fixed[0].ids)  # overview and crop of one question
        prompts = [tuple(fixed[0].ids[i][fixed[0].valid[i]]) for i in owner]
        for number, prompt in zip(sample, prompts, strict=True):
            start = np.argmax(packed.samples[row] == number)
            assert tuple(packed.ids[row, start : start + len(prompt)]) == prompt


def test_each_device_has_its_own_samples_and_all_have_as_many_rows(nano, fixed):
    """The stretches of a batch are the batches that its parts would be by themselves, but for empty rows."""
    view_tokens = nano.rows.layout.view_tokens
    whole = pack(*fixed, view_tokens, 200, shards=3)
    parts = [jax.tree.map(lambda x, n=n: np.split(x, 3)[n], fixed) for n in range(3)]
    apart = [pack(*part, view_tokens, 200) for part in parts]
    rows, targets = whole.features.shape[1], whole.target.shape[1]
    assert (rows, targets) == tuple(max(x) for x in zip(*((len(p.ids), p.target.shape[1]) for p in apart), strict=True))
    grown = [padded(part, rows, targets) for part in apart]
    for name in PackedRows._fields[:-1]:
        want = np.concatenate([getattr(part, name) for part in grown])
        np.testing.assert_array_equal(getattr(whole, name), want, name)
    np.testing.assert_array_equal(whole.views.grids, np.concatenate([part.views.grids for part in apart]))
    np.testing.assert_array_equal(whole.views.pixels, np.concatenate([part.views.pixels for part in apart]))


def test_room_for_more_is_empty(nano, fixed):
    packed = pack(*fixed, nano.rows.layout.view_tokens, 200, shards=2)
    grown = padded(packed, packed.features.shape[1] + 2, packed.target.shape[1] + 5)
    assert grown.ids.shape == (len(packed.ids) + 4, 200)
    assert grown.target.shape == (len(packed.ids) + 4, packed.target.shape[1] + 5)
    for name in ("ids", "samples", "targets", "target", "grids", "features"):
        was, now = getattr(packed, name), getattr(grown, name)
        assert now.dtype == was.dtype
        assert now.sum() == was.sum(), name
    first = packed.features.shape[1] + 2  # of the second stretch
    np.testing.assert_array_equal(grown.ids[first : first + len(packed.ids) // 2], packed.ids[len(packed.ids) // 2 :])
