"""Model directories: what a published checkpoint lacks is filled in, what is broken is named."""

import json
import shutil

import pytest

from zoomearth_jax.configs.presets import preset
from zoomearth_jax.errors import UserError
from zoomearth_jax.model_io import load_model, load_rows, resolve


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(resolve("nano"), tmp_path / "model")


def test_without_episode_json_the_published_layout_is_used(copy):
    (copy / "episode.json").unlink()
    assert load_rows(copy).episode == preset("qwen2_5_vl_3b")[1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("episode.json", "{", "no readable tokenizer or episode.json"),
        ("episode.json", '{"view": 3}', "unknown key 'view'"),
        ("episode.json", '{"view_px": 0}', "view_px must be positive"),
        ("tokenizer.json", "{", "no readable tokenizer"),
    ],
)
def test_broken_files_are_named(copy, name, content, message):
    (copy / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_rows(copy)


def test_a_tokenizer_of_another_model_is_refused(copy):
    raw = json.loads((copy / "tokenizer.json").read_text())
    raw["model"]["vocab"].append(["another piece", -1.0])
    (copy / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match="the tokenizer has 598 ids, the model 597"):
        load_model(copy)


def test_a_tokenizer_without_the_special_tokens_is_refused(copy):
    text = (copy / "tokenizer.json").read_text().replace("<|image_pad|>", "<|other_pad|>")
    (copy / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=r"no <\|image_pad\|>"):
        load_rows(copy)
