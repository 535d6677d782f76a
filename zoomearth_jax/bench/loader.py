"""`zoomearth bench loader`: images for GRPO from the loader and a tile store, against reading each file for each rollout.

The released code opens a file and decodes it whole for the overview of every rollout, and again for its crop. Here the loader
reads the overview once per group, ahead of its step, and crops come from the store in threads, as the rollout engine reads them.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from zoomearth_jax.configs.episode import EpisodeConfig
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.images.sources import ImageSource, whole
from zoomearth_jax.data_pipeline.images.tile_build import build_store
from zoomearth_jax.data_pipeline.images.tiles import StoreSettings, TileStore
from zoomearth_jax.data_pipeline.questions.mixture import Source
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.data_pipeline.rows.builder import RowBuilder
from zoomearth_jax.data_pipeline.rows.loader import Loader
from zoomearth_jax.errors import UserError
from zoomearth_jax.runs.models import load_rows, resolve

PNG_SHARE = 0.71  # of LRS-GRO's questions; the others are TIFF
BOX_SIDES = (90, 2000)  # px, log-uniform: median and tails of LRS-GRO's boxes in images of 5,000 px


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """Images for GRPO from the loader and a tile store, against reading each file for each rollout.

    Attributes:
        formats: formats of the image files, png or tif (striped, not compressed).
        images: files of each format.
        side: px per side.
        prompts: questions per step.
        group: rollouts per question, each with a box of its own.
        steps: steps of the loader in each turn; the loop over files gets as many questions as one step has.
        repeats: turns of both, of which the medians count.
        json: print JSON.
    """

    formats: tuple[str, ...] = ("png", "tif")
    images: int = 4
    side: int = 5000
    prompts: int = 4
    group: int = 4
    steps: int = 8
    repeats: int = 3
    json: bool = False

    def __post_init__(self):
        if not self.formats or set(self.formats) - {"png", "tif"}:
            raise UserError("bench loader: formats are png and tif")
        if min(self.images, self.prompts, self.group, self.steps, self.repeats) < 1 or self.side < 512:
            raise UserError("bench loader: counts must be positive, side at least 512 px")


class WholeFile:
    """An image file as the released code reads it: opened and decoded whole for every window."""

    def __init__(self, path: Path):
        """Reads the header."""
        self.path = path
        with Image.open(path) as file:
            self.frame = Frame(*file.size)

    def window(self, box: Box, size: Frame, exact: bool = True) -> np.ndarray:
        """See `ImageSource.window`."""
        shape = size.width, size.height
        return np.asarray(self.pixels().resize(shape, Image.Resampling.BICUBIC, box=box.corners))

    def pixels(self) -> Image.Image:
        """The whole image."""
        with Image.open(self.path) as file:
            return file.convert("RGB")


class HeldFile(WholeFile):
    """An image file that is decoded once, and held."""

    @functools.cache  # noqa: B019 - as long as it lives
    def pixels(self) -> Image.Image:
        """The whole image."""
        return super().pixels()


def bench_loader(config: LoaderConfig) -> list[dict]:
    """Rows `images, files_per_s, loader_per_s, ratio`: rollouts per second. With both formats, the last row mixes them
    by LRS-GRO's shares."""
    nano = load_rows(resolve("nano"))
    rows = RowBuilder(nano.tokenizer, EpisodeConfig(), nano.layout.merged_px)
    results = {}
    for suffix in config.formats:
        with tempfile.TemporaryDirectory() as folder:
            results[suffix] = _measure(Path(folder), suffix, rows, config)
    if len(results) == 2:
        seconds = [
            PNG_SHARE / png + (1 - PNG_SHARE) / tif for png, tif in zip(results["png"], results["tif"], strict=True)
        ]
        results[f"{PNG_SHARE:.0%} png"] = [1 / value for value in seconds]
    return [
        {"images": name, "files_per_s": files, "loader_per_s": loader, "ratio": loader / files}
        for name, (files, loader) in results.items()
    ]


def _measure(folder: Path, suffix: str, rows: RowBuilder, config: LoaderConfig) -> list[float]:
    """Rollouts per second from files, and from the loader: medians of runs that take turns."""
    files = [folder / f"{number}.{suffix}" for number in range(config.images)]
    for number, file in enumerate(files):
        write_photograph(file, config.side, number)
    raw, stored = _questions([WholeFile(file) for file in files]), _questions(stored_images(folder / "tiles", files))
    _check_same(raw[0], stored[0], rows)
    turns = [
        (_files_speed(raw, rows, config, turn), _loader_speed(stored, rows, config)) for turn in range(config.repeats)
    ]
    return [statistics.median(speeds) for speeds in zip(*turns, strict=True)]


def stored_images(folder: Path, files: list[Path]) -> list[ImageSource]:
    """The files' images in a tile store."""
    build_store(files, folder, StoreSettings(), workers=2, strict=True)
    store = TileStore.open(folder)
    return [store.image(file.name) for file in files]


def _questions(images: Sequence[ImageSource]) -> list[Question]:
    return [Question(image, "What is at the centre?", "nothing", "object") for image in images]


def write_photograph(path: Path, side: int, seed: int) -> None:
    """An image that compresses about as a photograph does: noise of every scale, the coarser the stronger."""
    rng = np.random.default_rng(seed)
    picture = rng.normal(128, 1, (side, side, 3)).astype(np.float32)
    for cells in (8, 32, 128, 512, 2048):
        for band in range(3):
            noise = Image.fromarray(rng.normal(0, 200 / cells**0.5, (cells, cells)).astype(np.float32))
            picture[..., band] += np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC))
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path)


def _windows(question: Question, rows: RowBuilder, count: int, rng: np.random.Generator) -> list[Box]:
    """The windows of boxes such as a group's rollouts name."""
    frame = question.image.frame
    windows = []
    for _ in range(count):
        least, most = np.log(BOX_SIDES)
        sides = np.minimum(np.exp(rng.uniform(least, most, 2)), (frame.width, frame.height))
        x, y = rng.uniform(0, (frame.width, frame.height) - sides)
        windows.append(rows.window(Box(x, y, x + sides[0], y + sides[1], frame), frame))
    return windows


def _files_speed(questions: list[Question], rows: RowBuilder, config: LoaderConfig, turn: int) -> float:
    """Rollouts per second of a loop over files: `prompts` questions' rollouts, overview and crop each."""
    rng, began = np.random.default_rng(turn), time.perf_counter()
    for number in range(config.prompts):
        question = questions[number % len(questions)]
        for window in _windows(question, rows, config.group, rng):
            rows.overview(question)
            rows.crop(question.image, window)
    return config.prompts * config.group / (time.perf_counter() - began)


def _loader_speed(questions: list[Question], rows: RowBuilder, config: LoaderConfig) -> float:
    """Rollouts per second of `steps` steps: prompts with overviews from the loader, crops in threads."""
    rng, began = np.random.default_rng(0), time.perf_counter()
    source = Source("bench", questions)
    with (
        ThreadPoolExecutor(8) as readers,
        Loader([source], rows.prompts, batch_size=config.prompts, seed=0) as loader,
    ):
        for step, _ in enumerate(loader.batches(0, config.steps)):
            asked = [(q, w) for q in loader.questions(step) for w in _windows(q, rows, config.group, rng)]
            list(readers.map(lambda pair: rows.crop(pair[0].image, pair[1]), asked))
    return config.steps * config.prompts * config.group / (time.perf_counter() - began)


def _check_same(raw: Question, stored: Question, rows: RowBuilder) -> None:
    """Checks that both ways show the policy the same."""
    window = Box(100, 100, 900, 1000, raw.image.frame) if raw.image.frame.width > 1000 else whole(raw.image)
    pairs = ((rows.overview(q), rows.crop(q.image, window)) for q in (raw, stored))
    if not all(np.array_equal(a, b) for a, b in zip(*pairs, strict=True)):
        raise UserError("bench loader: the store's pictures differ from the files'; the figures would mean nothing")
