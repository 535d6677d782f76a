"""Uploaded images, kept under a handle: the file as it came, and a tile store made of it, so that any window takes milliseconds."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.configs.serving import ServerLimits
from zoomearth_jax.data_pipeline.images.boxes import Frame
from zoomearth_jax.data_pipeline.images.sources import ImageSource
from zoomearth_jax.data_pipeline.images.tile_build import build_store
from zoomearth_jax.data_pipeline.images.tiles import StoreSettings, TileStore
from zoomearth_jax.errors import UserError
from zoomearth_jax.serving.budget import Budget, Share
from zoomearth_jax.serving.errors import APIError, busy
from zoomearth_jax.serving.images import checked_frame, image_error

PURPOSES = ("vision", "user_data", "assistants")
MB = 1_000_000


class _Dropped(Exception):
    """Raised in a build whose file was deleted."""


@dataclasses.dataclass(eq=False)
class StoredFile:
    """An uploaded image.

    Attributes:
        id: its handle, which nobody can guess.
        filename: as the client calls it; never a path here.
        size: bytes of the file.
        purpose: as the client said.
        frame: its size in px.
        folder: where it lies; None of examples, which are drawn.
        room: what it has of the disk.
        ready: the source of its windows, once the tile store is built; or why it can't be.
        created, used: Unix times.
        users: requests that look at it now.
        dropped: whether it was deleted.
    """

    id: str
    filename: str
    size: int
    purpose: str
    frame: Frame
    folder: Path | None
    room: Share
    ready: Future[ImageSource] = dataclasses.field(default_factory=Future)
    created: float = dataclasses.field(default_factory=time.time)
    used: float = dataclasses.field(default_factory=time.time)
    users: int = 0
    dropped: bool = False

    @property
    def original(self) -> Path | None:
        """The file as it came."""
        return None if self.folder is None else self.folder / "original"

    def source(self) -> ImageSource:
        """Its windows.

        Raises:
            APIError: 409 while the tile store is being built, 400 where the file is broken.
        """
        if not self.ready.done():
            raise APIError(409, f"{self.id}: is still being prepared; ask again soon", code="file_not_ready")
        if error := self.ready.exception():  # a new one each time: raising adds to an exception
            raise APIError(400, str(error), code="invalid_image")
        return self.ready.result()

    async def prepared(self) -> ImageSource:
        """Its windows, once the tile store is built; see `source`."""
        await asyncio.wait([asyncio.wrap_future(self.ready)])
        return self.source()

    def described(self, seconds: float) -> dict:
        """OpenAI's file object; `seconds` is how long it is kept unused."""
        failed = self.ready.done() and self.ready.exception()
        status = "error" if failed else "processed" if self.ready.done() else "uploaded"
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.size,
            "created_at": int(self.created),
            "expires_at": None if self.folder is None else int(self.used + seconds),
            "filename": self.filename,
            "purpose": self.purpose,
            "status": status,
            "status_details": str(failed) if failed else None,
        }


class Uploads:
    """All uploaded files of a server."""

    def __init__(self, folder: Path, limits: ServerLimits, config: ImageConfig, settings: StoreSettings):
        """Takes a folder of its own, which is removed at the end.

        Args:
            config: how files become 8-bit RGB, and how many pixels they may have.
            settings: of the tile stores; the views are those that the model looks at first.
        """
        self.folder, self.limits, self.config, self.settings = folder, limits, config, settings
        self.disk = Budget(
            limits.files_mb * MB, "the server's room for files is taken; delete some, or try again later"
        )
        self._files: dict[str, StoredFile] = {}
        self._lock = threading.Lock()
        self._builders = ThreadPoolExecutor(1, thread_name_prefix="uploads")

    def add(self, name: str, purpose: str, fill: Callable[[Path], None], room: Share) -> StoredFile:
        """Keeps a file, and begins to build its tile store. Blocks while it is written.

        Args:
            fill: writes it to the path that it is given.
            room: what it has of the disk from here on; released where it is refused.

        Raises:
            APIError: 400, of what is no image; 429, where too many files are kept.
        """
        folder = self.folder / secrets.token_hex(8)
        folder.mkdir()
        try:
            fill(folder / "original")
            frame = checked_frame(folder / "original", self.config, "file")
            size = os.path.getsize(folder / "original")
            file_id = f"file-{secrets.token_urlsafe(18)}"
            stored = StoredFile(file_id, name, size, purpose, frame, folder, room)
            self._keep(stored)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            room.release()
            raise
        self._builders.submit(self._build, stored)
        return stored

    def add_drawn(self, name: str, title: str, source: ImageSource) -> StoredFile:
        """Keeps an image that needs no file, for good."""
        stored = StoredFile(f"file-{name}", title, 0, "vision", source.frame, None, self.disk.share())
        stored.ready.set_result(source)
        with self._lock:
            self._files[stored.id] = stored
        return stored

    def _keep(self, stored: StoredFile) -> None:
        with self._lock:
            if sum(file.folder is not None for file in self._files.values()) >= self.limits.files:
                raise busy(
                    f"{self.limits.files} files are kept already; delete some, or try again later", 30, "too_many_files"
                )
            self._files[stored.id] = stored

    def _build(self, stored: StoredFile) -> None:
        """Builds the tile store of a file, in the builders' thread."""
        assert stored.folder is not None
        assert stored.original is not None

        def progress(_: int) -> None:
            if stored.dropped:
                raise _Dropped

        place = stored.folder / "store"
        try:
            build_store(
                *([stored.original], place, self.settings),
                ids=["image"],
                workers=2,
                strict=True,
                max_pixels=self.config.max_pixels,
                progress=progress,
            )
            stored.room.add(sum(file.stat().st_size for file in place.rglob("*") if file.is_file()))
            stored.ready.set_result(TileStore.open(place).the_image())
        except APIError as error:
            stored.ready.set_exception(error)
        except _Dropped:
            stored.ready.set_exception(missing(stored.id))
        except (UserError, OSError) as error:
            stored.ready.set_exception(image_error(error, stored.original, None))
        except Exception as error:  # nobody foresaw it; the file's owner learns that there is no image
            stored.ready.set_exception(APIError(400, f"can't be read ({type(error).__name__})", code="invalid_image"))
            raise
        finally:
            self._remove_unused(stored)

    def get(self, file_id: str, param: str | None = None) -> StoredFile:
        """The file of a handle.

        Raises:
            APIError: 404.
        """
        with self._lock:
            stored = self._files.get(file_id)
        if stored is None:
            raise missing(file_id, param)
        stored.used = time.time()
        return stored

    @contextlib.contextmanager
    def using(self, file_id: str, param: str | None = None) -> Iterator[StoredFile]:
        """The file of a handle, which stays until the end even if it is deleted meanwhile."""
        stored = self.get(file_id, param)
        with self._lock:
            stored.users += 1
        try:
            yield stored
        finally:
            with self._lock:
                stored.users -= 1
                stored.used = time.time()
            self._remove_unused(stored)

    def delete(self, file_id: str) -> None:
        """Forgets a file.

        Raises:
            APIError: 404, or 403 of an example.
        """
        stored = self.get(file_id)
        if stored.folder is None:
            raise APIError(403, f"{file_id}: is an example of the server's, which stays")
        with self._lock:
            stored.dropped = True
            self._files.pop(file_id, None)
        self._remove_unused(stored)

    def _remove_unused(self, stored: StoredFile) -> None:
        """Removes a deleted file from the disk, once nobody looks at it or builds of it."""
        with self._lock:
            gone = stored.dropped and not stored.users and stored.ready.done()
        if gone and stored.folder is not None:
            shutil.rmtree(stored.folder, ignore_errors=True)
            stored.room.release()

    def sweep(self) -> None:
        """Deletes files that were not used for long."""
        with self._lock:
            limit = time.time() - self.limits.file_seconds
            old = [f for f in self._files.values() if f.folder is not None and not f.users and f.used < limit]
        for stored in old:
            with contextlib.suppress(APIError):
                self.delete(stored.id)

    def counts(self) -> tuple[int, int]:
        """Number of uploaded files, and the bytes that they take on the disk."""
        with self._lock:
            return sum(file.folder is not None for file in self._files.values()), self.disk.taken

    def close(self) -> None:
        """Ends the builds and removes everything."""
        with self._lock:
            files = list(self._files.values())
        for stored in files:
            stored.dropped = True
        self._builders.shutdown(cancel_futures=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def missing(file_id: str, param: str | None = None) -> APIError:
    """What is said of a handle that is none."""
    return APIError(
        404, f"no file {file_id[:80]!r}; it may have been deleted, or have expired", param, "file_not_found"
    )
