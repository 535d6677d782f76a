"""A directory as Qwen2.5-VL's authors publish them (shards, index, tokenizer, chat template, settings), with tiny widths."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from tests.real_tokenizer import write_tokenizer
from zoomearth_jax.bench.random_checkpoint import write_random_checkpoint
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.data_pipeline.text.processor import Processor
from zoomearth_jax.errors import UserError
from zoomearth_jax.models.presets import preset
from zoomearth_jax.models.qwen2_5_vl.config import TextConfig, VisionConfig
from zoomearth_jax.models.qwen2_5_vl.vision import pixel_values
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.runs.models import load_model
from zoomearth_jax.verbs.convert import ConvertConfig, convert

IMAGE_PAD, IM_END, END_OF_TEXT = 151655, 151645, 151643  # the published ids


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    directory = tmp_path_factory.mktemp("Qwen2.5-VL-tiny")
    vision = VisionConfig(depth=2, width=32, num_heads=2, mlp_dim=48, out_dim=32, full_attention_blocks=(1,))
    text = TextConfig(width=32, num_layers=2, num_heads=2, num_kv_heads=1, mlp_dim=48, mrope_section=(2, 3, 3))
    config = dataclasses.replace(preset("qwen2_5_vl_3b")[0], vision=vision, text=text)
    write_random_checkpoint(directory, config, shard_bytes=2**21)
    write_tokenizer(directory, config.bos_id)
    return directory


def test_it_loads_with_the_papers_episode_and_its_own_end_tokens(published):
    model, rows = load_model(published)
    assert len(list(published.glob("model-*.safetensors"))) > 1
    assert rows.episode == preset("qwen2_5_vl_3b")[1]
    assert set(rows.stop_ids) == {IM_END, END_OF_TEXT}
    assert rows.image_id == model.config.image_token_id == IMAGE_PAD


def test_an_episode_runs(published):
    model, rows = load_model(published)
    rows = rows.replaced(turn_lens=(8, 8))
    played = RolloutEngine(model, rows)(
        nnx.state(model, nnx.Param), scene_questions("test", 0, 0, 1, 0.0), jax.random.key(0)
    )
    assert (played.prompts.ids == IMAGE_PAD).sum() == 324  # 504 x 504 px
    assert played.overview_features.shape[1] == 324
    assert played.replies.target[0, :8].sum() > 0
    assert isinstance(played.episodes[0].texts[0], str)


def test_processor_and_model_agree_on_placeholders(published):
    model, _ = load_model(published)
    processor = Processor.from_pretrained(published)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8))
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    inputs = processor([messages, messages], [[image], [image.resize((60, 60))]])
    pixels = np.concatenate([pixel_values(view, model.config.vision) for view in inputs.pixels])
    logits = np.asarray(model(inputs.ids, pixels, inputs.grids, inputs.mask))
    assert logits.shape == (*inputs.ids.shape, model.config.text.vocab_size)
    assert np.isfinite(logits[inputs.mask > 0]).all()


def test_conversion_keeps_what_lies_beside_the_weights(published, tmp_path):
    convert(ConvertConfig(published, tmp_path / "orbax", to="orbax"))
    convert(ConvertConfig(tmp_path / "orbax", tmp_path / "hf", dtype="float32"))
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.json", "preprocessor_config.json")
    for name in (*names, "generation_config.json"):
        assert (tmp_path / "hf" / name).read_bytes() == (published / name).read_bytes(), name
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["torch_dtype"] == "float32"
    load_model(tmp_path / "hf")


def test_a_tokenizer_of_other_ids_is_refused(published, tmp_path):
    convert(ConvertConfig(published, tmp_path / "other"))
    write_tokenizer(tmp_path / "other")
    with pytest.raises(UserError, match=r"<\|image_pad\|> is \d+ in the tokenizer, 151655 in config\.json"):
        load_model(tmp_path / "other")
