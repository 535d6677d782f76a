"""LRS-GRO's rows as a TensorFlow dataset: texts, and boxes in px of the originals. Pixels stay in the image files."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from zoomearth_jax.data_pipeline.images.boxes import Frame, clamped, from_annotation
from zoomearth_jax.data_pipeline.images.image_folder import ImageFolder
from zoomearth_jax.data_pipeline.questions.lrs_gro import LrsGroRow, normalise
from zoomearth_jax.data_pipeline.questions.lrs_gro_files import WHERE_FROM, read_all
from zoomearth_jax.data_pipeline.tfds_builders.base import CITATION, FolderBuilder

_TEXTS = (
    "question_id",
    "image_name",
    "category",
    "question",
    "ground_truth",
    "type",
    "higher_level",
    "label",
    "overview",
    "stage_1_reasoning",
    "stage_2_reasoning",
)


class LrsGro(FolderBuilder):
    """Splits sft, rl and test, as far as the folder has them; rows in their released order."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Normalised texts; boxes in px of the original image."}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = WHERE_FROM

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                **{name: tfds.features.Text() for name in _TEXTS},  # empty where a row lacks it
                "has_box": np.bool_,
                "bbox": tfds.features.Tensor(
                    shape=(4,), dtype=np.float32
                ),  # x1, y1, x2, y2 in px of the original, or zeros
                "image_size": tfds.features.Tensor(shape=(2,), dtype=np.int32),  # width, height in px
            }
        )
        return self.dataset_info_from_configs(
            description="Questions about ultra-high-resolution satellite images, with reference boxes.",
            features=features,
            homepage="https://earth-insights.github.io/ZoomEarth/",
            citation=CITATION,
            disable_shuffling=True,  # keys are numbers of rows
        )

    def _split_generators(self, dl_manager) -> dict:
        splits = read_all(dl_manager.manual_dir)
        names = (normalise(row).image_name for rows in splits.values() for row in rows)
        images = ImageFolder(dl_manager.manual_dir).open(names)
        frames = {name: image.frame for name, image in images.items()}
        return {split: self._generate_examples(rows, frames) for split, rows in splits.items()}

    def _generate_examples(self, rows: list[LrsGroRow], frames: dict[str, Frame]):
        cleaned = [normalise(row) for row in rows]
        return self._spread([(i, row, frames[row.image_name]) for i, row in enumerate(cleaned)], _example)


def _example(numbered: tuple[int, LrsGroRow, Frame]) -> Iterator[tuple[int, dict]]:
    index, row, frame = numbered
    box = clamped(from_annotation(row.bbox, frame)) if row.bbox else None
    texts = {name: getattr(row, name) or "" for name in _TEXTS}
    corners = np.array(box.corners if box else (0, 0, 0, 0), np.float32)
    size = np.array((frame.width, frame.height), np.int32)
    yield index, {**texts, "has_box": box is not None, "bbox": corners, "image_size": size}
