"""Low-rank adapters: which layers get one, and how large."""

from __future__ import annotations

import dataclasses
import re

from zoomearth_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters (Hu et al., arXiv 2106.09685). With them nothing else trains.

    Attributes:
        rank: rank of each adapter; 0 for none, so that all parameters train.
        alpha: adapters are scaled by alpha / rank.
        pattern: regular expression that a linear layer's whole path must match, such as `decoder.layers.(q|v)_proj` or
            `vision.blocks.mlp.*`; a path stands for all layers of its stack.
    """

    rank: int = 0
    alpha: float = 16.0
    pattern: str = "decoder.layers.*"

    def __post_init__(self):
        if self.rank < 0 or not self.alpha > 0:
            raise UserError("lora config: rank must not be negative (0 is off), alpha must be positive")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise UserError(f"lora config: pattern {self.pattern!r} is not a regular expression ({error})") from None
