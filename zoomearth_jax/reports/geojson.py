"""GeoJSON files of boxes: one in WGS 84, and beside it one in the CRS of the images."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoomearth_jax.data_pipeline.images.boxes import Box
from zoomearth_jax.data_pipeline.images.geometry import crs_member, geometry, geometry_in_crs
from zoomearth_jax.data_pipeline.images.georeference import Georeference, crs_name
from zoomearth_jax.errors import UserError
from zoomearth_jax.files import check_writable, write_file

_ENDINGS = (".geojson", ".json")


@dataclasses.dataclass(frozen=True)
class Placed:
    """A box of an image that lies somewhere.

    Attributes:
        box: in px of the image.
        where: the image's georeference, with a CRS.
        properties: what is known of the box, in JSON's types.
    """

    box: Box
    where: Georeference
    properties: Mapping[str, Any]


def feature(placed: Placed) -> dict:
    """A GeoJSON Feature in WGS 84 (RFC 7946); its property `px` is the box in px of the image."""
    return _feature(placed, geometry(placed.box, placed.where))


def _feature(placed: Placed, shape: dict | None) -> dict:
    px = [round(corner, 2) for corner in placed.box.corners]
    return {"type": "Feature", "geometry": shape, "properties": {**placed.properties, "px": px}}


def check_geojson(path, lie: Iterable[Georeference], flag: str = "--geojson") -> list[Path]:
    """The files that `write_geojson` writes; tries whether they can be written.

    Raises:
        UserError: another ending than .geojson or .json, or one of them can't be written.
    """
    path = Path(path)
    if path.suffix.lower() not in _ENDINGS:
        raise UserError(f"{path}: {flag} writes GeoJSON; use a name that ends in .geojson")
    files = [path, *(_file_of(path, crs) for crs in dict.fromkeys(where.crs for where in lie))]
    for file in files:
        check_writable(file)
    return files


def write_geojson(path, placed: Sequence[Placed], lie: Iterable[Georeference]) -> None:
    """Writes boxes in WGS 84 to `path`, and those of each CRS in that to a file beside it, `boxes.EPSG_32633.geojson`.

    Args:
        lie: where the images lie; each of their CRSs gets a file, with or without boxes.

    Raises:
        UserError: one of them can't be written.
    """
    path = Path(path)
    write_file(path, _collection([feature(one) for one in placed]))
    for crs in dict.fromkeys(where.crs for where in lie):
        own = [_feature(one, geometry_in_crs(one.box, one.where)) for one in placed if one.where.crs == crs]
        write_file(_file_of(path, crs), _collection(own, crs=crs_member(crs)))


def _file_of(path: Path, crs: str) -> Path:
    """The file of a CRS, by its name or, without one, by a hash of its WKT."""
    name = crs_name(crs).replace(":", "_") or f"CRS_{hashlib.sha256(crs.encode()).hexdigest()[:8]}"
    return path.with_name(f"{path.stem}.{name}{path.suffix}")


def _collection(features: list[dict], **members: Any) -> str:
    """The text of a FeatureCollection, one feature a line."""
    head = json.dumps({"type": "FeatureCollection", **members})
    lines = ",\n".join(json.dumps(one, ensure_ascii=False) for one in features)
    return f'{head[:-1]}, "features": [\n{lines}\n]}}\n'
