"""Configs: presets agree with transformers, unknown keys are refused."""

import dataclasses
from pathlib import Path

import jax
import pytest
from transformers import Qwen2_5_VLConfig

import zoomearth_jax
from zoomearth_jax.configs.episode import EpisodeConfig
from zoomearth_jax.configs.io import from_dict, read_yaml, to_dict, write_yaml
from zoomearth_jax.configs.objective import ObjectiveConfig
from zoomearth_jax.configs.optimizer import OptimizerConfig
from zoomearth_jax.configs.reward import RewardSpec
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.configs.training import GRPOConfig, SFTConfig
from zoomearth_jax.errors import UserError
from zoomearth_jax.models.families import abstract_model
from zoomearth_jax.models.presets import PRESETS, preset
from zoomearth_jax.models.qwen2_5_vl.config import TextConfig, from_hf_config, to_hf_config


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_hf_config_both_ways(name):
    config, _ = preset(name)
    assert from_hf_config(to_hf_config(config)) == config
    through_transformers = Qwen2_5_VLConfig(**to_hf_config(config)).to_dict()  # the nested form of 5.x
    assert "text_config" in through_transformers
    assert from_hf_config(through_transformers) == config


# what tells the published sizes apart: text width, MLP, layers, heads, key-value heads, vocabulary; vision MLP; parameters
PUBLISHED = {
    "3b": (2048, 11008, 36, 16, 2, 151936, 3420, 3_754_622_976),
    "7b": (3584, 18944, 28, 28, 4, 152064, 3420, 8_292_166_656),
    "32b": (5120, 27648, 64, 40, 8, 152064, 3456, 33_452_718_336),
    "72b": (8192, 29568, 80, 64, 8, 152064, 3456, 73_410_777_344),
}


def published_config(size: str) -> dict:
    """A config.json as it was published, by transformers 4.41."""
    width, mlp, layers, heads, kv_heads, vocab, vision_mlp, _ = PUBLISHED[size]
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "hidden_act": "silu",
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": mlp,
        "max_position_embeddings": 128000,
        "max_window_layers": 70,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": size == "3b",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 32,
            "hidden_act": "silu",
            "hidden_size": 1280,
            "intermediate_size": vision_mlp,
            "num_heads": 16,
            "in_chans": 3,
            "out_hidden_size": width,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vocab_size": vocab,
    }


@pytest.mark.parametrize("size", PUBLISHED)
def test_presets_are_the_published_models(size):
    config, raw = preset(f"qwen2_5_vl_{size}")[0], published_config(size)
    assert from_hf_config(raw) == config
    assert sum(x.size for x in jax.tree.leaves(abstract_model(config))) == PUBLISHED[size][-1]
    ids = {"bos_token_id", "eos_token_id", "tie_word_embeddings", "model_type"}
    text = {
        key: raw[key] if key in ids else raw.pop(key) for key in [*raw] if "vision" not in key and "image" not in key
    }
    text["rope_scaling"] |= {"type": "default", "rope_type": "default"}  # transformers 4.5x: the text's part apart
    text |= {"sliding_window": None, "layer_types": ["full_attention"] * config.text.num_layers}
    assert from_hf_config({**raw, "text_config": text}) == config
    assert from_hf_config(Qwen2_5_VLConfig(**published_config(size)).to_dict()) == config  # 5.x


RUNS = Path(zoomearth_jax.__file__).parent / "configs" / "recipes"


def test_the_paper_s_runs():
    """Hyper-parameters of paper and release; 1,011 rows three times, 2,500 questions once."""
    sft, grpo = read_yaml(RUNS / "sft_paper.yaml", SFTConfig), read_yaml(RUNS / "grpo_paper.yaml", GRPOConfig)
    schedule = sft.optimizer
    assert (schedule.lr, schedule.warmup, schedule.weight_decay, schedule.clip_norm) == (3e-5, 500, 0.01, 1.0)
    assert (sft.steps - 1) * sft.batch_size < 3 * 1011 <= sft.steps * sft.batch_size
    assert (grpo.optimizer.lr, grpo.group, grpo.temperature) == (1e-7, 4, 0.7)
    assert grpo.objective == ObjectiveConfig(clip_low=0.2, clip_high=0.2, kl_weight=0.04, kl="k3", kl_in="loss")
    assert (grpo.steps - 1) * grpo.prompts < 2500 <= grpo.steps * grpo.prompts
    assert grpo.reward == RewardSpec(answer_match="wordnet")
    assert grpo.model == str(sft.out)
    assert {sft.compute.param_dtype, grpo.compute.param_dtype} == {"bfloat16"}
    tuned = (read_yaml(RUNS / f"{verb}_tuned.yaml", kind) for verb, kind in (("sft", SFTConfig), ("grpo", GRPOConfig)))
    assert {config.compute.param_dtype for config in tuned} == {"float32"}


def test_3b_episode_has_324_tokens_a_view():
    config, episode = preset("qwen2_5_vl_3b")
    assert episode.layout(config.vision.merged_px).view_tokens == 324
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(abstract_model(config)))


def test_unknown_preset_and_key_suggest():
    with pytest.raises(UserError, match="did you mean 'nano'"):
        preset("nanno")
    with pytest.raises(UserError, match="unknown key 'lrr'; did you mean 'lr'"):
        from_dict(OptimizerConfig, {"lrr": 1.0}, "x.yaml")
    with pytest.raises(UserError, match="steps: expected int, got 'many'"):
        from_dict(SFTConfig, {"steps": "many"}, "x.yaml")


def test_yaml_round_trip(tmp_path):
    config = GRPOConfig(steps=7, reward=RewardSpec(region_alpha=3.0), out=Path("somewhere"))
    write_yaml(tmp_path / "run.yaml", config)
    assert read_yaml(tmp_path / "run.yaml", GRPOConfig) == config
    assert to_dict(config)["reward"]["region_alpha"] == 3.0
    with pytest.raises(UserError, match="no such file"):
        read_yaml(tmp_path / "none.yaml", GRPOConfig)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: dataclasses.replace(preset("nano")[0], text=TextConfig(num_heads=3)), "num_heads"),
        (
            lambda: EpisodeConfig(view_px=512, prompt_len=300).layout(28),
            r"exceed the 324 tokens .* --layout.prompt-len 452",
        ),
        (lambda: GRPOConfig(group=1), "group must be at least 2"),
        (lambda: GRPOConfig(minibatches=0), "minibatches"),
        (lambda: ObjectiveConfig(advantage="median"), "advantage must be std or std_trl or mean or rloo, not 'median'"),
        (lambda: ObjectiveConfig(clip_low=0.0), "clip_low"),
        (lambda: ObjectiveConfig(clip_high=float("nan")), "clip_high must be finite"),
        (lambda: ObjectiveConfig(dual_clip=1.0), "dual_clip must be above 1"),
        (lambda: ObjectiveConfig(kl_weight=-0.1), "kl_weight"),
        (lambda: ObjectiveConfig(entropy_weight=-1.0), "entropy_weight"),
        (lambda: ObjectiveConfig(importance_cap=-1.0), "importance_cap"),
        (lambda: ObjectiveConfig(max_tokens=-1), "max_tokens"),
        (lambda: ObjectiveConfig(mask="reference", importance_cap=2.0), "nobody sampled"),
        (lambda: ObjectiveConfig(mask="reference", distill_weight=1.0), "nobody sampled"),
        (lambda: ObjectiveConfig(loss="sapo", clip_high=0.28), "go with loss clip"),
        (lambda: ObjectiveConfig(loss="cispo", dual_clip=3.0), "go with loss clip"),
        (lambda: ObjectiveConfig(cispo_max=0.5), "cispo_max"),
        (lambda: ObjectiveConfig(sapo_temperature_neg=0.0), "sapo_temperature"),
        (lambda: ObjectiveConfig(importance_mode="sequence_mask"), "sequence_mask needs importance_cap"),
        (lambda: ObjectiveConfig(distill_weight=-1.0), "distill_weight"),
        (lambda: ObjectiveConfig(distill_decay=1.0), "distill_decay"),
        (lambda: ObjectiveConfig(distill_clip=0.0), "distill_clip"),
        (lambda: RewardSpec(region_unit="miles"), "region_unit"),
        (lambda: OptimizerConfig(lr=-1.0), "optimizer config"),
        (lambda: SamplingConfig(temperature=-1.0), "temperature must be 0 or at least"),
        (lambda: SamplingConfig(temperature=float("nan")), "temperature must be"),
        (lambda: SamplingConfig(top_k=-1), "top_k"),
        (lambda: SamplingConfig(top_p=0.0), "top_p"),
        (lambda: SamplingConfig(top_p=1.1), "top_p"),
        (lambda: SamplingConfig(repetition_penalty=0.0), "repetition_penalty must be positive"),
    ],
)
def test_impossible_settings_are_refused(build, message):
    with pytest.raises(UserError, match=message):
        build()
