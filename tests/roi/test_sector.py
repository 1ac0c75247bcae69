"""Sectors of drawn fans, of things that are no ultrasound, and of real frames."""

import cv2
import numpy as np
import pytest

from steatosis_tf.roi.sector import find_sector


def dice(first, second):
    return 2 * (first & second).sum() / (first.sum() + second.sum())


def test_finds_a_drawn_fan(drawn_fan):
    frame, truth = drawn_fan()
    assert dice(find_sector(frame).mask, truth) > 0.95


@pytest.mark.parametrize("shape", [(480, 640), (480, 640, 3)])
def test_blank_and_uniform_frames_have_no_sector(shape):
    for level in (0, 90):
        with pytest.raises(ValueError, match="no sector"):
            find_sector(np.full(shape, level, np.uint8))


def test_noise_and_text_have_no_sector():
    noise = np.random.default_rng(0).integers(0, 256, (480, 640), dtype=np.uint8)
    with pytest.raises(ValueError, match="no sector"):
        find_sector(noise)
    text = cv2.putText(np.zeros((480, 640), np.uint8), "HELLO 123", (50, 200), 0, 2, 255, 2)
    with pytest.raises(ValueError, match="no sector"):
        find_sector(text)


def test_wrong_dtype_is_named():
    with pytest.raises(ValueError, match="dtype=float64"):
        find_sector(np.zeros((480, 640)))
