"""From a frame and a rectangle to the square grey picture the model sees."""

from dataclasses import dataclass

import cv2
import numpy as np

from steatosis_tf.roi.sector import Sector
from steatosis_tf.sources.images import to_grey

#: Side of the square picture the model sees.
INPUT_SIZE_PX = 224

# The first echoes are skin, fat and muscle: this share of the sector's depth is left out.
_NEAR_FIELD_FRACTION = 0.15
# A wider rectangle would be squeezed sideways too much when it is made square.
_MAX_ASPECT = 1.5


@dataclass(frozen=True)
class Rectangle:
    """A rectangle in px of the full frame; `top` and `left` are its first row and column.

    Raises:
        ValueError: if a field is negative, or the height or width is not positive.
    """

    top: int
    left: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if min(self.top, self.left) < 0 or min(self.height, self.width) < 1:
            raise ValueError(
                "expected top and left >= 0, height and width >= 1 (px). Received: "
                f"top={self.top} left={self.left} height={self.height} width={self.width}"
            )

    @property
    def bottom(self) -> int:
        """First row below the rectangle."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """First column right of the rectangle."""
        return self.left + self.width


def central_rectangle(sector: Sector) -> Rectangle:
    """The largest rectangle inside the sector that straddles its middle, below the near field.

    Args:
        sector: as `find_sector` returns it.

    Returns:
        A rectangle whose every pixel is in the sector; at most 1.5 times as wide as high and
        the other way round.

    Raises:
        ValueError: if the sector is too small to hold a rectangle of 16 x 16 px.
    """
    mask = sector.mask
    rows = np.flatnonzero(mask.any(axis=1))
    middle = round(float(np.flatnonzero(mask.any(axis=0)).mean()))
    start = rows[0] + round(_NEAR_FIELD_FRACTION * len(rows))
    step = max(1, len(rows) // 128)
    half = _half_widths(mask[start : rows[-1] + 1], middle)
    # One row of each array per top, one column per last row of the rectangle.
    tops = np.arange(0, len(half), step, dtype=np.int32)[:, None]
    heights = np.arange(1, len(half) + 1, dtype=np.int32) - tops
    reach = np.minimum.accumulate(np.where(heights > 0, half, half.max(initial=0)), axis=1)
    widths = np.minimum(2 * reach + 1, (_MAX_ASPECT * heights).astype(np.int32))
    areas = np.where(heights <= _MAX_ASPECT * widths, widths * heights, 0)
    areas[heights < 1] = 0
    at = np.unravel_index(areas.argmax(), areas.shape) if areas.any() else None
    if at is None or min(heights[at], widths[at]) < 16:
        raise ValueError("the sector is too small for a rectangle of 16 x 16 px")
    height, width = int(heights[at]), int(widths[at])
    return Rectangle(int(start + tops[at[0], 0]), middle - (width - 1) // 2, height, width)


def around_sector(sector_mask: np.ndarray) -> Rectangle:
    """The smallest rectangle that holds the whole sector.

    Args:
        sector_mask: `(height, width)` bool, True inside the sector.

    Raises:
        ValueError: if nothing of the sector is in the frame.
    """
    rows = np.flatnonzero(sector_mask.any(axis=1))
    columns = np.flatnonzero(sector_mask.any(axis=0))
    if not len(rows):
        raise ValueError("no sector: its fan lies outside the frame")
    top, left = int(rows[0]), int(columns[0])
    return Rectangle(top, left, int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left)


def _half_widths(mask: np.ndarray, middle: int) -> np.ndarray:
    """How many px the mask reaches to both sides of a column, per row; -1 where it is not set."""
    reach = []
    for side in (mask[:, middle:], mask[:, middle::-1]):
        first_gap = side.argmin(axis=1)
        whole = side[:, 0] & (first_gap == 0)
        reach.append(np.where(whole, side.shape[1], first_gap) - 1)
    return np.minimum(*reach).astype(np.int32)


def crop_roi(
    frame: np.ndarray, sector_mask: np.ndarray, rectangle: Rectangle, size_px: int = INPUT_SIZE_PX
) -> np.ndarray:
    """Cut the rectangle out of the frame, with everything outside the sector set to 0.

    Pixels are zeroed before they are resampled, so no burned-in text, bar or trace from outside
    the sector can reach the result, not even by interpolation.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8, 0 to 255.
        sector_mask: `(height, width)` bool, True inside the sector.
        rectangle: in px of the frame; lies inside the frame.
        size_px: side of the square result.

    Returns:
        `(size_px, size_px)` uint8 grey, 0 to 255.

    Raises:
        ValueError: if the mask's size is not the frame's, the rectangle leaves the frame, or no
            pixel of the rectangle is in the sector.
    """
    if sector_mask.shape != frame.shape[:2] or sector_mask.dtype != np.bool_:
        raise ValueError(
            f"expected a bool sector_mask of the frame's size {frame.shape[:2]}. "
            f"Received: shape={sector_mask.shape} dtype={sector_mask.dtype}"
        )
    height, width = frame.shape[:2]
    if rectangle.bottom > height or rectangle.right > width:
        raise ValueError(
            f"expected a rectangle inside the frame of {height} x {width} px (height x width). "
            f"Received: rectangle={rectangle}. Was it made for another frame size?"
        )
    window = (slice(rectangle.top, rectangle.bottom), slice(rectangle.left, rectangle.right))
    inside = sector_mask[window]
    if not inside.any():
        raise ValueError(f"no pixel of the rectangle is in the sector. Received: {rectangle}")
    grey = to_grey(np.ascontiguousarray(frame[window])) * inside
    return cv2.resize(grey, (size_px, size_px), interpolation=cv2.INTER_AREA)
