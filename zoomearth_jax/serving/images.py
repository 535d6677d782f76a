"""Images that come inside a body, as data URLs, and images of the folder that the server was given with `--root`."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import tempfile
from pathlib import Path
from urllib.parse import unquote

from PIL import Image

from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.data_pipeline.images.boxes import Frame
from zoomearth_jax.data_pipeline.images.decoding import ImageFile, kind_of
from zoomearth_jax.data_pipeline.images.sources import ImageSource, RawImage
from zoomearth_jax.data_pipeline.images.tiles import SHARDS, TileStore, is_store
from zoomearth_jax.errors import UserError
from zoomearth_jax.serving.budget import Share
from zoomearth_jax.serving.errors import APIError

# forms whose files name no other files: a virtual raster that a client sends could name any file of this machine
KINDS = frozenset(("tiff", "png", "jpeg", "webp", "JP2OpenJPEG"))
_PIXEL_BYTES = 7  # RGB twice, while a picture is copied, and the strips of its decoding


def checked_frame(path: Path, config: ImageConfig, param: str | None) -> Frame:
    """The size of an image file that a client sent, by its header.

    Raises:
        APIError: 400: no image, one of a form that may name other files, or one over the limit of pixels.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
        if kind_of(head) not in KINDS:
            raise APIError(
                400, "not a readable image (neither PNG, JPEG, WebP, TIFF nor JPEG 2000)", param, "invalid_image"
            )
        return ImageFile(path, config).frame
    except (UserError, OSError) as error:
        raise image_error(error, path, param) from None


def image_error(error: Exception, path: Path, param: str | None) -> APIError:
    """What a client is told of its image: the reason, without the name of the file that it lies in here."""
    said = str(error).replace(f"{path}: ", "").replace(str(path), "the image").replace(f"{path.parent}/", "")
    return APIError(400, said, param, "invalid_image")


def of_data_url(url: str, config: ImageConfig, memory: Share, param: str) -> Image.Image:
    """The picture of a data URL, 8-bit RGB.

    Args:
        config: how it becomes RGB, and its limit of pixels.
        memory: is charged for the pixels before they are decoded.
        param: the field that the URL stands in.

    Raises:
        APIError: 400, of what is no image in base64; 429, where there is no memory for it.
    """
    head, comma, data = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise APIError(400, "a data URL must have the form data:image/png;base64,…", param, "invalid_image")
    try:
        encoded = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise APIError(400, f"a data URL that is not base64 ({error})", param, "invalid_image") from None
    with tempfile.NamedTemporaryFile(prefix="zoomearth-") as file:
        file.write(encoded)
        file.flush()
        return _decoded(Path(file.name), config, memory, param)


def _decoded(path: Path, config: ImageConfig, memory: Share, param: str) -> Image.Image:
    frame = checked_frame(path, config, param)
    memory.add(_PIXEL_BYTES * frame.width * frame.height)
    picture, top = Image.new("RGB", (frame.width, frame.height)), 0
    try:
        for strip in ImageFile(path, config).strips(256):
            picture.paste(Image.fromarray(strip), (0, top))
            top += len(strip)
    except (UserError, OSError) as error:
        raise image_error(error, path, param) from None
    return picture


@dataclasses.dataclass(frozen=True)
class Root:
    """The folder whose images clients may name as `file:PATH`, relative to it. Nothing outside is ever read, by links neither."""

    folder: Path

    def image(self, url: str, config: ImageConfig, param: str) -> ImageSource:
        """The image of a `file:` URL: a file, or STORE/NAME of a tile store in the folder.

        Raises:
            APIError: 400, of a path that leads out; 404, where nothing is there.
        """
        name = unquote(url.removeprefix("file:"))
        try:
            root = self.folder.resolve(strict=True)
            path = (root / name).resolve()
            if name.startswith("/") or "\0" in name or not path.is_relative_to(root) or path == root:
                raise APIError(
                    400, "file: takes a path relative to the server's --root, inside it", param, "invalid_path"
                )
            if path.is_file():
                checked_frame(path, config, param)
                return RawImage(path, config)
            return self._stored(path, root, config, param)
        except (OSError, ValueError, RuntimeError) as error:  # a name that no file can have, links in a circle
            raise APIError(400, f"file: {type(error).__name__} at that path", param, "invalid_path") from None
        except UserError as error:
            raise image_error(error, path, param) from None

    def _stored(self, path: Path, root: Path, config: ImageConfig, param: str) -> ImageSource:
        for folder in path.parents:
            if not folder.is_relative_to(root):
                break
            if is_store(folder):
                image = TileStore.open(folder, config).image(path.relative_to(folder).as_posix())
                if not (folder / SHARDS / image.record.shard).resolve().is_relative_to(root):
                    break
                return image
        raise APIError(404, "file: no such image under the server's --root", param, "file_not_found")
