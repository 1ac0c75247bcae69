"""Fit a fan to the bright area of a small frame: guess, refine, choose.

Each guess of `guess.py` is moved to where bright turns dark, and the best is kept.
"""

from collections.abc import Iterator
from dataclasses import replace

import cv2
import numpy as np

from steatosis_tf.roi.sector.geometry import Fan
from steatosis_tf.roi.sector.guess import (
    Border,
    find_border,
    guess_fans,
    guess_rectangle,
    straight_ends,
)

_REACH_PX = 6
_SHIFTS = np.arange(-_REACH_PX, _REACH_PX + 1)
_STEPS = 4
_NUM_SIDE_SAMPLES, _NUM_ARC_SAMPLES = 40, 48
_NUM_SAMPLES = 2 * (_NUM_SIDE_SAMPLES + _NUM_ARC_SAMPLES)
# Of each sample whether it lies on the left or right side, the near or far arc.
_LENGTHS = (_NUM_SIDE_SAMPLES, _NUM_SIDE_SAMPLES, _NUM_ARC_SAMPLES, _NUM_ARC_SAMPLES)
_IS_LEFT, _IS_RIGHT, _IS_NEAR, _IS_FAR = np.repeat(np.eye(4), _LENGTHS, axis=1)
_SIDE, _ARC = _IS_RIGHT - _IS_LEFT, _IS_FAR - _IS_NEAR
_ALONG = np.arange(1.0, _NUM_SIDE_SAMPLES + 1)
_TURN = np.arange(1.0, _NUM_ARC_SAMPLES + 1)
# Place of each sample's angle among left, right, and those of an arc.
_ANGLE_AT = np.concatenate(
    [np.repeat([0, 1], _NUM_SIDE_SAMPLES), np.tile(np.arange(2, _NUM_ARC_SAMPLES + 2), 2)]
)
_ALIGNED_PX = 1.2
_BEYOND_FRAME = 2
# Bright inside the guess is less of a fault than bright outside it: shadows eat the border.
_INWARD_WEIGHT = 0.5
# Weighting the outside pushes the border out; measured on drawn fans.
_BORDER_BIAS_PX = -0.2
# Keeps what the visible border does not tell (apex x, y, angles, radii, row stretch) in place.
_RIDGE = (0.5, 0.5, 250.0, 250.0, 0.5, 0.5, 10.0)
# A row stretch of 1.03 weighs as much as 4 border samples that are half a px off.
_STRETCH_PRIOR = 1000.0
_STRETCH_RANGE = (0.85, 1.2)
_OPPOSED = np.array([[1, -1], [-1, 1]])
_ANGLE_RANGE_DEG = (6.0, 70.0)
_PHASED_MAX_RATIO = 0.12
# A cut takes a small dark part of the fan away.
_MAX_CUT_SHARE = 0.12
_MAX_CUT_BRIGHT = 0.03

# Log-likelihood per pixel against "outside", where two of a hundred pixels are bright (marks).
# Inside a fan most are; dark ones come in whole shadows, so each weighs little.
_LOG_BRIGHT_INSIDE = float(np.log(0.70 / 0.02))
_LOG_DARK_INSIDE = -0.3
# Nats for each sample of the border that lies where bright turns dark.
_EDGE_GAIN = 28.0
# px^2 per rad^2: one degree between the sides weighs as much as 18 samples one px off.
_SYMMETRY, _WEAK_SYMMETRY = 60000.0, 500.0
# Nats a skewed fan has to be better by: shadows make lopsided fans more often than scanners do.
_SKEW_COST, _FULL_SKEW_DEG = 900.0, 3.0
_MAX_GUESSES = 3
# With so much of the border in place, no other guess is looked at.
_SURE_SHARE = 0.66


def fit_fan(bright: np.ndarray) -> tuple[Fan, float, float]:
    """Find the fan that best divides bright from dark.

    Args:
        bright: `(height, width)` uint8, 1 on bright pixels and 0 elsewhere; about 256 px wide,
            with at least one bright pixel.

    Returns:
        The fan in px of `bright`; its mean log-likelihood gain per pixel over "no fan here" (at
        most 3.6; about 1 to 3 for a real fan); and the share of its border, 0 to 1, that lies
        where bright turns dark (0.35 and more for a real fan).
    """
    border = find_border(bright)
    fits = []
    for fan in _candidates(border, bright):
        aligned, gain = _num_aligned(fan, bright), _score(fan, bright)
        skew = min(1.0, abs(fan.left_deg + fan.right_deg) / _FULL_SKEW_DEG)
        fits.append((gain + _EDGE_GAIN * aligned - _SKEW_COST * skew, gain, aligned, fan))
        if aligned > _SURE_SHARE * _NUM_SAMPLES:
            break
    _, gain, aligned, best = max(fits, key=lambda fit: fit[0])
    num_inside = cv2.countNonZero(best.mask(bright.shape).view(np.uint8))
    return best, gain / max(1, num_inside), aligned / _NUM_SAMPLES


def _candidates(border: Border, bright: np.ndarray) -> Iterator[Fan]:
    """Refined fans, the likeliest first, each when it is asked for: mostly the first will do."""
    symmetric, skewed = guess_fans(border)
    ends = straight_ends(border)
    symmetric = _distinct(sorted(symmetric, key=lambda fan: -_score(fan, bright)))
    for guesses, symmetry in ((symmetric, _SYMMETRY), (skewed, _WEAK_SYMMETRY)):
        for guess in guesses:
            yield _with_cuts(_refine(guess, bright, symmetry), ends, bright)
    yield from guess_rectangle(border, bright.shape)


def _distinct(fans: list[Fan]) -> list[Fan]:
    """The first few fans that are not almost the same as one before them."""
    kept: list[Fan] = []
    for fan in fans:
        same = any(
            abs(fan.right_deg - other.right_deg) < 2
            and abs(fan.apex_x_px - other.apex_x_px) < 4
            and abs(fan.apex_y_px - other.apex_y_px) < 6
            and abs(fan.far_px + fan.apex_y_px - other.far_px - other.apex_y_px) < 3
            for other in kept
        )
        if not same:
            kept.append(fan)
        if len(kept) == _MAX_GUESSES:
            break
    return kept


def _score(fan: Fan, bright: np.ndarray) -> float:
    """Log-likelihood gain of a fan over an empty frame, in nats."""
    inside = fan.mask(bright.shape).view(np.uint8)
    num_inside = cv2.countNonZero(inside)
    num_bright = cv2.countNonZero(cv2.bitwise_and(inside, bright))
    return _LOG_BRIGHT_INSIDE * num_bright + _LOG_DARK_INSIDE * (num_inside - num_bright)


def _refine(fan: Fan, bright: np.ndarray, symmetry: float) -> Fan:
    """Move the fan's border to where bright turns dark along its normals.

    Args:
        fan: a first guess, at most 6 px off where the border can be seen.
        bright: `(height, width)` uint8, 0 or 1.
        symmetry: how much a difference between the two side angles costs, px^2 per rad^2.

    Returns:
        The fan after a few steps of weighted least squares.
    """
    ridge = np.diag(_RIDGE)
    for step in range(_STEPS):
        design, shift = _border_shifts(fan, bright)
        if len(shift) < 20:
            return fan
        spread = _REACH_PX / (1 + step)
        weight = 1 / (1 + (shift / spread) ** 2) ** 2
        weight[shift < 0] *= _INWARD_WEIGHT
        weighted = (design * weight[:, None]).T
        normal = weighted @ design + ridge
        pull = weighted @ shift
        tilt = np.radians(-fan.left_deg - fan.right_deg)
        normal[2:4, 2:4] += symmetry * _OPPOSED
        pull[2:4] -= symmetry * tilt * _OPPOSED[0]
        normal[6, 6] += _STRETCH_PRIOR
        pull[6] -= _STRETCH_PRIOR * (fan.row_stretch - 1)
        fan = _moved(fan, np.linalg.solve(normal, pull))
    return fan


def _moved(fan: Fan, change: np.ndarray) -> Fan:
    left = np.degrees(change[2]) - fan.left_deg
    right = np.degrees(change[3]) + fan.right_deg
    near = max(0.5, fan.near_px + change[4])
    least, most = _ANGLE_RANGE_DEG
    return replace(
        fan,
        apex_x_px=float(fan.apex_x_px + change[0]),
        apex_y_px=float(fan.apex_y_px + change[1]),
        left_deg=-float(min(max(left, least), most)),
        right_deg=float(min(max(right, least), most)),
        near_px=float(near),
        far_px=float(max(near + 2, fan.far_px + change[5])),
        row_stretch=float(
            min(max(fan.row_stretch + change[6], _STRETCH_RANGE[0]), _STRETCH_RANGE[1])
        ),
    )


def border_seen(fan: Fan, bright: np.ndarray) -> float:
    """Share of a fan's border, 0 to 1, that lies where bright turns dark.

    Args:
        fan: in px of `bright`.
        bright: `(height, width)` uint8, 0 or 1.
    """
    return _num_aligned(fan, bright) / _NUM_SAMPLES


def _num_aligned(fan: Fan, bright: np.ndarray) -> int:
    """How many samples of the border lie where bright turns dark."""
    shift = _side_shifts(fan, bright) if fan.kind == "linear" else _border_shifts(fan, bright)[1]
    return int((np.abs(shift) < _ALIGNED_PX).sum())


def _with_cuts(fan: Fan, ends: dict[str, float], bright: np.ndarray) -> Fan:
    """Cut the fan off at those straight ends that take a small dark part of it away."""
    if fan.near_px < _PHASED_MAX_RATIO * fan.far_px:
        fan = replace(fan, kind="phased")
    whole = fan.mask(bright.shape).view(np.uint8) if ends else bright
    for name, at in ends.items():
        cut = replace(fan, **{name: at})  # type: ignore[arg-type]
        kept = cut.mask(bright.shape).view(np.uint8)
        removed = whole & ~kept
        num_removed, num_kept = cv2.countNonZero(removed), cv2.countNonZero(kept)
        if not 0 < num_removed < _MAX_CUT_SHARE * num_kept:
            continue
        if cv2.countNonZero(removed & bright) < _MAX_CUT_BRIGHT * num_removed:
            fan, whole = cut, kept
    return fan


def _border_shifts(fan: Fan, bright: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far outwards the bright area's border lies from the fan's, where it can be seen.

    Returns:
        Design matrix `(n, 7)`: px of outward shift per px of apex x and y, per radian of left and
        right angle, per px of near and far radius, per unit of row stretch; and the shifts seen,
        `(n,)` px.
    """
    left, right = np.radians([fan.left_deg, fan.right_deg])
    angle = np.empty(_NUM_ARC_SAMPLES + 2)
    angle[0], angle[1] = left, right
    angle[2:] = _TURN * ((right - left) / (_NUM_ARC_SAMPLES + 1)) + left
    sine, cosine = np.sin(angle)[_ANGLE_AT], np.cos(angle)[_ANGLE_AT]
    along = _ALONG * ((fan.far_px - fan.near_px) / (_NUM_SIDE_SAMPLES + 1)) + fan.near_px
    radius = np.repeat([0, 0, fan.near_px, fan.far_px], _LENGTHS)
    radius[:_NUM_SIDE_SAMPLES] = radius[_NUM_SIDE_SAMPLES : 2 * _NUM_SIDE_SAMPLES] = along
    stretch = fan.row_stretch
    across = stretch * (_SIDE * cosine + _ARC * sine)
    down = -_SIDE * sine + _ARC * cosine
    length = np.sqrt(across * across + down * down)
    across /= length
    down /= length
    x, y = fan.apex_x_px + radius * sine, fan.apex_y_px + stretch * radius * cosine
    shift = _outermost_bright(x, y, across, down, bright)
    seen = np.isfinite(shift)
    per_radian = radius * (cosine * across - stretch * sine * down)
    per_radius = sine * across + stretch * cosine * down
    design = np.empty((len(radius), 7))
    design[:, 0], design[:, 1] = across, down
    design[:, 2], design[:, 3] = -per_radian * _IS_LEFT, per_radian * _IS_RIGHT
    design[:, 4], design[:, 5] = per_radius * _IS_NEAR, per_radius * _IS_FAR
    design[:, 6] = radius * cosine * down
    return design[seen], shift[seen]


def _side_shifts(fan: Fan, bright: np.ndarray) -> np.ndarray:
    """The same for the four sides of a linear probe's rectangle: the shifts seen, `(n,)` px."""
    (left, top), _, (right, bottom), _ = fan.outline()
    down = top + _ALONG * ((bottom - top) / (_NUM_SIDE_SAMPLES + 1))
    over = left + _TURN * ((right - left) / (_NUM_ARC_SAMPLES + 1))
    x = np.concatenate([np.repeat([left, right], _NUM_SIDE_SAMPLES), over, over])
    y = np.concatenate([down, down, np.repeat([top, bottom], _NUM_ARC_SAMPLES)])
    shift = _outermost_bright(x, y, _SIDE, _ARC, bright)
    return shift[np.isfinite(shift)]


def _outermost_bright(
    x: np.ndarray, y: np.ndarray, across: np.ndarray, down: np.ndarray, bright: np.ndarray
) -> np.ndarray:
    """Along each normal, the shift to where bright turns dark; NaN where nothing is bright."""
    steps = _SHIFTS[:, None]
    lit = cv2.remap(
        bright,
        (x + steps * across).astype(np.float32),
        (y + steps * down).astype(np.float32),
        cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=_BEYOND_FRAME,
    )
    outermost = len(lit) - 1 - (lit[::-1] == 1).argmax(axis=0)
    # Nothing bright: shadow.  Bright to the end, or the frame's end: no border to be seen.
    unseen = (lit.max(axis=0) != 1) | (outermost == len(lit) - 1)
    return np.where(unseen, np.nan, _SHIFTS[outermost] + _BORDER_BIAS_PX)
