"""Boxes and outlines from other tools into a manifest, and back; decisions as CSV."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from steatosis_tf.cohort.decision_store import export_decisions
from steatosis_tf.cohort.manifest import frame_path, read_manifest
from steatosis_tf.files import open_regular, replacing
from steatosis_tf.roi.review.formats import (
    AnnotatedFrame,
    LabelledBox,
    LabelledPolygon,
    as_box,
    from_coco,
    from_label_studio,
    mask_of,
    polygons_of,
    rounded_box,
    to_coco,
    to_label_studio,
)
from steatosis_tf.roi.review.rules import Decision, RoiCells
from steatosis_tf.roi.review.store import DecisionStore
from steatosis_tf.roi.views import Rectangle
from steatosis_tf.sources.images import read_frame, write_png

FORMATS = ("coco", "label_studio")
ROI_LABEL = "roi"

#: Outlines that are exchanged as mask files `<frame file stem>_<label>.png`.
MASK_LABELS = ("sector", "liver")

# A percentage with a few decimals lands a px outside; more is a box for another picture.
_SLACK_PX = 1


@dataclass(frozen=True)
class ImportSummary:
    """What became of an annotation file.

    Attributes:
        num_boxes: boxes that are in the manifest now.
        num_masks: mask files written.
        rejected: `(path, reason)` of what was left out; also in `rejected_path`.
        rejected_path: CSV beside the manifest; written even when it is empty.
    """

    num_boxes: int
    num_masks: int
    rejected: tuple[tuple[str, str], ...]
    rejected_path: str


def read_annotations(path: str | Path) -> tuple[list[AnnotatedFrame], list[tuple[str, str]]]:
    """Read COCO JSON or Label Studio JSON; which of them is seen from the content.

    Returns:
        frames, and `(path, reason)` of what is left out.

    Raises:
        ValueError: if the file is missing, not JSON, or neither format.
    """
    path = Path(path)
    try:
        with open_regular(path) as file:
            content = json.loads(file.read().decode("utf-8-sig"))
    except OSError as error:
        raise ValueError(
            f"Expected an annotation file. Received: {path.name} ({error.strerror})."
        ) from error
    except ValueError as error:
        raise ValueError(f"Expected JSON. Received: {path.name}, {error}.") from error
    if isinstance(content, dict) and "images" in content:
        return from_coco(content)
    if isinstance(content, list) and all(isinstance(task, dict) for task in content):
        return from_label_studio(content)
    raise ValueError(
        f"Expected COCO JSON (an object with images, annotations, categories) or Label Studio "
        f"JSON (a list of tasks). Received: {path.name} with neither."
    )


def write_annotations(frames: list[AnnotatedFrame], path: str | Path, *, file_format: str) -> None:
    """Write frames as one JSON file, whole or not at all.

    Args:
        frames: paths are written as they are; Label Studio's get its local-files prefix.
        path: file to write or replace.
        file_format: one of `FORMATS`.

    Raises:
        ValueError: if the format is unknown.
    """
    if file_format not in FORMATS:
        raise ValueError(
            f"Expected a format out of {', '.join(FORMATS)}. Received: file_format={file_format!r}."
        )
    content: Any = to_coco(frames) if file_format == "coco" else to_label_studio(frames)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def export_annotations(
    manifest_path: str | Path,
    output_path: str | Path,
    *,
    file_format: str,
    masks_dir: str | Path | None = None,
) -> int:
    """Write the boxes of a manifest, and outlines from mask files, for another tool.

    With `file_format="csv"`, write all decisions that people have taken instead.

    Args:
        manifest_path: with ROI columns.
        output_path: file to write or replace.
        file_format: one of `FORMATS`, or "csv".
        masks_dir: folder with `<frame file stem>_sector.png` and `<stem>_liver.png`.

    Returns:
        number of frames written, those without a box and an outline left out; or of decisions.

    Raises:
        ValueError: if the manifest, the format or a frame is faulty.
    """
    if file_format == "csv":
        return export_decisions(manifest_path, output_path)
    frames = []
    for row in read_manifest(manifest_path).to_dict("records"):
        cells = RoiCells.from_row(row)
        masks = list(_mask_files(masks_dir, row["path"]))
        if cells.rectangle is None and not masks:
            continue
        height, width = _frame_size(manifest_path, row["path"])
        frame = AnnotatedFrame(row["path"], height, width)
        if cells.rectangle is not None:
            # A proposal that a person accepted is a person's box for whoever learns from it.
            source = "person" if cells.state else cells.source or "auto"
            box = LabelledBox(ROI_LABEL, cells.rectangle, source, cells.quality)
            frame = replace(frame, boxes=(box,))
        for label, path in masks:
            polygons = polygons_of(_read_mask(path, height, width), label)
            frame = replace(frame, polygons=(*frame.polygons, *polygons))
        frames.append(frame)
    write_annotations(frames, output_path, file_format=file_format)
    return len(frames)


def import_annotations(
    annotations_path: str | Path,
    manifest_path: str | Path,
    *,
    reviewer: str,
    roi_label: str = ROI_LABEL,
    masks_dir: str | Path | None = None,
) -> ImportSummary:
    """Take boxes into a manifest as a person's, and outlines as mask files.

    A frame that a person has decided about already keeps that decision. Boxes that a tool only
    predicted are left out. Frames are found by their path, or by the end of it if that is unique.

    Args:
        annotations_path: COCO JSON or Label Studio JSON.
        manifest_path: manifest of the same frames.
        reviewer: goes into `roi_reviewer`.
        roi_label: label of the boxes that are the ROI; case does not matter.
        masks_dir: where outlines labelled `sector` and `liver` go, as
            `<frame file stem>_<label>.png`, 0 and 255; None leaves outlines out.

    Raises:
        ValueError: if a file cannot be read, or nothing in it has a label that is wanted.
    """
    frames, skipped = read_annotations(annotations_path)
    wanted = {roi_label.lower(), *(MASK_LABELS if masks_dir else ())}
    labels = {shape.label for frame in frames for shape in frame.shapes}
    if labels and not wanted & {label.lower() for label in labels}:
        raise ValueError(
            f"Expected shapes labelled {', '.join(sorted(wanted))}. Received: "
            f"{Path(annotations_path).name} with the labels {', '.join(sorted(labels))}."
        )
    store = DecisionStore(manifest_path)
    gathered = _gathered_from(frames, store, roi_label, Path(masks_dir) if masks_dir else None)
    for path, mask in gathered.masks:
        write_png(mask.astype(np.uint8) * 255, path)
    outcomes = store.decide_all(gathered.decisions, reviewer=reviewer)
    store.close()
    rejected = (*skipped, *gathered.rejected)
    rejected_path = Path(manifest_path).with_name("annotations_rejected.csv")
    with replacing(rejected_path) as temporary:
        pd.DataFrame(list(rejected), columns=["path", "reason"]).to_csv(temporary, index=False)
    num_boxes = sum(outcome.saved for outcome in outcomes)
    return ImportSummary(num_boxes, len(gathered.masks), rejected, str(rejected_path))


def _mask_files(masks_dir: str | Path | None, path: str) -> Iterator[tuple[str, Path]]:
    for label in MASK_LABELS if masks_dir else ():
        file = Path(masks_dir or "") / f"{PurePosixPath(path).stem}_{label}.png"
        if file.is_file():
            yield label, file


def _read_mask(path: Path, height: int, width: int) -> np.ndarray:
    mask = read_frame(path)
    if mask.shape != (height, width):
        raise ValueError(
            f"Expected a grey mask of {width} x {height} px, as its frame. "
            f"Received: {path.name} with shape={mask.shape}."
        )
    return mask > 127


@dataclass
class _Gathered:
    """What may go in: decisions and mask files; and `(path, reason)` of what may not."""

    decisions: list[Decision] = field(default_factory=list)
    masks: list[tuple[Path, np.ndarray]] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)


def _gathered_from(
    frames: list[AnnotatedFrame], store: DecisionStore, roi_label: str, masks_dir: Path | None
) -> _Gathered:
    """Match annotated frames with the manifest.

    Args:
        frames: from an annotation file.
        store: of the manifest.
        roi_label: label of the boxes that are the ROI.
        masks_dir: where outlines go; None leaves them out.
    """
    gathered = _Gathered()
    find = _Finder(store)
    seen: set[int] = set()
    for frame in frames:
        try:
            at = find(frame.path)
            if at in seen:
                raise ValueError("the file has this frame twice")
            seen.add(at)
            size = _frame_size(store.path, store.manifest_path_of(at))
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
    if cells.view:
        raise ValueError(f"the model sees its {cells.view}, not a box; correct its fan instead")
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


def _frame_size(manifest_path: str | Path, path: str) -> tuple[int, int]:
    """Height and width of a frame in px.

    Raises:
        ValueError: if it cannot be read.
    """
    frame = read_frame(frame_path(manifest_path, path))
    return frame.shape[0], frame.shape[1]
