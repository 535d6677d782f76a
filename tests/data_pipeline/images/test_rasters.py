"""Rasters of remote sensing: TIFF layouts by the thousand, JPEG 2000, ENVI, ERDAS, NITF, virtual ones; odd and cut off files."""

import io
import logging
import random
import struct
import zlib

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.shutil import copy
from rasterio.vrt import WarpedVRT

from tests.data_pipeline.images import tiff_matrix
from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.data_pipeline.images import sources as images
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.images.decoding import ImageFile
from zoomearth_jax.data_pipeline.images.sources import RawImage
from zoomearth_jax.errors import UserError

SAMPLE = 400  # of the layouts, by pairs of their properties


def picture(height: int = 100, width: int = 130, bands: int = 3) -> np.ndarray:
    """uint8 [h, w, bands]."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(0, 20, (height, width, bands))
    colours = np.stack([x, y * 2, x + y, 255 - x][:bands], -1)
    return (colours + noise).clip(0, 255).astype(np.uint8)


def write(path, driver: str, pixels: np.ndarray | None = None, **options):
    """A raster file of pixels [h, w, bands] by GDAL; its path."""
    pixels = picture() if pixels is None else pixels
    height, width, count = pixels.shape
    with rasterio.open(
        path, "w", driver=driver, width=width, height=height, count=count, dtype=pixels.dtype, **options
    ) as file:
        file.write(pixels.transpose(2, 0, 1))
    return path


def read(path, *config) -> np.ndarray:
    return np.concatenate(list(ImageFile(path, ImageConfig(*config)).strips(37)))


def check_layouts(layouts, folder) -> dict[str, int]:
    """Reads each, and compares; what neither GDAL nor Pillow reads must be refused. Returns how many were read and refused."""
    wrong, counts = [], {"read": 0, "refused": 0}
    for one in layouts:
        path = folder / one.name
        tiff_matrix.write(one, path)
        try:
            expected = tiff_matrix.expected(one, path)
        except rasterio.errors.RasterioError:
            with pytest.raises(UserError):
                read(path, None, one.stretch or ())
            counts["refused"] += 1
        else:
            counts["read"] += 1
            if not np.array_equal(read(path, None, one.stretch or ()), expected):
                wrong.append(one.name)
        path.unlink()
    assert not wrong, f"{len(wrong)} of {len(layouts)} layouts, such as {wrong[:3]}"
    return counts


def test_a_sample_of_all_layouts_is_right(tmp_path):
    layouts = tiff_matrix.sample(SAMPLE)
    assert len(layouts) > 150
    for name in ("writer", "photometric", "bands", "dtype", "bits", "planar", "blocks", "codec", "predictor", "alpha"):
        assert len({getattr(one, name) for one in layouts}) > 1, name
    assert check_layouts(layouts, tmp_path)["refused"] < 0.05 * len(layouts)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_all_layouts_are_right(tmp_path, part):
    layouts = list(tiff_matrix.layouts())[part::8]
    counts = check_layouts(layouts, tmp_path)
    print(f"{len(layouts)} layouts: {counts}")
    assert counts["refused"] < 0.02 * len(layouts)


def test_separate_planes_in_strips_of_several_rows(tmp_path):
    pixels = (picture(120, 1000).astype(np.uint16)) * 200
    path = write(tmp_path / "update.tif", "GTiff", pixels, interleave="band")
    np.testing.assert_array_equal(read(path, None, (0, 200 * 255)), picture(120, 1000))


@pytest.mark.parametrize("codec", ["none", "deflate", "zstd", "lzma", "lerc"])
def test_white_is_zero_whatever_the_codec(tmp_path, codec):
    options = {} if codec == "none" else {"compress": codec}
    path = write(tmp_path / "white.tif", "GTiff", picture(bands=1), photometric="MINISWHITE", **options)
    np.testing.assert_array_equal(read(path), 255 - picture(bands=1).repeat(3, 2))


FORMS = {
    "jp2": ("JP2OpenJPEG", {"QUALITY": "100", "REVERSIBLE": "YES"}),
    "dat": ("ENVI", {}),
    "bil": ("ENVI", {"interleave": "bil"}),
    "img": ("HFA", {"COMPRESSED": "YES"}),
    "ntf": ("NITF", {}),
}


@pytest.mark.parametrize("suffix", FORMS)
def test_other_forms_are_read_and_cut_off_ones_refused(tmp_path, suffix):
    driver, options = FORMS[suffix]
    path = write(tmp_path / f"a.{suffix}", driver, **options)
    np.testing.assert_array_equal(read(path), picture())
    deep = picture(bands=4).astype(np.uint16) * 16
    wide = write(tmp_path / f"b.{suffix}", driver, deep, **options)
    np.testing.assert_array_equal(read(wide, None, (0, 255 * 16)), picture(bands=4)[..., :3])
    np.testing.assert_array_equal(read(wide, (4, 3, 1), (0, 255 * 16)), picture(bands=4)[..., [3, 2, 0]])
    data = path.read_bytes()
    for share in (0.3, 0.7, 0.95):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(UserError, match=rf"a\.{suffix}: (not a readable image|broken image data) \("):
            read(path)


def test_an_envi_header_says_which_file_to_give(tmp_path):
    write(tmp_path / "scene", "ENVI")
    np.testing.assert_array_equal(read(tmp_path / "scene"), picture())
    with pytest.raises(UserError, match="give the file with the pixels"):
        ImageFile(tmp_path / "scene.hdr")


def test_virtual_rasters_of_local_files(tmp_path):
    source = write(tmp_path / "a.tif", "GTiff", crs="EPSG:32633", transform=rasterio.Affine(1, 0, 4e5, 0, -1, 5e6))
    copy(source, tmp_path / "a.vrt", driver="VRT")
    np.testing.assert_array_equal(read(tmp_path / "a.vrt"), picture())
    copy(tmp_path / "a.vrt", tmp_path / "b.vrt", driver="VRT")
    np.testing.assert_array_equal(read(tmp_path / "b.vrt"), picture())
    with rasterio.open(source) as file, WarpedVRT(file, crs="EPSG:32634") as warped:
        copy(warped, tmp_path / "w.vrt", driver="VRT")
        expected = warped.read().transpose(1, 2, 0)[..., :3]
    np.testing.assert_array_equal(read(tmp_path / "w.vrt"), expected)


SOURCE = '<SourceFilename relativeToVRT="1">a.tif</SourceFilename>'
VRT = f"""<VRTDataset rasterXSize="130" rasterYSize="100"><VRTRasterBand dataType="Byte" band="1">
<SimpleSource>{SOURCE}<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("a.tif", "/vsicurl/http://127.0.0.1:9/a.tif", "remote or packed"),
        ("a.tif", "/vsizip/a.zip/a.tif", "remote or packed"),
        ("a.tif", "http://127.0.0.1:9/a.tif", "no local file"),
        ("a.tif", "WMS:http://127.0.0.1:9/", "no local file"),
        ("a.tif", "vrt://a.tif", "no local file"),
        ("a.tif", "&lt;GDAL_WMS&gt;&lt;/GDAL_WMS&gt;", "no local file"),
        ("a.tif", "missing.tif", "no local file"),
        ("a.tif", "questions.jsonl", "neither TIFF"),
        ("a.tif", "loop.vrt", "four deep"),
        ('band="1">', 'band="1" subClass="VRTDerivedRasterBand">', "VRTDerivedRasterBand"),
        ('band="1">', 'band="1" subClass="VRTRawRasterBand">', "VRTRawRasterBand"),
        ("<VRTDataset ", '<VRTDataset subClass="VRTPansharpenedDataset" ', "VRTPansharpenedDataset"),
        ("<VRTDataset ", '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e "e">]><VRTDataset ', "entities"),
        ("</VRTDataset>", "", "not a readable image"),
        ('"130"', '"130000000"', "over the limit"),
    ],
)
def test_virtual_rasters_that_ask_for_more_are_refused(tmp_path, old, new, message):
    write(tmp_path / "a.tif", "GTiff")
    (tmp_path / "questions.jsonl").write_text("{}\n")
    path = tmp_path / "loop.vrt"
    path.write_text(VRT)
    np.testing.assert_array_equal(read(path)[..., 0], picture()[..., 0])
    path.write_text(VRT.replace(old, new))
    with pytest.raises(UserError, match=message):
        read(path)


def test_sparse_files_are_filled(tmp_path):
    options = {"tiled": True, "blockxsize": 64, "blockysize": 64, "sparse_ok": True}
    for nodata, fill in ((None, 0), (7, 7)):
        path = tmp_path / f"{fill}.tif"
        with rasterio.open(
            path, "w", driver="GTiff", width=130, height=100, count=3, dtype="uint8", nodata=nodata, **options
        ) as file:
            file.write(picture()[:64, :64].transpose(2, 0, 1), window=rasterio.windows.Window(0, 0, 64, 64))
        expected = np.full((100, 130, 3), fill, np.uint8)
        expected[:64, :64] = picture()[:64, :64]
        np.testing.assert_array_equal(read(path), expected)


@pytest.mark.parametrize("bands", [2, 4])
def test_two_and_four_bands_of_jpeg_in_tiff(tmp_path, bands):
    path = write(tmp_path / "a.tif", "GTiff", picture(bands=bands), compress="jpeg", interleave="pixel")
    with rasterio.open(path) as file:
        stored = file.read().transpose(1, 2, 0)
    np.testing.assert_array_equal(read(path), stored[..., :3] if bands == 4 else stored[..., [0, 0, 0]])


def test_images_smaller_than_their_tile(tmp_path):
    small = picture(30, 40)
    path = write(tmp_path / "a.tif", "GTiff", small, tiled=True, blockxsize=256, blockysize=256)
    np.testing.assert_array_equal(read(path), small)


def _old_lzw(data: bytes) -> bytes:
    """LZW as before TIFF 6: 9-bit codes with the lowest bit first; cleared before a code would need a tenth bit."""
    codes = [256]
    for start in range(0, len(data), 200):
        codes += [*data[start : start + 200], 256]
    bits = "".join(format(code, "09b")[::-1] for code in [*codes, 257])
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8))


def test_old_style_lzw_is_read_with_a_warning(tmp_path, caplog):
    pixels = picture(40, 50, 1)
    packed = _old_lzw(pixels.tobytes())
    tags = {256: 50, 257: 40, 258: 8, 259: 5, 262: 1, 273: 200, 277: 1, 278: 40, 279: len(packed)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    (tmp_path / "old.tif").write_bytes(head.ljust(200, b"\0") + packed)
    with caplog.at_level(logging.WARNING, logger="zoomearth_jax"):
        np.testing.assert_array_equal(read(tmp_path / "old.tif"), pixels.repeat(3, 2))
    assert "Old-style LZW" in caplog.text


def _jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture()).save(file, "JPEG", quality=95)
    return file.getvalue()


def test_junk_between_the_segments_of_a_jpeg_is_passed_over_with_a_warning(tmp_path, caplog):
    data = _jpeg()
    first = 4 + int.from_bytes(data[4:6], "big")
    second = first + 2 + int.from_bytes(data[first + 2 : first + 4], "big")
    (tmp_path / "junk.jpg").write_bytes(data[:first] + b"\1\2\0" + data[first:second] + b"\x99\xff" + data[second:])
    with caplog.at_level(logging.WARNING, logger="zoomearth_jax"):
        np.testing.assert_array_equal(read(tmp_path / "junk.jpg"), np.asarray(Image.open(io.BytesIO(data))))
    assert "junk.jpg: Corrupt JPEG data" in caplog.text
    (tmp_path / "filled.jpg").write_bytes(data[:first] + b"\xff\xff" + data[first:])
    read(tmp_path / "filled.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "junk.jpg").read_bytes()[:-300])
    with pytest.raises(UserError, match="broken image data"):
        read(tmp_path / "cut.jpg")


@pytest.mark.parametrize("chunk", [b"iCCPx\0\0abc", b"tIME" + b"\xff" * 7, b"pHYs\0\0\0", b"tEXt", b"zzZzabc"])
def test_odd_chunks_of_a_png_are_harmless(tmp_path, chunk):
    file = io.BytesIO()
    Image.fromarray(picture()).save(file, "PNG")
    data = file.getvalue()
    odd = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "odd.png").write_bytes(data[:33] + odd + data[33:])
    np.testing.assert_array_equal(read(tmp_path / "odd.png"), picture())


@pytest.mark.parametrize("colours", [False, True])
def test_damaged_jpeg_in_tiff_is_refused_and_odd_tags_are_not(tmp_path, colours):
    photometric = {"photometric": "YCBCR"} if colours else {"photometric": "RGB"}
    path = write(tmp_path / "a.tif", "GTiff", compress="jpeg", interleave="pixel", blockysize=16, **photometric)
    whole, data = read(path), path.read_bytes()
    offset, size = _strip(path, 2)
    path.write_bytes(data[: offset + size // 2] + bytes(size - size // 2) + data[offset + size :])
    with pytest.raises(UserError, match="broken image data"):
        read(path)
    place = data.index(struct.pack("<HH", 339, 3))
    path.write_bytes(data[:place] + struct.pack("<H", 65_001) + data[place + 2 :])
    np.testing.assert_array_equal(read(path), whole)


def _strip(path, number: int) -> tuple[int, int]:
    with Image.open(path) as file:
        return file.tag_v2[273][number], file.tag_v2[279][number]


def test_percentiles_and_statistics(tmp_path):
    pixels = (picture(200, 210).astype(np.float64) * 13 + 100).astype(np.uint16)
    pixels[:20] = 0
    path = write(tmp_path / "a.tif", "GTiff", pixels, nodata=0)
    valid = pixels[20:].astype(np.float64)

    def by(low, high):
        return np.rint((pixels.astype(np.float64) - low) * (255 / (high - low))).clip(0, 255)

    low, high = np.percentile(valid, (2, 98))
    np.testing.assert_array_equal(read(path, None, ("2%", "98%")), by(low, high))
    np.testing.assert_array_equal(read(path, None, ("min", "max")), by(valid.min(), valid.max()))
    with rasterio.open(path, "r+") as file:
        for band in file.indexes:
            file.update_tags(band, STATISTICS_MINIMUM=50, STATISTICS_MAXIMUM=4000)
    np.testing.assert_array_equal(read(path, None, ("min", "max")), by(50, 4000))
    flat = write(tmp_path / "flat.tif", "GTiff", np.full((9, 9, 1), 500, np.uint16))
    assert (read(flat, None, ("2%", "98%")) == 0).all()
    empty = write(tmp_path / "nan.tif", "GTiff", np.full((9, 9, 1), np.nan, np.float32))
    assert (read(empty, None, ("2%", "98%")) == 0).all()


@pytest.mark.parametrize(
    "stretch", [("2%", "2%"), ("2%", 98), ("x", "y"), (1,), (1, 2, 3), ("-1%", "50%"), ("5%", "101%")]
)
def test_impossible_stretches(stretch):
    with pytest.raises(UserError, match="stretch: "):
        ImageConfig(None, stretch)


def test_large_files_are_read_through_strips_to_the_same_pixels(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tif", "GTiff", picture(500, 700), tiled=True, blockxsize=64, blockysize=96)
    Image.fromarray(picture(500, 700)).save(tmp_path / "a.png")
    rng = random.Random(0)
    for file in (path, tmp_path / "a.png"):
        image = RawImage(file)
        for _ in range(20):
            x1, x2 = sorted(rng.uniform(0, 700) for _ in range(2))
            y1, y2 = sorted(rng.uniform(0, 500) for _ in range(2))
            box, size = Box(x1, y1, x2, y2, image.frame), Frame(rng.randint(1, 90), rng.randint(1, 90))
            monkeypatch.setattr(images, "KEPT_PIXELS", 10**9)
            kept = image.window(box, size)
            monkeypatch.setattr(images, "KEPT_PIXELS", 0)
            np.testing.assert_array_equal(image.window(box, size), kept)


@pytest.mark.filterwarnings("ignore")  # Pillow's of tags
def test_flipped_bytes_never_crash(tmp_path):
    rng = random.Random(1)
    written = [one for one in tiff_matrix.sample(SAMPLE) if one.codec != "lerc"][:12]
    files = []
    for one in written:
        tiff_matrix.write(one, tmp_path / one.name)
        files.append((tmp_path / one.name).read_bytes())
    files += [write(tmp_path / f"x.{s}", *FORMS[s][:1], **FORMS[s][1]).read_bytes() for s in ("jp2", "img", "ntf")]
    outcomes, said = set(), []
    for number in range(120):
        data = bytearray(files[number % len(files)])
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(min(len(data), rng.choice((64, 400, len(data)))))] = rng.randrange(256)
        path = tmp_path / f"flipped{number}"
        path.write_bytes(data)
        try:
            outcomes.add(read(path, None, (0, 100)).shape[2])
        except UserError as error:
            outcomes.add("refused")
            said.append(str(error))
        path.unlink()
    assert not [line for line in said if "\n" in line]
    assert outcomes == {3, "refused"}
