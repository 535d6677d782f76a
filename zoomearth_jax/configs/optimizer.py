"""Settings that SFT and GRPO share."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zoomearth_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with global-norm clipping, linear warm-up and linear decay to zero.

    Attributes:
        lr: peak learning rate.
        warmup: steps of linear warm-up.
        decay: decay linearly to zero over the run, instead of staying at lr.
        weight_decay: decoupled weight decay.
        clip_norm: largest global gradient norm.
        b2: decay of the second moment.
    """

    lr: float = 1e-3
    warmup: int = 5
    decay: bool = True
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    b2: float = 0.99

    def __post_init__(self):
        if not (self.lr > 0 and self.clip_norm > 0 and self.warmup >= 0 and 0 < self.b2 < 1):
            raise UserError(
                "optimizer config: lr and clip_norm must be positive, warmup not negative, b2 inside (0, 1)"
            )

    def schedule(self, steps: int) -> optax.Schedule:
        """Learning rate by the number of steps done, for a run of `steps` steps."""
        last = 0.0 if self.decay else self.lr
        decay = optax.linear_schedule(self.lr, last, max(steps - self.warmup, 1))
        warmup = optax.linear_schedule(self.lr / (self.warmup + 1), self.lr, max(self.warmup, 1))
        return optax.join_schedules([warmup, decay], [self.warmup])

    def rates(self, steps: int) -> np.ndarray:
        """The learning rate of each step, float32 [steps]."""
        return np.asarray(jax.vmap(self.schedule(steps))(jnp.arange(steps)))

    def build(self, steps: int) -> optax.GradientTransformation:
        """The optimizer for a run of `steps` steps."""
        adamw = optax.adamw(self.schedule(steps), b2=self.b2, weight_decay=self.weight_decay)
        return optax.chain(optax.clip_by_global_norm(self.clip_norm), adamw)
