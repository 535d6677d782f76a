"""TIFF layouts, generated: how they are written, and the RGB that they must give.

What is expected comes from the samples that were written (or, of lossy ones, from Pillow and GDAL), by the rule of
`samples` written down a second time here, in plain numpy.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import rasterio
import tifffile
from PIL import Image

HEIGHT, WIDTH = 70, 93
STRETCH = {"uint16": (3000, 50_000), "int16": (-9000, 20_000), "uint8": None, "int8": (-100, 90)}
WIDE = (20.0, 200.0)  # of the other types


@dataclasses.dataclass(frozen=True)
class Layout:
    """One way to write a picture.

    Attributes:
        writer: tifffile or rasterio.
        photometric: minisblack, miniswhite, rgb, palette, separated or ycbcr.
        bands, dtype, bits: of the samples.
        planar: contig or separate.
        blocks: (rows,) of strips, or (rows, columns) of tiles.
        codec: compression; none, or its name for both writers.
        predictor: differences of neighbours before compression.
        alpha: of the last band: none, unassociated or premultiplied.
    """

    writer: str
    photometric: str
    bands: int
    dtype: str
    bits: int
    planar: str
    blocks: tuple[int, ...]
    codec: str
    predictor: bool
    alpha: str
    big_endian: bool = False
    bigtiff: bool = False

    @property
    def name(self) -> str:
        """All of it, as a file name."""
        return "-".join(str(value) for value in dataclasses.astuple(self)).replace(" ", "") + ".tif"

    @property
    def stretch(self) -> tuple[float, float] | None:
        """LOW and HIGH that the layout is read with."""
        return STRETCH.get(self.dtype, WIDE)


_PHOTOMETRICS = {  # photometric -> bands
    "minisblack": (1, 2, 3, 4),
    "miniswhite": (1, 2),
    "rgb": (3, 4),
    "palette": (1,),
    "separated": (4,),
    "ycbcr": (3,),
}
_TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64")
_BLOCKS = ((1,), (7,), (HEIGHT,), (HEIGHT + 30,), (16, 32), (64, 48), (128, 128))
_CODECS = {
    "tifffile": ("none", "adobe_deflate", "lzw", "packbits", "zstd", "lzma", "jpeg"),
    "rasterio": ("none", "deflate", "lzw", "packbits", "zstd", "lzma", "lerc", "jpeg", "webp"),
}


def layouts() -> Iterator[Layout]:
    """All that make sense and that their writer can write."""
    for photometric, counts in _PHOTOMETRICS.items():
        for bands, dtype, planar, blocks in itertools.product(counts, _TYPES, ("contig", "separate"), _BLOCKS):
            for writer in ("tifffile", "rasterio"):
                for codec, predictor in itertools.product(_CODECS[writer], (False, True)):
                    for bits, alpha in itertools.product((1, 2, 4, 8), ("none", "unassociated", "premultiplied")):
                        one = Layout(writer, photometric, bands, dtype, bits, planar, blocks, codec, predictor, alpha)
                        if _possible(one):
                            yield one
                            if writer == "tifffile" and bits == 8 and codec == "none" and not predictor:
                                yield dataclasses.replace(one, big_endian=True)
                                yield dataclasses.replace(one, bigtiff=True)


def _possible(one: Layout) -> bool:
    size, floating = np.dtype(one.dtype).itemsize, one.dtype.startswith("float")
    colours = (
        1 if one.photometric in ("minisblack", "miniswhite") else {"palette": 1, "separated": 4}.get(one.photometric, 3)
    )
    coded = one.codec in ("adobe_deflate", "deflate", "lzw", "zstd")
    rules = (
        one.planar == "contig" or one.bands > 1,
        one.bits == 8
        or (one.dtype == "uint8" and one.bands == 1 and one.photometric != "separated" and not one.predictor),
        one.bits == 8 or (one.writer == "rasterio" and one.codec in ("none", "deflate", "zstd")),
        one.bits == 8 or one.photometric in ("minisblack", "miniswhite", "palette"),
        one.photometric not in ("palette", "ycbcr") or one.dtype == "uint8",
        one.photometric != "separated" or one.dtype in ("uint8", "uint16"),
        one.photometric != "miniswhite" or one.dtype.startswith("uint"),
        one.alpha == "none" or (one.bands in (2, 4) and one.bands == colours + 1),
        one.alpha == "none" or (one.dtype in ("uint8", "uint16")),
        one.alpha != "none" or one.photometric != "rgb" or one.bands == 3,
        not one.predictor or (coded and one.dtype != "float16" and (size < 8 or floating)),
        one.codec not in ("jpeg", "webp") or one.dtype == "uint8",
        one.codec != "jpeg"
        or (one.photometric in ("minisblack", "rgb", "ycbcr") and one.bits == 8 and one.alpha == "none"),
        one.codec != "jpeg" or (len(one.blocks) == 2 and min(one.blocks) % 16 == 0) or one.blocks[0] >= HEIGHT,
        one.codec != "jpeg" or one.photometric != "minisblack" or one.bands == 1 or one.writer == "rasterio",
        one.codec != "webp" or (one.photometric == "rgb" and one.planar == "contig" and one.alpha != "premultiplied"),
        one.codec != "lerc" or (one.bits == 8 and one.dtype not in ("float16", "int64", "uint64")),
        one.codec != "packbits" or size == 1,
        one.photometric != "ycbcr" or one.writer == "tifffile" or (one.codec == "jpeg" and one.planar == "contig"),
        one.writer == "tifffile" or one.photometric != "palette" or one.planar == "contig",
        one.writer == "tifffile" or len(one.blocks) == 1 or all(side % 16 == 0 for side in one.blocks),
        one.writer == "tifffile" or one.blocks[0] <= HEIGHT or len(one.blocks) == 2,
        one.writer == "tifffile" or one.dtype != "float16",
        one.codec != "lzma" or one.writer == "rasterio" or one.dtype != "float16",
    )
    return all(rules)


def sample(count: int, seed: int = 0) -> list[Layout]:
    """Some of them, so that each value of each property comes up."""
    everything = list(layouts())
    random.Random(seed).shuffle(everything)
    chosen, seen = [], set()
    for one in everything:
        pairs = set(itertools.combinations(sorted((f, str(v)) for f, v in dataclasses.asdict(one).items()), 2))
        if pairs - seen and len(chosen) < count:
            seen |= pairs
            chosen.append(one)
    return chosen


def samples_of(one: Layout) -> np.ndarray:
    """What is written: [h, w, bands] of the type."""
    rng = np.random.default_rng(len(one.name))
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    smooth = np.stack([(x * (1 + b) + y * (3 - b % 3)) % 256 for b in range(one.bands)], -1)
    values = (smooth + rng.integers(0, 12, smooth.shape)).clip(0, 255)
    if one.bits < 8:
        return (values.astype(np.uint8) >> (8 - one.bits)).astype(np.uint8)
    if one.dtype == "uint16":
        return (values * 257 - rng.integers(0, 200, values.shape)).clip(0).astype(np.uint16)
    if one.dtype == "int16":
        return (values * 120 - 15_000).astype(np.int16)
    if one.dtype == "int8":
        return (values - 128).astype(np.int8)
    return values.astype(one.dtype)


def palette() -> np.ndarray:
    """uint16 [3, 256]."""
    return (np.random.default_rng(7).integers(0, 256, (3, 256)) * 257).astype(np.uint16)


def write(one: Layout, path: Path) -> None:
    """Writes the file; raises what the writer raises."""
    (_write_tifffile if one.writer == "tifffile" else _write_rasterio)(one, path, samples_of(one))


def _write_tifffile(one: Layout, path: Path, pixels: np.ndarray) -> None:
    extra = {"none": "unspecified", "unassociated": "unassalpha", "premultiplied": "assocalpha"}[one.alpha]
    colours = {"separated": 4, "rgb": 3, "ycbcr": 3}.get(one.photometric, 1)
    options = {
        "photometric": one.photometric,
        "planarconfig": one.planar if one.bands > 1 else None,
        "compression": None if one.codec == "none" else one.codec,
        "predictor": one.predictor,
        "extrasamples": [extra] * (one.bands - colours) or None,
        "metadata": None,
        "bigtiff": one.bigtiff,
        "byteorder": ">" if one.big_endian else "<",
        "colormap": palette() if one.photometric == "palette" else None,
    }
    options |= {"tile": one.blocks} if len(one.blocks) == 2 else {"rowsperstrip": min(one.blocks[0], HEIGHT)}
    if one.codec == "jpeg":
        options["compressionargs"] = {"level": 95}
    pixels = pixels[..., 0] if one.bands == 1 else pixels
    tifffile.imwrite(path, pixels.transpose(2, 0, 1).copy() if one.planar == "separate" else pixels, **options)


def _write_rasterio(one: Layout, path: Path, pixels: np.ndarray) -> None:
    photometric = {"separated": "cmyk"}.get(one.photometric, one.photometric)
    options = {
        "photometric": photometric.upper(),
        "interleave": "band" if one.planar == "separate" else "pixel",
        "tiled": len(one.blocks) == 2,
        "blockysize": one.blocks[0],
    }
    options |= {"blockxsize": one.blocks[1]} if len(one.blocks) == 2 else {}
    options |= {} if one.codec == "none" else {"compress": one.codec}
    options |= {"nbits": one.bits} if one.bits < 8 else {}
    options |= {"jpeg_quality": 95} if one.codec == "jpeg" else {"webp_lossless": True} if one.codec == "webp" else {}
    if one.predictor:
        options["predictor"] = 3 if one.dtype.startswith("float") else 2
    if one.alpha != "none":
        options["alpha"] = {"unassociated": "yes", "premultiplied": "premultiplied"}[one.alpha]
    with rasterio.open(
        path, "w", driver="GTiff", width=WIDTH, height=HEIGHT, count=one.bands, dtype=one.dtype, **options
    ) as file:
        if one.photometric == "palette":
            file.write_colormap(1, {i: tuple(int(c) for c in palette()[:, i] // 257) for i in range(2**one.bits)})
        file.write(pixels.transpose(2, 0, 1))


def expected(one: Layout, path: Path) -> np.ndarray:
    """uint8 [h, w, 3]."""
    pixels = samples_of(one)
    if one.codec == "jpeg" or one.photometric == "ycbcr":
        pixels = _decoded(one, path)
        return np.repeat(pixels[..., :1], 3, 2) if pixels.shape[2] < 3 else pixels[..., :3]
    if one.photometric == "palette":
        return (palette() // 257).astype(np.uint8).T[pixels[..., 0]]
    if one.alpha == "premultiplied":
        most, alpha = np.iinfo(one.dtype).max, pixels[..., -1:].astype(object)
        whole = np.minimum(pixels[..., :-1].astype(object) * most // np.maximum(alpha, 1), most)
        pixels = np.where(alpha > 0, whole, pixels[..., :-1]).astype(one.dtype)
    if one.bits < 8:
        pixels = (pixels * (255 // (2**one.bits - 1))).astype(np.uint8)
    elif one.dtype != "uint8":
        low, high = one.stretch
        pixels = np.rint((pixels.astype(np.float64) - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
    if one.photometric == "miniswhite":
        pixels = 255 - pixels
    if one.photometric == "separated":
        return np.asarray(Image.frombytes("CMYK", (WIDTH, HEIGHT), pixels.tobytes()).convert("RGB"))
    return pixels[..., :3] if pixels.shape[2] >= 3 else np.repeat(pixels[..., :1], 3, 2)


def _decoded(one: Layout, path: Path) -> np.ndarray:
    """By Pillow where it reads JPEG in YCbCr, which is where it and GDAL upsample colours differently; else by GDAL."""
    with Image.open(path) if _pillows(path) else rasterio.open(path) as file:
        return np.asarray(file.convert("RGB")) if isinstance(file, Image.Image) else file.read().transpose(1, 2, 0)


def _pillows(path: Path) -> bool:
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        return page.photometric == 6 and page.compression == 7 and page.planarconfig == 1
