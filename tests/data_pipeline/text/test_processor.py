"""The processor of HF directories: sizes, settings, batches, and boxes that find their way back."""

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as hf_smart_resize

from tests.real_tokenizer import write_tokenizer
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.text.processor import Frames, ImageConfig, Processor, read_image_config, smart_resize
from zoomearth_jax.errors import UserError
from zoomearth_jax.models.presets import preset
from zoomearth_jax.models.qwen2_5_vl.config import VisionConfig, to_hf_config
from zoomearth_jax.models.qwen2_5_vl.patches import vision_layout
from zoomearth_jax.models.qwen2_5_vl.vision import patchify, pixel_values

IMAGE = {"type": "image"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def processor(directory):
    return Processor.from_pretrained(directory)


def picture(width, height, mode="RGB"):
    noise = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise).convert(mode)


@given(
    st.integers(1, 6000),
    st.integers(1, 6000),
    st.sampled_from([28, 32, 56]),
    st.integers(1, 10_000),
    st.integers(10_000, 20_000_000),
)
def test_smart_resize_is_hf_s(height, width, factor, min_pixels, max_pixels):
    if max(height, width) / min(height, width) > 200:
        with pytest.raises(UserError, match=rf"image of {width} x {height} px: over 200 : 1; cut it"):
            smart_resize(height, width, factor, min_pixels, max_pixels)
    else:
        want = hf_smart_resize(height, width, factor, min_pixels, max_pixels)
        assert smart_resize(height, width, factor, min_pixels, max_pixels) == want


def test_exactly_200_to_1_is_not_too_long():
    assert smart_resize(200, 1, 28, 3136, 12_845_056) == hf_smart_resize(200, 1, 28, 3136, 12_845_056)


def test_published_settings_are_read(directory, tmp_path):
    assert read_image_config(directory) == ImageConfig() == read_image_config(tmp_path)  # and stand for absent ones
    assert ImageConfig().merged_px == 28


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_settings_of_transformers_5_are_read(tmp_path, file):
    settings = {
        "size": {"shortest_edge": 4 * 28**2, "longest_edge": 16 * 28**2},
        "resample": 3,
        "rescale_factor": 1 / 255,
        "do_resize": True,
        "do_center_crop": None,
        "data_format": "channels_first",
        "temporal_patch_size": 2,
    }
    content = {"image_processor": settings} if file == "processor_config.json" else settings
    (tmp_path / file).write_text(json.dumps(content))
    assert read_image_config(tmp_path) == ImageConfig(4 * 28**2, 16 * 28**2)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"image_mean": [0.5, 0.5, 0.5]}, r"image_mean \[0.5, 0.5, 0.5\] is not supported, only \[0.48"),
        ({"image_std": [1.0, 1.0, 1.0]}, "image_std"),
        ({"resample": 2}, "resample 2 is not supported, only 3"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor"),
        ({"do_normalize": False}, "do_normalize False is not supported, only True"),
        ({"do_center_crop": True}, "do_center_crop True is not supported, only False"),
        ({"min_pixels": None}, r"neither min_pixels nor size.shortest_edge"),
        ({"max_pixels": "many"}, "max_pixels: expected int, got 'many'"),
        ({"patch_size": 0}, "patch_size must be positive"),
        ({"min_pixels": 10**9}, "min_pixels 1000000000 is over max_pixels"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(directory, tmp_path, change, error):
    published = json.loads((directory / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(published | change))
    with pytest.raises(UserError, match=error):
        read_image_config(tmp_path)


@pytest.mark.parametrize(("content", "error"), [("{", "not readable JSON"), ("[]", "expected an object of settings")])
def test_broken_settings_are_named(tmp_path, content, error):
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(UserError, match=f"preprocessor_config.json: {error}"):
        read_image_config(tmp_path)


def test_patches_are_the_model_s(tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(to_hf_config(preset("qwen2_5_vl_3b")[0])))
    assert read_image_config(tmp_path) == ImageConfig()
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings | {"patch_size": 16}))
    with pytest.raises(UserError, match=r"preprocessor_config.json: patch_size is 16, in config.json 14"):
        read_image_config(tmp_path)


def test_a_batch_of_two_images_one_and_none(processor):
    conversations = [
        [{"role": "user", "content": [IMAGE, IMAGE, {"type": "text", "text": "Which is larger?"}]}],
        [{"role": "user", "content": [{"type": "text", "text": "Look: "}, IMAGE]}],
        [{"role": "system", "content": ""}, {"role": "user", "content": "Hello."}],
    ]
    images = [[picture(100, 60), picture(57, 300)], [picture(13, 9)], []]
    inputs = processor(conversations, images)
    assert inputs.grids.tolist() == [[1, 4, 8], [1, 22, 4], [1, 4, 6]]
    assert [p.shape for p in inputs.pixels] == [(14 * h, 14 * w, 3) for _, h, w in inputs.grids]
    assert all(p.dtype == np.uint8 for p in inputs.pixels)
    assert inputs.frames[1] == Frames(Frame(56, 308), Frame(57, 300))
    image_id = processor.chat.special["<|image_pad|>"]
    tokens = inputs.grids.prod(-1) // 4
    assert ((inputs.ids == image_id).sum(1) == [tokens[:2].sum(), tokens[2], 0]).all()  # placeholders = features
    assert inputs.mask[:, -1].all()  # the padding is on the left
    assert (np.diff(inputs.mask, axis=1) >= 0).all()
    assert (inputs.ids[inputs.mask == 0] == processor.pad_id).all()
    for row, messages, group in zip(range(3), conversations, (tokens[:2], tokens[2:], []), strict=True):
        assert inputs.ids[row][inputs.mask[row] == 1].tolist() == processor.chat.ids(messages, list(group))
    closed = processor(conversations[2:], [[]], generate=False)
    assert closed.grids.shape == (0, 3)
    assert inputs.ids[2].tolist()[-closed.ids.shape[1] - 3 :][: closed.ids.shape[1]] == closed.ids[0].tolist()


def test_one_list_of_images_for_each_conversation(processor):
    messages = [{"role": "user", "content": [IMAGE]}]
    with pytest.raises(UserError, match="1 conversations, but 2 lists of images"):
        processor([messages], [[picture(28, 28)], []])
    with pytest.raises(UserError, match="1 image blocks, but 2 images"):
        processor([messages], [[picture(28, 28)] * 2])


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_pixels_that_pillow_would_ruin_are_refused(processor, mode):
    with pytest.raises(UserError, match=f"pixel type '{mode}' is not supported"):
        processor.view(Image.new(mode, (40, 40)))


def test_broken_and_too_long_images_are_refused(processor, tmp_path):
    picture(300, 300).save(tmp_path / "whole.png")
    cut = Image.open(io.BytesIO((tmp_path / "whole.png").read_bytes()[:5000]))
    with pytest.raises(UserError, match="broken image data"):
        processor.view(cut)
    with pytest.raises(UserError, match="over 200 : 1"):
        processor.view(Image.new("L", (1, 201)))


def test_what_is_transparent_lies_on_white(processor):
    glass = Image.new("RGBA", (56, 56), (200, 0, 0, 0))
    assert (processor.view(glass) == 255).all()
    assert (processor.view(Image.new("RGBA", (56, 56), (200, 0, 0, 255))) == [200, 0, 0]).all()


@given(st.integers(30, 5000), st.integers(30, 5000), st.data())
def test_boxes_map_back(width, height, data):
    rows, columns = smart_resize(height, width, 28, 3136, 12_845_056)
    frames = Frames(Frame(columns, rows), Frame(width, height))
    corners = [data.draw(st.integers(0, limit)) for limit in (columns, rows, columns, rows)]
    box = Box(*corners, frames.view)
    there = box.to(frames.original)
    assert there.frame == frames.original
    assert there.to(frames.view).corners == pytest.approx(corners, rel=1e-12)
    assert [round(c) for c in there.to(frames.view).corners] == corners
    whole = Box(0, 0, columns, rows, frames.view).to(frames.original)
    assert whole.corners == pytest.approx((0, 0, width, height), rel=1e-12)


def test_pixel_values_are_the_patches_that_the_model_cuts(processor):
    view = processor.view(picture(300, 130))
    config = VisionConfig()
    grid = (view.shape[0] // 14, view.shape[1] // 14)
    layout = vision_layout([grid], config)
    ours = np.asarray(patchify(view[None], layout.positions_IP2, config))[0]  # in window order
    np.testing.assert_allclose(pixel_values(view, config)[layout.source_IP[0]], ours, atol=1e-6)
