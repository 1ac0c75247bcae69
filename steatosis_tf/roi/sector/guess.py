"""First guesses of a fan from the outermost bright pixels of a small frame.

The border of a fan is made of two straight lines that meet in the apex, and of arcs around that
apex, and it is the same to the left and to the right. Shadows hide parts of it and marks stick out
of it, so each line is completed to a whole fan by symmetry.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from steatosis_tf.roi.sector.geometry import Fan

_INLIER_PX = 1.5
_MIN_SIDE_DEG, _MAX_SIDE_DEG = 12.0, 65.0
# Half angles of convex probes, tried where neither side can be seen.
_SIDE_ANGLES_DEG = (28.0, 33.0, 38.0)
# Two side lines that differ by less are one fan drawn twice.
_MIN_SKEW_DEG = 2.0
_MIN_LINEAR_SHARE = 0.6

# Slope (px outwards per row) and offset (px outwards at row 0) of a side of the fan.
_Line = tuple[float, float]

# A cut is a straight run of this share of the rows (columns).
_MIN_SIDE_RUN, _MIN_BOTTOM_RUN = 0.06, 0.3
# Name of the cut, direction of its edge, and how much of the rows or columns has to be straight.
_CUTS = (
    ("cut_left_px", -1, _MIN_SIDE_RUN),
    ("cut_right_px", 1, _MIN_SIDE_RUN),
    ("cut_bottom_px", 1, _MIN_BOTTOM_RUN),
)
_STRAIGHT_PX = 0.8


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


def find_border(bright: np.ndarray) -> Border:
    height, width = bright.shape
    lit = bright.view(bool)
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    by_row, by_column = lit[rows], np.ascontiguousarray(lit.T)[columns]
    return Border(
        rows=rows.astype(np.float32),
        left=by_row.argmax(axis=1).astype(np.float32),
        right=(width - 1 - by_row[:, ::-1].argmax(axis=1)).astype(np.float32),
        columns=columns.astype(np.float32),
        top=by_column.argmax(axis=1).astype(np.float32),
        bottom=(height - 1 - by_column[:, ::-1].argmax(axis=1)).astype(np.float32),
    )


def guess_fans(border: Border) -> tuple[list[Fan], list[Fan]]:
    """Complete the visible parts of a border to whole fans.

    Args:
        border: as `find_border` returns it.

    Returns:
        symmetric fans, and skewed ones (a different angle on each side).
    """
    left = _side_line(border.rows, -border.left)
    right = _side_line(border.rows, border.right)
    symmetric = list(_symmetric_fans(border, left, right))
    fans = _with_radii([*symmetric, *_skewed(left, right)], border)
    return fans[: len(symmetric)], fans[len(symmetric) :]


def _symmetric_fans(border: Border, left: _Line | None, right: _Line | None) -> Iterator[Fan]:
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


def _with_radii(fans: list[Fan], border: Border) -> list[Fan]:
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


def guess_rectangle(border: Border, shape: tuple[int, int]) -> list[Fan]:
    """The upright rectangle a linear probe shows, if the bright area is one.

    Args:
        border: as `find_border` returns it.
        shape: height and width of the small frame, px.
    """
    left, right = -_envelope(-border.left), _envelope(border.right)
    top, bottom = -_envelope(-border.top), _envelope(border.bottom)
    for reach, edge in ((border.left, left), (border.right, right)):
        if (np.abs(reach - edge) < _INLIER_PX).mean() < _MIN_LINEAR_SHARE:
            return []
    fan = Fan("linear", (left + right) / 2, -np.inf, 0.0, 0.0, top, bottom, left, right)
    # Without dark to its left and right it may be any picture.
    is_apart = 1 < left < right - 2 and right < shape[1] - 2 and top < bottom - 2
    return [fan] if is_apart else []


def straight_ends(border: Border) -> dict[str, float]:
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
    """The same of every row at once.

    Args:
        reach: `(n, num_samples)` float32, px.
        counted: `(n, num_samples)` bool, the samples that count.

    Returns:
        `(n,)` float64.
    """
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
