"""Named model sizes with the episodes that go with them."""

from __future__ import annotations

import dataclasses

from zoomearth_jax.configs.episode import EpisodeConfig
from zoomearth_jax.errors import UserError, suggestion
from zoomearth_jax.models.qwen2_5_vl.config import ModelConfig, TextConfig, VisionConfig

_INSTRUCTION = (
    "Think first, inside <think> and </think>. If a closer look is needed, name one box as "
    '[{"bbox_2d": [x1, y1, x2, y2], "label": "..."}]; you will be shown it. '
    "Otherwise answer inside <answer> and </answer>."
)


def nano() -> tuple[ModelConfig, EpisodeConfig]:
    """The nano model: every part of the big one at half a million parameters, for a laptop: 112 px views of 16 visual tokens."""
    model = ModelConfig(
        vision=VisionConfig(
            depth=2, width=64, num_heads=4, mlp_dim=128, out_dim=96, window_px=56, full_attention_blocks=(1,)
        ),
        text=TextConfig(
            vocab_size=597, width=96, num_layers=3, num_heads=4, num_kv_heads=2, mlp_dim=192, mrope_section=(4, 4, 4)
        ),
        bos_id=0,
        eos_id=2,
        vision_start_id=3,
        vision_end_id=4,
        image_token_id=5,
        video_token_id=6,
    )
    return model, EpisodeConfig(view_px=112, min_window_px=112, prompt_len=48, turn_lens=(20, 12))


def nano_nested() -> tuple[ModelConfig, EpisodeConfig]:
    """The nano model for nested scenes: two looks, the second inside the first one's picture . Windows are of at least an
    eighth of a scene's side, and inside a picture of a 64th (`scenes.py` has the stripes that go with them)."""
    model, episode = nano()
    model = dataclasses.replace(model, text=dataclasses.replace(model.text, vocab_size=600))
    return model, dataclasses.replace(
        episode, min_window_px=1024, inner_window_px=128, prompt_len=52, turn_lens=(20, 20, 12)
    )


def _published(text: TextConfig, vision_mlp_dim: int) -> tuple[ModelConfig, EpisodeConfig]:
    """The published sizes share the vision encoder, but for its MLP, and the episode of 512 px views (paper, Method)."""
    vision = VisionConfig(mlp_dim=vision_mlp_dim, out_dim=text.width)
    episode = EpisodeConfig(system="You are a helpful assistant.", instruction=_INSTRUCTION)
    return ModelConfig(vision=vision, text=text), episode


def qwen2_5_vl_3b() -> tuple[ModelConfig, EpisodeConfig]:
    """Qwen2.5-VL-3B-Instruct, the base of ZoomEarth-3B: 3.75 B parameters."""
    return _published(TextConfig(), 3420)


def qwen2_5_vl_7b() -> tuple[ModelConfig, EpisodeConfig]:
    """Qwen2.5-VL-7B-Instruct: 8.29 B parameters."""
    text = TextConfig(
        vocab_size=152064,
        width=3584,
        num_layers=28,
        num_heads=28,
        num_kv_heads=4,
        mlp_dim=18944,
        tie_embeddings=False,
    )
    return _published(text, 3420)


def qwen2_5_vl_32b() -> tuple[ModelConfig, EpisodeConfig]:
    """Qwen2.5-VL-32B-Instruct: 33.5 B parameters."""
    text = TextConfig(
        vocab_size=152064,
        width=5120,
        num_layers=64,
        num_heads=40,
        num_kv_heads=8,
        mlp_dim=27648,
        tie_embeddings=False,
    )
    return _published(text, 3456)


def qwen2_5_vl_72b() -> tuple[ModelConfig, EpisodeConfig]:
    """Qwen2.5-VL-72B-Instruct: 73.4 B parameters."""
    text = TextConfig(
        vocab_size=152064,
        width=8192,
        num_layers=80,
        num_heads=64,
        num_kv_heads=8,
        mlp_dim=29568,
        tie_embeddings=False,
    )
    return _published(text, 3456)


PRESETS = {f.__name__: f for f in (nano, nano_nested, qwen2_5_vl_3b, qwen2_5_vl_7b, qwen2_5_vl_32b, qwen2_5_vl_72b)}


def preset(name: str) -> tuple[ModelConfig, EpisodeConfig]:
    """A preset by name; UserError with a suggestion for an unknown one."""
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; {suggestion(name, PRESETS)}")
    return PRESETS[name]()
