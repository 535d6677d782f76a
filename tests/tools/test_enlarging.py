"""The zoom tool's ways to enlarge: Lanczos, and the trained network against convolutions of SciPy."""

import json

import numpy as np
import pytest
import scipy.signal

from tests.tools.pictures import ground
from zoomearth_jax.configs.tools import ToolsConfig
from zoomearth_jax.data_pipeline.images.boxes import Frame
from zoomearth_jax.errors import UserError
from zoomearth_jax.tools.enlarging import zoom_tool
from zoomearth_jax.tools.image_tool import Context, ToolFailure, checked
from zoomearth_jax.tools.super_resolution import SuperResolution

FEATURES = 5


def conv(name, inputs, side=3, given=FEATURES, made=FEATURES):
    config = {"name": name, "filters": made, "kernel_size": [side, side], "strides": [1, 1], "dilation_rate": [1, 1]}
    config |= {"padding": "same", "activation": "linear", "use_bias": True}
    return {"class_name": "Conv2D", "name": name, "config": config, "inbound_nodes": [[[inputs, 0, 0, {}]]]}, (
        side,
        given,
        made,
    )


def other(kind, name, inputs, **config):
    nodes = [[[one, 0, 0, {}] for one in inputs]] if inputs else []
    return {"class_name": kind, "name": name, "config": {"name": name, **config}, "inbound_nodes": nodes}


@pytest.fixture
def package(tmp_path):
    """A small network of the same parts in the same files, with weights that are drawn."""
    first, second = conv("F_m1", "LR", given=3), conv("UP", "joined", 1, 2 * FEATURES, 12)
    last = conv("SR", "UPsample", given=12, made=3)
    layers = [
        other("InputLayer", "LR", []),
        first[0],
        other("Activation", "relu", ["F_m1"], activation="relu"),
        other("Add", "sum", ["relu", "F_m1"]),
        other("Concatenate", "joined", ["sum", "relu"], axis=3),
        second[0],
        other("UpSampling2D", "UPsample", ["UP"], size=[2, 2], interpolation="nearest"),
        last[0],
    ]
    rng, specs, values = np.random.default_rng(0), [], []
    for layer, (side, given, made) in (first, second, last):
        kernel = rng.normal(0, 0.4 / side, (side, side, given, made)).astype("<f4")
        for part, array in (("kernel", kernel), ("bias", rng.normal(0, 3, made).astype("<f4"))):
            specs.append({"name": f"{layer['name']}/{part}", "shape": list(array.shape), "dtype": "float32"})
            values.append(array)
    folder = tmp_path / "node_modules" / "@upscalerjs" / "esrgan-slim" / "models" / "x2"
    folder.mkdir(parents=True)
    manifest = [{"paths": ["group1-shard1of1.bin"], "weights": specs}]
    topology = {"model_config": {"class_name": "Functional", "config": {"layers": layers}}}
    (folder / "model.json").write_text(json.dumps({"modelTopology": topology, "weightsManifest": manifest}))
    (folder / "group1-shard1of1.bin").write_bytes(b"".join(value.tobytes() for value in values))
    return tmp_path, dict(zip([spec["name"] for spec in specs], values, strict=True))


def by_scipy(x, weights):
    """What the network computes, whatever is beyond the border left out."""

    def convolved(x, name):
        kernel = weights[f"{name}/kernel"][::-1, ::-1]
        planes = [
            sum(scipy.signal.convolve2d(x[..., i], kernel[:, :, i, o], "same") for i in range(x.shape[-1]))
            for o in range(kernel.shape[-1])
        ]
        return np.stack(planes, -1) + weights[f"{name}/bias"]

    first = convolved(x.astype(np.float64), "F_m1")
    relu = np.maximum(first, 0)
    up = convolved(np.concatenate([relu + first, relu], -1), "UP")
    return convolved(np.kron(up, np.ones((2, 2, 1))), "SR")


def test_the_network_computes_what_scipy_does_tile_by_tile(package):
    folder, weights = package
    region = ground(160)[:140, :150]  # two tiles a side
    made = SuperResolution(folder)(region)
    padded = np.pad(region, ((8, 8), (8, 8), (0, 0)), mode="symmetric")
    want = np.clip(np.rint(by_scipy(padded, weights)[16:-16, 16:-16]), 0, 255)
    assert made.shape == (280, 300, 3)
    assert np.abs(made.astype(int) - want).max() <= 1
    assert made.std() > 5


def zoomed(region, settings=ToolsConfig(), **parameters):
    tool, (height, width) = zoom_tool(settings), region.shape[:2]
    return checked(
        "zoom", tool.call(region, Context((0, 0, width, height), Frame(width, height), "", parameters)), region
    )


def test_it_is_said_which_of_them_enlarged(package):
    region = ground(40)
    network, lanczos = zoomed(region, ToolsConfig(super_resolution=package[0]), scale=4), zoomed(region, scale=4)
    assert network.image.shape == lanczos.image.shape == (160, 160, 3)
    assert network.metadata["enlarged_by"] == "the network of @upscalerjs/esrgan-slim"
    assert "Lanczos" in lanczos.text
    np.testing.assert_array_equal(zoomed(region).image, region)
    flat = np.full((20, 20, 3), 77, np.uint8)
    np.testing.assert_array_equal(zoomed(flat, scale=2).image, np.full((40, 40, 3), 77, np.uint8))
    with pytest.raises(ToolFailure, match="too many for a scale of 4"):
        zoomed(np.zeros((1100, 1100, 3), np.uint8), scale=4)


def broken(package, change):
    folder = package[0] / "node_modules" / "@upscalerjs" / "esrgan-slim" / "models" / "x2"
    model = json.loads((folder / "model.json").read_text())
    change(model, folder)
    (folder / "model.json").write_text(json.dumps(model))
    return package[0]


LAYERS = ("modelTopology", "model_config", "config", "layers")


def layers(model):
    for key in LAYERS:
        model = model[key]
    return model


@pytest.mark.parametrize(
    "change",
    [
        lambda model, _: model.pop("modelTopology"),
        lambda model, _: layers(model)[1].update(class_name="LSTM"),
        lambda model, _: layers(model)[2]["config"].update(activation="tanh"),
        lambda model, _: layers(model)[4].update(inbound_nodes=[[["sum", 0, 0, {}], ["nowhere", 0, 0, {}]]]),
        lambda model, _: layers(model).pop(6),
        lambda model, _: model["weightsManifest"][0]["weights"][0].update(dtype="uint8"),
        lambda model, folder: (folder / "group1-shard1of1.bin").write_bytes(b"1234" * 7),
        lambda model, folder: (folder / "group1-shard1of1.bin").unlink(),
    ],
)
def test_another_network_is_refused_in_one_line(package, change):
    with pytest.raises(UserError) as error:
        SuperResolution(broken(package, change))
    assert "\n" not in str(error.value)
    assert "model.json" in str(error.value)


def test_a_folder_without_the_package_says_what_to_install(tmp_path):
    with pytest.raises(UserError, match="npm install @upscalerjs/esrgan-slim"):
        SuperResolution(tmp_path)
