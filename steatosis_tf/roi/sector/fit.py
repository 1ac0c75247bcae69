"""Fit a fan to the bright area of a small frame: guess, refine, choose.

The border of a fan is made of two straight lines that meet in the apex, and of arcs around that
apex, and it is the same to the left and to the right. Shadows hide parts of it and marks stick out
of it, so each line is completed to a whole fan by symmetry. Each of these guesses is moved to where
bright turns dark, and the best is kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np

from steatosis_tf.roi.sector.geometry import Fan

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

# Of guesses.
_INLIER_PX = 1.5
_MIN_SIDE_DEG, _MAX_SIDE_DEG = 12.0, 65.0
# Half angles of convex probes, tried where neither side can be seen.
_SIDE_ANGLES_DEG = (28.0, 33.0, 38.0)
# Two side lines that differ by less are one fan drawn twice.
_MIN_SKEW_DEG = 2.0
_MIN_LINEAR_SHARE = 0.6

# Slope (px outwards per row) and offset (px outwards at row 0) of a side of the fan.
_Line = tuple[float, float]

# A cut is a straight run of this proportion of the rows (columns).
_MIN_SIDE_RUN, _MIN_BOTTOM_RUN = 0.06, 0.3
# Name of the cut, direction of its edge, and how much of the rows or columns has to be straight.
_CUTS = (
    ("cut_left_px", -1, _MIN_SIDE_RUN),
    ("cut_right_px", 1, _MIN_SIDE_RUN),
    ("cut_bottom_px", 1, _MIN_BOTTOM_RUN),
)
_STRAIGHT_PX = 0.8


@dataclass(frozen=True)
class _Border:
    """Outermost bright pixels: `left` and `right` one x per row, `top` and `bottom` one y per
    column; float32, with the rows and columns they belong to."""

    rows: np.ndarray
    left: np.ndarray
    right: np.ndarray
    columns: np.ndarray
    top: np.ndarray
    bottom: np.ndarray


def fit_fan(bright: np.ndarray) -> tuple[Fan, float, float]:
    """Find the fan that best divides bright from dark.

    Args:
        bright: `(height, width)` uint8, 1 on bright pixels and 0 elsewhere; about 256 px wide,
            with at least one bright pixel.

    Returns:
        The fan in px of `bright`; its mean log-likelihood gain per pixel over "no fan here" (at
        most 3.6; about 1 to 3 for a real fan); and the proportion of its border, 0 to 1, that lies
        where bright turns dark (0.35 and more for a real fan).
    """
    border = _find_border(bright)
    fits = []
    for fan in _candidates(border, bright):
        aligned, (gain, num_inside) = _num_aligned(fan, bright), _score(fan, bright)
        skew = min(1.0, abs(fan.left_deg + fan.right_deg) / _FULL_SKEW_DEG)
        total = gain + _EDGE_GAIN * aligned - _SKEW_COST * skew
        fits.append((total, gain / max(1, num_inside), aligned / _NUM_SAMPLES, fan))
        if aligned > _SURE_SHARE * _NUM_SAMPLES:
            break
    _, gain_per_px, seen, best = max(fits, key=lambda fit: fit[0])
    return best, gain_per_px, seen


def _candidates(border: _Border, bright: np.ndarray) -> Iterator[Fan]:
    """Refined fans, the likeliest first, each when it is asked for: mostly the first will do."""
    symmetric, skewed = _guess_fans(border)
    ends = _straight_ends(border)
    symmetric = _distinct(sorted(symmetric, key=lambda fan: -_score(fan, bright)[0]))
    for guesses, symmetry in ((symmetric, _SYMMETRY), (skewed, _WEAK_SYMMETRY)):
        for guess in guesses:
            yield _with_cuts(_refine(guess, bright, symmetry), ends, bright)
    yield from _guess_rectangle(border, bright.shape)


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


def _score(fan: Fan, bright: np.ndarray) -> tuple[float, int]:
    """Log-likelihood gain of a fan over an empty frame, in nats, and the px inside the fan."""
    inside = fan.mask(bright.shape).view(np.uint8)
    num_inside = cv2.countNonZero(inside)
    num_bright = cv2.countNonZero(cv2.bitwise_and(inside, bright))
    gain = _LOG_BRIGHT_INSIDE * num_bright + _LOG_DARK_INSIDE * (num_inside - num_bright)
    return gain, num_inside


def _refine(fan: Fan, bright: np.ndarray, symmetry: float) -> Fan:
    """Move the border of a guess to where bright turns dark along its normals, at most 6 px.

    A few steps of weighted least squares; `symmetry` is what a difference between the two side
    angles costs, px^2 per rad^2.
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
    """Proportion of a fan's border, 0 to 1, that lies where bright turns dark.

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


def _find_border(bright: np.ndarray) -> _Border:
    height, width = bright.shape
    lit = bright.view(bool)
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    by_row, by_column = lit[rows], np.ascontiguousarray(lit.T)[columns]
    return _Border(
        rows=rows.astype(np.float32),
        left=by_row.argmax(axis=1).astype(np.float32),
        right=(width - 1 - by_row[:, ::-1].argmax(axis=1)).astype(np.float32),
        columns=columns.astype(np.float32),
        top=by_column.argmax(axis=1).astype(np.float32),
        bottom=(height - 1 - by_column[:, ::-1].argmax(axis=1)).astype(np.float32),
    )


def _guess_fans(border: _Border) -> tuple[list[Fan], list[Fan]]:
    """Visible parts of a border completed to whole fans: symmetric ones, and those skewed."""
    left = _side_line(border.rows, -border.left)
    right = _side_line(border.rows, border.right)
    symmetric = list(_symmetric_fans(border, left, right))
    fans = _with_radii([*symmetric, *_skewed(left, right)], border)
    return fans[: len(symmetric)], fans[len(symmetric) :]


def _symmetric_fans(border: _Border, left: _Line | None, right: _Line | None) -> Iterator[Fan]:
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


def _skewed(left: _Line | None, right: _Line | None) -> Iterator[Fan]:
    """The fan between the two side lines as they are, each with its own angle."""
    if left is None or right is None:
        return
    left_deg, right_deg = np.degrees(np.arctan([left[0], right[0]]))
    if abs(left_deg - right_deg) >= _MIN_SKEW_DEG:
        apex_y = -(left[1] + right[1]) / (left[0] + right[0])
        fan = _symmetric(right[0] * apex_y + right[1], apex_y, right_deg)
        yield replace(fan, left_deg=-float(left_deg))


def _symmetric(apex_x: float, apex_y: float, half_deg: float) -> Fan:
    return Fan("convex", float(apex_x), float(apex_y), -float(half_deg), float(half_deg), 1.0, 2.0)


def _near_corners(border: _Border) -> np.ndarray:
    """Where the probe's face ends: `(2, 2)` float, left and right, x and y in px."""
    left = (0.6 * border.left + 0.8 * border.rows).argmin()
    right = (-0.6 * border.right + 0.8 * border.rows).argmin()
    return np.array(
        [[border.left[left], border.rows[left]], [border.right[right], border.rows[right]]]
    )


def _side_line(rows: np.ndarray, reach: np.ndarray) -> _Line | None:
    """The straight line that bounds the bright area on one side; None if no run is steep enough.

    `reach` says how far out the bright area goes in each row, px; it grows outwards.
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


def _with_radii(fans: list[Fan], border: _Border) -> list[Fan]:
    """Near and far radius from the outermost bright pixels of each column."""
    apex = np.array([[fan.apex_x_px, fan.apex_y_px] for fan in fans], np.float32)
    edge = np.radians([0.95 * fan.right_deg for fan in fans])[:, None]
    across = border.columns - apex[:, :1]
    radii = []
    for sign, rows in ((-1, border.top), (1, border.bottom)):
        down = rows - apex[:, 1:]
        counted = np.abs(np.arctan2(across, down)) < edge
        radii.append(sign * _envelopes(sign * np.hypot(across, down), counted))
    return [
        replace(fan, near_px=max(0.5, near), far_px=max(far, near + 2, 2.0))
        for fan, near, far in zip(fans, *np.array(radii).tolist(), strict=True)
    ]


def _guess_rectangle(border: _Border, shape: tuple[int, int]) -> list[Fan]:
    """The upright rectangle a linear probe shows, if the bright area of a frame is one."""
    left, right = -_envelope(-border.left), _envelope(border.right)
    top, bottom = -_envelope(-border.top), _envelope(border.bottom)
    for reach, edge in ((border.left, left), (border.right, right)):
        if (np.abs(reach - edge) < _INLIER_PX).mean() < _MIN_LINEAR_SHARE:
            return []
    fan = Fan("linear", (left + right) / 2, -np.inf, 0.0, 0.0, top, bottom, left, right)
    # Without dark to its left and right it may be any picture.
    is_apart = 1 < left < right - 2 and right < shape[1] - 2 and top < bottom - 2
    return [fan] if is_apart else []


def _straight_ends(border: _Border) -> dict[str, float]:
    """Where the bright area ends in a straight upright or level line, as cuts of a fan, px."""
    reaches = (-border.left, border.right, border.bottom)
    # Only the outer half of each counts; one call for all three takes half the time.
    outer = [np.sort(reach)[len(reach) // 2 :] for reach in reaches]
    length = max(map(len, outer))
    padded = np.zeros((len(outer), length), np.float32)
    for row, part in zip(padded, outer, strict=True):
        row[: len(part)] = part
    counted = np.arange(length) < np.array([[len(part)] for part in outer])
    ends = {}
    for reach, edge, (name, sign, least) in zip(
        reaches, _envelopes(padded, counted).tolist(), _CUTS, strict=True
    ):
        near_edge = reach[np.abs(reach - edge) <= _INLIER_PX]
        if near_edge.size == 0:  # the border has no common edge on this side
            continue
        edge = float(np.median(near_edge))
        if np.count_nonzero(np.abs(reach - edge) < _STRAIGHT_PX) >= least * len(reach):
            ends[name] = sign * (edge + 0.5)
    return ends


def _envelope(reach: np.ndarray) -> float:
    """The value most of the samples agree on and few exceed; 0 if there are none."""
    return float(_envelopes(reach[None], np.ones((1, len(reach)), bool))[0])


def _envelopes(reach: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """The same of every row `(n, num_samples)` at once, of the samples that are `counted`."""
    num_counted = counted.sum(axis=1)
    some = num_counted > 0
    # Levels lie half a px apart, and so many of them make _INLIER_PX. A sample is below a level
    # when its own half px is.
    first = 2 * np.floor(np.where(some, reach.min(axis=1, where=counted, initial=np.inf), 0))
    last = 2 * np.where(some, reach.max(axis=1, where=counted, initial=-np.inf), 0) + 2
    num_levels = np.ceil(last - first).astype(int)
    most = num_levels.max()
    near, far = round(2 * _INLIER_PX), round(4 * _INLIER_PX)
    width = most + near + far + 1
    place = np.floor(2 * reach) - first[:, None] + near + 1 + width * np.arange(len(reach))[:, None]
    counts = np.bincount(place[counted].astype(int), minlength=width * len(reach))
    below = counts.reshape(len(reach), width).cumsum(axis=1)
    # Close to a level, less those beyond it.
    agreed = below[:, 2 * near : 2 * near + most] - below[:, :most]
    agreed += below[:, near + far : near + far + most] - num_counted[:, None]
    levels = np.arange(most)
    agreed[levels >= num_levels[:, None]] = -reach.shape[1] - 1
    best = agreed == agreed.max(axis=1, keepdims=True)
    num_best = best.sum(axis=1)
    value = (best @ levels + num_best * first) / num_best / 2
    return np.where(some, value, 0.0)
