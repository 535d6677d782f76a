"""The GRPO iteration as a whole: a rollout, its rewards and an update, with every slot written and with measured lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zoomearth_jax.configs.episode import RowLayout
from zoomearth_jax.configs.plan import FillConfig, PlanConfig
from zoomearth_jax.configs.rollout import RolloutConfig
from zoomearth_jax.hardware.chips import Chip
from zoomearth_jax.hardware.flops import RowCounts, full_counts, grpo_flops, mfu, rollout_flops
from zoomearth_jax.plan.steps import Program, Training

PARTS = {"prefill": "prefill", "decode": "decode", "pictures": "pictures", "update": "grpo"}  # -> rows of the report
# of the slowest reward, WordNet's, on a host of two cores (`zoomearth bench rewards`); each host scores its own episodes, but it is
# counted as if one scored all, after the rollout
REWARDS_PER_SECOND = 309_000


def iteration(config: PlanConfig, training: Training, steps: dict[str, dict], known: Chip) -> dict | None:
    """The report's headline, and under `filled` the same with the lengths of `config.fill`; None where a part isn't known.

    Both have `episodes`, `seconds` and `cycle_seconds`, `episodes_per_s` and `cycle_episodes_per_s`, `mfu` and `cycle_mfu`, and
    each part's `shares` and `cycle_shares` of the seconds.
    """
    if any(steps.get(row, {}).get("seconds") is None for row in PARTS.values()):
        return None
    full = full_counts(training.layout, config.prompts, config.group)
    filled = filled_counts(training.layout, config)
    return {
        **_whole(config, training, steps, known, full, ""),
        "filled": _whole(config, training, steps, known, filled, "filled_"),
    }


def _whole(config: PlanConfig, training: Training, steps, known: Chip, counts: RowCounts, decoding: str) -> dict:
    """An iteration; `decoding` begins the names of decoding's seconds."""
    model, episodes = training.model, config.prompts * config.group
    update = grpo_flops(model, counts, freeze_vision=config.freeze_vision, kl=config.kl)
    flops = rollout_flops(model, counts) + update
    out: dict = {"episodes": episodes}
    for prefix in ("", "cycle_"):
        seconds = {
            part: steps[row][f"{decoding if part == 'decode' else ''}{prefix}seconds"] for part, row in PARTS.items()
        }
        seconds |= {"rewards": episodes / REWARDS_PER_SECOND}
        whole = sum(seconds.values())
        out |= {
            f"{prefix}seconds": whole,
            f"{prefix}episodes_per_s": episodes / whole,
            f"{prefix}mfu": mfu(flops, whole, training.mesh.size, known.peak_flops),
            f"{prefix}shares": {part: own / whole for part, own in seconds.items()},
        }
    return out


def filled_counts(layout: RowLayout, config: PlanConfig) -> RowCounts:
    """What is in the slots by `config.fill`: so many of the episodes look once, the others answer at once."""
    fill, full = config.fill, full_counts(layout, config.prompts, config.group)
    looks_B = np.arange(full.samples) < round(fill.looks * full.samples * (layout.num_pictures > 0))
    first, later = layout.turn_lens[0], layout.turn_lens[-1]
    picture = full.picture_BI2 * (looks_B[:, None, None] & (np.arange(layout.num_pictures)[:, None] == 0))
    written_B = np.where(looks_B, min(fill.look, first) + min(fill.answer, later), min(fill.alone, first))
    return RowCounts(
        np.minimum(full.prompt_A, fill.prompt),
        written_B + np.where(looks_B, layout.picture_len, 0),
        written_B,
        full.overview_A2,
        picture,
    )


def filled_trips(programs: Sequence[Program], fill: FillConfig, layout: RowLayout) -> list[int]:
    """Trips of each of a rollout's programs where turns end with their longest row (`FillConfig`), at the next look of the host.

    0 says that the program doesn't run: the turn is over before the slots that it would write.
    """
    visit = RolloutConfig().visit
    longest = [fill.longest[min(k, 1)] for k in range(layout.num_turns)]
    ends = [min(-(-end // visit) * visit, slots) for end, slots in zip(longest, layout.turn_lens, strict=True)]
    trips, turn, left = [], 0, ends[0]
    for each in programs:
        if each.name == "pictures":
            turn += 1
            left = ends[turn]
        if each.name != "decode" or each.tokens == 1:
            trips.append(1)
        else:
            trips.append(min(each.tokens, left - 1))  # the first token is drawn before the loop
            left -= trips[-1]
    return trips
