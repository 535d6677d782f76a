"""What HF's Qwen2.5-VL processor does, on the host: messages and images -> ids, uint8 pictures, grids and frames.

Pictures are bit-equal to those of HF's slow (Pillow) image processor; `models/qwen2_5_vl/vision.py: pixel_values` makes its patches
of them on the device.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageMode

from zoomearth_jax.configs.io import from_dict, read_json
from zoomearth_jax.data_pipeline.images.boxes import Frame
from zoomearth_jax.data_pipeline.text.chat import Chat, load_tokenizer
from zoomearth_jax.errors import UserError

MAX_ELONGATION = 200
# what the model's own preprocessing does (models/qwen2_5_vl/vision.py: patchify); other values would be silently ignored
FIXED = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": int(Image.Resampling.BICUBIC),
    "rescale_factor": 1 / 255,
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
}


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """Sizes of `preprocessor_config.json`; the defaults are those published with Qwen2.5-VL.

    Attributes:
        min_pixels, max_pixels: area of a picture as the model sees it.
        patch_size: side of a patch in px.
        merge_size: patches along the side of a merged visual token.
        temporal_patch_size: frames in a patch.
    """

    min_pixels: int = 56 * 56
    max_pixels: int = 12_845_056
    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) <= 0:
                raise UserError(f"image config: {field.name} must be positive")
        if self.min_pixels > self.max_pixels:
            raise UserError(f"image config: min_pixels {self.min_pixels} is over max_pixels {self.max_pixels}")

    @property
    def merged_px(self) -> int:
        """Side in px of the square that one merged visual token covers."""
        return self.patch_size * self.merge_size


# what config.json calls the sizes of a patch
_PATCHES = {
    "patch_size": "patch_size",
    "merge_size": "spatial_merge_size",
    "temporal_patch_size": "temporal_patch_size",
}


def read_image_config(directory) -> ImageConfig:
    """The image config of an HF directory: the defaults if it has neither preprocessor_config.json nor the
    processor_config.json of transformers 5.

    Raises:
        UserError: a broken file, no area limits in it, preprocessing that the model doesn't do, or a patch that isn't the
            one of config.json, where there is one.
    """
    directory = Path(directory)
    raw, where = read_json(directory / "processor_config.json", {}).get("image_processor"), "processor_config.json"
    if raw is None:
        raw, where = read_json(directory / "preprocessor_config.json", {}), "preprocessor_config.json"
    config = _from_hf(raw, str(directory / where)) if raw else ImageConfig()
    vision = read_json(directory / "config.json", {}).get("vision_config")
    if not isinstance(vision, dict):
        return config
    for name, key in _PATCHES.items():
        given = vision.get(key, getattr(ImageConfig, name))
        if getattr(config, name) != given:
            raise UserError(f"{directory / where}: {name} is {getattr(config, name)}, in config.json {given}")
    return config


def _from_hf(raw: dict, where: str) -> ImageConfig:
    if not isinstance(raw, dict):
        raise UserError(f"{where}: expected an object of settings, got {type(raw).__name__}")
    for key, value in raw.items():
        expected = FIXED.get(key, False if key.startswith("do_") else value)
        if value is not None and value != expected:
            raise UserError(f"{where}: {key} {value!r} is not supported, only {expected!r}")
    values = {f.name: raw[f.name] for f in dataclasses.fields(ImageConfig) if raw.get(f.name) is not None}
    size = raw["size"] if isinstance(raw.get("size"), dict) else {}
    for ours, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        if ours not in values and edge not in size:
            raise UserError(f"{where}: neither {ours} nor size.{edge}")
        values.setdefault(ours, size.get(edge))
    return from_dict(ImageConfig, values, where)


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Height and width in px that Qwen's processor gives a picture: multiples of `factor`, an area between the limits
    where that can be, the aspect ratio as near as can be.

    Raises:
        UserError: one side over 200 times the other.
    """
    if max(height, width) > MAX_ELONGATION * min(height, width):
        raise UserError(f"image of {width} x {height} px: over {MAX_ELONGATION} : 1; cut it into shorter pieces")
    sides = height, width
    rounded = [round(side / factor) * factor for side in sides]
    area = rounded[0] * rounded[1]
    if area > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rounded = [max(factor, math.floor(side / shrink / factor) * factor) for side in sides]
    elif area < min_pixels:
        enlarge = math.sqrt(min_pixels / (height * width))
        rounded = [math.ceil(side * enlarge / factor) * factor for side in sides]
    return rounded[0], rounded[1]


class Frames(NamedTuple):
    """The two frames of a picture: a box that the model names is in px of `view`; `box.to(original)` is in the image."""

    view: Frame
    original: Frame


class Inputs(NamedTuple):
    """Inputs of a batch of B conversations with I images in all.

    ids, mask: int32 [B, T], padded on the left; mask is 1 where there is a token.
    pixels: uint8 RGB [h, w, 3] of each image, in the order of the conversations and of the images in each.
    grids: int32 [I, 3], HF's image_grid_thw: 1, and patches down and across.
    frames: the two frames of each image.
    """

    ids: np.ndarray
    mask: np.ndarray
    pixels: list[np.ndarray]
    grids: np.ndarray
    frames: list[Frames]


class Processor:
    """Turns conversations with images into a model's inputs."""

    def __init__(self, tokenizer, images: ImageConfig = ImageConfig()):
        """UserError if the tokenizer has no chat template, no <|image_pad|>, or no padding token."""
        self.chat, self.images = Chat(tokenizer), images
        self.pad_id = tokenizer.pad_token_id
        if self.pad_id is None:
            raise UserError(f"{self.chat.name}: the tokenizer has no pad_token")

    @classmethod
    def from_pretrained(cls, directory) -> Processor:
        """The processor of an HF directory; raises what `load_tokenizer` and `read_image_config` raise."""
        return cls(load_tokenizer(directory), read_image_config(directory))

    def view(self, image: Image.Image) -> np.ndarray:
        """An image as the model sees it, uint8 RGB [h, w, 3]; bicubic, in one step from the original.

        Raises:
            UserError: an image over 200 : 1, of a pixel type other than 8 bits a channel, or broken.
        """
        config = self.images
        height, width = smart_resize(image.height, image.width, config.merged_px, config.min_pixels, config.max_pixels)
        return np.asarray(_to_rgb(image).resize((width, height), Image.Resampling.BICUBIC))

    def __call__(
        self,
        conversations: Sequence[Sequence[dict]],
        images: Sequence[Sequence[Image.Image]],
        generate: bool = True,
    ) -> Inputs:
        """Inputs of a batch.

        Args:
            conversations: lists of messages, see `Chat.ids`.
            images: the images of each conversation, one for each image block.
            generate: whether the assistant's turn is opened at the end.

        Raises:
            UserError: see `Chat.ids` and `view`; or not a list of images for each conversation.
        """
        if len(conversations) != len(images):
            raise UserError(f"{len(conversations)} conversations, but {len(images)} lists of images; give one for each")
        views = [[self.view(image) for image in group] for group in images]
        area = self.images.merged_px**2
        rows = [
            self.chat.ids(messages, [view.shape[0] * view.shape[1] // area for view in group], generate)
            for messages, group in zip(conversations, views, strict=True)
        ]
        pixels = [view for group in views for view in group]
        originals = [Frame(image.width, image.height) for group in images for image in group]
        patch = self.images.patch_size
        grids = [(1, view.shape[0] // patch, view.shape[1] // patch) for view in pixels]
        frames = [Frames(Frame(v.shape[1], v.shape[0]), o) for v, o in zip(pixels, originals, strict=True)]
        return Inputs(*_pad_left(rows, self.pad_id), pixels, np.array(grids, np.int32).reshape(-1, 3), frames)


def _pad_left(rows: list[list[int]], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.full((len(rows), max(map(len, rows), default=0)), pad_id, np.int32)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        if row:
            ids[i, -len(row) :], mask[i, -len(row) :] = row, 1
    return ids, mask


def _to_rgb(image: Image.Image) -> Image.Image:
    """A picture as RGB, as transformers 5 does it: what is transparent lies on white."""
    if ImageMode.getmode(image.mode).typestr not in ("|u1", "|b1"):
        raise UserError(f"image: pixel type {image.mode!r} is not supported; convert the image to 8-bit RGB")
    try:
        if "A" not in image.getbands() and image.info.get("transparency") is None:
            return image.convert("RGB")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"image: broken image data ({error})") from None
