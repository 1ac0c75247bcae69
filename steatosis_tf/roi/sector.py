"""Find the echo sector of an ultrasound frame."""

from dataclasses import dataclass

import cv2
import numpy as np

from steatosis_tf.sources.folder import to_grey

# The search runs on a copy whose longer side is this many px: a sector border is known to about
# 1 px of it, which is a quarter of a speckle grain on the full frame.
_WORK_SIDE_PX = 256
_MIN_SECTOR_FRACTION = 0.03
_MAX_SECTOR_FRACTION = 0.97
_MIN_SOLIDITY = 0.7


@dataclass(frozen=True)
class Sector:
    """The echo sector of one frame.

    Attributes:
        mask: `(height, width)` bool, True on echo pixels.
    """

    mask: np.ndarray


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
    grey = to_grey(frame)
    scale = min(1.0, _WORK_SIDE_PX / max(grey.shape))
    small = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    component = _largest_component(_foreground(small))
    hull = cv2.convexHull(
        np.argwhere(component)[:, ::-1].astype(np.int32).reshape(-1, 1, 2)
    ).astype(np.float32)
    if cv2.contourArea(hull) > _MAX_SECTOR_FRACTION * component.size:
        raise ValueError(
            "no sector: the picture fills the frame without a dark surround, "
            "as a photo or noise does"
        )
    if component.sum() < _MIN_SOLIDITY * cv2.contourArea(hull):
        raise ValueError("no sector: the bright area is scattered, not one fan")
    mask = np.zeros(grey.shape, np.uint8)
    cv2.fillConvexPoly(mask, np.round((hull + 0.5) / scale - 0.5).astype(np.int32), 1)
    return Sector(mask=mask.astype(bool))


def _foreground(small: np.ndarray) -> np.ndarray:
    """Pixels brighter than the surround, thin marks and text removed; uint8 0 or 1."""
    border = np.concatenate([small[0], small[-1], small[:, 0], small[:, -1]])
    surround = float(np.median(border))
    smooth = cv2.blur(small, (3, 3))
    bright = (smooth > surround + 4).astype(np.uint8)
    if bright.mean() < _MIN_SECTOR_FRACTION:
        raise ValueError(
            "no sector: the frame is blank or nearly so "
            f"({100 * bright.mean():.1f} % of it is brighter than its surround)"
        )
    return cv2.morphologyEx(
        cv2.medianBlur(bright, 5),
        cv2.MORPH_OPEN,
        cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9)),
    )


def _largest_component(bright: np.ndarray) -> np.ndarray:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(bright, connectivity=4)
    if len(stats) < 2:
        raise ValueError("no sector: only thin marks or text stand out from the surround")
    best = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    fraction = stats[best, cv2.CC_STAT_AREA] / bright.size
    if fraction < _MIN_SECTOR_FRACTION:
        raise ValueError(
            f"no sector: the largest bright area is {100 * fraction:.1f} % of the frame"
        )
    return labels == best
