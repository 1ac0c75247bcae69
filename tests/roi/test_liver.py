"""The liver outline from the outside: shapes, promises, errors, and real images."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from steatosis_tf.roi.anatomy.liver import liver_mask, liver_probability, network_input, one_piece
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.sources.images import read_frame

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class DrawnSector:
    """A sector given by hand: the network needs nothing of it but the mask."""

    mask: np.ndarray


@pytest.fixture
def fan() -> DrawnSector:
    mask = np.zeros((300, 420), np.uint8)
    cv2.fillPoly(mask, [np.array([[160, 20], [260, 20], [400, 230], [210, 285], [20, 230]])], 1)
    return DrawnSector(mask > 0)


@pytest.fixture
def speckled(fan: DrawnSector) -> np.ndarray:
    random = np.random.default_rng(7)
    noise = cv2.GaussianBlur(random.integers(0, 255, (300, 420), dtype=np.uint8), (5, 5), 0)
    return noise * fan.mask.astype(np.uint8)


def test_probability_has_the_frames_size_and_is_zero_outside_the_sector(speckled, fan):
    probability = liver_probability(speckled, fan)
    assert probability.shape == (300, 420)
    assert probability.dtype == np.float32
    assert probability.min() >= 0
    assert probability.max() <= 1
    assert not probability[~fan.mask].any()
    assert probability[fan.mask].min() > 0  # a sigmoid is never 0: the whole sector was judged


def test_pixels_outside_the_sector_change_nothing(speckled, fan):
    drawn_over = speckled.copy()
    drawn_over[~fan.mask] = 255
    np.testing.assert_array_equal(
        liver_probability(drawn_over, fan), liver_probability(speckled, fan)
    )


def test_gain_changes_little_and_colour_channels_nothing(speckled, fan):
    half = speckled // 2
    grey = liver_probability(speckled, fan)
    np.testing.assert_allclose(liver_probability(half, fan), grey, atol=0.1)
    colour = np.repeat(speckled[..., np.newaxis], 3, axis=2)
    np.testing.assert_allclose(liver_probability(colour, fan), grey, atol=1e-5)


def test_moving_the_sector_in_the_frame_moves_the_answer(speckled, fan):
    frame = cv2.copyMakeBorder(speckled, 50, 10, 70, 30, cv2.BORDER_CONSTANT)
    mask = cv2.copyMakeBorder(fan.mask.astype(np.uint8), 50, 10, 70, 30, cv2.BORDER_CONSTANT)
    moved = liver_probability(frame, DrawnSector(mask > 0))
    np.testing.assert_array_equal(moved[50:350, 70:490], liver_probability(speckled, fan))


def test_network_input_keeps_the_aspect_ratio_and_centres(fan):
    # Bounding box 381 x 266 px; 224 / 381 is the smaller scale, so 156 rows of 160 are used.
    crop, placement = network_input(np.full((300, 420), 90, np.uint8), fan.mask)
    assert crop.shape == (160, 224, 2)
    assert (placement.top, placement.left) == (20, 20)
    assert (placement.height, placement.width) == (266, 381)
    assert (placement.input_height, placement.input_width) == (156, 224)
    assert (placement.input_top, placement.input_left) == (2, 0)
    assert not crop[:2].any()
    assert not crop[158:].any()
    assert set(np.unique(crop[..., 1])) == {0.0, 1.0}


def test_a_sector_of_one_pixel_and_a_black_frame_are_answered(fan):
    dot = np.zeros((300, 420), bool)
    dot[150, 200] = True
    assert np.isfinite(liver_probability(np.zeros((300, 420), np.uint8), DrawnSector(dot))).all()
    assert liver_mask(np.zeros((300, 420), np.uint8), fan).shape == (300, 420)


def test_one_piece_keeps_the_largest_part_and_fills_its_holes():
    mask = np.zeros((12, 12), bool)
    mask[1:8, 1:8] = True
    mask[3:5, 3:5] = False
    mask[10, 10] = True
    expected = np.zeros((12, 12), bool)
    expected[1:8, 1:8] = True
    np.testing.assert_array_equal(one_piece(mask), expected)
    assert not one_piece(np.zeros((4, 4), bool)).any()


def test_a_sector_of_another_size_is_refused(speckled):
    with pytest.raises(ValueError, match=r"sector of the frame's size.*\(5, 5\).*\(300, 420\)"):
        liver_probability(speckled, DrawnSector(np.ones((5, 5), bool)))


def test_an_empty_sector_is_refused(speckled):
    with pytest.raises(ValueError, match=r"at least one pixel.*find_sector"):
        liver_probability(speckled, DrawnSector(np.zeros((300, 420), bool)))


@pytest.mark.parametrize("threshold", [0, 1, float("nan")])
def test_a_threshold_that_is_none_is_refused(speckled, fan, threshold):
    with pytest.raises(ValueError, match=r"above 0 and below 1. Received: threshold="):
        liver_mask(speckled, fan, threshold=threshold)


def test_outlining_imports_no_tensorflow():
    code = "import sys, steatosis_tf.roi.anatomy.liver; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


def test_the_network_ships_small_with_a_card_that_names_its_source():
    network = REPOSITORY / "steatosis_tf" / "roi" / "anatomy" / "liver_unet.onnx"
    assert network.stat().st_size <= 5_000_000
    card = network.with_name("liver_unet_card.md").read_text()
    assert "CC BY 4.0" in card
    assert "10.5281/zenodo.7272660" in card


def test_operators_liver_boxes_lie_in_the_mask_and_kidney_boxes_do_not(real_data_dir):
    """One frame of every second patient of byra2018; the network has seen none of them."""
    folder = real_data_dir / "byra2018"
    boxes = pd.read_csv(folder / "operator_boxes_28px.csv", dtype={"path": str}).dropna()
    shares = []
    for path, placed in list(boxes.groupby("path"))[::20]:
        frame = read_frame(folder / str(path))
        mask = liver_mask(frame, find_sector(frame))
        for box in placed.itertuples():
            corners = ((box.liver_y, box.liver_x), (box.kidney_y, box.kidney_x))
            shares.append([mask[int(top) :, int(left) :][:28, :28].mean() for top, left in corners])
    liver, kidney = np.mean(shares, axis=0)
    assert liver >= 0.97
    assert kidney <= 0.2
