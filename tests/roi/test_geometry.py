"""Depth and angle of a fan, worked out by hand."""

import numpy as np
import pytest

from steatosis_tf.roi.sector import Fan

FAN = Fan("convex", 50.0, -20.0, -30.0, 30.0, near_px=30.0, far_px=90.0)


def test_depth_runs_along_the_beam():
    depth = FAN.depth_px((100, 101))
    assert depth.shape == (100, 101)
    assert depth.dtype == np.float32
    assert depth[10, 50] == pytest.approx(0)
    # 30 to the side and 40 down from the apex: radius 50
    assert depth[20, 80] == pytest.approx(20, abs=1e-4)


def test_angle_is_measured_from_straight_down():
    angle = FAN.angle_deg((100, 101))
    assert angle[40, 50] == 0
    assert angle[20, 10] == pytest.approx(-45, abs=1e-4)


def test_oblong_pixels_shorten_the_rows():
    fan = Fan("convex", 50.0, 0.0, -30.0, 30.0, 10.0, 90.0, row_stretch=2.0)
    # 30 columns across and 80 rows, worth 40 columns, down: radius 50
    assert fan.depth_px((100, 101))[80, 80] == pytest.approx(40, abs=1e-4)
    assert fan.angle_deg((100, 101))[80, 90] == pytest.approx(45, abs=1e-4)


def test_mask_is_the_definition_of_the_fan():
    rows, columns = np.mgrid[:100, :101]
    radius = np.hypot(columns - 50, rows + 20)
    angle = np.degrees(np.arctan2(columns - 50, rows + 20))
    truth = (radius >= 30) & (radius <= 90) & (np.abs(angle) <= 30)
    # The drawing includes pixels its border only touches.
    assert (FAN.mask((100, 101)) ^ truth).sum() < 0.05 * truth.sum()


def test_cuts_take_columns_and_rows_away():
    fan = Fan("convex", 50.0, -20.0, -30.0, 30.0, 30.0, 90.0, 29.5, 69.5, 59.5)
    mask = fan.mask((100, 101))
    assert np.flatnonzero(mask.any(axis=0))[[0, -1]].tolist() == [30, 69]
    assert np.flatnonzero(mask.any(axis=1))[-1] == 59


def test_linear_probe_has_parallel_beams():
    fan = Fan("linear", 50.0, -np.inf, 0.0, 0.0, 10.0, 90.0, 20.0, 80.0)
    assert fan.mask((100, 101)).sum() == 81 * 61
    assert fan.depth_px((100, 101))[35, 99] == 25
    assert not fan.angle_deg((100, 101)).any()
    with pytest.raises(ValueError, match="its sides"):
        Fan("linear", 50.0, -np.inf, 0.0, 0.0, 10.0, 90.0).outline()


def test_scaling_keeps_pixel_centres():
    double = FAN.scaled(2)
    # The middle of the first pixel, 0, becomes the middle of pixels 0 and 1.
    assert double.apex_x_px == 100.5
    assert double.near_px == 60
    assert double.left_deg == -30
    linear = Fan("linear", 50.0, -np.inf, 0.0, 0.0, 10.0, 90.0, 20.0, 80.0).scaled(2)
    assert linear.near_px == 20.5
    assert linear.apex_y_px == -np.inf
