"""Saved and exported models hold what HF's AutoTokenizer and AutoProcessor read, in the forms of 4.x and 5.x."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer

from tests.real_tokenizer import write_tokenizer
from zoomearth_jax.bench.random_checkpoint import write_random_checkpoint
from zoomearth_jax.checkpoint import write_run_header
from zoomearth_jax.configs.episode import EpisodeConfig
from zoomearth_jax.configs.model import TextConfig, VisionConfig
from zoomearth_jax.configs.presets import preset
from zoomearth_jax.convert import ConvertConfig, convert
from zoomearth_jax.data_pipeline.boxes import view_size
from zoomearth_jax.data_pipeline.images import RawImage
from zoomearth_jax.data_pipeline.processor import read_image_config, smart_resize
from zoomearth_jax.data_pipeline.questions import Question
from zoomearth_jax.data_pipeline.side_files import complete, read_processors, view_images
from zoomearth_jax.model_io import load_model, load_rows, resolve, save_model
from zoomearth_jax.models.vision import pixel_values

NANO = resolve("nano")
TEXT = "Which way do the stripes of the red site run? 東 12"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    directory = tmp_path_factory.mktemp("published")
    vision = VisionConfig(depth=2, width=32, num_heads=2, mlp_dim=48, out_dim=32, full_attention_blocks=(1,))
    text = TextConfig(width=32, num_layers=2, num_heads=2, num_kv_heads=1, mlp_dim=48, mrope_section=(2, 3, 3))
    config = dataclasses.replace(preset("qwen2_5_vl_3b")[0], vision=vision, text=text)
    write_random_checkpoint(directory, config)
    write_tokenizer(directory, config.bos_id)
    return directory


@pytest.fixture(scope="module", params=["nano", "published"])
def chain(request, tmp_path_factory, published):
    """Folders of a model's life: its source, a run's header, a model saved, saved again from there, and converted."""
    source, tmp_path = NANO if request.param == "nano" else published, tmp_path_factory.mktemp("chain")
    model, rows = load_model(source)
    write_run_header(tmp_path / "run", model, rows)
    save_model(tmp_path / "saved", model, rows)
    again = load_model(tmp_path / "saved")
    save_model(tmp_path / "again", again.model, again.rows)
    convert(ConvertConfig(tmp_path / "again", tmp_path / "converted", dtype="bfloat16"))
    return rows, [tmp_path / name for name in ("run", "saved", "again", "converted")]


def test_hf_reads_the_same_ids_and_pictures_as_our_rows(chain, tmp_path):
    rows, folders = chain
    picture = np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    question = Question(RawImage(tmp_path / "picture.png"), TEXT, answer="", level="global")
    view = rows.overview(question)
    patches = np.asarray(pixel_values(view, VisionConfig()))
    prompt = rows.prompt_ids(TEXT, view.shape[0] * view.shape[1] // 784)
    for folder in folders:
        tokenizer, images = AutoTokenizer.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
        theirs = images(Image.fromarray(picture), return_tensors="np")
        assert theirs["image_grid_thw"].tolist() == [[1, view.shape[0] // 14, view.shape[1] // 14]], folder
        assert np.abs(theirs["pixel_values"] - patches).mean() < 0.02, (
            folder
        )  # the order of columns and rows may differ
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": TEXT}]}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        pad = "<|image_pad|>"
        text = text.replace(pad, pad * (int(theirs["image_grid_thw"].prod()) // 4))
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == prompt, folder
        assert AutoConfig.from_pretrained(folder).model_type == "qwen2_5_vl"


def test_nothing_that_transformers_4_does_not_know(chain):
    _, folders = chain
    for folder in [*folders, NANO, resolve("nano-grpo")]:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        assert settings["tokenizer_class"] in ("PreTrainedTokenizerFast", "Qwen2Tokenizer")
        assert not {"backend", "is_local", "local_files_only", "extra_special_tokens"} & settings.keys()
        images = json.loads((folder / "preprocessor_config.json").read_text())
        assert (images["image_processor_type"], images["processor_class"]) == (
            "Qwen2VLImageProcessor",
            "Qwen2_5_VLProcessor",
        )
        assert {"min_pixels", "max_pixels", "image_mean", "image_std", "patch_size", "merge_size"} <= images.keys()


@example(19, 56)
@example(38, 512)
@given(st.integers(1, 20_000), st.sampled_from([56, 112, 280, 448, 512, 784, 1024]))
def test_square_images_get_the_size_of_our_overview(side, view_px):
    episode = EpisodeConfig(view_px=view_px, prompt_len=4096)
    limits = view_images(episode, {})
    ours = view_size(side, side, view_px, 28)
    theirs = smart_resize(side, side, 28, limits["min_pixels"], limits["max_pixels"])
    assert theirs == (ours.height, ours.width)


def test_settings_of_the_source_are_kept_and_areas_are_of_training(published, tmp_path):
    source = shutil.copytree(published, tmp_path / "source")
    images = json.loads((source / "preprocessor_config.json").read_text())
    (source / "preprocessor_config.json").write_text(json.dumps(images | {"note": "kept"}))
    (source / "video_preprocessor_config.json").write_text(json.dumps({"fps": 2}))
    model, rows = load_model(source)
    write_run_header(tmp_path / "run", model, rows)
    kept = read_processors(tmp_path / "run")
    assert kept["preprocessor_config.json"]["note"] == "kept"
    assert kept["video_preprocessor_config.json"] == {"fps": 2}
    assert read_image_config(tmp_path / "run").max_pixels == 325 * 784 - 1
    convert(ConvertConfig(source, tmp_path / "plain"))  # without training nothing changes
    assert (tmp_path / "plain/preprocessor_config.json").read_bytes() == (
        source / "preprocessor_config.json"
    ).read_bytes()


def test_forms_of_transformers_5_become_the_published_ones(tmp_path):
    copy = Path(shutil.copytree(NANO, tmp_path / "model"))
    (copy / "preprocessor_config.json").unlink()
    nested = {
        "size": {"shortest_edge": 3136, "longest_edge": 99999},
        "image_processor_type": "Qwen2VLImageProcessorPil",
    }
    (copy / "processor_config.json").write_text(json.dumps({"image_processor": nested, "video_processor": {"fps": 2}}))
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    five = {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "extra_special_tokens": ["<|im_start|>"]}
    (copy / "tokenizer_config.json").write_text(json.dumps(settings | five))
    complete(copy)
    assert not (copy / "processor_config.json").exists()
    assert read_processors(copy)["preprocessor_config.json"]["max_pixels"] == 99999
    assert read_processors(copy)["video_preprocessor_config.json"] == {"fps": 2}
    after = json.loads((copy / "tokenizer_config.json").read_text())
    assert after == settings | {"additional_special_tokens": ["<|im_start|>"]}
    load_rows(copy)
