"""What decoding libraries say of a file while they read it: most of it is harmless, the rest means wrong pixels."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOG = logging.getLogger("zoomearth_jax")
ANYTHING = re.compile("")  # all that is said while GDAL reads pixels, where nothing else says that they are wrong
OF_JPEG = re.compile(r"JPEG|Huffman|premature|progression", re.IGNORECASE)  # what libjpeg says inside other libraries
_HARMLESS = re.compile(
    r"extraneous bytes before marker|Old-style LZW codes|TIFFReadDirectory|TIFFFetch|Unknown field with tag"
)
_SOURCES = ("pyvips", "rasterio._env", "rasterio._err")


class WrongPixels(Exception):
    """Raised where a library went on, with pixels that aren't the file's."""


class _Collector(logging.Handler):
    """Keeps the warnings of each thread apart."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.heard = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        """Notes a message for the thread that listens."""
        said = getattr(self.heard, "said", None)
        if said is not None:
            said += [line for line in map(str.strip, record.getMessage().splitlines()) if line]


_COLLECTOR = _Collector()
for _name in _SOURCES:
    logging.getLogger(_name).addHandler(_COLLECTOR)


@contextmanager
def heard(path, wrong: re.Pattern | None = None) -> Iterator[None]:
    """Listens while a library opens a file or reads its pixels. What is harmless is logged as a warning.

    Args:
        wrong: what means wrong pixels; None where only tags are read, or the library raises by itself.

    Raises:
        WrongPixels: something of that kind was said, and it is not known to be harmless.
    """
    before = getattr(_COLLECTOR.heard, "said", None)
    said = _COLLECTOR.heard.said = []
    try:
        yield
    finally:
        _COLLECTOR.heard.said = before
    for line in dict.fromkeys(map(_tidied, said)):
        if wrong and wrong.search(line) and not _HARMLESS.search(line):
            raise WrongPixels(line)
        warn(path, line)


def _tidied(line: str) -> str:
    return re.sub(r"^(VIPS: |CPLE_\w+( in|:) ?)", "", line)


_WARNED: set = set()


def warn(path, line: str) -> None:
    """Warns once per file and message; a file is read many times in training."""
    if (str(path), line) not in _WARNED and len(_WARNED) < 10_000:
        _WARNED.add((str(path), line))
        _LOG.warning("warning: %s: %s", path, line)
