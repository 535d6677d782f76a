"""How a judge that scores answers over HTTP is asked."""

from __future__ import annotations

import dataclasses
import math

from zoomearth_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """How the judge of the reward spec is asked; which one it is, and what it weighs, is `reward.judge` and `reward.judge_weight`.

    Attributes:
        batch_size: most episodes in one request.
        timeout_s: seconds that a request may take from beginning to end.
        retries: further tries after a failed one, the first after half a second, each next one after twice as long.
        parallel: most requests of a process at the same time.
    """

    batch_size: int = 16
    timeout_s: float = 30.0
    retries: int = 2
    parallel: int = 4

    def __post_init__(self):
        if self.batch_size < 1 or self.parallel < 1 or self.retries < 0:
            raise UserError("judge config: batch_size and parallel must be positive, retries a number of tries or 0")
        if not 0 < self.timeout_s < math.inf:
            raise UserError(f"judge config: timeout_s must be a positive number of seconds, not {self.timeout_s}")
