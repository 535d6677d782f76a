"""Segmentation by box against shapes that are known, and a segmenter in ONNX that is made here."""

# ruff: noqa: E402

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2", reason="needs the extra `tools`")
pytest.importorskip("onnxruntime", reason="needs the extra `tools`")

from tests.tools.pictures import ground
from zoomearth_jax.configs.tools import ToolsConfig
from zoomearth_jax.data_pipeline.images.boxes import Frame
from zoomearth_jax.errors import UserError
from zoomearth_jax.tools.image_tool import Context, ToolFailure, checked
from zoomearth_jax.tools.segmentation import segmentation_tool


def lake(side=192):
    """A blue ellipse on green ground, its mask, and a box around it."""
    region, mask = ground(side), np.zeros((side, side), np.uint8)
    cv2.ellipse(mask, (100, 90), (45, 30), 20, 0, 360, 1, -1)
    region[mask > 0] = np.add((30, 60, 150), np.random.default_rng(0).integers(0, 20, (int(mask.sum()), 3)))
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return region, mask > 0, (columns[0] - 5.5, rows[0] - 4.0, columns[-1] + 6.0, rows[-1] + 5.2)


def run(region, box, scale=1.0, settings=ToolsConfig(), **parameters):
    tool = segmentation_tool(settings)
    height, width = region.shape[:2]
    context = Context(tuple(map(float, box)), Frame(width, height), "", parameters, scale)
    return checked(tool.name, tool.call(region.copy(), context), region)


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize(("method", "least"), [("grabcut", 0.9), ("slic", 0.8)])
def test_the_object_in_a_box_is_found(method, least):
    region, mask, box = lake()
    result = run(region, box, method=method)
    assert iou(result.mask, mask) > least
    (found,) = result.boxes
    assert np.abs(np.subtract(found, (box[0] + 5.5, box[1] + 4, box[2] - 5, box[3] - 4.2))).max() < 6
    assert result.metadata["px"] == result.mask.sum()
    np.testing.assert_array_equal(run(region, box, method=method).mask, result.mask)


def test_px_are_told_in_px_of_the_original():
    region, _, box = lake()
    px = run(region, box).metadata["px"]
    assert f"covers {4 * px} px of the original" in run(region, box, scale=0.5).text


def test_a_box_that_is_the_whole_region_works_and_a_tiny_one_is_refused():
    region, mask, _ = lake()
    assert iou(run(region[55:125, 50:150], (0, 0, 100, 70)).mask, mask[55:125, 50:150]) > 0.8
    with pytest.raises(ToolFailure, match="smaller than 4 x 4 px"):
        run(region, (10, 10, 12, 60))


def segmenter(path, inputs=("batched_images", "batched_point_coords", "batched_point_labels")):
    """A model with EfficientSAM's inputs and outputs: two masks, where red and where blue is brighter than half; it thinks best of
    the second."""
    onnx = pytest.importorskip("onnx", reason="makes the model of this test")
    from onnx import TensorProto, helper

    image = helper.make_tensor_value_info(inputs[0], TensorProto.FLOAT, [1, 3, "h", "w"])
    points = helper.make_tensor_value_info(inputs[1], TensorProto.FLOAT, [1, 1, "n", 2])
    labels = helper.make_tensor_value_info(inputs[2], TensorProto.FLOAT, [1, 1, "n"])
    masks = helper.make_tensor_value_info("output_masks", TensorProto.FLOAT, [1, 1, 2, "h", "w"])
    scores = helper.make_tensor_value_info("iou_predictions", TensorProto.FLOAT, [1, 1, 2])
    constants = [
        helper.make_tensor("channels", TensorProto.INT64, [2], [0, 2]),
        helper.make_tensor("half", TensorProto.FLOAT, [], [0.4]),
        helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
        helper.make_tensor("scores", TensorProto.FLOAT, [1, 1, 2], [0.2, 0.9]),
        helper.make_tensor("none", TensorProto.FLOAT, [], [0.0]),
    ]
    nodes = [
        helper.make_node("Gather", [inputs[0], "channels"], ["two"], axis=1),
        helper.make_node("Sub", ["two", "half"], ["over"]),
        helper.make_node("Unsqueeze", ["over", "axis"], ["output_masks"]),
        helper.make_node("ReduceSum", [inputs[1]], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", [inputs[2]], ["kinds"], keepdims=0),
        helper.make_node("Add", ["sum", "kinds"], ["all"]),
        helper.make_node("Mul", ["all", "none"], ["nothing"]),
        helper.make_node("Add", ["scores", "nothing"], ["iou_predictions"]),
    ]
    graph = helper.make_graph(nodes, "segmenter", [image, points, labels], [masks, scores], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def test_a_segmenter_in_onnx_comes_first_and_its_best_mask_counts(tmp_path):
    region, _, box = lake()
    settings = ToolsConfig(segmenter=segmenter(tmp_path / "model.onnx"))
    result = run(region, box, settings=settings)
    assert result.metadata["method"] == "onnx"
    np.testing.assert_array_equal(result.mask, region[..., 2] > 0.4 * 255)
    assert segmentation_tool(settings).parameters["method"]["enum"] == ["onnx", "grabcut", "slic"]


def test_files_that_are_no_segmenter_are_refused_in_one_line(tmp_path):
    (tmp_path / "text.onnx").write_text("no model")
    other = segmenter(tmp_path / "other.onnx", ("pixels", "points", "labels"))
    for path, said in (
        (tmp_path / "none.onnx", "no such file"),
        (tmp_path / "text.onnx", "no ONNX model"),
        (other, "it needs those of EfficientSAM: batched_images"),
    ):
        with pytest.raises(UserError, match=said) as error:
            segmentation_tool(ToolsConfig(segmenter=path))
        assert "\n" not in str(error.value)
