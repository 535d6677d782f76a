"""Limits of the server."""

from __future__ import annotations

import dataclasses

from zoomearth_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ServerLimits:
    """How much clients may ask for; what is over a limit is refused before it is decoded.

    Attributes:
        body_mb: megabytes of a request's body, other than an upload's.
        body_pixels: pixels of one image inside a body; larger ones are to be uploaded.
        images: images of one request.
        memory_mb: megabytes that bodies and decoded images of all requests may take together; requests over it get 429.
        choices: the most `n`.
        tokens: the most `max_tokens`; a request that asks for more gets this many.
        seconds: a request's time, from its body to its answer.
        body_seconds: time in which a body, other than an upload's, must arrive.
        uploads: uploads that may be sent at the same time.
        upload_mb: megabytes of an uploaded file.
        files: uploaded files that are kept.
        files_mb: megabytes of all uploaded files and their tile stores together.
        file_seconds: an uploaded file goes when it has not been used for so long.
    """

    body_mb: int = 160
    body_pixels: int = 100_000_000
    images: int = 16
    memory_mb: int = 4_000
    choices: int = 16
    tokens: int = 4_096
    seconds: float = 600.0
    body_seconds: float = 120.0
    uploads: int = 8
    upload_mb: int = 8_000
    files: int = 64
    files_mb: int = 32_000
    file_seconds: float = 3_600.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise UserError(f"limits: {field.name} must be positive, not {getattr(self, field.name)}")
