"""Images that lie inside Parquet files, as the Hugging Face hub publishes data sets: found by their row, decoded when looked at."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.images.sources import RawImage
from zoomearth_jax.data_pipeline.images.streams import frame_of
from zoomearth_jax.errors import BrokenImage, UserError

_ROWS = 8  # read at once; each may hold tens of MB


@dataclasses.dataclass(frozen=True)
class EmbeddedImage:
    """An image of a Parquet file. Its bytes stay there: what is looked at is unpacked, decoded as any file is, and forgotten.

    Attributes:
        file, column, row, place: where it is; `row` is counted from 0 over the file, `place` within the row's list.
        frame: its size, by its header.
        config: how it becomes RGB.
    """

    file: Path
    column: str
    row: int
    place: int
    frame: Frame
    config: ImageConfig = ImageConfig()

    def window(self, box: Box, size: Frame, exact: bool = False) -> np.ndarray:
        """See `ImageSource.window`; always exact.

        Raises:
            UserError: see `ImageFile`.
        """
        try:
            return _unpacked(self).window(box, size, exact)
        except UserError as error:  # it names the temporary file
            said = str(error).partition(": ")[2]
            raise type(error)(f"{self.file.name} row {self.row + 1}: {said}") from None


class _Unpacked(RawImage):
    """A picture in a temporary file, which is gone with it."""

    def __init__(self, picture: bytes, config: ImageConfig):
        self._kept = tempfile.NamedTemporaryFile(prefix="zoomearth-")  # noqa: SIM115
        self._kept.write(picture)
        self._kept.flush()
        super().__init__(self._kept.name, config)


@functools.lru_cache(maxsize=4)
def _unpacked(image: EmbeddedImage) -> _Unpacked:
    first = 0
    with _opened(image.file) as parquet:
        for group in range(parquet.num_row_groups):
            count = parquet.metadata.row_group(group).num_rows
            if image.row < first + count:
                batches = parquet.iter_batches(_ROWS, row_groups=[group], columns=[image.column])
                for batch in batches:
                    if image.row < first + len(batch):
                        cell = batch.column(0)[image.row - first].as_py()
                        return _Unpacked(_pictures(cell)[image.place], image.config)
                    first += len(batch)
            first += count
    raise UserError(f"{image.file}: no row {image.row + 1}; has the file changed?")


def read_embedded(
    file: Path, columns: Sequence[str], column: str, config: ImageConfig
) -> Iterator[tuple[dict[str, Any], list[EmbeddedImage], str]]:
    """The rows of a Parquet file: the values of `columns`, the images of `column`, and what is wrong with those.

    Args:
        columns: those of them that the file has are read.
        column: holds an image as the `datasets` library does ({"bytes": …}), or a list of them.

    Raises:
        UserError: no Parquet file, or one without such a column.
    """
    import pyarrow as pa

    try:
        with _opened(file) as parquet:
            there = parquet.schema_arrow.names
            if column not in there:
                raise UserError(f"{file}: no column {column!r}; it has {', '.join(there)[:200]}")
            row = 0
            for batch in parquet.iter_batches(_ROWS, columns=[name for name in (*columns, column) if name in there]):
                batch.validate(full=True)  # texts and offsets of a broken or hostile file may be anything
                for values in batch.to_pylist():
                    images, fault = _images(file, column, row, values.pop(column), config)
                    yield values, images, fault
                    row += 1
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: not a readable Parquet file ({str(error).splitlines()[0]})") from None


def _opened(file: Path):
    import pyarrow.parquet as pq  # 0.2 s that only this form costs

    return pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)


def _images(file: Path, column: str, row: int, cell: Any, config: ImageConfig) -> tuple[list[EmbeddedImage], str]:
    images = []
    try:
        pictures = _pictures(cell)
        for place, picture in enumerate(pictures):
            frame = frame_of(picture)
            if frame.width * frame.height > config.max_pixels:
                size = f"{frame.width} x {frame.height} px"
                return [], f"field {column!r}: {size} is over the limit of {config.max_pixels:,} px"
            images.append(EmbeddedImage(file, column, row, place, frame, config))
    except BrokenImage as error:
        return [], f"field {column!r}: {error}"
    return images, "" if images else f"field {column!r} holds no image"


def _pictures(cell: Any) -> list[bytes]:
    """The bytes of a cell's images.

    Raises:
        BrokenImage: something there is no image in bytes.
    """
    found = []
    for one in cell if isinstance(cell, list) else [cell]:
        picture = one.get("bytes") if isinstance(one, dict) else one
        if not isinstance(picture, bytes):
            raise BrokenImage("no image in bytes")
        found.append(picture)
    return found
