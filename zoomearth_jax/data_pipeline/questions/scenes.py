"""Procedural ultra-high-resolution scenes: sites whose stripes are unreadable in the overview and readable in a crop.

Sites of nested scenes hold a badge: a square with the site's own mean colour and finer stripes. The overview doesn't show
where it is, and a crop of its site doesn't show which way its stripes run.

A scene is a sum of separable terms, value(x, y) = sum_t row_t(y) column_t(x) colour_t, so the exact area average over the
pixels of any window at any size is one small matrix product: nothing is rasterised for training. `Scene` offers the
interface of an image file; `Scene.write` makes the file.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from zoomearth_jax.configs.images import MAX_PIXELS
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.errors import UserError
from zoomearth_jax.files import write_file

UNITS = 2048.0  # a scene is UNITS x UNITS, whatever its size in px
STRIPE_PERIOD = (
    UNITS / 112
)  # units along an axis: over a pixel of a 112 px overview the stripes average to exactly zero
CELL = STRIPE_PERIOD  # units: side of a pixel of a 112 px overview, whose grid badges lie on
SITE_SIDE = (160, 280)  # units
NESTED_SIDE = 8192  # px of a nested scene, so that its finest stripes are 9 px wide
NESTED_SITE_SIDE = (180, 250)  # units: a crop of a site is the least window of the preset `nano_nested`, 256 units
BADGE_SIDE = 2 * CELL  # units
BADGE_PERIOD = CELL / 8  # units: over a pixel of a site's crop the stripes average to exactly zero
STRIPE_AMPLITUDE = 60.0

# Every colour leaves room for the stripes above and below it: nothing clips, so averages stay exact.
COLORS = {
    "red": (195, 62, 60),
    "orange": (195, 128, 60),
    "yellow": (195, 190, 72),
    "blue": (60, 80, 195),
    "cyan": (68, 185, 192),
    "purple": (130, 60, 172),
    "pink": (195, 118, 172),
    "black": (62, 62, 62),
}
SEASONS = {"spring": (128, 168, 96), "summer": (66, 112, 62), "autumn": (150, 118, 72), "winter": (196, 200, 204)}
SLOPE_X, SLOPE_Y = (
    (36.0, 0.0, -36.0),
    (-28.0, 36.0, 0.0),
)  # added to all colours across the scene: says where a pixel is
ORIENTATIONS = {"horizontal": (0, 1), "vertical": (1, 0), "rising": (1, 1), "falling": (1, -1)}  # wave vector (x, y)


@dataclasses.dataclass(frozen=True)
class Badge:
    """A square of BADGE_SIDE units in a site, with stripes of its own in place of the site's; its upper left corner in units."""

    x1: float
    y1: float
    orientation: str
    phase: float


@dataclasses.dataclass(frozen=True)
class Site:
    """A striped rectangle: corners in units, colour and orientation by name, phase in radians, and of nested scenes its badge."""

    x1: float
    y1: float
    x2: float
    y2: float
    color: str
    orientation: str
    phase: float
    badge: Badge | None = None


@dataclasses.dataclass(frozen=True)
class Scene:
    """A square scene of `side` px. Sites differ in colour and don't touch."""

    sites: tuple[Site, ...]
    season: str
    side: int = 2048

    @property
    def frame(self) -> Frame:
        """The scene's own pixels."""
        return Frame(self.side, self.side)

    def box(self, site: Site) -> Box:
        """A site's rectangle in px of the scene."""
        return self._box(site.x1, site.y1, site.x2, site.y2)

    def badge_box(self, badge: Badge) -> Box:
        """A badge's square in px of the scene."""
        return self._box(badge.x1, badge.y1, badge.x1 + BADGE_SIDE, badge.y1 + BADGE_SIDE)

    def _box(self, *units: float) -> Box:
        x1, y1, x2, y2 = (corner * self.side / UNITS for corner in units)
        return Box(x1, y1, x2, y2, self.frame)

    def window(self, box: Box, size: Frame, exact: bool = False) -> np.ndarray:
        """Always exact: the area average of the window `box` over each pixel of `size`: uint8 [size.height, size.width, 3]."""
        scale = UNITS / self.side
        edges_x = np.linspace(box.x1 * scale, box.x2 * scale, size.width + 1)
        edges_y = np.linspace(box.y1 * scale, box.y2 * scale, size.height + 1)
        rows, columns, colors = self._terms(edges_y, edges_x)
        pixels = (rows.T[:, :, None] * colors).transpose(0, 2, 1).reshape(-1, len(rows)) @ columns
        pixels = pixels.reshape(size.height, 3, size.width).transpose(0, 2, 1)
        return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)

    def _terms(self, edges_y, edges_x):
        """Means over each pixel of all row and column factors, [terms, h] and [terms, w], and colours [terms, 3]."""
        ground = np.array(SEASONS[self.season], np.float64)
        slope_x, slope_y = np.array(SLOPE_X), np.array(SLOPE_Y)
        one_x, one_y = np.ones(len(edges_x) - 1), np.ones(len(edges_y) - 1)
        ramp_x, ramp_y = (0.5 * (e[1:] + e[:-1]) / UNITS - 0.5 for e in (edges_x, edges_y))
        rows, columns, colors = [one_y, one_y, ramp_y], [one_x, ramp_x, one_x], [ground, slope_x, slope_y]
        inside = (
            s
            for s in self.sites
            if s.x1 < edges_x[-1] and s.x2 > edges_x[0] and s.y1 < edges_y[-1] and s.y2 > edges_y[0]
        )
        stripe = np.full(3, STRIPE_AMPLITUDE)
        for site in inside:
            area, own = (site.x1, site.y1, site.x2, site.y2), (site.orientation, site.phase, STRIPE_PERIOD)
            in_x, ramp_in_x, cos_x, sin_x, in_y, ramp_in_y, cos_y, sin_y = _striped(edges_x, edges_y, area, *own)
            rows += [in_y, in_y, ramp_in_y, cos_y, sin_y]
            columns += [in_x, ramp_in_x, in_x, cos_x, sin_x]
            colors += [np.array(COLORS[site.color]) - ground, -slope_x, -slope_y, stripe, -stripe]
            if badge := site.badge:  # takes the site's stripes away, and has its own
                area = badge.x1, badge.y1, badge.x1 + BADGE_SIDE, badge.y1 + BADGE_SIDE
                for sign, how in ((-1, own), (1, (badge.orientation, badge.phase, BADGE_PERIOD))):
                    _, _, cos_x, sin_x, _, _, cos_y, sin_y = _striped(edges_x, edges_y, area, *how)
                    rows += [cos_y, sin_y]
                    columns += [cos_x, sin_x]
                    colors += [sign * stripe, -sign * stripe]
        return np.stack(rows), np.stack(columns), np.stack(colors)

    def write(self, path, side: int | None = None) -> None:
        """Writes the scene as a TIFF or PNG (by suffix) of side x side px, in strips, so memory stays bounded by the file.

        Raises:
            UserError: an unknown suffix, more pixels than the readers accept, or a file that can't be written.
        """
        path, side = Path(path), side or self.side
        if path.suffix.lower() not in (".tif", ".tiff", ".png"):
            raise UserError(f"{path}: scenes are written as .tif or .png")
        if side * side > MAX_PIXELS:
            raise UserError(f"{path}: {side} x {side} px is over the limit of {MAX_PIXELS:,} px")
        scene = dataclasses.replace(self, side=side)
        image = Image.new("RGB", (side, side))
        for top in range(0, side, 256):
            bottom = min(top + 256, side)
            strip = scene.window(Box(0, top, side, bottom, scene.frame), Frame(side, bottom - top))
            image.paste(Image.fromarray(strip), (0, top))
        form = "PNG" if path.suffix.lower() == ".png" else "TIFF"
        write_file(path, lambda partial: image.save(partial, format=form))


def _striped(edges_x, edges_y, area: tuple[float, float, float, float], orientation: str, phase: float, period: float):
    """What `_factors` gives of both axes of a striped rectangle, first of x; `area` in units."""
    (wave_x, wave_y), (x1, y1, x2, y2) = ORIENTATIONS[orientation], area
    return *_factors(edges_x, x1, x2, wave_x, phase, period), *_factors(edges_y, y1, y2, wave_y, 0.0, period)


def _factors(edges, low, high, wave: int, phase: float, period: float):
    """Factors of one axis of a rectangle: pixel means of [inside], inside x ramp, inside x cos(kx + phase) and sin(…)."""
    clipped = np.clip(edges, low, high)
    width = np.diff(edges)
    inside = np.diff(clipped) / width
    ramp = 0.5 * np.diff(clipped**2) / width / UNITS - 0.5 * inside
    if wave == 0:
        return inside, ramp, inside * np.cos(phase), inside * np.sin(phase)
    k = 2 * np.pi * wave / period
    return (
        inside,
        ramp,
        np.diff(np.sin(k * clipped + phase)) / k / width,
        -np.diff(np.cos(k * clipped + phase)) / k / width,
    )


def random_scene(rng: np.random.Generator, side: int = 2048, site_side: tuple[float, float] = SITE_SIDE) -> Scene:
    """3 to 6 sites of distinct colours that keep apart, any season.

    Args:
        side: of the scene in px.
        site_side: least and greatest side of a site in units.
    """
    colors = rng.permutation(list(COLORS))[: rng.integers(3, 7)]
    sites: list[Site] = []
    for color in colors:
        while True:  # 6 sites fill 5 % of the scene: a free place is found within a few draws
            w, h = rng.uniform(*site_side, size=2)
            x, y = rng.uniform(20, UNITS - w - 20), rng.uniform(20, UNITS - h - 20)
            if all(x > s.x2 + 60 or x + w < s.x1 - 60 or y > s.y2 + 60 or y + h < s.y1 - 60 for s in sites):
                break
        orientation = str(rng.choice(list(ORIENTATIONS)))
        sites.append(Site(x, y, x + w, y + h, str(color), orientation, rng.uniform(0, 2 * np.pi)))
    return Scene(tuple(sites), str(rng.choice(list(SEASONS))), side)


def nested_scene(rng: np.random.Generator, side: int = NESTED_SIDE) -> Scene:
    """A scene whose sites have a badge each, anywhere on the grid of overview pixels inside of them."""
    scene = random_scene(rng, side, NESTED_SITE_SIDE)

    def badge(site: Site) -> Badge:
        x, y = (
            CELL * rng.integers(np.ceil(low / CELL), np.floor((high - BADGE_SIDE) / CELL) + 1)
            for low, high in ((site.x1, site.x2), (site.y1, site.y2))
        )
        return Badge(x, y, str(rng.choice(list(ORIENTATIONS))), rng.uniform(0, 2 * np.pi))

    return dataclasses.replace(scene, sites=tuple(dataclasses.replace(site, badge=badge(site)) for site in scene.sites))


_SEEN_SIDE = 56  # px: two periods of the stripes in each, which average to zero
_GROUND_LEVELS, _SITE_LEVELS = 8, 40  # how far a pixel may be from what a scene has there, of 255
_GROUND_SHARE, _SITE_PIXELS = 0.7, 8


def looks_like_scene(overview: np.ndarray) -> bool:
    """Whether a picture shows a whole procedural scene: most of it is the ground of one season, with its slopes from side to
    side, and some of the rest has the colours of sites. Scenes in JPEG files and of any size do; parts of scenes don't.

    Args:
        overview: the whole image at any size, uint8 [h, w, 3].
    """
    small = Image.fromarray(overview).resize((_SEEN_SIDE, _SEEN_SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small).astype(np.float64)
    ramp = ((np.arange(_SEEN_SIDE) + 0.5) / _SEEN_SIDE - 0.5)[:, None]
    slopes = ramp[None] * np.array(SLOPE_X) + ramp[:, None] * np.array(SLOPE_Y)
    for ground in SEASONS.values():
        is_ground = np.abs(pixels - slopes - np.array(ground)).max(-1) <= _GROUND_LEVELS
        if is_ground.mean() >= _GROUND_SHARE:
            away = np.abs(pixels[~is_ground][:, None] - np.array(list(COLORS.values()))).max(-1)
            return int((away.min(-1) <= _SITE_LEVELS).sum()) >= _SITE_PIXELS
    return False
