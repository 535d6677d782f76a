"""HF's processor and model on a model that we saved (`make parity`)."""

import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="make parity installs torch")
pytest.importorskip(
    "torchvision", reason="AutoProcessor of transformers 4.57 and 5 makes a video processor, which needs torchvision"
)

from PIL import Image  # noqa: E402
from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: E402

from zoomearth_jax.data_pipeline.images.sources import RawImage  # noqa: E402
from zoomearth_jax.data_pipeline.questions.question import Question  # noqa: E402
from zoomearth_jax.models.qwen2_5_vl.vision import pixel_values  # noqa: E402
from zoomearth_jax.runs.models import save_model  # noqa: E402


def test_processor_and_model_of_a_saved_folder(nano, tmp_path):
    text = "Which way do the stripes of the red site run?"
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8))
    picture.save(tmp_path / "picture.png")
    save_model(tmp_path / "saved", nano.model, nano.rows)
    processor = AutoProcessor.from_pretrained(tmp_path / "saved")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved").float()
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    rendered = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[rendered], images=[picture], return_tensors="pt")
    view = nano.rows.overview(Question(RawImage(tmp_path / "picture.png"), text, answer="", level="global"))
    assert inputs["input_ids"][0].tolist() == nano.rows.prompt_ids(text, 16)
    ours = np.asarray(pixel_values(view, nano.model.config.vision))
    assert np.abs(inputs["pixel_values"].numpy() - ours).mean() < 0.02  # torchvision's resizing rounds otherwise
    assert model.generate(**inputs, max_new_tokens=4, do_sample=False).shape[1] > inputs["input_ids"].shape[1]
