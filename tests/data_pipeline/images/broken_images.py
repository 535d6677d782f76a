"""200 image files with something wrong with each, the same ones every time."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

COUNT = 200
_FORMATS = {
    "tif": [
        ("RGB", {}),
        ("L", {}),
        ("RGB", {"compression": "tiff_lzw"}),
        ("RGBA", {"compression": "tiff_adobe_deflate"}),
    ],
    "png": [("RGB", {}), ("L", {}), ("P", {}), ("RGBA", {})],
    "jpg": [("RGB", {}), ("L", {}), ("CMYK", {}), ("RGB", {"progressive": True})],
    "webp": [("RGB", {"lossless": True}), ("RGBA", {"lossless": True}), ("RGB", {}), ("RGBA", {})],
}


def save(image: Image.Image, path: Path, **options) -> None:
    """Writes without losses where the format can."""
    image.save(path, **({"lossless": True} if path.suffix == ".webp" else {}) | options)


def _cut(data: bytes, rng) -> bytes:
    return data[: int(len(data) * rng.uniform(0.01, 0.95))]


def _no_header(data: bytes, rng) -> bytes:
    return rng.bytes(16) + data[16:]


def _zeros_from_the_middle(data: bytes, rng) -> bytes:
    """As left by an interrupted download into a file of the full length."""
    return data[: len(data) // 3] + bytes(len(data) - len(data) // 3)


def _text(data: bytes, rng) -> bytes:
    return b"<html><body>404 Not Found</body></html>"


def _empty(data: bytes, rng) -> bytes:
    return b""


def _magic_only(data: bytes, rng) -> bytes:
    return data[:12]


def _noise_after_header(data: bytes, rng) -> bytes:
    keep = 14  # lossy WebP has no checksums: noise behind all its headers is a valid picture of noise
    return data[:keep] + rng.bytes(len(data) - keep)


_DAMAGES: list[Callable] = [_cut, _cut, _cut, _cut, _no_header, _text, _empty, _magic_only, _noise_after_header, _cut]


def _png(width: int, height: int, depth: int, color: int, body: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def _tiff(tags: dict[int, int]) -> bytes:
    """One IFD of LONG values; the pixels are 192 zeros."""
    base = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 200, 277: 1, 278: 8, 279: 64} | tags
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(base.items()))
    return (b"II*\0" + struct.pack("<IH", 8, len(base)) + entries + bytes(4)).ljust(200, b"\0") + bytes(192)


def _special() -> list[tuple[str, bytes]]:
    """Bombs, unsupported types, headers that lie."""
    return [
        ("bomb.png", _png(60_000, 60_000, 8, 2, bytes(1000))),
        ("bomb_wide.png", _png(2_000_000, 2, 8, 2, bytes(1000))),
        ("bomb_1bit.png", _png(100_000, 100_000, 1, 0, bytes(1000))),
        ("no_rows.png", _png(64, 64, 8, 2)),
        ("few_rows.png", _png(64, 64, 8, 2, bytes(193 * 3))),
        ("zero_wide.png", _png(0, 64, 8, 2)),
        ("bad_depth.png", _png(64, 64, 7, 2, bytes(193 * 64))),
        ("bad_colour.png", _png(64, 64, 8, 5, bytes(193 * 64))),
        ("deep.png", _png(4, 4, 16, 0, bytes(9 * 4))),
        ("deep_rgb.png", _png(4, 4, 16, 2, bytes(25 * 4))),
        ("no_palette.png", _png(4, 4, 8, 3, bytes(5 * 4))),
        ("bomb.tif", _tiff({256: 60_000, 257: 60_000})),
        ("bomb_4g.tif", _tiff({256: 4_000_000_000, 257: 4_000_000_000})),
        ("zero_wide.tif", _tiff({256: 0})),
        ("many_bands.tif", _tiff({277: 9})),
        ("deep.tif", _tiff({258: 16, 279: 128})),
        ("float.tif", _tiff({258: 32, 339: 3, 278: 6})),
        ("bad_codec.tif", _tiff({259: 4242})),
        ("bad_bits.tif", _tiff({258: 11})),
        ("bad_strip.tif", _tiff({273: 4_000_000_000})),
        ("long_strip.tif", _tiff({279: 4_000_000_000, 273: 3_000_000_000})),
        ("loop.tif", b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 0) + struct.pack("<I", 8)),
        ("nowhere.tif", b"II*\0" + struct.pack("<I", 4_000_000_000)),
        ("big_nowhere.tif", b"II+\0" + struct.pack("<HHQ", 8, 0, 2**60)),
    ]


def broken_images(folder: Path, seed: int = 0) -> list[Path]:
    """Writes COUNT files, whose names tell what is wrong, and returns their paths."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:120, :160]
    pixels = (np.stack([x, y, x + y], -1) + rng.integers(0, 40, (120, 160, 3))).clip(0, 255).astype(np.uint8)
    contents = _special()
    kinds = [(suffix, mode, options) for suffix, kinds in _FORMATS.items() for mode, options in kinds]
    while len(contents) < COUNT:
        number = len(contents)
        suffix, mode, options = kinds[number % len(kinds)]
        damage = _DAMAGES[number // len(kinds) % len(_DAMAGES)]
        whole = folder / f"whole.{suffix}"
        Image.fromarray(pixels).convert(mode).save(whole, **options)
        name = f"{number:03}_{mode}_{'_'.join(map(str, options))}{damage.__name__}.{suffix}"
        contents.append((name, damage(whole.read_bytes(), rng)))
        whole.unlink()
    for name, data in contents:
        (folder / name).write_bytes(data)
    return [folder / name for name, _ in contents]
