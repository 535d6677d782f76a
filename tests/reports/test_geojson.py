"""GeoPandas finds the boxes of a file where they are, in WGS 84 and in the CRS of the image."""

import json

import numpy as np
import pytest

from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.images.georeference import Georeference, named_crs
from zoomearth_jax.errors import UserError
from zoomearth_jax.reports.geojson import Placed, check_geojson, write_geojson

FRAME = Frame(1000, 800)
OWN = (
    'PROJCS["my grid",GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563]],PRIMEM["Greenwich",0],\
UNIT["degree",0.0174532925199433]],PROJECTION["Transverse_Mercator"],PARAMETER["latitude_of_origin",0],\
PARAMETER["central_meridian",14.2],PARAMETER["scale_factor",1],PARAMETER["false_easting",0],PARAMETER["false_northing",0],\
UNIT["metre",1]]'  # that no authority has
)
CRSS = {"EPSG:32633": "EPSG_32633", "EPSG:4258": "EPSG_4258", "EPSG:3857": "EPSG_3857", OWN: "CRS_"}
STARTS = {
    "EPSG:32633": (412_345, 5_654_321),
    "EPSG:4258": (13.4, 52.5),
    "EPSG:3857": (1_490_000, 6_890_000),
    OWN: (-20_000, 5_700_000),
}


def placed(crs: str) -> Placed:
    """A box of an image of half a metre, or some of it in degrees, turned a little."""
    px = 5e-6 if crs == "EPSG:4258" else 0.5
    x, y = STARTS[crs]
    where = Georeference((px, px / 9, x, px / 8, -px, y), named_crs(crs).to_wkt())
    return Placed(Box(100, 200.5, 130, 260, FRAME), where, {"answer": "größer, 塔", "turn": 1})


@pytest.mark.parametrize("crs", CRSS, ids=CRSS.values())
def test_geopandas_finds_the_box_in_both_files(tmp_path, crs):
    geopandas, pyproj = pytest.importorskip("geopandas"), pytest.importorskip("pyproj")
    one = placed(crs)
    checked = check_geojson(tmp_path / "out.geojson", [one.where])
    assert sorted(tmp_path.iterdir()) == []
    write_geojson(tmp_path / "out.geojson", [one], [one.where])
    assert sorted(tmp_path.iterdir()) == sorted(checked)
    (beside,) = tmp_path.glob(f"out.{CRSS[crs]}*.geojson")
    earth, own = geopandas.read_file(tmp_path / "out.geojson"), geopandas.read_file(beside)
    assert earth.crs == pyproj.CRS("EPSG:4326")
    assert own.crs.equals(pyproj.CRS(crs), ignore_axis_order=True)
    assert (earth.answer[0], earth.turn[0], list(earth.px[0])) == ("größer, 塔", 1, [100, 200.5, 130, 260])
    corners = np.array(own.geometry[0].exterior.coords)
    np.testing.assert_allclose(one.where.points(corners).min(0), (100, 200.5), atol=1e-3)
    np.testing.assert_allclose(one.where.points(corners).max(0), (130, 260), atol=1e-3)
    again = np.array(earth.to_crs(crs).geometry[0].exterior.coords)
    points = one.where.points(again)
    np.testing.assert_allclose(points.min(0), (100, 200.5), atol=0.1)
    np.testing.assert_allclose(points.max(0), (130, 260), atol=0.1)


def test_the_file_is_rfc_7946(tmp_path):
    one = placed("EPSG:32633")
    write_geojson(tmp_path / "out.geojson", [one, one], [one.where])
    read = json.loads((tmp_path / "out.geojson").read_text(encoding="utf-8"))
    assert set(read) == {"type", "features"}
    assert [set(feature) for feature in read["features"]] == [{"type", "geometry", "properties"}] * 2


def test_images_of_several_crs_have_a_file_each_and_without_boxes_it_is_empty(tmp_path):
    one, two, none = (placed(crs) for crs in ("EPSG:32633", "EPSG:3857", "EPSG:4258"))
    write_geojson(tmp_path / "out.json", [one, two, one], [one.where, two.where, none.where])
    count = {path.name: len(json.loads(path.read_text(encoding="utf-8"))["features"]) for path in tmp_path.iterdir()}
    assert count == {"out.json": 3, "out.EPSG_32633.json": 2, "out.EPSG_3857.json": 1, "out.EPSG_4258.json": 0}


def test_other_endings_and_places_that_can_t_be_written_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"out\.shp: --geojson writes GeoJSON"):
        check_geojson(tmp_path / "out.shp", [])
    (tmp_path / "out.EPSG_3857.geojson").mkdir()
    with pytest.raises(UserError, match=r"out\.EPSG_3857\.geojson: can't be written"):
        check_geojson(tmp_path / "out.geojson", [placed("EPSG:3857").where])
