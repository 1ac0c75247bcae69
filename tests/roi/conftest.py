"""Drawn fans for the tests of `roi/`."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest


@pytest.fixture
def drawn_fan() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Draws a fan of speckle on black; returns the frame and its true mask."""
    return _drawn_fan


def _drawn_fan(
    height=480, width=640, apex=(320, -40), radii=(100, 440), angles=(-35.0, 35.0), seed=0
):
    """Frame `(height, width)` uint8 and true mask bool, from the definition of a fan."""
    rows, columns = np.mgrid[:height, :width].astype(float)
    radius = np.hypot(columns - apex[0], rows - apex[1])
    angle = np.degrees(np.arctan2(columns - apex[0], rows - apex[1]))
    mask = (radius >= radii[0]) & (radius <= radii[1])
    mask &= (angle >= angles[0]) & (angle <= angles[1])
    return np.where(mask, speckle(height, width, seed), 0).astype(np.uint8), mask


def speckle(height: int, width: int, seed: int) -> np.ndarray:
    """Even speckle, `(height, width)` float, 1 to 255."""
    noise = 60 * np.random.default_rng(seed).rayleigh(1.0, (height, width))
    return np.clip(cv2.GaussianBlur(noise, (0, 0), 1.5), 1, 255)
