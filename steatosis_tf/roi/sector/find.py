"""Find the echo sector of an ultrasound frame."""

from dataclasses import dataclass

import cv2
import numpy as np

from steatosis_tf.roi.sector.echo import MIN_SECTOR_FRACTION, bright_areas, moving_area
from steatosis_tf.roi.sector.fit import fit_fan
from steatosis_tf.roi.sector.geometry import Fan
from steatosis_tf.sources.folder import MIN_SIDE_PX, to_grey

# The search runs on a copy whose longer side is this many px: a border known to half a px of it
# is known to two px of a 1024 px frame, less than the hand-drawn outlines scatter.
_WORK_SIDE_PX = 256
_MAX_SECTOR_FRACTION = 0.97
_MIN_SCORE = 0.4
_MIN_BORDER_SEEN = 0.25
_CLEAR_BORDER_SEEN = 0.35


@dataclass(frozen=True)
class Sector:
    """The echo sector of one frame.

    Attributes:
        mask: `(height, width)` bool, True on echo pixels.
        fan: the fitted geometry, in px of the frame.
        score: how well the fan divides bright from dark, in nats per pixel of the fan (at most
            3.6); low means much shadow or a doubtful fit.
        border_seen: share of the fan's border, 0 to 1, that lies where bright turns dark.
    """

    mask: np.ndarray
    fan: Fan
    score: float
    border_seen: float


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
    if min(height, width) < MIN_SIDE_PX:
        raise ValueError(f"no sector: the frame has only {height} x {width} px (height x width)")
    scale = min(1.0, _WORK_SIDE_PX / max(height, width))
    small = [
        cv2.resize(to_grey(one), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        for one in frames
    ]
    still = small[0] if len(small) == 1 else np.median(small, axis=0).astype(np.uint8)
    fan, score, border_seen = _best_fit(bright_areas(still, moving_area(small)))
    _check(fan, score, border_seen, still.shape)
    fan = fan.scaled(1 / scale)
    return Sector(mask=fan.mask((height, width)), fan=fan, score=score, border_seen=border_seen)


def _best_fit(readings: list[np.ndarray]) -> tuple[Fan, float, float]:
    """The first reading whose border is clear, or else the one with the clearest border."""
    fits = []
    for bright in readings:
        fits.append(fit_fan(bright))
        if fits[-1][2] >= _CLEAR_BORDER_SEEN:
            break
    return max(fits, key=lambda fit: min(fit[2], _CLEAR_BORDER_SEEN))


def _as_frames(frame: np.ndarray) -> list[np.ndarray]:
    is_frame = frame.ndim == 2 or (frame.ndim == 3 and frame.shape[2] == 3)
    is_clip = (frame.ndim == 3 and not is_frame) or (frame.ndim == 4 and frame.shape[3] == 3)
    if frame.dtype != np.uint8 or not (is_frame or is_clip) or 0 in frame.shape:
        raise ValueError(
            "expected a frame (height, width) or (height, width, 3), or a clip of such frames, "
            f"uint8. Received: shape={frame.shape} dtype={frame.dtype}"
        )
    return [frame] if is_frame else list(frame)


def _check(fan: Fan, score: float, border_seen: float, shape: tuple[int, int]) -> None:
    fraction = fan.mask(shape).mean()
    if fraction > _MAX_SECTOR_FRACTION:
        raise ValueError(
            "no sector: the picture fills the frame without a dark surround, "
            "as a photo or noise does"
        )
    if score < _MIN_SCORE or border_seen < _MIN_BORDER_SEEN:
        raise ValueError("no sector: the bright area is scattered or has no fan's border")
    if fraction < MIN_SECTOR_FRACTION:
        raise ValueError("no sector: what stands out is smaller than 3 % of the frame")
