"""Boxes and polygons of one frame, between the files of annotation tools and the manifest."""

from dataclasses import dataclass

import cv2
import numpy as np

from steatosis_tf.roi.crop import Rectangle

Point = tuple[float, float]


@dataclass(frozen=True)
class LabelledBox:
    """A box in px of the full frame.

    Attributes:
        label: what is in it, for example "roi".
        rectangle: whole px; a tool's fractions are rounded edge by edge.
        source: "person" or "auto".
        quality: 0 to 1; None if unknown.
    """

    label: str
    rectangle: Rectangle
    source: str = "person"
    quality: float | None = None


@dataclass(frozen=True)
class LabelledPolygon:
    """A closed outline; `points` are `(x, y)`, px of the full frame, (0, 0) its top left corner.

    The centre of the top left pixel is at (0.5, 0.5), as COCO has it.
    """

    label: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class AnnotatedFrame:
    """What an annotation file says about a frame.

    Attributes:
        path: as the file has it, possibly with a tool's own prefix.
        height: of the frame, px.
        width: of the frame, px.
    """

    path: str
    height: int
    width: int
    boxes: tuple[LabelledBox, ...] = ()
    polygons: tuple[LabelledPolygon, ...] = ()

    @property
    def shapes(self) -> tuple[LabelledBox | LabelledPolygon, ...]:
        """Boxes, then polygons."""
        return (*self.boxes, *self.polygons)


def rounded_box(left: float, top: float, right: float, bottom: float) -> Rectangle:
    """Whole px around a box with fractions; edges are rounded, so that neighbours still meet.

    Raises:
        ValueError: if less than one px is left, or the box begins outside the frame.
    """
    # A tool that stores percent puts an edge at 0 slightly outside.
    x, y = max(0, round(left)), max(0, round(top))
    if min(left, top) < -1:
        raise ValueError(f"the box begins outside the frame (left={left:g} top={top:g} px)")
    if round(right) <= x or round(bottom) <= y:
        raise ValueError(f"the box is empty (width={right - left:g} height={bottom - top:g} px)")
    return Rectangle(y, x, round(bottom) - y, round(right) - x)


def as_box(points: tuple[Point, ...]) -> tuple[float, float, float, float] | None:
    """Left, top, right, bottom of a polygon that is an upright rectangle; None for any other.

    Some tools store boxes as polygons of four points.
    """
    xs, ys = sorted({x for x, _ in points}), sorted({y for _, y in points})
    corners = points[:-1] if len(points) == 5 and points[0] == points[-1] else points
    if len(xs) == len(ys) == 2 and len(corners) == 4 and len(set(corners)) == 4:
        neighbours = zip(corners, (*corners[1:], corners[0]), strict=True)
        if all((a[0] == b[0]) != (a[1] == b[1]) for a, b in neighbours):
            return xs[0], ys[0], xs[1], ys[1]
    return None


def polygon_area(points: tuple[Point, ...]) -> float:
    """Area of a polygon in px squared, by the shoelace formula."""
    x, y = np.array(points, float).T
    return float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2)


def polygons_of(mask: np.ndarray, label: str) -> tuple[LabelledPolygon, ...]:
    """Outer outlines of a mask; annotation files know no holes, so holes are lost.

    Args:
        mask: `(height, width)` bool.
        label: of the polygons.
    """
    contours, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    return tuple(
        LabelledPolygon(label, tuple((x + 0.5, y + 0.5) for x, y in contour[:, 0].tolist()))
        for contour in contours
        if len(contour) > 2
    )


def mask_of(polygons: list[LabelledPolygon], height: int, width: int) -> np.ndarray:
    """The union of polygons.

    Returns:
        `(height, width)` bool. `polygons_of` and back is exact for masks without holes.
    """
    mask = np.zeros((height, width), np.uint8)
    for polygon in polygons:
        # OpenCV puts whole numbers at pixel centres. Its fixed point keeps 1/16 px.
        centred = np.array(polygon.points, float) - 0.5
        cv2.fillPoly(mask, [np.rint(centred * 16).astype(np.int32)], 1, shift=4)
    return mask.astype(bool)
