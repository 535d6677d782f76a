"""GDAL's virtual rasters: XML files that name other files. Only mosaics and views of local files are read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from zoomearth_jax.errors import BrokenImage, UserError

MAX_BYTES = 20_000_000  # of XML
_SOURCES = {"SourceFilename", "SourceDataset"}
_KINDS = {None, "VRTWarpedDataset"}  # of whole files
_BANDS = {None, "VRTSourcedRasterBand", "VRTWarpedRasterBand"}  # others run code, or read any file's bytes as pixels


def is_vrt(head: bytes) -> bool:
    """Whether a file with these first bytes is a virtual raster."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return text.startswith(b"<VRTDataset") or (text.startswith(b"<?xml") and b"<VRTDataset" in text)


def local_sources(path: Path) -> Iterator[Path]:
    """The files that a virtual raster names.

    Raises:
        UserError: not XML, or it asks for anything but local files: network addresses, archives, code, raw bytes.
    """
    root = _parsed(path)
    for element in root.iter():
        kind = element.get("subClass")
        if (element.tag == "VRTDataset" and kind not in _KINDS) or (
            element.tag == "VRTRasterBand" and kind not in _BANDS
        ):
            raise UserError(
                f"{path}: a virtual raster of kind {kind!r} is not read; `gdal_translate {path} OUT.tif` converts it"
            )
        said = " ".join(filter(None, (element.text, *element.attrib.values())))
        if "/vsi" in said:
            raise UserError(f"{path}: a virtual raster of remote or packed sources is not read ({said.strip()[:80]})")
        if element.tag in _SOURCES:
            yield _source(path, element)


def _source(path: Path, element) -> Path:
    name = (element.text or "").strip()
    relative = element.get("relativeToVRT", element.get("relativetoVRT", "0")) == "1"
    source = path.parent / name if relative else Path(name)
    if re.match(r"[A-Za-z][\w+.-]*:", name) or name.startswith("<") or not source.is_file():
        raise UserError(f"{path}: its source {name[:200]!r} is no local file")
    return source


def _parsed(path: Path):
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: a virtual raster of over {MAX_BYTES:,} bytes is not read")
        data = path.read_bytes()
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
            raise UserError(f"{path}: a virtual raster with entities of its own is not read")
        return ElementTree.fromstring(data)
    except (OSError, ValueError, LookupError, ElementTree.ParseError) as error:
        raise BrokenImage(f"{path}: not a readable image ({error})") from None
