"""Tile stores give the pixels of the plain files; builds are resumable, atomic, and name what they refuse."""

import dataclasses
import fcntl
import json
import multiprocessing
import os
import pickle
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoomearth_jax.data_pipeline.images import tile_build, tile_folder, tiles
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.images.picture_map import fovea_map
from zoomearth_jax.data_pipeline.images.sources import RawImage, global_view, mapped_view, resized
from zoomearth_jax.data_pipeline.images.tile_build import build_store, verify_store
from zoomearth_jax.data_pipeline.images.tile_codecs import decoded_row, delta_encoded
from zoomearth_jax.data_pipeline.images.tiles import StoreSettings, TileStore
from zoomearth_jax.errors import UserError

SIZES = {"square.tif": (1300, 1300), "wide.png": (1999, 301), "tall.webp": (257, 1025), "tiny.jpg": (30, 20)}


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Blocks with noise."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (-(-height // 50), -(-width // 50), 3), np.uint8).repeat(50, 0).repeat(50, 1)
    noise = rng.integers(0, 40, (height, width, 3), np.uint8)
    return Image.fromarray(blocks[:height, :width] // 2 + noise)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Image files and a store of them."""
    folder = tmp_path_factory.mktemp("tiles")
    for seed, (name, size) in enumerate(SIZES.items()):
        picture(*size, seed).save(folder / name, lossless=True)
    paths = [folder / name for name in SIZES]
    build_store(paths, folder / "store", StoreSettings(views=(112, 512)), workers=2)
    return folder


@pytest.fixture
def one(tmp_path):
    """A function that builds a store of one small image, and the store's folder."""
    picture(300, 280).save(tmp_path / "a.png")
    return lambda **more: build_store(
        [tmp_path / "a.png"], tmp_path / "store", StoreSettings(**more), workers=1
    ), tmp_path / "store"


def test_resized_is_pillows_columns_first():
    pixels, rng = picture(500, 400), np.random.default_rng(3)
    for _ in range(60):
        (x1, x2), (y1, y2) = np.sort(rng.uniform(0, 500, 2)), np.sort(rng.uniform(0, 400, 2))
        size = Frame(*(int(n) for n in rng.integers(1, 120, 2)))
        columns = pixels.resize((size.width, 400), Image.Resampling.BICUBIC, box=(x1, 0, x2, 400))
        expected = columns.resize((size.width, size.height), Image.Resampling.BICUBIC, box=(0, y1, size.width, y2))
        np.testing.assert_array_equal(resized(pixels, (x1, y1, x2, y2), size), expected)
    plain = pixels.resize((50, 40), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(resized(pixels, (0, 0, 500, 400), Frame(50, 40)), plain)


@pytest.mark.parametrize("name", SIZES)
def test_windows_are_those_of_the_plain_file(folder, name):
    raw, stored = RawImage(folder / name), TileStore.open(folder / "store")[name]
    assert stored.frame == raw.frame
    rng = np.random.default_rng(1)
    for index in range(60):
        x1, x2 = np.sort(rng.uniform(0, raw.frame.width, 2))
        y1, y2 = np.sort(rng.uniform(0, raw.frame.height, 2))
        if index % 2:
            x1, y1, x2, y2 = np.floor(x1), np.floor(y1), np.ceil(x2), np.ceil(y2)
        box, size = Box(x1, y1, x2, y2, raw.frame), Frame(*(int(n) for n in rng.integers(1, 200, 2)))
        np.testing.assert_array_equal(stored.window(box, size), raw.window(box, size))


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("view", [112, 512, 300])
def test_global_views_are_those_of_the_plain_file(folder, name, view, monkeypatch):
    raw, stored = RawImage(folder / name), TileStore.open(folder / "store")[name]
    np.testing.assert_array_equal(global_view(stored, view, 28), global_view(raw, view, 28))
    if view != 300:  # read, not computed
        monkeypatch.setattr(tiles, "level_for", None)
        global_view(stored, view, 28)


def test_large_windows_come_from_a_coarser_level_unless_exact(folder, monkeypatch):
    monkeypatch.setattr(tiles, "EXACT_SIDE", 600)
    raw, stored = RawImage(folder / "square.tif"), TileStore.open(folder / "store").image("square.tif")
    box, size = Box(10, 7, 1210, 1207, raw.frame), Frame(100, 100)
    np.testing.assert_array_equal(stored.window(box, size, exact=True), raw.window(box, size))
    coarse = stored.window(box, size)
    difference = np.abs(coarse.astype(int) - raw.window(box, size))
    assert 0 < difference.mean() < 3
    assert tiles.level_for(box, size, 4) == 2  # 1200 px -> 300 at level 2, 150 at level 3
    assert tiles.level_for(box, Frame(300, 300), 4) == 1
    assert tiles.level_for(box, Frame(301, 301), 4) == 0
    assert tiles.level_for(box, Frame(1, 1), 4) == 3
    assert tiles.level_for(Box(0, 0, 600, 600, raw.frame), size, 4) == 0


def test_levels_are_means_of_2_by_2(folder):
    stored = TileStore.open(folder / "store")["square.tif"]
    pixels = picture(1300, 1300)
    for level in range(4):
        side = min(256, pixels.width)
        tile = decoded_row(stored._read([stored.record.levels[level][0]]), [side], side, "delta")
        np.testing.assert_array_equal(tile, pixels.crop((0, 0, side, side)))
        pixels = pixels.reduce(2)
    assert len(stored.record.levels) == 4  # 1300, 650, 325, 163


@pytest.mark.parametrize("size", [(256, 256), (1, 1), (3, 256), (256, 7)])
def test_delta_tiles_are_lossless(size):
    tiles = [picture(*size, seed) for seed in range(3)]
    row = decoded_row([delta_encoded(tile) for tile in tiles], [size[0]] * 3, size[1], "delta")
    np.testing.assert_array_equal(row, np.concatenate([np.asarray(tile) for tile in tiles], axis=1))
    with pytest.raises(ValueError, match="reshape"):
        decoded_row([b"short"], [size[0]], size[1], "delta")


def test_webp_tiles_are_lossless(tmp_path, folder):
    build_store([folder / "wide.png"], tmp_path / "s", StoreSettings("webp"), workers=1)
    raw, stored = RawImage(folder / "wide.png"), TileStore.open(tmp_path / "s")["wide.png"]
    box = Box(100, 1, 1700, 301, raw.frame)
    np.testing.assert_array_equal(stored.window(box, Frame(400, 60)), raw.window(box, Frame(400, 60)))


def test_jpeg_tiles_are_near_and_smaller(tmp_path, folder):
    build_store([folder / "square.tif"], tmp_path / "s", StoreSettings("jpeg"), workers=1)
    raw, stored = RawImage(folder / "square.tif"), TileStore.open(tmp_path / "s")["square.tif"]
    box = Box(100, 100, 700, 700, raw.frame)
    difference = np.abs(stored.window(box, Frame(300, 300)).astype(int) - raw.window(box, Frame(300, 300)))
    assert 0 < difference.mean() < 2
    np.testing.assert_array_equal(global_view(stored, 512, 28), global_view(raw, 512, 28))


def test_threads_and_workers_share_an_image(folder):
    image = TileStore.open(folder / "store")["square.tif"]
    boxes = [Box(x, y, x + 400, y + 300, image.frame) for x in range(0, 900, 60) for y in range(0, 1000, 200)]
    expected = [image.window(box, Frame(50, 50)) for box in boxes]
    with ThreadPoolExecutor(8) as pool:
        for got, right in zip(pool.map(lambda box: image.window(box, Frame(50, 50)), boxes), expected, strict=True):
            np.testing.assert_array_equal(got, right)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(image.window, (boxes[3], Frame(50, 50))), expected[3])
    store = TileStore.open(folder / "store")
    assert pickle.loads(pickle.dumps(store)) == store
    assert len(pickle.dumps(store)) < 400
    assert len(pickle.dumps(image)) < 1000


def test_what_is_there_is_kept_and_changed_files_are_built_anew(tmp_path):
    paths = [tmp_path / name for name in ("a.png", "ä b.png")]
    for path in paths:
        picture(300, 280).save(path)
    settings, store = StoreSettings(), tmp_path / "store"
    build = lambda *paths: build_store(list(paths), store, settings, workers=2)  # noqa: E731
    assert build(*paths) == tile_build.BuildReport(2, 0, {})
    index = (store / "index.json").read_bytes()
    assert build(*paths) == tile_build.BuildReport(0, 2, {})
    assert (store / "index.json").read_bytes() == index
    os.utime(paths[0], (1, 1))  # another time, the same content
    assert build(*paths).kept == 2
    picture(300, 280, 9).save(paths[0])
    assert build(paths[0]) == tile_build.BuildReport(1, 0, {})
    assert set(TileStore.open(store).records) == {"a.png", "ä b.png"}
    np.testing.assert_array_equal(
        global_view(TileStore.open(store)["a.png"], 112, 28), global_view(RawImage(paths[0]), 112, 28)
    )
    assert len(list((store / "shards").iterdir())) == 2  # the old shard is gone
    paths[0].write_text("broken")
    assert "neither TIFF" in build(paths[0]).refused[str(paths[0])]
    assert set(TileStore.open(store).records) == {"ä b.png"}
    picture(300, 280, 9).save(paths[0])
    build(paths[0])
    assert (store / "quarantine.jsonl").read_text() == ""


def killed_build(paths, store):
    """Dies after the first image, as by SIGKILL."""
    tile_folder.write_json = lambda path, values, write=tile_folder.write_json: (
        os._exit(9) if "b.png" in str(values.get("id")) else write(path, values)
    )
    build_store(paths, store, StoreSettings(), workers=1)


def test_a_killed_build_goes_on(tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        picture(300, 280).save(path)
    store = tmp_path / "store"
    process = multiprocessing.get_context("spawn").Process(target=killed_build, args=(paths, store))
    process.start()
    process.join()
    assert process.exitcode == 9
    (store / "shards" / "left.array_record.partial").write_bytes(b"half")
    with pytest.raises(UserError, match="not built to the end; run `zoomearth tile"):
        TileStore.open(store)
    assert build_store(paths, store, StoreSettings(), workers=1) == tile_build.BuildReport(1, 1, {})
    assert len(TileStore.open(store)) == len(list((store / "shards").iterdir())) == 2


def test_two_builders_and_other_settings_are_refused(one):
    build, store = one
    build()
    with (store / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another `zoomearth tile` is building"):
            build()
    with pytest.raises(UserError, match="was built with codec delta, not jpeg"):
        build(codec="jpeg")
    build()


def test_two_files_of_one_name_are_refused_before_anything_is_built(tmp_path):
    with pytest.raises(UserError, match=r"two images are named a\.png"):
        build_store([tmp_path / "a.png", tmp_path / "x" / "a.png"], tmp_path / "s", StoreSettings(), workers=1)
    assert not (tmp_path / "s").exists()


def test_a_full_disk_is_one_line_and_leaves_no_store(one, tmp_path):
    build, store = one
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, old[1]))  # SIGXFSZ is ignored by Python
    try:
        with pytest.raises(UserError, match="store: can't be written"):
            build()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert not store.exists()  # nothing is stored, so nothing stays
    build()
    assert len(TileStore.open(store)) == 1


def test_damage_is_named(folder, tmp_path, one):
    build, store = one
    build()
    assert verify_store(store) == {}
    shard = next((store / "shards").iterdir())
    data = bytearray(shard.read_bytes())
    data[90_000:90_010] = b"0123456789"
    shard.write_bytes(data)
    assert list(verify_store(store)) == ["a.png"]
    image = TileStore.open(store)["a.png"]
    with pytest.raises(UserError, match=r"image 'a\.png' is damaged"):
        image.window(Box(0, 0, 300, 280, image.frame), Frame(100, 100))
    shard.unlink()
    assert "No such file" in verify_store(store)["a.png"]
    tiles._reader.cache_clear()
    with pytest.raises(UserError, match=r"image 'a\.png' is damaged"):
        image.window(Box(0, 0, 300, 280, image.frame), Frame(100, 100))
    build()  # a shard that is gone is built again
    assert verify_store(store) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2, this program reads"),
        ({"format": "pictures"}, "'pictures' version 1"),
        ({"images": [{"id": "a"}]}, "not a tile store's index"),
        ({"images": None}, "not a tile store's index"),
        ({"settings": {"kodec": 1}}, "not a tile store's index"),
    ],
)
def test_other_indexes_are_refused(one, change, message):
    build, store = one
    build()
    index = json.loads((store / "index.json").read_text())
    (store / "index.json").write_text(json.dumps(index | change))
    with pytest.raises(UserError, match=message):
        TileStore.open(store)


def test_unknown_names_and_folders(folder, tmp_path):
    with pytest.raises(UserError, match=r"no image 'none\.png' among the 4"):
        TileStore.open(folder / "store").image("none.png")
    assert "none.png" not in TileStore.open(folder / "store")
    with pytest.raises(UserError, match="no tile store"):
        TileStore.open(tmp_path)
    (tmp_path / "store").write_text("")
    with pytest.raises(UserError, match="store: can't be written"):
        build_store([], tmp_path / "store", StoreSettings(), workers=1)


def test_views_are_stored_for_the_tokens_of_another_family(one):
    build, store = one
    build(views=(200,), token_px=32)
    image = TileStore.open(store).image("a.png")
    assert [view[:2] for view in image.record.views] == [(192, 192)]
    assert TileStore.open(store).settings.token_px == 32


def test_settings_and_records_survive_json(folder):
    store = TileStore.open(folder / "store")
    assert store.settings == StoreSettings(views=(112, 512))
    again = json.loads(json.dumps(dataclasses.asdict(store["wide.png"].record)))
    assert tiles.ImageRecord.from_json(again) == store["wide.png"].record
    assert Path(folder / "store" / "shards" / again["shard"]).is_file()


def test_foveated_views_are_those_of_the_plain_file(folder):
    raw, stored = RawImage(folder / "square.tif"), TileStore.open(folder / "store")["square.tif"]
    for corners in ((300, 500, 700, 640), (0, 0, 100, 100), (1200, 0, 1300, 1300)):
        shown = fovea_map(Box(*corners, raw.frame), Frame(112, 140))
        np.testing.assert_array_equal(mapped_view(stored, shown), mapped_view(raw, shown))
