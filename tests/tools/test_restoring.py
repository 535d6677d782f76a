"""Denoising and cloud removal: what is spoilt gets better, what is clean stays as it is, what is made up is marked."""

import numpy as np
import pytest

pytest.importorskip("cv2", reason="needs the extra `tools`")
pytest.importorskip("skimage", reason="needs the extra `tools`")

from tests.tools.pictures import ground, levels, psnr
from zoomearth_jax.data_pipeline.images.boxes import Frame
from zoomearth_jax.tools.cloud_removal import CLOUD_REMOVAL
from zoomearth_jax.tools.denoise import DENOISE, noise_sigma
from zoomearth_jax.tools.haze import haze_level, without_haze
from zoomearth_jax.tools.image_tool import Context, ToolFailure, checked

CLEAN = ground()


def run(tool, region, mask=None, others=(), **parameters):
    height, width = region.shape[:2]
    context = Context((0, 0, width, height), Frame(width, height), "", parameters, 1.0, mask, others)
    return checked(tool.name, tool.call(region.copy(), context), region)


def noisy(sigma, seed=1):
    return levels(CLEAN + np.random.default_rng(seed).normal(0, sigma, CLEAN.shape))


@pytest.mark.parametrize("sigma", [5, 10, 20, 30])
def test_the_sigma_of_noise_is_found_and_noise_reduced(sigma):
    spoilt = noisy(sigma)
    assert noise_sigma(spoilt) == pytest.approx(sigma, rel=0.2)  # noise in shadows is cut off at 0
    result = run(DENOISE, spoilt)
    assert psnr(CLEAN, result.image) > psnr(CLEAN, spoilt) + 2
    assert result.metadata["sigma_estimated"]


def test_a_clean_region_stays_as_it_is_whatever_its_texture():
    for region in (CLEAN, ground(seed=3), np.full((64, 64, 3), 90, np.uint8), CLEAN[:3, :2]):
        for tool in (DENOISE, CLOUD_REMOVAL):
            result = run(tool, region)
            np.testing.assert_array_equal(result.image, region)
            assert "hardly any noise" in result.text or "no haze that is sure" in result.text


def test_a_sigma_that_is_given_is_taken():
    result = run(DENOISE, noisy(20), sigma=1)
    assert not result.metadata["denoised"]
    assert result.metadata == {"sigma": 1.0, "sigma_estimated": False, "denoised": False}


@pytest.mark.parametrize("through", [0.6, 0.5])
def test_haze_is_seen_and_taken_off(through):
    hazy = levels(CLEAN * through + 0.92 * 255 * (1 - through))
    assert haze_level(CLEAN) < 0.1
    assert haze_level(hazy) == pytest.approx(0.92 * (1 - through), abs=0.05)
    result = run(CLOUD_REMOVAL, hazy)
    assert result.metadata["haze_removed"]
    assert psnr(CLEAN, result.image) > psnr(CLEAN, hazy) + 5
    share = without_haze(hazy)[1].mean()
    assert share == pytest.approx(through, abs=0.12)


def test_a_thin_veil_is_left_unless_it_is_asked_for():
    thin = levels(CLEAN * 0.75 + 0.92 * 255 * 0.25)
    for wish, removed in (("auto", False), ("never", False), ("always", True)):
        result = run(CLOUD_REMOVAL, thin, haze=wish)
        assert result.metadata["haze_removed"] is removed
        assert (psnr(CLEAN, result.image) > psnr(CLEAN, thin) + 4) == removed


def test_water_that_is_bright_but_not_white_is_no_haze():
    water = levels(np.array([80, 120, 115]) + np.random.default_rng(0).normal(0, 2, (128, 128, 3)))
    assert run(CLOUD_REMOVAL, water).metadata["haze_removed"] is False


def cloud():
    mask = np.zeros(CLEAN.shape[:2], bool)
    mask[60:110, 50:120] = True
    return mask, np.where(mask[..., None], np.uint8(250), CLEAN)


def test_thick_cloud_is_filled_from_other_dates_in_this_one_s_light():
    mask, cloudy = cloud()
    darker = levels(0.7 * CLEAN + 10)
    result = run(CLOUD_REMOVAL, cloudy, mask, (darker, levels(CLEAN * 0.9)))
    assert psnr(CLEAN[mask], result.image[mask]) > 35
    assert psnr(CLEAN[mask], darker[mask]) < 25
    assert result.made_up is None
    assert "from 2 other dates" in result.text
    far = np.ones_like(mask)
    far[50:120, 40:130] = False
    np.testing.assert_array_equal(result.image[far], cloudy[far])


def test_thick_cloud_without_other_dates_is_painted_over_and_marked_as_made_up():
    mask, cloudy = cloud()
    result = run(CLOUD_REMOVAL, cloudy, mask)
    np.testing.assert_array_equal(result.made_up, mask)
    np.testing.assert_array_equal(result.image[~mask], cloudy[~mask])
    assert result.image[mask].mean() < 200
    assert "made up" in result.text
    with pytest.raises(ToolFailure, match="covers the whole region"):
        run(CLOUD_REMOVAL, cloudy, np.ones_like(mask))
