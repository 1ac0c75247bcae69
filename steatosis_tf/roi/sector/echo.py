"""Tell echo from everything else on the screen, pixel by pixel, on a small copy of a frame."""

import cv2
import numpy as np

# Less than this share of the frame is no sector.
MIN_SECTOR_FRACTION = 0.03
# An echo is this much brighter than the surround, grey levels.
ECHO_STEP = 2.5
# A halo, bar or button is at least this much brighter than the surround.
FLAT_STEP = 12
_HALO_WIDTH = 3.0
# Share of the rim within 3 levels of the halo's grey, and of the inside darker than it; measured
# on the outlined images: 0.22 to 0.93 and 0 with a halo, 0.08 to 0.35 and 0.02 to 0.8 without.
_MIN_HALO_SHARE = 0.22
_MAX_DARKER_SHARE = 0.02
# Speckle changes by more than this between frames of a clip, coding noise by less.
_MOTION_STEP = 3
_MIN_BLOCK_PX = 60


def moving_area(small: list[np.ndarray]) -> np.ndarray | None:
    """Where the frames of a clip differ.

    Args:
        small: `(height, width)` uint8 each, small copies of the frames.

    Returns:
        `(height, width)` uint8, 1 where they differ by more than coding noise; None for a single
        frame.
    """
    if len(small) == 1:
        return None
    change = cv2.subtract(np.max(small, axis=0), np.min(small, axis=0))
    moving = (cv2.blur(change, (5, 5)) >= _MOTION_STEP).astype(np.uint8)
    return cv2.morphologyEx(moving, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))


def bright_areas(small: np.ndarray, moving: np.ndarray | None = None) -> list[np.ndarray]:
    """Pixels brighter than the surround, thin marks and text removed.

    Args:
        small: `(height, width)` uint8, a frame or the median of a clip, about 256 px wide.
        moving: `(height, width)` uint8 0 or 1, as `moving_area` returns it, or None.

    Returns:
        One reading, `(height, width)` uint8 0 or 1, or two where the frame seems to have a halo:
        first without the halo, then with it.

    Raises:
        ValueError: if nothing larger than marks and text stands out.
    """
    edge = np.concatenate([small[0], small[-1], small[:, 0], small[:, -1]])
    floor = float(np.median(edge))
    shown = (small > floor + ECHO_STEP).astype(np.uint8)
    if shown.mean() < MIN_SECTOR_FRACTION:
        raise ValueError(
            "no sector: the frame is blank or nearly so "
            f"({100 * shown.mean():.1f} % of it is brighter than its surround)"
        )
    readings = [shown]
    # A still clip (the same frame again and again) says nothing about what is echo.
    if moving is not None and (moving & shown).sum() > 0.5 * shown.sum():
        readings = [shown & moving]
    else:
        halo = _halo_level(small, shown, floor)
        if halo is not None:
            readings = [(small > halo + _HALO_WIDTH).astype(np.uint8), shown]
    blocks = _solid_blocks(small, floor)
    readings = [cleaned(reading & ~blocks) for reading in readings]
    readings = [reading for reading in readings if reading.mean() >= MIN_SECTOR_FRACTION]
    if not readings:
        raise ValueError("no sector: only thin marks, text or noise stand out from the surround")
    return readings


def cleaned(bright: np.ndarray) -> np.ndarray:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    opened = cv2.morphologyEx(cv2.medianBlur(bright, 3), cv2.MORPH_OPEN, kernel)
    _remove_bars(opened)
    return opened


def _solid_blocks(small: np.ndarray, floor: float) -> np.ndarray:
    """Logos and buttons: areas of one grey level, which no echo has; uint8 0 or 1."""
    window = np.ones((5, 5), np.uint8)
    spread = cv2.subtract(cv2.dilate(small, window), cv2.erode(small, window))
    solid = ((small >= int(floor) + FLAT_STEP) & (small <= 250) & (spread <= 1)).astype(np.uint8)
    blocks = np.zeros_like(small)
    if cv2.countNonZero(solid) < _MIN_BLOCK_PX:  # labelling is the dearest step of all
        return blocks
    _, _, stats, _ = cv2.connectedComponentsWithStats(solid, connectivity=4)
    for left, top, width, height, area in stats[1:].tolist():
        if area >= _MIN_BLOCK_PX and area > 0.7 * width * height:
            # The test window and the resampling each blur the block's rim.
            blocks[max(0, top - 4) : top + height + 4, max(0, left - 4) : left + width + 4] = 1
    return blocks


def _remove_bars(bright: np.ndarray) -> None:
    """Clear slim rectangles that stand apart, as a grey scale does; in place."""
    # Contours take a tenth of the time of labels.
    contours, _ = cv2.findContours(bright, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    for contour in contours:
        left, top, width, height = cv2.boundingRect(contour)
        if max(width, height) <= 4 * min(width, height):
            continue
        drawn = np.zeros((height, width), np.uint8)
        cv2.drawContours(drawn, [contour - (left, top)], 0, 1, cv2.FILLED)
        part = bright[top : top + height, left : left + width]
        if cv2.countNonZero(part & drawn) > 0.75 * width * height:
            part[drawn > 0] = 0


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
    share[: int(floor) + FLAT_STEP] = 0
    peak = int(share.argmax())
    darker = max(
        rim[: peak - 3].sum() / rim.sum() / 5,
        inner[: peak - 3].sum() / inner.sum(),
    )
    is_halo = share[peak] >= _MIN_HALO_SHARE and darker <= _MAX_DARKER_SHARE
    return float(peak) if is_halo else None
