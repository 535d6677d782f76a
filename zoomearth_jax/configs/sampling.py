"""How tokens are drawn."""

from __future__ import annotations

import dataclasses
import math

from zoomearth_jax.configs.episode import EpisodeConfig
from zoomearth_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Settings of sampling, with the meaning and the order that they have in HF's `generate`.

    Attributes:
        temperature: logits are divided by it; 0 is greedy. Left out, the model's episode names it and the penalty (see `of`).
        top_k: draw from this many likeliest tokens; 0 is off.
        top_p: draw from the fewest likeliest tokens that hold this much probability; 1 is off.
        repetition_penalty: makes tokens that the row already holds less likely where it is above 1; 1 is off.
    """

    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        for ok, message in (
            (not self.temperature or 1e-6 <= self.temperature < math.inf, "temperature must be 0 or at least 1e-6"),
            (self.top_k >= 0, "top_k must not be negative; 0 turns it off"),
            (1e-6 <= self.top_p <= 1, "top_p must be between 1e-6 and 1, which turns it off"),
            (0 < self.repetition_penalty < math.inf, "repetition_penalty must be positive; 1 turns it off"),
        ):
            if not ok:
                raise UserError(f"sampling config: {message}")

    def of(self, episode: EpisodeConfig) -> SamplingConfig:
        """These settings; without a temperature, with that of an episode, and with its penalty where none is given."""
        if self.temperature is not None:
            return self
        penalty = episode.repetition_penalty if self.repetition_penalty == 1 else self.repetition_penalty
        return dataclasses.replace(self, temperature=episode.temperature, repetition_penalty=penalty)

    @property
    def filters(self) -> SamplingConfig:
        """What programs are compiled for: all but the temperature, which may change between calls."""
        return dataclasses.replace(self, temperature=None)
