"""Settings of the image tools."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from zoomearth_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ToolsConfig:
    """How image tools run, and what they use that isn't part of the package.

    Attributes:
        timeout_s: seconds after which a tool that hasn't answered is given up.
        max_side: longest side in px of the region that a tool is handed; a larger one is read shrunk to that.
        feather: px over which a result fades into the image around it where it is pasted.
        super_resolution: folder of the npm package @upscalerjs/esrgan-slim, whose trained network then enlarges; Lanczos without
            it.
        segmenter: ONNX file of a promptable segmenter with EfficientSAM's inputs; GrabCut and SLIC need none.
        editor: address (http or https) that makes edits which are told in words.
    """

    timeout_s: float = 60.0
    max_side: int = 2048
    feather: int = 16
    super_resolution: Path | None = None
    segmenter: Path | None = None
    editor: str = ""

    def __post_init__(self):
        if not 0 < self.timeout_s <= 86_400:
            raise UserError(f"tools: timeout_s must be more than 0 and at most a day, not {self.timeout_s}")
        if not 32 <= self.max_side <= 8192:
            raise UserError(f"tools: max_side must be from 32 to 8192 px, not {self.max_side}")
        if not 0 <= self.feather <= 512:
            raise UserError(f"tools: feather must be from 0 to 512 px, not {self.feather}")
        if self.editor and not self.editor.startswith(("http://", "https://")):
            raise UserError(
                f"tools: editor must be an address that starts with http:// or https://, not {self.editor!r}"
            )
