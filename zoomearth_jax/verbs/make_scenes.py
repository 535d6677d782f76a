"""`zoomearth scenes`: writes procedural scenes as image files, with questions about them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Literal

import numpy as np

from zoomearth_jax.configs.images import MAX_PIXELS
from zoomearth_jax.data_pipeline.questions.own_rows import write_questions
from zoomearth_jax.data_pipeline.questions.procedural import SPLITS, count_question, season_question, site_question
from zoomearth_jax.data_pipeline.questions.scenes import random_scene
from zoomearth_jax.errors import UserError
from zoomearth_jax.files import check_writable
from zoomearth_jax.terminal.progress import tracked


@dataclasses.dataclass(frozen=True)
class ScenesConfig:
    """Settings of the scene writer.

    Attributes:
        out: folder for the images and questions.jsonl.
        count: number of scenes.
        side: px per side.
        format: file format of the images.
        seed: random seed of the scenes.
    """

    out: Path = Path("runs/scenes")
    count: int = 4
    side: int = 2048
    format: Literal["tif", "png"] = "tif"
    seed: int = 0

    def __post_init__(self):
        if self.count < 1 or self.side < 112 or self.side**2 > MAX_PIXELS:
            raise UserError(f"scenes: count must be positive and side between 112 and {int(MAX_PIXELS**0.5)} px")


def write_scenes(config: ScenesConfig) -> Path:
    """Writes the scenes and all questions about them; returns the folder."""
    check_writable(config.out, directory=True)
    rows = []
    for index in tracked(range(config.count), "scenes"):
        scene = random_scene(np.random.default_rng([len(SPLITS), config.seed, index]), config.side)
        name = f"scene_{config.seed}_{index:04d}.{config.format}"
        scene.write(config.out / name)
        questions = [site_question(scene, site) for site in scene.sites] + [
            count_question(scene),
            season_question(scene),
        ]
        rows += [(name, question) for question in questions]
    write_questions(config.out / "questions.jsonl", rows)
    print(json.dumps({"folder": str(config.out), "images": config.count, "questions": len(rows)}))
    return config.out
