"""What a model sees of a frame: a rectangle of it, or beam space.

Beam space is the sector resampled along its beams: rows are depths and columns are beams. A scanner
draws the echoes of parallel or spreading beams as a sector on the screen. Beam space takes that
back: a place in it is the same proportion of the depth and the same beam in every frame of every
probe, the speckle is as fine on the left as in the middle, and no pixel is wasted on the dark
surround.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from steatosis_tf.roi.anatomy.overlays import paint_out
from steatosis_tf.roi.sector import Fan, Sector
from steatosis_tf.sources.images import to_grey

#: Column of the manifest: "" where the model sees the rectangle, "beamspace 384 x 320" and so on
#: where it sees beam space of that many rows and columns.
VIEW_COLUMN = "roi_view"
#: Raised whenever the same frame, sector and rectangle give a model other pixels than before, so
#: that nothing kept from then is used again. 2: marks inside the sector are painted out.
VIEW_VERSION = 2
#: Rows and columns of beam space where nothing else is asked for.
DEPTH_PX, NUM_BEAMS = 384, 320
# Off the skin line and the far arc, as proportions of the depth.
_NEAREST, _FARTHEST = 0.02, 0.98
# Off the side lines: degrees for spreading beams, a proportion of the width for parallel ones.
_OFF_SIDES_DEG, _OFF_SIDES = 1.0, 0.02
# A frame that is this much finer than beam space is shrunk first; its speckle would alias else.
_FINER = 1.5
# A map is 0.7 MB, and the frames of a patient share one or a few.
_MAPS_KEPT = 16

#: Side of the square picture the model sees.
INPUT_SIZE_PX = 224
# The first echoes are skin, fat and muscle: this proportion of the sector's depth is left out.
_NEAR_FIELD_FRACTION = 0.15


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
    # One column of each array per top, one row per last row of the rectangle.
    tops = np.arange(0, len(half), step, dtype=np.int16)
    heights = np.arange(1, len(half) + 1, dtype=np.int16)[:, None] - tops
    is_below = heights > 0
    reach = np.minimum.accumulate(np.where(is_below, half[:, None], half.max(initial=0)), axis=0)
    # A wider rectangle than 1.5 would be squeezed sideways too much when it is made square.
    widths = np.minimum(2 * reach + 1, heights + heights // 2)
    fits = is_below & (heights <= widths + widths // 2)
    areas = np.multiply(widths, heights, dtype=np.int32) * fits
    at = areas.max(axis=0).argmax()
    last = areas[:, at].argmax()
    height, width = int(heights[last, at]), int(widths[last, at])
    if min(height, width) < 16:
        raise ValueError("the sector is too small for a rectangle of 16 x 16 px")
    return Rectangle(int(start + tops[at]), middle - (width - 1) // 2, height, width)


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
    return np.minimum(*reach).astype(np.int16)


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
        ValueError: if the rectangle leaves the frame, or no pixel of it is in the sector.
    """
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


def input_shape(view: str) -> tuple[int, int]:
    """Height and width in px of what a model sees.

    Args:
        view: as `VIEW_COLUMN` has it.

    Raises:
        ValueError: if the text is none of ours.

    Example:
        >>> input_shape(""), input_shape("beamspace 384 x 320")
        ((224, 224), (384, 320))
    """
    if view == "":
        return INPUT_SIZE_PX, INPUT_SIZE_PX
    found = re.fullmatch(r"beamspace (\d+) x (\d+)", view)
    if found is None:
        raise ValueError(
            f'expected {VIEW_COLUMN} as `steatosis roi` wrote it, "" or "beamspace 384 x 320". '
            f"Received: {view!r}. Run `steatosis roi MANIFEST_CSV --again`"
        )
    return int(found[1]), int(found[2])


def model_input(
    frame: np.ndarray,
    fan: Fan,
    rectangle: Rectangle | None = None,
    view: str = "",
    overlay_mask: np.ndarray | None = None,
) -> np.ndarray:
    """What the model sees of a frame, with marks drawn inside the sector painted out.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8, 0 to 255.
        fan: of the frame's sector.
        rectangle: the ROI in px of the frame; beam space needs none.
        view: as `VIEW_COLUMN` has it; `RoiConfig.view` of a config.
        overlay_mask: what `find_overlays` gave; None finds the marks.

    Returns:
        `input_shape(view)` uint8 grey, 0 to 255; 0 outside the sector.

    Raises:
        ValueError: as `crop_roi`, `beam_space` and `input_shape`, or if a rectangle is needed and
            there is none.
    """
    depth_px, num_beams = input_shape(view)
    mask = _mask(fan, frame.shape[:2]).view(bool)
    grey = paint_out(frame, mask, overlay_mask)
    if view:
        return beam_space(grey, fan, depth_px, num_beams)
    if rectangle is None:
        raise ValueError("expected a rectangle to cut the ROI from the frame. Received: none")
    return crop_roi(grey, mask, rectangle)


def beam_space(
    frame: np.ndarray, fan: Fan, depth_px: int = DEPTH_PX, num_beams: int = NUM_BEAMS
) -> np.ndarray:
    """Resample the sector of a frame along its beams.

    Rows run from 2 to 98 % of the depth, columns from 1 degree inside the leftmost beam to 1
    degree inside the rightmost (2 % of the width for a linear probe). Pixels outside the sector
    are set to 0 before anything is resampled, so none of them reaches the result.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8, 0 to 255.
        fan: of the frame's sector, as `find_sector(frame).fan` or the manifest has it.
        depth_px: rows of the result.
        num_beams: columns of the result.

    Returns:
        `(depth_px, num_beams)` uint8 grey, 0 to 255; row 0 is next to the probe.

    Raises:
        ValueError: if no pixel of the frame lies in the fan.

    Example:
        >>> fan = Fan("linear", 50, -np.inf, 0, 0, 0, 99, cut_left_px=0, cut_right_px=99)
        >>> beam_space(np.full((100, 100), 90, np.uint8), fan, 4, 3)[0].tolist()
        [90, 90, 90]
    """
    mask = _mask(fan, frame.shape[:2])
    if not mask.any():
        raise ValueError(
            f"no pixel of the frame of {frame.shape[0]} x {frame.shape[1]} px (height x width) "
            f"lies in the fan. Received: {fan}. Was it made for another frame size?"
        )
    grey = to_grey(frame) * mask
    step = depth_length_px(fan) / depth_px
    if step >= _FINER:
        fan = fan.scaled(1 / step)
        grey = cv2.resize(grey, None, fx=1 / step, fy=1 / step, interpolation=cv2.INTER_AREA)
    places = _sampling_map(fan, depth_px, num_beams)
    return np.asarray(cv2.remap(grey, *places, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT))


def to_frame(values: np.ndarray, fan: Fan, frame_shape: tuple[int, int]) -> np.ndarray:
    """Draw a map over beam space back onto the frame it came from.

    Args:
        values: `(rows, columns)` of any size; its cells divide beam space evenly, as the cells of
            a network's feature map do.
        fan: that beam space was made with.
        frame_shape: height and width of the frame in px.

    Returns:
        `(height, width)` float32, values between cell centres by linear interpolation; 0 where
        beam space does not reach.

    Example:
        >>> fan = Fan("linear", 50, -np.inf, 0, 0, 0, 99, cut_left_px=0, cut_right_px=99)
        >>> to_frame(np.array([[1.0, 3.0]]), fan, (100, 100))[50, [0, 20, 80]].tolist()
        [0.0, 1.0, 3.0]
    """
    depth = fan.depth_px(frame_shape) / (fan.far_px - fan.near_px)
    if fan.kind == "linear":
        across = np.broadcast_to(np.arange(frame_shape[1], dtype=np.float32), frame_shape)
    else:
        across = fan.angle_deg(frame_shape)
    first, last = _beam_limits(fan)
    down = (depth - _NEAREST) / (_FARTHEST - _NEAREST)
    along = (across - first) / (last - first)
    inside = (down >= 0) & (down <= 1) & (along >= 0) & (along <= 1) & fan.mask(frame_shape)
    rows, columns = values.shape
    drawn = cv2.remap(
        values.astype(np.float32),
        (along * columns - 0.5).astype(np.float32),
        (down * rows - 0.5).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.where(inside, drawn, np.float32(0))


def depth_length_px(fan: Fan) -> float:
    """How many px of the frame the rows of beam space cover: 2 to 98 % of the depth."""
    return (_FARTHEST - _NEAREST) * (fan.far_px - fan.near_px)


def depth_px_per_cm(fan: Fan, view: str, pixel_height_mm: float, pixel_width_mm: float) -> float:
    """How many rows of beam space are one centimetre of depth.

    Args:
        fan: of the frame's sector.
        view: as `VIEW_COLUMN` has it, of beam space.
        pixel_height_mm: height of a px of the frame, as the scanner has stated it.
        pixel_width_mm: its width.

    Example:
        >>> fan = Fan("linear", 50, -np.inf, 0, 0, 0, 100, cut_left_px=0, cut_right_px=99)
        >>> depth_px_per_cm(fan, "beamspace 384 x 320", 0.5, 0.4)  # 4.8 cm of depth
        80.0
    """
    # Radii are in columns, the depths of a linear probe in rows.
    px_mm = pixel_height_mm if fan.kind == "linear" else pixel_width_mm
    return 10 * input_shape(view)[0] / (depth_length_px(fan) * px_mm)


def _beam_limits(fan: Fan) -> tuple[float, float]:
    """Where the columns begin and end: degrees, or px of the frame for a linear probe."""
    if fan.kind == "linear":
        sides = fan.outline()[:, 0]
        first, last, off = sides.min(), sides.max(), _OFF_SIDES * np.ptp(sides)
    else:
        first, last, off = fan.left_deg, fan.right_deg, _OFF_SIDES_DEG
    return float(first + off), float(last - off)


@lru_cache(_MAPS_KEPT)
def _mask(fan: Fan, shape: tuple[int, int]) -> np.ndarray:
    """`(height, width)` uint8, 1 inside the sector."""
    return fan.mask(shape).view(np.uint8)


@lru_cache(_MAPS_KEPT)
def _sampling_map(fan: Fan, depth_px: int, num_beams: int) -> tuple[np.ndarray, np.ndarray]:
    """Where in the frame each place of beam space lies, in the fixed point of `cv2.remap`."""
    share = _NEAREST + (_FARTHEST - _NEAREST) * (np.arange(depth_px) + 0.5) / depth_px
    radius = (fan.near_px + share * (fan.far_px - fan.near_px))[:, None]
    first, last = _beam_limits(fan)
    beam = (first + (last - first) * (np.arange(num_beams) + 0.5) / num_beams)[None, :]
    if fan.kind == "linear":
        x, y = np.broadcast_arrays(beam, radius)
    else:
        angle = np.radians(beam)
        x = fan.apex_x_px + radius * np.sin(angle)
        y = fan.apex_y_px + fan.row_stretch * radius * np.cos(angle)
    return cv2.convertMaps(x.astype(np.float32), y.astype(np.float32), cv2.CV_16SC2)
