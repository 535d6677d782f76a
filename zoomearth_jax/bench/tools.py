"""`zoomearth bench tools`: what image tools do to images that were spoilt on purpose, and to clean ones."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from zoomearth_jax.configs.io import read_json
from zoomearth_jax.configs.tools import ToolsConfig
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.images.image_folder import open_image
from zoomearth_jax.data_pipeline.images.sources import ArrayImage, ImageSource, whole
from zoomearth_jax.errors import UserError
from zoomearth_jax.tools.image_tool import ToolResult
from zoomearth_jax.tools.registry import find_tool
from zoomearth_jax.tools.running import read_region, run_tool, window_of

_WHITE = 0.92 * 255  # of synthetic haze
_GROWN = 0.1  # by which a hand-made object's box is larger on each side than the object


@dataclasses.dataclass(frozen=True)
class ToolsBenchConfig:
    """What image tools do to images that were spoilt on purpose, and to clean ones.

    Attributes:
        images: folder of clean images, of which the middle is taken.
        side: px of the middle.
        sigmas: of the noise, in levels of 0 to 255.
        masks: JSON file with objects outlined by hand: {"objects": [{"image", "name", "polygon": [[x, y], ...]}, ...]}.
        super_resolution: folder of @upscalerjs/esrgan-slim; without it only Lanczos is measured.
        save: folder for pictures of what went in and what came out, side by side.
        seed: random seed of noise and clouds.
        json: print JSON.
    """

    images: Path = Path("runs/images")
    side: int = 512
    sigmas: tuple[float, ...] = (5, 10, 20, 30)
    masks: Path | None = None
    super_resolution: Path | None = None
    save: Path | None = None
    seed: int = 0
    json: bool = False

    def __post_init__(self):
        if not 64 <= self.side <= 2048 or min(self.sigmas, default=1) <= 0:
            raise UserError("bench tools: side must be from 64 to 2048 px, sigmas positive")


def bench_tools(config: ToolsBenchConfig) -> list[dict]:
    """Rows `tool, image, case` with PSNR in dB and SSIM before and after, or `iou`, or windows; identical images have no PSNR."""
    images = {path.name: open_image(path) for path in _images(config.images)}
    rows: list[dict] = []
    for number, (name, image) in enumerate(images.items()):
        clean, rng = _middle(image, config.side), np.random.default_rng([config.seed, number])
        for tool, case, spoilt in _spoilt(clean, config, rng):
            rows.append(_restored(tool, name, case, clean, spoilt, config))
            if "come through" in case and not rows[-1]["changed"]:
                rows.append(_restored(tool, name, f"{case}, asked for", clean, spoilt, config, haze="always"))
        rows += [*_enlarged(name, clean, config), *_left_alone(name, image)]
    return rows + _segmented(images, config)


def _images(folder: Path) -> list[Path]:
    paths = [
        path for path in sorted(Path(folder).glob("*")) if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".tif")
    ]
    if not paths:
        raise UserError(f"bench tools: no PNG, JPEG or TIFF images in {folder}; --images names a folder of clean ones")
    return paths


def _left_alone(name: str, image: ImageSource) -> list[dict]:
    """Rows of all windows of 256 and 512 px of a clean image: how many of them the tools would change."""
    from zoomearth_jax.tools.denoise import LEAST_SIGMA, noise_sigma
    from zoomearth_jax.tools.haze import LEAST_HAZE, haze_level

    sigmas, levels = [], []
    for side in (256, 512):
        for y in range(0, image.frame.height - side + 1, side):
            for x in range(0, image.frame.width - side + 1, side):
                window = image.window(Box(x, y, x + side, y + side, image.frame), Frame(side, side))
                sigmas.append(noise_sigma(window))
                levels.append(haze_level(window))
    found = {"denoise": (sigmas, LEAST_SIGMA), "cloud_removal": (levels, LEAST_HAZE)}
    return [
        {
            "tool": tool,
            "image": name,
            "case": "clean windows",
            "windows": len(values),
            "windows_changed": sum(value >= least for value in values),
            "highest": max(values, default=0.0),
        }
        for tool, (values, least) in found.items()
    ]


def _middle(image: ImageSource, side: int) -> np.ndarray:
    """The middle of an image, uint8, sides even."""
    width, height = (min(side, full) // 2 * 2 for full in (image.frame.width, image.frame.height))
    x, y = (image.frame.width - width) // 2, (image.frame.height - height) // 2
    return image.window(Box(x, y, x + width, y + height, image.frame), Frame(width, height))


def _spoilt(clean: np.ndarray, config: ToolsBenchConfig, rng) -> Iterator[tuple[str, str, np.ndarray]]:
    """Tool, case, and the image that it is given."""
    for tool in ("denoise", "cloud_removal"):
        yield tool, "clean", clean
    for sigma in config.sigmas:
        yield "denoise", f"sigma {sigma:g}", _levels(clean + rng.normal(0, sigma, clean.shape))
    for share in (0.7, 0.5):
        yield "cloud_removal", f"haze, {share:.0%} come through", _hazy(clean, np.full(clean.shape[:2], share))
    yield "cloud_removal", "thin cloud, 40-100% come through", _hazy(clean, _cloud(clean.shape, rng))


def _hazy(clean: np.ndarray, through: np.ndarray) -> np.ndarray:
    return _levels(clean * through[..., None] + _WHITE * (1 - through[..., None]))


def _cloud(shape: tuple[int, ...], rng) -> np.ndarray:
    """What comes through a thin cloud, from 0.4 to 1, smooth, float32 [h, w]."""
    coarse = Image.fromarray(rng.random((5, 5)).astype(np.float32))
    cloud = np.asarray(coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))
    return 0.4 + 0.6 * (cloud - cloud.min()) / np.ptp(cloud)


def _levels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _run(tool_name: str, pixels: np.ndarray, **parameters) -> tuple[ToolResult, float]:
    """What a tool makes of an image in memory, and its seconds."""
    tool, image = find_tool(tool_name), ArrayImage(pixels)
    region = read_region(image, window_of(tool, whole(image)), whole(image), ToolsConfig().max_side)
    began = time.perf_counter()
    return run_tool(tool, region, 600, parameters=parameters), time.perf_counter() - began


def _restored(
    tool: str, name: str, case: str, clean: np.ndarray, spoilt: np.ndarray, config: ToolsBenchConfig, **parameters
) -> dict:
    result, seconds = _run(tool, spoilt, **parameters)
    assert result.image is not None
    if config.save is not None:
        together = Image.fromarray(np.concatenate([clean, spoilt, result.image], axis=1))
        config.save.mkdir(parents=True, exist_ok=True)
        together.save(config.save / f"{Path(name).stem}_{tool}_{re.sub('[^a-z0-9]+', '_', case)}.png")
    before, after = (_likeness(clean, picture) for picture in (spoilt, result.image))
    return {
        "tool": tool,
        "image": name,
        "case": case,
        "psnr_before": before[0],
        "psnr_after": after[0],
        "ssim_before": before[1],
        "ssim_after": after[1],
        "changed": bool((result.image != spoilt).any()),
        "seconds": seconds,
    }


def _likeness(clean: np.ndarray, picture: np.ndarray) -> tuple[float | None, float]:
    """PSNR in dB, None of identical images, and SSIM."""
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    alike = float(structural_similarity(clean, picture, channel_axis=-1))
    return None if (clean == picture).all() else float(peak_signal_noise_ratio(clean, picture)), alike


def _enlarged(name: str, clean: np.ndarray, config: ToolsBenchConfig) -> list[dict]:
    """Rows of the image shrunk to half by means of 2 x 2 and enlarged again."""
    from zoomearth_jax.tools.enlarging import lanczos

    height, width = clean.shape[:2]
    small = _levels(clean.reshape(height // 2, 2, width // 2, 2, 3).mean((1, 3)))
    ways = {"Lanczos": lambda: lanczos(small, 2)}
    if config.super_resolution is not None:
        from zoomearth_jax.tools.super_resolution import SuperResolution

        network = SuperResolution(config.super_resolution)
        network(small[:32, :32])  # compiles
        ways["esrgan-slim"] = lambda: network(small)
    rows = []
    for way, enlarge in ways.items():
        began = time.perf_counter()
        psnr, ssim = _likeness(clean, enlarge())
        seconds = time.perf_counter() - began
        case = f"twice as large by {way}"
        rows.append(
            {"tool": "zoom", "image": name, "case": case, "psnr_after": psnr, "ssim_after": ssim, "seconds": seconds}
        )
    return rows


def _segmented(images: dict[str, ImageSource], config: ToolsBenchConfig) -> list[dict]:
    """Rows of the objects that were outlined by hand, as far as their images are there."""
    objects = [] if config.masks is None else read_json(config.masks).get("objects", [])
    rows = []
    for one in objects:
        if one["image"] in images:
            image = images[one["image"]]
            pixels = image.window(whole(image), image.frame)
            for method in ("grabcut", "slic"):
                rows.append(_segmented_object(one, pixels, method))
    return rows


def _segmented_object(one: dict, pixels: np.ndarray, method: str) -> dict:
    height, width = pixels.shape[:2]
    outline = Image.new("1", (width, height))
    ImageDraw.Draw(outline).polygon([tuple(point) for point in one["polygon"]], fill=1)
    truth = np.asarray(outline)
    (x1, y1), (x2, y2) = np.min(one["polygon"], axis=0), np.max(one["polygon"], axis=0)
    x, y = _GROWN * (x2 - x1), _GROWN * (y2 - y1)
    frame = Frame(width, height)
    box = Box(max(x1 - x, 0), max(y1 - y, 0), min(x2 + x, width), min(y2 + y, height), frame)
    tool = find_tool("segmentation")
    region = read_region(ArrayImage(pixels), window_of(tool, box), box, ToolsConfig().max_side)
    began = time.perf_counter()
    mask = run_tool(tool, region, 600, parameters={"method": method}).mask
    left, top, right, bottom = (round(c) for c in region.window.corners)
    there = truth[top:bottom, left:right]
    iou = float((mask & there).sum() / (mask | there).sum())
    seconds = time.perf_counter() - began
    return {
        "tool": "segmentation",
        "image": one["image"],
        "case": f"{one['name']}, {method}",
        "iou": iou,
        "seconds": seconds,
    }
