"""Each perturbation does what its unit says, by hand-worked pixels."""

import cv2
import numpy as np
import pytest

from steatosis_tf.evaluation.clinical.robustness import (
    PERTURBATIONS,
    blur,
    contrast,
    depth_crop,
    gain,
    jpeg,
    speckle,
)


@pytest.fixture(scope="module")
def rois():
    rng = np.random.default_rng(5)
    frames = rng.integers(40, 200, (3, 64, 64, 1)).astype(np.uint8)
    frames[:, :, :10] = 0  # outside the sector
    return frames


@pytest.mark.parametrize("name", [name for name, one in PERTURBATIONS.items() if one.apply])
def test_shape_zero_strength_and_surround(rois, name):
    perturbation = PERTURBATIONS[name]
    before = rois.copy()
    np.testing.assert_array_equal(perturbation.apply(rois, 0, 0), rois)
    for strength in perturbation.strengths:
        after = perturbation.apply(rois, strength, 0)
        assert (after.shape, after.dtype) == (rois.shape, np.uint8)
        assert (after != rois).any()
        assert not after[:, :, :10].any()
        assert after[:, :, 11:].all()
        np.testing.assert_array_equal(perturbation.apply(rois[1:2], strength, 0), after[1:2])
    np.testing.assert_array_equal(rois, before)  # the input is left as it was


def test_gain_and_contrast_by_hand():
    pixels = np.array([0, 1, 100, 128, 250], np.uint8).reshape(1, 1, 5, 1)
    # 6 dB of 60 dB over 255 levels: 25.5 levels; 0 stays outside, 250 saturates.
    assert gain(pixels, 6).ravel().tolist() == [0, 26, 126, 154, 255]
    assert gain(pixels, -6).ravel().tolist() == [0, 1, 74, 102, 224]
    # 128 + 1.5 (x - 128)
    assert contrast(pixels, 50).ravel().tolist() == [0, 1, 86, 128, 255]


def test_speckle_has_the_stated_spread_and_mean():
    flat = np.full((2, 224, 224, 1), 120, np.uint8)
    noisy = speckle(flat, 20, seed=1).astype(float) / 120
    assert noisy.std() == pytest.approx(0.20, rel=0.03)
    assert noisy.mean() == pytest.approx(1.0, abs=0.01)
    assert (speckle(flat, 20, seed=2) != speckle(flat, 20, seed=1)).any()


def test_blur_spreads_a_point_like_its_gaussian_and_leaves_flat_areas():
    flat = np.full((1, 40, 40, 1), 90, np.uint8)
    flat[:, :, :7] = 0
    np.testing.assert_array_equal(blur(flat, 3), flat)
    point = np.full((1, 41, 41, 1), 1, np.uint8)
    point[0, 20, 20] = 255
    # Peak of a 2-D Gaussian of sigma 2 is 1 / (2 pi 4) = 0.0398: 1 + 254 x 0.0398 = 11.1
    assert blur(point, 2)[0, 20, 20, 0] == 11


def test_depth_crop_stretches_the_near_part():
    ramp = np.repeat(np.arange(1, 101, dtype=np.uint8)[:, None], 50, axis=1)[None, ..., None]
    cropped = depth_crop(ramp, 20)
    assert cropped[0, -1, 0, 0] == 80
    assert cropped[0, 0, 0, 0] == 1


def test_jpeg_is_the_stated_quality(rois):
    stored = cv2.imencode(".jpg", rois[0], [cv2.IMWRITE_JPEG_QUALITY, 30])[1]
    expected = cv2.imdecode(stored, cv2.IMREAD_GRAYSCALE)
    inside = rois[0, :, :, 0] > 0
    np.testing.assert_array_equal(
        jpeg(rois, 70)[0, ..., 0][inside], np.maximum(expected, 1)[inside]
    )
