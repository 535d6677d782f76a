"""Twice as many px a side by a trained network: that of the npm package @upscalerjs/esrgan-slim, from the user's own copy.

The package holds a residual dense network as TensorFlow.js saves it: a list of layers, and their weights in one file. It is read
as data, and run by JAX.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zoomearth_jax.configs.io import read_json
from zoomearth_jax.errors import UserError

FACTOR = 2
_TILE = 128  # px of a region that are enlarged at once
_MOST_BYTES = 2**26  # of weights
_INSTALL = "give the folder of the npm package @upscalerjs/esrgan-slim (npm install @upscalerjs/esrgan-slim)"


class Layer(NamedTuple):
    """One layer of the network.

    Attributes:
        kind: of Keras. name: by which its weights and other layers find it.
        inputs: names of the layers that it reads.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]


class SuperResolution:
    """The network, called with a region uint8 [h, w, 3]; gives uint8 [2 h, 2 w, 3]."""

    def __init__(self, folder: Path):
        """Reads layers and weights.

        Raises:
            UserError: the folder isn't that package, or its model is another one.
        """
        self.file = _model_file(Path(folder))
        model = read_json(self.file)
        try:
            layers = [_layer(layer) for layer in model["modelTopology"]["model_config"]["config"]["layers"]]
            self.layers, self.weights = layers, _weights(self.file.parent, model["weightsManifest"])
            self.margin = _reach(layers, self.weights)
            self._run = jax.jit(lambda weights, x_BHWC: enlarge(layers, weights, x_BHWC))
            made = jax.eval_shape(self._run, self.weights, jnp.zeros((1, 8, 8, 3)))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.file}: not the model of @upscalerjs/esrgan-slim ({reason:.100})") from None
        if made.shape != (1, 8 * FACTOR, 8 * FACTOR, 3):
            raise UserError(f"{self.file}: a model that makes {list(made.shape)} of [1, 8, 8, 3]; {_INSTALL}")

    def __call__(self, region: np.ndarray) -> np.ndarray:
        """The region with twice as many px a side, tile by tile, each with all px around it that it depends on. Beyond the border
        the region is mirrored."""
        height, width = region.shape[:2]
        fill = [(self.margin, self.margin + -side % _TILE) for side in (height, width)]
        padded = np.pad(region, (*fill, (0, 0)), mode="symmetric").astype(np.float32)
        enlarged = np.empty((FACTOR * (height + fill[0][1]), FACTOR * (width + fill[1][1]), 3), np.uint8)
        side, edge = _TILE + 2 * self.margin, FACTOR * self.margin
        for top in range(0, height, _TILE):
            for left in range(0, width, _TILE):
                made_HWC = self._run(self.weights, padded[None, top : top + side, left : left + side])[0]
                inner_HWC = np.asarray(made_HWC)[edge:-edge, edge:-edge]
                y, x = FACTOR * top, FACTOR * left
                enlarged[y : y + FACTOR * _TILE, x : x + FACTOR * _TILE] = np.clip(np.rint(inner_HWC), 0, 255)
        return enlarged[: FACTOR * height, : FACTOR * width]


def enlarge(layers: list[Layer], weights: dict[str, Any], x_BHWC) -> jax.Array:
    """Runs the layers, float32 [B, H, W, 3] -> [B, 2 H, 2 W, 3], in levels of 0 … 255."""
    values: dict[str, jax.Array] = {}
    for kind, name, inputs in layers:
        given = [values[other] for other in inputs]
        match kind:
            case "InputLayer":
                values[name] = x_BHWC
            case "Conv2D":
                values[name] = _convolved(given[0], weights[f"{name}/kernel"], weights[f"{name}/bias"])
            case "Activation":
                values[name] = jax.nn.relu(given[0])
            case "Concatenate":
                values[name] = jnp.concatenate(given, axis=-1)
            case "Add":
                values[name] = given[0] + given[1]
            case "UpSampling2D":
                values[name] = given[0].repeat(FACTOR, axis=1).repeat(FACTOR, axis=2)
    return values[layers[-1].name]


def _convolved(x_BHWC, kernel, bias) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x_BHWC, kernel, (1, 1), "SAME", dimension_numbers=numbers) + bias


def _model_file(folder: Path) -> Path:
    """The model for twice the size within the package, or within the folder that it is installed in."""
    package = Path("node_modules") / "@upscalerjs" / "esrgan-slim"
    places = [folder / within / "models" / "x2" / "model.json" for within in (Path(), Path("package"), package)]
    found = [place for place in places if place.is_file()]
    if not found:
        raise UserError(f"{folder}: no models/x2/model.json there; {_INSTALL}")
    return found[0]


def _layer(described: dict) -> Layer:
    """A layer, as the model file describes it.

    Raises:
        ValueError: of a kind, or with settings, that `enlarge` doesn't compute.
    """
    kind, config = described["class_name"], described["config"]
    inputs = tuple(node[0] for node in described["inbound_nodes"][0]) if described["inbound_nodes"] else ()
    expected: dict[str, dict[str, Any]] = {
        "InputLayer": {},
        "Conv2D": {"strides": [1, 1], "dilation_rate": [1, 1], "activation": "linear", "use_bias": True},
        "Activation": {"activation": "relu"},
        "Concatenate": {"axis": 3},
        "Add": {},
        "UpSampling2D": {"size": [FACTOR, FACTOR], "interpolation": "nearest"},
    }
    wanted = expected.get(kind)
    if wanted is None or any(config[name] != value for name, value in wanted.items()):
        raise ValueError(f"the layer {described['name']} is a {kind} of another kind")
    return Layer(kind, described["name"], inputs)


def _weights(folder: Path, manifest: list[dict]) -> dict[str, np.ndarray]:
    """The weights by name, float32; all in one file, one after the other.

    Raises:
        ValueError: a manifest of another form, or a file of another length.
    """
    (group,) = manifest
    (name,) = group["paths"]
    file = folder / Path(name).name
    if not file.is_file() or file.stat().st_size > _MOST_BYTES:
        raise ValueError(f"no file {file.name} with weights")
    values, weights, begin = np.frombuffer(file.read_bytes(), "<f4"), {}, 0
    for weight in group["weights"]:
        if weight["dtype"] != "float32" or "quantization" in weight:
            raise ValueError(f"{weight['name']} isn't float32")
        count = math.prod(weight["shape"])
        weights[weight["name"]] = values[begin : begin + count].reshape(weight["shape"])
        begin += count
    if begin != len(values):
        raise ValueError(f"{file.name} holds {len(values)} numbers, not {begin}")
    return weights


def _reach(layers: list[Layer], weights: dict[str, np.ndarray]) -> int:
    """Px around a px that its value can depend on, at most."""
    sides = [max(weights[f"{layer.name}/kernel"].shape[:2]) for layer in layers if layer.kind == "Conv2D"]
    return sum(side // 2 for side in sides)
