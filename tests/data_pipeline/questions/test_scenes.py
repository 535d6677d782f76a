"""Scenes agree with the files written of them; files that can't be read say so."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.images.sources import RawImage, global_view, view_of
from zoomearth_jax.data_pipeline.questions.folders import read_questions
from zoomearth_jax.data_pipeline.questions.own_rows import write_questions
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions, site_question
from zoomearth_jax.data_pipeline.questions.scenes import COLORS, random_scene
from zoomearth_jax.errors import UserError


@pytest.fixture(scope="module")
def scene():
    return random_scene(np.random.default_rng(5))


@pytest.mark.parametrize("suffix", ["tif", "png"])
@pytest.mark.parametrize("side", [2048, 3000])
def test_file_agrees_with_analytic_views(scene, tmp_path, suffix, side):
    path = tmp_path / f"scene.{suffix}"
    scene.write(path, side)
    file, same = RawImage(path), dataclasses.replace(scene, side=side)
    assert file.frame == same.frame == Frame(side, side)
    difference = np.abs(global_view(file, 112, 28).astype(int) - global_view(same, 112, 28))
    assert difference.mean() < 0.5
    assert difference.max() <= 24  # edges: Pillow's filter is wider than a pixel
    window = same.box(same.sites[0])
    difference = np.abs(view_of(file, window, 112, 28).astype(int) - view_of(same, window, 112, 28))
    assert difference.mean() < 4


def test_window_is_the_exact_area_average(scene):
    box = Box(300, 200, 1324, 1224, scene.frame)
    fine = scene.window(box, Frame(1024, 1024)).astype(float)
    coarse = scene.window(box, Frame(64, 64)).astype(float)
    average = fine.reshape(64, 16, 64, 16, 3).mean((1, 3))
    assert np.abs(average - coarse).max() < 1.1  # rounding to uint8 on both sides


def test_stripes_show_in_the_crop_and_not_in_the_overview(scene):
    other = {"horizontal": "vertical", "vertical": "rising", "rising": "falling", "falling": "horizontal"}
    turned = dataclasses.replace(
        scene, sites=tuple(dataclasses.replace(s, orientation=other[s.orientation]) for s in scene.sites)
    )
    site = scene.sites[0]
    overviews = [global_view(s, 112, 28).astype(int) for s in (scene, turned)]
    crops = [view_of(s, s.box(site), 112, 28).astype(int) for s in (scene, turned)]
    inside = tuple(
        slice(int(a / 2048 * 112) + 1, int(b / 2048 * 112)) for a, b in ((site.y1, site.y2), (site.x1, site.x2))
    )
    assert np.abs(overviews[0] - overviews[1])[inside].max() <= 1
    assert np.abs(crops[0] - crops[1]).mean() > 15


def test_sites_keep_apart_and_splits_differ():
    for index in range(50):
        scene = random_scene(np.random.default_rng(index))
        assert len({s.color for s in scene.sites}) == len(scene.sites) >= 3
    first, again, other = (scene_questions(split, 0, 3, 2) for split in ("test", "test", "grpo"))
    assert first == again
    assert first[0].image != other[0].image
    assert scene_questions("test", 0, 0, 5)[3:] == first  # independent of the start
    assert set(COLORS) >= {first[0].looks[0].label.split()[0]}


def test_questions_round_trip(scene, tmp_path):
    scene.write(tmp_path / "ä b.png", 512)
    small = dataclasses.replace(scene, side=512)
    questions = [site_question(small, s) for s in small.sites]
    write_questions(tmp_path / "questions.jsonl", [("ä b.png", q) for q in questions])
    again = read_questions(tmp_path)
    for before, after in zip(questions, again, strict=True):
        assert (before.text, before.answer, before.level, before.thought) == (
            after.text,
            after.answer,
            after.level,
            after.thought,
        )
        assert [(a.label, a.thought) for a in after.looks] == [(b.label, b.thought) for b in before.looks]
        assert after.box.corners == pytest.approx(before.box.corners, abs=0.01)
        assert after.box.frame == Frame(512, 512)


def test_unreadable_images(tmp_path):
    with pytest.raises(UserError, match="no such image file"):
        RawImage(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(UserError, match="not a readable image"):
        RawImage(tmp_path / "text.png")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep.tif")
    with pytest.raises(UserError, match="pixel type uint16 needs a stretch"):
        RawImage(tmp_path / "deep.tif")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="broken image data"):
        global_view(RawImage(tmp_path / "cut.png"), 112, 28)
    Image.new("RGB", (8, 8)).save(tmp_path / "big.png")
    with pytest.raises(UserError, match="over the limit"):
        RawImage(tmp_path / "big.png", ImageConfig(max_pixels=63))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_eight_bit_modes_are_read(tmp_path, mode):
    path = tmp_path / "image.tif"
    Image.new("RGB", (40, 30), (200, 100, 50)).convert(mode).save(path)
    view = global_view(RawImage(path), 112, 28)
    assert view.dtype == np.uint8
    assert view.shape[2] == 3
