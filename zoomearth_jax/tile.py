"""`zoomearth tile IMAGES... --out STORE`: a tile store, which gives windows of large images in milliseconds."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tqdm import tqdm

from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.data_pipeline.tile_build import build_store, verify_store
from zoomearth_jax.data_pipeline.tiles import QUARANTINE, UNIT, StoreSettings, TileStore
from zoomearth_jax.errors import UserError

_SUFFIXES = {".tif", ".tiff", ".png", ".jpg", ".jpeg", ".webp"}


@dataclasses.dataclass(frozen=True)
class TileConfig:
    """Settings of the tile store builder.

    Attributes:
        images: files, and folders that are searched for TIFF, PNG, JPEG and WebP files.
        out: the store's folder; images are added to a store that is there, and an interrupted build goes on.
        codec: of the tiles: delta is lossless and the fastest to read, webp is lossless and some percent smaller, jpeg
            (quality 95) a quarter of the size.
        views: longest sides in px of the global views that are stored exactly.
        workers: images at a time; 0 for one per core.
        strict: end at the first file that can't be read, instead of naming it in quarantine.jsonl.
        bands: numbers, from 1, of the bands that are red, green and blue, for images of more than four.
        stretch: pixel values that become 0 and 255, for images that aren't 8-bit.
        verify: build nothing, check the store's files against their hashes.
        json: print the summary as JSON.
    """

    images: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    out: Path = Path("runs/tiles")
    codec: Literal["delta", "webp", "jpeg"] = "delta"
    views: tuple[int, ...] = (512, 1024)
    workers: int = 0
    strict: bool = False
    bands: tuple[int, int, int] | None = None
    stretch: tuple[float | str, ...] = ()
    verify: bool = False
    json: bool = False

    def __post_init__(self):
        if any(not 2 * UNIT <= view <= 4096 for view in self.views):
            raise UserError(f"tile: views must be between {2 * UNIT} and 4096 px")
        if self.workers < 0:
            raise UserError("tile: workers must be positive, or 0 for one per core")
        if self.verify and self.images:
            raise UserError("tile: --verify checks the store alone; give no images")
        ImageConfig(self.bands, self.stretch)


def tile(config: TileConfig) -> dict:
    """Builds or verifies, prints a summary and returns it."""
    began = time.monotonic()
    summary = _verify(config) if config.verify else _build(config)
    summary = {"store": str(config.out), **summary, "seconds": round(time.monotonic() - began, 2)}
    print(json.dumps(summary) if config.json else ", ".join(f"{key} {value}" for key, value in summary.items()))
    return summary


def _build(config: TileConfig) -> dict:
    paths = find_images(config.images)
    settings = StoreSettings(config.codec, tuple(sorted(set(config.views))), config.bands, config.stretch)
    workers = config.workers or len(os.sched_getaffinity(0))
    with tqdm(desc="tiles", unit="px", unit_scale=True, disable=not sys.stderr.isatty(), leave=False) as bar:
        lock = threading.Lock()

        def progress(pixels: int) -> None:
            with lock:
                bar.update(pixels)

        report = build_store(paths, config.out, settings, workers=workers, strict=config.strict, progress=progress)
    for path, reason in sorted(report.refused.items()):
        print(f"refused: {path}: {reason}", file=sys.stderr)
    if report.refused:
        print(f"{len(report.refused)} files are named in {config.out / QUARANTINE}", file=sys.stderr)
    return {"built": report.built, "kept": report.kept, "refused": len(report.refused)}


def find_images(places: tuple[Path, ...]) -> list[Path]:
    """The files among `places` and in the folders among them, each once, sorted.

    Raises:
        UserError: nothing given, nothing there, or a folder without images.
    """
    if not places:
        raise UserError("tile: give image files or folders of them")
    found: dict[Path, Path] = {}
    for place in places:
        if not place.exists():
            raise UserError(f"{place}: no such file or folder")
        files = (
            [place]
            if not place.is_dir()
            else [f for f in place.rglob("*") if f.suffix.lower() in _SUFFIXES and f.is_file()]
        )
        if not files:
            raise UserError(f"{place}: holds no TIFF, PNG, JPEG or WebP files")
        found |= {file.resolve(): file for file in files}
    return sorted(found.values())


def _verify(config: TileConfig) -> dict:
    total = len(TileStore.open(config.out))
    with tqdm(total=total, desc="verify", disable=not sys.stderr.isatty(), leave=False) as bar:
        damaged = verify_store(config.out, lambda name: bar.update())
    for name, why in damaged.items():
        print(f"damaged: {name}: {why}", file=sys.stderr)
    if damaged:
        first = next(iter(damaged))
        raise UserError(
            f"{config.out}: {len(damaged)} of {total} images are damaged ({first}); remove their shards and tile again"
        )
    return {"verified": total}
