"""Named model sizes with the episodes that go with them."""

from __future__ import annotations

import difflib

from zoomearth_jax.configs.episode import EpisodeConfig
from zoomearth_jax.configs.model import ModelConfig, TextConfig, VisionConfig
from zoomearth_jax.errors import UserError

_INSTRUCTION = (
    "Think first, inside <think> and </think>. If a closer look is needed, name one box as "
    '[{"bbox_2d": [x1, y1, x2, y2], "label": "..."}]; you will be shown it. '
    "Otherwise answer inside <answer> and </answer>."
)


def nano() -> tuple[ModelConfig, EpisodeConfig]:
    """Every mechanism of the big model at half a million parameters, for a laptop: 112 px views of 16 visual tokens."""
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
    return model, EpisodeConfig(view_px=112, min_window_px=112, prompt_len=48, stage1_len=20, stage2_len=12)


def qwen2_5_vl_3b() -> tuple[ModelConfig, EpisodeConfig]:
    """Qwen2.5-VL-3B-Instruct, the base of ZoomEarth-3B: 512 px views of 324 visual tokens (paper, Method)."""
    return ModelConfig(), EpisodeConfig(system="You are a helpful assistant.", instruction=_INSTRUCTION)


PRESETS = {"nano": nano, "qwen2_5_vl_3b": qwen2_5_vl_3b}


def preset(name: str) -> tuple[ModelConfig, EpisodeConfig]:
    """A preset by name; UserError with a suggestion for an unknown one."""
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(PRESETS)}"
        raise UserError(f"unknown preset {name!r}; {hint}")
    return PRESETS[name]()
