"""Questions about procedural scenes, by split, seed and number."""

from __future__ import annotations

import numpy as np

from zoomearth_jax.data_pipeline.questions.question import Look, Question
from zoomearth_jax.data_pipeline.questions.scenes import Scene, Site, random_scene


def site_question(scene: Scene, site: Site) -> Question:
    """Object level: needs the crop."""
    return Question(
        image=scene,
        text=f"Which way do the stripes of the {site.color} site run?",
        answer=site.orientation,
        level="object",
        looks=(Look(scene.box(site), f"{site.color} site", f"find the {site.color} site"),),
        thought=f"the stripes are {site.orientation}",
    )


def count_question(scene: Scene) -> Question:
    """Global level: the overview is enough."""
    count = str(len(scene.sites))
    return Question(scene, "How many sites are there?", count, "global", thought=f"there are {count} sites")


def season_question(scene: Scene) -> Question:
    """Global level: the overview is enough."""
    return Question(scene, "Which season is it?", scene.season, "global", thought=f"it looks like {scene.season}")


# Streams of independent scenes: (stream, seed, index) seeds one question, so no question of one split is in another.
SPLITS = ("pretrain", "sft", "grpo", "test")


def scene_questions(split: str, seed: int, start: int, count: int, global_share: float = 0.0) -> list[Question]:
    """Questions number start … start + count - 1 of a split, one scene each; the same whatever the start.

    Args:
        global_share: probability of a question on the whole scene (sites counted, season) instead of on one site.
    """
    stream = SPLITS.index(split)
    questions = []
    for index in range(start, start + count):
        rng = np.random.default_rng([stream, seed, index])
        scene = random_scene(rng)
        if rng.uniform() < global_share:
            questions.append(count_question(scene) if rng.uniform() < 0.5 else season_question(scene))
        else:
            questions.append(site_question(scene, scene.sites[rng.integers(len(scene.sites))]))
    return questions
