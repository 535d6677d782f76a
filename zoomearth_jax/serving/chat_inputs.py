"""From the messages of a request to what the model is shown: pictures for a chat, an image and a question for an episode."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import anyio
import numpy as np
from PIL import Image

from zoomearth_jax.data_pipeline.images.boxes import Box, Frame, clamped
from zoomearth_jax.data_pipeline.images.sources import ArrayImage, ImageSource, whole
from zoomearth_jax.errors import UserError
from zoomearth_jax.serving.budget import Share
from zoomearth_jax.serving.errors import APIError
from zoomearth_jax.serving.images import of_data_url
from zoomearth_jax.serving.openai_schema import ChatRequest, ImagePart, TextPart
from zoomearth_jax.serving.service import Service


@dataclasses.dataclass(frozen=True)
class Asked:
    """What an episode is about.

    Attributes:
        image: the original.
        question: a text.
        box: a box that the question is about, in px of the original.
    """

    image: ImageSource
    question: str
    box: Box | None


class Lent:
    """An image in memory for as long as its request lasts: whoever keeps it longer, as caches do, keeps no pixels."""

    def __init__(self, picture: Image.Image):
        """Takes an RGB picture."""
        self._image: ArrayImage | None = ArrayImage(picture)
        self.frame = self._image.frame

    def window(self, box: Box, size: Frame, exact: bool = False) -> np.ndarray:
        """See `ImageSource.window`.

        Raises:
            UserError: the request is over.
        """
        image = self._image
        if image is None:
            raise UserError("image: its request is over")
        return image.window(box, size, exact)

    def close(self) -> None:
        """Lets the pixels go."""
        self._image = None


class Reader:
    """Reads the images of one request; what they take is held until `held` is closed."""

    def __init__(self, service: Service, memory: Share, held: contextlib.ExitStack):
        """Takes what is charged for decoded images, and what keeps uploads from being removed."""
        self._service, self._memory, self._held = service, memory, held
        self._config = dataclasses.replace(service.settings.images, max_pixels=service.limits.body_pixels)

    async def messages(self, body: ChatRequest) -> list[dict[str, Any]]:
        """The messages of a chat, in the form that `Generator.submit` takes: texts, and images as RGB pictures of Pillow's.

        Raises:
            APIError: 400, 404, or 429 where there is no memory for the images.
        """
        self._check_count(sum(not isinstance(part, TextPart) for message in body.messages for part in message.parts))
        messages = []
        for i, message in enumerate(body.messages):
            role: str = "system" if message.role == "developer" else message.role
            parts: list[dict[str, Any]] = []
            for j, part in enumerate(message.parts):
                if isinstance(part, TextPart):
                    parts.append({"type": "text", "text": part.text})
                else:
                    picture = await self._picture(_handle(part), f"messages[{i}].content[{j}]")
                    parts.append({"type": "image", "image": picture})
            plain = isinstance(message.content, str) or message.content is None
            messages.append({"role": role, "content": message.content or "" if plain else parts})
        return messages

    async def asked(self, body: ChatRequest) -> Asked:
        """The question of the last user message, and the last image up to there.

        Raises:
            APIError: see `messages`; or there is no question or no image.
        """
        users = [i for i, message in enumerate(body.messages) if message.role == "user"]
        if not users:
            raise APIError(400, "messages: the agent mode needs a message of the user's", "messages", "invalid_value")
        last = users[-1]
        texts = [part.text for part in body.messages[last].parts if isinstance(part, TextPart)]
        question = "\n".join(texts).strip()
        if not question:
            raise APIError(400, f"messages[{last}]: asks no question", f"messages[{last}]", "invalid_value")
        source = await self._last_image(body, last)
        return Asked(source, question, _box(body, source))

    async def _last_image(self, body: ChatRequest, last: int) -> ImageSource:
        for i in range(last, -1, -1):
            images = [
                (_handle(part), f"messages[{i}].content[{j}]")
                for j, part in enumerate(body.messages[i].parts)
                if not isinstance(part, TextPart)
            ]
            if len(images) > 1:
                raise APIError(400, f"messages[{i}]: the agent mode looks at one image at a time", f"messages[{i}]")
            if images:
                found = await self._found(*images[0])
                if not isinstance(found, Image.Image):
                    return found
                lent = await anyio.to_thread.run_sync(Lent, found)
                self._held.callback(lent.close)
                return lent
        raise APIError(400, "messages: the agent mode needs an image", "messages", "invalid_value")

    def _check_count(self, images: int) -> None:
        if images > self._service.limits.images:
            raise APIError(
                400, f"messages: {images} images, at most {self._service.limits.images} in a request", "messages"
            )

    async def _picture(self, handle: str, param: str) -> Image.Image:
        """An image as a picture in memory."""
        found = await self._found(handle, param)
        if isinstance(found, Image.Image):
            return found
        frame, limit = found.frame, self._service.limits.body_pixels
        if frame.width * frame.height > limit:
            said = f"{frame.width} x {frame.height} px; a chat shows at most {limit:,} px, the agent mode any image"
            raise APIError(400, said, param, "image_too_large")
        self._memory.add(7 * frame.width * frame.height)
        pixels = await anyio.to_thread.run_sync(found.window, whole(found), frame, True)
        return Image.fromarray(pixels)

    async def _found(self, handle: str, param: str) -> Image.Image | ImageSource:
        service = self._service
        if handle[:5].lower() == "data:":
            return await anyio.to_thread.run_sync(of_data_url, handle, self._config, self._memory, param)
        if handle.startswith("file-"):
            stored = self._held.enter_context(service.uploads.using(handle, param))
            return await stored.prepared()
        if handle[:5].lower() == "file:" and service.root is not None:
            return await anyio.to_thread.run_sync(service.root.image, handle, service.settings.images, param)
        raise APIError(
            400,
            "an image is a data URL (data:image/png;base64,…) or the handle of an upload (file-…); other addresses are not fetched",
            param,
            "invalid_image_url",
        )


def _handle(part: Any) -> str:
    return part.image_url.url if isinstance(part, ImagePart) else part.file.file_id


def _box(body: ChatRequest, source: ImageSource) -> Box | None:
    """The box that a question is about.

    Raises:
        APIError: 400, where it has no area inside the image.
    """
    if body.box is None:
        return None
    corners = body.box if len(body.box) == 4 else (0, 0, 0, 0)
    x1, y1, x2, y2 = corners
    box = clamped(Box(x1, y1, x2, y2, source.frame))
    if box is None:
        raise APIError(
            400, "box: must be x1, y1, x2, y2 in px of the image, with some area inside it", "box", "invalid_value"
        )
    return box
