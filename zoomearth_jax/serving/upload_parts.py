"""Uploads in parts, OpenAI's `/v1/uploads`: a file too large for one request comes in several, in any order."""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
import shutil
import threading
import time
from pathlib import Path
from typing import BinaryIO

from zoomearth_jax.serving.budget import Share
from zoomearth_jax.serving.errors import APIError, busy
from zoomearth_jax.serving.uploads import MB, StoredFile, Uploads

PART_BYTES = 64 << 20
_PARTS = 10_000


@dataclasses.dataclass(eq=False)
class PartialFile:
    """A file that comes in parts.

    Attributes:
        id: of the upload.
        filename, purpose, mime_type: as the client said.
        size: bytes of the whole file, as the client said.
        folder: where the parts lie.
        room: what it has of the disk: `size`.
        parts: id -> bytes of the part.
        status: `pending`, `completed` or `cancelled`.
        file: what became of it.
    """

    id: str
    filename: str
    purpose: str
    mime_type: str
    size: int
    folder: Path
    room: Share
    parts: dict[str, int] = dataclasses.field(default_factory=dict)
    created: float = dataclasses.field(default_factory=time.time)
    status: str = "pending"
    file: StoredFile | None = None

    def described(self, seconds: float) -> dict:
        """OpenAI's upload object."""
        return {
            "id": self.id,
            "object": "upload",
            "bytes": self.size,
            "created_at": int(self.created),
            "expires_at": int(self.created + seconds),
            "filename": self.filename,
            "purpose": self.purpose,
            "status": self.status,
            "file": None if self.file is None else self.file.described(seconds),
        }


class PartialUploads:
    """All files of a server that come in parts."""

    def __init__(self, uploads: Uploads):
        """Takes where whole files go."""
        self._uploads, self._lock = uploads, threading.Lock()
        self._partial: dict[str, PartialFile] = {}

    def begin(self, filename: str, purpose: str, mime_type: str, size: int) -> PartialFile:
        """Begins a file of `size` bytes.

        Raises:
            APIError: 413, over the limit; 429, where there is no room, or too many have begun.
        """
        limits = self._uploads.limits
        if size > limits.upload_mb * MB:
            raise APIError(
                413, f"bytes: {size:,} is over the limit of {limits.upload_mb * MB:,}", "bytes", "request_too_large"
            )
        room = self._uploads.disk.share(size)
        folder = self._uploads.folder / secrets.token_hex(8)
        upload = PartialFile(f"upload_{secrets.token_urlsafe(18)}", filename, purpose, mime_type, size, folder, room)
        with self._lock:
            if sum(one.status == "pending" for one in self._partial.values()) >= limits.files:
                room.release()
                raise busy(
                    f"{limits.files} uploads are pending already; cancel some, or try again later", 30, "too_many_files"
                )
            folder.mkdir()
            self._partial[upload.id] = upload
        return upload

    def add_part(self, upload_id: str, content: BinaryIO) -> tuple[str, int]:
        """Keeps a part; returns its id and Unix time. Blocks while it is copied.

        Raises:
            APIError: 404; 400, where the parts are more than the file's bytes, or it isn't pending.
        """
        upload, part = self._pending(upload_id), f"part_{secrets.token_urlsafe(12)}"
        content.seek(0, 2)
        size = content.tell()
        content.seek(0)
        with self._lock:
            if sum(upload.parts.values()) + size > upload.size or len(upload.parts) >= _PARTS or not size:
                raise APIError(
                    400, f"the parts are more than the {upload.size:,} bytes of the upload, or empty", "data"
                )
            upload.parts[part] = size
        try:
            with open(upload.folder / part, "wb") as file:
                shutil.copyfileobj(content, file, 1 << 20)
        except OSError:  # cancelled meanwhile
            raise APIError(400, f"{upload_id}: was cancelled") from None
        return part, int(time.time())

    def complete(self, upload_id: str, part_ids: list[str], md5: str | None) -> PartialFile:
        """Makes the file of its parts, in the order given. Blocks while they are joined.

        Raises:
            APIError: 404; 400, where parts are unknown or missing, the hash differs, or the file is no image.
        """
        upload = self._pending(upload_id)
        with self._lock:
            known = [upload.parts.get(part) for part in part_ids]
            if None in known or len(set(part_ids)) != len(part_ids):
                raise APIError(400, "part_ids: names a part that is not there, or one twice", "part_ids")
            total = sum(upload.parts[part] for part in part_ids)
            if total != upload.size:
                raise APIError(400, f"part_ids: {total:,} bytes of the {upload.size:,} that were announced", "part_ids")
            if upload.status != "pending":
                raise APIError(400, f"{upload_id}: is {upload.status}")
            upload.status = "completed"
        try:
            upload.file = self._uploads.add(
                upload.filename, upload.purpose, lambda path: _join(upload, part_ids, md5, path), upload.room
            )
        except BaseException:
            upload.status = "cancelled"
            raise
        finally:
            shutil.rmtree(upload.folder, ignore_errors=True)
        return upload

    def cancel(self, upload_id: str) -> PartialFile:
        """Forgets the parts.

        Raises:
            APIError: 404; 400, where it isn't pending.
        """
        upload = self._pending(upload_id)
        with self._lock:
            upload.status = "cancelled"
        shutil.rmtree(upload.folder, ignore_errors=True)
        upload.room.release()
        return upload

    def sweep(self) -> None:
        """Cancels what was begun long ago, and forgets what ended."""
        limit = time.time() - self._uploads.limits.file_seconds
        with self._lock:
            old = [one for one in self._partial.values() if one.created < limit]
            for one in old:
                del self._partial[one.id]
        for one in old:
            if one.status == "pending":
                shutil.rmtree(one.folder, ignore_errors=True)
                one.room.release()

    def _pending(self, upload_id: str) -> PartialFile:
        with self._lock:
            upload = self._partial.get(upload_id)
        if upload is None:
            raise APIError(404, f"no upload {upload_id[:80]!r}; it may have expired", code="upload_not_found")
        if upload.status != "pending":
            raise APIError(400, f"{upload_id}: is {upload.status}")
        return upload


def _join(upload: PartialFile, part_ids: list[str], md5: str | None, path: Path) -> None:
    """Writes the parts behind each other, each removed as soon as it is written, so that the disk holds them once."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "wb") as whole:
        for part in part_ids:
            with open(upload.folder / part, "rb") as file:
                while piece := file.read(1 << 20):
                    digest.update(piece)
                    whole.write(piece)
            (upload.folder / part).unlink()
    if md5 is not None and digest.hexdigest() != md5.lower():
        raise APIError(400, "md5: the file has another hash than was announced", "md5")
