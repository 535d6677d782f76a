"""Sizes of a Qwen2.5-VL model, and their translation from and to HF's `config.json` (transformers 4.x and 5.x forms)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from zoomearth_jax.errors import UserError
from zoomearth_jax.models.family import Images
from zoomearth_jax.models.qwen2_5_vl.patches import num_windows, vision_layout
from zoomearth_jax.models.rope import VISION_ROPE_THETA

_MOST_LAYERS, _LARGEST = 4096, 2**24  # beyond these a config.json is broken; nothing is allocated by it


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision encoder: patches of `patch_size` px, windows of `window_px`, one token per merge_size x merge_size."""

    depth: int = 32
    width: int = 1280
    num_heads: int = 16
    mlp_dim: int = 3420
    out_dim: int = 2048
    patch_size: int = 14
    temporal_patch_size: int = 2
    in_channels: int = 3
    merge_size: int = 2
    window_px: int = 112
    full_attention_blocks: tuple[int, ...] = (7, 15, 23, 31)

    @property
    def patch_dim(self) -> int:
        """Values per flattened patch: channels x frames x patch x patch."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merged_px(self) -> int:
        """Side in px of the square that one merged visual token covers (28 for Qwen2.5-VL)."""
        return self.patch_size * self.merge_size

    @property
    def window_merged(self) -> int:
        """Side of an attention window in merged tokens (4 for Qwen2.5-VL)."""
        return self.window_px // self.merged_px

    def flops(self, grids) -> float:
        """FLOPs of a forward pass over pictures with these grids (rows and columns) of visual tokens [I, 2].

        With the encoder's width w: 2 (4 w^2 + 3 w F) per block and patch; 4 w per pair of attention, inside windows or over
        the whole picture; 2 x patch_dim x w to embed a patch; 2 (4 w) (4 w + D) for a merged token.
        """
        grids = np.asarray(grids, np.int64).reshape(-1, 2)
        area = self.merge_size**2
        tokens_I = grids.prod(-1)
        patches, width, window = area * int(tokens_I.sum()), self.width, self.window_merged
        full_blocks = len(set(self.full_attention_blocks) & set(range(self.depth)))
        full_pairs = int(((area * tokens_I) ** 2).sum())
        # along each side the windows' squared lengths; the last one may be cut
        squares_I2 = grids // window * window**2 + (grids % window) ** 2
        window_pairs = area**2 * int(squares_I2.prod(-1).sum())
        block = patches * 2 * (4 * width**2 + 3 * width * self.mlp_dim)
        attention = 4 * width * (full_blocks * full_pairs + (self.depth - full_blocks) * window_pairs)
        merged_width = width * area
        merger = int(tokens_I.sum()) * 2 * merged_width * (merged_width + self.out_dim)
        return float(patches * 2 * self.patch_dim * width + self.depth * block + attention + merger)


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The decoder: grouped-query attention, SwiGLU MLP, multimodal rotary positions."""

    vocab_size: int = 151936
    width: int = 2048
    num_layers: int = 36
    num_heads: int = 16
    num_kv_heads: int = 2
    mlp_dim: int = 11008
    rope_theta: float = 1e6
    mrope_section: tuple[int, int, int] = (16, 24, 24)
    norm_eps: float = 1e-6
    tie_embeddings: bool = True

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.width // self.num_heads


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A whole Qwen2.5-VL and the ids of its special tokens; see `models.family.Sizes`."""

    family: ClassVar[str] = "qwen2_5_vl"
    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_id: int = 151652
    vision_end_id: int = 151653
    bos_id: int = 151643
    eos_id: int = 151645

    def __post_init__(self):
        vision, text = self.vision, self.text
        for name, part in (("vision.", vision), ("text.", text), ("", self)):
            _check_numbers(name, part)
        checks = [
            (text.width % text.num_heads == 0, "text.width must be a multiple of text.num_heads"),
            (text.num_heads % text.num_kv_heads == 0, "text.num_heads must be a multiple of text.num_kv_heads"),
            (2 * sum(text.mrope_section) == text.head_dim, "text.mrope_section must sum to half the head width"),
            (vision.width % (4 * vision.num_heads) == 0, "vision.width must be a multiple of 4 x vision.num_heads"),
            (
                vision.window_px % vision.merged_px == 0,
                "vision.window_px must be a multiple of patch_size x merge_size",
            ),
            (vision.out_dim == text.width, "vision.out_dim must equal text.width"),
            (len(text.mrope_section) == 3, "text.mrope_section must have three numbers"),
        ]
        for ok, message in checks:
            if not ok:
                raise UserError(f"model config: {message}")

    @property
    def merged_px(self) -> int:
        """Side in px of the square that one visual token covers."""
        return self.vision.merged_px

    @property
    def width(self) -> int:
        """Width of the decoder's states and of visual tokens."""
        return self.text.width

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table."""
        return self.text.vocab_size

    @property
    def placed_ids(self) -> tuple[int, ...]:
        """Ids around and in place of pictures."""
        return self.vision_start_id, self.vision_end_id, self.image_token_id, self.video_token_id

    def prepare(self, pixels: np.ndarray, grids: np.ndarray) -> Images:
        """Pictures with the layout of their patches, padded to the canvas.

        Args:
            pixels: uint8 [I, side, side, 3]. grids: visual tokens, int [I, 2].
        """
        side, vision = pixels.shape[1], self.vision
        budget = (side // vision.patch_size) ** 2
        layout = vision_layout(grids * vision.merge_size, vision, budget, num_windows(side, vision))
        return Images(pixels, layout, grids[:, None])

    def vision_flops(self, grids: np.ndarray) -> float:
        """See `VisionConfig.flops`."""
        return self.vision.flops(grids)

    @property
    def token_flops(self) -> int:
        """FLOPs of the decoder's layers for one token: per layer 2 D (2 D + 2 K H) + 6 D F; attention's pairs are left out."""
        text = self.text
        kv_width = text.num_kv_heads * text.head_dim
        per_layer = 2 * text.width * (2 * text.width + 2 * kv_width) + 6 * text.width * text.mlp_dim
        return text.num_layers * per_layer

    @property
    def pair_flops(self) -> int:
        """FLOPs of attention for one (query, key) pair: 4 D per layer."""
        return self.text.num_layers * 4 * self.text.width

    def cache_shape(self, rows: int, slots: int) -> tuple[int, ...]:
        """Shape [L, B, K, S, H] of a cache's keys, and of its values."""
        text = self.text
        return text.num_layers, rows, text.num_kv_heads, slots, text.head_dim

    @property
    def branch_shares(self) -> dict[int, float]:
        """The share of the vision encoder's blocks that attend to the whole picture, by the number of blocks."""
        return {self.vision.depth: len(set(self.vision.full_attention_blocks)) / self.vision.depth}


def _check_numbers(prefix: str, part) -> None:
    """Refuses fields that are not numbers of their kind and of a size that a model can have."""
    for field in dataclasses.fields(part):
        value, where = getattr(part, field.name), f"model config: {prefix}{field.name}"
        numbers = value if field.type.startswith("tuple") else (value,)
        if not isinstance(numbers, tuple):
            raise UserError(f"{where} must be a list, not {value!r:.40}")
        for number in numbers:
            if field.type == "float":
                if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < 1e30:
                    raise UserError(f"{where} must be a positive number, not {number!r:.40}")
            elif "int" in field.type:
                lowest = 0 if field.name.endswith("_id") or field.type.startswith("tuple") else 1
                highest = _MOST_LAYERS if field.name in ("depth", "num_layers") else _LARGEST
                if type(number) is not int or not lowest <= number <= highest:
                    raise UserError(f"{where} must be an integer from {lowest} to {highest}, not {number!r:.40}")


# our field -> HF's key, inside `vision_config` / the text part
_VISION_KEYS = {
    "depth": "depth",
    "width": "hidden_size",
    "num_heads": "num_heads",
    "mlp_dim": "intermediate_size",
    "out_dim": "out_hidden_size",
    "patch_size": "patch_size",
    "temporal_patch_size": "temporal_patch_size",
    "in_channels": "in_channels",
    "merge_size": "spatial_merge_size",
    "window_px": "window_size",
    "full_attention_blocks": "fullatt_block_indexes",
}
_TEXT_KEYS = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "mlp_dim": "intermediate_size",
    "norm_eps": "rms_norm_eps",
}
_ID_KEYS = {
    "image_token_id": "image_token_id",
    "video_token_id": "video_token_id",
    "vision_start_id": "vision_start_token_id",
    "vision_end_id": "vision_end_token_id",
}


def _take(source: dict[str, Any], keys: dict[str, str], where: str, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    missing = [hf for ours, hf in keys.items() if hf not in source and ours not in optional]
    if missing:
        raise UserError(f"{where}: missing {', '.join(missing)}; is this a Qwen2.5-VL config.json?")
    taken = {ours: source[hf] for ours, hf in keys.items() if hf in source}
    return {ours: tuple(value) if isinstance(value, list) else value for ours, value in taken.items()}


def _part(raw: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    """An object inside HF's dict; empty where there is none."""
    part = raw.get(key) or {}
    if not isinstance(part, dict):
        raise UserError(f"{where}: {key} must be an object, not {part!r:.40}")
    return part


def from_hf_config(raw: dict[str, Any], where: str = "config.json") -> ModelConfig:
    """Reads HF's dict, flat (transformers 4.x) or nested (5.x).

    Args:
        raw: the parsed `config.json`.
        where: the file's name, for messages.

    Raises:
        UserError: another architecture, a missing key, or a feature that the port does not represent (rope scaling,
            sliding windows, other activations), which would otherwise run with silently different numbers.
    """
    if raw.get("model_type") != "qwen2_5_vl":
        raise UserError(f"{where}: model_type is {raw.get('model_type')!r}, expected 'qwen2_5_vl'")
    text = _part(raw, "text_config", where) or raw
    vision = _part(raw, "vision_config", where)
    rope = _part(text, "rope_parameters", where) or _part(text, "rope_scaling", where)
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ("default", "mrope"):
        raise UserError(f"{where}: rope scaling {rope_type!r} is not supported")
    if "mrope_section" not in rope:
        raise UserError(f"{where}: no mrope_section; one-dimensional rope would give silently wrong positions")
    axes = _part(vision, "rope_parameters", where)
    plain = axes.get("rope_type", "axial") in ("axial", "default")
    if not plain or axes.get("rope_theta", VISION_ROPE_THETA) != VISION_ROPE_THETA:
        raise UserError(f"{where}: vision_config rope_parameters {axes} are not supported")
    if text.get("use_sliding_window"):
        raise UserError(f"{where}: use_sliding_window is not supported")
    for part in (text, vision):
        if part.get("hidden_act", "silu") != "silu":
            raise UserError(f"{where}: hidden_act {part['hidden_act']!r} is not supported, only silu")
    if raw.get("quantization_config"):
        raise UserError(f"{where}: quantization_config is not supported; take the checkpoint in bfloat16")
    if "sliding_attention" in str(text.get("layer_types")):
        raise UserError(f"{where}: layer_types with sliding_attention are not supported")
    head_dim, heads, width = text.get("head_dim"), text.get("num_attention_heads"), text.get("hidden_size")
    if head_dim and (type(head_dim) is not int or type(heads) is not int or head_dim * heads != width):
        raise UserError(
            f"{where}: head_dim {head_dim} is not hidden_size / num_attention_heads, which is not supported"
        )
    # transformers 4.x leaves out what equals its default, which is True; 5.x always writes it
    tied = raw.get("tie_word_embeddings", text.get("tie_word_embeddings", True))
    eos = text.get("eos_token_id", raw.get("eos_token_id"))
    ids = _take(raw, _ID_KEYS, where, optional=tuple(_ID_KEYS))
    eos = next(iter(eos), None) if isinstance(eos, list) else eos
    bos = text.get("bos_token_id", raw.get("bos_token_id"))
    for name, value in (("bos_id", bos), ("eos_id", eos)):
        if value is not None:
            ids[name] = value
    theta, section = rope.get("rope_theta", text.get("rope_theta", 1e6)), rope["mrope_section"]
    of_vision = _take(vision, _VISION_KEYS, f"{where} vision_config", optional=("in_channels", "temporal_patch_size"))
    of_text = _take(text, _TEXT_KEYS, where) | {
        "rope_theta": float(theta) if type(theta) is int and abs(theta) < 2**53 else theta,
        "mrope_section": tuple(section) if isinstance(section, list) else section,
        "tie_embeddings": bool(tied),
    }
    try:
        return ModelConfig(vision=VisionConfig(**of_vision), text=TextConfig(**of_text), **ids)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def to_hf_config(config: ModelConfig) -> dict[str, Any]:
    """Writes the flat form that published Qwen2.5-VL checkpoints use; transformers 4.x and 5.x read it."""
    vision = {hf: getattr(config.vision, ours) for ours, hf in _VISION_KEYS.items()}
    text = {hf: getattr(config.text, ours) for ours, hf in _TEXT_KEYS.items()}
    ids = {hf: getattr(config, ours) for ours, hf in _ID_KEYS.items()}
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "max_position_embeddings": 128000,
        "rope_theta": config.text.rope_theta,
        "rope_scaling": {"type": "mrope", "mrope_section": list(config.text.mrope_section)},
        "tie_word_embeddings": config.text.tie_embeddings,
        "bos_token_id": config.bos_id,
        "eos_token_id": config.eos_id,
        **text,
        **ids,
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "hidden_act": "silu",
            **vision,
            "fullatt_block_indexes": list(config.vision.full_attention_blocks),
        },
    }
