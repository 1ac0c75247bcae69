"""First pass over an export: headers only, and what can be told from all of them together."""

import datetime
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from steatosis_tf.sources.dicom.deidentify import KEPT_FIELDS, kept_fields
from steatosis_tf.sources.dicom.files import Source, SourceFile
from steatosis_tf.sources.dicom.pixels import Layout, pixel_bytes, read_layout
from steatosis_tf.sources.dicom.read import Header, read_dataset, read_header
from steatosis_tf.sources.dicom.regions import Region, find_region
from steatosis_tf.sources.pseudonym import pseudonym
from steatosis_tf.sources.rejection import Rejection


@dataclass(frozen=True)
class Scan:
    """One file after the first pass.

    Attributes:
        file: where it is.
        source_id: keyed hash of its relative path.
        reason: why it is left out, or "".
        header: None if the file is no ultrasound image of a known patient.
        layout: None if the file is left out.
        region: its 2-D region, or None.
        patient_id, study_id, clip_id: pseudonyms, "" without a header.
        fields: cells of `KEPT_FIELDS` but for the days since the first study.
        num_elements_dropped: header elements that do not leave.
    """

    file: SourceFile
    source_id: str
    reason: str
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
    scan = Scan(file, pseudonym(key, "source", file.name), "")
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
        return replace(scan, reason=str(rejection))
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

    Copies of one object (same patient, study and pixels) keep their first file; files that claim
    one UID for different content are all refused, since nobody can tell which is right.
    """
    groups: dict[str, list[Scan]] = {}
    for scan in scans:
        if not scan.reason and scan.header is not None and scan.header.instance_uid:
            groups.setdefault(scan.clip_id, []).append(scan)
    refused: dict[str, Rejection] = {}
    for group in groups.values():
        if len(group) > 1:
            refused.update(_repeats(source, group))
    return [
        replace(scan, reason=str(refused[scan.source_id])) if scan.source_id in refused else scan
        for scan in scans
    ]


def _repeats(source: Source, group: Sequence[Scan]) -> dict[str, Rejection]:
    refused: dict[str, Rejection] = {}
    by_content: dict[tuple[str, ...], list[Scan]] = {}
    for scan in group:
        try:
            pixels = _pixel_hash(source, scan.file)
        except Rejection as rejection:
            refused[scan.source_id] = rejection
            continue
        by_content.setdefault((scan.patient_id, scan.study_id, pixels), []).append(scan)
    for scans in by_content.values():
        for scan in scans if len(by_content) > 1 else scans[1:]:
            code = "uid_conflict" if len(by_content) > 1 else "copy"
            refused[scan.source_id] = Rejection(code)
    return refused


def _pixel_hash(source: Source, file: SourceFile) -> str:
    dataset = read_dataset(io.BytesIO(source.read(file)), with_pixels=True)
    return hashlib.sha256(pixel_bytes(dataset)).hexdigest()
