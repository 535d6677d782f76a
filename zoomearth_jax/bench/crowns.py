"""Questions about real aerial photographs in miniature: are there trees at a place, or is it ground of the same brightness?

The photographs, at 10 cm a px, and the boxes around the crowns of trees are data of the package DeepForest (MIT;
github.com/weecology/DeepForest). It is found, not imported, and nothing of it is kept here.

A mosaic is a drawn ground of SIDE x SIDE px with a plate of each of the nano model's colours at a random place. In the middle of
each plate are 16 tiles of real pixels, all of crowns or all of ground, which touches no box. The tiles are panchromatic, so that
hue tells nothing. Ground is drawn by crowns: for each of 16 crowns a tile of the same part of the same photograph whose mean
brightness is nearly the crown's. So a view in which a tile is a pixel or two tells little. Half of a mosaic's questions are
answered by yes.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.images.sources import ArrayImage, RawImage, whole
from zoomearth_jax.data_pipeline.images.tile_build import build_store
from zoomearth_jax.data_pipeline.images.tiles import StoreSettings
from zoomearth_jax.data_pipeline.questions.own_rows import NAME, write_questions
from zoomearth_jax.data_pipeline.questions.question import Look, Question
from zoomearth_jax.data_pipeline.questions.scenes import COLORS, SEASONS, Scene
from zoomearth_jax.errors import UserError
from zoomearth_jax.files import write_file
from zoomearth_jax.terminal.progress import tracked

PACKAGE, INSTALL = "deepforest", "pip install --no-deps deepforest==2.1.0"
PHOTOS = ("2019_YELL_2_528000_4978000_image_crop2", "2019_YELL_2_541000_4977000_image_crop")  # each a .png and a .xml
MAX_XML = 5_000_000  # bytes

SIDE = 3072  # px of a mosaic
VIEW = 112  # px of its overview, of 27.4 px each
TILE = 64  # px
TILES = 4  # along a side of what a plate shows
PLATE = 384  # px, 14 pixels of the overview; the reference box too
CLOSEUP = 256  # px of the smallest close-up
APART = 110  # px between plates
ALIKE = 10  # tiles of ground that may stand for a crown, those whose mean colours are nearest to its
JITTER = 8  # px that a crown may be off the middle of its tile
SMALLEST = 24  # px of a crown's shorter side
STRIDE = 16  # px between candidates for tiles of ground
TRAIN_SHARE = 0.62  # of a photograph's longer side; the strip of one tile beyond it is in neither part
PARTS = ("train", "test")
ANSWERS = ("yes", "no")


class Photo(NamedTuple):
    """A photograph: uint8 pixels [h, w, 3], and the corners of its crowns' boxes in px, float64 [N, 4]."""

    pixels: np.ndarray
    boxes: np.ndarray


class Places(NamedTuple):
    """Where tiles may be cut, as rows (photograph, x, y) of their upper left corners in px: of crowns, with room for JITTER, and of
    ground, with the mean colours of the latter [G, 3]."""

    crowns: np.ndarray
    ground: np.ndarray
    colors: np.ndarray


def package_folder() -> Path:
    """The package's folder of data.

    Raises:
        UserError: it is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"bench pixels: the package {PACKAGE} is missing, whose data are the photographs; run `{INSTALL}`"
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def read_photos(folder: Path) -> list[Photo]:
    """The photographs of PHOTOS with their boxes (Pascal VOC's XML).

    Raises:
        UserError: one is missing or broken.
    """
    photos = []
    for name in PHOTOS:
        image, boxes = RawImage(folder / f"{name}.png"), _read_boxes(folder / f"{name}.xml")
        photos.append(Photo(image.window(whole(image), image.frame), boxes))
    return photos


def panchromatic(photos: list[Photo]) -> list[Photo]:
    """The photographs in one band, as a panchromatic sensor has it: three times the luma of ITU-R BT.601."""
    return [
        photo._replace(pixels=np.asarray(Image.fromarray(photo.pixels).convert("L").convert("RGB"))) for photo in photos
    ]


def _read_boxes(path: Path) -> np.ndarray:
    try:
        if path.stat().st_size > MAX_XML:
            raise UserError(f"{path}: over the limit of {MAX_XML:,} bytes")
        found = ElementTree.fromstring(path.read_bytes()).iter("bndbox")
        corners = [[float(box.findtext(corner, "")) for corner in ("xmin", "ymin", "xmax", "ymax")] for box in found]
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error}); `{INSTALL}` brings it") from None
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{path}: not Pascal VOC's boxes ({error}); `{INSTALL}` brings it") from None
    return np.array(corners, np.float64).reshape(-1, 4)


def area(pixels: np.ndarray, part: str) -> tuple[int, int, int, int]:
    """The window x1, y1, x2, y2 of a photograph [h, w, 3] that a part's tiles are cut from: of its longer side the first 62 % for
    training, and what is beyond a strip of one tile for the test."""
    height, width = pixels.shape[:2]
    cut = int(TRAIN_SHARE * max(height, width))
    low, high = (0, cut) if part == "train" else (cut + TILE, max(height, width))
    return (0, low, width, high) if height >= width else (low, 0, high, height)


def find_places(photos: list[Photo], part: str) -> Places:
    """Where a part's tiles may be cut.

    Raises:
        UserError: there are too few.
    """
    crowns, ground, colors = [], [], []
    for number, (pixels, boxes) in enumerate(photos):
        x1, y1, x2, y2 = area(pixels, part)
        large = boxes[(boxes[:, 2:] - boxes[:, :2]).min(-1) >= SMALLEST]
        corners = np.rint((large[:, :2] + large[:, 2:]) / 2 - TILE / 2).astype(int)
        low, high = np.array([x1, y1]) + JITTER, np.array([x2, y2]) - TILE - JITTER
        crowns += [(number, x, y) for x, y in corners[((corners >= low) & (corners <= high)).all(-1)]]
        covered = np.zeros(pixels.shape[:2], bool)
        for left, top, right, bottom in np.rint(boxes).astype(int):
            covered[top : bottom + 1, left : right + 1] = True
        for y in range(y1, y2 - TILE + 1, STRIDE):
            for x in range(x1, x2 - TILE + 1, STRIDE):
                if not covered[y : y + TILE, x : x + TILE].any():
                    ground.append((number, x, y))
                    colors.append(pixels[y : y + TILE, x : x + TILE].mean((0, 1)))
    if not crowns or min(np.bincount([number for number, *_ in ground], minlength=len(photos))) < ALIKE:
        raise UserError(
            f"bench pixels: {len(crowns)} crowns and {len(ground)} tiles of ground for the {part} part are too few"
        )
    return Places(np.array(crowns), np.array(ground), np.array(colors))


def draw_questions(photos: list[Photo], part: str, count: int) -> Iterator[tuple[Image.Image, list[Question]]]:
    """Mosaics with their questions, one of each colour; the same for the same photographs, part and count."""
    rng, places = np.random.default_rng(PARTS.index(part)), find_places(photos, part)
    crowns = _in_turns(rng, len(places.crowns))
    for _ in range(count):
        scene = Scene((), str(rng.choice(list(SEASONS))), SIDE)
        picture, questions = Image.fromarray(_ground(scene.season)), []
        answers = rng.permutation(ANSWERS * (len(COLORS) // len(ANSWERS)))
        for color, (x, y), answer in zip(COLORS, _free_places(rng, len(COLORS)), answers, strict=True):
            picture.paste(_plate(rng, photos, places, crowns, color, answer == "yes"), (x, y))
            box = Box(x, y, x + PLATE, y + PLATE, scene.frame)
            look = Look(box, f"{color} site", f"find the {color} site")
            questions.append(Question(scene, _asked(color), str(answer), "object", (look,)))
        yield picture, questions


def draw_closeups(photos: list[Photo], count: int) -> Iterator[tuple[Image.Image, Question]]:
    """Square pictures of CLOSEUP to PLATE px within plates of the training part, with questions, half of them answered by yes."""
    rng, places = np.random.default_rng(len(PARTS)), find_places(photos, "train")
    crowns = _in_turns(rng, len(places.crowns))
    for number in range(count):
        color, answer = str(rng.choice(list(COLORS))), ANSWERS[number % len(ANSWERS)]
        side = int(rng.integers(CLOSEUP, PLATE + 1))
        x, y = map(int, rng.integers(0, PLATE - side + 1, 2))
        picture = _plate(rng, photos, places, crowns, color, answer == "yes").crop((x, y, x + side, y + side))
        yield picture, Question(ArrayImage(picture), _asked(color), answer, "global")


def _asked(color: str) -> str:
    return f"Are there trees in the {color} site?"


def _plate(
    rng: np.random.Generator, photos: list[Photo], places: Places, crowns: Iterator[int], color: str, trees: bool
):
    """A picture of PLATE x PLATE px."""
    plate, edge = Image.new("RGB", (PLATE, PLATE), COLORS[color]), (PLATE - TILES * TILE) // 2
    for place in range(TILES**2):
        row, column = divmod(place, TILES)
        tile = Image.fromarray(_tile(rng, photos, places, next(crowns), trees))
        plate.paste(tile, (edge + column * TILE, edge + row * TILE))
    return plate


def _in_turns(rng: np.random.Generator, count: int) -> Iterator[int]:
    """All numbers below `count` in a random order, again and again in others."""
    while True:
        yield from map(int, rng.permutation(count))


def _tile(rng: np.random.Generator, photos: list[Photo], places: Places, crown: int, is_tree: bool) -> np.ndarray:
    """The tile of a crown, or ground that stands for it, uint8 [TILE, TILE, 3]."""
    number, x, y = places.crowns[crown]
    x, y = np.array([x, y]) + rng.integers(-JITTER, JITTER + 1, 2)
    tile = _cut(photos, number, x, y)
    if is_tree:
        return tile
    same = np.flatnonzero(places.ground[:, 0] == number)  # photographs differ in sharpness
    distances = np.abs(places.colors[same] - tile.mean((0, 1))).sum(-1)
    return _cut(photos, *places.ground[rng.choice(same[np.argsort(distances, kind="stable")[:ALIKE]])])


def _cut(photos: list[Photo], number: int, x: int, y: int) -> np.ndarray:
    return photos[number].pixels[y : y + TILE, x : x + TILE]


def _free_places(rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """Upper left corners of plates that keep apart, in px of the mosaic."""
    while True:  # of 8 plates one draw in some fifty
        places = rng.integers(APART // 2, SIDE - PLATE - APART // 2, (count, 2))
        gaps = np.abs(places[:, None] - places).max(-1)[np.triu_indices(count, 1)]
        if gaps.min() >= PLATE + APART:
            return [(int(x), int(y)) for x, y in places]


@functools.cache
def _ground(season: str) -> np.ndarray:
    """The ground of a procedural scene without sites, uint8 [SIDE, SIDE, 3]."""
    scene, height = Scene((), season, SIDE), SIDE // 16
    strips = (Box(0, top, SIDE, top + height, scene.frame) for top in range(0, SIDE, height))
    return np.concatenate([scene.window(strip, Frame(SIDE, height)) for strip in strips])


def write_folder(folder: Path, photos: list[Photo], part: str, count: int) -> None:
    """Writes a part's mosaics as TIFF files in images/, a tile store of them, and last of all questions.jsonl."""
    rows: list[tuple[str, Question]] = []
    for number, (picture, questions) in enumerate(
        tracked(draw_questions(photos, part, count), f"{part} mosaics", count)
    ):
        name = f"{part}_{number:04d}.tif"
        save = functools.partial(picture.save, format="TIFF", compression="tiff_adobe_deflate")
        write_file(folder / "images" / name, save)
        rows += [(name, question) for question in questions]
    build_store(sorted((folder / "images").iterdir()), folder / "tiles", StoreSettings(views=(VIEW,)), workers=2)
    write_questions(folder / NAME, rows)


def write_closeups(folder: Path, photos: list[Photo], count: int) -> None:
    """Writes close-ups as PNG files in images/, and last of all questions.jsonl."""
    rows: list[tuple[str, Question]] = []
    for number, (picture, question) in enumerate(tracked(draw_closeups(photos, count), "close-ups", count)):
        name = f"closeup_{number:05d}.png"
        write_file(folder / "images" / name, functools.partial(picture.save, format="PNG"))
        rows.append((name, question))
    write_questions(folder / NAME, rows)


def write_passive(folder: Path, active: Path) -> None:
    """Writes the questions of the folder `active` without boxes, for a policy that gets no crops, over the same images."""
    folder.mkdir(parents=True)
    for kind in ("images", "tiles"):
        (folder / kind).symlink_to((active / kind).resolve(), target_is_directory=True)
    rows = [json.loads(line) for line in (active / NAME).read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row |= {"box": None, "label": "", "thoughts": ["", row["thoughts"][1]]}
    write_file(folder / NAME, "".join(json.dumps(row) + "\n" for row in rows))
