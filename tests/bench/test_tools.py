"""`zoomearth bench tools` on images that are drawn here."""

import json

import pytest
from PIL import Image

pytest.importorskip("cv2", reason="needs the extra `tools`")
pytest.importorskip("skimage", reason="needs the extra `tools`")

from tests.tools.pictures import ground
from zoomearth_jax.cli import main


def test_spoilt_images_get_better_clean_ones_stay_and_outlines_are_compared(tmp_path, capsys):
    pixels = ground(160)
    pixels[40:80, 50:110] = (20, 40, 200)
    Image.fromarray(pixels).save(tmp_path / "field.png")
    square = [[50, 40], [109, 40], [109, 79], [50, 79]]
    objects = [
        {"image": "field.png", "name": "lake", "polygon": square},
        {"image": "x.png", "name": "y", "polygon": square},
    ]
    (tmp_path / "masks.json").write_text(json.dumps({"objects": objects}))
    args = (
        "--images",
        tmp_path,
        "--masks",
        tmp_path / "masks.json",
        "--side",
        160,
        "--sigmas",
        20,
        "--save",
        tmp_path / "s",
    )
    assert main(["bench", "tools", *map(str, args), "--json"]) == 0
    rows = {(row["tool"], row["case"]): row for row in json.loads(capsys.readouterr().out)}
    for tool in ("denoise", "cloud_removal"):
        assert rows[tool, "clean"]["psnr_after"] is None
        assert rows[tool, "clean"]["ssim_after"] == 1
    noise, haze = rows["denoise", "sigma 20"], rows["cloud_removal", "haze, 50% come through"]
    assert noise["psnr_before"] == pytest.approx(
        22, abs=1
    )  # 20 log10(255 / 20), and a bit more where values are cut off
    for row in (noise, haze):
        assert row["psnr_after"] > row["psnr_before"] + 2
        assert row["ssim_after"] > row["ssim_before"]
    assert rows["segmentation", "lake, grabcut"]["iou"] > 0.9
    assert ("zoom", "twice as large by Lanczos") in rows
    assert len(rows) >= 9
    with Image.open(tmp_path / "s" / "field_denoise_sigma_20.png") as saved:
        assert saved.size == (480, 160)


def test_bad_settings_are_one_line(tmp_path, capsys):
    for args, line in (
        (("--images", tmp_path), "no PNG, JPEG or TIFF images"),
        (("--side", 5), "side must be from 64"),
    ):
        assert main(["bench", "tools", *map(str, args)]) == 2
        assert line in capsys.readouterr().err
