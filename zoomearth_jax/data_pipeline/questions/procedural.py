"""Questions about procedural scenes, by split, seed and number."""

from __future__ import annotations

import dataclasses

import numpy as np

from zoomearth_jax.data_pipeline.questions.question import Look, Question
from zoomearth_jax.data_pipeline.questions.scenes import Badge, Scene, Site, nested_scene, random_scene


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


def badge_question(scene: Scene, site: Site, badge: Badge) -> Question:
    """Object level: needs a crop of the site, and inside of it one of its badge."""
    return Question(
        image=scene,
        text=f"Which way do the stripes of the badge of the {site.color} site run?",
        answer=badge.orientation,
        level="object",
        looks=(
            Look(scene.box(site), f"{site.color} site", f"find the {site.color} site"),
            Look(scene.badge_box(badge), "badge", "find the badge", source="picture"),
        ),
        thought=f"the stripes are {badge.orientation}",
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
_NESTED = 1  # keeps the seeds of nested scenes apart


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
            questions.append(_global_question(rng, scene))
        else:
            questions.append(site_question(scene, scene.sites[rng.integers(len(scene.sites))]))
    return questions


def nested_questions(split: str, seed: int, start: int, count: int, global_share: float = 0.0) -> list[Question]:
    """As `scene_questions`, on nested scenes: on the whole scene, which need no look; and as many on a site's stripes, which need
    one, as on those of its badge, which need two. Their categories are `scene`, `site` and `badge`."""
    stream = SPLITS.index(split)
    questions = []
    for index in range(start, start + count):
        rng = np.random.default_rng([stream, seed, index, _NESTED])
        scene = nested_scene(rng)
        site = scene.sites[rng.integers(len(scene.sites))]
        if rng.uniform() < global_share:
            one, category = _global_question(rng, scene), "scene"
        elif site.badge and rng.uniform() < 0.5:
            one, category = badge_question(scene, site, site.badge), "badge"
        else:
            one, category = site_question(scene, site), "site"
        questions.append(dataclasses.replace(one, category=category))
    return questions


def _global_question(rng: np.random.Generator, scene: Scene) -> Question:
    return count_question(scene) if rng.uniform() < 0.5 else season_question(scene)
