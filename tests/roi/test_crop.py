"""The crop holds the sector's pixels and nothing else."""

import cv2
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

from steatosis_tf.roi.sector import Fan, Sector, find_sector
from steatosis_tf.roi.views import Rectangle, central_rectangle, crop_roi
from steatosis_tf.sources.images import read_frame, to_grey


def test_central_rectangle_lies_in_the_sector_below_the_near_field(drawn_fan):
    frame, _ = drawn_fan()
    sector = find_sector(frame)
    box = central_rectangle(sector)
    assert sector.mask[box.top : box.bottom, box.left : box.right].all()
    # near arc at row 60, far arc at row 400: 15 % of the depth is row 111
    assert box.top >= 105
    assert box.height * box.width > 0.3 * sector.mask.sum()


def test_central_rectangle_is_the_largest_there_is():
    """Every rectangle about the middle is tried, of a fan-like mask with a notch in one side."""
    rows, columns = np.mgrid[:60, :70]
    mask = (rows >= 3) & (abs(columns - 35) <= 8 + rows // 2) & (rows < 58)
    mask[30:34, :24] = False
    best = 0
    for top in range(3 + round(0.15 * 55), 58):
        for height in range(1, 59 - top):
            for width in range(1, 70):
                left = 35 - (width - 1) // 2
                inside = mask[top : top + height, left : left + width].all()
                if inside and max(height, width) <= 1.5 * min(height, width):
                    best = max(best, height * width)
    fan = Fan("convex", 35.0, -10.0, -27.0, 27.0, 13.0, 68.0)  # not looked at
    box = central_rectangle(Sector(mask, fan, score=1.0, border_seen=1.0))
    assert mask[box.top : box.bottom, box.left : box.right].all()
    assert box.height * box.width == best


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


def test_outside_the_sector_tells_nothing_of_the_grade(real_data_dir):
    """What stands outside the sector predicts fat in the frames, and nothing in the crops.

    Burned-in marks alone give an AUC of about 0.6 on these patients; the largest crop there can
    be, the whole frame, must leave a classifier with constant features: 0.5 exactly.
    """
    folder = real_data_dir / "byra2018"
    labels = pd.read_csv(folder / "labels.csv").groupby("patient_id").first()
    outside_pixels, in_crop = [], []
    for path in labels.path:
        frame = to_grey(read_frame(folder / path))
        mask = find_sector(frame).mask
        outside = np.where(mask, 0, frame).astype(np.uint8)
        whole = Rectangle(0, 0, *frame.shape)
        outside_pixels.append(cv2.resize(outside, (40, 28), interpolation=cv2.INTER_AREA).ravel())
        in_crop.append(crop_roi(outside, mask, whole).ravel())
        # Whatever is put there changes nothing, at the sector's rim neither.
        noise = np.random.default_rng(0).integers(0, 256, frame.shape, dtype=np.uint8)
        np.testing.assert_array_equal(
            crop_roi(np.where(mask, frame, noise), mask, whole), crop_roi(frame, mask, whole)
        )
        box = central_rectangle(find_sector(frame))
        assert mask[box.top : box.bottom, box.left : box.right].all()
    assert np.any(outside_pixels)
    is_fatty = (labels.fat_percent >= 5).to_numpy()
    # One part of the patients trains, the other is scored: one at a time would shift the balance
    # of the classes against the one left out.
    scores = np.zeros(len(labels))
    folds = StratifiedKFold(4, shuffle=True, random_state=0)
    for train, test in folds.split(in_crop, is_fatty):
        model = LogisticRegression().fit(np.array(in_crop, float)[train], is_fatty[train])
        scores[test] = np.array(in_crop, float)[test] @ model.coef_[0]
    assert roc_auc_score(is_fatty, scores) == 0.5
