"""From a chat's messages to what a row reads: ids by the checkpoint's own chat template, and its pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from zoomearth_jax.data_pipeline.rows.builder import RowBuilder
from zoomearth_jax.data_pipeline.text.processor import ImageConfig, smart_resize
from zoomearth_jax.errors import UserError
from zoomearth_jax.serving.generation import Segment


class ChatPrompts:
    """Prompts of plain chats."""

    def __init__(self, rows: RowBuilder, images: ImageConfig, longest_side: int, pictures: int):
        """Takes the sizes of the model's preprocessor.

        Args:
            longest_side: px of a picture, as the generator has room for it.
            pictures: the most of one chat.
        """
        self._rows, self._images, self._side, self._pictures = rows, images, longest_side, pictures

    def segment(self, messages: Sequence[dict[str, Any]], variables: dict[str, Any]) -> Segment:
        """The prompt of a conversation.

        Args:
            messages: {"role", "content"}; content is a text, or a list of {"type": "text", "text"} and {"type": "image", "image"}
                with an RGB picture of Pillow's.
            variables: further variables of the chat template.

        Raises:
            UserError: more pictures than there is room for, one over 200 : 1, or a template that fails.
        """
        found = [
            part["image"]
            for m in messages
            if isinstance(m["content"], list)
            for part in m["content"]
            if "image" in part
        ]
        if len(found) > self._pictures:
            raise UserError(
                f"messages: {len(found)} images; this server was started for at most {self._pictures} in a chat"
            )
        views = [self._view(picture) for picture in found]
        tokens = [view.shape[0] * view.shape[1] // self._rows.layout.merged_px**2 for view in views]
        bare = [
            m | {"content": [{k: v for k, v in part.items() if k != "image"} for part in m["content"]]}
            if isinstance(m["content"], list)
            else m
            for m in messages
        ]
        return Segment(self._rows.chat.ids(bare, tokens, variables=variables), views)

    def _view(self, picture: Image.Image) -> np.ndarray:
        """A picture as the preprocessor makes it, or smaller where a side would be longer than there is room for."""
        unit, config = self._rows.layout.merged_px, self._images
        height, width = smart_resize(picture.height, picture.width, unit, config.min_pixels, config.max_pixels)
        shrink = max(height, width) / self._side
        if shrink > 1:
            height, width = (max(unit, math.floor(side / shrink / unit) * unit) for side in (height, width))
        return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
