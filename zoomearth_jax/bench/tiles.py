"""`zoomearth bench tiles`: windows from a tile store against decoding the whole file for each; building a store."""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from zoomearth_jax.configs.images import MAX_PIXELS
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.images.tiles import StoredImage, TileStore
from zoomearth_jax.errors import UserError

_BUILD = """
import pathlib, sys
from zoomearth_jax import cli
cli.main(["tile", sys.argv[1], "--out", sys.argv[2], "--codec", sys.argv[3], "--json"])
status = pathlib.Path("/proc/self/status").read_text()
print(int(status.split("VmHWM:")[1].split()[0]) / 1e6)
"""


@dataclasses.dataclass(frozen=True)
class TilesConfig:
    """Windows from a tile store against decoding the whole file for each, as the release does; building a store.

    Attributes:
        side: px per side of the image that is read as striped TIFF and as PNG.
        big: px per side of the large striped TIFF; 0 leaves it out.
        windows: random windows of 512 to 2,048 px that are shrunk to at most 512 px; the median of each way counts.
        codec: form of the tiles (see `zoomearth tile`).
        folder: where the temporary images go (2 GB with `big`); None is the system's.
        seed: random seed of images and windows.
        json: print JSON.
    """

    side: int = 5000
    big: int = 20_000
    windows: int = 15
    codec: Literal["delta", "webp", "jpeg"] = "delta"
    folder: Path | None = None
    seed: int = 0
    json: bool = False

    def __post_init__(self):
        small = self.side < 600 or 0 < self.big < 600
        if self.windows < 1 or self.big < 0 or small or max(self.side, self.big) ** 2 > MAX_PIXELS:
            raise UserError(f"bench tiles: windows must be positive, sides between 600 and {int(MAX_PIXELS**0.5)} px")


def bench_tiles(config: TilesConfig) -> list[dict]:
    """One row: `striped_tiff_ratio, png_ratio, big_ratio, build_s`, the milliseconds behind them and the memory.

    `build_s` is the larger of the two files' builds, start-up not counted; `*_peak_gb` the highest resident memory of
    `zoomearth tile`.
    """
    with tempfile.TemporaryDirectory(dir=config.folder) as folder:
        return [_measured(config, Path(folder))]


def _measured(config: TilesConfig, folder: Path) -> dict:
    tiff, png, big = (folder / name for name in ("striped.tif", "image.png", "big.tif"))
    write_photograph(tiff, config.side, config.seed)
    with Image.open(tiff) as image:
        image.save(png, compress_level=6)
    builds = {path.name: _build(path, folder / "store", config.codec) for path in (tiff, png)}
    if config.big:
        write_photograph(big, config.big, config.seed)
        builds[big.name] = _build(big, folder / "store", config.codec)
    row: dict = {"striped_tiff_ratio": 0.0, "png_ratio": 0.0, "big_ratio": None, "build_s": 0.0}
    store = TileStore.open(folder / "store")
    for name, path in (("striped_tiff", tiff), ("png", png), ("big", big)):
        if not path.exists():
            continue
        ours, whole = _windows(store[path.name], path, config.windows, config.seed)
        row[f"{name}_ratio"] = whole / ours
        row |= {f"{name}_store_ms": 1000 * ours, f"{name}_whole_ms": 1000 * whole}
        row |= {f"{name}_build_s": builds[path.name][0], f"{name}_build_peak_gb": builds[path.name][1]}
    row["build_s"] = max(builds[path.name][0] for path in (tiff, png))
    return row


def write_photograph(path: Path, side: int, seed: int) -> None:
    """A striped, uncompressed TIFF of clouds of all sizes with some noise, as compressible as a photograph."""
    rng, step = np.random.default_rng(seed), min(side, 1000)
    image = Image.new("RGB", (side, side))
    for size, weight in ((8, 0.0), (64, 0.5), (512, 0.6)):
        coarse = Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8))
        for top in range(0, side, step):
            bottom = min(top + step, side)
            box = (0, top * size / side, size, bottom * size / side)
            layer = coarse.resize((side, bottom - top), Image.Resampling.BICUBIC, box=box)
            if weight:
                layer = Image.blend(layer, image.crop((0, top, side, bottom)), weight)
            if size == 512:
                noise = rng.integers(0, 6, (bottom - top, side, 3), np.uint8)
                layer = Image.fromarray(np.asarray(layer) // 2 + 60 + noise)
            image.paste(layer, (0, top))
    image.save(path)


def _build(path: Path, store: Path, codec: str) -> tuple[float, float]:
    """Seconds of the build as `zoomearth tile` states them, and the process's highest memory in GB."""
    command = [sys.executable, "-c", _BUILD, str(path), str(store), codec]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not done.stdout:
        raise UserError(f"bench tiles: the build failed: {done.stderr.strip().splitlines()[-1:]}")
    summary, peak = done.stdout.splitlines()
    return json.loads(summary)["seconds"], float(peak)


def _windows(stored: StoredImage, path: Path, count: int, seed: int) -> tuple[float, float]:
    """Median seconds of windows from the store, and by decoding the whole file; in turns, the first of each not counted."""
    rng, side, seconds = np.random.default_rng(seed), stored.frame.width, []
    for _ in range(count + 1):
        width, height = (int(n) for n in rng.integers(min(512, side // 2), min(2048, side) + 1, 2))
        x, y = int(rng.integers(0, side - width + 1)), int(rng.integers(0, side - height + 1))
        shrink = min(1, 512 / max(width, height))
        size, corners = Frame(max(1, int(width * shrink)), max(1, int(height * shrink))), (x, y, x + width, y + height)
        marks = [time.perf_counter()]
        stored.window(Box(*corners, stored.frame), size)
        marks.append(time.perf_counter())
        decoded_whole(path, corners, size)
        marks.append(time.perf_counter())
        seconds.append(np.diff(marks))
    ours, whole = zip(*seconds[1:], strict=True)
    return statistics.median(ours), statistics.median(whole)


def decoded_whole(path: Path, corners: tuple[int, int, int, int], size: Frame) -> np.ndarray:
    """The release's way: open, cut, shrink."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path) as image:
            part = image.crop(corners).convert("RGB")
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    return np.asarray(part.resize((size.width, size.height), Image.Resampling.BICUBIC))
