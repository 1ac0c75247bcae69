"""The crop holds the sector's pixels and nothing else."""

import numpy as np
import pytest

from steatosis_tf.roi.crop import Rectangle, central_rectangle, crop_roi
from steatosis_tf.roi.sector import find_sector


def test_central_rectangle_lies_in_the_sector_below_the_near_field(drawn_fan):
    frame, _ = drawn_fan()
    sector = find_sector(frame)
    box = central_rectangle(sector)
    assert sector.mask[box.top : box.bottom, box.left : box.right].all()
    # near arc at row 60, far arc at row 400: 15 % of the depth is row 111
    assert box.top >= 105
    assert box.height * box.width > 0.3 * sector.mask.sum()


def test_crop_averages_areas():
    frame = np.array([[0, 100, 7, 7], [100, 200, 7, 7], [9, 9, 50, 50], [9, 9, 50, 50]], np.uint8)
    roi = crop_roi(frame, np.ones((4, 4), bool), Rectangle(0, 0, 4, 4), size_px=2)
    np.testing.assert_array_equal(roi, [[100, 7], [9, 50]])


def test_nothing_outside_the_sector_reaches_the_crop(drawn_fan):
    frame, truth = drawn_fan()
    painted = frame.copy()
    painted[~truth] = np.random.default_rng(1).integers(0, 256, (~truth).sum())
    box = Rectangle(0, 0, 480, 640)
    np.testing.assert_array_equal(crop_roi(frame, truth, box), crop_roi(painted, truth, box))


def test_colour_frames_are_turned_grey(drawn_fan):
    frame, truth = drawn_fan()
    box = Rectangle(100, 200, 224, 224)
    colour = np.stack([frame] * 3, axis=-1)
    np.testing.assert_array_equal(crop_roi(colour, truth, box), crop_roi(frame, truth, box))


def test_faulty_rectangles_are_refused(drawn_fan):
    frame, truth = drawn_fan()
    with pytest.raises(ValueError, match="inside the frame of 480 x 640"):
        crop_roi(frame, truth, Rectangle(400, 0, 100, 100))
    with pytest.raises(ValueError, match="no pixel of the rectangle is in the sector"):
        crop_roi(frame, truth, Rectangle(0, 0, 20, 20))
    with pytest.raises(ValueError, match="height=0"):
        Rectangle(0, 0, 0, 10)
    with pytest.raises(ValueError, match="of the frame's size"):
        crop_roi(frame, truth[:100], Rectangle(0, 0, 20, 20))
