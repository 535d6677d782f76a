"""Boxes as GeoJSON geometries, and back: on the earth by an image's georeference.

RFC 7946: longitude and latitude in WGS 84, outer rings counterclockwise, polygons cut at the antimeridian. The same in an
image's own CRS is not RFC 7946's form, but the one before it (2008), which GDAL, QGIS and GeoPandas read by its `crs`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.crs import CRS

from zoomearth_jax.data_pipeline.images.boxes import Box, clamped
from zoomearth_jax.data_pipeline.images.georeference import (
    WGS84,
    Georeference,
    crs_name,
    located,
    named_crs,
    transformed,
)
from zoomearth_jax.data_pipeline.images.sources import ImageSource
from zoomearth_jax.errors import UserError

DIGITS = 9  # behind the point: 0.1 mm of a degree
_BEND_PX = 0.05  # how far a straight line in longitude and latitude may be from the box's edge
_MOST_PIECES = 256  # of an edge
_MAX_BYTES, _MAX_PLACES = 20_000_000, 10_000  # of a geometry that somebody gives
_WHICH = "are its coordinates in WGS 84, longitude first, or in the CRS that its member `crs` names?"
_EDGE_PIECES = 16  # of each edge of a geometry that somebody gives: they bend, too


def geometry(box: Box, where: Georeference) -> dict | None:
    """A box, in px of an image that lies there, in RFC 7946's form: a Polygon, or of one that crosses the antimeridian a
    MultiPolygon. None where the CRS has no place for it, as beyond the edge of the earth's disk.

    Points are added to edges that bend, so that the straight lines between them stay within 0.05 px of the box's.
    """
    crs = CRS.from_wkt(where.crs)
    ring = _ring(box, where, crs)
    if ring is None:
        return None
    polygons = [[_closed(part)] for part in _cut(_around_pole(ring))]
    if len(polygons) == 1:
        return {"type": "Polygon", "coordinates": polygons[0]}
    return {"type": "MultiPolygon", "coordinates": polygons}


def geometry_in_crs(box: Box, where: Georeference) -> dict:
    """A box as a Polygon in the image's own CRS: its four corners."""
    return {"type": "Polygon", "coordinates": [_closed(where.places(_corners(box)))]}


def crs_member(crs: str) -> dict:
    """What names a CRS in a GeoJSON file of the form before RFC 7946."""
    authority, _, code = crs_name(crs).partition(":")
    return {"type": "name", "properties": {"name": f"urn:ogc:def:crs:{authority}::{code}" if code else crs}}


def _corners(box: Box) -> np.ndarray:
    x1, y1, x2, y2 = box.corners
    return np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], np.float64)


def _along(points: np.ndarray, pieces: int) -> np.ndarray:
    """A closed ring's corners [n, 2] with each edge in so many pieces: [n pieces + 1, 2], the last point the first."""
    ends = np.roll(points, -1, axis=0)
    shares = np.arange(pieces)[None, :, None] / pieces
    return np.concatenate([(points[:, None] + (ends - points)[:, None] * shares).reshape(-1, 2), points[:1]])


def _ring(box: Box, where: Georeference, crs: CRS) -> np.ndarray | None:
    """The box's edge in longitude and latitude, [n, 2], closed; longitudes run on across the antimeridian."""
    pieces = 1
    while True:
        points = _along(_corners(box), 2 * pieces)
        ring = _lonlat(where.places(points), crs)
        if not np.isfinite(ring).all():
            return None
        straight = (ring[:-1:2] + ring[2::2]) / 2  # where the line between every second point has its middle
        away = np.abs(where.points(transformed(straight, WGS84, crs)) - points[1::2])
        if crs.is_geographic or not away.max() > _BEND_PX or pieces == _MOST_PIECES:
            return ring[::2] if crs.is_geographic or away.max() <= _BEND_PX else ring
        pieces *= 2


def _lonlat(places: np.ndarray, crs: CRS) -> np.ndarray:
    """Places along a line as longitude and latitude, without jumps of 360 degrees."""
    lonlat = transformed(places, crs, WGS84)
    if not np.isfinite(lonlat).all():
        return lonlat
    if crs.is_geographic:  # longitudes as the image has them
        lonlat[:, 0] += 360 * np.round((places[:, 0] - lonlat[:, 0]) / 360)
    else:
        lonlat[:, 0] = np.unwrap(lonlat[:, 0], period=360)
    lonlat[:, 1] = lonlat[:, 1].clip(-90, 90)
    return lonlat


def _around_pole(ring: np.ndarray) -> np.ndarray:
    """A closed ring; where it runs around a pole, along that too."""
    (first, _), (last, latitude) = ring[0], ring[-1]
    if abs(last - first) < 180:
        return ring[:-1]
    pole = math.copysign(90, latitude)
    return np.concatenate([ring, [(last, pole), (first, pole)]])


def _cut(ring: np.ndarray) -> list[np.ndarray]:
    """The parts of a ring between the antimeridians, each moved to longitudes -180 ... 180."""
    low, high = ring[:, 0].min(), ring[:, 0].max()
    turns = range(math.floor((low + 180) / 360), math.ceil((high + 180) / 360))
    parts = []
    for turn in turns:
        part = _side(_side(ring - (360 * turn, 0), 1, 180), -1, 180)
        if len(part) > 2 and np.ptp(part[:, 0]) > 0:
            parts.append(part)
    return parts


def _side(ring: np.ndarray, sign: int, limit: float) -> np.ndarray:
    """The part of a ring where sign x longitude is at most `limit`."""
    kept = []
    for (x1, y1), (x2, y2) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if sign * x1 <= limit:
            kept.append((x1, y1))
        if (sign * x1 < limit < sign * x2) or (sign * x2 < limit < sign * x1):
            kept.append((sign * limit, y1 + (y2 - y1) * (sign * limit - x1) / (x2 - x1)))
    return np.array(kept).reshape(-1, 2)


def _closed(ring: np.ndarray) -> list[list[float]]:
    """A ring of points [n, 2], counterclockwise and closed, rounded."""
    x, y = (ring - ring.mean(axis=0)).T  # large numbers, which differ little
    if np.dot(x, np.roll(y, -1)) < np.dot(y, np.roll(x, -1)):
        ring = ring[::-1]
    return np.concatenate([ring, ring[:1]]).round(DIGITS).tolist()


def box_of_geometry(given: Mapping, where: Georeference, image: ImageSource) -> Box:
    """The box around a GeoJSON object, in px of an image that lies there, cut at the border.

    Args:
        given: a geometry, a Feature, or a FeatureCollection of one feature. Its CRS is WGS 84, longitude first, unless a
            member `crs` names another one.

    Raises:
        ValueError: it is none, or doesn't overlap the image; in one line that says what to do.
    """
    found = _geometry_in(given)
    crs = _crs_of(given.get("crs") or found.get("crs"))
    own = CRS.from_wkt(where.crs)
    points = []
    for line in _lines(found):
        places = transformed(_in_pieces(line), crs, own)
        if own.is_geographic:  # 181 and -179 degrees are one
            middle = where.places([(image.frame.width / 2, image.frame.height / 2)])[0, 0]
            places[:, 0] += 360 * np.round((middle - places[:, 0]) / 360)
        points.append(where.points(places))
    corners = np.concatenate(points)
    if not np.isfinite(corners).all():
        name = crs_name(where.crs) or "which has no name"
        raise ValueError(f"the geometry has no place in the image's CRS, {name}; {_WHICH}")
    (x1, y1), (x2, y2) = corners.min(axis=0).round(6).tolist(), corners.max(axis=0).round(6).tolist()
    if not (x1 < x2 and y1 < y2):
        raise ValueError("the geometry has no area; give a polygon, or two points that are opposite corners")
    box = clamped(Box(x1, y1, x2, y2, image.frame))
    if box is None:
        raise ValueError(
            f"the geometry lies outside the image: {[round(c) for c in (x1, y1, x2, y2)]} in px of {image.frame.width} x "
            f"{image.frame.height}; {_WHICH}"
        )
    return box


def box_from_geojson(path, image: ImageSource, name) -> Box:
    """The box around the geometry of a GeoJSON file, as `box_of_geometry` has it.

    Args:
        name: the image's name.

    Raises:
        UserError: no such file, no GeoJSON, no georeference, or a geometry that doesn't overlap the image.
    """
    path = Path(path)
    where = located(image, name, f"the box of {path}")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"over {_MAX_BYTES:,} bytes; give a file with one feature")
        given = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(given, dict):
            raise ValueError("not a GeoJSON object")
        return box_of_geometry(given, where, image)
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from None
    except RecursionError:
        raise UserError(f"{path}: lists or objects nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _geometry_in(given: Mapping) -> Mapping:
    """The one geometry of a GeoJSON object."""
    kind = given.get("type")
    if kind == "FeatureCollection":
        features = given.get("features")
        count = len(features) if isinstance(features, list) else 0
        if not isinstance(features, list) or count != 1 or not isinstance(features[0], dict):
            raise ValueError(f"holds {count} features; give a file with one (in QGIS: export the selected feature)")
        given, kind = features[0], features[0].get("type")
    if kind == "Feature":
        given = given.get("geometry") or {}
        if not isinstance(given, Mapping):
            raise ValueError("a feature without a geometry")
    if not isinstance(given.get("coordinates"), list):
        raise ValueError("not a GeoJSON geometry (an object with `type` and `coordinates`)")
    return given


def _crs_of(member: Any) -> CRS:
    if member is None:
        return WGS84
    properties = member.get("properties") if isinstance(member, Mapping) else None
    name = properties.get("name") if isinstance(properties, Mapping) else None
    if not isinstance(name, str):
        raise ValueError('`crs` names no CRS; write {"type": "name", "properties": {"name": "EPSG:CODE"}}')
    return named_crs(name)


def _lines(found: Mapping) -> list[np.ndarray]:
    """The lines of places of a geometry, [n, 2] each."""
    lines, count = [], 0
    for line in _lists(found["coordinates"], depth=4):
        count += len(line)
        if count > _MAX_PLACES:
            raise ValueError(f"over {_MAX_PLACES:,} points; simplify the geometry")
        lines.append(np.array([place[:2] for place in line], np.float64))
    if not lines:
        raise ValueError("a geometry without coordinates")
    return lines


def _lists(value: Any, depth: int) -> Iterator[list]:
    """The innermost lists of places."""
    if not isinstance(value, list) or depth < 1:
        raise ValueError("coordinates must be nested lists of numbers")
    if value and all(map(_is_place, value)):
        yield value
    elif _is_place(value):
        yield [value]
    else:
        for inner in value:
            yield from _lists(inner, depth - 1)


def _is_place(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) >= 2
        and all(isinstance(one, int | float) and not isinstance(one, bool) and abs(one) < 1e300 for one in value[:2])
    )


def _in_pieces(line: np.ndarray) -> np.ndarray:
    """A line with points between its own, since edges bend in another CRS."""
    shares = np.arange(_EDGE_PIECES)[None, :, None] / _EDGE_PIECES
    return np.concatenate([(line[:-1, None] + (line[1:] - line[:-1])[:, None] * shares).reshape(-1, 2), line[-1:]])
