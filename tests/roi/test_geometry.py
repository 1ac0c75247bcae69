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


OTHERS = (
    FAN,
    Fan("phased", 300.0, 20.0, -40.0, 35.0, 3.0, 400.0, row_stretch=16 / 15),
    Fan("linear", 50.0, -np.inf, 0.0, 0.0, 10.0, 90.0, 20.0, 80.0),
)


@pytest.mark.parametrize("fan", OTHERS, ids=lambda fan: fan.kind)
def test_a_fan_is_known_by_its_corners(fan):
    corners = fan.corners()
    assert corners.shape == (4, 2)
    again = fan.with_corners(corners)
    np.testing.assert_allclose(again.outline(), fan.outline(), atol=1e-6)
    shift = np.array([7, -3])
    moved = fan.with_corners(corners + shift)
    np.testing.assert_allclose(moved.outline(), fan.outline() + shift, atol=1e-6)


def test_far_corners_pulled_down_make_the_fan_deeper():
    corners = FAN.corners()
    apex = np.array([50.0, -20.0])
    corners[2:] = apex + (corners[2:] - apex) * 120 / 90
    deeper = FAN.with_corners(corners)
    assert deeper.far_px == pytest.approx(120)
    assert (deeper.near_px, deeper.left_deg) == (pytest.approx(30), pytest.approx(-30))


@pytest.mark.parametrize("fan", OTHERS, ids=lambda fan: fan.kind)
def test_corners_of_no_fan_are_refused(fan):
    for order in ([1, 0, 3, 2], [3, 2, 1, 0]):  # mirrored, upside down
        with pytest.raises(ValueError, match="a fan that opens downwards"):
            fan.with_corners(fan.corners()[order])
