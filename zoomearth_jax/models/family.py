"""What the rest of the package needs of a family of models; a family is a folder here and a line in `families.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.models.attention import KVCache
from zoomearth_jax.models.layers import Array, Places


class Images(NamedTuple):
    """Pictures as a model takes them on the device.

    Attributes:
        pixels: uint8 [I, side, side, 3], each picture in the top left corner of its canvas.
        layout: what else the family needs of them, any tree of arrays that begin with I.
        grids: rows and columns of visual tokens, int32 [I, 1, 2]; 0 x 0 where there is no picture.
    """

    pixels: Array
    layout: Any
    grids: Array


class Sizes(Protocol):
    """Sizes and special ids of a model, a frozen dataclass of the family."""

    family: ClassVar[str]

    @property
    def image_token_id(self) -> int:
        """Special id in place of each visual token of a picture."""
        ...

    @property
    def merged_px(self) -> int:
        """Side in px of the square that one visual token covers."""
        ...

    @property
    def width(self) -> int:
        """Width of the decoder's states and of visual tokens."""
        ...

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table."""
        ...

    @property
    def placed_ids(self) -> tuple[int, ...]:
        """Special ids around and in place of pictures, which only we place."""
        ...

    def prepare(self, pixels: np.ndarray, grids: np.ndarray) -> Images:
        """Pictures, made ready on the host.

        Args:
            pixels: uint8 [I, side, side, 3]. grids: visual tokens, int [I, 2].
        """
        ...

    def vision_flops(self, grids: np.ndarray) -> float:
        """FLOPs of the vision encoder's forward pass over pictures with these grids of visual tokens [I, 2]."""
        ...

    @property
    def token_flops(self) -> int:
        """FLOPs of the decoder's layers for one token, attention's pairs left out."""
        ...

    @property
    def pair_flops(self) -> int:
        """FLOPs of attention for one (query, key) pair, over all layers."""
        ...

    def cache_shape(self, rows: int, slots: int) -> tuple[int, ...]:
        """Shape [L, B, K, S, H] of a cache's keys, and of its values."""
        ...

    @property
    def branch_shares(self) -> dict[int, float]:
        """How often loops over layers take the true branch of their conditions, 0 to 1, by their number of trips."""
        ...


class VisionLanguageModel(Protocol):
    """A model: an `nnx.Module` whose vision encoder's parameters lie under `vision`."""

    config: Any
    compute: ComputeConfig
    vision: Any

    def encode_views(self, images: Images) -> jax.Array:
        """Visual tokens [I, M, D] in raster order; those past a picture's own are anything."""
        ...

    def scored_views(self, images: Images) -> tuple[jax.Array, jax.Array]:
        """What `encode_views` gives, and float32 scores [I, M] by which tokens are pruned: the attention that each receives from
        its picture, or what else the family has that tells how much it matters."""
        ...

    def segment(
        self,
        ids_BT,
        samples_BT,
        features_BMD=None,
        grids_BI2=None,
        start_B=None,
        past: KVCache | None = None,
        kept_BM=None,
    ) -> tuple[jax.Array, KVCache, jax.Array]:
        """Hidden states [B, T, D] of a segment of each row after its cached past, the segment's own cache, and the position [B]
        after it. The arguments are those of `Qwen2_5_VL.segment`."""
        ...

    def grouped(self, prompt, reply, places: Places | None = None) -> tuple[jax.Array, jax.Array]:
        """Hidden states [A, U, D] of prompts and [B, T, D] of the B / A replies that follow each, in one pass."""
        ...

    @property
    def head(self) -> Any:
        """The `nnx.Module` that holds what logits are made with."""
        ...

    def logits(self, hidden_BTD, head=None) -> jax.Array:
        """float32 logits [..., V] of hidden states; `head` takes the place of the model's own."""
        ...


class Family(Protocol):
    """A family: what its package exports."""

    def from_hf_config(self, raw: dict[str, Any], where: str) -> Any:
        """Sizes from the data of a config.json; UserError where the family can't represent it."""
        ...

    def to_hf_config(self, config: Any) -> dict[str, Any]:
        """The data of config.json."""
        ...

    def make(self, config: Any, compute: ComputeConfig, rngs) -> VisionLanguageModel:
        """A model with random parameters."""
        ...

    def load_pretrained(self, directory: Path, compute: ComputeConfig | None, mesh: Mesh | None) -> VisionLanguageModel:
        """The model of a directory with safetensors."""
        ...

    def write_checkpoint(self, model: Any, directory: Path, dtype: str | None = None) -> None:
        """Writes config.json and safetensors."""
        ...

    def source_dtype(self, directory: Path) -> str:
        """The number type of most tensors of a directory."""
        ...
