"""Move decisions from the journal into the manifest, and automatic boxes around them.

Two locks, so that a reviewer never waits for a big file: the journal's is held for one append,
the manifest's for a rewrite of the table. Decisions taken during a rewrite stay in the journal
and are folded in the next time. Every entry holds the whole new content of its cells, so folding
an entry twice, after a crash between two steps, changes nothing.
"""

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from steatosis_tf.cohort.manifest import read_manifest, write_manifest
from steatosis_tf.files import replacing
from steatosis_tf.roi.journal import Journal
from steatosis_tf.roi.roi_cells import DECISION_COLUMNS, RoiCells, keep_persons_boxes

# Rewriting two million rows takes half a minute on a slow network disk.
_PATIENCE_SECONDS = 120

Pending = dict[str, tuple[int, RoiCells]]


def journal_of(manifest_path: str | Path) -> Journal:
    """The journal of a manifest: `<manifest name>.review.jsonl` beside it."""
    path = Path(manifest_path)
    return Journal(path.with_name(f"{path.name}.review.jsonl"))


def manifest_lock(manifest_path: str | Path) -> FileLock:
    """Held by whoever rewrites the manifest; entering it raises TimeoutError after two minutes."""
    path = Path(manifest_path)
    return FileLock(path.with_name(f"{path.name}.lock"), timeout=_PATIENCE_SECONDS)


def fold_decisions(manifest_path: str | Path) -> int:
    """Bring a manifest up to date with the decisions in its journal.

    Call it before reading a manifest on which somebody may have worked: a review page folds by
    itself within a moment, but one that was killed leaves its last decisions in the journal.
    Costs two file look-ups if there is nothing to do.

    Returns:
        number of rows brought up to date.

    Raises:
        ValueError: if the journal has a broken line.
        OSError: if the manifest cannot be written; the decisions then stay in the journal.
    """
    journal = journal_of(manifest_path)
    if _is_folded(journal):
        return 0
    with manifest_lock(manifest_path):
        return _fold_all(Path(manifest_path), journal)


def write_automatic_boxes(manifest_path: str | Path, new_table: pd.DataFrame) -> None:
    """Store the ROI columns of an automatic run; a person's decisions stay as they are.

    Decisions taken while the run was computing count, too: the manifest is brought up to date
    first, under the lock.

    Args:
        manifest_path: the manifest the run has read.
        new_table: all its rows, with new ROI columns.

    Raises:
        ValueError: if the manifest or its journal cannot be read.
        OSError: if the manifest cannot be written.
    """
    with manifest_lock(manifest_path):
        _fold_all(Path(manifest_path), journal_of(manifest_path))
        write_manifest(keep_persons_boxes(read_manifest(manifest_path), new_table), manifest_path)


def signature(path: Path) -> list[int]:
    """Changes whenever a file is replaced or written."""
    status = path.stat()
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def apply_entry(pending: Pending, start: int, entry: dict[str, Any]) -> None:
    """Bring the decisions that are not in the manifest yet up to date with a journal entry."""
    if "folded_to" not in entry:
        pending[entry["frame_id"]] = (start, RoiCells.from_dict(entry["after"]))
        return
    for frame_id in [key for key, (at, _) in pending.items() if at < entry["folded_to"]]:
        del pending[frame_id]


def fold_pending(
    manifest_path: Path, journal: Journal, pending: Mapping[str, tuple[int, RoiCells]], end: int
) -> None:
    """Rewrite the manifest with `pending`, all from before byte `end`, and say so in the journal.

    The caller holds the manifest's lock, and not the journal's.

    Raises:
        OSError: if a file cannot be written.
    """
    before = signature(manifest_path)
    _rewrite(manifest_path, {frame_id: cells for frame_id, (_, cells) in pending.items()})
    marker = {"folded_to": end, "from": before, "to": signature(manifest_path)}
    with journal.lock():
        journal.append([marker])


def _is_folded(journal: Journal) -> bool:
    last = journal.last()
    return last is None or last[1].get("folded_to") == last[0]


def _fold_all(manifest_path: Path, journal: Journal) -> int:
    if _is_folded(journal):
        return 0
    entries, end = journal.read(0)
    pending: Pending = {}
    for start, entry in entries:
        apply_entry(pending, start, entry)
    if pending:
        fold_pending(manifest_path, journal, pending, end)
    return len(pending)


def _rewrite(path: Path, decisions: Mapping[str, RoiCells]) -> None:
    """Copy a CSV row by row, so that memory does not grow with it; other cells stay as they are."""
    with (
        path.open(newline="", encoding="utf-8-sig") as source,
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as target,
    ):
        reader, writer = csv.reader(source), csv.writer(target, lineterminator="\n")
        header = next(reader)
        header += [name for name in DECISION_COLUMNS if name not in header]
        writer.writerow(header)
        id_at = header.index("frame_id")
        columns = [(name, header.index(name)) for name in DECISION_COLUMNS]
        for row in reader:
            if not row:
                continue  # pandas skips empty lines, too
            row += [""] * (len(header) - len(row))
            cells = decisions.get(row[id_at])
            if cells is not None:
                texts = cells.decision_cells()
                for name, at in columns:
                    row[at] = texts[name]
            writer.writerow(row)
        target.flush()
        # The journal will say that these decisions are in the manifest, so they have to be.
        os.fsync(target.fileno())
