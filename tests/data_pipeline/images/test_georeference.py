"""Boxes on the earth: pyproj places their corners by itself, and rasterio reads back what is written."""

import itertools
import json
import math

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image

from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.images.geometry import box_from_geojson, box_of_geometry, geometry, geometry_in_crs
from zoomearth_jax.data_pipeline.images.georeference import Georeference, crs_name, georeference_of, named_crs
from zoomearth_jax.data_pipeline.images.given import as_source
from zoomearth_jax.data_pipeline.images.image_folder import open_image
from zoomearth_jax.data_pipeline.images.regions import check_region, write_region
from zoomearth_jax.data_pipeline.images.sources import ArrayImage, Part, RawImage
from zoomearth_jax.data_pipeline.images.tile_build import build_store
from zoomearth_jax.data_pipeline.images.tiles import ImageRecord, StoreSettings
from zoomearth_jax.errors import UserError

WIDTH, HEIGHT = 700, 500
UTM = Affine(0.5, 0, 412_345.25, 0, -0.5, 5_654_321.75)
LIES = {  # name -> transform, CRS
    "utm": (UTM, "EPSG:32633"),
    "south-up": (Affine(0.5, 0, 412_345.25, 0, 0.5, 5_654_321.75), "EPSG:32633"),
    "mirrored": (Affine(-0.5, 0, 412_345.25, 0, -0.5, 5_654_321.75), "EPSG:32733"),
    "rotated": (UTM @ Affine.rotation(33), "EPSG:25832"),
    "sheared": (UTM @ Affine.shear(20, -9) @ Affine.scale(0.4, 1.5), "EPSG:32633"),
    "coarse": (Affine(250, 0, 300_000, 0, -250, 7_000_000), "EPSG:32633"),
    "geographic": (Affine(1e-5, 0, 13.4, 0, -1e-5, 52.5), "EPSG:4326"),
    "other datum": (Affine(1e-5, 0, 13.4, 0, -1e-5, 52.5), "EPSG:4314"),
    "web": (Affine(0.3, 0, 1_490_000, 0, -0.3, 6_890_000), "EPSG:3857"),
    "feet": (Affine(1, 0, 980_000, 0, -1, 200_000), "EPSG:2263"),
    "polar": (Affine(30, 0, -900_000, 0, -30, -700_000), "EPSG:3413"),
    "conic": (Affine(30, 0, -200_000, 0, -30, 1_900_000), "EPSG:5070"),
    "near the antimeridian": (Affine(2, 0, 310_000, 0, -2, 7_230_000), "EPSG:32601"),
}
BOXES = [(0, 0, WIDTH, HEIGHT), (10.25, 20.5, 33.75, 47.0), (600, 400, 601, 401), (699, 0, 700, 500)]


def write_tiff(path, transform=None, crs=None, **more):
    """A small GeoTIFF."""
    profile = {"driver": "GTiff", "width": WIDTH, "height": HEIGHT, "count": 3, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile, transform=transform, crs=crs, **more) as file:
        file.write(np.zeros((3, HEIGHT, WIDTH), np.uint8))
    return path


@pytest.fixture(params=LIES)
def lying(request, tmp_path):
    """An image that lies somewhere, with its transform and CRS."""
    transform, crs = LIES[request.param]
    return RawImage(write_tiff(tmp_path / "a.tif", transform, crs)), transform, crs


def rings(shape) -> list[np.ndarray]:
    """The outer rings of a geometry."""
    polygons = [shape["coordinates"]] if shape["type"] == "Polygon" else shape["coordinates"]
    assert all(len(polygon) == 1 for polygon in polygons)
    return [np.array(polygon[0]) for polygon in polygons]


def in_px(places, transform, crs):
    """Longitudes and latitudes in px of an image, by pyproj and by solving for the transform."""
    pyproj = pytest.importorskip("pyproj")
    back = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    x, y = back.transform(*np.asarray(places).T)
    inverse = np.linalg.inv(np.array(transform).reshape(3, 3))
    return (inverse @ np.array([x, y, np.ones_like(x)]))[:2].T


def test_boxes_land_within_half_a_pixel(lying):
    image, transform, crs = lying
    for corners in BOXES:
        box = Box(*corners, image.frame)
        (ring,) = rings(geometry(box, image.georeference))
        np.testing.assert_array_equal(ring[0], ring[-1])
        points = in_px(ring, transform, crs)
        x1, y1, x2, y2 = corners
        for corner in ((x1, y1), (x2, y1), (x2, y2), (x1, y2)):
            assert np.abs(points - corner).max(1).min() < 0.02
        # the straight lines of the ring stay at the box's edge all along
        between = np.concatenate([ring[:-1] + (ring[1:] - ring[:-1]) * share for share in np.arange(0, 1, 0.05)])
        x, y = in_px(between, transform, crs).T
        off = np.minimum.reduce([np.abs(x - x1), np.abs(x - x2), np.abs(y - y1), np.abs(y - y2)])
        assert off.max() < 0.1


def test_edges_that_bend_get_points_and_others_none(tmp_path):
    for name, count in (("utm", 5), ("geographic", 5)):
        image = RawImage(write_tiff(tmp_path / f"{name}.tif", *LIES[name]))
        (ring,) = rings(geometry(Box(10, 10, 60, 60, image.frame), image.georeference))
        assert len(ring) == count, name
    coarse = RawImage(write_tiff(tmp_path / "coarse.tif", *LIES["coarse"]))
    (ring,) = rings(geometry(Box(0, 0, WIDTH, HEIGHT, coarse.frame), coarse.georeference))
    assert len(ring) > 20


def test_rings_run_counterclockwise_and_in_the_own_crs_have_four_corners(lying):
    image, transform, _ = lying
    box = Box(10, 20, 110, 60, image.frame)
    shapes = geometry(box, image.georeference), geometry_in_crs(box, image.georeference)
    for shape in shapes:
        (ring,) = rings(shape)
        x, y = (ring - ring[0]).T
        assert np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) > 0
    found = {tuple(place) for place in rings(shapes[1])[0].round(6).tolist()}
    expected = {
        tuple(
            np.round(
                [transform.a * x + transform.b * y + transform.c, transform.d * x + transform.e * y + transform.f], 6
            )
        )
        for x in (10, 110)
        for y in (20, 60)
    }
    assert found == expected


def test_boxes_come_back(lying):
    image, _, crs = lying
    for corners in BOXES:
        box = Box(*corners, image.frame)
        wgs84 = {"type": "Feature", "properties": {}, "geometry": geometry(box, image.georeference)}
        own = geometry_in_crs(box, image.georeference) | {"crs": {"type": "name", "properties": {"name": crs}}}
        for given in (wgs84, {"type": "FeatureCollection", "features": [wgs84]}, own):
            back = box_of_geometry(given, image.georeference, image)
            np.testing.assert_allclose(back.corners, corners, atol=0.1)


def covered(transform, crs) -> float:
    """The area of an image's pixels on the cylinder, from those in the middle of 50 x 50 parts."""
    pyproj = pytest.importorskip("pyproj")
    lonlat = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    x, y = np.meshgrid((np.arange(50) + 0.5) * WIDTH / 50, (np.arange(50) + 0.5) * HEIGHT / 50)

    def at(dx, dy):
        longitude, latitude = lonlat.transform(*(transform @ (x + dx, y + dy)))
        return longitude, np.sin(np.radians(latitude))

    def step(dx, dy):
        (x2, y2), (x1, y1) = at(dx, dy), at(-dx, -dy)
        return np.radians((x2 - x1 + 180) % 360 - 180), y2 - y1

    (ax, ay), (bx, by) = step(0.5, 0), step(0, 0.5)
    return float(np.abs(ax * by - ay * bx).mean() * WIDTH * HEIGHT)


@pytest.mark.parametrize(
    ("transform", "crs", "poles"),
    [
        (Affine(0.01, 0, 177, 0, -0.01, -16), "EPSG:4326", 0),  # Fiji
        (Affine(1000, 0, 100_000, 0, -1000, 8_200_000), "EPSG:32701", 0),
        (Affine(1000, 0, -300_000, 0, -1000, 200_000), "EPSG:3413", 1),
        (Affine(1000, 0, -300_000, 0, -1000, 200_000), "EPSG:3031", -1),
    ],
)
def test_what_crosses_the_antimeridian_is_cut_there(tmp_path, transform, crs, poles):
    """The areas, on a cylinder of equal areas, are those of the earth that the image covers."""
    image = RawImage(write_tiff(tmp_path / "a.tif", transform, crs))
    box = Box(0, 0, WIDTH, HEIGHT, image.frame)
    shape = geometry(box, image.georeference)
    parts = rings(shape)
    area = 0.0
    for ring in parts:
        assert np.abs(ring[:, 0]).max() == 180
        assert np.abs(ring[:, 1]).max() <= 90
        x, y = np.radians(ring[:, 0]), np.sin(np.radians(ring[:, 1]))
        steps = np.concatenate([np.linspace(a, b, 50) for a, b in itertools.pairwise(ring)])
        x, y = np.radians(steps[:, 0]), np.sin(np.radians(steps[:, 1]))
        area += np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2
    assert area == pytest.approx(covered(transform, crs), rel=0.02)
    assert any((ring[:, 1] == 90 * poles).any() for ring in parts) == bool(poles)
    if not poles:
        back = box_of_geometry(shape, image.georeference, image)
        np.testing.assert_allclose(back.corners, box.corners, atol=0.1)


def test_what_the_projection_has_no_place_for_has_no_geometry():
    space = Georeference((1e6, 0, -9e6, 0, -1e6, 9e6), named_crs("ESRI:54030").to_wkt())  # around the whole earth
    assert geometry(Box(0, 0, 18, 18, Frame(18, 18)), space) is None


@pytest.mark.parametrize(("ending", "world"), [("png", "pgw"), ("jpg", "jgw"), ("tif", "tfw"), ("png", "wld")])
def test_world_files_are_read_with_their_crs(tmp_path, ending, world):
    path = tmp_path / f"a.{ending}"
    Image.new("RGB", (40, 30)).save(path)
    assert RawImage(path).georeference is None
    (tmp_path / f"a.{world}").write_text("0.5\n0.1\n0.2\n-0.5\n1000\n2000\n")  # the middle of the first pixel
    found = RawImage(path).georeference
    np.testing.assert_allclose(
        found.places([(0.5, 0.5), (1.5, 0.5), (0.5, 1.5)]), [(1000, 2000), (1000.5, 2000.1), (1000.2, 1999.5)]
    )
    assert found.crs == ""
    (tmp_path / "a.prj").write_text(rasterio.crs.CRS.from_epsg(32633).to_wkt(version="WKT1_ESRI"))
    assert crs_name(RawImage(path).georeference.crs) == "EPSG:32633"
    (tmp_path / "a.prj").write_text("EPSG 32633")
    with pytest.raises(UserError, match=r"a\.prj: not the WKT of a CRS"):
        _ = RawImage(path).georeference


def test_control_points_on_a_straight_grid_are_a_transform_and_others_are_refused(tmp_path):
    from rasterio.control import GroundControlPoint as Point

    turned = UTM @ Affine.rotation(20)
    grid = [(x, y) for x in (0, 350, WIDTH) for y in (0, 250, HEIGHT)]
    points = [Point(y, x, *(turned @ (x, y))) for x, y in grid]
    straight = RawImage(write_tiff(tmp_path / "a.tif", gcps=points, crs="EPSG:32633"))
    np.testing.assert_allclose(straight.georeference.places(grid), [turned @ p for p in grid], atol=1e-3)
    assert crs_name(straight.georeference.crs) == "EPSG:32633"
    points[4] = Point(250, 350, points[4].x + 20, points[4].y)
    with pytest.raises(UserError, match=r"up to .* px off any affine transform; `gdalwarp"):
        _ = RawImage(write_tiff(tmp_path / "b.tif", gcps=points, crs="EPSG:32633")).georeference


def test_rpcs_alone_are_refused_and_the_image_is_read_all_the_same(tmp_path):
    from rasterio.rpc import RPC

    zeros = [0.0] * 19
    rpcs = RPC(
        0,
        100,
        50,
        0.1,
        [1.0, *zeros],
        [0, 0, 1.0, *zeros[:17]],
        250,
        250,
        13,
        0.1,
        [1.0, *zeros],
        [0, 1.0, *zeros[:18]],
        350,
        350,
    )
    image = RawImage(write_tiff(tmp_path / "a.tif", rpcs=rpcs))
    with pytest.raises(UserError, match="has only RPCs, which need heights"):
        _ = image.georeference
    assert image.window(Box(0, 0, 10, 10, image.frame), Frame(5, 5)).shape == (5, 5, 3)


def test_a_transform_onto_a_line_is_refused(tmp_path):
    with pytest.raises(UserError, match="puts all pixels onto a line"):
        _ = RawImage(write_tiff(tmp_path / "a.tif", Affine(1, 2, 0, 2, 4, 0), "EPSG:32633")).georeference


def test_images_in_memory_lie_nowhere_and_parts_lie_inside(tmp_path):
    assert georeference_of(ArrayImage(np.zeros((4, 4), np.uint8))) is None
    path = write_tiff(tmp_path / "a.tif", *LIES["rotated"])
    whole, part = as_source(path), Part(as_source(path), Box(100, 50, 300, 450, Frame(WIDTH, HEIGHT)))
    assert part.frame == Frame(200, 400)
    np.testing.assert_allclose(part.georeference.places([(1, 2)]), whole.georeference.places([(101, 52)]))
    assert part.outside(Box(1, 2, 3, 4, part.frame)) == Box(101, 52, 103, 54, whole.frame)


def test_windows_of_a_part_are_those_of_the_whole(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    whole = ArrayImage(pixels)
    part = Part(whole, Box(100, 50, 300, 250, whole.frame))
    np.testing.assert_array_equal(part.window(Box(10, 20, 50, 60, part.frame), Frame(40, 40)), pixels[70:110, 110:150])


def test_tile_stores_keep_it_and_older_ones_still_open(tmp_path):
    (tmp_path / "images").mkdir()
    path = write_tiff(tmp_path / "images" / "a.tif", *LIES["sheared"])
    Image.new("RGB", (300, 280)).save(tmp_path / "images" / "b.png")
    paths, store = [path, tmp_path / "images" / "b.png"], tmp_path / "tiles"
    build_store(paths, store, StoreSettings(), workers=1)
    assert open_image(store / "a.tif").georeference == RawImage(path).georeference
    assert open_image(store / "b.png").georeference is None
    (tmp_path / "images" / "b.pgw").write_text(
        "2\n0\n0\n-2\n5\n6\n"
    )  # a world file that comes later is found on the next call
    assert build_store(paths, store, StoreSettings(), workers=1).kept == 2
    assert open_image(store / "b.png").georeference.transform == (2, 0, 4, 0, -2, 7)
    index = json.loads((store / "index.json").read_text())
    for record in index["images"]:
        del record["georeference"]
    (store / "index.json").write_text(json.dumps(index))
    assert open_image(store / "a.tif").georeference is None
    assert ImageRecord.from_json(index["images"][0]).id == "a.tif"


def test_an_image_with_rpcs_is_stored_without_them(tmp_path):
    points = [rasterio.control.GroundControlPoint(y, x, x * y, y) for x in (0, 9) for y in (0, 9)]
    path = write_tiff(tmp_path / "a.tif", gcps=points, crs="EPSG:4326")
    assert build_store([path], tmp_path / "tiles", StoreSettings(), workers=1).built == 1
    assert open_image(tmp_path / "tiles").georeference is None


@pytest.mark.parametrize("ending", ["tif", "png", "jpg"])
def test_regions_lie_where_they_belong(lying, tmp_path, ending):
    image, transform, crs = lying
    window, pixels = Box(100, 40, 300, 190, image.frame), np.full((75, 80, 3), 90, np.uint8)
    path = tmp_path / f"region.{ending}"
    check_region(path, "--save-crop")
    write_region(path, pixels, image, window)
    with rasterio.open(path) as file:
        assert file.crs == rasterio.crs.CRS.from_string(crs)
        for point, place in (((0, 0), (100, 40)), ((80, 75), (300, 190)), ((80, 0), (300, 40))):
            np.testing.assert_allclose(
                file.transform @ point, transform @ place, rtol=0, atol=1e-6 * abs(transform.a) + 1e-9
            )
        np.testing.assert_array_equal(file.read(), pixels.transpose(2, 0, 1))
    assert sorted(p.name for p in tmp_path.glob("*.partial")) == []


def test_masks_and_images_without_a_georeference_are_plain_files(tmp_path):
    image = ArrayImage(np.zeros((40, 40), np.uint8))
    for name in ("a.png", "a.tif"):
        (tmp_path / "a.pgw").write_text("1\n0\n0\n1\n0\n0\n")  # of an older picture, where it would be wrong
        write_region(tmp_path / name, np.full((5, 6), 3, np.uint8), image, Box(0, 0, 6, 5, image.frame))
        with rasterio.open(tmp_path / name) as file:
            assert (file.count, file.width, file.height, file.crs) == (1, 6, 5, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pgw", "a.png", "a.tif"]


def test_regions_that_can_t_be_written_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"x\.gif: --save-crop writes \.tif, \.png or \.jpg"):
        check_region(tmp_path / "x.gif", "--save-crop")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="can't be written"):
        check_region(tmp_path / "file" / "x.png", "--save-crop")


SQUARE = [[13.4, 52.5], [13.401, 52.5], [13.401, 52.499], [13.4, 52.499], [13.4, 52.5]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"type": "FeatureCollection", "features": []}, "holds 0 features; give a file with one"),
        ({"type": "FeatureCollection", "features": [{}, {}]}, "holds 2 features"),
        ({"type": "FeatureCollection"}, "holds 0 features"),
        ({"type": "FeatureCollection", "features": [7]}, "holds 1 features"),
        ({"type": "Feature", "geometry": None}, "not a GeoJSON geometry"),
        ({"type": "Feature", "geometry": 7}, "a feature without a geometry"),
        ({"type": "Polygon"}, "not a GeoJSON geometry"),
        ({"type": "Polygon", "coordinates": []}, "without coordinates"),
        ({"type": "Polygon", "coordinates": [[["a", "b"]]]}, "nested lists of numbers"),
        ({"type": "Polygon", "coordinates": [[[[[[[1, 2]]]]]]]}, "nested lists of numbers"),
        ({"type": "Polygon", "coordinates": [[[True, False]]]}, "nested lists of numbers"),
        ({"type": "Polygon", "coordinates": [[[math.inf, 1], [2, 2]]]}, "nested lists of numbers"),
        ({"type": "Point", "coordinates": [13.4001, 52.4999]}, "has no area"),
        ({"type": "Polygon", "coordinates": [[[y, x] for x, y in SQUARE]]}, "outside the image"),
        (
            {"type": "Polygon", "coordinates": [SQUARE], "crs": {"properties": {"name": "EPSG:32633"}}},
            "outside the image",
        ),
        ({"type": "Polygon", "coordinates": [SQUARE], "crs": {"properties": {"name": "EPSG:999999"}}}, "is not known"),
        ({"type": "Polygon", "coordinates": [SQUARE], "crs": {"properties": {"name": "/etc/passwd"}}}, "is not known"),
        (
            {"type": "Polygon", "coordinates": [SQUARE], "crs": {"properties": {"name": "+proj=utm +zone=33"}}},
            "is not known",
        ),
        ({"type": "Polygon", "coordinates": [SQUARE], "crs": "EPSG:4326"}, "`crs` names no CRS"),
        ({"type": "LineString", "coordinates": [[13.4, 52.5]] * 10_001}, "over 10,000 points"),
        ([], "not a GeoJSON object"),
        ("{", "Expecting property name"),
        ("[" * 100_000, "nested too deeply"),
    ],
    ids=str,
)
def test_geometries_that_are_none_are_one_line(tmp_path, given, message):
    image = RawImage(write_tiff(tmp_path / "a.tif", *LIES["geographic"]))
    path = tmp_path / "box.geojson"
    path.write_text(given if isinstance(given, str) else json.dumps(given))
    with pytest.raises(UserError, match=message) as refused:
        box_from_geojson(path, image, "a.tif")
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


def test_files_of_boxes(tmp_path):
    image = RawImage(write_tiff(tmp_path / "a.tif", *LIES["geographic"]))
    path = tmp_path / "box.geojson"
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [SQUARE]}), encoding="utf-8-sig")
    np.testing.assert_allclose(box_from_geojson(path, image, "a.tif").corners, (0, 0, 100, 100), atol=1e-6)
    path.write_text(json.dumps({"type": "MultiPoint", "coordinates": [[13.399, 52.4999], [13.4005, 52.501]]}))
    np.testing.assert_allclose(
        box_from_geojson(path, image, "a.tif").corners, (0, 0, 50, 10), atol=1e-6
    )  # cut at the border
    with pytest.raises(UserError, match="can't be read"):
        box_from_geojson(tmp_path / "none.geojson", image, "a.tif")
    with pytest.raises(UserError, match=r"a\.tif: has no georeference, which the box of .* needs"):
        box_from_geojson(path, ArrayImage(np.zeros((4, 4), np.uint8)), "a.tif")


@pytest.mark.filterwarnings("ignore")  # rasterio can't decode all that GDAL says of them
def test_flipped_bytes_of_tags_and_sidecars_never_crash(tmp_path):
    """A file lies somewhere, or nowhere, or is refused in one line."""
    rng = np.random.default_rng(0)
    whole = write_tiff(tmp_path / "whole.tif", *LIES["rotated"], compress="deflate").read_bytes()
    Image.new("RGB", (30, 20)).save(tmp_path / "b.png")
    image = RawImage(write_tiff(tmp_path / "c.tif", *LIES["utm"]))
    write_region(tmp_path / "b.png", np.zeros((20, 30, 3), np.uint8), image, Box(0, 0, 30, 20, image.frame))
    beside = {path: path.read_bytes() for path in (tmp_path / "b.pgw", tmp_path / "b.png.aux.xml")}
    outcomes = set()
    for number in range(80):
        data = bytearray(whole)
        for place in rng.integers(8, len(data), 6):
            data[place] = rng.integers(256)
        (tmp_path / "a.tif").write_bytes(data)
        side, text = list(beside.items())[number % 2]
        broken = bytearray(text)
        for place in rng.integers(0, len(broken), 3):
            broken[place] = rng.integers(256)
        side.write_bytes(broken)
        for path in (tmp_path / "a.tif", tmp_path / "b.png"):
            try:
                found = RawImage(path).georeference
                outcomes.add(type(found).__name__)
                if found and found.crs:
                    geometry(Box(0, 0, 30, 20, Frame(30, 20)), found)
            except UserError as error:
                outcomes.add("refused" if "\n" not in str(error) else str(error))
        side.write_bytes(text)
    assert outcomes == {"Georeference", "NoneType", "refused"}


@pytest.mark.parametrize(
    ("driver", "ending", "more"),
    [("JP2OpenJPEG", "jp2", {}), ("ENVI", "dat", {}), ("HFA", "img", {}), ("NITF", "ntf", {"ICORDS": "N"})],
)
def test_other_forms_lie_where_they_say(tmp_path, driver, ending, more):
    """Each form, and a VRT of it."""
    profile = {"driver": driver, "width": 128, "height": 100, "count": 3, "dtype": "uint8", "crs": "EPSG:32633", **more}
    path, transform = tmp_path / f"a.{ending}", Affine(10, 0, 400_000, 0, -10, 5_000_000)
    with rasterio.open(path, "w", **profile, transform=transform) as file:
        file.write(np.zeros((3, 100, 128), np.uint8))
    source = f'<SourceFilename relativeToVRT="1">{path.name}</SourceFilename><SourceBand>1</SourceBand>'
    (tmp_path / "a.vrt").write_text(
        '<VRTDataset rasterXSize="128" rasterYSize="100"><SRS>EPSG:32633</SRS>'
        "<GeoTransform>400000, 10, 0, 5000000, 0, -10</GeoTransform>"
        f'<VRTRasterBand dataType="Byte" band="1"><SimpleSource>{source}</SimpleSource></VRTRasterBand></VRTDataset>'
    )
    for name in (path, tmp_path / "a.vrt"):
        found = RawImage(name).georeference
        np.testing.assert_allclose(found.transform, tuple(transform)[:6], atol=0.01)
        assert crs_name(found.crs) == "EPSG:32633"
