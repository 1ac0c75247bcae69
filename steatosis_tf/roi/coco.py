"""COCO JSON, the instances format of https://cocodataset.org/#format-data.

Boxes are annotations without a segmentation; polygons are annotations with one ring. A box's
`attributes` say whether a person drew it, as CVAT writes and reads them.
"""

from collections.abc import Iterable
from typing import Any

from steatosis_tf.roi.annotated_frame import (
    AnnotatedFrame,
    LabelledBox,
    LabelledPolygon,
    polygon_area,
    rounded_box,
)


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
                new_boxes, new_polygons = _shapes(annotation, labels[annotation["category_id"]])
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
            fields = _box_fields(shape) if isinstance(shape, LabelledBox) else _ring_fields(shape)
            ids = {"id": len(annotations) + 1, "image_id": image_id}
            annotations.append({**ids, "category_id": category[shape.label], **fields})
    return {
        "info": {"description": "boxes and outlines of steatosis_tf"},
        "images": images,
        "categories": [{"id": at, "name": label} for label, at in category.items()],
        "annotations": annotations,
    }


def _shapes(
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


def _box_fields(box: LabelledBox) -> dict[str, Any]:
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


def _ring_fields(polygon: LabelledPolygon) -> dict[str, Any]:
    xs, ys = zip(*polygon.points, strict=True)
    return {
        "bbox": [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)],
        "area": polygon_area(polygon.points),
        "segmentation": [[value for point in polygon.points for value in point]],
        "iscrowd": 0,
    }
