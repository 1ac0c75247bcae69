"""Hospital ultrasound exports to de-identified frames and `labels.csv`."""

import collections
import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock
import pandas as pd
from tqdm import tqdm

from steatosis_tf.files import (
    BEING_WRITTEN,
    as_cell,
    file_sha256,
    replacing,
    write_bytes,
    write_json,
)
from steatosis_tf.sources.dicom.deidentify import (
    ClipResult,
    check_frame_choice,
    chosen_frames,
    frame_name,
    remove_sheets,
    write_clip,
    write_sheets,
)
from steatosis_tf.sources.dicom.files import Source
from steatosis_tf.sources.dicom.scan import (
    FINDING_COLUMNS,
    IMAGES_DIR,
    LABEL_COLUMNS,
    LOG_COLUMNS,
    PRIVATE_COLUMNS,
    REJECTED_COLUMNS,
    Scan,
    first_study_days,
    frame_path,
    label_rows,
    log_row,
    patient_findings,
    private_row,
    refuse_contested_ids,
    refuse_repeats,
    rejected_rows,
    scan_file,
)
from steatosis_tf.sources.images import quiet_readers
from steatosis_tf.sources.pseudonym import OUTPUT_MARK, pseudonym, read_key
from steatosis_tf.sources.rejection import Rejection
from steatosis_tf.sources.tables import ADDED, read_rejected, read_spreadsheet, write_spreadsheet

# Part of every journal entry: a new number makes all files be decoded again.
_PIXEL_VERSION = "4"
_JOURNAL = "ingest_journal.jsonl"
_LOCK = "ingest.lock"
_FORMAT = 1
_OUR_IMAGE = re.compile(r"[0-9a-f]{16}_\d{5}\.(png|part)")


class Output:
    """The folder an ingest writes, held by one process at a time.

    Args:
        folder: created if absent; otherwise it must be empty or an earlier ingest's.
        key_id: hash that tells keys apart.
        settings: what the run was asked for; kept for the reader, in `ingest.json`.

    Raises:
        ValueError: if the folder holds something else, was made with another key, or is in use.
    """

    def __init__(self, folder: Path, key_id: str, settings: Mapping[str, object]):
        self.folder = folder
        self.images_dir = folder / IMAGES_DIR
        mark = folder / OUTPUT_MARK
        if mark.is_file():
            _check_mark(mark, key_id)
        # What a kill right at the start may have left is no other file.
        elif folder.is_dir() and any(
            path.name != _LOCK and not path.name.startswith(BEING_WRITTEN)
            for path in folder.iterdir()
        ):
            raise ValueError(
                "Expected an output folder that is empty, absent, or written by an earlier "
                "ingest. Received: a folder with other files. Choose another folder."
            )
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = filelock.FileLock(folder / _LOCK, timeout=0)
        try:
            self._lock.acquire()
        except filelock.Timeout as error:
            raise ValueError(
                "Expected an output folder that no other ingest is writing. Wait for it to end."
            ) from error
        write_json({"format": _FORMAT, "key_id": key_id, **settings}, mark, indent=None)
        self.images_dir.mkdir(exist_ok=True)
        self._done = self._read_journal()

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def earlier_result(self, fingerprint: str, clip_id: str) -> ClipResult | None:
        """The result of an earlier run for this very file, if its images are still whole."""
        result = self._done.get(fingerprint)
        if result is None:
            return None
        for index, png_hash in result.frames:
            path = self.images_dir / frame_name(clip_id, index)
            if not path.is_file() or file_sha256(path) != png_hash:
                return None
        return result

    def note(self, fingerprint: str, result: ClipResult) -> None:
        """Remember a finished file, so that a killed run goes on after it."""
        self._done[fingerprint] = result
        with (self.folder / _JOURNAL).open("a", encoding="ascii") as stream:
            stream.write(_journal_line(fingerprint, result))

    def finish(self, fingerprints: Iterable[str], image_names: Iterable[str]) -> None:
        """Drop what no table names: images and journal lines of other settings or gone files."""
        # In the order of the files, as noted: what a kill leaves is then a beginning of it.
        known = [each for each in fingerprints if each in self._done]
        self._write_journal({each: self._done[each] for each in known})
        named = set(image_names)
        for path in self.images_dir.iterdir():
            if path.name not in named and _OUR_IMAGE.fullmatch(path.name):
                path.unlink()

    def _read_journal(self) -> dict[str, ClipResult]:
        path = self.folder / _JOURNAL
        done: dict[str, ClipResult] = {}
        if not path.is_file():
            return done
        text = path.read_text("ascii", errors="replace")
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                name = str(entry.pop("file"))
                for key in ("frames", "rejected", "kept_box", "marked"):
                    entry[key] = tuple(tuple(x) if isinstance(x, list) else x for x in entry[key])
                done[name] = ClipResult(**entry)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # the line a kill cut short; its file is done again
        if text and not text.endswith("\n"):  # or the next line would be glued to the torn one
            self._write_journal(done)
        return done

    def _write_journal(self, results: Mapping[str, ClipResult]) -> None:
        path = self.folder / _JOURNAL
        if results:
            text = "".join(_journal_line(*item) for item in results.items())
            write_bytes(text.encode(), path)
        else:
            path.unlink(missing_ok=True)


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
        marked: `path` of every frame with text or other marks among the pixels it keeps.
        num_sheets: contact sheets written.
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
    marked: tuple[str, ...]
    num_sheets: int
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
    keep_region: bool = False,
    with_sheets: bool = False,
) -> IngestSummary:
    """Turn a DICOM export into de-identified PNG frames and their tables.

    Writes `images/*.png`, `labels.csv` (no grades: `build_manifest` joins them; columns that
    somebody has joined to the table are kept), `rejected.csv`, `deidentification.csv` and
    `patient_findings.csv`. Beside the key goes `<key>.sources.csv`, the only place where file
    names and original ids stand next to the pseudonyms. A killed run, started again, ends with
    the same bytes as an undisturbed one.

    Args:
        source: folder, zip archive or DICOM file; it is only read, and never unpacked to disk.
        output_dir: absent, empty, or the output of an earlier run with this key.
        key_path: file of `create_key`, outside both folders.
        frame_choice: `all`, `every:N` or `evenly:N` frames of each clip.
        allow_burned_in: also take files marked as having burned-in annotation. The mark does not
            say where: text inside the picture itself is not removed.
        keep_region: keep all pixels of a region that a file states. Otherwise those outside of
            the sector in it are blanked, too, where one is found.
        with_sheets: also write `sheets/*.png` with every frame kept, small, for a person to look.

    Raises:
        ValueError: if the source, output, key or frame choice cannot be used; nothing is written
            then. A bad file never raises: it gets a row in `rejected.csv`.
    """
    source, output_dir, key_path = Path(source), Path(output_dir), Path(key_path)
    check_frame_choice(frame_choice)
    key = read_key(key_path)
    check_places(source, output_dir, key_path)
    settings = {
        "frame_choice": frame_choice,
        "allow_burned_in": allow_burned_in,
        "keep_region": keep_region,
    }
    place = output_dir, pseudonym(key, "key"), settings
    with quiet_readers(), Source(source) as opened, Output(*place) as output:
        files = tqdm(opened.files, "headers", disable=None)
        scans = [scan_file(opened, file, key, allow_burned_in) for file in files]
        _check_same_export(output_dir / "labels.csv", scans)
        scans = refuse_repeats(opened, refuse_contested_ids(scans))
        made_by = (frame_choice, str(keep_region), _PIXEL_VERSION)
        prints = {
            scan.source_id: pseudonym(key, "file", scan.file.name, scan.file.stamp, *made_by)
            for scan in scans
        }
        results = {}
        for scan in tqdm(scans, "frames", disable=None):
            if not scan.rejection:
                results[scan.source_id] = _frames_of(
                    opened, scan, output, prints[scan.source_id], frame_choice, keep_region
                )
        return _write_tables(scans, results, output, prints, key_path, with_sheets)


def _check_same_export(labels_path: Path, scans: Sequence[Scan]) -> None:
    """Refuse another export than the one before: its frames would take the place of the others."""
    before = {row["patient_id"] for row in _earlier_rows(labels_path)}
    if lost := before - {scan.patient_id for scan in scans}:
        raise ValueError(
            f"Expected every patient of {labels_path.name} in the export. Received: {len(lost)} "
            f"who are not, first patient_id={min(lost)}. One output holds one export: give another "
            f"output folder, or move {labels_path.name} away if these patients are to go."
        )


def _frames_of(
    source: Source,
    scan: Scan,
    output: Output,
    fingerprint: str,
    frame_choice: str,
    keep_region: bool,
) -> ClipResult:
    result = output.earlier_result(fingerprint, scan.clip_id)
    if result is not None or scan.layout is None:
        return result or ClipResult((), ())
    try:
        data = source.read(scan.file)
    except Rejection as rejection:
        return ClipResult.of(rejection)  # not journalled: the disk may recover
    chosen = chosen_frames(frame_choice, scan.layout.num_frames)
    result = write_clip(
        data,
        scan.layout,
        scan.region,
        chosen,
        output.images_dir,
        scan.clip_id,
        keep_region=keep_region,
    )
    output.note(fingerprint, result)
    return result


def _write_tables(
    scans: Sequence[Scan],
    results: dict[str, ClipResult],
    output: Output,
    prints: dict[str, str],
    key_path: Path,
    with_sheets: bool,
) -> IngestSummary:
    days = first_study_days(scans)
    labels, log, rejected, marked = [], [], [], []
    for scan in scans:
        result = results.get(scan.source_id) or ClipResult.of(
            scan.rejection or Rejection("damaged_header")
        )
        marked += [frame_path(scan.clip_id, index) for index in result.marked]
        labels += label_rows(scan, result, days)
        rejected += rejected_rows(scan, result)
        if result.frames:
            log.append(log_row(scan, result))
    # By hash: the order of the files on disk is the alphabet of the patients' names.
    labels.sort(key=lambda row: row["path"])
    log.sort(key=lambda row: str(row["source_id"]))
    rejected.sort(key=lambda row: (str(row["source_id"]), str(row["frame_index"]).zfill(6)))
    joined = _keep_joined(output.folder / "labels.csv", labels)
    findings = patient_findings(scans)
    rejected_path = output.folder / "rejected.csv"
    private_path = key_path.with_name(key_path.name + ".sources.csv")
    update_private_table(private_path, output.folder, PRIVATE_COLUMNS, map(private_row, scans))
    table = pd.DataFrame(rejected, columns=REJECTED_COLUMNS)
    write_spreadsheet(_with_rows_of_manifests(table, rejected_path), rejected_path)
    for name, columns, rows in (
        ("deidentification", LOG_COLUMNS, log),
        ("patient_findings", FINDING_COLUMNS, findings),
        ("labels", (*LABEL_COLUMNS, *joined), labels),
    ):
        write_spreadsheet(pd.DataFrame(rows, columns=columns), output.folder / f"{name}.csv")
    output.finish(
        [prints[source_id] for source_id in results], [Path(row["path"]).name for row in labels]
    )
    paths = [row["path"] for row in labels]
    remove_sheets(output.folder)
    num_sheets = write_sheets(output.folder, paths, set(marked)) if with_sheets else 0
    return IngestSummary(
        num_files=len(scans),
        num_files_used=len(log),
        num_frames=len(labels),
        num_patients=len({row["patient_id"] for row in labels}),
        num_studies=len({row["study_id"] for row in labels}),
        reasons=dict(collections.Counter(str(row["reason"]) for row in rejected).most_common()),
        num_findings=len(findings),
        marked=tuple(sorted(marked)),
        num_sheets=num_sheets,
        labels_path=output.folder / "labels.csv",
        rejected_path=rejected_path,
        private_path=private_path,
    )


def _with_rows_of_manifests(rejected: pd.DataFrame, path: Path) -> pd.DataFrame:
    """With what manifests of an earlier version have left out, which is in no other file."""
    before = read_rejected(path)
    if "source_id" not in before or (before["source_id"] != "").all():
        return rejected
    return pd.concat([before[before["source_id"] == ""], rejected]).fillna("")


def _earlier_rows(path: Path) -> list[dict[str, str]]:
    """Rows of the `labels.csv` of an earlier ingest, as a spreadsheet may have saved it since."""
    if not path.is_file():
        return []
    table = read_spreadsheet(path)
    if not {"path", "patient_id"} <= set(table.columns) or (table["fault"] != "").any():
        raise ValueError(
            f"Expected {path.name} as an earlier ingest wrote it, with its columns and a cell for "
            "each. Received: another table. Mend it, or move it away."
        )
    return table.drop(columns=[*ADDED]).to_dict("records")


def _keep_joined(path: Path, labels: Sequence[dict[str, str]]) -> list[str]:
    """Take along what was joined to the `labels.csv` of an earlier ingest; its columns.

    Cells go to the same frame, grades also to new frames of a study that has only one: those of
    another visit need a grade of their own.

    Raises:
        ValueError: if a graded patient is no longer there: the grade would be lost.
    """
    before = _earlier_rows(path)  # again: it may have been joined while the frames were written
    joined = [name for name in (before[0] if before else ()) if name not in LABEL_COLUMNS]
    by_path = {row["path"]: row for row in before}
    grades: dict[tuple[str, str, str], set[str]] = collections.defaultdict(set)
    for name in {"grade", "fat_percent"} & set(joined):
        for row in before:
            if row[name]:
                grades[name, row["patient_id"], row.get("study_id", "")].add(row[name])
    lost = {patient for _, patient, _ in grades} - {row["patient_id"] for row in labels}
    if lost:
        raise ValueError(
            f"Expected every graded patient of {path.name} in the export. Received: {len(lost)} "
            f"who are not, first patient_id={min(lost)}. Give another output folder, or move "
            f"{path.name} away."
        )
    for row in labels:
        earlier = by_path.get(row["path"], {})
        for name in joined:
            one = grades.get((name, row["patient_id"], row["study_id"]), set())
            new = next(iter(one)) if len(one) == 1 else ""
            row[name] = earlier.get(name, new)  # a cell that somebody has emptied stays empty
    return joined


def check_places(source: Path, output_dir: Path, key_path: Path) -> None:
    """Refuse an arrangement of folders that would leak or feed on itself.

    Raises:
        ValueError: if the key lies in the output or the source, or one of these is in the other.
    """
    where, output, key = source.resolve(), output_dir.resolve(), key_path.resolve()
    for folder, role in ((output, "output"), (where, "source")):
        if key.is_relative_to(folder):
            raise ValueError(
                f"Expected the key file outside the {role}: whoever gets the folder would get "
                f"the key. Received: a key_path inside the {role}. Move the key."
            )
    if output.is_relative_to(where) or where.is_relative_to(output):
        raise ValueError(
            "Expected output and source apart from each other. Received: one inside the other. "
            "The next run would read its own output."
        )


def _check_mark(mark: Path, key_id: str) -> None:
    try:
        stated = json.loads(mark.read_text("ascii"))
        known = stated["format"] == _FORMAT and stated["key_id"]
    except (ValueError, KeyError, TypeError):
        known = None
    if known != key_id:
        raise ValueError(
            "Expected the key that this output was begun with: two keys in one cohort give one "
            "patient two pseudonyms. Received: another key, or a damaged ingest.json. Use that "
            "key, or a new output folder."
        )


def _journal_line(fingerprint: str, result: ClipResult) -> str:
    return json.dumps({"file": fingerprint, **asdict(result)}, sort_keys=True) + "\n"


def update_private_table(
    path: Path, output_dir: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]
) -> None:
    """Replace this output's rows in the table beside the key (mode 0600), keep the others'.

    Args:
        path: the table; it holds names and ids, so it stays where the key stays.
        output_dir: named in the column `output`, which this function adds.
        columns: the other columns.
        rows: one per source file.
    """
    here = str(output_dir.resolve())
    all_columns = ("output", *columns)
    with filelock.FileLock(path.with_name(path.name + ".lock")):
        kept: list[Mapping[str, object]] = []
        if path.is_file():
            with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
                kept = [row for row in csv.DictReader(stream) if row.get("output") != here]
        with (
            replacing(path, private=True) as temporary,
            temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream,
        ):
            writer = csv.DictWriter(stream, all_columns, lineterminator="\n", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(kept)
            for row in rows:
                writer.writerow({"output": here, **{k: as_cell(v) for k, v in row.items()}})
