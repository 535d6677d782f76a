"""Nested scenes: what a look shows and what it can't, and the chains of looks that their questions need."""

import dataclasses

import numpy as np
import pytest

from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.images.sources import global_view, view_of
from zoomearth_jax.data_pipeline.questions.folders import read_questions
from zoomearth_jax.data_pipeline.questions.mixture import NestedQuestions, open_sources
from zoomearth_jax.data_pipeline.questions.procedural import nested_questions
from zoomearth_jax.data_pipeline.questions.scenes import BADGE_SIDE, NESTED_SIDE, nested_scene
from zoomearth_jax.data_pipeline.rows.builder import RowBuilder
from zoomearth_jax.data_pipeline.text.nano_tokenizer import build_nano_tokenizer
from zoomearth_jax.errors import UserError
from zoomearth_jax.models.presets import preset
from zoomearth_jax.verbs.make_scenes import ScenesConfig, write_scenes

TURNED = {"horizontal": "vertical", "vertical": "rising", "rising": "falling", "falling": "horizontal"}


@pytest.fixture(scope="module")
def scene():
    return nested_scene(np.random.default_rng(5))


@pytest.fixture(scope="module")
def rows():
    sizes, episode = preset("nano_nested")
    return RowBuilder(build_nano_tokenizer(nested=True), episode, sizes.merged_px)


def with_badges(scene, change):
    """The scene with its badges changed."""
    return dataclasses.replace(
        scene, sites=tuple(dataclasses.replace(site, badge=change(site.badge)) for site in scene.sites)
    )


def turned(scene):
    return with_badges(scene, lambda badge: dataclasses.replace(badge, orientation=TURNED[badge.orientation]))


def test_the_overview_shows_neither_where_badges_are_nor_their_stripes(scene):
    for other in (with_badges(scene, lambda badge: None), turned(scene)):
        np.testing.assert_array_equal(global_view(scene, 112, 28), global_view(other, 112, 28))


def test_a_crop_of_a_site_shows_where_its_badge_is_and_a_crop_of_the_badge_its_stripes(scene, rows):
    for site in scene.sites:
        window = rows.window(scene.box(site), scene.frame)
        assert window.x2 - window.x1 == window.y2 - window.y1 == 1024

        def shown(one, window=window):
            return view_of(one, window, 112, 28).astype(int)

        found = np.abs(shown(scene) - shown(with_badges(scene, lambda badge: None))).max(-1) > 20
        place = scene.badge_box(site.badge)
        y1, x1, y2, x2 = ((c - o) / 1024 * 112 for c, o in zip(
            (place.y1, place.x1, place.y2, place.x2), (window.y1, window.x1) * 2, strict=True
        ))  # fmt: skip
        inside = np.zeros((112, 112), bool)
        inside[int(y1) : int(y2) + 1, int(x1) : int(x2) + 1] = True
        assert found[inside].mean() > 0.3
        assert not found[~inside].any()
        middle = (slice(int(y1) + 2, int(y2) - 1), slice(int(x1) + 2, int(x2) - 1))  # its edges cut pixels
        assert np.abs(shown(scene) - shown(turned(scene)))[middle].max() <= 1
        inner = rows.window(place, scene.frame, "picture")
        assert 128 <= inner.x2 - inner.x1 < 256
        assert np.abs(view_of(scene, inner, 112, 28).astype(int) - view_of(turned(scene), inner, 112, 28)).mean() > 15


def test_badges_are_averaged_exactly(scene):
    place = scene.badge_box(scene.sites[0].badge)
    box = Box(place.x1 - 100, place.y1 - 60, place.x1 + 156, place.y1 + 196, scene.frame)
    fine = scene.window(box, Frame(512, 512)).astype(float)
    average = fine.reshape(32, 16, 32, 16, 3).mean((1, 3))
    assert np.abs(average - scene.window(box, Frame(32, 32))).max() < 1.1


def test_badges_lie_in_their_sites():
    for seed in range(20):
        for site in nested_scene(np.random.default_rng(seed)).sites:
            assert site.x1 <= site.badge.x1 <= site.x2 - BADGE_SIDE
            assert site.y1 <= site.badge.y1 <= site.y2 - BADGE_SIDE


def test_questions_need_none_one_or_two_looks():
    asked = nested_questions("test", 0, 0, 300, global_share=0.25)
    assert {(q.category, len(q.looks), q.level) for q in asked} == {
        ("scene", 0, "global"),
        ("site", 1, "object"),
        ("badge", 2, "object"),
    }
    counts = [sum(q.category == kind for q in asked) / 300 for kind in ("scene", "site", "badge")]
    np.testing.assert_allclose(counts, [0.25, 0.375, 0.375], atol=0.08)
    assert asked[7:9] == nested_questions("test", 0, 7, 2, global_share=0.25)
    assert nested_questions("sft", 0, 0, 1)[0].image != nested_questions("grpo", 0, 0, 1)[0].image
    for q in asked:
        if q.category == "badge":
            (x1, y1, x2, y2), (bx1, by1, bx2, by2) = (look.box.corners for look in q.looks)
            assert x1 <= bx1 < bx2 <= x2
            assert y1 <= by1 < by2 <= y2
            assert [look.source for look in q.looks] == ["overview", "picture"]


def test_the_chain_that_is_taught_leads_to_the_badge(rows):
    asked = [q for q in nested_questions("sft", 0, 0, 40) if q.category == "badge"]
    _, replies = rows.supervised(asked)
    assert (replies.grids.prod(-1) == 16).all()
    for question in asked:
        (first, site_window), (second, badge_window), (answer, _) = rows.looks.references(question)
        assert '"source": "picture"' in second
        assert '"source"' not in first
        assert answer.endswith(f"<answer>{question.answer}</answer>")
        assert (
            1024 <= site_window.x2 - site_window.x1 <= 1026
        )  # corners are taught in px of the overview, 73 of the scene
        place = question.box
        assert badge_window.x1 - 10 <= place.x1
        assert place.x2 <= badge_window.x2 + 10
    assert max(len(rows.question_ids(q.asked, 16)) for q in asked) <= rows.layout.prompt_len


def test_chains_are_cut_at_the_looks_that_there_is_room_for():
    (source,) = open_sources(["nested"], "sft", seed=3, global_share=0.2, questions=30, looks=1)
    whole = NestedQuestions("sft", 3, 0.2, 30)
    assert {len(q.looks) for q in source.questions} == {0, 1}
    assert [q.looks for q in source.questions] == [q.looks[:1] for q in whole]
    assert source.digest() != open_sources(["nested"], "sft", seed=3, global_share=0.2, questions=30)[0].digest()
    assert source.digest() != open_sources(["scenes"], "sft", seed=3, global_share=0.2, questions=30)[0].digest()
    with pytest.raises(UserError, match="nest"):
        open_sources(["nest"], "sft", seed=3, global_share=0.2)


def test_files_of_nested_scenes_have_their_chains(tmp_path):
    write_scenes(ScenesConfig(out=tmp_path, nested=True, count=1, side=1024, format="png"))
    asked = read_questions(tmp_path, "sft")
    assert {len(q.looks) for q in asked} == {0, 1, 2}
    assert {q.looks[1].source for q in asked if len(q.looks) == 2} == {"picture"}
    assert ScenesConfig(nested=True).side == NESTED_SIDE
    assert ScenesConfig().side == 2048
