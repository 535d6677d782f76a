"""`zoomearth bench perception`: tokens and FLOPs of each way of seeing, and its picture."""

import json
import xml.etree.ElementTree as ET

import pytest

from zoomearth_jax.cli import main


@pytest.mark.slow
def test_ways_of_seeing_small_images(tmp_path, capsys):
    """At 280 px all views are the whole image; at 20,000 px two looks cost the same, and full resolution doesn't fit."""
    args = ["--sides", "280", "20000", "--views", "84", "112", "--pruned", "84", "--keep", "4", "--tokens", "3"]
    file = tmp_path / "plot.svg"
    assert (
        main(["bench", "perception", *args, "--repeats", "1", "--measure-px", "84", "--json", "--plot", str(file)]) == 0
    )
    rows = json.loads(capsys.readouterr().out)
    by = {(row["side_px"], row["way"]): row for row in rows}
    assert len(by) == len(rows) == 12
    small, large = (by[side, "two looks"] for side in (280, 20_000))
    assert (small["view_px"], small["visual_tokens"]) == (280, 200)
    assert (large["view_px"], large["visual_tokens"]) == (504, 648)
    full = by[20_000, "passive, full resolution"]
    assert full["visual_tokens"] == 714**2
    assert (full["fits v5e"], large["fits v5e"]) == ("NO", "yes")
    assert full["3b_tflop"] > 1000 * large["3b_tflop"]
    assert "seconds" not in full
    passive, pruned = by[280, "passive 84 px"], by[280, "84 px, 4 kept by cluster"]
    assert (passive["visual_tokens"], pruned["visual_tokens"]) == (9, 4)
    assert pruned["gflop"] < passive["gflop"]
    for row in (passive, pruned, by[280, "84 px, 4 kept by attention"]):
        assert row["seconds"] > 0
        assert row["peak_gb"] > 0
    lines = [node.get("points") for node in ET.parse(file).iter("{http://www.w3.org/2000/svg}polyline")]
    assert len(lines) == 12  # two panels of six ways
    assert all(len(points.split()) == 2 for points in lines)


@pytest.mark.parametrize("bad", [["--sides", "20"], ["--chip", "v5f"], ["--tokens", "0"]])
def test_bad_settings_are_one_line(bad, capsys):
    assert main(["bench", "perception", *bad]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
