"""Polar blocks on drawn sectors whose answer is known."""

import numpy as np
import pytest

from experiments.fat_rules.polar import NUM_BEAMS, NUM_DEPTHS, POLAR_COLUMNS, polar_blocks
from steatosis_tf.roi.sector import Fan

FAN = Fan("convex", 300.0, -40.0, -35.0, 35.0, 60.0, 420.0)
SHAPE = (400, 600)


def blocks_of(grey: np.ndarray, fan: Fan = FAN) -> tuple[np.ndarray, np.ndarray]:
    found = polar_blocks(grey, fan)
    assert found.shape == (len(POLAR_COLUMNS),)
    mean, contrast = found.reshape(2, NUM_DEPTHS, NUM_BEAMS)
    return mean, contrast


def test_a_ramp_along_the_beams_depends_on_depth_only():
    depth = FAN.depth_px(SHAPE)
    mean, _ = blocks_of(np.clip(np.rint(200 - 0.4 * depth), 0, 255).astype(np.uint8))
    # Block 0 reaches from 3 % to 8.875 % of 360 px: middle about 21 px, grey 191.5.
    assert mean[0] == pytest.approx(np.full(NUM_BEAMS, 191.5), abs=1.0)
    steps = np.diff(mean, axis=0)
    assert steps == pytest.approx(np.full(steps.shape, -0.4 * 0.94 * 360 / 16), abs=1.0)


def test_one_side_is_one_side():
    angle = FAN.angle_deg(SHAPE)
    mean, contrast = blocks_of(np.where(angle < 0, 50, 150).astype(np.uint8))
    assert mean[8] == pytest.approx([50] * 4 + [150] * 4, abs=2)
    assert contrast[8].max() < 0.1


def test_gain_adds_to_means_and_nothing_outside_the_sector_counts():
    grey = np.random.default_rng(0).integers(40, 120, SHAPE).astype(np.uint8)
    before, _ = blocks_of(grey)
    louder, _ = blocks_of(grey + 20)
    assert louder - before == pytest.approx(np.full(before.shape, 20.0), abs=1e-3)
    painted = np.where(FAN.mask(SHAPE), grey, 255).astype(np.uint8)
    assert np.array_equal(polar_blocks(painted, FAN), polar_blocks(grey, FAN))


def test_a_linear_probe_has_straight_columns():
    fan = Fan("linear", 300.0, -np.inf, 0.0, 0.0, 20.0, 380.0, 100.0, 500.0)
    columns = np.broadcast_to(np.arange(600) / 3, SHAPE).astype(np.uint8)
    mean, _ = blocks_of(columns, fan)
    assert mean[3] == pytest.approx((100 + 400 * (np.arange(8) + 0.5) / 8) / 3, abs=1.5)
