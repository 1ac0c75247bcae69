"""Training pictures of the liver network: their form, painted kidneys, pasted masses."""

import cv2
import numpy as np

from experiments.segmentation.augment import (
    OutlinedCrop,
    paint_kidney,
    paste_mass,
    training_pair,
)


def _donor(radius: int) -> OutlinedCrop:
    """Liver of grey 50 with a mass of grey 150 in it."""
    sector = np.ones((200, 300), np.uint8)
    liver, mass = 0 * sector, 0 * sector
    cv2.circle(liver, (150, 100), 90, 1, cv2.FILLED)
    cv2.circle(mass, (150, 100), radius, 1, cv2.FILLED)
    grey = np.where(mass > 0, 150, np.where(liver > 0, 50, 10)).astype(np.uint8)
    return OutlinedCrop(grey, sector, liver, mass)


def _picture() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    sector = np.zeros((160, 224), np.uint8)
    sector[10:150, 10:214] = 1
    liver = np.zeros((160, 224), np.float32)
    cv2.circle(liver, (112, 80), 60, 1.0, cv2.FILLED)
    return np.where(liver > 0, 40, 5).astype(np.float32) * sector, sector, liver


def test_a_mass_is_three_times_as_bright_as_the_liver_here_too_and_is_liver():
    grey, sector, liver = _picture()
    pasted = 0
    for seed in range(20):
        picture, left = paste_mass(grey, sector, liver, _donor(25), np.random.default_rng(seed))
        assert not picture[sector == 0].any()
        assert (left >= liver).all()
        # At least 85 % of the mass lies in the old liver, so at most 3/17 of that part is new.
        changed = np.abs(picture - grey) > 1
        assert (left > liver).sum() <= 0.3 * changed.sum()
        if changed.any():
            pasted += 1
            # 40 here for 50 there: 150 becomes 120.
            assert abs(picture.max() - 120) < 2
    assert pasted >= 10


def test_a_mass_larger_than_the_liver_is_left_out():
    grey, sector, liver = _picture()
    small = np.zeros_like(liver)
    cv2.circle(small, (112, 80), 8, 1.0, cv2.FILLED)
    picture, left = paste_mass(grey, sector, small, _donor(60), np.random.default_rng(0))
    assert picture is grey
    assert left is small


def _disc() -> OutlinedCrop:
    grey = np.full((180, 240), 30, np.uint8)
    sector = np.zeros((180, 240), np.uint8)
    cv2.rectangle(sector, (20, 20), (220, 160), 1, cv2.FILLED)
    liver = np.zeros_like(sector)
    cv2.circle(liver, (120, 80), 50, 1, cv2.FILLED)
    grey[liver > 0] = 140
    return OutlinedCrop(grey * sector, sector, liver, 0 * liver)


def test_a_training_pair_is_what_the_network_takes_and_repeats_with_its_seed():
    pairs = [training_pair(_disc(), np.random.default_rng(5), kidney_share=1.0) for _ in range(2)]
    crop, target = pairs[0]
    assert crop.shape == (160, 224, 2)
    assert crop.dtype == np.float32
    assert target.shape == (80, 112, 1)
    assert target.dtype == np.float32
    assert target.min() >= 0
    assert target.max() <= 1
    assert not crop[crop[..., 1] == 0].any()
    np.testing.assert_array_equal(crop, pairs[1][0])
    np.testing.assert_array_equal(target, pairs[1][1])


def test_a_painted_kidney_takes_liver_away_and_nothing_behind_it_stays():
    disc = _disc()
    grey, liver = disc.grey.astype(np.float32), disc.liver.astype(np.float32)
    painted = 0
    for seed in range(20):
        _, left = paint_kidney(grey, disc.sector, liver, np.random.default_rng(seed))
        gone = (liver > 0) & (left == 0)
        painted += gone.any()
        assert not (left > liver).any()
        for column in np.nonzero(gone.any(axis=0))[0]:
            first = np.nonzero(gone[:, column])[0][0]
            assert not left[first:, column].any()
    assert painted >= 10
