"""Tiles and overviews of a folder of large images, one record each, lossless."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from zoomearth_jax.data_pipeline.images.boxes import Box, Frame, view_size
from zoomearth_jax.data_pipeline.images.decoding import SUFFIXES
from zoomearth_jax.data_pipeline.images.sources import RawImage, whole
from zoomearth_jax.data_pipeline.tfds_builders.base import FolderBuilder
from zoomearth_jax.errors import UserError


@dataclasses.dataclass
class UhrConfig(tfds.core.BuilderConfig):
    """What a record shows: a tile of side px at full resolution, or the whole image shrunk to side px."""

    side: int = 512
    overview: bool = False


class UhrTiles(FolderBuilder):
    """One split, `train`: cut it as `train[:90%]`. Config `tiles` (the default) or `overviews`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "PNG records with the window that they show."}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "A folder of TIFF, PNG, JPEG or WebP images, of any source; subfolders are searched too. " + "8 bits a channel."
    )
    BUILDER_CONFIGS = [  # noqa: RUF012
        UhrConfig(name="tiles", description="512 px tiles at full resolution, smaller at the right and lower border."),
        UhrConfig(name="overviews", description="Whole images, longest side 512 px, bicubic.", overview=True),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                "name": tfds.features.Text(),  # path of the file inside the folder
                "window": tfds.features.Tensor(shape=(4,), dtype=np.int32),  # x1, y1, x2, y2 in px of the original
                "image_size": tfds.features.Tensor(shape=(2,), dtype=np.int32),  # width, height in px of the original
            }
        )
        return self.dataset_info_from_configs(description="Windows of ultra-high-resolution images.", features=features)

    def _split_generators(self, dl_manager) -> dict:
        return {"train": self._generate_examples(Path(dl_manager.manual_dir))}

    def _generate_examples(self, folder: Path):
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not files:
            raise UserError(f"{folder}: no images ({', '.join(sorted(SUFFIXES))})")
        config = self.builder_config
        jobs = [(str(folder), str(file.relative_to(folder)), config.side, config.overview) for file in files]
        return self._spread(jobs, _examples)


def _examples(job: tuple[str, str, int, bool]) -> Iterator[tuple[str, dict]]:
    """All records of one image, which is decoded once."""
    folder, name, side, overview = job
    image = RawImage(Path(folder) / name)
    for box in [whole(image)] if overview else _tiles(image.frame, side):
        width, height = int(box.x2 - box.x1), int(box.y2 - box.y1)
        size = view_size(width, height, side, unit=1) if overview else Frame(width, height)
        png = io.BytesIO()
        Image.fromarray(image.window(box, size)).save(png, "PNG", compress_level=3)
        yield (
            f"{name} {box.x1} {box.y1}",
            {
                "image": png.getvalue(),
                "name": name,
                "window": np.array(box.corners, np.int32),
                "image_size": np.array((image.frame.width, image.frame.height), np.int32),
            },
        )


def _tiles(frame: Frame, side: int) -> Iterator[Box]:
    for y in range(0, frame.height, side):
        for x in range(0, frame.width, side):
            yield Box(x, y, min(x + side, frame.width), min(y + side, frame.height), frame)
