"""Fit a fan to the bright area of a small frame.

Shadows hide parts of a fan and marks stick out of it, but its border is made of two straight
lines that meet in the apex, and of arcs around that apex, and it is the same to the left and to
the right.  So lines are searched on the outermost bright pixels, each is completed to a whole fan
by symmetry, and the fans are compared by how well they divide bright from dark.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np

from steatosis_tf.roi.geometry import Fan

# Log-likelihood per pixel.  Inside a fan two of three pixels are bright (the rest is shadow and
# vessels), outside two of a hundred (marks).
_LOG_BRIGHT_INSIDE = float(np.log(0.70 / 0.02))
_LOG_DARK_INSIDE = -0.3
_EDGE_GAIN = 28.0
_INLIER_PX = 1.5
_MIN_SIDE_DEG, _MAX_SIDE_DEG = 12.0, 65.0
_SIDE_ANGLES_DEG = (28.0, 33.0, 38.0)
_REFINE_REACH_PX = 6
_REFINE_STEPS = 4
_BEYOND_FRAME = 2
_MAX_CANDIDATES = 3
_MIN_SKEW_DEG = 2.0
_INWARD_WEIGHT = 0.5
_BORDER_BIAS_PX = -0.2
_NUM_SIDE_SAMPLES, _NUM_ARC_SAMPLES = 40, 48
_NUM_SAMPLES = 2 * (_NUM_SIDE_SAMPLES + _NUM_ARC_SAMPLES)
_ALIGNED_PX = 1.2
_SURE_SHARE = 0.66
# Keeps what the visible border does not tell (apex x, y, angles, radii, row stretch) in place.
_RIDGE = (0.5, 0.5, 250.0, 250.0, 0.5, 0.5, 10.0)
_STRETCH_PRIOR = 5000.0
_SYMMETRY, _WEAK_SYMMETRY = 60000.0, 500.0
_ASYMMETRY_COST = 900.0
_PHASED_MAX_RATIO = 0.12

# Slope (px outwards per row) and offset (px outwards at row 0) of a side of the fan.
_Line = tuple[float, float]


@dataclass(frozen=True)
class Border:
    """Outermost bright pixels: `left` and `right` one x per row, `top` and `bottom` one y per
    column; float32, with the rows and columns they belong to."""

    rows: np.ndarray
    left: np.ndarray
    right: np.ndarray
    columns: np.ndarray
    top: np.ndarray
    bottom: np.ndarray


def fit_fan(bright: np.ndarray) -> tuple[Fan, float]:
    """Find the fan that best divides bright from dark.

    Args:
        bright: `(height, width)` uint8, 1 on bright pixels and 0 elsewhere; about 256 px wide.

    Returns:
        The fan in px of `bright`, and its mean log-likelihood gain per pixel over "no fan here"
        (at most 3.6; about 1 to 3 for a real fan).
    """
    border = _border(bright)
    left = _side_line(border.rows, -border.left)
    right = _side_line(border.rows, border.right)
    guesses = [_with_radii(fan, border) for fan in _hypotheses(border, left, right)]
    guesses = _distinct(sorted(guesses, key=lambda fan: -score(fan, bright)))
    best, best_merit = None, -np.inf
    for guess, symmetry in [
        *((fan, _SYMMETRY) for fan in guesses),
        *((_with_radii(fan, border), _WEAK_SYMMETRY) for fan in _skewed(left, right)),
        *((fan, np.inf) for fan in _rectangle(border)),
    ]:
        fan = guess
        if fan.kind != "linear":
            fan = _with_cuts(refine(fan, bright, symmetry), border, bright)
        num_aligned = _num_aligned(fan, bright)
        merit = score(fan, bright) + _EDGE_GAIN * num_aligned - _ASYMMETRY_COST * _asymmetry(fan)
        if merit > best_merit:
            best, best_merit = fan, merit
        if num_aligned > _SURE_SHARE * _NUM_SAMPLES:
            break
    return best, score(best, bright) / max(1, int(best.mask(bright.shape).sum()))


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
        if len(kept) == _MAX_CANDIDATES:
            break
    return kept


def _asymmetry(fan: Fan) -> float:
    return min(1.0, abs(fan.left_deg + fan.right_deg) / 3)


def _skewed(left: _Line | None, right: _Line | None) -> Iterator[Fan]:
    """The fan between the two side lines as they are, each with its own angle."""
    if left is None or right is None:
        return
    left_deg, right_deg = np.degrees(np.arctan([left[0], right[0]]))
    if abs(left_deg - right_deg) >= _MIN_SKEW_DEG:
        apex_y = -(left[1] + right[1]) / (left[0] + right[0])
        fan = _symmetric(right[0] * apex_y + right[1], apex_y, right_deg)
        yield replace(fan, left_deg=-float(left_deg))


def _num_aligned(fan: Fan, bright: np.ndarray) -> int:
    """How many samples of the border lie where bright turns dark."""
    if fan.kind == "linear":
        return _NUM_SAMPLES
    _, shift = _border_shifts(fan, bright)
    return int((np.abs(shift) < _ALIGNED_PX).sum())


def score(fan: Fan, bright: np.ndarray) -> float:
    """Log-likelihood gain of a fan over an empty frame, in nats."""
    inside = fan.mask(bright.shape).view(np.uint8)
    num_inside = cv2.countNonZero(inside)
    num_bright = cv2.countNonZero(cv2.bitwise_and(inside, bright))
    return _LOG_BRIGHT_INSIDE * num_bright + _LOG_DARK_INSIDE * (num_inside - num_bright)


def _border(bright: np.ndarray) -> Border:
    height, width = bright.shape
    rows = np.flatnonzero(bright.any(axis=1))
    columns = np.flatnonzero(bright.any(axis=0))
    by_row, by_column = bright[rows], bright[:, columns]
    return Border(
        rows=rows.astype(np.float32),
        left=by_row.argmax(axis=1).astype(np.float32),
        right=(width - 1 - by_row[:, ::-1].argmax(axis=1)).astype(np.float32),
        columns=columns.astype(np.float32),
        top=by_column.argmax(axis=0).astype(np.float32),
        bottom=(height - 1 - by_column[::-1].argmax(axis=0)).astype(np.float32),
    )


def _near_corners(border: Border) -> np.ndarray:
    """Where the probe's face ends: `(2, 2)` float, left and right, x and y in px."""
    left = (0.6 * border.left + 0.8 * border.rows).argmin()
    right = (-0.6 * border.right + 0.8 * border.rows).argmin()
    return np.array(
        [[border.left[left], border.rows[left]], [border.right[right], border.rows[right]]]
    )


def _side_line(rows: np.ndarray, reach: np.ndarray) -> _Line | None:
    """The straight line that bounds the bright area on one side.

    Args:
        rows: `(n,)` float32.
        reach: `(n,)` float32, how far out the bright area goes in that row, px; grows outwards.

    Returns:
        The line, or None if no straight run is steep enough.
    """
    count = len(rows)
    pairs = [
        (np.arange(0, count - gap, max(1, (count - gap) // 40)), gap)
        for gap in (count // 5, count // 3, count // 2)
        if gap >= 4
    ]
    if not pairs:
        return None
    first = np.concatenate([start for start, _ in pairs])
    second = np.concatenate([start + gap for start, gap in pairs])
    slope = (reach[second] - reach[first]) / (rows[second] - rows[first])
    low, high = np.tan(np.radians([_MIN_SIDE_DEG, _MAX_SIDE_DEG]))
    usable = (slope >= low) & (slope <= high)
    if not usable.any():
        return None
    slope, first = slope[usable], first[usable]
    offset = reach[first] - slope * rows[first]
    residual = reach - (slope[:, None] * rows + offset[:, None])
    tolerance = _INLIER_PX * np.sqrt(1 + slope[:, None] ** 2)
    support = (np.abs(residual) < tolerance).sum(axis=1) - (residual > 2 * tolerance).sum(axis=1)
    best = int(support.argmax())
    close = np.abs(residual[best]) < tolerance[best]
    slope_fit, offset_fit = np.polyfit(rows[close], reach[close], 1)
    return float(slope_fit), float(offset_fit)


def _hypotheses(border: Border, left: _Line | None, right: _Line | None) -> Iterator[Fan]:
    """Fans without radii yet: from each side line by symmetry, from both, and from the corners."""
    corners = _near_corners(border)
    middle = float(corners[:, 0].mean())
    if left is not None:
        yield _symmetric(middle, (-middle - left[1]) / left[0], np.degrees(np.arctan(left[0])))
    if right is not None:
        yield _symmetric(middle, (middle - right[1]) / right[0], np.degrees(np.arctan(right[0])))
    if left is not None and right is not None:
        apex_y = -(left[1] + right[1]) / (left[0] + right[0])
        apex_x = right[0] * apex_y + right[1]
        half = np.degrees(np.arctan([left[0], right[0]]).mean())
        yield _symmetric(apex_x, apex_y, half)
    half_width = float(np.diff(corners[:, 0])[0]) / 2
    for angle in _SIDE_ANGLES_DEG:
        apex_y = float(corners[:, 1].mean()) - half_width / np.tan(np.radians(angle))
        yield _symmetric(middle, apex_y, angle)


def _symmetric(apex_x: float, apex_y: float, half_deg: float) -> Fan:
    return Fan("convex", float(apex_x), float(apex_y), -float(half_deg), float(half_deg), 1.0, 2.0)


def _with_radii(fan: Fan, border: Border) -> Fan:
    """Near and far radius from the outermost bright pixels of each column."""
    across = border.columns - fan.apex_x_px
    near = np.hypot(across, border.top - fan.apex_y_px)
    far = np.hypot(across, border.bottom - fan.apex_y_px)
    edge = np.radians(0.95 * fan.right_deg)
    near_px = -_envelope(-near[np.abs(np.arctan2(across, border.top - fan.apex_y_px)) < edge])
    far_px = _envelope(far[np.abs(np.arctan2(across, border.bottom - fan.apex_y_px)) < edge])
    return replace(fan, near_px=max(0.5, near_px), far_px=max(far_px, near_px + 2, 2.0))


def _envelope(reach: np.ndarray) -> float:
    """The value most of the samples agree on and few exceed; 0 if there are none."""
    if len(reach) == 0:
        return 0.0
    levels = np.arange(np.floor(reach.min()), reach.max() + 1.0, 0.5)
    ordered = np.sort(reach)
    close = np.searchsorted(ordered, levels + _INLIER_PX) - np.searchsorted(
        ordered, levels - _INLIER_PX
    )
    beyond = len(ordered) - np.searchsorted(ordered, levels + 2 * _INLIER_PX)
    return float(levels[(close - beyond).argmax()])


def _rectangle(border: Border) -> Iterator[Fan]:
    """The upright rectangle a linear probe shows, if the bright area is one."""
    left, right = -_envelope(-border.left), _envelope(border.right)
    top, bottom = -_envelope(-border.top), _envelope(border.bottom)
    for reach, edge in ((border.left, left), (border.right, right)):
        if (np.abs(reach - edge) < _INLIER_PX).mean() < 0.6:
            return
    fan = Fan("linear", (left + right) / 2, -np.inf, 0.0, 0.0, top, bottom, left, right)
    if right > left + 2 and bottom > top + 2:
        yield fan


def refine(fan: Fan, bright: np.ndarray, symmetry: float) -> Fan:
    """Move the fan's border to where bright turns dark along its normals.

    Args:
        fan: a first guess, at most 6 px off where the border can be seen.
        bright: `(height, width)` uint8, 0 or 1.
        symmetry: how much a difference between the two side angles costs, px^2 per rad^2.
    """
    for step in range(_REFINE_STEPS):
        design, shift = _border_shifts(fan, bright)
        if len(shift) < 20:
            return fan
        spread = _REFINE_REACH_PX / (1 + step)
        weight = 1 / (1 + (shift / spread) ** 2) ** 2
        weight[shift < 0] *= _INWARD_WEIGHT
        normal = (design * weight[:, None]).T @ design + np.diag(_RIDGE)
        pull = (design * weight[:, None]).T @ shift
        tilt = np.radians(-fan.left_deg - fan.right_deg)
        normal[2:4, 2:4] += symmetry * np.array([[1, -1], [-1, 1]])
        pull[2:4] -= symmetry * tilt * np.array([1, -1])
        normal[6, 6] += _STRETCH_PRIOR
        pull[6] -= _STRETCH_PRIOR * (fan.row_stretch - 1)
        fan = _moved(fan, np.linalg.solve(normal, pull))
    return fan


def _moved(fan: Fan, change: np.ndarray) -> Fan:
    left, right = np.degrees(change[2:4]) + [-fan.left_deg, fan.right_deg]
    near = max(0.5, fan.near_px + change[4])
    return replace(
        fan,
        apex_x_px=float(fan.apex_x_px + change[0]),
        apex_y_px=float(fan.apex_y_px + change[1]),
        left_deg=-float(np.clip(left, _MIN_SIDE_DEG / 2, _MAX_SIDE_DEG + 5)),
        right_deg=float(np.clip(right, _MIN_SIDE_DEG / 2, _MAX_SIDE_DEG + 5)),
        near_px=float(near),
        far_px=float(max(near + 2, fan.far_px + change[5])),
        row_stretch=float(np.clip(fan.row_stretch + change[6], 0.85, 1.2)),
    )


def _border_shifts(fan: Fan, bright: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far outwards the bright area's border lies from the fan's, where it can be seen.

    Returns:
        Design matrix `(n, 7)`: px of outward shift per px of apex x and y, per radian of left and
        right angle, per px of near and far radius, per unit of row stretch; and the shifts seen,
        `(n,)` px.
    """
    left, right = np.radians([fan.left_deg, fan.right_deg])
    along = np.linspace(fan.near_px, fan.far_px, _NUM_SIDE_SAMPLES + 2)[1:-1]
    turn = np.linspace(left, right, _NUM_ARC_SAMPLES + 2)[1:-1]
    lengths = [len(along), len(along), len(turn), len(turn)]
    angle = np.concatenate([np.full(len(along), left), np.full(len(along), right), turn, turn])
    radius = np.repeat([0, 0, fan.near_px, fan.far_px], lengths)
    radius[: 2 * len(along)] = np.concatenate([along, along])
    is_left, is_right, is_near, is_far = np.repeat(np.eye(4), lengths, axis=1)
    sine, cosine, stretch = np.sin(angle), np.cos(angle), fan.row_stretch
    side, arc = is_right - is_left, is_far - is_near
    normal = np.stack(
        [
            stretch * (side * cosine + arc * sine),
            -side * sine + arc * cosine,
        ],
        axis=1,
    )
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    per_radian = radius * (cosine * normal[:, 0] - stretch * sine * normal[:, 1])
    per_radius = sine * normal[:, 0] + stretch * cosine * normal[:, 1]
    design = np.column_stack(
        [
            normal,
            -per_radian * is_left,
            per_radian * is_right,
            per_radius * is_near,
            per_radius * is_far,
            radius * cosine * normal[:, 1],
        ]
    )
    points = np.stack(
        [fan.apex_x_px + radius * sine, fan.apex_y_px + stretch * radius * cosine], axis=1
    )
    shift = _outermost_bright(points, normal, bright)
    seen = np.isfinite(shift)
    return design[seen], shift[seen]


def _outermost_bright(points: np.ndarray, normals: np.ndarray, bright: np.ndarray) -> np.ndarray:
    """Along each normal, the shift to where bright turns dark; NaN where nothing is bright."""
    steps = np.arange(-_REFINE_REACH_PX, _REFINE_REACH_PX + 1)
    samples = (points[:, None, :] + steps[None, :, None] * normals[:, None, :]).astype(np.float32)
    lit = cv2.remap(
        bright,
        samples,
        None,
        cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=_BEYOND_FRAME,
    )
    outermost = lit.shape[1] - 1 - (lit[:, ::-1] == 1).argmax(axis=1)
    # Nothing bright: shadow.  Bright to the end, or the frame's end: no border to be seen.
    unseen = (lit.max(axis=1) != 1) | (outermost == lit.shape[1] - 1)
    return np.where(unseen, np.nan, steps[outermost] + _BORDER_BIAS_PX)


def _with_cuts(fan: Fan, border: Border, bright: np.ndarray) -> Fan:
    """Cut the fan off where the bright area ends in a straight upright or level line."""
    if fan.kind == "linear":
        return fan
    if fan.near_px < _PHASED_MAX_RATIO * fan.far_px:
        fan = replace(fan, kind="phased")
    for field, reach, sign, least in (
        ("cut_left_px", -border.left, -1, 0.06),
        ("cut_right_px", border.right, 1, 0.06),
        ("cut_bottom_px", border.bottom, 1, 0.3),
    ):
        edge = _envelope(np.sort(reach)[len(reach) // 2 :])
        if (np.abs(reach - edge) < 0.8).mean() < least:
            continue
        cut = replace(fan, **{field: sign * edge + 0.5 * sign})
        removed = fan.mask(bright.shape) & ~cut.mask(bright.shape)
        if (
            0 < removed.sum() < 0.12 * cut.mask(bright.shape).sum()
            and bright[removed].mean() < 0.03
        ):
            fan = cut
    return fan
