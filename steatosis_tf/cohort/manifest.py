"""From a label table to a checked manifest: one row per frame, nothing personal added.

`labels.csv` holds `path, patient_id` and `grade` or `fat_percent`; every other column is carried
along as a covariate. Rows without a grade are kept for ROI work and prediction. A row with a
fault goes to `MANIFEST.rejected.csv` beside the manifest, with its reason; nothing is silently
dropped. What an ingest rejected is carried along there, so that one file tells of all left out.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from steatosis_tf.cohort.decision_store import DECISION_COLUMNS, Entry, manifest_rows, read_entries
from steatosis_tf.cohort.decisions import (
    History,
    Row,
    check_clear,
    check_none_dropped,
    manifest_lock,
    match,
    reviewed_rows,
    with_accepted_fans,
)
from steatosis_tf.cohort.labels import (
    ROI_COLUMNS,
    SHORTENED,
    check_labels,
    join_grades,
    read_grade_map,
    read_table,
)
from steatosis_tf.files import REJECTED_SUFFIX, check_output, from_cell
from steatosis_tf.grades import GRADES, grade_from_fat_percent
from steatosis_tf.parallel import map_in_threads
from steatosis_tf.sources.images import decode_frame, later_pages, read_bytes
from steatosis_tf.sources.pseudonym import OUTPUT_MARK, spelled_alike
from steatosis_tf.sources.rejection import KINDS, Rejection
from steatosis_tf.sources.tables import plain_cells, read_rejected, write_spreadsheet

#: First columns of every manifest, in this order; covariates follow.
MANIFEST_COLUMNS = ("frame_id", "path", "patient_id", "grade", "fat_percent", "pixels_sha256")
#: How much of the sector, 0 to 1, text, calipers and other marks cover; empty if not looked for.
MARKS_COLUMN = "roi_marks"
#: Rows of beam space that are one cm of depth; empty where not known.
SCALE_COLUMN = "roi_px_per_cm"

_ROWS_AT_A_TIME = 4096
_SHOWN_FAULTS = 5  # where the table of the rejected has them all


@dataclass(frozen=True)
class ManifestSummary:
    """What became of the rows of a label table.

    Attributes:
        num_rejected_before: rows of the ingest.
        num_grades_unused: rows of a joined table of grades that fit no frame.
        joined: what was joined, in words; "".
        spelled_alike: patient ids that differ in spelling alone, some by what is not seen.
        num_of_several_sites: patients with more than one value of `site`, where there is one.
        lost_split: why the split of the manifest that was replaced is gone, in words; "".
        later_pages: which rows have pages behind the first, which are not used, in words; "".
        rejected_kinds: kind of fault -> number of rows, the most common first.
        unknown_grades: the values that are no grade, with their counts and the map to write; "".
    """

    num_rows: int
    num_accepted: int
    num_rejected: int
    num_rejected_before: int
    num_ungraded: int
    num_patients: int
    num_grades_unused: int
    joined: str
    spelled_alike: list[list[str]]
    num_of_several_sites: int
    lost_split: str
    later_pages: str
    patients_per_grade: dict[str, int]
    rejected_path: str
    rejected_kinds: dict[str, int]
    unknown_grades: str


def build_manifest(
    labels_path: str | Path,
    output_path: str | Path,
    *,
    strict: bool = False,
    grade_map_path: str | Path | None = None,
    grades_path: str | Path | None = None,
    key_path: str | Path | None = None,
) -> ManifestSummary:
    """Check every row of a label table and write the manifest and what is rejected.

    Args:
        labels_path: table with `path` (relative to its folder, or absolute), `patient_id`, and
            `grade` or `fat_percent` where known; or a folder. See `labels.read_table`.
        output_path: where the manifest goes. Beside it goes `NAME.rejected.csv`: the rows at fault,
            then what an ingest rejected, if one of the two folders is its output.
        strict: refuse instead of setting faulty rows aside; then nothing is written.
        grade_map_path: what other words for grades mean, see `labels.read_grade_map`.
        grades_path: table of grades to join to the rows, see `labels.join_grades`.
        key_path: the key of the ingest, where that table has the hospital's own ids.

    What people have decided about these frames, in the store of the output's folder or in a
    manifest that is replaced, goes into the new one; so does its split, if it has all patients.

    Raises:
        ValueError: for a table that cannot be read, grades that may count from 1, no row left, a
            decision that would be lost or, with `strict`, any fault. The text lists all by row.
    """
    labels_path, output_path = Path(labels_path), Path(output_path)
    rejected_path = output_path.with_suffix(REJECTED_SUFFIX)
    inputs = [path for path in (labels_path, grade_map_path, grades_path, key_path) if path]
    for written in (output_path, rejected_path):
        check_output(written, inputs, suffixes=(".csv",))
    folder = labels_path if labels_path.is_dir() else labels_path.parent
    table = read_table(labels_path)
    num_unused, joined = join_grades(table, grades_path, key_path) if grades_path else (0, "")
    grade_map = read_grade_map(grade_map_path) if grade_map_path else {}
    reasons, unknown_grades = check_labels(table, labels_path, grade_map)
    table["pixels_sha256"], later = _hash_frames(table, folder, reasons)

    faulty = table["row"].isin(list(reasons))
    rejected = _set_aside(table.loc[faulty], reasons)
    if strict and faulty.any():
        raise ValueError(_fault_report(labels_path.name, rejected, unknown_grades))
    before = _rejected_by_ingest({folder.resolve(), output_path.parent.resolve()})
    accepted = _named(table.loc[~faulty], folder, output_path.parent)
    left_out = pd.concat([rejected.astype(str), before])
    accepted, lost_split = _write_both(accepted, left_out, output_path, rejected_path)
    if accepted.empty:
        raise ValueError(_fault_report(labels_path.name, rejected, unknown_grades, rejected_path))
    return ManifestSummary(
        num_rejected_before=len(before),
        num_grades_unused=num_unused,
        joined=joined,
        lost_split=lost_split,
        later_pages=later,
        rejected_path=str(rejected_path),
        unknown_grades=unknown_grades,
        **_counts(accepted, rejected),
    )


def _write_both(
    accepted: pd.DataFrame, left_out: pd.DataFrame, output_path: Path, rejected_path: Path
) -> tuple[pd.DataFrame, str]:
    """Write what is left out and, if any row is left, the manifest; its rows as written."""
    output_path.parent.mkdir(parents=True, exist_ok=True)
    lost_split = ""
    with manifest_lock(output_path):
        if not accepted.empty:
            accepted = _with_earlier_decisions(accepted, output_path)
            accepted, lost_split = _with_earlier_split(accepted, output_path)
        write_spreadsheet(left_out, rejected_path)
        if not accepted.empty:
            write_manifest(accepted, output_path)
    return accepted, lost_split


def _with_earlier_split(table: pd.DataFrame, output_path: Path) -> tuple[pd.DataFrame, str]:
    """Rows with the split of the manifest that they replace, if it has dealt all their patients."""
    is_old = output_path.is_file()
    rows = manifest_rows(output_path, ("patient_id", "grade", "split")) if is_old else ()
    sides = {from_cell(patient): side for patient, grade, side in rows if grade}
    if not any(sides.values()):
        return table, ""
    graded = table["grade"] != ""
    if new := set(table.loc[graded, "patient_id"]) - set(sides):
        return table, f"the split of the manifest before is gone: it has not {len(new)} patients"
    return table.assign(split=table["patient_id"].map(sides).where(graded, "")), ""


def _set_aside(faulty: pd.DataFrame, reasons: dict[int, list[Rejection]]) -> pd.DataFrame:
    """Rows of what is rejected: every reason in words, the first as a code."""
    rejected = faulty[["row", "path", "patient_id"]].copy()
    rejected["reason"] = ["; ".join(map(str, reasons[row])) for row in rejected["row"]]
    rejected["code"] = [reasons[row][0].code for row in rejected["row"]]
    return rejected


def _counts(accepted: pd.DataFrame, rejected: pd.DataFrame) -> dict[str, Any]:
    """What a `ManifestSummary` counts of the rows."""
    graded = accepted.loc[accepted["grade"] != ""].drop_duplicates("patient_id")
    sites = accepted.get("site", accepted["grade"][:0]).replace("", None)
    return {
        "num_rows": len(accepted) + len(rejected),
        "num_accepted": len(accepted),
        "num_rejected": len(rejected),
        "rejected_kinds": {
            str(kind): int(n) for kind, n in rejected["code"].map(KINDS).value_counts().items()
        },
        "num_ungraded": int((accepted["grade"] == "").sum()),
        "num_patients": accepted["patient_id"].nunique(),
        "spelled_alike": spelled_alike(accepted["patient_id"]),
        "num_of_several_sites": int((sites.groupby(accepted["patient_id"]).nunique() > 1).sum()),
        "patients_per_grade": {
            grade: int(n) for grade in GRADES if (n := (graded["grade"] == grade).sum())
        },
    }


def _named(accepted: pd.DataFrame, source: Path, target: Path) -> pd.DataFrame:
    """Rows in the order of a manifest's columns, with their frame_id and paths from its folder."""
    accepted = accepted.drop(columns=["row", "fault"])
    accepted["frame_id"] = [frame_id_of(path) for path in accepted["path"]]
    accepted["path"] = _moved(accepted["path"], source, target)
    covariates = [name for name in accepted.columns if name not in MANIFEST_COLUMNS]
    return accepted[[*MANIFEST_COLUMNS, *covariates]]


def read_manifest(path: str | Path, *, for_review: bool = False) -> pd.DataFrame:
    """Read a manifest, with all that people have decided about its frames.

    Args:
        path: the manifest; decisions are in the store beside it.
        for_review: do not refuse frames of which nobody can tell whether a decision holds.

    Returns:
        one row per frame. Text columns (`frame_id, path, patient_id, grade, split, ...`) are
        `str` with "" for unknown; `fat_percent` is float with NaN for unknown; ROI columns, if
        there, are nullable integers in px.

    Raises:
        ValueError: if the file is missing, is not a manifest, holds a frame twice, or a cell
            that is no grade, patient or number, or a grade at odds with fat, with the row; if a
            person has decided about a frame and its pixels have changed since; if the store is
            damaged.
    """
    table = _parsed(Path(path))
    table = _decided(table, Path(path), read_entries(path), for_review=for_review)
    return with_accepted_fans(table)


def _parsed(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise ValueError(
            f"Expected a manifest. Received: path={path.name!r}, which does not exist. "
            "Make one with `steatosis manifest LABELS_CSV --output MANIFEST_CSV`."
        )
    try:
        # In parts, or the text of a large study is held twice while it is read.
        parts = pd.read_csv(path, dtype=str, keep_default_na=False, chunksize=_ROWS_AT_A_TIME)
        table = plain_cells(pd.concat(parts, ignore_index=True))
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(
            f"Expected a manifest. Received: {path.name}, which is not a CSV table ({error}). "
            "Make it again with `steatosis manifest LABELS_CSV --output MANIFEST_CSV`."
        ) from error
    missing = [name for name in MANIFEST_COLUMNS if name not in table.columns]
    if missing and any(separator in table.columns[0] for separator in ";\t"):
        raise ValueError(
            f"Expected a manifest with commas. Received: {path.name} with semicolons or tabs, as a "
            "spreadsheet may have saved it. Save it with commas, or make it again from the table."
        )
    if missing:
        raise ValueError(
            f"Expected the manifest columns {', '.join(MANIFEST_COLUMNS)}. Received: "
            f"{path.name} without {', '.join(missing)}. Make a manifest from a label table with "
            "`steatosis manifest LABELS_CSV --output MANIFEST_CSV`."
        )
    twice = table.loc[table["frame_id"].duplicated(), "frame_id"]
    if len(twice):
        raise ValueError(
            f"Expected every frame_id once. Received: {path.name} with {len(twice)} repeated, "
            f"first frame_id={twice.iloc[0]} at row {twice.index[0] + 2}. Remove the copies."
        )
    _check_cells(path.name, table, "grade", table["grade"].isin(("", *GRADES)), ", ".join(GRADES))
    _check_cells(path.name, table, "patient_id", table["patient_id"] != "", "a name")
    whole = ~table["patient_id"].str.fullmatch(SHORTENED)
    _check_cells(path.name, table, "patient_id", whole, "whole, which a spreadsheet has shortened")
    for name in ("fat_percent", "roi_quality", MARKS_COLUMN, SCALE_COLUMN, *ROI_COLUMNS):
        if name in table.columns:
            table[name] = _numbers(path.name, table, name)
    _check_fat(path.name, table)
    return table


def write_manifest(frame_table: pd.DataFrame, path: str | Path) -> None:
    """Write a manifest whole or not at all.

    Hold `manifest_lock` from reading to writing where somebody may review the manifest meanwhile.

    Args:
        frame_table: as `read_manifest` returns it.
        path: file to write or replace.

    Raises:
        ValueError: if frames that a person has decided about would be left out.
    """
    check_decisions_kept(frame_table, path)
    write_spreadsheet(frame_table, path)


def check_decisions_kept(frame_table: pd.DataFrame, path: str | Path) -> None:
    """Refuse a table that would replace a manifest and leave out what a person has decided about.

    Raises:
        ValueError: with the frames.
    """
    if history := History(read_entries(path)):
        check_none_dropped(_rows_of(frame_table), path, history)


def find_changed_frames(manifest_path: str | Path) -> dict[str, str]:
    """Compare the frames of a manifest with its hashes.

    Returns:
        reason by frame_id, of frames that are missing, damaged or others than they were; empty if
        all are whole.

    Raises:
        ValueError: if it is not a manifest.
    """
    table = read_manifest(manifest_path)
    reasons: dict[int, list[Rejection]] = {}
    rows = table.assign(row=table.index)
    found = pd.Series(_hash_frames(rows, Path(manifest_path).parent, reasons)[0], table.index)
    for row in table.index[found != table["pixels_sha256"]]:
        reasons.setdefault(row, [Rejection("other_pixels")])
    return {str(table.loc[row, "frame_id"]): str(why[0]) for row, why in sorted(reasons.items())}


def frame_path(manifest_path: str | Path, row_path: str) -> Path:
    """Where the frame of a manifest row lies: `path` is relative to the manifest's folder."""
    return Path(manifest_path).parent / row_path


def relocate(frame_table: pd.DataFrame, manifest_path: str | Path, folder: Path) -> pd.DataFrame:
    """The same rows with paths relative to another folder, for a copy of the manifest there."""
    return frame_table.assign(path=_moved(frame_table["path"], Path(manifest_path).parent, folder))


def frame_id_of(path: str) -> str:
    """Name of a frame: 16 hex digits of the SHA-256 of its path as the label table has it."""
    return hashlib.sha256(str(PurePosixPath(path)).encode()).hexdigest()[:16]


def pixels_sha256(frame: np.ndarray) -> str:
    """SHA-256 of the decoded pixels and their shape, so that a re-saved copy hashes the same."""
    digest = hashlib.sha256(str(frame.shape).encode())
    digest.update(np.ascontiguousarray(frame).data)
    return digest.hexdigest()


def _rows_of(table: pd.DataFrame) -> Iterable[Row]:
    reviewed_at = table.get("roi_reviewed_at", pd.Series("", index=table.index))
    return map(Row, table["frame_id"], table["pixels_sha256"], reviewed_at)


def _decided(
    table: pd.DataFrame, path: Path, entries: list[Entry], *, for_review: bool = False
) -> pd.DataFrame:
    """The table with what people have decided about its frames."""
    history = History(entries)
    if not history:
        return table
    found = match(_rows_of(table), history, path.name)
    if not for_review:
        check_clear(found, path.name)
    if not found.changes:
        return table
    table = table.copy()
    if "roi_source" not in table.columns and "roi_height" in table.columns:
        # A box of the label table is a person's.
        is_empty = table["roi_height"].astype("string").fillna("") == ""
        table["roi_source"] = np.where(is_empty, "", "person")
    at = table.index[table["frame_id"].isin(found.changes)]
    cells = [found.changes[frame_id] for frame_id in table.loc[at, "frame_id"]]
    for name in DECISION_COLUMNS:
        texts = [one[name] for one in cells]
        if name not in table.columns:
            table[name] = (
                pd.array([pd.NA] * len(table), dtype="Int64") if name in ROI_COLUMNS else ""
            )
        if table[name].dtype == "Int64":  # else the cells of a label table, not parsed yet
            table.loc[at, name] = pd.array([int(t) if t else pd.NA for t in texts], dtype="Int64")
        else:
            table.loc[at, name] = texts
    return table


def _with_earlier_decisions(table: pd.DataFrame, output_path: Path) -> pd.DataFrame:
    """Rows of a label table with what was decided about them, from the store and the old manifest.

    Raises:
        ValueError: if a decision would be lost.
    """
    stored = read_entries(output_path)
    # A manifest that was moved here without its store still says what people have decided.
    known = {entry.key for entry in stored}
    unstored = [entry for entry in reviewed_rows(output_path) if entry.key not in known]
    entries = [*unstored, *stored]
    check_none_dropped(_rows_of(table), output_path, History(entries))
    return _decided(table, output_path, entries)


def _check_cells(
    file_name: str, table: pd.DataFrame, column: str, good: pd.Series, expected: str
) -> None:
    if not good.all():
        first = int(np.flatnonzero(~good)[0])
        raise ValueError(
            f"{file_name}: expected {column} to be {expected}. Received: "
            f"{table[column].iloc[first]!r} at row {first + 2}. Correct the cell, or make the "
            "manifest again."
        )


def _check_fat(file_name: str, table: pd.DataFrame) -> None:
    """A cell that was changed by hand after the manifest was made is not believed."""
    fat = table["fat_percent"]
    _check_cells(file_name, table, "fat_percent", fat.isna() | fat.between(0, 100), "0 to 100")
    named = {value: grade_from_fat_percent(value) for value in fat.dropna().unique()}
    agrees = fat.isna() | (table["grade"] == "") | (table["grade"] == fat.map(named))
    _check_cells(file_name, table, "grade", agrees, "that of fat_percent")


def _numbers(file_name: str, table: pd.DataFrame, column: str) -> pd.Series:
    numbers = pd.to_numeric(table[column].replace("", np.nan), errors="coerce").astype(float)
    is_px = column in ROI_COLUMNS
    good = np.isfinite(numbers) & (not is_px or numbers % 1 == 0) | (table[column] == "")
    expected = f"a {'whole number of px' if is_px else 'number'} or empty"
    _check_cells(file_name, table, column, good, expected)
    return numbers.astype("Int64") if is_px else numbers


def _hash_frames(
    table: pd.DataFrame, folder: Path, reasons: dict[int, list[Rejection]]
) -> tuple[list[str], str]:
    """Hash of every frame, and who has later pages; unreadable ones get a reason."""

    def work(path: str) -> tuple[str | Rejection, int]:
        if not path:
            return "", 0  # the label check has named this row already
        try:  # OpenCV decodes outside Python's lock
            data = read_bytes(folder / path)
            return pixels_sha256(decode_frame(data)), later_pages(data)
        except Rejection as reason:
            return reason, 0

    hashes, later = [], []
    results = map_in_threads(work, table["path"].tolist(), "frames")
    for row, (result, pages) in zip(table["row"], results, strict=True):
        hashes.append("" if isinstance(result, Rejection) else result)
        if isinstance(result, Rejection):
            reasons.setdefault(row, []).append(result)
        later += [f"row {row} ({pages})"] if pages else []
    said = f"later pages of {len(later)} files are not used: {', '.join(later[:9])}"
    return hashes, said if later else ""


def _rejected_by_ingest(folders: set[Path]) -> pd.DataFrame:
    """What ingests left out. An earlier version added rows of the manifest to their table."""
    tables = [
        read_rejected(folder / "rejected.csv")
        for folder in sorted(folders)
        if (folder / OUTPUT_MARK).is_file() and (folder / "rejected.csv").is_file()
    ]
    return pd.concat([pd.DataFrame(), *(table[table["source_id"] != ""] for table in tables)])


def _moved(paths: Iterable[str], source: Path, target: Path) -> list[str]:
    """Paths relative to `target` of files whose paths are relative to `source`."""
    folders: dict[str, str] = {}  # many frames lie in few folders
    moved = []
    for path in paths:
        inside, name = os.path.split(path)
        if inside not in folders:
            folders[inside] = _relative(source / inside, target)
        moved.append(str(PurePosixPath(folders[inside], name)))
    return moved


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:  # on Windows, another drive has no relative path
        return path.resolve().as_posix()


def _fault_report(
    name: str, rejected: pd.DataFrame, unknown_grades: str, written_to: Path | None = None
) -> str:
    """Every fault, or the first ones where a file has them all."""
    told = f"{len(rejected)} rows with faults. Correct them, or leave out --strict."
    if written_to:
        told = f"none of {len(rejected)} rows can be used; all reasons are in {written_to}."
        rejected = rejected.head(_SHOWN_FAULTS)
    lines = [f"  row {row.row}, {row.path}: {row.reason}" for row in rejected.itertuples()]
    return "\n".join([f"{name}: {told}", *lines, *filter(None, [unknown_grades])])
