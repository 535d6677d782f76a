"""Chats -> prompts, by the checkpoint's own chat template and picture sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from zoomearth_jax.data_pipeline.images.boxes import MIN_TOKENS
from zoomearth_jax.data_pipeline.text.processor import Processor, read_image_config
from zoomearth_jax.errors import UserError
from zoomearth_jax.evaluation.asking import LoadedPolicy
from zoomearth_jax.serving.generation import Generator, Segment


class ChatReader:
    """Makes prompts of chats for a generator."""

    def __init__(self, policy: LoadedPolicy, generator: Generator):
        """Takes picture sizes from the checkpoint's preprocessing, with the generator's longest side as a limit."""
        self._side, self._most = generator.config.picture_px, generator.config.pictures
        images = read_image_config(policy.directory)
        pixels = min(images.max_pixels, self._side**2)
        sizes = dataclasses.replace(images, max_pixels=pixels, min_pixels=min(images.min_pixels, pixels))
        self._processor = Processor(policy.rows.tokenizer, sizes)

    def prompt(self, messages: Sequence[dict[str, Any]], template: dict[str, Any] | None = None) -> Segment:
        """The prompt of a chat. The assistant's turn is opened; where the last message is the assistant's, it goes on.

        Args:
            messages: {"role": system, user or assistant, "content": a text, or a list of {"type": "text", "text"} and {"type":
                "image", "image": a picture of Pillow's or uint8 [h, w, 3]}}.
            template: see `Chat.ids`.

        Raises:
            UserError: messages of another form, too many images, or one that the model can't be shown.
        """
        if not messages:
            raise UserError("messages: give at least one")
        bare, images = [], []
        for message in messages:
            content = message.get("content") if isinstance(message, dict) else None
            if isinstance(content, list):
                images += [part.get("image") for part in content if _is_image(part)]
                content = [{"type": "image"} if _is_image(part) else part for part in content]
                message = {**message, "content": content}
            bare.append(message)
        if len(images) > self._most:
            raise UserError(f"messages: {len(images)} images; at most {self._most}")
        pictures = [self._picture(image) for image in images]
        area = self._processor.images.merged_px**2
        tokens = [picture.shape[0] * picture.shape[1] // area for picture in pictures]
        goes_on = bare[-1].get("role") == "assistant"
        return Segment(self._processor.chat.ids(bare, tokens, not goes_on, template, goes_on), pictures)

    def _picture(self, image: Any) -> np.ndarray:
        """An image as the model sees it: the preprocessor's size, or for long ones what fits the longest side."""
        picture = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
        view = self._processor.view(picture)
        if max(view.shape[:2]) <= self._side:
            return view
        unit, shrink = self._processor.images.merged_px, self._side / max(picture.size)
        width, height = (min(max(round(side * shrink / unit), 1) * unit, self._side) for side in picture.size)
        if width * height < MIN_TOKENS * unit**2:
            raise UserError(
                f"image of {picture.width} x {picture.height} px is too long and narrow; cut it into shorter pieces"
            )
        return np.asarray(picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))


def _is_image(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "image"
