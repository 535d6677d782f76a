"""Rewards of the user's own: functions by import path, called once per batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from zoomearth_jax.configs.reward import RewardSpec, custom_name
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.errors import UserError
from zoomearth_jax.rl.episode import Episode
from zoomearth_jax.tools.user_code import imported, said


def load(path: str) -> Callable:
    """The function MODULE:FUNCTION; see `imported`."""
    return imported(path, "reward")


def load_custom(spec: RewardSpec) -> None:
    """Imports all that a spec names, so that a mistake shows before a run begins."""
    for path in spec.custom:
        load(path)


def custom_rewards(
    spec: RewardSpec, episodes: Sequence[Episode], questions: Sequence[Question]
) -> dict[str, np.ndarray]:
    """Rewards by their names, float32 [episodes] each; NaN where one doesn't apply.

    Args:
        questions: the question of each episode.

    Raises:
        UserError: a function fails, or gives anything but a finite number or None for an episode.
    """
    return {custom_name(path): _scores(path, list(episodes), list(questions)) for path in spec.custom}


def _scores(path: str, episodes: list[Episode], questions: list[Question]) -> np.ndarray:
    try:
        given = list(load(path)(episodes, questions))
        values = [math.nan if value is None else float(value) for value in given]
    except UserError:
        raise
    except Exception as error:  # whatever the user's code does
        raise UserError(f"reward {path}: failed ({said(error)})") from error
    if len(values) != len(episodes):
        raise UserError(f"reward {path}: gave {len(values)} values for {len(episodes)} episodes")
    for value, own in zip(values, given, strict=True):
        if own is not None and not abs(value) < np.finfo(np.float32).max:
            raise UserError(f"reward {path}: gave {own}; give a finite number, or None where it doesn't apply")
    return np.array(values, np.float32)
