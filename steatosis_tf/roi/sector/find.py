"""Find the echo sector of an ultrasound frame."""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from steatosis_tf.roi.sector.fit import border_seen, fit_fan
from steatosis_tf.roi.sector.geometry import Fan
from steatosis_tf.roi.sector.screen import (
    MIN_SECTOR_FRACTION,
    Picture,
    bright_areas,
    cleaned,
    find_picture,
    moving_area,
)
from steatosis_tf.sources.images import MIN_SIDE_PX, to_grey

#: Counts up whenever another fan may be found in the same pixels: what was kept is found anew.
SECTOR_VERSION = 1

# The search runs on a copy whose longer side is this many px: a border known to half a px of it
# is known to two px of a 1024 px frame, less than the hand-drawn outlines scatter.
_WORK_SIDE_PX = 256
_MAX_SECTOR_FRACTION = 0.97
_MIN_SCORE = 0.4
_MIN_BORDER_SEEN = 0.25
_CLEAR_BORDER_SEEN = 0.35
_MIN_BORDER_ON_SCREEN = 0.12
# A fan smaller than this share of the screen is searched again in its part of it, with a margin.
_SMALL_FAN, _MARGIN, _MIN_SAME = 0.6, 0.1, 0.85
# Mean squared step to the next pixel over that to the next but one: echo of 640 frames 0.30 to
# 0.61, white noise 1.
_NOISE_RATIO, _MIN_NOISE, _NUM_NOISE_ROWS = 0.85, 100.0, 24
# Nothing but its texture tells a linear probe's rectangle from any other picture: 0.95 of the area
# in drawn speckle, 0 in ramps, up to 0.55 in clouds.
_MIN_LINEAR_TEXTURE = 0.6


class _Fit(NamedTuple):
    fan: Fan
    score: float
    border_seen: float
    is_on_screen: bool = False


@dataclass(frozen=True)
class Sector:
    """The echo sector of one frame.

    Attributes:
        mask: `(height, width)` bool, True on echo pixels.
        fan: the fitted geometry, in px of the frame.
        score: how well the fan divides bright from dark, in nats per pixel of the fan (at most
            3.6); low means much shadow or a doubtful fit.
        border_seen: share of the fan's border, 0 to 1, that lies where bright turns dark.

    Both are NaN where a person has set the fan.
    """

    mask: np.ndarray
    fan: Fan
    score: float
    border_seen: float

    @classmethod
    def of_fan(cls, fan: Fan, frame_shape: tuple[int, ...]) -> "Sector":
        """The sector of a fan that a person has set, on a frame of that height and width."""
        height, width = frame_shape[:2]
        return cls(fan.mask((height, width)), fan, score=np.nan, border_seen=np.nan)


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

    Example:
        >>> from steatosis_tf.sources.phantom.study import simulate_patient
        >>> (frame,), _ = simulate_patient(
        ...     20.0, num_frames=1, generator=np.random.default_rng(0)
        ... )
        >>> sector = find_sector(frame)
        >>> sector.mask.shape == frame.shape[:2], sector.fan.kind
        (True, 'convex')
    """
    frames = _as_frames(frame)
    shape = frames[0].shape[:2]
    if min(shape) < MIN_SIDE_PX:
        raise ValueError(
            f"no sector: the frame has only {shape[0]} x {shape[1]} px (height x width)"
        )
    found = _search(frames)
    mask = found.fan.mask(shape)
    if found.is_on_screen:
        found = _looked_at_closer(frames[0], mask) or found
        mask = found.fan.mask(shape)
    if _is_noise(frames[0], mask):
        raise ValueError("no sector: neighbouring pixels have nothing in common, as in noise")
    return Sector(mask=mask, fan=found.fan, score=found.score, border_seen=found.border_seen)


def _search(frames: list[np.ndarray]) -> _Fit:
    """Search on a small copy; the fan is in px of the frames."""
    scale = min(1.0, _WORK_SIDE_PX / max(frames[0].shape[:2]))
    small = [
        cv2.resize(to_grey(one), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        for one in frames
    ]
    still = small[0] if len(small) == 1 else np.median(small, axis=0).astype(np.uint8)
    found = _fit(still, moving_area(small))
    return found._replace(fan=found.fan.scaled(1 / scale))


def _looked_at_closer(frame: np.ndarray, mask: np.ndarray) -> _Fit | None:
    """Search again in the part around a fan that is small on its screen; None if it is not, or if
    nothing like it is found there."""
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    most = max(mask.shape)
    if most <= _WORK_SIDE_PX or max(width, height) > _SMALL_FAN * most:
        return None
    margin = round(_MARGIN * max(width, height))
    left, top = max(0, left - margin), max(0, top - margin)
    part = frame[top : top + height + 2 * margin, left : left + width + 2 * margin]
    if min(part.shape[:2]) < MIN_SIDE_PX:
        return None
    try:
        found = _search([np.ascontiguousarray(part)])
    except ValueError:
        return None
    found = found._replace(fan=found.fan.moved(left, top))
    closer = found.fan.mask(mask.shape)
    is_same = 2 * (closer & mask).sum() > _MIN_SAME * (closer.sum() + mask.sum())
    return found if is_same else None


def _is_noise(frame: np.ndarray, mask: np.ndarray) -> bool:
    """Whether pixels two apart differ no more than neighbours: echo is wider than one pixel."""
    rows = np.flatnonzero(mask.any(axis=1))
    row = slice(int(rows[0]), int(rows[-1]) + 1, max(1, len(rows) // _NUM_NOISE_ROWS))
    line, inside = to_grey(frame[row]).astype(np.float32), mask[row]
    one = ((line[:, 1:] - line[:, :-1])[inside[:, 1:] & inside[:, :-1]] ** 2).mean()
    two = ((line[:, 2:] - line[:, :-2])[inside[:, 2:] & inside[:, :-2]] ** 2).mean()
    return bool(one > max(_NOISE_RATIO * two, _MIN_NOISE))


def _fit(still: np.ndarray, moving: np.ndarray | None) -> _Fit:
    """The fan of a cut-out picture or, where bars, menus and thumbnails stand around, of a screen.

    Raises:
        ValueError: if neither holds a sector.
    """
    picture = find_picture(still)
    if picture is None:
        return _checked(_best_fit(bright_areas(still, moving)), None, still.shape)
    is_cut_out = moving is not None or picture.is_cut_out()
    try:
        found = _checked(_best_fit(bright_areas(still, moving)), picture, still.shape)
    except ValueError:
        if is_cut_out:
            raise
        return _fit_on_screen(picture)
    fan = found.fan
    is_clear = found.border_seen >= _CLEAR_BORDER_SEEN
    if is_cut_out or (is_clear and picture.is_cut_out(fan.mask(still.shape))):
        return found
    try:
        return _fit_on_screen(picture)
    except ValueError:
        if not picture.is_alone() and _border_on_screen(fan, picture) < _MIN_BORDER_ON_SCREEN:
            raise
        return found


def _fit_on_screen(picture: Picture) -> _Fit:
    """Fit coarsely to what hangs together with the picture's core, then to that fan's content."""
    bright = picture.bright()
    coarse, most_seen, used = None, -1.0, bright
    for reading in map(cleaned, picture.readings()):
        if reading.mean() < MIN_SECTOR_FRACTION:
            continue
        fan = fit_fan(reading)[0]
        seen = min(border_seen(fan, bright), _CLEAR_BORDER_SEEN)
        if seen > most_seen:
            coarse, most_seen, used = fan, seen, reading
        if seen == _CLEAR_BORDER_SEEN:
            break
    if coarse is None:
        raise ValueError("no sector: only small areas of the screen have a texture")
    painted = picture.painted(coarse.mask(bright.shape), used)
    found = _checked(_best_fit(bright_areas(painted)), picture, bright.shape)
    # What is painted gives any fan a border: the screen itself has to show it.
    if _border_on_screen(found.fan, picture) < _MIN_BORDER_ON_SCREEN:
        raise ValueError("no sector: the textured area of the screen has no fan's border")
    return found._replace(is_on_screen=True)


def _border_on_screen(fan: Fan, picture: Picture) -> float:
    """Share of a fan's border where the screen as it is turns as dark as right beside the fan."""
    return border_seen(fan, picture.bright_beside(fan.mask(picture.small.shape)))


def _best_fit(readings: list[np.ndarray]) -> _Fit:
    """The first reading whose border is clear, or else the one with the clearest border."""
    fits = []
    for bright in readings:
        fits.append(_Fit(*fit_fan(bright)))
        if fits[-1].border_seen >= _CLEAR_BORDER_SEEN:
            break
    return max(fits, key=lambda fit: min(fit.border_seen, _CLEAR_BORDER_SEEN))


def _as_frames(frame: np.ndarray) -> list[np.ndarray]:
    is_frame = frame.ndim == 2 or (frame.ndim == 3 and frame.shape[2] == 3)
    is_clip = (frame.ndim == 3 and not is_frame) or (frame.ndim == 4 and frame.shape[3] == 3)
    if frame.dtype != np.uint8 or not (is_frame or is_clip) or 0 in frame.shape:
        raise ValueError(
            "expected a frame (height, width) or (height, width, 3), or a clip of such frames, "
            f"uint8. Received: shape={frame.shape} dtype={frame.dtype}"
        )
    return [frame] if is_frame else list(frame)


def _checked(found: _Fit, picture: Picture | None, shape: tuple[int, int]) -> _Fit:
    mask = found.fan.mask(shape)
    fraction = mask.mean()
    if fraction > _MAX_SECTOR_FRACTION:
        raise ValueError(
            "no sector: the picture fills the frame without a dark surround, "
            "as a photo or noise does"
        )
    if found.score < _MIN_SCORE or found.border_seen < _MIN_BORDER_SEEN:
        raise ValueError("no sector: the bright area is scattered or has no fan's border")
    if fraction < MIN_SECTOR_FRACTION:
        raise ValueError("no sector: what stands out is smaller than 3 % of the frame")
    if found.fan.kind == "linear":
        texture = 0.0 if picture is None else picture.texture_share(mask)
        if texture < _MIN_LINEAR_TEXTURE:
            raise ValueError("no sector: what stands out is a rectangle smoother than echo")
    return found
