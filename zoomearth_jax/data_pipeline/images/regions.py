"""Pictures of parts of an image as files that lie where they belong: GeoTIFF, or PNG and JPEG with a world file."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import rasterio
from PIL import Image

from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.images.georeference import Georeference, georeference_of
from zoomearth_jax.data_pipeline.images.rasters import SETTINGS
from zoomearth_jax.errors import UserError
from zoomearth_jax.files import check_writable, write_file

_WORLD = {".png": ".pgw", ".jpg": ".jgw", ".jpeg": ".jgw"}  # endings of the world files
_TIFF = (".tif", ".tiff")


def check_region(path, flag: str) -> None:
    """Tries whether `write_region` can write there.

    Args:
        flag: the setting that says where, for the message.

    Raises:
        UserError: another ending than .tif, .png or .jpg, or nothing can be written there.
    """
    for file in region_files(path, flag):
        check_writable(file)


def region_files(path, flag: str = "region") -> list[Path]:
    """The files that `write_region` may write for `path`, the picture first.

    Raises:
        UserError: an ending that it doesn't write.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending in _TIFF:
        return [path]
    if ending not in _WORLD:
        raise UserError(f"{path}: {flag} writes .tif, .png or .jpg; use a name with one of these endings")
    return [path, path.with_suffix(_WORLD[ending]), path.with_name(f"{path.name}.aux.xml")]


def write_region(path, pixels: np.ndarray, image, window: Box) -> None:
    """Writes a picture of a part of an image, at any scale, so that GIS programs put it where that part lies.

    A .tif is a GeoTIFF. A .png or .jpg gets a world file (.pgw, .jgw) and NAME.aux.xml with the CRS, which GDAL and QGIS
    read. Of an image without a georeference only the picture is written, and old files of those two names go.

    Args:
        pixels: uint8 [h, w, 3], or [h, w] of one channel, such as a mask.
        image: the image source.
        window: what the picture shows, in px of the image.

    Raises:
        UserError: see `check_region` and `georeference_of`.
    """
    picture, *beside = region_files(path)
    where = georeference_of(image)
    where = where and where.part(window, Frame(pixels.shape[1], pixels.shape[0]))
    if not beside:
        write_file(picture, lambda file: _write_tiff(file, pixels, where))
        return
    form = "PNG" if picture.suffix.lower() == ".png" else "JPEG"
    write_file(picture, lambda file: Image.fromarray(pixels).save(file, format=form, quality=95))
    for file, text in zip(beside, _sidecars(where), strict=True):
        if text:
            write_file(file, text)
        else:
            file.unlink(missing_ok=True)


def _write_tiff(path: Path, pixels: np.ndarray, where: Georeference | None) -> None:
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    placed = {"transform": rasterio.Affine(*where.transform), "crs": where.crs or None} if where else {}
    colours = {"photometric": "rgb"} if len(planes) == 3 else {}
    count, height, width = planes.shape
    with (
        rasterio.Env(**SETTINGS),
        rasterio.open(
            *(str(path.absolute()), "w"),
            driver="GTiff",
            width=width,
            height=height,
            count=count,
            dtype="uint8",
            compress="deflate",
            **placed,
            **colours,
        ) as file,
    ):
        file.write(planes)


def _sidecars(where: Georeference | None) -> tuple[str, str]:
    """The texts of the world file and of NAME.aux.xml; "" for none."""
    if where is None:
        return "", ""
    a, b, _, d, e, _ = where.transform
    ((x, y),) = where.places([(0.5, 0.5)])  # world files say where the middle of the first pixel is
    world = "".join(f"{float(value)!r}\n" for value in (a, d, b, e, x, y))
    return world, f"<PAMDataset>\n  <SRS>{escape(where.crs)}</SRS>\n</PAMDataset>\n" if where.crs else ""
