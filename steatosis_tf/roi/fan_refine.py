"""Move the border of a guessed fan to where bright turns dark."""

from dataclasses import replace

import cv2
import numpy as np

from steatosis_tf.roi.fan_guess import INLIER_PX, Border, envelope
from steatosis_tf.roi.geometry import Fan

_REACH_PX = 6
_SHIFTS = np.arange(-_REACH_PX, _REACH_PX + 1)
_STEPS = 4
_NUM_SIDE_SAMPLES, _NUM_ARC_SAMPLES = 40, 48
NUM_SAMPLES = 2 * (_NUM_SIDE_SAMPLES + _NUM_ARC_SAMPLES)
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
# A cut is a straight run of this share of the rows (columns), and takes a small dark part away.
_MIN_SIDE_RUN, _MIN_BOTTOM_RUN = 0.06, 0.3
_STRAIGHT_PX = 0.8
_MAX_CUT_SHARE = 0.12
_MAX_CUT_BRIGHT = 0.03


def refine(fan: Fan, bright: np.ndarray, symmetry: float) -> Fan:
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


def num_aligned(fan: Fan, bright: np.ndarray) -> int:
    """How many samples of the border lie where bright turns dark."""
    if fan.kind == "linear":
        return NUM_SAMPLES
    _, shift = _border_shifts(fan, bright)
    return int((np.abs(shift) < _ALIGNED_PX).sum())


def with_cuts(fan: Fan, border: Border, bright: np.ndarray) -> Fan:
    """Cut the fan off where the bright area ends in a straight upright or level line."""
    if fan.kind == "linear":
        return fan
    if fan.near_px < _PHASED_MAX_RATIO * fan.far_px:
        fan = replace(fan, kind="phased")
    for reach, sign, least, cut_at in (
        (-border.left, -1, _MIN_SIDE_RUN, lambda fan, at: replace(fan, cut_left_px=at)),
        (border.right, 1, _MIN_SIDE_RUN, lambda fan, at: replace(fan, cut_right_px=at)),
        (border.bottom, 1, _MIN_BOTTOM_RUN, lambda fan, at: replace(fan, cut_bottom_px=at)),
    ):
        edge = envelope(np.sort(reach)[len(reach) // 2 :])
        near_edge = reach[np.abs(reach - edge) <= INLIER_PX]
        if near_edge.size == 0:  # the border has no common edge on this side
            continue
        edge = float(np.median(near_edge))
        if (np.abs(reach - edge) < _STRAIGHT_PX).mean() < least:
            continue
        cut = cut_at(fan, sign * (edge + 0.5))
        kept = cut.mask(bright.shape)
        removed = fan.mask(bright.shape) & ~kept
        is_small = 0 < removed.sum() < _MAX_CUT_SHARE * kept.sum()
        if is_small and bright[removed].mean() < _MAX_CUT_BRIGHT:
            fan = cut
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
