"""The file of decisions: one SQLite database for the manifests of a folder.

Nothing is ever changed or removed in it. It says who decided what and when, and it is what undo
needs. SQLite, because one transaction takes milliseconds where rewriting a manifest of two million
rows takes seconds, and because it keeps a killed writer and a full disk from doing harm.
"""

import csv
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from steatosis_tf.files import replacing

#: Beside the manifests that it is about.
STORE_NAME = "roi_decisions.sqlite"
#: Columns that a decision changes, in the order in which a manifest gets them.
DECISION_COLUMNS = (
    "roi_top", "roi_left", "roi_height", "roi_width",
    "roi_source", "roi_reason", "roi_state", "roi_reviewer", "roi_reviewed_at", "roi_view",
    "roi_sector",
)  # fmt: skip

_FIELDS = (
    "number", "manifest", "frame_id", "pixels_sha256", "num_copies", "at", "reviewer", "action",
    "before", "after",
)  # fmt: skip
_SCHEMA = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS decisions (
    number INTEGER PRIMARY KEY AUTOINCREMENT, manifest TEXT NOT NULL, frame_id TEXT NOT NULL,
    pixels_sha256 TEXT NOT NULL, num_copies INTEGER NOT NULL, at TEXT NOT NULL,
    reviewer TEXT NOT NULL, action TEXT NOT NULL, "before" TEXT NOT NULL, "after" TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS taken_over (journal TEXT PRIMARY KEY, num_bytes INTEGER NOT NULL);
COMMIT;
"""
# A writer holds the store for one transaction; waiting longer means that a process hangs.
_STORE_PATIENCE_S = 15
_NETWORK_DISKS = ("nfs", "cifs", "smb", "afs", "9p", "ceph", "glusterfs", "lustre", "fuse.sshfs")
# The first releases kept one line of JSON a decision beside each manifest.
_JOURNAL_SUFFIX = ".review.jsonl"
#: Action of an entry that is no decision: a manifest was rewritten with what the store holds.
FOLDED = "folded"

FrameKey = tuple[str, str]


@dataclass(frozen=True)
class Entry:
    """One decision, as the store keeps it.

    Attributes:
        manifest: name of the file under which it was taken.
        frame_id: of which frame.
        pixels_sha256: hash of its pixels as that manifest has it; "" if it is not known any more.
        num_copies: frames of that manifest that had these pixels.
        at: when, UTC, ISO 8601.
        reviewer: who.
        action: what the person did.
        before: JSON of the frame's ROI columns as they were, as texts.
        after: JSON of what they became.
        number: place in the store, from 1; 0 before it is stored.
    """

    manifest: str
    frame_id: str
    pixels_sha256: str
    num_copies: int
    at: str
    reviewer: str
    action: str
    before: str
    after: str
    number: int = 0

    @property
    def key(self) -> FrameKey:
        """What the decision belongs to."""
        return self.frame_id, self.pixels_sha256

    @cached_property
    def cells(self) -> dict[str, str]:
        """What the ROI columns became; those that did not exist yet are empty."""
        return dict.fromkeys(DECISION_COLUMNS, "") | json.loads(self.after)

    @property
    def is_persons(self) -> bool:
        """Whether a person's word stands after it; undo and reopen can end without one."""
        return self.cells["roi_state"] != "" or self.cells["roi_source"] == "person"


def read_entries(manifest_path: str | Path, *, after: int = 0) -> list[Entry]:
    """Decisions about the frames of a folder, in the order in which they were taken.

    Args:
        manifest_path: of any manifest of the folder.
        after: number of an entry; those up to it are left out. From the start, journals of older
            releases that are not taken over yet are read, too.

    Raises:
        ValueError: if the store or a journal is damaged.
        OSError: if it cannot be read; TimeoutError if another process holds it.
    """
    folder = Path(manifest_path).parent
    entries: list[Entry] = []
    taken: dict[str, int] = {}
    if (folder / STORE_NAME).is_file():
        with connected(folder / STORE_NAME) as connection:
            # A writer killed while it made the file has left it without tables.
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] >= 2:
                entries = _entries_after(connection, after)
                taken = dict(connection.execute("SELECT journal, num_bytes FROM taken_over"))
    for name, _, content in _new_lines(folder, taken) if after == 0 else ():
        for entry in _from_journal(folder, name, content):
            number = entries[-1].number + 1 if entries else 1
            entries.append(replace(entry, number=number))
    return entries


def take_over_journals(manifest_path: str | Path) -> None:
    """Put what journals of older releases hold into the store; they stay where they are.

    Raises:
        ValueError, OSError: as `writing`.
    """
    if any(Path(manifest_path).parent.glob(f"*{_JOURNAL_SUFFIX}")):
        with writing(manifest_path):
            pass


@contextmanager
def writing(manifest_path: str | Path) -> Iterator[Callable[[Iterable[Entry]], None]]:
    """Hold the store of a manifest's folder; nothing slow may be done meanwhile.

    Yields a function that adds entries, whose own numbers do not count. They are on disk when the
    block ends.

    Journals of older releases are taken over first and stay where they are.

    Raises:
        ValueError: if the store or a journal is damaged.
        OSError: if it cannot be written, for example on a full disk: then nothing is added.
            TimeoutError if another process holds it.
    """
    folder = Path(manifest_path).parent
    with connected(folder / STORE_NAME, create=True) as connection:
        connection.executescript(_SCHEMA)
        with connection:  # commits at its end, or rolls back
            connection.execute("BEGIN IMMEDIATE")
            taken = dict(connection.execute("SELECT journal, num_bytes FROM taken_over"))
            for name, end, content in _new_lines(folder, taken):
                _append(connection, _from_journal(folder, name, content))
                connection.execute("REPLACE INTO taken_over VALUES (?, ?)", (name, end))
            yield partial(_append, connection)


def network_notice(folder: str | Path, mounts_path: str = "/proc/self/mounts") -> str:
    """A warning if a folder is on a network disk, where locks may not hold; else "".

    Args:
        folder: in which the store is or will be.
        mounts_path: Linux' table of disks; elsewhere only Windows' network names are known.
    """
    folder = Path(folder).resolve()
    kind = "a network folder" if str(folder).startswith(r"\\") else ""
    try:
        mounts = [line.split() for line in Path(mounts_path).read_text().splitlines()]
    except OSError:
        mounts = []
    places = {Path(where.replace(r"\040", " ")): system for _, where, system, *_ in mounts}
    disk = next((places[place] for place in (folder, *folder.parents) if place in places), "")
    if disk.startswith(_NETWORK_DISKS):
        kind = f"a network folder ({disk})"
    return kind and (
        f"{STORE_NAME} is on {kind}. Decisions are safe there while one person reviews at a time; "
        "not every network disk keeps two writers apart."
    )


def export_decisions(manifest_path: str | Path, output_path: str | Path) -> int:
    """Write all decisions of a manifest's folder as CSV, oldest first.

    Args:
        manifest_path: of any manifest of the folder.
        output_path: CSV to write or replace: who decided what about which frame and when, and
            each ROI column after it.

    Returns:
        number of decisions.
    """
    names = [name for name in _FIELDS if name not in ("before", "after")]
    decisions = [entry for entry in read_entries(manifest_path) if entry.action != FOLDED]
    with replacing(output_path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*names, *DECISION_COLUMNS])
        for entry in decisions:
            cells = [entry.cells.get(name, "") for name in DECISION_COLUMNS]
            writer.writerow([*(getattr(entry, name) for name in names), *cells])
    return len(decisions)


def manifest_rows(path: Path, names: Sequence[str]) -> Iterator[list[str]]:
    """Some columns of a manifest as texts, one row at a time; "" where there is no such column."""
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.reader(stream)
        header = next(reader, [])
        places = [header.index(name) if name in header else len(header) for name in names]
        for row in reader:
            if row:  # pandas skips empty lines, too
                yield [row[place] if place < len(row) else "" for place in places]


@contextmanager
def connected(path: Path, *, create: bool = False) -> Iterator[sqlite3.Connection]:
    """A connection to a store, whose transactions last through a power cut.

    Args:
        path: of the SQLite file.
        create: whether to make the file where it is missing.

    Raises:
        ValueError: if the store is damaged.
        OSError: if it cannot be used; TimeoutError if another process holds it.
    """
    # One connection a use: none is carried into a forked process, none holds the file open. Not
    # read-only even to read, or what a killed writer left half done could not be rolled back.
    address = f"{path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}"
    try:
        with closing(
            sqlite3.connect(address, uri=True, timeout=_STORE_PATIENCE_S, isolation_level=None)
        ) as connection:
            # Never WAL: its shared memory does not work over a network. EXTRA is FULL, and also
            # makes the end of a transaction last through a power cut.
            connection.execute("PRAGMA journal_mode=DELETE")
            connection.execute("PRAGMA synchronous=EXTRA")
            yield connection
    except sqlite3.DatabaseError as error:
        raise _as_usual(error, path.name) from error


def _as_usual(error: sqlite3.DatabaseError, name: str) -> Exception:
    """An error of SQLite as the one that a file would have raised."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return TimeoutError(f"{name} is held by another process ({error})")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
        return ValueError(
            f"Expected the store of decisions. Received: {name}, which is damaged ({error}). "
            "Restore it from a backup."
        )
    return OSError(f"{name} cannot be used ({error})")


def _append(connection: sqlite3.Connection, entries: Iterable[Entry]) -> None:
    names = _FIELDS[1:]
    columns = ", ".join(f'"{name}"' for name in names)
    marks = ", ".join(f":{name}" for name in names)
    connection.executemany(
        f"INSERT INTO decisions ({columns}) VALUES ({marks})", map(vars, entries)
    )


def _entries_after(connection: sqlite3.Connection, number: int) -> list[Entry]:
    columns = ", ".join(f'"{name}"' for name in _FIELDS)
    found = connection.execute(
        f"SELECT {columns} FROM decisions WHERE number > ? ORDER BY number", (number,)
    )
    return [Entry(**dict(zip(_FIELDS, row, strict=True))) for row in found]


def _new_lines(folder: Path, taken: Mapping[str, int]) -> Iterator[tuple[str, int, bytes]]:
    """Name, end and whole new lines of every journal of an older release."""
    for path in sorted(folder.glob(f"*{_JOURNAL_SUFFIX}")):
        start = taken.get(path.name, 0)
        if path.stat().st_size > start:
            with path.open("rb") as stream:
                stream.seek(start)
                content = stream.read()
            # A last line without its line feed was never acknowledged to anybody.
            content = content[: content.rfind(b"\n") + 1]
            if content:
                yield path.name, start + len(content), content


def _from_journal(folder: Path, name: str, content: bytes) -> list[Entry]:
    """Entries of a journal, with the pixels that its manifest has for the frames now."""
    manifest = name.removesuffix(_JOURNAL_SUFFIX)
    lines = []
    for at, line in enumerate(content.splitlines(), start=1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise ValueError(
                f"Expected one JSON object a line. Received: {name} with a broken line, "
                f"number {at} of those not taken over yet. Restore the file from a backup, or "
                "remove that line."
            ) from error
    lines = [line for line in lines if "frame_id" in line]
    path = folder / manifest
    wanted = {line["frame_id"] for line in lines}
    pixels: dict[str, str] = {}
    copies: Counter[str] = Counter()
    is_needed = wanted and path.is_file()
    for frame_id, digest in manifest_rows(path, ("frame_id", "pixels_sha256")) if is_needed else ():
        copies[digest] += 1
        if frame_id in wanted:
            pixels[frame_id] = digest
    return [
        Entry(manifest, line["frame_id"], pixels.get(line["frame_id"], ""),
              copies[pixels.get(line["frame_id"], "")], line["at"], line["by"], line["action"],
              _cells_of_journal(line["before"]), _cells_of_journal(line["after"]))
        for line in lines
    ]  # fmt: skip


def _cells_of_journal(fields: Mapping[str, Any]) -> str:
    box = fields["rectangle"] or {}
    cells = {f"roi_{side}": box.get(side) for side in ("top", "left", "height", "width")}
    cells |= {f"roi_{name}": value for name, value in fields.items() if name != "rectangle"}
    return json.dumps({name: "" if value is None else str(value) for name, value in cells.items()})
