"""How a tile becomes bytes, and a row of tiles pixels again.

`delta` is lossless and made for reading: green is subtracted from red and blue, each row of pixels from the next, and
ArrayRecord's own zstd does the rest; undoing it costs additions of whole rows of tiles. WebP and JPEG are Pillow's.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image


def encoded(tile: Image.Image, **options) -> bytes:
    """A tile as an image file."""
    data = io.BytesIO()
    tile.save(data, **options)
    return data.getvalue()


def decoded(blob: bytes) -> Image.Image:
    """The picture in a WebP or JPEG file."""
    tile = Image.open(io.BytesIO(blob), formats=("WEBP", "JPEG"))
    tile.load()
    return tile


def delta_encoded(tile: Image.Image) -> bytes:
    """A tile as uint8 differences, planar [3, h, w]; compressible, of the size of the pixels."""
    planes = np.array(np.asarray(tile).transpose(2, 0, 1), order="C")
    planes[::2] -= planes[1]
    planes[:, 1:] -= planes[:, :-1].copy()
    return planes.tobytes()


def decoded_row(blobs: Sequence[bytes], widths: Sequence[int], height: int, codec: str) -> Image.Image:
    """Tiles beside each other as one picture.

    Args:
        widths, height: sizes of the tiles, in px.

    Raises:
        ValueError: a tile of another size.
    """
    if codec == "delta":
        tiles = [
            np.frombuffer(blob, np.uint8).reshape(3, height, width) for blob, width in zip(blobs, widths, strict=True)
        ]
        planes = np.concatenate(tiles, axis=2)
        for y in range(1, height):
            planes[:, y] += planes[:, y - 1]
        planes[::2] += planes[1]
        return Image.merge("RGB", [Image.fromarray(plane) for plane in planes])
    row, left = Image.new("RGB", (sum(widths), height)), 0
    for blob, width in zip(blobs, widths, strict=True):
        tile = decoded(blob)
        if tile.size != (width, height):
            raise ValueError(f"a tile of {tile.width} x {tile.height} px instead of {width} x {height}")
        row.paste(tile, (left, 0))
        left += width
    return row
