"""`zoomearth tool` and `ask --tools` as a user meets them."""

import json
from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
from PIL import Image

pytest.importorskip("cv2", reason="needs the extra `tools`")
pytest.importorskip("jsonschema", reason="needs the extra `tools`")

from tests.tools.pictures import ground, levels, psnr
from zoomearth_jax import cli
from zoomearth_jax.evaluation.asking import load

SIDE = 640
CLEAN = ground(SIDE)
NOISY = levels(CLEAN + np.random.default_rng(0).normal(0, 15, CLEAN.shape))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working directory with a noisy image, and tools of the user's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Image.fromarray(NOISY).save("image.png")
    (tmp_path / "verb_test_tools.py").write_text(
        "import time\n"
        "from zoomearth_jax.tools.image_tool import ToolResult\n"
        "def raises(region, context):\n    raise KeyError('x')\n"
        "def hangs(region, context):\n    time.sleep(0.5)\n"
        "def thin(region, context):\n    return ToolResult(region[:, :, :1])\n"
        "def says(region, context):\n    return f'{region.shape} {context.label}'\n"
    )
    return tmp_path


def said(capsys, *args):
    capsys.readouterr()
    assert cli.main([*map(str, args), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refusal(capsys, *args) -> str:
    capsys.readouterr()
    assert cli.main([*map(str, args)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_region_is_denoised_written_and_put_back(capsys):
    box = ("--box", 100, 300, 200, 420)
    record = said(capsys, "tool", "denoise", "image.png", *box, "--out", "out/result.png", "--paste", "whole.png")
    x1, y1, x2, y2 = record["window"]
    assert (x2 - x1, y2 - y1) == (512, 512)
    result = pixels("out/result.png")
    assert psnr(CLEAN[y1:y2, x1:x2], result) > psnr(CLEAN[y1:y2, x1:x2], NOISY[y1:y2, x1:x2]) + 2
    whole = pixels("whole.png")
    np.testing.assert_array_equal(whole[300:420, 100:200], result[300 - y1 : 420 - y1, 100 - x1 : 200 - x1])
    np.testing.assert_array_equal(whole[:250], NOISY[:250])
    for place in ("out/result.json", "whole.json"):
        written = json.loads(Path(place).read_text())
        assert written["metadata"]["sigma"] == pytest.approx(15, rel=0.2)
        assert set(written["versions"]) == {"zoomearth_jax", "scikit-image", "opencv-python-headless"}
        assert written["files"] == {"out": "out/result.png", "paste": "whole.png"}


def test_masks_and_what_is_made_up_become_files(capsys):
    segmented = said(capsys, "tool", "segmentation", "image.png", "--box", 20, 20, 90, 90, "--out", "mask.png")
    assert set(np.unique(pixels("mask.png"))) <= {0, 255}
    assert (pixels("mask.png") > 0).sum() == segmented["mask_px"]
    cloud = np.zeros((SIDE, SIDE), np.uint8)
    cloud[200:230, 200:240] = 255
    Image.fromarray(cloud).save("cloud.png")
    record = said(capsys, "tool", "cloud_removal", "image.png", "--mask", "cloud.png", "--out", "filled.png")
    assert record["made_up_px"] == 1200
    np.testing.assert_array_equal(pixels(record["files"]["made_up"]), cloud)
    Image.fromarray(CLEAN).save("june.png")
    record = said(
        capsys,
        "tool",
        "cloud_removal",
        "image.png",
        "--mask",
        "cloud.png",
        "--other",
        "june.png",
        "--out",
        "filled.png",
    )
    assert record["made_up_px"] == 0
    assert psnr(CLEAN[200:230, 200:240], pixels("filled.png")[200:230, 200:240]) > 30


def test_results_lie_where_the_region_does(capsys):
    """A box in degrees around px 100 to 200 and 300 to 420 of an image in UTM; GDAL reads the results' places."""
    place = rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)
    with rasterio.open(
        "utm.tif", "w", "GTiff", SIDE, SIDE, 3, crs="EPSG:32633", transform=place, dtype="uint8"
    ) as file:
        file.write(NOISY.transpose(2, 0, 1))
    corners = [(500_000 + x / 2, 5_000_000 - y / 2) for x, y in ((100, 300), (200, 420))]
    (x1, y1), (x2, y2) = corners
    ring = pyproj.Transformer.from_crs(32633, 4326, always_xy=True).itransform(
        [(x1, y1), (x1, y2), (x2, y2), (x2, y1), (x1, y1)]
    )
    Path("box.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [[list(point) for point in ring]]}))
    given = ("--box-geojson", "box.geojson", "--out", "result.tif", "--paste", "whole.tif")
    record = said(capsys, "tool", "denoise", "utm.tif", *given)
    in_px = said(capsys, "tool", "denoise", "utm.tif", "--box", 100, 300, 200, 420)
    np.testing.assert_allclose(
        record["window"], in_px["window"], atol=1
    )  # whole px around a corner that is off by 1e-6
    x1, y1, x2, y2 = record["window"]
    with rasterio.open("result.tif") as result, rasterio.open("whole.tif") as whole:
        assert result.crs == whole.crs == "EPSG:32633"
        np.testing.assert_allclose(result.bounds[::3], (500_000 + x1 / 2, 5_000_000 - y1 / 2))
        np.testing.assert_allclose(result.bounds[2:0:-1], (500_000 + x2 / 2, 5_000_000 - y2 / 2))
        assert whole.transform == place
        put_back = whole.read().transpose(1, 2, 0)
    assert (put_back[300:420, 100:200] != NOISY[300:420, 100:200]).mean() > 0.9
    np.testing.assert_array_equal(put_back[:250], NOISY[:250])


def test_all_tools_are_listed_with_their_schemas(capsys):
    assert [one["function"]["name"] for one in said(capsys, "tool")][:3] == ["zoom", "denoise", "cloud_removal"]
    assert cli.main(["tool"]) == 0
    assert "of recolour: red" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("denoize", "image.png"), "did you mean 'denoise'"),
        (("denoise",), "name an image too"),
        (("denoise", "none.png"), "no such image file"),
        (("denoise", "image.png", "--box", "9", "9", "3", "20"), "give x1 < x2"),
        (("denoise", "image.png", "--box", "900", "0", "990", "9"), "no part of the image (640 x 640 px)"),
        (("denoise", "image.png", "--box", "nan", "0", "990", "9"), "no part of the image"),
        (("denoise", "image.png", "--param", "sigma=many"), "sigma: 'many' is not of type 'number'"),
        (("denoise", "image.png", "--param", "sigma"), "write it as NAME=VALUE"),
        (("denoise", "image.png", "--param", "noise=1"), "'noise' was unexpected"),
        (("edit", "image.png"), "name an operation"),
        (("denoise", "image.png", "--out", "image.png"), "would overwrite the image"),
        (("denoise", "image.png", "--out", "out.gif"), "--out writes .tif, .png or .jpg"),
        (("denoise", "image.png", "--box-geojson", "none.geojson"), "has no georeference"),
        (("denoise", "image.png", "--mask", "small.png"), "it must be of the image's size, 640 x 640"),
        (("zoom", "image.png", "--param", "scale=2", "--paste", "out.png"), "nothing to paste"),
        (("zoom", "image.png", "--tool.super-resolution", "."), "npm install @upscalerjs/esrgan-slim"),
        (("segmentation", "image.png", "--tool.segmenter", "verb_test_tools.py"), "no ONNX model"),
        (("verb_test_tools:raises", "image.png", "--out", "out.png"), "tool raises: failed (KeyError: 'x')"),
        (("verb_test_tools:hangs", "image.png", "--tool.timeout-s", "0.05"), "was given up"),
        (("verb_test_tools:thin", "image.png"), "gave an image of uint8 [640, 640, 1]"),
        (("verb_test_tools:says", "image.png", "--out", "out.png"), "gave no picture and no mask"),
        (("verb_test_tools:none", "image.png"), "has no function none"),
        (("http://127.0.0.1:9/x", "image.png"), "can't be reached"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(capsys, folder, args, line):
    Image.fromarray(CLEAN[:9, :9]).save("small.png")
    before = sorted(path.name for path in folder.iterdir() if path.name != "__pycache__")
    assert line in refusal(capsys, "tool", *args)
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == before


def test_settings_come_after_one_flag_or_several(capsys):
    said(
        capsys,
        "tool",
        "edit",
        "image.png",
        "--box",
        9,
        9,
        40,
        40,
        "--param",
        "operation=blur",
        "amount=2",
        "--out",
        "a.png",
    )
    said(
        capsys,
        "tool",
        "edit",
        "image.png",
        "--box",
        9,
        9,
        40,
        40,
        "--param",
        "operation=blur",
        "--param",
        "amount=2",
        "--out",
        "b.png",
    )
    np.testing.assert_array_equal(pixels("a.png"), pixels("b.png"))
    said(capsys, "tool", "edit", "image.png", "--box", 9, 9, 40, 40, "--param", "operation=blur", "--out", "c.png")
    assert (pixels("a.png") != pixels("c.png")).any()


def test_functions_of_the_user_s_own_say_what_they_see(capsys):
    record = said(capsys, "tool", "verb_test_tools:says", "image.png", "--box", 0, 0, 9, 9, "--label", "roof")
    assert record["text"] == "(512, 512, 3) roof"


@pytest.fixture(scope="module")
def policy():
    return load("nano-grpo")


def test_a_script_shows_the_path_of_a_policy_that_calls_tools(capsys, monkeypatch, policy):
    monkeypatch.setattr("zoomearth_jax.verbs.ask.load", lambda *args, **kwargs: policy)
    call = {"name": "denoise", "arguments": {"bbox_2d": [14.0, 14.0, 56.0, 56.0]}}
    turns = [f"<think>grainy</think><tool_call>{json.dumps(call)}", "<answer>fields</answer>"]
    Path("script.json").write_text(json.dumps({"turns": turns}))
    ask = ("ask", "image.png", "What is there?", "--tools", "denoise", "edit", "--script", "script.json")
    result = said(capsys, *ask, "--paste", "whole.png", "--save", "seen.png")
    assert result["answer"] == "fields"
    assert "scripted" in result["note"]
    (tool,) = result["turns"][0]["tools"]
    assert tool["metadata"]["denoised"]
    assert psnr(CLEAN[80:320, 80:320], pixels("whole.png")[80:320, 80:320]) > psnr(CLEAN, NOISY) + 2
    assert json.loads(Path("whole.json").read_text())["pasted"] == [tool]
    assert cli.main(list(ask)) == 0
    out = capsys.readouterr().out
    assert "tool    denoise: noise of sigma 1" in out
    assert "note    scripted" in out


def test_bad_input_of_ask_with_tools(capsys, monkeypatch, policy):
    monkeypatch.setattr("zoomearth_jax.verbs.ask.load", lambda *args, **kwargs: policy)
    Path("bad.json").write_text('{"turns": []}')
    ask = ("ask", "image.png", "?")
    assert "go with --tools" in refusal(capsys, *ask, "--paste", "whole.png")
    assert "no script" in refusal(capsys, *ask, "--script", "bad.json")
    assert "no such file" in refusal(capsys, *ask, "--script", "none.json")
    assert "did you mean 'denoise'" in refusal(capsys, *ask, "--tools", "denoize")
    assert "give a text file" in refusal(capsys, *ask, "--tools", "denoise", "--tool-instruction", "none.txt")
