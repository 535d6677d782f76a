"""Which questions GRPO leaves out, by how often the policy answers them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from zoomearth_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class CurriculumConfig:
    """Questions are left out by their pass rate: the share of a group's answers that were correct, when it was asked last.

    Attributes:
        low, high: a question whose pass rate is below `low` or above `high` is passed over when the order comes to it again.
        run: a run on the same questions whose last pass rates count from the start.
    """

    low: float = 0.0
    high: float = 1.0
    run: Path | None = None

    def __post_init__(self):
        if not 0 <= self.low <= self.high <= 1:
            raise UserError(f"curriculum config: 0 <= low <= high <= 1, not low {self.low:g} and high {self.high:g}")
        if self.run and not self.active:
            raise UserError("curriculum config: run needs low or high, such as high 0.9; else no question is left out")

    @property
    def active(self) -> bool:
        """Whether any pass rate is out of range."""
        return self.low > 0 or self.high < 1
