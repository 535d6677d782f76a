"""Which visual tokens the decoder reads; for evaluation only."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from zoomearth_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class PruneConfig:
    """Pruning of visual tokens after the vision encoder, of overviews and crops alike.

    Attributes:
        kind: `none`; by `attention`, the tokens that receive the most in the vision encoder's last block over the whole picture;
            or by `cluster`, the centres of clusters of tokens (density peaks).
        keep: tokens kept of each picture: up to 1 their share, above it their number. Smaller pictures keep all they have.
    """

    kind: Literal["none", "attention", "cluster"] = "none"
    keep: float = 0.25

    def __post_init__(self):
        if self.kind not in ("none", "attention", "cluster"):
            raise UserError(f"prune: kind must be none, attention or cluster, not {self.kind!r}")
        if not (0 < self.keep <= 1 or (self.keep < math.inf and self.keep == int(self.keep) > 1)):
            raise UserError(f"prune: keep must be a share up to 1 or a whole number of tokens, not {self.keep}")

    def kept(self, tokens: int) -> int:
        """The tokens that are kept of a picture with so many."""
        if self.kind == "none":
            return tokens
        return min(tokens, math.ceil(tokens * self.keep) if self.keep <= 1 else int(self.keep))
