"""The kidney-cortex finder: where a hand-made answer leads, when it declines, and real frames."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from steatosis_tf.roi.anatomy.kidney import BOX_SHARE, MIN_QUALITY, best_patch, find_kidney_cortex
from steatosis_tf.roi.anatomy.liver import Placement, liver_mask
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.roi.views import Rectangle
from steatosis_tf.sources.images import read_frame


@dataclass(frozen=True)
class DrawnSector:
    """A sector given by hand: the finder needs nothing of it but the mask."""

    mask: np.ndarray


# A sector of 320 x 448 px at (100, 50) of the frame fills the input at half its size.
WHOLE = Placement(100, 50, 320, 448, 0, 0, 160, 224)
EVERYWHERE = np.ones((160, 224), np.float32)
NOWHERE = np.zeros((160, 224), np.float32)


def _peak(row: int, column: int, height: float = 20.0) -> np.ndarray:
    logit = np.zeros((40, 56), np.float32)
    logit[row, column] = height
    return logit


def test_a_sure_answer_becomes_a_box_around_that_cell():
    finding = best_patch(_peak(20, 30), EVERYWHERE, NOWHERE, WHOLE)
    # Cell (20, 30) of 4 input px is centred at (82, 122) of the input, so at (164, 244) of the
    # sector and (264, 294) of the frame; the side is 0.075 * 320 = 24 px.
    assert BOX_SHARE * 320 == 24
    box = finding.box
    assert box is not None
    assert (box.height, box.width) == (24, 24)
    assert box.top + 12 == pytest.approx(264, abs=12)
    assert box.left + 12 == pytest.approx(294, abs=12)
    assert finding.quality > 0.9
    assert finding.reason == ""


def test_an_answer_that_points_everywhere_is_no_finding():
    finding = best_patch(np.zeros((40, 56), np.float32), EVERYWHERE, NOWHERE, WHOLE)
    # Three sides of 12 input px, squared, of 160 * 224: 36 * 36 / 35840.
    assert finding.box is None
    assert finding.quality == pytest.approx(36 * 36 / 35840, rel=0.05)
    assert "no kidney seen (quality 0.04" in finding.reason


def test_liver_is_never_taken_for_cortex():
    liver = NOWHERE.copy()
    liver[60:110, 90:150] = 1
    finding = best_patch(_peak(20, 30) + _peak(30, 30, 18.0), EVERYWHERE, liver, WHOLE)
    if finding.box is not None:
        top, left = (finding.box.top - 100) // 2, (finding.box.left - 50) // 2
        assert liver[top : top + 12, left : left + 12].mean() <= 0.25
        assert top >= 100
    else:
        assert finding.quality < MIN_QUALITY


def test_no_room_outside_the_liver_is_said():
    finding = best_patch(_peak(20, 30), EVERYWHERE, EVERYWHERE, WHOLE)
    assert finding.box is None
    assert finding.reason == "no room for a patch of cortex outside the liver"


def test_a_liver_mask_of_another_size_is_refused():
    sector = DrawnSector(np.ones((100, 120), bool))
    with pytest.raises(ValueError, match=r"liver mask of the frame's size.*\(9, 9\).*\(100, 120\)"):
        find_kidney_cortex(np.zeros((100, 120), np.uint8), sector, np.zeros((9, 9), bool))


def test_on_real_frames_a_patch_lies_in_the_sector_by_an_operators_box(real_data_dir):
    """One frame of each of 15 patients. The shipped head was trained on these patients, so this
    holds the wiring, not the accuracy; docs/roi.md has the figures out-of-fold by patient."""
    boxes = pd.read_csv(real_data_dir / "byra2018" / "operator_boxes_28px.csv").dropna()
    paths = sorted(path for path in boxes["path"].unique() if path.endswith("_F00.png"))[::3]
    near = []
    for path in paths:
        frame = read_frame(real_data_dir / "byra2018" / path)
        sector = find_sector(frame)
        liver = liver_mask(frame, sector)
        finding = find_kidney_cortex(frame, sector, liver)
        if finding.box is None:
            continue
        box: Rectangle = finding.box
        inside = np.s_[box.top : box.bottom, box.left : box.right]
        assert sector.mask[inside].mean() > 0.95
        assert liver[inside].mean() < 0.3
        drawn = boxes[boxes["path"] == path]
        apart = np.hypot(
            drawn["kidney_x"] + 14 - (box.left + box.width / 2),
            drawn["kidney_y"] + 14 - (box.top + box.height / 2),
        )
        near.append(apart.min() < 28)
    assert len(near) >= 0.6 * len(paths)
    assert np.mean(near) >= 0.8


def test_a_view_without_a_kidney_is_told(real_data_dir):
    """Frames cut off above the kidney; gall bladders that lie where a kidney could, which the place
    alone was sure of (quality 0.85 to 0.95); and a kidney on a scanner no head was fitted to."""
    folder = real_data_dir / "byra2018"
    boxes = pd.read_csv(folder / "operator_boxes_28px.csv").dropna().groupby("path")["kidney_y"]
    num_cut = 0
    for path, top in boxes.min().iloc[::10].items():
        frame = read_frame(folder / path)
        sector = find_sector(frame)
        kept = sector.mask.copy()
        kept[int(top) - 25 :] = False
        if kept.sum() > 0.35 * sector.mask.sum():
            cut = DrawnSector(kept)
            finding = find_kidney_cortex(frame, cut, liver_mask(frame, cut))
            assert finding.box is None
            assert finding.reason != ""
            num_cut += 1
    assert num_cut >= 5
    for name, reason in (("normal_061", "likeness"), ("benign_113", "likeness"),
                         ("malignant_153", "")):  # fmt: skip
        frame = read_frame(real_data_dir / "aul" / "images" / f"{name}.jpg")
        sector = find_sector(frame)
        finding = find_kidney_cortex(frame, sector, liver_mask(frame, sector))
        assert reason in finding.reason
        assert (finding.box is None) == bool(reason)
