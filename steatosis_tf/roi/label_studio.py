"""Label Studio JSON: a list of tasks, https://labelstud.io/guide/export#Label-Studio-JSON-format.

Sizes are percent of the frame. What a person drew is an annotation; what was proposed is a
prediction, which Label Studio shows for correction. The labelling set-up that fits is in
docs/review.md.
"""

import math
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from steatosis_tf.roi.annotated_frame import (
    AnnotatedFrame,
    LabelledBox,
    LabelledPolygon,
    as_box,
    rounded_box,
)

#: Where Label Studio looks for files that it serves from a folder of its own machine.
LOCAL_FILES = "/data/local-files/?d="

_BOXES, _POLYGONS = "rectanglelabels", "polygonlabels"
_MODEL = "steatosis_tf"


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


def to_label_studio(
    frames: Iterable[AnnotatedFrame], *, prefix: str = LOCAL_FILES
) -> list[dict[str, Any]]:
    """Tasks to import into Label Studio.

    Args:
        frames: with paths relative to the manifest.
        prefix: put before each path.
    """
    tasks = []
    for at, frame in enumerate(frames, start=1):
        task: dict[str, Any] = {"id": at, "data": {"image": prefix + frame.path}}
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
