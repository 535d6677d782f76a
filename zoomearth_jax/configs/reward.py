"""What episodes earn: the shapes and weights of the rewards."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Literal, get_args, get_type_hints
from urllib.parse import urlsplit

from zoomearth_jax.errors import UserError, suggestion

VERSION = 1
PAPER_NAMES = ("iou", "region", "answer", "pattern")  # the paper's rewards, which are always computed
MORE_NAMES = ("containment", "necessity", "boxes", "judge")  # computed where their weights aren't 0


@dataclasses.dataclass(frozen=True)
class RewardSpec:
    """Weights and shapes; printed, logged and saved with every run. docs/rewards.md has the formulas.

    Attributes:
        iou_weight, region_weight, answer_weight, pattern_weight: as in the paper (the released code has 1 for the pattern).
        containment_weight: weight of the share of the reference box that the window shows.
        necessity_weight: weight of what looks cost that weren't necessary, and necessary ones that are missing.
        boxes_weight: weight of the IoU of all the boxes that a text lists with all the reference boxes, matched greedily.
        judge_weight: weight of the judge's score, where there is a judge.
        iou: what r_IoU compares: the raw boxes (`box`), the crop that the policy saw and the one that the reference box
            would have given (`window`), or the released code's windows of at least 512 px (`reference`).
        region: shape of r_RG by distance d between centres: `sigmoid`, 1 / (1 + exp(-alpha / (d + eps))), as the paper prints
            it, or `tanh`, tanh(alpha / (d + eps)), as its figure and the released code have it; 0 without a box.
        region_alpha, region_eps: its scale and what keeps it finite, in region_unit.
        region_unit: unit of the distance: px of the original, or the image's longer side (`side`).
        looks: which look of an episode the rewards iou, region and containment are paid for: the `last`, or the `best`, each
            reward by itself.
        spare_cost: what each look costs that is more than the reference takes.
        missing_cost: what each look costs that is less than the reference takes.
        answer_match: `exact` (1 or 0), `wordnet`, the paper's: graded by path similarity, `typed`: numbers and yes or no
            exactly, a synonym for the rest, or `count`: numbers by how far they are off, the rest exactly.
        pattern: `protocol`, the whole text is of the paper's form, or `reference`, as the released code looks for its parts.
        custom: rewards of your own, each MODULE:FUNCTION, called once per batch with (episodes, questions); it gives a number
            per episode, or None where it doesn't apply. The module is imported and its code runs.
        custom_weights: weights of the custom rewards; 1 each by default.
        judge: address (http or https) of a judge that scores answers; none if empty. It is sent questions, references and
            what the policy wrote.
        judge_reads: what the judge is sent of an episode: its `answer`, or beside it the texts of all its `turns`.
        version: raised when any of this changes its meaning.
    """

    iou_weight: float = 1.0
    region_weight: float = 1.0
    answer_weight: float = 1.0
    pattern_weight: float = 0.05
    containment_weight: float = 0.0
    necessity_weight: float = 0.0
    boxes_weight: float = 0.0
    judge_weight: float = 1.0
    iou: Literal["box", "window", "reference"] = "box"
    region: Literal["sigmoid", "tanh"] = "sigmoid"
    region_alpha: float = 200.0
    region_eps: float = 0.2
    region_unit: Literal["px", "side"] = "px"
    looks: Literal["last", "best"] = "last"
    spare_cost: float = 1.0
    missing_cost: float = 1.0
    answer_match: Literal["exact", "wordnet", "typed", "count"] = "exact"
    pattern: Literal["protocol", "reference"] = "protocol"
    custom: tuple[str, ...] = ()
    custom_weights: tuple[float, ...] = ()
    judge: str = ""
    judge_reads: Literal["answer", "turns"] = "answer"
    version: int = VERSION

    def __post_init__(self):
        for name, hint in get_type_hints(type(self)).items():
            known = get_args(hint)
            if known and isinstance(getattr(self, name), str) and getattr(self, name) not in known:
                choices = " or ".join(map(repr, known))
                raise UserError(f"reward spec: {name} must be {choices}, not {getattr(self, name)!r}")
        if self.region_eps <= 0:
            raise UserError("reward spec: region_eps must be positive")
        if not (0 <= self.spare_cost < math.inf and 0 <= self.missing_cost < math.inf):
            raise UserError(
                "reward spec: spare_cost and missing_cost must be 0 or positive; necessity_weight scales them"
            )
        if self.looks == "best" and self.iou == "reference":
            raise UserError("reward spec: iou 'reference' reads the first text alone; looks must be 'last' with it")
        if self.version != VERSION:
            raise UserError(f"reward spec: version {self.version}, but this package computes version {VERSION}")
        self._check_judge()
        self._check_custom()

    def _check_judge(self) -> None:
        if not self.judge:
            return
        try:
            parts = urlsplit(self.judge)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        except ValueError:
            good = False
        if not good or not self.judge.isascii() or not self.judge.isprintable() or " " in self.judge:
            raise UserError(
                f"reward spec: judge must be an address, http://HOST/PATH or https://HOST/PATH, not {self.judge!r}"
            )

    def _check_custom(self) -> None:
        for path in self.custom:
            if not re.fullmatch(r"\w+(\.\w+)*:\w+", path):
                raise UserError(f"reward spec: custom must be MODULE:FUNCTION, not {path!r}")
        if self.custom_weights and len(self.custom_weights) != len(self.custom):
            counts = f"{len(self.custom_weights)} custom_weights for {len(self.custom)} custom rewards"
            raise UserError(f"reward spec: {counts}; give one each, or none for 1 each")
        names = [*self._own_names, "total", *map(custom_name, self.custom)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise UserError(f"reward spec: two rewards are called {twice!r}; rename the function")

    @staticmethod
    def named(name: str) -> RewardSpec:
        """`paper` or `reference`, the released code's; UserError for another name."""
        if name not in SPECS:
            raise UserError(f"unknown reward spec {name!r}; {suggestion(name, SPECS)}")
        return SPECS[name]

    @property
    def _own_names(self) -> list[str]:
        more = [name for name in MORE_NAMES if getattr(self, f"{name}_weight") and (name != "judge" or self.judge)]
        return [*PAPER_NAMES, *more]

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each reward that is computed by its name, in the order in which they are added."""
        own = {name: getattr(self, f"{name}_weight") for name in self._own_names}
        names = map(custom_name, self.custom)
        return own | dict(zip(names, self.custom_weights or (1.0,) * len(self.custom), strict=True))

    def describe(self) -> str:
        """Describes the spec in one line: name if it has one, version, and the sum."""
        kinds = {
            "iou": f"IoU ({self.iou}{', best look' * (self.looks == 'best')})",
            "region": f"{self.region}({self.region_alpha:g} / (d + {self.region_eps:g})), d in {self.region_unit}",
            "answer": f"answer ({self.answer_match})",
            "pattern": f"pattern ({self.pattern})",
            "necessity": f"necessity (spare {self.spare_cost:g}, missing {self.missing_cost:g})",
            "judge": f"judge ({self.judge})",
        }
        name = next((f"{name}, " for name, spec in SPECS.items() if spec == self), "")
        parts = (f"{weight:g} {kinds.get(key, key)}" for key, weight in self.weights.items())
        return f"{name}version {self.version}: " + " + ".join(parts)


def custom_name(path: str) -> str:
    """What the reward MODULE:FUNCTION is called in metrics: FUNCTION."""
    return path.rpartition(":")[2]


SPECS = {
    "paper": RewardSpec(answer_match="wordnet"),
    "reference": RewardSpec(
        pattern_weight=1.0,
        iou="reference",
        region="tanh",
        region_eps=1e-6,
        answer_match="wordnet",
        pattern="reference",
    ),
}
