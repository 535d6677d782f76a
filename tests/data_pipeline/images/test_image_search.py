"""Which files of a folder are taken for images, under which names; everything else is named with a reason."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio

from zoomearth_jax.data_pipeline.images.image_search import SIDECAR, SUFFIXES, find_images
from zoomearth_jax.errors import UserError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def reasons(folder: Path, found) -> dict[str, str]:
    return {str(path.relative_to(folder)): why for path, why in found.passed_over.items()}


def test_every_file_is_an_image_or_passed_over_with_a_reason(tmp_path):
    images = [f"{place}{i}{s}" for i, s in enumerate(sorted(SUFFIXES)) for place in ("", "sub/", "a.tif.d/")] + [
        "UP.TIF"
    ]
    sidecars = ["0.tif.aux.xml", "0.tfw", "0.TFW", "0.ovr", "0.tif.ovr", "1.hdr", "1.prj", "sub/2.jgw", "2.msk"]
    others = ["notes.txt", "questions.jsonl", "noext", "sub/labels.json", "x.gif", "tif"]
    touch(tmp_path, *images, *sidecars, *others, ".hidden.tif", "._0.tif", ".git/a.tif", "sub/.DS_Store")
    (tmp_path / "broken.tif").symlink_to("nowhere")
    (tmp_path / "loop.tif").symlink_to("loop.tif")
    os.mkfifo(tmp_path / "pipe.tif")
    (tmp_path / "sub" / "up").symlink_to("..")
    found = find_images([tmp_path])
    assert sorted(found.images.values()) == sorted(images)
    hidden = (".hidden.tif", "._0.tif", ".git", "sub/.DS_Store")
    assert reasons(tmp_path, found) == {
        **dict.fromkeys(sidecars, SIDECAR),
        **dict.fromkeys(others, "not an image by its name"),
        **dict.fromkeys(hidden, "hidden"),
        **dict.fromkeys(("broken.tif", "loop.tif"), "a broken link"),
        "pipe.tif": "not a file",
        "sub/up": "a link to a folder above it",
    }


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("name", ["scene", "scene.dat", "scene.img", "scene.bsq", "scene.x.raw"])
@pytest.mark.parametrize("header", ["stem", "name"])
def test_envi_is_its_data_file(tmp_path, name, header):
    with rasterio.open(tmp_path / name, "w", driver="ENVI", width=50, height=40, count=3, dtype="uint8") as file:
        file.write(np.zeros((3, 40, 50), np.uint8))
    written = next(tmp_path.glob("*.hdr"))
    written = written.rename(tmp_path / (f"{name}.hdr" if header == "name" else f"{Path(name).stem}.hdr"))
    touch(tmp_path, f"{Path(name).stem}.txt")
    found = find_images([tmp_path])
    assert list(found.images.values()) == [name]
    assert reasons(tmp_path, found)[written.name] == SIDECAR
    assert list(find_images([written]).images.values()) == [name]


def test_a_file_that_is_met_twice_is_taken_once_by_its_fullest_name(tmp_path, monkeypatch):
    touch(tmp_path, "images/train/1.tif", "images/val/1.tif")
    images, one = tmp_path / "images", tmp_path / "images" / "train" / "1.tif"
    monkeypatch.chdir(tmp_path)
    for places in ([images, one], [one, images], [images / "train", images], [Path("images"), images], [images] * 2):
        assert sorted(find_images(places).images.values()) == ["train/1.tif", "val/1.tif"]
    assert list(find_images([one]).images.values()) == list(find_images([one.parent]).images.values()) == ["1.tif"]
    assert set(find_images([tmp_path]).images.values()) == {"images/train/1.tif", "images/val/1.tif"}
    (images / "a link").symlink_to("train")
    assert sorted(find_images([images]).images.values()) == ["train/1.tif", "val/1.tif"]
    (images / "train" / "latest.tif").symlink_to("1.tif")  # a name of its own
    assert sorted(find_images([images]).images.values()) == ["train/1.tif", "train/latest.tif", "val/1.tif"]


def test_stores_are_passed_over(tmp_path):
    store = ("index.json", "settings.json", "shards/x.array_record", "records/x.json", "quarantine.jsonl")
    for place in ("tiles", "older"):
        touch(tmp_path, "a.tif", *(f"{place}/{name}" for name in store))
    assert reasons(tmp_path, find_images([tmp_path], tmp_path / "tiles")) == {"older": "a tile store"}
    touch(tmp_path, *store)  # the folder is the store itself
    found = find_images([tmp_path], tmp_path)
    assert (list(found.images.values()), list(reasons(tmp_path, found))) == (["a.tif"], ["older", "tiles"])


def test_folders_without_images_say_what_is_there(tmp_path):
    touch(tmp_path, *"abcd")
    with pytest.raises(UserError, match=r"holds no TIFF.* files by their names, but 4 others: a, b, c, \.\.\."):
        find_images([tmp_path])
    with pytest.raises(UserError, match="no such file or folder"):
        find_images([tmp_path / "a" / "b"])
    with pytest.raises(UserError, match="File name too long"):
        find_images([tmp_path / ("x" * 300)])


def test_thousands_of_files_are_found_quickly(tmp_path):
    for sub in range(10):
        (tmp_path / str(sub)).mkdir()
        for i in range(500):
            (tmp_path / str(sub) / f"{i}.tif").touch()
    began = time.thread_time()
    assert len(find_images([tmp_path]).images) == 5000
    assert time.thread_time() - began < 2  # 0.1 s
