"""The geometry of an echo sector: a fan of beams, or the rectangle of a linear probe."""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import cv2
import numpy as np

Kind = Literal["convex", "phased", "linear"]

_ARC_POINTS = 64
_ARC_STEPS = np.arange(_ARC_POINTS, dtype=np.float64)
# cv2.fillPoly takes fixed-point coordinates with this many fractional bits.
_FIXED_POINT_BITS = 6


@dataclass(frozen=True)
class Fan:
    """Where the beams of one frame run; all lengths in px of that frame.

    A pixel (x, y) belongs to the fan when its distance from the apex lies between the two radii,
    its angle lies between the two opening angles, and no cut excludes it.  A linear probe has
    parallel beams: its apex lies at infinity (`apex_y_px` is -inf, `apex_x_px` the middle), both
    angles are 0, the radii are the rows of its upper and lower border, and `cut_left_px` and
    `cut_right_px` are its sides.

    Attributes:
        kind: `convex` (curved array), `phased` (beams start at a point) or `linear`.
        apex_x_px: column where the beams meet; may lie outside the frame.
        apex_y_px: row where the beams meet; may be negative.
        left_deg: angle of the leftmost beam from straight down; negative to the left.
        right_deg: angle of the rightmost beam from straight down.
        near_px: radius of the near arc, the face of the probe.
        far_px: radius of the far arc.
        cut_left_px: columns left of it are cut off; None where nothing is cut.
        cut_right_px: columns right of it are cut off, or None.
        cut_bottom_px: rows below it are cut off, or None.
        row_stretch: rows that are as long as one column; 16/15 in frames grabbed from 576-line
            video, 1 where pixels are square. Radii and depths are in columns.
    """

    kind: Kind
    apex_x_px: float
    apex_y_px: float
    left_deg: float
    right_deg: float
    near_px: float
    far_px: float
    cut_left_px: float | None = None
    cut_right_px: float | None = None
    cut_bottom_px: float | None = None
    row_stretch: float = 1.0

    def scaled(self, factor: float) -> "Fan":
        """The same fan on a frame resized by `factor` (pixel centres stay pixel centres)."""
        changes = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if not field.name.endswith("_px") or value is None:
                continue
            is_length = field.name in ("near_px", "far_px") and self.kind != "linear"
            changes[field.name] = value * factor + (0.0 if is_length else (factor - 1) / 2)
        return replace(self, **changes)

    def moved(self, right_px: float, down_px: float) -> "Fan":
        """The same fan on a frame whose origin lies elsewhere, as after a crop."""
        changes: dict[str, float] = {"apex_x_px": self.apex_x_px + right_px}
        changes["apex_y_px"] = self.apex_y_px + down_px
        for name, shift in (
            ("cut_left_px", right_px),
            ("cut_right_px", right_px),
            ("cut_bottom_px", down_px),
        ):
            value = getattr(self, name)
            if value is not None:
                changes[name] = value + shift
        if self.kind == "linear":
            changes["near_px"] = self.near_px + down_px
            changes["far_px"] = self.far_px + down_px
        return replace(self, **changes)  # type: ignore[arg-type]

    def mask(self, shape: tuple[int, int]) -> np.ndarray:
        """Draw the fan.

        Args:
            shape: height and width of the frame in px.

        Returns:
            `(height, width)` bool, True inside the fan.
        """
        canvas = np.zeros(shape, np.uint8)
        outline = np.round(self.outline() * (1 << _FIXED_POINT_BITS)).astype(np.int32)
        cv2.fillPoly(canvas, [outline], 1, cv2.LINE_8, _FIXED_POINT_BITS)
        if self.cut_left_px is not None:
            canvas[:, : max(0, int(np.ceil(self.cut_left_px)))] = 0
        if self.cut_right_px is not None:
            canvas[:, max(0, int(np.floor(self.cut_right_px)) + 1) :] = 0
        if self.cut_bottom_px is not None:
            canvas[max(0, int(np.floor(self.cut_bottom_px)) + 1) :] = 0
        return canvas.view(bool)

    def outline(self) -> np.ndarray:
        """The border before the cuts: `(num_points, 2)` float64, x and y in px."""
        if self.kind == "linear":
            if self.cut_left_px is None or self.cut_right_px is None:
                raise ValueError("a linear sector needs cut_left_px and cut_right_px: its sides")
            left, right, top, bottom = (
                self.cut_left_px,
                self.cut_right_px,
                self.near_px,
                self.far_px,
            )
            return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
        # np.linspace and np.stack would cost more than all the rest; a fit draws a dozen fans.
        angle = _ARC_STEPS * ((self.right_deg - self.left_deg) / (_ARC_POINTS - 1)) + self.left_deg
        angle[-1] = self.right_deg
        np.radians(angle, out=angle)
        across, down = np.sin(angle), self.row_stretch * np.cos(angle)
        border = np.empty((2 * _ARC_POINTS, 2))
        border[:_ARC_POINTS, 0] = self.apex_x_px + self.near_px * across
        border[:_ARC_POINTS, 1] = self.apex_y_px + self.near_px * down
        border[_ARC_POINTS:, 0] = self.apex_x_px + self.far_px * across[::-1]
        border[_ARC_POINTS:, 1] = self.apex_y_px + self.far_px * down[::-1]
        return border

    def corners(self) -> np.ndarray:
        """Where the sides meet the arcs, before the cuts.

        Returns:
            `(4, 2)` float64, x and y in px: near left, near right, far right, far left.
        """
        outline = self.outline()
        if self.kind == "linear":
            return outline
        return outline[[0, _ARC_POINTS - 1, _ARC_POINTS, 2 * _ARC_POINTS - 1]]

    def with_corners(self, corners: np.ndarray) -> "Fan":
        """The fan of the same kind and cuts that has these corners, as near as a fan can.

        The sides run through their two corners and meet in the apex; each arc lies at the mean
        distance of its two corners.

        Args:
            corners: `(4, 2)` in the order of `corners`, px.

        Raises:
            ValueError: if they are not those of a fan that opens downwards.

        Example:
            >>> fan = Fan("convex", 50.0, -20.0, -30.0, 30.0, 30.0, 90.0)
            >>> round(fan.with_corners(fan.corners() + [5, 0]).apex_x_px, 6)
            55.0
        """
        near_left, near_right, far_right, far_left = np.asarray(corners, float).reshape(4, 2)
        if self.kind == "linear":
            changes = {
                "near_px": (near_left[1] + near_right[1]) / 2,
                "far_px": (far_left[1] + far_right[1]) / 2,
                "cut_left_px": (near_left[0] + far_left[0]) / 2,
                "cut_right_px": (near_right[0] + far_right[0]) / 2,
                "apex_x_px": (near_left[0] + near_right[0] + far_right[0] + far_left[0]) / 4,
            }
            is_fan = changes["near_px"] < changes["far_px"]
            is_fan &= changes["cut_left_px"] < changes["cut_right_px"]
        else:
            scale = np.array([1.0, self.row_stretch])
            points = [point / scale for point in (near_left, near_right, far_right, far_left)]
            changes = _fan_through(*points)
            changes["apex_y_px"] *= self.row_stretch
            is_fan = 0 <= changes["near_px"] < changes["far_px"]
            is_fan &= -90 < changes["left_deg"] < changes["right_deg"] < 90
        if not is_fan:
            raise ValueError(
                "Expected the corners of a fan that opens downwards: two at the probe, two at the "
                "far end, left ones on the left. Received: corners that cross or lie in another "
                f"order, {np.round(corners).tolist()}. Put them back, or undo."
            )
        numbers: dict[str, Any] = {name: float(value) for name, value in changes.items()}
        return replace(self, **numbers)

    def depth_px(self, shape: tuple[int, int]) -> np.ndarray:
        """Distance from the probe's face along the beam.

        Args:
            shape: height and width of the frame in px.

        Returns:
            `(height, width)` float32, px; negative above the near arc. Pixels outside the fan
            carry the value their beam would have.
        """
        rows = np.arange(shape[0], dtype=np.float32)[:, None]
        if self.kind == "linear":
            return np.broadcast_to(rows - np.float32(self.near_px), shape).copy()
        columns = np.arange(shape[1], dtype=np.float32)[None, :]
        across = columns - np.float32(self.apex_x_px)
        down = (rows - np.float32(self.apex_y_px)) / np.float32(self.row_stretch)
        return np.sqrt(across**2 + down**2) - np.float32(self.near_px)

    def angle_deg(self, shape: tuple[int, int]) -> np.ndarray:
        """Angle of the beam through each pixel.

        Args:
            shape: height and width of the frame in px.

        Returns:
            `(height, width)` float32, degrees from straight down, negative to the left; 0
            everywhere for a linear probe.
        """
        if self.kind == "linear":
            return np.zeros(shape, np.float32)
        rows = np.arange(shape[0], dtype=np.float32)[:, None] - np.float32(self.apex_y_px)
        columns = np.arange(shape[1], dtype=np.float32)[None, :] - np.float32(self.apex_x_px)
        return np.degrees(np.arctan2(columns, rows / np.float32(self.row_stretch)))


def _fan_through(
    near_left: np.ndarray, near_right: np.ndarray, far_right: np.ndarray, far_left: np.ndarray
) -> dict[str, float]:
    """Apex, radii and angles of the fan with these corners; NaN where its sides do not meet."""
    left, right = far_left - near_left, far_right - near_right
    sides = np.column_stack([left, -right])
    if abs(np.linalg.det(sides)) < 1e-9:
        apex = np.array([np.nan, np.nan])
    else:
        apex = near_left + left * np.linalg.solve(sides, near_right - near_left)[0]
    # Signed: a corner above the apex is at a negative distance.
    radii = [
        float(np.dot(corner - apex, side) / np.hypot(*side))
        for corner, side in (
            (near_left, left), (near_right, right), (far_left, left), (far_right, right)
        )
    ]  # fmt: skip
    return {
        "apex_x_px": apex[0],
        "apex_y_px": apex[1],
        "near_px": (radii[0] + radii[1]) / 2,
        "far_px": (radii[2] + radii[3]) / 2,
        "left_deg": float(np.degrees(np.arctan2(left[0], left[1]))),
        "right_deg": float(np.degrees(np.arctan2(right[0], right[1]))),
    }
