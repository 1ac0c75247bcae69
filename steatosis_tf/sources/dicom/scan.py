"""One file of an export: what its header says, whether it is used, its rows in the tables."""

import datetime
import io
import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

from steatosis_tf.sources.dicom.deidentify import KEPT_FIELDS, ClipResult, frame_name, kept_fields
from steatosis_tf.sources.dicom.files import Source, SourceFile
from steatosis_tf.sources.dicom.pixels import Layout, pixel_bytes, read_layout
from steatosis_tf.sources.dicom.read import (
    Header,
    Person,
    Region,
    find_region,
    read_dataset,
    read_header,
)
from steatosis_tf.sources.pseudonym import normal_patient_id, pseudonym
from steatosis_tf.sources.rejection import Rejection


@dataclass(frozen=True)
class Scan:
    """One file after the first pass.

    Attributes:
        file: where it is.
        source_id: keyed hash of its relative path.
        rejection: why it is left out, or None.
        header: None if the file is no ultrasound image of a known patient.
        layout: None if the file is left out.
        region: its 2-D region, or None.
        patient_id, study_id, clip_id: pseudonyms, "" without a header.
        fields: cells of `KEPT_FIELDS` but for the days since the first study.
        num_elements_dropped: header elements that do not leave.
    """

    file: SourceFile
    source_id: str
    rejection: Rejection | None = None
    header: Header | None = None
    layout: Layout | None = None
    region: Region | None = None
    patient_id: str = ""
    study_id: str = ""
    clip_id: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    num_elements_dropped: int = 0


def scan_file(source: Source, file: SourceFile, key: bytes, allow_burned_in: bool) -> Scan:
    """Read the header of one file and decide whether it is used; never raises for its content."""
    scan = Scan(file, pseudonym(key, "source", file.name))
    try:
        with source.open(file) as stream:
            dataset = read_dataset(stream, with_pixels=False)
        header = read_header(dataset)
        scan = replace(
            scan,
            header=header,
            patient_id=pseudonym(key, "patient", *header.patient),
            study_id=pseudonym(key, "study", header.study_uid),
            clip_id=pseudonym(key, "clip", header.instance_uid or b"file \0" + file.name),
        )
        layout = read_layout(dataset)
        region = find_region(dataset, layout.rows, layout.columns)
        if header.burned_in == "YES" and not allow_burned_in:
            raise Rejection("burned_in")
        fields = kept_fields(dataset, header, region)
    except Rejection as rejection:
        return replace(scan, rejection=rejection)
    return replace(
        scan,
        layout=layout,
        region=region,
        fields=fields,
        num_elements_dropped=len(dataset) - sum(bool(fields[name]) for name in KEPT_FIELDS[:2]),
    )


def first_study_days(scans: Sequence[Scan]) -> dict[str, int]:
    """Days from the first study of a patient to the study of a file.

    Args:
        scans: of all files of the export; one that is left out for its picture still dates its
            patient's first visit.

    Returns:
        source_id -> days, for the files that have a date.
    """
    first: dict[str, datetime.date] = {}
    dated = [
        (scan.source_id, scan.patient_id, scan.header.study_date)
        for scan in scans
        if scan.header is not None and scan.header.study_date is not None
    ]
    for _, patient_id, date in dated:
        first[patient_id] = min(first.get(patient_id, date), date)
    return {source_id: (date - first[patient_id]).days for source_id, patient_id, date in dated}


def refuse_repeats(source: Source, scans: Sequence[Scan]) -> list[Scan]:
    """Leave out files that carry a SOPInstanceUID another file carries too.

    Copies of one object (same patient, study and pixels) keep their first file, a truncated copy
    leaves the whole one; files that claim one UID for different content are all refused, since
    nobody can tell which is right.
    """
    groups: dict[str, list[Scan]] = {}
    for scan in scans:
        if not scan.rejection and scan.header is not None and scan.header.instance_uid:
            groups.setdefault(scan.clip_id, []).append(scan)
    refused: dict[str, Rejection] = {}
    for group in groups.values():
        if len(group) > 1:
            refused.update(_repeats(source, group))
    return [
        replace(scan, rejection=refused[scan.source_id]) if scan.source_id in refused else scan
        for scan in scans
    ]


def _repeats(source: Source, group: Sequence[Scan]) -> dict[str, Rejection]:
    refused: dict[str, Rejection] = {}
    found: list[tuple[Scan, bytes]] = []
    for scan in group:
        try:
            dataset = read_dataset(io.BytesIO(source.read(scan.file)), with_pixels=True)
            found.append((scan, pixel_bytes(dataset)))
        except Rejection as rejection:
            refused[scan.source_id] = rejection
    found.sort(key=lambda pair: -len(pair[1]))  # stable: the first of equal copies stays first
    for scan, pixels in found[1:]:
        first, whole = found[0]
        if not whole.startswith(pixels) or (scan.patient_id, scan.study_id) != (
            first.patient_id,
            first.study_id,
        ):
            return refused | {one.source_id: Rejection("uid_conflict") for one, _ in found}
        refused[scan.source_id] = Rejection("copy" if len(pixels) == len(whole) else "cut_copy")
    return refused


def refuse_contested_ids(scans: Sequence[Scan]) -> list[Scan]:
    """Leave out all files of an id that more than one person seems to have.

    Joined, two people would get one grade; parted by a guess, one would be trained and tested on.
    """
    persons: dict[str, set[Person]] = {}
    for scan in scans:
        if scan.header is not None:
            persons.setdefault(scan.patient_id, set()).add(scan.header.person)
    contested = {
        patient_id
        for patient_id, stated in persons.items()
        if not all(one.may_be(other) for one, other in combinations(stated, 2))
    }
    return [
        replace(scan, rejection=Rejection("contested_id"))
        if scan.patient_id in contested and not scan.rejection
        else scan
        for scan in scans
    ]


IMAGES_DIR = "images"
LABEL_COLUMNS = ("path", "patient_id", "study_id", "source_id", "frame_index", *KEPT_FIELDS)
REJECTED_COLUMNS = (
    "source_id", "file_number", "frame_index", "patient_id", "study_id", "reason", "code",
)  # fmt: skip
LOG_COLUMNS = (
    "source_id", "num_frames", "num_chosen", "num_written", "fields_kept",
    "num_elements_dropped", "kept_by", "kept_top", "kept_left", "kept_height", "kept_width",
    "kept_percent", "frames_with_marks", "burned_in_annotation",
)  # fmt: skip
PRIVATE_COLUMNS = (
    "source_id", "file_number", "file", "patient_id", "original_patient_id", "study_id",
    "original_study_uid", "study_date",
)  # fmt: skip


def frame_path(clip_id: str, index: int) -> str:
    """`path` of a frame in `labels.csv`."""
    return f"{IMAGES_DIR}/{frame_name(clip_id, index)}"


def label_rows(scan: Scan, result: ClipResult, days: dict[str, int]) -> list[dict[str, str]]:
    """Rows of `labels.csv`: one per frame written."""
    day = days.get(scan.source_id)
    return [
        {
            **scan.fields,
            "days_since_first_study": "" if day is None else str(day),
            "path": frame_path(scan.clip_id, index),
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
            "code": code,
        }
        for index, code, reason in result.rejected
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
        "num_chosen": len(result.frames) + len(result.rejected) + max(0, result.num_beyond - 1),
        "num_written": len(result.frames),
        "fields_kept": " ".join(kept),
        "num_elements_dropped": scan.num_elements_dropped,
        "kept_by": result.kept_by,
        "kept_percent": result.kept_percent,
        "frames_with_marks": " ".join(map(str, result.marked)),
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


FINDING_COLUMNS = ("finding", "patient_ids", "num_files", "what_to_do")

# Finding -> what its files share, in what they differ, and what to do.
_FINDINGS = {
    "one id in several spellings": (
        "patient", "spelling", "merged into one patient; nothing to do if that is right"),
    "one id with several names": (
        "patient", "name", "kept as one patient if the names share a word, else left out; if these "
        "are two people, correct the id in the source"),
    "one id with several birth dates": (
        "patient", "birth_date", "left out; correct the id or the date in the source"),
    "one id of several issuers": (
        "patient", "issuer", "left out; give each person an id of their own in the source"),
    "one name and birth date under several ids": (
        "person", "patient", "kept apart; if this is one person, give one id in the source, or the "
        "splits leak"),
    "ids that differ by leading zeros only": (
        "id_without_zeros", "patient", "kept apart; if this is one person, give one id in the "
        "source, or the splits leak"),
    "one study under several patients": (
        "study", "patient", "kept apart; correct the patient id in the source"),
}  # fmt: skip


def patient_findings(scans: Sequence[Scan]) -> list[dict[str, object]]:
    """Rows of `patient_findings.csv`: pseudonyms only, in a fixed order.

    Two spellings of a PatientID (case, blanks, full-width digits) are one patient already;
    everything less certain is reported and left to a person.
    """
    facts = [_facts(scan, scan.header) for scan in scans if scan.header]
    rows: list[dict[str, object]] = []
    for finding, (shared, differing, action) in _FINDINGS.items():
        groups: dict[Hashable, list[dict[str, Hashable]]] = {}
        for one in facts:
            if one[shared] and one[differing]:  # what is not stated differs from nothing
                groups.setdefault(one[shared], []).append(one)
        rows += [
            {
                "finding": finding,
                "patient_ids": " ".join(sorted({str(one["patient"]) for one in group})),
                "num_files": len(group),
                "what_to_do": action,
            }
            for group in groups.values()
            if len({one[differing] for one in group}) > 1
        ]
    return sorted(rows, key=lambda row: (str(row["finding"]), str(row["patient_ids"])))


def _facts(scan: Scan, header: Header) -> dict[str, Hashable]:
    """What a file says of whom it shows; "" or () where it does not."""
    person = header.person
    return {
        "patient": scan.patient_id,
        "study": scan.study_id,
        "spelling": header.patient_id,
        "id_without_zeros": normal_patient_id(header.patient_id).lstrip("0"),
        "name": person.name,
        "birth_date": person.birth_date,
        # Names alone repeat.
        "person": (person.name, person.birth_date) if person.name and person.birth_date else "",
        "issuer": person.issuer,
    }
