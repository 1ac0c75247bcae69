"""Drawn fans for the tests of `roi/`."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest


@pytest.fixture
def drawn_fan() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Draws a fan of speckle on black; returns the frame and its true mask."""
    return _drawn_fan


def _drawn_fan(height=480, width=640, apex=(320, -40), radii=(100, 440), half_angle=35.0, seed=0):
    """Frame `(height, width)` uint8 and true mask bool, from the definition of a fan."""
    rows, columns = np.mgrid[:height, :width].astype(float)
    radius = np.hypot(columns - apex[0], rows - apex[1])
    angle = np.degrees(np.arctan2(columns - apex[0], rows - apex[1]))
    mask = (radius >= radii[0]) & (radius <= radii[1]) & (np.abs(angle) <= half_angle)
    speckle = 60 * np.random.default_rng(seed).rayleigh(1.0, (height, width))
    echo = np.clip(cv2.GaussianBlur(speckle, (0, 0), 1.5), 1, 255)
    return np.where(mask, echo, 0).astype(np.uint8), mask
