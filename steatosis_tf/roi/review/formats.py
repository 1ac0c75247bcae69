"""Boxes and outlines of frames in the files of annotation tools: COCO and Label Studio JSON.

COCO is the instances format of https://cocodataset.org/#format-data: boxes are annotations without
a segmentation, polygons are annotations with one ring. A box's `attributes` say whether a person
drew it, as CVAT writes and reads them.

Label Studio's is a list of tasks, https://labelstud.io/guide/export#Label-Studio-JSON-format, with
sizes in percent of the frame. What a person drew is an annotation; what was proposed is a
prediction, which Label Studio shows for correction. The labelling set-up that fits is in
docs/review.md.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import cv2
import numpy as np

from steatosis_tf.roi.views import Rectangle

#: Where Label Studio looks for files that it serves from a folder of its own machine.
LOCAL_FILES = "/data/local-files/?d="

_BOXES, _POLYGONS = "rectanglelabels", "polygonlabels"
_MODEL = "steatosis_tf"

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


def _polygon_area(points: tuple[Point, ...]) -> float:
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


def from_coco(content: dict[str, Any]) -> tuple[list[AnnotatedFrame], list[tuple[str, str]]]:
    """Boxes and polygons of a COCO file.

    Args:
        content: the parsed file.

    Returns:
        one frame per image; and `(file_name, reason)` for each annotation that is left out.

    Raises:
        ValueError: if a part that COCO requires is missing, with its name.
    """
    try:
        labels = {category["id"]: str(category["name"]) for category in content["categories"]}
        images = {image["id"]: image for image in content["images"]}
        found: dict[Any, tuple[list[LabelledBox], list[LabelledPolygon]]] = {
            image_id: ([], []) for image_id in images
        }
        skipped = []
        for annotation in content["annotations"]:
            boxes, polygons = found[annotation["image_id"]]
            try:
                new_boxes, new_polygons = _coco_shapes(
                    annotation, labels[annotation["category_id"]]
                )
            except ValueError as error:
                name = str(images[annotation["image_id"]]["file_name"])
                skipped.append((name, f"annotation {annotation.get('id')}: {error}"))
                continue
            boxes += new_boxes
            polygons += new_polygons
        frames = [
            AnnotatedFrame(
                str(image["file_name"]),
                int(image["height"]),
                int(image["width"]),
                tuple(found[image_id][0]),
                tuple(found[image_id][1]),
            )
            for image_id, image in images.items()
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(
            "Expected COCO JSON with images (id, file_name, height, width), categories (id, name) "
            "and annotations (image_id, category_id, bbox) that refer to them. "
            f"Received: a file without {error}."
        ) from error
    return frames, skipped


def to_coco(frames: Iterable[AnnotatedFrame]) -> dict[str, Any]:
    """The content of a COCO file; ids count from 1."""
    frames = list(frames)
    labels = sorted({shape.label for frame in frames for shape in frame.shapes})
    category = {label: at for at, label in enumerate(labels, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, frame in enumerate(frames, start=1):
        images.append(
            {
                "id": image_id,
                "file_name": frame.path,
                "height": frame.height,
                "width": frame.width,
            }
        )
        for shape in frame.shapes:
            fields = _coco_box(shape) if isinstance(shape, LabelledBox) else _coco_ring(shape)
            ids = {"id": len(annotations) + 1, "image_id": image_id}
            annotations.append({**ids, "category_id": category[shape.label], **fields})
    return {
        "info": {"description": "boxes and outlines of steatosis_tf"},
        "images": images,
        "categories": [{"id": at, "name": label} for label, at in category.items()],
        "annotations": annotations,
    }


def _coco_shapes(
    annotation: dict[str, Any], label: str
) -> tuple[list[LabelledBox], list[LabelledPolygon]]:
    rings = annotation.get("segmentation") or []
    if isinstance(rings, dict):
        raise ValueError("run-length masks are not read; export polygons")
    polygons = []
    for ring in rings:
        if len(ring) < 6 or len(ring) % 2:
            raise ValueError(f"a polygon needs x, y of three points. Received: {len(ring)} numbers")
        points = tuple((float(x), float(y)) for x, y in zip(ring[::2], ring[1::2], strict=True))
        polygons.append(LabelledPolygon(label, points))
    if polygons:
        return [], polygons
    left, top, width, height = map(float, annotation["bbox"])
    attributes = annotation.get("attributes") or {}
    source = "auto" if attributes.get("source") == "auto" else "person"
    rectangle = rounded_box(left, top, left + width, top + height)
    return [LabelledBox(label, rectangle, source, attributes.get("quality"))], []


def _coco_box(box: LabelledBox) -> dict[str, Any]:
    sides = box.rectangle
    attributes: dict[str, Any] = {"source": box.source}
    if box.quality is not None:
        attributes["quality"] = box.quality
    return {
        "bbox": [sides.left, sides.top, sides.width, sides.height],
        "area": sides.width * sides.height,
        "segmentation": [],
        "iscrowd": 0,
        "attributes": attributes,
    }


def _coco_ring(polygon: LabelledPolygon) -> dict[str, Any]:
    xs, ys = zip(*polygon.points, strict=True)
    return {
        "bbox": [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)],
        "area": _polygon_area(polygon.points),
        "segmentation": [[value for point in polygon.points for value in point]],
        "iscrowd": 0,
    }


def from_label_studio(
    content: list[dict[str, Any]],
) -> tuple[list[AnnotatedFrame], list[tuple[str, str]]]:
    """Boxes and polygons of a Label Studio export.

    Args:
        content: the parsed file.

    Returns:
        one frame per task that has anything; and `(path, reason)` for what is left out.

    Raises:
        ValueError: if it is not Label Studio's JSON export.
    """
    frames, skipped = [], []
    for task in content:
        path = ""
        try:
            path = _path(str(next(iter(task["data"].values()))))
            regions, source = _regions(task)
            if regions:
                frame, faults = _frame(path, regions, source)
                frames.append(frame)
                skipped += [(path, fault) for fault in faults]
        except ValueError as error:
            skipped.append((path, str(error)))
        except (KeyError, TypeError, AttributeError, StopIteration) as error:
            raise ValueError(
                "Expected Label Studio's JSON export (not JSON-MIN), a list of tasks with data "
                f"and annotations. Received: task {task.get('id')} without {error}."
            ) from error
    return frames, skipped


def to_label_studio(frames: Iterable[AnnotatedFrame]) -> list[dict[str, Any]]:
    """Tasks to import into Label Studio, of frames with paths relative to the manifest."""
    tasks = []
    for at, frame in enumerate(frames, start=1):
        task: dict[str, Any] = {"id": at, "data": {"image": LOCAL_FILES + frame.path}}
        drawn = [_box_region(box, frame) for box in frame.boxes if box.source == "person"]
        drawn += [_polygon_region(polygon, frame) for polygon in frame.polygons]
        proposed = [box for box in frame.boxes if box.source != "person"]
        task["annotations"] = [{"result": drawn, "was_cancelled": False}] if drawn else []
        task["predictions"] = [
            {"model_version": _MODEL, "score": box.quality, "result": [_box_region(box, frame)]}
            for box in proposed
        ]
        tasks.append(task)
    return tasks


def _path(address: str) -> str:
    """The file behind an address, without what Label Studio has put before it."""
    parts = urlsplit(address)
    local = parse_qs(parts.query).get("d")
    if local:
        return local[0]
    path = unquote(parts.path).lstrip("/")
    # An upload is renamed to data/upload/<project>/<8 hex digits>-<name>.
    return re.sub(r"^data/upload/(\d+/)?[0-9a-f]{8}-", "", path)


def _regions(task: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    results = [
        annotation["result"]
        for annotation in task["annotations"]
        if annotation["result"] and not annotation.get("was_cancelled")
    ]
    if len(results) > 1:
        raise ValueError(
            f"{len(results)} people annotated it; decide on one annotation a task, then export"
        )
    if results:
        return results[0], "person"
    predictions = task.get("predictions") or []
    return (predictions[-1]["result"], "auto") if predictions else ([], "")


def _frame(
    path: str, regions: list[dict[str, Any]], source: str
) -> tuple[AnnotatedFrame, list[str]]:
    boxes: list[LabelledBox] = []
    polygons: list[LabelledPolygon] = []
    faults = []
    for region in regions:
        try:
            label, points = _outline(region)
            corners = as_box(points) if region["type"] == _BOXES else None
            if corners is None:
                polygons.append(LabelledPolygon(label, points))
            else:
                boxes.append(LabelledBox(label, rounded_box(*corners), source))
        except ValueError as error:
            faults.append(f"region {region.get('id')}: {error}")
    size = regions[0]["original_height"], regions[0]["original_width"]
    return AnnotatedFrame(path, int(size[0]), int(size[1]), tuple(boxes), tuple(polygons)), faults


def _outline(region: dict[str, Any]) -> tuple[str, tuple[tuple[float, float], ...]]:
    kind, value = region["type"], region["value"]
    if kind not in (_BOXES, _POLYGONS):
        raise ValueError(f"expected rectangle or polygon labels. Received: type={kind!r}")
    if region.get("image_rotation"):
        raise ValueError("the image was rotated in Label Studio; turn it back")
    if len(value[kind]) != 1:
        raise ValueError(f"expected one label. Received: {value[kind]}")
    across, down = region["original_width"] / 100, region["original_height"] / 100
    if kind == _POLYGONS:
        if len(value["points"]) < 3:
            raise ValueError("a polygon needs three points")
        return value[kind][0], tuple((x * across, y * down) for x, y in value["points"])
    left, top = value["x"] * across, value["y"] * down
    width, height = value["width"] * across, value["height"] * down
    angle = math.radians(value.get("rotation") or 0)
    if not angle:
        right, bottom = left + width, top + height
        return value[kind][0], ((left, top), (right, top), (right, bottom), (left, bottom))
    # Label Studio turns a rectangle clockwise around its top left corner.
    cos, sin = math.cos(angle), math.sin(angle)
    offsets = ((0.0, 0.0), (width, 0.0), (width, height), (0.0, height))
    return value[kind][0], tuple(
        (left + x * cos - y * sin, top + x * sin + y * cos) for x, y in offsets
    )


def _region(
    kind: str, control: str, frame: AnnotatedFrame, value: dict[str, Any]
) -> dict[str, Any]:
    return {
        "type": kind,
        "from_name": control,
        "to_name": "image",
        "original_width": frame.width,
        "original_height": frame.height,
        "image_rotation": 0,
        "value": value,
    }


def _box_region(box: LabelledBox, frame: AnnotatedFrame) -> dict[str, Any]:
    sides = box.rectangle
    value = {
        "x": 100 * sides.left / frame.width,
        "y": 100 * sides.top / frame.height,
        "width": 100 * sides.width / frame.width,
        "height": 100 * sides.height / frame.height,
        "rotation": 0,
        _BOXES: [box.label],
    }
    return _region(_BOXES, "box", frame, value)


def _polygon_region(polygon: LabelledPolygon, frame: AnnotatedFrame) -> dict[str, Any]:
    points = [[100 * x / frame.width, 100 * y / frame.height] for x, y in polygon.points]
    value = {"points": points, "closed": True, _POLYGONS: [polygon.label]}
    return _region(_POLYGONS, "outline", frame, value)
