"""Rows of the tables that an ingest writes."""

import os

from steatosis_tf.sources.dicom.clip_frames import ClipResult, frame_name
from steatosis_tf.sources.dicom.deidentify import KEPT_FIELDS
from steatosis_tf.sources.dicom.output import IMAGES_DIR
from steatosis_tf.sources.dicom.scan import Scan

LABEL_COLUMNS = ("path", "patient_id", "study_id", "source_id", "frame_index", *KEPT_FIELDS)
REJECTED_COLUMNS = (
    "source_id",
    "file_number",
    "frame_index",
    "patient_id",
    "study_id",
    "reason",
)
LOG_COLUMNS = (
    "source_id",
    "num_frames",
    "num_chosen",
    "num_written",
    "fields_kept",
    "num_elements_dropped",
    "kept_by",
    "kept_top",
    "kept_left",
    "kept_height",
    "kept_width",
    "kept_percent",
    "burned_in_annotation",
)
PRIVATE_COLUMNS = (
    "source_id",
    "file_number",
    "file",
    "patient_id",
    "original_patient_id",
    "study_id",
    "original_study_uid",
    "study_date",
)


def label_rows(scan: Scan, result: ClipResult, days: dict[str, int]) -> list[dict[str, str]]:
    """Rows of `labels.csv`: one per frame written."""
    day = days.get(scan.source_id)
    return [
        {
            **scan.fields,
            "days_since_first_study": "" if day is None else str(day),
            "path": f"{IMAGES_DIR}/{frame_name(scan.clip_id, index)}",
            "patient_id": scan.patient_id,
            "study_id": scan.study_id,
            "source_id": scan.source_id,
            "frame_index": str(index),
        }
        for index, _ in result.frames
    ]


def rejected_rows(scan: Scan, result: ClipResult) -> list[dict[str, object]]:
    """Rows of `rejected.csv`: one per frame not written, or one for the whole file."""
    return [
        {
            "source_id": scan.source_id,
            "file_number": scan.file.number,
            "frame_index": "" if index < 0 else index,
            "patient_id": scan.patient_id,
            "study_id": scan.study_id,
            "reason": reason,
        }
        for index, reason in result.rejected
    ]


def log_row(scan: Scan, result: ClipResult) -> dict[str, object]:
    """Row of `deidentification.csv`: what of one file was kept."""
    kept = [name for name in KEPT_FIELDS if scan.fields.get(name)]
    box = dict(
        zip(("kept_top", "kept_left", "kept_height", "kept_width"), result.kept_box, strict=True)
    )
    return {
        **box,
        "source_id": scan.source_id,
        "num_frames": 0 if scan.layout is None else scan.layout.num_frames,
        "num_chosen": len(result.frames) + len(result.rejected),
        "num_written": len(result.frames),
        "fields_kept": " ".join(kept),
        "num_elements_dropped": scan.num_elements_dropped,
        "kept_by": result.kept_by,
        "kept_percent": result.kept_percent,
        "burned_in_annotation": "" if scan.header is None else scan.header.burned_in,
    }


def private_row(scan: Scan) -> dict[str, object]:
    """Row of the table beside the key: the only one with names and original ids."""
    header = scan.header
    return {
        "source_id": scan.source_id,
        "file_number": scan.file.number,
        "file": os.fsdecode(scan.file.name).replace("\0", " copy "),
        "patient_id": scan.patient_id,
        "study_id": scan.study_id,
        "original_patient_id": "" if header is None else _writable(header.patient_id),
        "original_study_uid": "" if header is None else _writable(header.study_uid),
        "study_date": "" if header is None else header.study_date or "",
    }


def _writable(text: str) -> str:
    """A value as UTF-8 can hold it; damaged headers decode to halves of characters."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", " ")
