"""Live comparison of the processor with HF's (`make parity`)."""

import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="make parity installs torch")

from PIL import Image  # noqa: E402
from transformers import Qwen2_5_VLProcessor  # noqa: E402
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil  # noqa: E402

from tests.real_tokenizer import CHAT_TEMPLATE, write_tokenizer  # noqa: E402
from zoomearth_jax.data_pipeline.text.processor import ImageConfig, Processor  # noqa: E402
from zoomearth_jax.models.qwen2_5_vl.config import VisionConfig  # noqa: E402
from zoomearth_jax.models.qwen2_5_vl.vision import pixel_values  # noqa: E402

SIZES = ((28, 28), (1, 1), (3, 2), (57, 31), (640, 480), (333, 1001), (5, 1000), (29, 2900))
LIMITS = ((3136, 12845056), (3136, 100_000), (200_000, 400_000))
IMAGE = {"type": "image"}


def picture(size, mode):
    """Noise, with alpha noise where the mode has alpha, and a transparent colour in a palette."""
    width, height = size
    noise = np.random.default_rng(width * height).integers(0, 256, (height, width, 4), np.uint8)
    image = Image.fromarray(noise).convert(mode) if mode != "P" else Image.fromarray(noise).convert("RGB").quantize(16)
    if mode == "P":
        image.info["transparency"] = 3
    return image


class WithoutVideos(Qwen2_5_VLProcessor):
    """HF's processor, less the type check of its parts: that of the video processor needs torchvision."""

    def check_argument_for_proper_class(self, argument_name, argument):
        return type(argument)


def theirs(limits):
    return Qwen2VLImageProcessorPil(min_pixels=limits[0], max_pixels=limits[1])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("real"))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1", "CMYK"])
@pytest.mark.parametrize("limits", LIMITS)
def test_pictures_are_equal(tokenizer, mode, limits):
    processor = Processor(tokenizer, ImageConfig(*limits))
    plain = Qwen2VLImageProcessorPil(
        min_pixels=limits[0], max_pixels=limits[1], do_rescale=False, do_normalize=False, temporal_patch_size=1
    )
    for size in SIZES:
        image = picture(size, mode)
        out = plain(image, return_tensors="np")
        rows, columns = out["image_grid_thw"][0, 1:]
        blocks = out["pixel_values"].reshape(rows // 2, columns // 2, 2, 2, 3, 14, 14)
        want = blocks.transpose(0, 2, 5, 1, 3, 6, 4).reshape(rows * 14, columns * 14, 3)
        view = processor.view(image)
        assert view.dtype == np.uint8
        np.testing.assert_array_equal(view, want)


def test_pixel_values(tokenizer):
    worst = 0.0
    for limits in LIMITS:
        processor = Processor(tokenizer, ImageConfig(*limits))
        for size in SIZES[2:6]:
            image = picture(size, "RGB")
            want = theirs(limits)(image, return_tensors="np")["pixel_values"]
            got = np.asarray(pixel_values(processor.view(image), VisionConfig()))
            assert got.dtype == want.dtype == np.float32
            worst = max(worst, np.abs(got - want).max())
    assert worst < 1e-6


@pytest.mark.parametrize("default_system", [False, True])
def test_inputs_of_a_batch(tokenizer, default_system):
    system = [] if default_system else [{"role": "system", "content": "Look at the satellite image; answer briefly."}]
    text = {"type": "text", "text": "Which way do the stripes of site 12 run? <think>ça va 東京</think>"}
    conversations = [
        [*system, {"role": "user", "content": [IMAGE, IMAGE, text]}],
        [*system, {"role": "user", "content": [text, IMAGE]}, {"role": "assistant", "content": "Up."}],
        [*system, {"role": "user", "content": "Hello."}],
    ]
    images = [[picture((100, 60), "RGB"), picture((57, 300), "L")], [picture((333, 1001), "RGBA")], []]
    processor = Processor(tokenizer, ImageConfig())
    hf = WithoutVideos(theirs(LIMITS[0]), tokenizer, chat_template=CHAT_TEMPLATE)
    rendered = [hf.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in conversations]
    flat = [image for group in images for image in group]
    want = hf(text=rendered, images=flat, padding=True, padding_side="left", return_tensors="np")
    got = processor(conversations, images)
    np.testing.assert_array_equal(got.ids, want["input_ids"])
    np.testing.assert_array_equal(got.mask, want["attention_mask"])
    np.testing.assert_array_equal(got.grids, want["image_grid_thw"])
    ours = np.concatenate([pixel_values(view, VisionConfig()) for view in got.pixels])
    np.testing.assert_allclose(ours, want["pixel_values"], rtol=0, atol=1e-6)
