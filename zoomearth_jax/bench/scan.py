"""`zoomearth bench scan`: recall and precision of `scan` on a huge GeoTIFF of procedural scenes, its seconds and its memory."""

from __future__ import annotations

import dataclasses
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio

from zoomearth_jax.bench.memory import measured
from zoomearth_jax.configs.images import MAX_PIXELS
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.questions.scenes import COLORS, Scene, Site, random_scene
from zoomearth_jax.errors import UserError, suggestion
from zoomearth_jax.evaluation.scanning import ious

_TILE = 512  # px of the file's tiles
_UTM = rasterio.Affine(0.5, 0, 412_345.25, 0, -0.5, 5_654_321.75)  # half a metre a px, somewhere in zone 33
_IOU = 0.5


@dataclasses.dataclass(frozen=True)
class ScanBenchConfig:
    """`scan` on a GeoTIFF that a grid of procedural scenes covers, asked for the sites of one colour.

    Attributes:
        side: px per side of the image.
        scene: px per side of a scene; `side` must be a multiple of it.
        color: of the sites that are looked for.
        overlaps: of the windows, which are as large as a scene: at 0 each window shows one scene, which is what the shipped
            model knows; with another overlap windows show parts of several scenes.
        model: the model that is asked.
        folder: where the temporary files go; None is the system's.
        seed: random seed of the scenes.
        json: print JSON.
    """

    side: int = 20_000
    scene: int = 2000
    color: str = "orange"
    overlaps: tuple[float, ...] = (0.0, 0.25)
    model: str = "nano-grpo"
    folder: Path | None = None
    seed: int = 0
    json: bool = False

    def __post_init__(self):
        if not 112 <= self.scene <= self.side or self.side % self.scene or self.side**2 > MAX_PIXELS:
            raise UserError(
                f"bench scan: side is a multiple of scene, which is at least 112, and at most {int(MAX_PIXELS**0.5)}"
            )
        if self.color not in COLORS:
            raise UserError(f"bench scan: no sites are {self.color!r}; {suggestion(self.color, COLORS)}")


def bench_scan(config: ScanBenchConfig) -> list[dict]:
    """A row for each overlap.

    `recall_iou` is the share of sites with a box of IoU 0.5 or more, each box counted for one site; `recall_centre` of those in
    which the centre of a box lies; precisions are shares of boxes. `elsewhere` is the share of boxes in scenes that have no site of
    the colour: the shipped model knows no word for "none", so it names another site there. `answers` is the share of right answers
    among boxes with their centre in a site. `scan_s` is the time of the whole process, `cpu_s` that of its threads together.
    """
    with tempfile.TemporaryDirectory(dir=config.folder) as folder:
        path, began = Path(folder) / "scenes.tif", time.perf_counter()
        sites = [(box, site) for box, site in write_mosaic(path, config) if site.color == config.color]
        known = {"image": f"{config.side}x{config.side}", "file_gb": path.stat().st_size / 1e9}
        known["write_s"] = time.perf_counter() - began
        rows = []
        for overlap in config.overlaps:
            out = Path(folder) / f"scan_{overlap}"
            question = f"Which way do the stripes of the {config.color} site run?"
            args = ["scan", str(path), question, "--model", config.model, "--out", str(out)]
            args += ["--tile-px", str(config.scene), "--overlap", str(overlap)]
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            peak, seconds = measured(args)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            results = json.loads((out / "results.json").read_text(encoding="utf-8"))
            row = {"overlap": overlap, "windows": results["counts"]["windows"], "sites": len(sites)}
            took = {"scan_s": seconds, "cpu_s": cpu, "peak_gb": peak}
            rows.append(known | row | agreement(sites, results["boxes"], config.scene) | took)
        return rows


def write_mosaic(path: Path, config: ScanBenchConfig) -> list[tuple[Box, Site]]:
    """Writes the GeoTIFF, in rows of its tiles; all sites, in px of it."""
    count, frame = config.side // config.scene, Frame(config.side, config.side)
    rng = np.random.default_rng([config.seed, count])
    scenes = [[random_scene(rng, config.scene) for _ in range(count)] for _ in range(count)]
    profile = {"driver": "GTiff", "tiled": True, "blockxsize": _TILE, "blockysize": _TILE, "BIGTIFF": "IF_SAFER"}
    profile |= {"compress": "deflate", "zlevel": 1, "photometric": "rgb", "interleave": "pixel"}
    shape = {"width": config.side, "height": config.side, "count": 3, "dtype": "uint8"}
    with (
        rasterio.Env(GDAL_CACHEMAX=64),
        rasterio.open(path, "w", **profile, **shape, transform=_UTM, crs="EPSG:32633") as file,
    ):
        for top in range(0, config.side, _TILE):
            strip = _rows(scenes, config.scene, top, min(top + _TILE, config.side))
            window = rasterio.windows.Window(0, top, config.side, len(strip))
            file.write(strip.transpose(2, 0, 1), window=window)
    return [
        (_moved(scene.box(site), column * config.scene, row * config.scene, frame), site)
        for row, line in enumerate(scenes)
        for column, scene in enumerate(line)
        for site in scene.sites
    ]


def _rows(scenes: list[list[Scene]], side: int, top: int, bottom: int) -> np.ndarray:
    """The rows top ... bottom - 1 of the scenes side by side, uint8 [rows, width, 3]."""
    parts = []
    for row in range(top // side, (bottom - 1) // side + 1):
        low, high = max(top - row * side, 0), min(bottom - row * side, side)
        line = [s.window(Box(0, low, side, high, s.frame), Frame(side, high - low)) for s in scenes[row]]
        parts.append(np.concatenate(line, axis=1))
    return np.concatenate(parts)


def _moved(box: Box, x: int, y: int, frame: Frame) -> Box:
    return Box(box.x1 + x, box.y1 + y, box.x2 + x, box.y2 + y, frame)


def agreement(sites: list[tuple[Box, Site]], boxes: list[dict], scene: int) -> dict:
    """How well boxes, as results.json has them, agree with the sites: see `bench_scan`."""
    found = np.array([box["box"] for box in boxes], float).reshape(-1, 4)
    truth = np.array([box.corners for box, _ in sites], float).reshape(-1, 4)
    x, y = (found[:, 0] + found[:, 2]) / 2, (found[:, 1] + found[:, 3]) / 2
    x1, y1, x2, y2 = truth.T[:, :, None]
    inside = (x1 <= x) & (x < x2) & (y1 <= y) & (y < y2)  # [sites, boxes]
    right = [boxes[box]["answer"] == sites[site][1].orientation for site, box in np.argwhere(inside)]
    matches = _matches(truth, found)
    having = {(int(left // scene), int(top // scene)) for left, top, *_ in truth}
    elsewhere = [place not in having for place in zip((x // scene).astype(int), (y // scene).astype(int), strict=True)]
    return {
        "boxes": len(found),
        "recall_iou": matches / max(len(truth), 1),
        "precision_iou": matches / max(len(found), 1),
        "recall_centre": float(inside.any(axis=1).mean()) if len(truth) else 0.0,
        "precision_centre": float(inside.any(axis=0).mean()) if len(found) else 0.0,
        "elsewhere": float(np.mean(elsewhere)) if elsewhere else 0.0,
        "answers": float(np.mean(right)) if right else 0.0,
    }


def _matches(truth: np.ndarray, found: np.ndarray) -> int:
    """Pairs of a site and a box with an IoU of at least 0.5, the best first, each in one pair."""
    table = np.array([ious(site, found) for site in truth]).reshape(len(truth), len(found))
    count = 0
    while table.size and table.max() >= _IOU:
        site, box = np.unravel_index(table.argmax(), table.shape)
        table[site], table[:, box] = 0, 0
        count += 1
    return count
