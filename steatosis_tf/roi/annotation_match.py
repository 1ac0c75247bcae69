"""Which frame of a manifest an annotation is about, and whether it may go in."""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from steatosis_tf.cohort.manifest import frame_path
from steatosis_tf.roi.annotated_frame import (
    AnnotatedFrame,
    LabelledBox,
    LabelledPolygon,
    as_box,
    mask_of,
    rounded_box,
)
from steatosis_tf.roi.crop import Rectangle
from steatosis_tf.roi.decision_rules import Decision
from steatosis_tf.roi.decisions import DecisionStore
from steatosis_tf.sources.folder import read_frame

#: Outlines that are exchanged as mask files `<frame file stem>_<label>.png`.
MASK_LABELS = ("sector", "liver")

# A percentage with a few decimals lands a px outside; more is a box for another picture.
_SLACK_PX = 1


@dataclass
class Gathered:
    """What may go in: decisions and mask files; and `(path, reason)` of what may not."""

    decisions: list[Decision] = field(default_factory=list)
    masks: list[tuple[Path, np.ndarray]] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)


def gathered_from(
    frames: list[AnnotatedFrame], store: DecisionStore, roi_label: str, masks_dir: Path | None
) -> Gathered:
    """Match annotated frames with the manifest.

    Args:
        frames: from an annotation file.
        store: of the manifest.
        roi_label: label of the boxes that are the ROI.
        masks_dir: where outlines go; None leaves them out.
    """
    gathered = Gathered()
    find = _Finder(store)
    seen: set[int] = set()
    for frame in frames:
        try:
            at = find(frame.path)
            if at in seen:
                raise ValueError("the file has this frame twice")
            seen.add(at)
            size = frame_size(store.path, store.manifest_path_of(at))
            if size != (frame.height, frame.width):
                raise ValueError(
                    f"annotated at {frame.width} x {frame.height} px, but the frame has "
                    f"{size[1]} x {size[0]} px"
                )
            gathered.masks += _masks(frame, store.manifest_path_of(at), masks_dir)
            decision = _decision(frame, at, store, roi_label)
            if decision is not None:
                gathered.decisions.append(decision)
        except ValueError as error:
            gathered.rejected.append((frame.path, str(error)))
    return gathered


def _decision(
    frame: AnnotatedFrame, at: int, store: DecisionStore, roi_label: str
) -> Decision | None:
    boxes = [box for box in frame.boxes if box.label.lower() == roi_label.lower()]
    boxes += [
        _box_of(polygon) for polygon in frame.polygons if polygon.label.lower() == roi_label.lower()
    ]
    if not boxes:
        return None
    if len(boxes) > 1:
        raise ValueError(f"{len(boxes)} boxes labelled {roi_label}; a frame has one ROI")
    if boxes[0].source != "person":
        raise ValueError("predicted, not drawn by a person; `steatosis roi` proposes boxes")
    cells = store.cells(at)
    if cells.state:
        raise ValueError(f"{cells.state} by {cells.reviewer} already; reopen it to import")
    box = _inside(boxes[0].rectangle, frame.height, frame.width)
    return Decision(store.frame_id(at), cells.revision, "correct", box, "imported")


def _box_of(polygon: LabelledPolygon) -> LabelledBox:
    corners = as_box(polygon.points)
    if corners is None:
        raise ValueError(f"the outline labelled {polygon.label} is no upright rectangle")
    return LabelledBox(polygon.label, rounded_box(*corners))


def _inside(box: Rectangle, height: int, width: int) -> Rectangle:
    if box.bottom > height + _SLACK_PX or box.right > width + _SLACK_PX:
        raise ValueError(f"the box leaves the frame of {width} x {height} px: {box}")
    bottom, right = min(box.bottom, height), min(box.right, width)
    return Rectangle(box.top, box.left, bottom - box.top, right - box.left)


class _Finder:
    """Rows by path, or by the end of a path where that names one row only."""

    def __init__(self, store: DecisionStore) -> None:
        self._rows: dict[str, set[int]] = defaultdict(set)
        for at in range(len(store)):
            parts = PurePosixPath(store.manifest_path_of(at)).parts
            for start in range(len(parts)):
                self._rows["/".join(parts[start:])].add(at)

    def __call__(self, path: str) -> int:
        # Tools write their own folders before the study's, and Windows its own separators.
        parts = [part for part in re.split(r"[\\/]+", path) if part not in ("", ".", "..")]
        for start in range(len(parts)):
            rows = self._rows.get("/".join(parts[start:]), set())
            if len(rows) == 1:
                return next(iter(rows))
            if rows:
                raise ValueError(f"{len(rows)} frames of the manifest end in this path")
        raise ValueError("no frame of the manifest has this path")


def _masks(
    frame: AnnotatedFrame, path: str, masks_dir: Path | None
) -> Iterator[tuple[Path, np.ndarray]]:
    for label in MASK_LABELS if masks_dir else ():
        polygons = [one for one in frame.polygons if one.label.lower() == label]
        if polygons and masks_dir:
            name = f"{PurePosixPath(path).stem}_{label}.png"
            yield masks_dir / name, mask_of(polygons, frame.height, frame.width)


def frame_size(manifest_path: str | Path, path: str) -> tuple[int, int]:
    """Height and width of a frame in px.

    Raises:
        ValueError: if it cannot be read.
    """
    frame = read_frame(frame_path(manifest_path, path))
    return frame.shape[0], frame.shape[1]
