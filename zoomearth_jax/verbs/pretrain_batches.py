"""What the nano base model is trained on: scenes, crops of their sites, questions on both, and targets of the auxiliary losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from zoomearth_jax.data_pipeline.images.boxes import Box, Frame, clamped, crop_window
from zoomearth_jax.data_pipeline.images.sources import global_view
from zoomearth_jax.data_pipeline.questions.procedural import SPLITS
from zoomearth_jax.data_pipeline.questions.scenes import (
    COLORS,
    ORIENTATIONS,
    UNITS,
    Scene,
    Site,
    nested_scene,
    random_scene,
)
from zoomearth_jax.data_pipeline.rows.builder import RowBuilder
from zoomearth_jax.models.family import Sizes

QUERIES = 8  # per scene: 3 to 6 sites, the count, the season, padding
REPLY_LEN = 32
NESTED_CROPS = 2  # sites of a nested scene that are read
_SHOWN = 0.5  # least part of a badge in a crop that asks for it
_NAMED_FROM = 4  # slots of "Where is the red site?" that see the colour


def _prefix(rows: RowBuilder, pictures):
    """Prompts that end after the image, so that many questions share it."""
    views = rows.views(pictures)
    length = len(rows.head_ids) + 2 + rows.layout.view_tokens
    ids = np.full((len(pictures), length), rows.pad_id, np.int32)
    valid = np.zeros(ids.shape, bool)
    for i, grid in enumerate(views.grids):
        prompt = [*rows.head_ids, rows.look_id, *[rows.image_id] * int(grid.prod()), rows.seen_id]
        ids[i, : len(prompt)], valid[i, : len(prompt)] = prompt, True
    return views, ids, valid


def _replies(rows: RowBuilder, pairs, first_number_weight: float):
    """Rows of "question, turn change, answer" with loss weights on the answer; None gives an empty row."""
    ids = np.full((len(pairs), REPLY_LEN), rows.pad_id, np.int32)
    valid, weight = np.zeros(ids.shape, bool), np.zeros(ids.shape, np.float32)
    first, named = np.zeros(ids.shape, bool), np.zeros(ids.shape, bool)
    for i, pair in enumerate(pairs):
        if pair is None:
            continue
        question, answer = pair
        asked = [*rows.encode(question), *rows.tail_ids]
        said = [*rows.encode(answer), rows.stop_id]
        end = len(asked) + len(said)
        ids[i, :end], valid[i, : end - 1], weight[i, len(asked) : end] = [*asked, *said], True, 1.0
        if "bbox" in answer:
            first[i, len(asked) + 1] = True
            weight[i, len(asked) + 1] = first_number_weight
            named[i, _NAMED_FROM : len(asked) + 1] = True
    return ids, valid, weight, first, named


def _box_text(box: Box, label: str) -> str:
    corners = [round(c) for c in box.corners]
    return f'[{{"bbox_2d": {corners}, "label": "{label}"}}]'


def _scene_pairs(rng, scene: Scene, view) -> list:
    def locate(site: Site):
        return f"Where is the {site.color} site?", _box_text(scene.box(site).to(view), f"{site.color} site")

    pairs = [locate(site) for site in scene.sites]
    pairs += [("How many sites are there?", str(len(scene.sites))), ("Which season is it?", scene.season)]
    pairs += [None] * (QUERIES - len(pairs))
    return [pairs[i] for i in rng.permutation(QUERIES)]


def _named_corners(scene: Scene, pair) -> tuple[float, float, float, float]:
    """Corners in units of the site that a question names; zeros for other questions."""
    named = [s for s in scene.sites if pair and f"the {s.color} site?" in pair[0]]
    return (named[0].x1, named[0].y1, named[0].x2, named[0].y2) if named else (0.0, 0.0, 0.0, 0.0)


def _loose(rng, box: Box) -> Box:
    """A box as a policy might name it: corners off by up to a third of the sides."""
    w, h = box.x2 - box.x1, box.y2 - box.y1
    dx1, dx2, dy1, dy2 = rng.uniform(-0.35, 0.2, size=4)
    return Box(box.x1 + dx1 * w, box.y1 + dy1 * h, box.x2 - dx2 * w, box.y2 - dy2 * h, box.frame)


def _badge_in(window: Box, box: Box, side: int) -> Box | None:
    """A badge in the crop of a window, in px of its picture of `side` px; None where too little of it is there."""
    frame, scale = Frame(side, side), side / (window.x2 - window.x1)
    x1, y1 = (box.x1 - window.x1) * scale, (box.y1 - window.y1) * scale
    whole = Box(x1, y1, x1 + (box.x2 - box.x1) * scale, y1 + (box.y2 - box.y1) * scale, frame)
    seen = clamped(whole)
    return seen if seen and _area(seen) >= _SHOWN * _area(whole) else None


def _chosen(rng, scene: Scene, count: int) -> list[int]:
    """Numbers of the sites that crops are taken of."""
    return [int(rng.integers(len(scene.sites))) for _ in range(count)]


def _inner_window(rng, rows: RowBuilder, box: Box) -> Box:
    """The window of a badge as a policy might take it."""
    return crop_window(_loose(rng, box), rows.episode.inner_window_px)


def _area(box: Box) -> float:
    return (box.x2 - box.x1) * (box.y2 - box.y1)


def _token_targets(boxes: Sequence[tuple[int, Box]], tokens_per_side: int, kinds: int):
    """For each visual token: which kinds of boxes have their centre in its square, and their corners in units of a square.

    The corners are those in the picture, not in the square: absolute position has no other way into the features.

    Args:
        boxes: (kind, box in any square frame).
    """
    present = np.zeros((tokens_per_side, tokens_per_side, kinds), np.float32)
    corners = np.zeros((tokens_per_side, tokens_per_side, kinds, 4), np.float32)
    for kind, box in boxes:
        cell = box.frame.width / tokens_per_side
        column, row = int((box.x1 + box.x2) / 2 // cell), int((box.y1 + box.y2) / 2 // cell)
        present[row, column, kind] = 1.0
        corners[row, column, kind] = np.array(box.corners) / cell
    return present.reshape(-1, kinds), corners.reshape(-1, kinds, 4)


def _chunks(items: list, size: int) -> list[list]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def make_batch(
    rows: RowBuilder, sizes: Sizes, step: int, *, count: int, seed: int, nested: bool, first_number_weight: float
) -> dict:
    """The data of one step, from nothing but the seed and the step's number: `count` scenes, nested ones or not."""
    rng = np.random.default_rng([SPLITS.index("pretrain"), seed, step])
    scenes = [nested_scene(rng) if nested else random_scene(rng) for _ in range(count)]
    overviews = [global_view(s, rows.episode.view_px, rows.layout.merged_px) for s in scenes]
    pairs = [pair for s in scenes for pair in _scene_pairs(rng, s, rows.box_frame(s.frame))]
    read = [(scene, scene.sites[i]) for scene in scenes for i in _chosen(rng, scene, NESTED_CROPS if nested else 1)]
    windows = [rows.window(_loose(rng, scene.box(site)), scene.frame) for scene, site in read]
    crops = [rows.crop(scene, window) for (scene, _), window in zip(read, windows, strict=True)]
    readings: list = [
        [("Which way do the stripes run?", site.orientation), ("Which color is the site?", site.color)]
        for _, site in read
    ]
    parts = {"scenes": (overviews, pairs)}
    per_side = rows.layout.view_side // rows.layout.merged_px
    sites = [[(list(COLORS).index(site.color), s.box(site)) for site in s.sites] for s in scenes]
    tokens = {"sites": [_token_targets(boxes, per_side, len(COLORS)) for boxes in sites]}
    if nested:
        badges = [(scene, site.badge) for scene, site in read if site.badge]
        seen = [
            _badge_in(window, scene.badge_box(badge), rows.layout.view_side)
            for (scene, badge), window in zip(badges, windows, strict=True)
        ]
        tokens["badge"] = [_token_targets([(0, box)] if box else [], per_side, 1) for box in seen]
        for asked, box in zip(readings, seen, strict=True):
            asked.append(box and ("Where is the badge?", _box_text(box, "badge")))
        inner = [_inner_window(rng, rows, scene.badge_box(badge)) for scene, badge in badges]
        parts["badges"] = (
            [rows.crop(scene, window) for (scene, _), window in zip(badges, inner, strict=True)],
            [("Which way do the stripes run?", badge.orientation) for _, badge in badges],
        )
    parts["crops"] = (crops, [pair for asked in readings for pair in asked])
    named = [
        _named_corners(scene, pair)
        for scene, asked in zip(scenes, _chunks(pairs, QUERIES), strict=True)
        for pair in asked
    ]
    batch: dict[str, Any] = {}
    for name, (pictures, asked) in parts.items():
        views, ids, valid = _prefix(rows, pictures)
        batch[name] = {
            "prompt": (ids, valid, sizes.prepare(*views)),
            "reply": _replies(rows, asked, first_number_weight),
        }
    stripes = {"crops": [site.orientation for _, site in read]}
    if nested:
        stripes["badges"] = [badge.orientation for _, badge in badges]
    batch["stripes"] = {
        name: np.array([list(ORIENTATIONS).index(one) for one in ways], np.int32) for name, ways in stripes.items()
    }
    batch["tokens"] = {
        name: tuple(np.stack(arrays) for arrays in zip(*targets, strict=True)) for name, targets in tokens.items()
    }
    return {**batch, "named_corners": np.array(named, np.float32) / UNITS}
