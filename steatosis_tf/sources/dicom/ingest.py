"""Hospital ultrasound exports to de-identified frames and `labels.csv`."""

import collections
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from steatosis_tf.sources.dicom.clip_frames import (
    ClipResult,
    check_frame_choice,
    chosen_frames,
    write_clip,
)
from steatosis_tf.sources.dicom.files import Source
from steatosis_tf.sources.dicom.ingest_tables import (
    LABEL_COLUMNS,
    LOG_COLUMNS,
    PRIVATE_COLUMNS,
    REJECTED_COLUMNS,
    label_rows,
    log_row,
    private_row,
    rejected_rows,
)
from steatosis_tf.sources.dicom.output import (
    Output,
    check_places,
    rejected_by_manifest,
    update_private_table,
    write_table,
)
from steatosis_tf.sources.dicom.patient_findings import FINDING_COLUMNS, patient_findings
from steatosis_tf.sources.dicom.read import quiet_pydicom
from steatosis_tf.sources.dicom.scan import Scan, first_study_days, refuse_repeats, scan_file
from steatosis_tf.sources.pseudonym import pseudonym, read_key
from steatosis_tf.sources.rejection import Rejection

# Part of every journal entry: a new number makes all files be decoded again.
_PIXEL_VERSION = "2"


@dataclass(frozen=True)
class IngestSummary:
    """What an ingest did.

    Attributes:
        num_files: files found; each is in `labels.csv` or in `rejected.csv`, a clip with a broken
            frame in both.
        num_files_used: files with at least one frame in `labels.csv`.
        num_frames, num_patients, num_studies: in `labels.csv`.
        reasons: rows of `rejected.csv` by reason.
        num_findings: rows of `patient_findings.csv`.
        labels_path, rejected_path: the tables.
        private_path: table of original names and ids beside the key.
    """

    num_files: int
    num_files_used: int
    num_frames: int
    num_patients: int
    num_studies: int
    reasons: dict[str, int]
    num_findings: int
    labels_path: Path
    rejected_path: Path
    private_path: Path


def ingest_dicom(
    source: str | Path,
    output_dir: str | Path,
    *,
    key_path: str | Path,
    frame_choice: str = "all",
    allow_burned_in: bool = False,
) -> IngestSummary:
    """Turn a DICOM export into de-identified PNG frames and their tables.

    Writes `images/*.png`, `labels.csv` (no grades: join them by patient_id or study_id),
    `rejected.csv`, `deidentification.csv` and `patient_findings.csv`. Beside the key goes
    `<key>.sources.csv`, the only place where file names and original ids stand next to the
    pseudonyms. A killed run, started again, ends with the same bytes as an undisturbed one.

    Args:
        source: folder or zip archive; it is only read, and never unpacked to disk.
        output_dir: absent, empty, or the output of an earlier run with this key.
        key_path: file of `create_key`, outside both folders.
        frame_choice: `all`, `every:N` or `evenly:N` frames of each clip.
        allow_burned_in: also take files marked as having burned-in annotation. The mark does not
            say where: text inside the picture itself is not removed.

    Raises:
        ValueError: if the source, output, key or frame choice cannot be used; nothing is written
            then. A bad file never raises: it gets a row in `rejected.csv`.
    """
    source, output_dir, key_path = Path(source), Path(output_dir), Path(key_path)
    check_frame_choice(frame_choice)
    key = read_key(key_path)
    check_places(source, output_dir, key_path)
    settings = {"frame_choice": frame_choice, "allow_burned_in": allow_burned_in}
    with (
        quiet_pydicom(),
        Source(source) as opened,
        Output(output_dir, pseudonym(key, "key"), settings) as output,
    ):
        scans = [
            scan_file(opened, file, key, allow_burned_in)
            for file in tqdm(opened.files, "headers", disable=None)
        ]
        scans = refuse_repeats(opened, scans)
        prints = {
            scan.source_id: pseudonym(
                key, "file", scan.file.name, scan.file.stamp, frame_choice, _PIXEL_VERSION
            )
            for scan in scans
        }
        results = {
            scan.source_id: _frames_of(opened, scan, output, prints[scan.source_id], frame_choice)
            for scan in tqdm(scans, "frames", disable=None)
            if not scan.reason
        }
        return _write_tables(scans, results, output, prints, key_path)


def _frames_of(
    source: Source, scan: Scan, output: Output, fingerprint: str, frame_choice: str
) -> ClipResult:
    result = output.earlier_result(fingerprint, scan.clip_id)
    if result is not None or scan.layout is None:
        return result or ClipResult((), ())
    try:
        data = source.read(scan.file)
    except Rejection as rejection:
        return ClipResult((), ((-1, str(rejection)),))  # not journalled: the disk may recover
    chosen = chosen_frames(frame_choice, scan.layout.num_frames)
    result = write_clip(data, scan.layout, scan.region, chosen, output.images_dir, scan.clip_id)
    output.note(fingerprint, result)
    return result


def _write_tables(
    scans: Sequence[Scan],
    results: dict[str, ClipResult],
    output: Output,
    prints: dict[str, str],
    key_path: Path,
) -> IngestSummary:
    days = first_study_days(scans)
    labels, log, rejected = [], [], []
    for scan in scans:
        result = results.get(scan.source_id, ClipResult((), ((-1, scan.reason),)))
        labels += label_rows(scan, result, days)
        rejected += rejected_rows(scan, result)
        if result.frames:
            log.append(log_row(scan, result))
    # By hash: the order of the files on disk is the alphabet of the patients' names.
    labels.sort(key=lambda row: row["path"])
    log.sort(key=lambda row: str(row["source_id"]))
    rejected.sort(key=lambda row: (str(row["source_id"]), str(row["frame_index"]).zfill(6)))
    findings = patient_findings(scans)
    private_path = key_path.with_name(key_path.name + ".sources.csv")
    update_private_table(private_path, output.folder, PRIVATE_COLUMNS, map(private_row, scans))
    later = rejected_by_manifest(output.folder / "rejected.csv")
    columns = (*REJECTED_COLUMNS, "row", "path") if later else REJECTED_COLUMNS
    write_table(output.folder / "rejected.csv", columns, [*rejected, *later])
    write_table(output.folder / "deidentification.csv", LOG_COLUMNS, log)
    write_table(output.folder / "patient_findings.csv", FINDING_COLUMNS, findings)
    write_table(output.folder / "labels.csv", LABEL_COLUMNS, labels)
    output.finish(
        [prints[source_id] for source_id in results],
        [Path(row["path"]).name for row in labels],
    )
    return IngestSummary(
        num_files=len(scans),
        num_files_used=len(log),
        num_frames=len(labels),
        num_patients=len({row["patient_id"] for row in labels}),
        num_studies=len({row["study_id"] for row in labels}),
        reasons=dict(collections.Counter(str(row["reason"]) for row in rejected).most_common()),
        num_findings=len(findings),
        labels_path=output.folder / "labels.csv",
        rejected_path=output.folder / "rejected.csv",
        private_path=private_path,
    )
