"""Proposals on drawn livers, and on real ones inside the true outlines."""

import json

import cv2
import numpy as np
import pytest

from steatosis_tf.roi.propose import MIN_QUALITY, propose_rectangle
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.sources.images import read_frame


def part_of(mask, box):
    return mask[box.top : box.bottom, box.left : box.right]


def disc(shape, centre, radii):
    return cv2.ellipse(np.zeros(shape, np.uint8), centre, radii, 0, 0, 360, 1, -1) > 0


@pytest.fixture
def drawn(drawn_fan):
    """A fan of even speckle with a round liver: frame, sector, liver mask."""
    frame, _ = drawn_fan()
    liver = disc(frame.shape, (300, 230), (150, 120))
    return frame, find_sector(frame), liver


def test_lies_well_inside_the_liver_below_the_near_field(drawn):
    frame, sector, liver = drawn
    proposal = propose_rectangle(frame, sector, liver)
    assert proposal.reason == ""
    assert MIN_QUALITY <= proposal.quality <= 1
    box = proposal.rectangle
    inner = cv2.erode(liver.astype(np.uint8), np.ones((13, 13))) > 0
    assert part_of(inner, box).all()
    assert part_of(sector.fan.depth_px(frame.shape), box).min() > 0.1 * 340
    # The largest square inside the ellipse has a quarter of the box around it.
    assert box.height * box.width > 0.15 * liver.sum()


@pytest.mark.parametrize(
    ("level", "what"), [(2, "gall bladder"), (255, "saturation"), (25, "shadow")]
)
def test_keeps_off_what_is_not_parenchyma(drawn, level, what):
    frame, sector, liver = drawn
    spoiled = disc(frame.shape, (360, 230), (50, 60))
    frame[spoiled] = level
    box = propose_rectangle(frame, sector, liver).rectangle
    assert part_of(spoiled, box).mean() < 0.03, what


def test_keeps_off_overlays(drawn):
    frame, sector, liver = drawn
    free = propose_rectangle(frame, sector, liver).rectangle
    marks = np.zeros(frame.shape, bool)
    marks[free.top + free.height // 2, free.left : free.right] = True
    box = propose_rectangle(frame, sector, liver, marks).rectangle
    assert not part_of(marks, box).any()


def test_a_mask_of_probabilities_steers_to_where_liver_is_sure(drawn):
    frame, sector, liver = drawn
    probability = np.where(liver, 0.6, 0.0).astype(np.float32)
    sure = disc(frame.shape, (240, 230), (80, 90))
    probability[sure] = 1.0
    box = propose_rectangle(frame, sector, probability).rectangle
    assert part_of(sure, box).mean() > 0.9


def test_a_brightness_that_falls_with_depth_is_no_unevenness(drawn):
    frame, sector, liver = drawn
    fall = np.exp(-sector.fan.depth_px(frame.shape) / 250)
    fallen = (frame * np.clip(1.6 * fall, 0, 1.4)).clip(0, 255).astype(np.uint8)
    even, falling = (propose_rectangle(one, sector, liver).quality for one in (frame, fallen))
    assert falling > 0.85 * even


def test_unable_to_propose_says_why(drawn):
    frame, sector, liver = drawn
    none = propose_rectangle(frame, sector, np.zeros_like(liver))
    assert (none.rectangle, none.quality) == (None, 0.0)
    assert none.reason == "no liver found (0.0 % of the sector)"
    thin = np.zeros_like(liver)
    thin[220:232, 150:460] = True
    assert "too small" in propose_rectangle(frame, sector, thin & sector.mask).reason
    doubtful = propose_rectangle(frame, sector, np.where(liver, 0.55, 0).astype(np.float32))
    assert doubtful.rectangle is None
    assert doubtful.quality < MIN_QUALITY
    assert doubtful.reason == "best rectangle is doubtful: may not be liver"


def test_true_outlines_of_many_scanners(real_data_dir):
    """Every image with a drawn liver gets a box inside it."""
    inside, shares = [], []
    for path in sorted((real_data_dir / "aul" / "polygons").glob("*.json"))[::12]:
        polygons = json.loads(path.read_text())
        if not polygons.get("liver"):
            continue
        frame = read_frame(real_data_dir / "aul" / "images" / f"{path.stem}.jpg")
        outline = np.round(polygons["liver"]).astype(np.int32)
        liver = cv2.fillPoly(np.zeros(frame.shape[:2], np.uint8), [outline], 1) > 0
        sector = find_sector(frame)
        box = propose_rectangle(frame, sector, liver).rectangle
        if box is not None:
            inside.append(part_of(liver, box).mean())
            shares.append(box.height * box.width / sector.mask.sum())
    assert len(inside) > 40
    assert min(inside) > 0.98
    assert np.median(shares) > 0.05
