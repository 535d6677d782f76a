"""The page with a real server and the shipped model: what it shows of a scene of 5,000 px is what `ask` gives.

With ZOOMEARTH_PAGE_PNG the picture of docs/page.md is written there.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.warp import transform

import zoomearth_jax as ze
from tests.serving.test_page_browser import ask, by_hand, on_screen, settled, watched

pytestmark = pytest.mark.slow
SIDE = 5_000
COMMAND = (sys.executable, "-m", "zoomearth_jax.cli")


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A TIFF of a scene, and the first question about it as questions.jsonl has it."""
    folder = tmp_path_factory.mktemp("scene") / "s"
    options = ["scenes", "--out", folder, "--side", str(SIDE), "--count", "1"]
    subprocess.run([*COMMAND, *options], check=True, capture_output=True)
    row = json.loads((folder / "questions.jsonl").read_text().splitlines()[0])
    return folder / row["image"], row


@pytest.fixture(scope="module")
def address():
    """The address of `zoomearth serve`, which is ended as an administrator ends it."""
    command = [*COMMAND, "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        said = []
        for line in server.stdout:
            said.append(line)
            if "served at" in line:
                break
        try:
            yield "".join(said).split("served at ")[1].split()[0].rstrip("/")
        finally:
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=60)
    assert server.returncode in (0, 143)


@pytest.fixture
def opened(browser, address):
    with watched(browser, address) as open_page:
        yield open_page


def with_file(page, path):
    page.set_input_files("#file", path)
    page.wait_for_selector("#question:visible", timeout=60_000)
    page.wait_for_function("() => document.activeElement.id === 'question'")


def numbers(text):
    """The four corners in "Asks for 1, 2 to 3, 4"."""
    return [int(part) for part in text.removeprefix("Asks for ").replace(" to ", ", ").split(", ")]


def test_a_scene_of_5000_px(opened, scene, tmp_path):
    path, row = scene
    page = opened(accept_downloads=True)
    began = time.perf_counter()
    with_file(page, path)
    ready = time.perf_counter() - began
    assert page.text_content("#image-facts").replace("\u202f", "").replace("\xa0", "") == f"{SIDE}×{SIDE}px"
    ask(page, row["question"])
    page.wait_for_selector(".payload", timeout=120_000)
    answered = time.perf_counter() - began - ready
    print(
        f"{path.stat().st_size / 1e6:.0f} MB ready in {ready:.1f} s after it was chosen, answer {answered:.1f} s after Ask"
    )
    wanted = ze.load("nano-grpo").ask(path, row["question"], temperature=0)
    assert page.text_content(".payload") == wanted.answer == row["answer"]
    assert page.locator(".said").all_text_contents() == [turn.text for turn in wanted.turns]
    named = numbers(page.text_content(".chip"))
    assert named == pytest.approx(wanted.turns[0].box.corners, abs=1)
    left, top, right, bottom = row["box"]  # of the site
    assert named[0] < (left + right) / 2 < named[2]
    assert named[1] < (top + bottom) / 2 < named[3]
    settled(page)
    page.mouse.move(640, 790)
    shot = Path(os.environ.get("ZOOMEARTH_PAGE_PNG", tmp_path / "page.png"))
    page.screenshot(path=shot)
    Image.open(shot).convert("RGB").save(shot, optimize=True)
    assert shot.stat().st_size < 300_000
    shown = Image.open(path).crop(tuple(round(corner) for corner in wanted.turns[0].window.corners))
    crop = page.locator(".turns li:nth-child(2) img").screenshot(path=tmp_path / "crop.png")
    assert np.abs(mean(Image.open(tmp_path / "crop.png")) - mean(shown)).max() < 12, len(crop)
    with page.expect_download() as download:
        page.click("#report-out")
    report = download.value.path().read_text()
    assert report.count("data:image/png;base64,") == 2
    assert row["question"] in report
    page.click("#whole")
    settled(page)
    assert on_screen(page, "named") == pytest.approx(by_hand(page, named, SIDE, SIDE), abs=2)


def mean(picture):
    """Its colour."""
    return np.asarray(picture.convert("RGB")).reshape(-1, 3).mean(0)


def test_boxes_of_a_map(opened, scene, tmp_path):
    """A box that is drawn on a GeoTIFF comes out in degrees, as rasterio has them."""
    with rasterio.open(scene[0]) as file:
        pixels = file.read(window=((0, 600), (0, 800)))
    grid = rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 4_600_000)
    form = {"driver": "GTiff", "width": 800, "height": 600, "count": 3, "dtype": "uint8", "crs": "EPSG:32633"}
    with rasterio.open(tmp_path / "map.tif", "w", transform=grid, **form) as file:
        file.write(pixels)
    page = opened(accept_downloads=True)
    with_file(page, tmp_path / "map.tif")
    assert "32633" in page.text_content("#image-facts")
    page.click("#box-part summary")
    for corner, value in zip(("x1", "y1", "x2", "y2"), (100, 50, 300, 250), strict=True):
        page.fill(f"#{corner}", str(value))
    ask(page, "How many sites are there?")
    page.wait_for_selector(".answer h3", timeout=60_000)
    page.wait_for_selector("#go:visible")
    named = page.locator(".chip").all_text_contents()
    box = numbers(named[-1]) if len(named) > 1 else [100, 50, 300, 250]
    with page.expect_download() as download:
        page.click("text=GeoJSON")
    (feature,) = json.loads(download.value.path().read_text())["features"]
    corners = np.asarray(feature["geometry"]["coordinates"][0])
    across, down = (500_000 + 0.5 * np.array([box[0], box[2]]), 4_600_000 - 0.5 * np.array([box[3], box[1]]))
    lon, lat = transform("EPSG:32633", "EPSG:4326", across, down)
    for axis, wanted in enumerate((lon, lat)):
        found = corners[:, axis].min(), corners[:, axis].max()
        assert found == pytest.approx(wanted, abs=2e-5)  # 2 m: the page rounds boxes to px
    assert feature["properties"]["question"] == "How many sites are there?"


def test_an_example(opened):
    page = opened()
    page.wait_for_selector("#examples li:nth-child(3) img:not([hidden])")
    page.click(".card")
    page.wait_for_function("() => document.activeElement.id === 'go'")
    page.keyboard.press("Enter")
    page.wait_for_selector(".payload", timeout=60_000)
    assert page.text_content(".payload") in ("rising", "falling", "horizontal", "vertical")
