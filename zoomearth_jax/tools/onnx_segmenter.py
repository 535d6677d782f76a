"""A promptable segmenter in one ONNX file, run by onnxruntime, with the inputs and outputs of EfficientSAM's export."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import onnxruntime

from zoomearth_jax.errors import UserError
from zoomearth_jax.tools.image_tool import ToolFailure

_INPUTS = {"batched_images", "batched_point_coords", "batched_point_labels"}
_OUTPUTS = ["output_masks", "iou_predictions"]
_CORNERS = (2, 3)  # labels of a box's corners, as the Segment Anything family has them


class OnnxSegmenter:
    """Calls the model: region uint8 [h, w, 3] and box in px of it -> mask bool [h, w]."""

    def __init__(self, path: Path):
        """Loads the file.

        Raises:
            UserError: no such file, no ONNX model, or one with other inputs and outputs.
        """
        if not path.is_file():
            raise UserError(f"{path}: no such file; --tool.segmenter takes the ONNX file of a segmenter")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has many of its own
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: no ONNX model that onnxruntime reads ({reason:.120})") from None
        inputs = {node.name for node in self._session.get_inputs()}
        outputs = {node.name for node in self._session.get_outputs()}
        if inputs != _INPUTS or not set(_OUTPUTS) <= outputs:
            raise UserError(
                f"{path}: a segmenter with inputs {', '.join(sorted(inputs))} and outputs {', '.join(sorted(outputs))}; "
                f"it needs those of EfficientSAM: {', '.join(sorted(_INPUTS))} -> {', '.join(_OUTPUTS)}"
            )
        self._one_at_a_time = threading.Lock()

    def __call__(self, region: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
        """The mask of the object in a box: that of several which the model thinks best of.

        Raises:
            ToolFailure: outputs of other shapes.
        """
        pixels = np.ascontiguousarray(region.transpose(2, 0, 1)[None], np.float32) / 255
        points = np.array(box, np.float32).reshape(1, 1, 2, 2)
        labels = np.array(_CORNERS, np.float32).reshape(1, 1, 2)
        feeds = {"batched_images": pixels, "batched_point_coords": points, "batched_point_labels": labels}
        with self._one_at_a_time:
            masks, scores = self._session.run(_OUTPUTS, feeds)
        if masks.ndim != 5 or masks.shape[-2:] != region.shape[:2] or scores.shape != masks.shape[:3]:
            raise ToolFailure(
                f"tool segmentation: the model gave masks {list(masks.shape)} and scores {list(scores.shape)}"
            )
        return masks[0, 0, int(scores[0, 0].argmax())] > 0
