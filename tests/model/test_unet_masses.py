"""Pasting a mass: liver stays liver, brightness follows the liver around it."""

import cv2
import numpy as np

from steatosis_tf.model.outlined_crop import OutlinedCrop
from steatosis_tf.model.unet_masses import paste_mass


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
