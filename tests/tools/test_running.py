"""Running tools: the region they get, tools that fail, hang or give nonsense, and the registry with the user's own."""

import base64
import http.server
import io
import json
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("jsonschema", reason="needs the extra `tools`")

from tests.tools.pictures import ground
from zoomearth_jax.configs.tools import ToolsConfig
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.images.sources import ArrayImage
from zoomearth_jax.errors import UserError
from zoomearth_jax.tools import registry
from zoomearth_jax.tools.callable_tool import from_callable, from_pipeline
from zoomearth_jax.tools.http_tool import HttpCall, from_address
from zoomearth_jax.tools.image_tool import Context, ImageTool, ToolFailure, ToolResult
from zoomearth_jax.tools.registry import IMAGE_TOOLS, find_tool, find_tools, known_tools
from zoomearth_jax.tools.running import MOST_HANGING, read_region, run_tool, window_of

PIXELS = ground(96)
IMAGE = ArrayImage(PIXELS)


def region_of(tool=None, box=(10, 20, 60, 50), max_side=2048):
    tool = tool or ImageTool("t", "", lambda region, context: ToolResult(region), around=False)
    named = Box(*box, IMAGE.frame)
    return read_region(IMAGE, window_of(tool, named, 64), named, max_side)


def run(call, name="t", timeout_s=20, **context):
    return run_tool(ImageTool(name, "", call), region_of(), timeout_s, **context)


def test_a_tool_is_handed_the_px_of_the_original():
    alone = region_of(box=(10.4, 20, 60, 50))
    np.testing.assert_array_equal(alone.pixels, PIXELS[20:50, 10:60])
    assert alone.box == pytest.approx((0.4, 0, 50, 30))
    around = region_of(ImageTool("t", "", lambda region, context: ToolResult(region)))
    np.testing.assert_array_equal(around.pixels, PIXELS[3:67, 3:67])
    assert around.window.corners == (3, 3, 67, 67)
    assert around.box == (7, 17, 57, 47)
    shrunk = region_of(max_side=32)
    assert shrunk.pixels.shape == (19, 32, 3)
    assert shrunk.scale == 0.64
    assert shrunk.box == pytest.approx((0, 0, 32, 19))


def test_what_a_tool_knows_and_what_it_can_spoil():
    seen = []

    def call(region, context):
        seen.append(context)
        region[:] = 0
        return ToolResult(text="done")

    region = region_of()
    run_tool(ImageTool("t", "", call), region, 20, "roof", {"a": 1})
    assert seen == [Context((0, 0, 50, 30), Frame(96, 96), "roof", {"a": 1}, 1.0, None, ())]
    np.testing.assert_array_equal(region.pixels, PIXELS[20:50, 10:60])


class Stop(BaseException):
    pass


def raises(error):
    def call(region, context):
        raise error

    return call


NAN = float("nan")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (raises(ValueError("two\nlines")), r"failed \(ValueError: two lines\)"),
        (raises(Stop("x")), r"failed \(Stop: x\)"),
        (raises(SystemExit(3)), "failed"),
        (raises(UserError("no such file")), "tool t: no such file"),
        (lambda region, context: None, "gave a NoneType, not a ToolResult"),
        (lambda region, context: ToolResult(), "neither an image"),
        (lambda region, context: ToolResult(region[..., 0]), r"gave an image of uint8 \[30, 50\]"),
        (lambda region, context: ToolResult(region / 255), "float64"),
        (lambda region, context: ToolResult(region[:0]), "50 x 0 px"),
        (lambda region, context: ToolResult(region.tolist()), "gave an image of list"),
        (lambda region, context: ToolResult(mask=np.zeros((9, 9), bool)), r"must be bool \[30, 50\]"),
        (lambda region, context: ToolResult(mask=np.zeros((30, 50))), "float64"),
        (lambda region, context: ToolResult(boxes=((1, 2, 3),)), "gave a box"),
        (lambda region, context: ToolResult(boxes=((1, 2, NAN, 4),)), "gave a box"),
        (lambda region, context: ToolResult(boxes=((5, 2, 3, 4),)), "gave a box"),
        (lambda region, context: ToolResult(boxes=((0, 0, 1, 1),) * 1001), "at most 1000"),
        (lambda region, context: ToolResult(text=b"x"), "text must be a str"),
        (lambda region, context: ToolResult(text="x", metadata={"a": np.float32(1)}), "JSON can hold"),
        (lambda region, context: ToolResult(text="x", metadata={"a": NAN}), "JSON can hold"),
    ],
)
def test_whatever_a_tool_does_is_one_line(call, said):
    with pytest.raises(ToolFailure, match=said) as error:
        run(call)
    assert str(error.value).startswith("tool t: ")
    assert "\n" not in str(error.value)


def test_a_tool_that_hangs_is_given_up_and_not_called_for_ever():
    release, began = threading.Event(), time.monotonic()
    for _ in range(MOST_HANGING):
        with pytest.raises(ToolFailure, match="was given up"):
            run(lambda region, context: release.wait() and ToolResult(region), "slow", timeout_s=0.05)
    with pytest.raises(ToolFailure, match=f"{MOST_HANGING} calls of it still hang"):
        run(lambda region, context: ToolResult(region), "slow")
    assert time.monotonic() - began < 5
    release.set()
    for thread in threading.enumerate():
        if thread.name == "tool slow":
            thread.join(5)
    np.testing.assert_array_equal(run(lambda region, context: ToolResult(region), "slow").image, PIXELS[20:50, 10:60])


def test_texts_are_cut_and_made_readable():
    result = run(lambda region, context: ToolResult(text="\ud800" + "x" * 5000))
    assert result.text.startswith("?x")
    assert len(result.text) == 2000


def mean_colour(region, context):
    """Tells the mean of the red channel."""
    return f"red {region[..., 0].mean():.1f} of {context.label}"


def test_functions_and_pipelines_of_users_are_tools():
    tool = from_callable(mean_colour)
    assert (tool.name, tool.description) == ("mean_colour", "Tells the mean of the red channel.")
    assert run_tool(tool, region_of(), 20, "x").text == f"red {PIXELS[20:50, 10:60, 0].mean():.1f} of x"
    for given, part in (
        (lambda region, context: region, "image"),
        (lambda region, context: region[..., 0] > 9, "mask"),
        (lambda region, context: Image.fromarray(region), "image"),
    ):
        assert getattr(run_tool(from_callable(given, "f"), region_of(), 20), part) is not None
    with pytest.raises(ToolFailure, match="tool f: gave a int"):
        run_tool(from_callable(lambda region, context: 5, "f"), region_of(), 20)


def mask_of(size):
    return Image.fromarray(np.full(size, 255, np.uint8))


@pytest.mark.parametrize(
    ("given", "part", "text"),
    [
        (Image.new("RGB", (100, 60)), "image", ""),
        ({"depth": Image.new("L", (50, 30)), "predicted_depth": None}, "image", ""),
        ([{"label": "roof", "score": 0.5, "mask": mask_of((30, 50))}], "mask", "roof 0.50"),
        ([{"label": "car", "score": 0.9, "box": {"xmin": 1, "ymin": 2, "xmax": 9, "ymax": 8}}], "boxes", "car 0.90"),
        ([{"label": "port", "score": 0.25}, {"label": "sea", "score": None}], "text", "port 0.25, sea"),
        ([], "text", "nothing was found"),
    ],
)
def test_what_pipelines_give(given, part, text):
    result = run_tool(from_pipeline(lambda picture: given, "p", "A pipeline."), region_of(), 20)
    assert result.text == text
    assert getattr(result, part) is not None
    assert len(getattr(result, part))


def test_pipelines_that_give_something_else():
    for given, said in (("text", "gave a str"), ([{"label": "x", "mask": mask_of((5, 5))}], "gave masks of")):
        with pytest.raises(ToolFailure, match=said):
            run_tool(from_pipeline(lambda picture, given=given: given, "p", ""), region_of(), 20)


def png(array) -> str:
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by the path."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(body.pop("image")))))
        answer = {
            "/invert": lambda: {"image": png(255 - picture), "text": json.dumps(body), "metadata": {"by": "me"}},
            "/mask": lambda: {"mask": png(picture[..., 0]), "boxes": [[1, 2, 3, 4]]},
            "/large": lambda: {"image": png(np.zeros((5000, 5000, 3), np.uint8))},
            "/nothing": lambda: {},
            "/list": lambda: [],
            "/boxes": lambda: {"boxes": {"a": 1}},
            "/picture": lambda: {"image": base64.b64encode(b"no picture").decode()},
        }.get(self.path)
        if self.path == "/slow":
            time.sleep(0.5)
        data = json.dumps(answer()).encode() if answer else b"<html>"
        status = {"/error": 500, "/moved": 302}.get(self.path, 200)
        self.send_response(status)
        self.send_header("Location", "/invert")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.path == "/cut":
            data = data[:2]
        self.wfile.write(data)

    def log_message(self, *args):
        """Stays silent."""


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()
        thread.join()


def test_an_address_is_a_tool(server):
    tool = from_address(f"{server}/invert", 10)
    assert tool.name == "invert"
    result = run_tool(tool, region_of(), 20, "roof", {"a": 1})
    np.testing.assert_array_equal(result.image, 255 - PIXELS[20:50, 10:60])
    assert result.metadata == {"by": "me"}
    assert json.loads(result.text) == {
        "tool": "invert",
        "box": [0, 0, 50, 30],
        "full": [96, 96],
        "label": "roof",
        "parameters": {"a": 1},
    }
    masked = run_tool(from_address(f"{server}/mask", 10), region_of(), 20)
    np.testing.assert_array_equal(masked.mask, PIXELS[20:50, 10:60, 0] > 127)
    assert masked.boxes == ((1, 2, 3, 4),)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("error", "status 500"),
        ("moved", "status 302"),
        ("html", "no JSON"),
        ("cut", "can't be reached|no JSON"),
        ("list", "no JSON object"),
        ("nothing", "neither an image"),
        ("boxes", "boxes must be lists"),
        ("picture", "no PNG or JPEG"),
        ("large", "5000 x 5000 px"),
        ("slow", "took longer than 0.2 s"),
    ],
)
def test_what_addresses_answer_wrong_is_one_line(server, path, said):
    tool = ImageTool("t", "", HttpCall("t", f"{server}/{path}", 0.2 if path == "slow" else 10))
    with pytest.raises(ToolFailure, match=said) as error:
        run_tool(tool, region_of(), 20)
    assert "\n" not in str(error.value)


def test_answers_of_too_many_bytes_and_addresses_where_nobody_is(server, monkeypatch):
    monkeypatch.setattr("zoomearth_jax.tools.http_tool.MAX_BYTES", 100)
    with pytest.raises(ToolFailure, match="more than 100 bytes"):
        run_tool(from_address(f"{server}/invert", 10), region_of(), 20)
    with pytest.raises(ToolFailure, match="can't be reached"):
        run_tool(from_address("http://127.0.0.1:9/x", 10), region_of(), 20)
    for address in ("http://", "file:///etc/passwd", "https:///x"):
        with pytest.raises(UserError, match="is no address"):
            HttpCall("t", address, 10)


def test_the_five_tools_are_known_and_unknown_names_are_corrected():
    assert list(IMAGE_TOOLS) == ["zoom", "denoise", "cloud_removal", "segmentation", "edit"]
    assert list(find_tools(known_tools()))[:5] == list(IMAGE_TOOLS)
    with pytest.raises(UserError, match="no tool 'denoize'; did you mean 'denoise'"):
        find_tool("denoize")
    with pytest.raises(UserError, match="two of the name 'zoom'"):
        find_tools(["zoom", "zoom"])


def test_tools_of_the_user_s_own_by_path(tmp_path, monkeypatch):
    (tmp_path / "my_image_tools.py").write_text(
        "from zoomearth_jax.tools.image_tool import ImageTool\n"
        "def bright(region, context):\n    'Says how bright it is.'\n    return str(region.mean() > 100)\n"
        "made = ImageTool('made', 'A tool.', bright, {'a': {'type': 'integer'}})\n"
        "broken = ImageTool('broken', 'A tool.', bright, {'a': {'type': 'whole'}})\n"
        "spaced = ImageTool('two words', 'A tool.', bright)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert find_tool("my_image_tools:bright").description == "Says how bright it is."
    assert find_tool("my_image_tools:made").name == "made"
    for path, said in (
        ("my_image_tools:none", "has no function none"),
        ("no_such_module:f", "importing no_such_module failed"),
        ("my_image_tools:broken", "no JSON schema"),
        ("my_image_tools:spaced", "its name 'two words'"),
    ):
        with pytest.raises(UserError, match=said):
            find_tool(path)


class Point:
    """An entry point of another package."""

    name, value = "theirs", "other:tool"

    def load(self):
        return mean_colour


def test_tools_of_other_packages_by_entry_point(monkeypatch):
    monkeypatch.setattr(registry, "_entry_points", lambda: {"theirs": Point()})
    assert known_tools() == [*IMAGE_TOOLS, "theirs"]
    assert find_tool("theirs").name == "theirs"
    monkeypatch.setattr(Point, "load", lambda self: 1 / 0)
    with pytest.raises(UserError, match="loading other:tool failed"):
        find_tool("theirs")


def test_without_the_extra_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    for name in [name for name in sys.modules if name.startswith("zoomearth_jax.tools.denoise")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=r"needs cv2; pip install 'zoomearth_jax\[tools\]'"):
        find_tool("denoise")


def test_settings_out_of_range_are_one_line():
    for name, value in (("timeout_s", 0), ("max_side", 9), ("feather", -1), ("timeout_s", float("nan"))):
        with pytest.raises(UserError, match=name):
            ToolsConfig(**{name: value})
