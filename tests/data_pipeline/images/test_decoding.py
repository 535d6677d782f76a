"""Every kind of image file is read as Pillow reads it, or refused in one line; broken ones never crash."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from tests.data_pipeline.images.broken_images import COUNT, broken_images, save
from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.data_pipeline.images import decoding
from zoomearth_jax.data_pipeline.images.decoding import ImageFile
from zoomearth_jax.data_pipeline.images.sources import RawImage, global_view
from zoomearth_jax.data_pipeline.images.tile_build import build_store
from zoomearth_jax.data_pipeline.images.tiles import StoreSettings, TileStore
from zoomearth_jax.errors import UserError


def picture(mode: str = "RGB") -> Image.Image:
    """Smooth colours with noise, 150 x 90."""
    y, x = np.mgrid[:90, :150]
    noise = np.random.default_rng(0).integers(0, 30, (90, 150, 3))
    pixels = (np.stack([x, y * 2, x + y], -1) + noise).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(pixels[..., 1]))
    return image


def read(path, config: ImageConfig | None = None) -> np.ndarray:
    file = ImageFile(path, config or ImageConfig())
    pixels = np.concatenate(list(file.strips(37)))
    assert pixels.shape == (file.frame.height, file.frame.width, 3)
    return pixels


def bands(count: int, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(1).integers(0, 200, (count, 90, 150)).astype(dtype)


def write_geo(path, pixels: np.ndarray, **options) -> Path:
    """A GeoTIFF of pixels [bands, h, w]."""
    count, height, width = pixels.shape
    options = {
        "driver": "GTiff",
        "crs": "EPSG:32633",
        "transform": rasterio.Affine(0.5, 0, 4e5, 0, -0.5, 5e6),
    } | options
    with rasterio.open(path, "w", width=width, height=height, count=count, dtype=pixels.dtype, **options) as file:
        file.write(pixels)
    return path


KINDS = {
    "tif": ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK"),
    "png": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "jpg": ("L", "RGB", "CMYK"),
    "webp": ("RGB", "RGBA"),
}


@pytest.mark.parametrize(("suffix", "mode"), [(suffix, mode) for suffix, modes in KINDS.items() for mode in modes])
def test_pixels_are_pillows(tmp_path, suffix, mode):
    path = tmp_path / f"image.{suffix}"
    picture(mode).save(path)
    np.testing.assert_array_equal(read(path), np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("progressive.jpg", {"progressive": True}),
        ("plain.jpg", {"quality": 95, "subsampling": 0}),
        ("transparent.png", {"transparency": (3, 3, 3)}),
        ("lossless.webp", {"lossless": True}),
        *((f"{codec}.tif", {"compression": codec}) for codec in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")),
        ("white-is-zero.tif", {"tiffinfo": {262: 0}}),
        ("associated-alpha.tif", {"tiffinfo": {338: 1}}),
        ("big.tif", {"big_tiff": True}),
    ],
)
def test_variants_are_pillows(tmp_path, name, options):
    mode = {"white-is-zero.tif": "L", "associated-alpha.tif": "RGBA"}.get(name, "RGB")
    picture(mode).save(tmp_path / name, **options)
    np.testing.assert_array_equal(read(tmp_path / name), np.asarray(Image.open(tmp_path / name).convert("RGB")))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tiled": True, "blockxsize": 64, "blockysize": 32, "compress": "deflate", "predictor": 2},
        {"interleave": "band", "compress": "lzw"},
        {"BIGTIFF": "YES"},
        {"driver": "COG", "compress": "deflate"},
        {"blockysize": 90, "compress": "deflate"},
        {"nodata": 7},
        {"compress": "zstd"},
        {"compress": "lzma", "interleave": "band"},
        {"compress": "lerc"},
    ],
)
def test_geotiffs_are_read_as_rasterio_reads_them(tmp_path, options):
    pixels = bands(3)
    path = write_geo(tmp_path / "geo.tif", pixels, **options)
    np.testing.assert_array_equal(read(path), pixels.transpose(1, 2, 0))


def test_a_cut_off_file_of_a_rare_codec_is_refused(tmp_path):
    path = write_geo(tmp_path / "zstd.tif", bands(3), compress="zstd")
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(UserError, match=r"zstd\.tif: "):
        read(path)


def test_rotation_marks_are_left_alone(tmp_path):
    exif = picture().getexif()
    exif[0x112] = 6
    for name in ("turned.png", "turned.webp"):
        picture().save(tmp_path / name, exif=exif, lossless=True)
        np.testing.assert_array_equal(read(tmp_path / name), np.asarray(picture()))
    picture().save(tmp_path / "turned.tif", tiffinfo={274: 6})
    np.testing.assert_array_equal(read(tmp_path / "turned.tif"), np.asarray(picture()))
    picture().save(tmp_path / "turned.jpg", exif=exif)
    np.testing.assert_array_equal(read(tmp_path / "turned.jpg"), np.asarray(Image.open(tmp_path / "turned.jpg")))


def test_two_and_four_bands(tmp_path):
    for photometric in ("RGB", "MINISBLACK"):
        path = write_geo(tmp_path / "four.tif", bands(4), photometric=photometric)
        np.testing.assert_array_equal(read(path), bands(4)[:3].transpose(1, 2, 0))
    path = write_geo(tmp_path / "two.tif", bands(2))
    np.testing.assert_array_equal(read(path), bands(2)[[0, 0, 0]].transpose(1, 2, 0))


def test_eight_bands_need_a_choice(tmp_path):
    path = write_geo(tmp_path / "eight.tif", bands(8))
    with pytest.raises(UserError, match="8 bands; choose the three"):
        ImageFile(path)
    np.testing.assert_array_equal(read(path, ImageConfig((5, 3, 2))), bands(8)[[4, 2, 1]].transpose(1, 2, 0))
    with pytest.raises(UserError, match="no band 9"):
        ImageFile(path, ImageConfig((1, 2, 9)))


@pytest.mark.parametrize(
    "dtype", ["uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64", "int8"]
)
def test_other_pixel_types_need_a_stretch(tmp_path, dtype):
    path = write_geo(tmp_path / "deep.tif", bands(3, dtype))
    with pytest.raises(UserError, match="--stretch LOW HIGH"):
        ImageFile(path)
    values = bands(3, dtype).astype(np.float64)
    expected = ((values - 20) * 255 / 80).clip(0, 255).transpose(1, 2, 0)
    assert np.abs(read(path, ImageConfig(stretch=(20, 100))) - expected).max() <= 0.51


def test_stretch_leaves_eight_bits_alone_and_takes_what_is_no_number(tmp_path):
    picture().save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png", ImageConfig(stretch=(20, 100))), np.asarray(picture()))
    pixels = bands(1, "float32")
    pixels[0, 0, :3] = np.nan, np.inf, -np.inf
    path = write_geo(tmp_path / "nan.tif", pixels)
    assert read(path, ImageConfig(stretch=(0, 1)))[0, :3, 0].tolist() == [0, 255, 0]
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(tmp_path / "deep.png")
    assert (read(tmp_path / "deep.png", ImageConfig(stretch=(0, 65535))) == 156).all()


@pytest.mark.parametrize(("bands", "stretch"), [((0, 1, 2), ()), (None, (5, 5)), (None, (9, 1))])
def test_impossible_channels(bands, stretch):
    with pytest.raises(UserError):
        ImageConfig(bands, stretch)


def test_complex_pixels_are_refused(tmp_path):
    path = write_geo(tmp_path / "complex.tif", bands(1, "complex64"))
    with pytest.raises(UserError, match=r"complex\.tif: pixel type complex64"):
        read(path, ImageConfig(stretch=(0, 1)))


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.97])
def test_cut_off_files_are_refused(tmp_path, suffix, share):
    path = tmp_path / f"cut.{suffix}"
    picture().save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=rf"cut\.{suffix}: (not a readable image|broken image data) \(.+\)$"):
        read(path)


def test_content_decides_not_the_name(tmp_path):
    picture().save(tmp_path / "wrong.jpg", format="PNG")
    np.testing.assert_array_equal(read(tmp_path / "wrong.jpg"), np.asarray(picture()))
    for suffix in ("gif", "bmp", "ppm", "pdf"):
        picture().save(tmp_path / f"other.{suffix}")
        (tmp_path / f"other.{suffix}").rename(tmp_path / "other.png")
        with pytest.raises(UserError, match="neither TIFF, PNG"):
            ImageFile(tmp_path / "other.png")
    (tmp_path / "image.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>")
    with pytest.raises(UserError, match="neither TIFF"):
        ImageFile(tmp_path / "image.svg")


@pytest.mark.parametrize("name", ["ä ö.png", "a [page=3].tif", "名前.webp", "-x.jpg", "a'b\"c.png", "n" * 200 + ".tif"])
def test_odd_names(tmp_path, name):
    picture().save(tmp_path / name)
    assert ImageFile(tmp_path / name).frame.width == 150
    read(tmp_path / name)


def test_a_name_that_is_no_text_is_refused(tmp_path):
    picture().save(tmp_path / "a.png")
    path = tmp_path / "b\udcff.png"
    (tmp_path / "a.png").rename(path)
    with pytest.raises(UserError, match="not valid UTF-8"):
        ImageFile(path)


def test_nothing_there(tmp_path):
    (tmp_path / "empty.png").touch()
    with pytest.raises(UserError, match="the file is empty"):
        ImageFile(tmp_path / "empty.png")
    with pytest.raises(UserError, match="no such image file"):
        ImageFile(tmp_path)


def test_bombs_are_refused_by_their_headers(tmp_path, monkeypatch):
    for suffix in KINDS:
        picture().save(tmp_path / f"bomb.{suffix}")
        with pytest.raises(UserError, match="over the limit of 13,499 px"):
            ImageFile(tmp_path / f"bomb.{suffix}", ImageConfig(max_pixels=150 * 90 - 1))
    monkeypatch.setattr(decoding, "MAX_SIDE", 149)
    for suffix in KINDS:
        with pytest.raises(UserError, match="over the limit of 149 px a side"):
            ImageFile(tmp_path / f"bomb.{suffix}")


def test_what_can_only_be_decoded_whole_has_a_lower_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_WHOLE_PIXELS", 100)
    picture().save(tmp_path / "a.webp")
    picture().save(tmp_path / "a.jpg", progressive=True)
    for name in ("a.webp", "a.jpg"):
        with pytest.raises(UserError, match="can only be decoded whole"):
            ImageFile(tmp_path / name)
    picture().save(tmp_path / "b.jpg")
    picture().save(tmp_path / "b.png")
    for name in ("b.jpg", "b.png"):
        read(tmp_path / name)


def test_broken_images_are_named_in_the_manifest_and_never_crash(tmp_path):
    broken = broken_images(tmp_path / "broken")
    assert len(broken) == COUNT
    good = [tmp_path / f"good.{suffix}" for suffix in KINDS]
    for path in good:
        save(picture(), path)
    report = build_store(broken + good, tmp_path / "store", StoreSettings(views=(112,)), workers=2)
    names = {Path(path).name for path in report.refused}
    store = TileStore.open(tmp_path / "store")
    assert names.isdisjoint(store.records)
    assert names | set(store.records) == {path.name for path in broken + good}
    manifest = (tmp_path / "store" / "quarantine.jsonl").read_text().splitlines()
    assert len(manifest) == len(report.refused)
    missed = sorted(path.name for path in broken if path.name in store.records)
    assert not missed, f"{len(missed)} broken files were taken for good ones"
    for path in good:
        np.testing.assert_array_equal(global_view(store[path.name], 112, 28), global_view(RawImage(path), 112, 28))
