"""`zoomearth tile IMAGES... --out STORE`: a tile store, which gives windows of large images in milliseconds."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.data_pipeline.images.image_search import SIDECAR, Found, find_images
from zoomearth_jax.data_pipeline.images.tile_build import BuildReport, build_store, verify_store
from zoomearth_jax.data_pipeline.images.tiles import QUARANTINE, StoreSettings, TileStore, expanded
from zoomearth_jax.errors import UserError
from zoomearth_jax.terminal.progress import Progress


@dataclasses.dataclass(frozen=True)
class TileConfig:
    """Settings of the tile store builder.

    Attributes:
        paths: image files, and folders that are searched for them. An image is called by its path inside the folder
            (train/0001.tif), a file that is given singly by its own name.
        out: the store's folder; images are added to a store that is there, and an interrupted build goes on.
        images: how image files become 8-bit RGB (bands, stretch, limit); bands and stretch stay the store's.
        codec: form of the tiles: delta is lossless and the fastest to read, webp is lossless and some percent smaller, jpeg
            (quality 95) a quarter of the size.
        views: longest sides in px of the global views that are stored exactly.
        token_px: side in px of a visual token of the models that will read the store, 28 for Qwen2.5-VL; the sides of stored
            views are its multiples.
        workers: images at a time; 0 for one per core.
        strict: end at the first file that can't be read, instead of naming it in quarantine.jsonl.
        verify: build nothing, check the store's files against their hashes.
        json: print the summary as JSON, with lists of the files that were refused or passed over.
    """

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    out: Path = Path("runs/tiles")
    images: tyro.conf.OmitArgPrefixes[ImageConfig] = ImageConfig()
    codec: Literal["delta", "webp", "jpeg"] = "delta"
    views: tuple[int, ...] = (512, 1024)
    token_px: int = 28
    workers: int = 0
    strict: bool = False
    verify: bool = False
    json: bool = False

    def __post_init__(self):
        if not 1 <= self.token_px <= 256:
            raise UserError("tile: token_px must be between 1 and 256")
        if any(not 2 * self.token_px <= view <= 4096 for view in self.views):
            raise UserError(f"tile: views must be between {2 * self.token_px} and 4096 px")
        if self.workers < 0:
            raise UserError("tile: workers must be positive, or 0 for one per core")
        if self.verify and self.paths:
            raise UserError("tile: --verify checks the store alone; give no images")


def tile(config: TileConfig) -> dict:
    """Builds or verifies, prints a summary and returns it.

    Raises:
        UserError: nothing to store, or nothing that could be stored.
    """
    began = time.monotonic()
    if config.verify:
        summary = _verify(config)
    else:
        found = find_images(config.paths, config.out)
        report = _build(config, found)
        summary = _summary(report, found, config.json)
    summary = {"store": str(config.out), **summary, "seconds": round(time.monotonic() - began, 2)}
    print(json.dumps(summary) if config.json else ", ".join(f"{key} {value}" for key, value in summary.items()))
    if not config.verify:
        _tell(report, found, config.out)
    return summary


def _build(config: TileConfig, found: Found) -> BuildReport:
    views, images = tuple(sorted(set(config.views))), config.images
    settings = StoreSettings(config.codec, views, config.token_px, images.bands, images.stretch)
    with Progress("tiles", unit="px") as bar:
        lock = threading.Lock()

        def progress(pixels: int) -> None:
            with lock:
                bar.update(pixels)

        how: dict[str, Any] = {"workers": config.workers or len(os.sched_getaffinity(0)), "strict": config.strict}
        names = list(found.images.values())
        return build_store(
            list(found.images), config.out, settings, ids=names, max_pixels=images.max_pixels, progress=progress, **how
        )


def _summary(report: BuildReport, found: Found, lists: bool) -> dict:
    summary: dict[str, Any] = {"built": report.built, "kept": report.kept, "refused": len(report.refused)}
    summary["passed_over"] = len(found.passed_over)
    if not lists:
        return summary
    summary["refused_files"] = [{"file": file, "reason": why} for file, why in sorted(report.refused.items())]
    return summary | {"passed_over_files": [{"file": str(f), "reason": why} for f, why in found.passed_over.items()]}


def _tell(report: BuildReport, found: Found, out: Path) -> None:
    """Names on standard error what isn't in the store now, and why; sidecar files, which go with an image, by their number."""
    sidecars = [path for path, why in found.passed_over.items() if why == SIDECAR]
    for path, why in found.passed_over.items():
        if why != SIDECAR:
            print(f"passed over: {path}: {why}", file=sys.stderr)
    if sidecars:
        kinds = ", ".join(sorted({path.suffix for path in sidecars}))
        print(f"passed over: {len(sidecars)} sidecar files ({kinds})", file=sys.stderr)
    refused = sorted(report.refused.items())
    stored = report.built + report.kept
    for file, why in refused if stored or len(refused) > 1 else ():
        print(f"refused: {file}: {why}", file=sys.stderr)
    if not stored:
        file, why = refused[0]
        several = f"all {len(refused)} images were refused, the first: " if len(refused) > 1 else ""
        raise UserError(f"{out}: nothing was stored: {several}{file}: {why}")
    if refused:
        print(f"{len(refused)} files are named in {expanded(out) / QUARANTINE}", file=sys.stderr)


def _verify(config: TileConfig) -> dict:
    total = len(TileStore.open(config.out))
    with Progress("verify", total) as bar:
        damaged = verify_store(config.out, lambda name: bar.update())
    for name, why in damaged.items():
        print(f"damaged: {name}: {why}", file=sys.stderr)
    if damaged:
        first = next(iter(damaged))
        raise UserError(
            f"{config.out}: {len(damaged)} of {total} images are damaged ({first}); remove their shards and tile again"
        )
    return {"verified": total}
