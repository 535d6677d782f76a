"""Where an image lies on the earth: its transform and its coordinate reference system (CRS), as GDAL knows them.

GDAL finds them inside the file (GeoTIFF, JPEG 2000, NITF, VRT, ...) or beside it: a world file (.tfw, .pgw, .jgw, .wld), a
CRS in NAME.aux.xml. A CRS in a .prj file beside a world file is read here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
import rasterio.warp
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError

from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.images.complaints import heard
from zoomearth_jax.data_pipeline.images.rasters import SETTINGS
from zoomearth_jax.errors import UserError

WGS84 = CRS.from_epsg(4326)  # rasterio's order is longitude, latitude, as in GeoJSON
_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # what rasterio says where a file has no transform
_FIT_PX = 0.5  # how far a ground control point may be from where a transform puts it
_MAX_PRJ_BYTES = 100_000


@dataclasses.dataclass(frozen=True)
class Georeference:
    """Where the pixels of an image lie.

    Attributes:
        transform: a, b, c, d, e, f. The point (x, y), in px from the image's upper left corner, lies at
            (a x + b y + c, d x + e y + f) in the CRS. The middle of the first pixel is (0.5, 0.5).
        crs: the coordinate reference system as WKT; empty where only the transform is known.
    """

    transform: tuple[float, float, float, float, float, float]
    crs: str = ""

    @classmethod
    def from_json(cls, values: dict | None) -> Georeference | None:
        """What `dataclasses.asdict` and JSON made of it."""
        return None if values is None else cls(tuple(values["transform"]), values["crs"])

    def places(self, points) -> np.ndarray:
        """Where points [n, 2] in px lie: float64 [n, 2] in the CRS."""
        a, b, c, d, e, f = self.transform
        return np.asarray(points, np.float64) @ np.array([[a, d], [b, e]]) + (c, f)

    def points(self, places) -> np.ndarray:
        """The points in px, float64 [n, 2], that lie at places [n, 2] in the CRS."""
        a, b, c, d, e, f = self.transform
        return (np.asarray(places, np.float64) - (c, f)) @ np.array([[e, -d], [-b, a]]) / (a * e - b * d)

    def part(self, window: Box, size: Frame) -> Georeference:
        """The georeference of a picture of `size` px that shows a window, in px of this image."""
        a, b, _, d, e, _ = self.transform
        ((c, f),) = self.places([(window.x1, window.y1)])
        sx, sy = (window.x2 - window.x1) / size.width, (window.y2 - window.y1) / size.height
        return Georeference((a * sx, b * sy, float(c), d * sx, e * sy, float(f)), self.crs)


def georeference_of(image) -> Georeference | None:
    """Where an image source lies; None where nobody knows, as of an array in memory.

    Raises:
        UserError: the image's file says it in a way that isn't supported, or can't be read.
    """
    return getattr(image, "georeference", None)


def located(image, name, what: str) -> Georeference:
    """Where an image lies on the earth, by transform and CRS.

    Args:
        name: the image's name.
        what: what needs it, such as `--geojson`.

    Raises:
        UserError: it has none, or no CRS.
    """
    found = georeference_of(image)
    if found is None:
        raise UserError(
            f"{name}: has no georeference, which {what} needs; `gdalinfo {name}` shows what a file has, a world file beside it "
            "will do"
        )
    if not found.crs:
        hint = f"write its WKT into {Path(name).with_suffix('.prj')} (`gdalsrsinfo -o wkt EPSG:CODE`)"
        raise UserError(f"{name}: has a transform but no CRS, which {what} needs; {hint}")
    return found


def read_georeference(path: Path, driver: str) -> Georeference | None:
    """What a file, and the files beside it, say of where it lies; None where they say nothing.

    Args:
        driver: GDAL's driver, the only one that may read the file.

    Raises:
        UserError: ground control points that no affine transform fits within half a px, RPCs alone, a transform that
            puts all pixels onto a line, or a file that GDAL can't read.
    """
    try:
        with (
            rasterio.Env(**SETTINGS),
            heard(path),
            rasterio.open(str(path.absolute()), driver=driver, sharing=False) as file,
        ):
            transform, crs, (gcps, gcp_crs), rpcs = tuple(file.transform)[:6], file.crs, file.gcps, file.rpcs
            if transform == _IDENTITY and gcps:
                transform, crs = _fitted(path, gcps), gcp_crs
    except (RasterioError, CRSError, ValueError) as error:
        raise UserError(f"{path}: its georeference can't be read ({' '.join(str(error).split())})") from None
    if transform == _IDENTITY:
        if rpcs:
            raise UserError(
                f"{path}: has only RPCs, which need heights; `gdalwarp -rpc {path} OUT.tif` makes an image that lies in a CRS"
            )
        return None
    a, b, _, d, e, _ = transform
    if not (np.isfinite(transform).all() and a * e - b * d):
        raise UserError(
            f"{path}: its transform {transform} puts all pixels onto a line; mend it with `gdal_edit.py -a_gt`"
        )
    crs = crs or _beside(path)
    return Georeference(transform, crs.to_wkt(version="WKT2_2019") if crs else "")


def _fitted(path: Path, gcps: Sequence) -> tuple[float, ...]:
    """The affine transform that fits ground control points."""
    points = np.array([(gcp.col, gcp.row, 1.0) for gcp in gcps])
    places = np.array([(gcp.x, gcp.y) for gcp in gcps])
    middle = places.mean(axis=0)  # large numbers, which differ little
    (a, d), (b, e), (c, f) = np.linalg.lstsq(points, places - middle, rcond=None)[0].tolist()
    fitted = Georeference((a, b, c + middle[0], d, e, f + middle[1]))
    away = np.abs(fitted.points(places) - points[:, :2]).max() if a * e - b * d else np.inf
    if not away <= _FIT_PX:
        raise UserError(
            f"{path}: has ground control points that are up to {away:.1f} px off any affine transform; `gdalwarp {path} OUT.tif` "
            "makes an image that lies straight in a CRS"
        )
    return fitted.transform


def _beside(path: Path) -> CRS | None:
    """The CRS in the .prj file beside an image.

    Raises:
        UserError: what is there is no WKT.
    """
    file = path.with_suffix(".prj")
    if not file.is_file() or file.stat().st_size > _MAX_PRJ_BYTES:
        return None
    try:
        with rasterio.Env(**SETTINGS):
            return CRS.from_wkt(file.read_text(encoding="utf-8").strip())
    except (CRSError, UnicodeError):
        raise UserError(f"{file}: not the WKT of a CRS; `gdalsrsinfo -o wkt EPSG:CODE` writes one") from None


def crs_name(crs: str) -> str:
    """The name of a CRS as an authority has it, `EPSG:32633`; "" where none does."""
    known = CRS.from_wkt(crs).to_authority()
    return ":".join(known) if known else ""


_AUTHORITIES = ("EPSG", "ESRI", "OGC", "IAU_2015", "IGNF")
_NAMES = re.compile(rf"({'|'.join(_AUTHORITIES)}):([A-Za-z0-9]{{1,20}})")
_URNS = re.compile(rf"urn:(?:x-)?ogc:def:crs:({'|'.join(_AUTHORITIES)}):[^:]{{0,20}}:([A-Za-z0-9]{{1,20}})")
_WKT = re.compile(r"[A-Z]{2,15}\[")
_MAX_NAME = 20_000  # characters of WKT


def named_crs(name: str) -> CRS:
    """The CRS that a name or a WKT says. Nothing is read from files or the network for it.

    Args:
        name: as `EPSG:32633`, `urn:ogc:def:crs:EPSG::32633`, or WKT.

    Raises:
        ValueError: it isn't known.
    """
    found = _NAMES.fullmatch(name) or _URNS.fullmatch(name)
    with rasterio.Env(**SETTINGS), contextlib.suppress(CRSError, ValueError):
        if found:
            authority, code = found.groups()
            return WGS84 if (authority, code) == ("OGC", "CRS84") else CRS.from_authority(authority, code)
        if _WKT.match(name) and len(name) <= _MAX_NAME:
            return CRS.from_wkt(name)
    raise ValueError(
        f"CRS {name[:60]!r} is not known; name it as EPSG:CODE, as urn:ogc:def:crs:EPSG::CODE or by its WKT"
    )


def transformed(places: np.ndarray, source: CRS, target: CRS) -> np.ndarray:
    """Places [n, 2] in one CRS as places in another, float64; not finite where the target has none. Longitude comes first."""
    with rasterio.Env(**SETTINGS):
        try:
            x, y = rasterio.warp.transform(source, target, *np.asarray(places, np.float64).T.tolist())
        except (CPLE_BaseError, RasterioError, CRSError, ValueError):
            return np.full(np.shape(places), np.nan)
    return np.array([x, y]).T.reshape(-1, 2)
