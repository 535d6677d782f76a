"""`zoomearth bench memory`: the highest resident memory of `ask` and `tile` on very large files."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import rasterio

from zoomearth_jax.configs.images import MAX_PIXELS
from zoomearth_jax.errors import UserError

_MEASURED = """
import pathlib, sys
from zoomearth_jax import cli
code = cli.main(sys.argv[1:])
status = pathlib.Path("/proc/self/status").read_text()
print(int(status.split("VmHWM:")[1].split()[0]) / 1e6)
sys.exit(code)
"""
_TILE = 512  # px of the files' tiles


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """The highest resident memory of `ask` and `tile`, each in a process of its own, on JPEG-compressed tiled TIFFs.

    Attributes:
        sizes: WIDTHxHEIGHT in px of each file.
        question: what `ask` is asked.
        model: the model that is asked.
        folder: where the temporary files go; None is the system's.
        seed: random seed of the pixels.
        json: print JSON.
    """

    sizes: tuple[str, ...] = ("25000x20000", "36000x18000")
    question: str = "How many sites are there?"
    model: str = "nano-grpo"
    folder: Path | None = None
    seed: int = 0
    json: bool = False

    def __post_init__(self):
        if not self.sizes:
            raise UserError("bench memory: give at least one size, such as 25000x20000")
        for size in self.sizes:
            _size(size)


def _size(text: str) -> tuple[int, int]:
    """Width and height that WIDTHxHEIGHT says."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()) or not 0 < int(width) * int(height) <= MAX_PIXELS:
        raise UserError(f"bench memory: sizes are WIDTHxHEIGHT of at most {MAX_PIXELS:,} px, not {text!r}")
    return int(width), int(height)


def bench_memory(config: MemoryConfig) -> list[dict]:
    """Rows `image, file_gb, ask_peak_gb, ask_s, tile_peak_gb, tile_s`; seconds with the processes' start."""
    rows = []
    for text in config.sizes:
        with tempfile.TemporaryDirectory(dir=config.folder) as folder:
            path = Path(folder) / "large.tif"
            write_clouds(path, *_size(text), config.seed)
            row = {"image": text, "file_gb": path.stat().st_size / 1e9}
            ask = ["ask", str(path), config.question, "--model", config.model]
            for verb, args in (("ask", ask), ("tile", ["tile", str(path), "--out", str(Path(folder) / "tiles")])):
                row[f"{verb}_peak_gb"], row[f"{verb}_s"] = measured(args)
            rows.append(row)
    return rows


def write_clouds(path: Path, width: int, height: int, seed: int) -> None:
    """Writes a TIFF of JPEG tiles (YCbCr, quality 85), one row of them at a time, so that it is never whole in memory.

    The same smooth noise, brighter and darker from place to place: what it shows doesn't change the memory.
    """
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (_TILE // 16, -(-width // 16), 3), np.uint8)
    pattern = coarse.repeat(16, axis=0).repeat(16, axis=1)[:, :width].transpose(2, 0, 1)
    profile = {"driver": "GTiff", "tiled": True, "blockxsize": _TILE, "blockysize": _TILE, "BIGTIFF": "IF_SAFER"}
    profile |= {"compress": "jpeg", "photometric": "ycbcr", "interleave": "pixel", "JPEG_QUALITY": 85}
    shape = {"width": width, "height": height, "count": 3, "dtype": "uint8"}
    with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=64):
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", **profile, **shape) as file:
            for top in range(0, height, _TILE):
                rows = min(_TILE, height - top)
                strip = pattern[:, :rows] + np.uint8(rng.integers(0, 50))
                file.write(strip, window=rasterio.windows.Window(0, top, width, rows))


def measured(args: list[str]) -> tuple[float, float]:
    """Highest resident memory in GB and seconds of a verb in a process of its own."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", _MEASURED, *args, "--json"], capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode or not done.stdout:
        raise UserError(f"bench: `{args[0]}` failed: {' '.join(done.stderr.strip().splitlines()[-1:])}")
    printed, _, peak = done.stdout.rstrip().rpartition("\n")
    json.loads(printed)  # it did its work
    return float(peak), seconds
