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
_MIN_HALO_SHARE = 0.22
_MAX_DARKER_SHARE = 0.02
# Speckle changes by more than this between frames of a clip, coding noise by less.
_MOTION_STEP = 3


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
    """Find the echo sector of a frame, or of a clip whose frames share one.

    In a clip, what never moves is not echo: logos, bars and halos that touch the sector are told
    from it, and shadows that wander do not hide its border.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, or several frames of one clip,
            `(num_frames, height, width)` or `(num_frames, height, width, 3)`; uint8.

    Returns:
        The sector, its mask as large as one frame.

    Raises:
        ValueError: if the frame holds no sector; the text says what was seen instead.
    """
    frames = _as_frames(frame)
    height, width = frames[0].shape[:2]
    scale = min(1.0, _WORK_SIDE_PX / max(height, width))
    small = [
        cv2.resize(to_grey(one), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        for one in frames
    ]
    bright = _bright_area(np.max(small, axis=0), _moving_area(small))
    fan, score = fit_fan(bright)
    _check(fan, score, bright.shape)
    fan = fan.scaled(1 / scale)
    return Sector(mask=fan.mask((height, width)), fan=fan, score=score)


def _as_frames(frame: np.ndarray) -> list[np.ndarray]:
    is_frame = frame.ndim == 2 or (frame.ndim == 3 and frame.shape[2] == 3)
    is_clip = (frame.ndim == 3 and not is_frame) or (frame.ndim == 4 and frame.shape[3] == 3)
    if frame.dtype != np.uint8 or not (is_frame or is_clip) or 0 in frame.shape:
        raise ValueError(
            "expected a frame (height, width) or (height, width, 3), or a clip of such frames, "
            f"uint8. Received: shape={frame.shape} dtype={frame.dtype}"
        )
    return [frame] if is_frame else list(frame)


def _check(fan: Fan, score: float, shape: tuple[int, int]) -> None:
    fraction = fan.mask(shape).mean()
    if fraction > _MAX_SECTOR_FRACTION:
        raise ValueError(
            "no sector: the picture fills the frame without a dark surround, "
            "as a photo or noise does"
        )
    if score < _MIN_SCORE:
        raise ValueError("no sector: the bright area is scattered, not one fan")
    if fraction < _MIN_SECTOR_FRACTION:
        raise ValueError("no sector: what stands out is smaller than 3 % of the frame")


def _moving_area(small: list[np.ndarray]) -> np.ndarray | None:
    """Where the frames of a clip differ; uint8 0 or 1, or None for a single frame."""
    if len(small) == 1:
        return None
    change = cv2.subtract(np.max(small, axis=0), np.min(small, axis=0))
    moving = (cv2.blur(change, (5, 5)) >= _MOTION_STEP).astype(np.uint8)
    return cv2.morphologyEx(moving, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))


def _bright_area(small: np.ndarray, moving: np.ndarray | None = None) -> np.ndarray:
    """Pixels brighter than the surround, thin marks and text removed; uint8 0 or 1."""
    edge = np.concatenate([small[0], small[-1], small[:, 0], small[:, -1]])
    floor = float(np.median(edge))
    shown = (small > floor + _ECHO_STEP).astype(np.uint8)
    if shown.mean() < _MIN_SECTOR_FRACTION:
        raise ValueError(
            "no sector: the frame is blank or nearly so "
            f"({100 * shown.mean():.1f} % of it is brighter than its surround)"
        )
    # A still clip (the same frame again and again) says nothing about what is echo.
    if moving is not None and (moving & shown).sum() > 0.5 * shown.sum():
        shown &= moving
    else:
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

    Frames that were cut out of a screenshot keep a rim of the screen's own dark grey. Nothing in
    such a frame is darker than that grey, which tells it from a sector of even brightness.
    """
    cross = np.ones((3, 3), np.uint8)
    solid = cv2.morphologyEx(shown, cv2.MORPH_CLOSE, cross, iterations=2)
    solid = cv2.morphologyEx(solid, cv2.MORPH_OPEN, cross, iterations=3)
    rim_outside = cv2.erode(solid, cross)
    rim_inside = cv2.erode(rim_outside, cross, iterations=2)
    rim = cv2.calcHist([small], [0], rim_outside - rim_inside, [256], [0, 256]).ravel()
    inner = cv2.calcHist([small], [0], rim_inside, [256], [0, 256]).ravel()
    if rim.sum() == 0 or inner.sum() == 0:
        return None
    share = np.convolve(rim, np.ones(7), mode="same") / rim.sum()
    share[: int(floor) + _MIN_HALO_STEP] = 0
    peak = int(share.argmax())
    darker = max(
        rim[: peak - 3].sum() / rim.sum() / 5,
        inner[: peak - 3].sum() / inner.sum(),
    )
    is_halo = share[peak] >= _MIN_HALO_SHARE and darker <= _MAX_DARKER_SHARE
    return float(peak) if is_halo else None
