"""Find the echo sector of an ultrasound frame."""

from dataclasses import dataclass

import cv2
import numpy as np

from steatosis_tf.roi.fan_fit import fit_fan
from steatosis_tf.roi.geometry import Fan
from steatosis_tf.sources.folder import to_grey

# The search runs on a copy whose longer side is this many px: a border known to half a px of it
# is known to two px of a 1024 px frame, less than the hand-drawn outlines scatter.
_WORK_SIDE_PX = 256
_MIN_SECTOR_FRACTION = 0.03
_MAX_SECTOR_FRACTION = 0.97
_MIN_SCORE = 0.4
# An echo is this much brighter than the surround, grey levels.
_ECHO_STEP = 2.5
_HALO_WIDTH = 3.0
_MIN_HALO_STEP = 12
_MIN_HALO_SHARE = 0.3


@dataclass(frozen=True)
class Sector:
    """The echo sector of one frame.

    Attributes:
        mask: `(height, width)` bool, True on echo pixels.
        fan: the fitted geometry, in px of the frame.
        score: how well the fan divides bright from dark, in nats per pixel of the fan (at most
            3.6); low means much shadow or a doubtful fit.
    """

    mask: np.ndarray
    fan: Fan
    score: float


def find_sector(frame: np.ndarray) -> Sector:
    """Find the echo sector.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8.

    Returns:
        The sector, its mask as large as the frame.

    Raises:
        ValueError: if the frame holds no sector; the text says what was seen instead.
    """
    if frame.dtype != np.uint8 or frame.ndim not in (2, 3):
        raise ValueError(
            "expected a frame (height, width) or (height, width, 3) of uint8. "
            f"Received: shape={frame.shape} dtype={frame.dtype}"
        )
    scale = min(1.0, _WORK_SIDE_PX / max(frame.shape[:2]))
    small = cv2.resize(to_grey(frame), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    bright = _bright_area(small)
    fan, score = fit_fan(bright)
    if score < _MIN_SCORE:
        raise ValueError("no sector: the bright area is scattered, not one fan")
    mask_small = fan.mask(small.shape)
    if mask_small.mean() < _MIN_SECTOR_FRACTION:
        raise ValueError("no sector: what stands out is smaller than 3 % of the frame")
    if mask_small.mean() > _MAX_SECTOR_FRACTION:
        raise ValueError(
            "no sector: the picture fills the frame without a dark surround, "
            "as a photo or noise does"
        )
    fan = fan.scaled(1 / scale)
    return Sector(mask=fan.mask(frame.shape[:2]), fan=fan, score=score)


def _bright_area(small: np.ndarray) -> np.ndarray:
    """Pixels brighter than the surround, thin marks and text removed; uint8 0 or 1."""
    edge = np.concatenate([small[0], small[-1], small[:, 0], small[:, -1]])
    floor = float(np.median(edge))
    shown = (small > floor + _ECHO_STEP).astype(np.uint8)
    if shown.mean() < _MIN_SECTOR_FRACTION:
        raise ValueError(
            "no sector: the frame is blank or nearly so "
            f"({100 * shown.mean():.1f} % of it is brighter than its surround)"
        )
    halo = _halo_level(small, shown, floor)
    if halo is not None:
        shown = (small > halo + _HALO_WIDTH).astype(np.uint8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    opened = cv2.morphologyEx(cv2.medianBlur(shown, 3), cv2.MORPH_OPEN, kernel)
    if opened.mean() < _MIN_SECTOR_FRACTION:
        raise ValueError("no sector: only thin marks, text or noise stand out from the surround")
    return opened


def _halo_level(small: np.ndarray, shown: np.ndarray, floor: float) -> float | None:
    """Grey level of a flat halo around the sector, or None.

    Frames that were cut out of a screenshot keep a rim of the screen's own dark grey.
    """
    cross = np.ones((3, 3), np.uint8)
    solid = cv2.morphologyEx(shown, cv2.MORPH_CLOSE, cross, iterations=2)
    solid = cv2.morphologyEx(solid, cv2.MORPH_OPEN, cross, iterations=3)
    rim = cv2.erode(solid, cross, iterations=1) - cv2.erode(solid, cross, iterations=3)
    levels = np.bincount(small[rim > 0], minlength=256).astype(float)
    if levels.sum() == 0:
        return None
    share = np.convolve(levels, np.ones(7), mode="same") / levels.sum()
    share[: int(floor) + _MIN_HALO_STEP] = 0
    peak = int(share.argmax())
    return float(peak) if share[peak] >= _MIN_HALO_SHARE else None
