"""Model directories: what a published checkpoint lacks is filled in, what is broken is named."""

import json
import shutil

import pytest

from zoomearth_jax.errors import UserError
from zoomearth_jax.models.presets import preset
from zoomearth_jax.runs.checkpoints import write_run_header
from zoomearth_jax.runs.models import load_model, load_rows, resolve, save_model


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(resolve("nano"), tmp_path / "model")


def test_without_episode_json_the_published_layout_is_used(copy):
    (copy / "episode.json").unlink()
    assert load_rows(copy).episode == preset("qwen2_5_vl_3b")[1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("episode.json", "{", "episode.json: not readable JSON"),
        ("episode.json", '{"views": 3}', "unknown key 'views'"),
        ("episode.json", '{"view_px": 0}', "view_px must be positive"),
        ("tokenizer.json", "{", "no readable tokenizer"),
        ("generation_config.json", "{", "generation_config.json: not readable JSON"),
        ("generation_config.json", "[]", "generation_config.json: expected an object of settings, got list"),
        ("generation_config.json", '{"eos_token_id": 597}', r"eos_token_id \[597\] is not among the 597 ids"),
        ("generation_config.json", '{"eos_token_id": [2, "2"]}', "generation_config.json: eos_token_id"),
    ],
)
def test_broken_files_are_named(copy, name, content, message):
    (copy / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_rows(copy)


@pytest.mark.parametrize(("eos", "stops"), [(7, (2, 0, 7)), ([2, 9, 0, 7], (2, 0, 9, 7)), (0, (2, 0)), (None, (2, 0))])
def test_end_tokens_of_generation_config_stop_too_and_are_saved_again(copy, tmp_path, eos, stops):
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": eos, "top_k": 5}))
    model, rows = load_model(copy)
    assert (rows.stop_ids, rows.pad_id, rows.stop_id) == (stops, 0, 2)
    save_model(tmp_path / "saved", model, rows)
    write_run_header(tmp_path / "run", model, rows)
    for written in (tmp_path / "saved", tmp_path / "run"):
        saved = json.loads((written / "generation_config.json").read_text())
        assert saved == {"eos_token_id": list(stops), "top_k": 5, "pad_token_id": 0}
        assert load_rows(written).stop_ids == stops


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


def test_a_model_of_an_older_version_says_what_to_write(tmp_path):
    """Rows had two stages once; the line that it ends with, put into the file, loads."""
    copy = shutil.copytree(resolve("nano"), tmp_path / "old")
    saved = json.loads((copy / "episode.json").read_text())
    old = {key: value for key, value in saved.items() if key != "turn_lens"}
    (copy / "episode.json").write_text(json.dumps(old | {"stage1_len": 20, "stage2_len": 12, "merged_px": 28}))
    with pytest.raises(
        UserError, match=r'stage1_len and stage2_len are of an older version; put "turn_lens": \[20, 12\]'
    ):
        load_rows(copy)
    (copy / "episode.json").write_text(json.dumps(old | {"turn_lens": [20, 12]}))
    assert load_rows(copy).layout == load_rows(resolve("nano")).layout
