"""Thumbnails of episodes: made while they are played, kept beside the records, read by the page."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from zoomearth_jax.files import writing

OVERVIEW_PX, PICTURE_PX = 160, 128  # longest sides
QUALITY = 65  # of JPEG; WebP would save a fifth of the bytes in three times the time


class Thumbnail(NamedTuple):
    """The pictures of one episode, by their digests."""

    overview: str
    pictures: tuple[str, ...]


class Thumbnails:
    """A file of thumbnails, a line of JSON per episode; every distinct picture stands in it once.

    A line is written whole as its episode is added, so that a process which is killed loses at most the last one. Opening the
    file again goes on behind the last whole line.
    """

    def __init__(self, path):
        """Opens a file, new or begun before.

        Raises:
            UserError: it can't be written.
        """
        self.path = Path(path)
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
            whole = self.path.read_bytes().rfind(b"\n") + 1
            with open(self.path, "r+b") as file:
                file.truncate(whole)
        self._stored = set(read_thumbnails(self.path)[1])

    def add(self, id: str, overview: np.ndarray, pictures: Sequence[np.ndarray]) -> None:
        """Appends an episode.

        Args:
            id: of its record.
            overview, pictures: uint8 [h, w, 3], as the model saw them; `pictures` one for each turn that was shown something.

        Raises:
            UserError: it can't be written.
        """
        shrunk = [encoded(overview, OVERVIEW_PX), *(encoded(picture, PICTURE_PX) for picture in pictures)]
        line, new = thumbnail_line(id, shrunk, self._stored)
        with writing(self.path), open(self.path, "ab") as file:
            file.write(line.encode())
        self._stored |= new


def thumbnail_line(id: str, shrunk: Sequence[bytes], stored: Collection[str]) -> tuple[str, set[str]]:
    """The line of an episode, and the digests of the pictures that are new in it.

    Args:
        shrunk: the overview as JPEG, then what was shown.
        stored: digests of the pictures that earlier lines of the file hold.
    """
    digests = [hashlib.sha256(data).hexdigest()[:20] for data in shrunk]
    pictures = dict(zip(digests, shrunk, strict=True))
    new = {digest: base64.b64encode(data).decode() for digest, data in pictures.items() if digest not in stored}
    line = {"id": id, "overview": digests[0], "pictures": digests[1:], "new": new}
    return json.dumps(line) + "\n", set(new)


def encoded(picture: np.ndarray, side: int) -> bytes:
    """A uint8 picture as JPEG, its longer side shrunk to at most `side` px."""
    image = Image.fromarray(picture)
    image.thumbnail((side, side), Image.Resampling.BOX, reducing_gap=2.0)
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=QUALITY)
    return file.getvalue()


def read_thumbnails(*paths) -> tuple[dict[str, Thumbnail], dict[str, str]]:
    """The thumbnails of episodes by their ids, and the pictures in base64 by their digests, of one or several files.

    What isn't there, or is damaged, is left out: a page without a thumbnail is still a page.
    """
    episodes: dict[str, Thumbnail] = {}
    pictures: dict[str, str] = {}
    for path in paths:
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
            for text in file:
                with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                    line = json.loads(text)
                    shown = Thumbnail(line["overview"], tuple(line["pictures"]))
                    pictures |= line["new"]
                    episodes[line["id"]] = shown
    return episodes, pictures
