"""Find what a scanner drew over the echo: calipers, lines, text, body marks, colour.

A drawn stroke differs from an echo in three ways: it has a colour, or it rises from its
neighbourhood within one or two px where the beam would blur it, or it keeps one grey level along
a line where an echo would speckle.
"""

import cv2
import numpy as np

from steatosis_tf.roi.sector import Sector
from steatosis_tf.sources.folder import to_grey

# Grey levels by which a coloured pixel's channels differ beyond the frame's own tint.
_COLOUR_STEP = 48
# A stroke's core stands out by the first, the rest of it by the second (grey levels).
_STROKE_CORE, _STROKE_BODY = 120, 60
_STROKE_LEVEL = 170
_MIN_STROKE_PX = 6
# Over-sharpened speckle has specks of core far apart.
_MIN_CORE_SHARE = 0.09
# A ruled line of one grey level: least length in px at 600 rows, flatness and contrast in levels.
_LINE_PX = 25
_LINE_FLATNESS = 3
_LINE_CONTRAST = 12
_LINE_LEVEL = 40
# A run of one level this bright is an echo at the end of the grey scale.
_CLIPPED = 245


def find_overlays(frame: np.ndarray, sector: Sector) -> np.ndarray:
    """Find drawn marks inside the sector.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8.
        sector: the sector of that frame.

    Returns:
        `(height, width)` bool, True on marks and one px around them; False outside the sector.
        Its mean over the sector is the fraction to report (`overlay_fraction`).

    Raises:
        ValueError: if the frame and the sector's mask differ in size.
    """
    if frame.shape[:2] != sector.mask.shape:
        raise ValueError(
            f"expected a frame of the sector's size {sector.mask.shape}. "
            f"Received: shape={frame.shape}"
        )
    top, left, height, width = _bounds(sector.mask)
    window = (slice(top, top + height), slice(left, left + width))
    part = np.ascontiguousarray(frame[window])
    inside = sector.mask[window].astype(np.uint8)
    grey = to_grey(part)
    marks = _strokes(grey) | _ruled_lines(grey, scale=frame.shape[0] / 600)
    if part.ndim == 3:
        marks |= _coloured(part, grey, inside)
    # The sector's own border is a sharp edge too.
    core = cv2.erode(inside, np.ones((5, 5), np.uint8), borderValue=0)
    found = np.zeros(frame.shape[:2], bool)
    found[window] = (cv2.dilate(marks * core, np.ones((3, 3), np.uint8)) * inside).astype(bool)
    return found


def overlay_fraction(overlay_mask: np.ndarray, sector: Sector) -> float:
    """Share of the sector's pixels that are marks, 0 to 1."""
    return float(overlay_mask[sector.mask].mean())


def _bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return top, left, height, width


def _strokes(grey: np.ndarray) -> np.ndarray:
    """Bright strokes up to four px wide with sharp flanks on both sides; uint8 0 or 1."""
    step = 3
    padded = cv2.copyMakeBorder(grey, step, step, step, step, cv2.BORDER_REPLICATE)
    height, width = grey.shape

    def shifted(down: int, right: int) -> np.ndarray:
        return padded[step + down : step + down + height, step + right : step + right + width]

    rise = np.zeros_like(grey)
    for down, right in ((0, step), (step, 0), (step, step), (step, -step)):
        flank = cv2.max(shifted(down, right), shifted(-down, -right))
        rise = cv2.max(rise, cv2.subtract(grey, flank))
    body = ((rise >= _STROKE_BODY) & (grey >= _STROKE_LEVEL)).astype(np.uint8)
    core = (rise >= _STROKE_CORE) & (grey >= _STROKE_LEVEL)
    if not core.any():
        return np.zeros_like(grey)
    # Dots of a dotted line are one mark.
    joined = cv2.dilate(body, np.ones((5, 5), np.uint8))
    num, labels = cv2.connectedComponents(joined, connectivity=8, ltype=cv2.CV_16U)
    num_core = np.bincount(labels[core], minlength=num)
    size = np.bincount(labels[joined > 0], minlength=num)
    keep = (num_core >= _MIN_STROKE_PX) & (num_core >= _MIN_CORE_SHARE * size)
    keep[0] = False
    strokes = keep.astype(np.uint8)[labels] * body
    # Crossings and corners have no dark flank; they are as bright as the strokes they join.
    filled = cv2.morphologyEx(strokes, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    return filled * (grey >= _STROKE_LEVEL)


def _ruled_lines(grey: np.ndarray, scale: float) -> np.ndarray:
    """Upright and level lines of one grey level, darker on both sides; uint8 0 or 1."""
    found = np.zeros_like(grey)
    length = max(12, round(_LINE_PX * scale))
    for turned in (False, True):
        picture = cv2.transpose(grey) if turned else grey
        line = np.ones((length, 1), np.uint8)
        spread = cv2.subtract(cv2.dilate(picture, line), cv2.erode(picture, line))
        level = cv2.blur(picture, (1, length))
        # The darkest of the five px on the left, and of the five on the right.
        side = np.ones((1, 5), np.uint8)
        flank = cv2.max(
            cv2.erode(level, side, anchor=(4, 0)), cv2.erode(level, side, anchor=(0, 0))
        )
        drawn = (spread <= _LINE_FLATNESS) & (level >= _LINE_LEVEL) & (level < _CLIPPED)
        drawn &= cv2.subtract(level, flank) >= _LINE_CONTRAST
        if drawn.any():
            grown = cv2.dilate(drawn.astype(np.uint8), line)
            found |= cv2.transpose(grown) if turned else grown
    return found


def _coloured(part: np.ndarray, grey: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Pixels with a colour of their own beyond the tint of the whole frame; uint8 0 or 1."""
    red, green, blue = cv2.split(part)
    chroma = cv2.subtract(cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue))
    # Every fourth pixel tells the tint well enough.
    lit = (inside[::4, ::4] > 0) & (grey[::4, ::4] > 40)
    tint = float(np.median(chroma[::4, ::4][lit] / grey[::4, ::4][lit])) if lit.any() else 0.0
    expected = cv2.convertScaleAbs(grey, alpha=tint, beta=_COLOUR_STEP)
    return cv2.medianBlur((chroma > expected).astype(np.uint8), 3)
