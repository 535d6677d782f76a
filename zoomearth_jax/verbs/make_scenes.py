"""`zoomearth scenes`: writes procedural scenes as image files, with questions about them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Literal

import numpy as np

from zoomearth_jax.configs.images import MAX_PIXELS
from zoomearth_jax.data_pipeline.questions.own_rows import write_questions
from zoomearth_jax.data_pipeline.questions.procedural import (
    SPLITS,
    badge_question,
    count_question,
    season_question,
    site_question,
)
from zoomearth_jax.data_pipeline.questions.scenes import NESTED_SIDE, Scene, nested_scene, random_scene
from zoomearth_jax.errors import UserError
from zoomearth_jax.files import check_writable
from zoomearth_jax.terminal.progress import tracked


@dataclasses.dataclass(frozen=True)
class ScenesConfig:
    """Settings of the scene writer.

    Attributes:
        out: folder for the images and questions.jsonl.
        nested: scenes whose sites hold badges, with questions that need two looks.
        count: number of scenes.
        side: px per side; by default 2,048, of nested scenes 8,192, where the shipped base's windows fit them.
        format: file format of the images.
        seed: random seed of the scenes.
    """

    out: Path = Path("runs/scenes")
    nested: bool = False
    count: int = 4
    side: int = 0
    format: Literal["tif", "png"] = "tif"
    seed: int = 0

    def __post_init__(self):
        object.__setattr__(self, "side", self.side or (NESTED_SIDE if self.nested else Scene.side))
        if self.count < 1 or self.side < 112 or self.side**2 > MAX_PIXELS:
            raise UserError(f"scenes: count must be positive and side between 112 and {int(MAX_PIXELS**0.5)} px")


def write_scenes(config: ScenesConfig) -> Path:
    """Writes the scenes and all questions about them; returns the folder."""
    check_writable(config.out, directory=True)
    rows = []
    for index in tracked(range(config.count), "scenes"):
        make = nested_scene if config.nested else random_scene
        scene = make(np.random.default_rng([len(SPLITS), config.seed, index]), config.side)
        name = f"scene_{config.seed}_{index:04d}.{config.format}"
        scene.write(config.out / name)
        questions = [site_question(scene, site) for site in scene.sites]
        questions += [badge_question(scene, site, site.badge) for site in scene.sites if site.badge]
        questions += [count_question(scene), season_question(scene)]
        rows += [(name, question) for question in questions]
    write_questions(config.out / "questions.jsonl", rows)
    print(json.dumps({"folder": str(config.out), "images": config.count, "questions": len(rows)}))
    return config.out
