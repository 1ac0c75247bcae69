"""What people have decided about the ROI of frames: one SQLite file for the manifests of a folder.

The file is the truth and a manifest's ROI columns are a copy of it, so that a manifest that is made
again, or restored from a backup, holds every decision. A decision belongs to a frame: its
`frame_id` and the hash of its pixels. It goes by the hash alone only where no other frame has these
pixels, because some patients' folders hold exact copies. `read_manifest` and `write_manifest` look
here, so no other code has to.

Why SQLite, and not one more column written at once: rewriting two million rows takes seconds, one
transaction takes milliseconds. Nothing is ever changed or removed in the file. It says who decided
what and when, and it is what undo needs.
"""

import csv
import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from filelock import FileLock

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
# Rewriting two million rows takes half a minute on a slow network disk.
_MANIFEST_PATIENCE_S = 120
_NUM_NAMED = 5
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


@dataclass(frozen=True)
class Row:
    """What a decision looks for in a manifest row."""

    frame_id: str
    pixels_sha256: str
    reviewed_at: str

    @property
    def key(self) -> FrameKey:
        """As `Entry.key`."""
        return self.frame_id, self.pixels_sha256


class History:
    """Entries of a store, found by frame."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._by_frame: dict[FrameKey, list[Entry]] = defaultdict(list)
        self._by_pixels: dict[str, list[Entry]] = defaultdict(list)
        self._frame_ids: set[str] = set()
        self._pixels: set[str] = set()
        for entry in entries:
            self.add(entry)

    def add(self, entry: Entry) -> None:
        """Take in one more entry, in the order of the store."""
        if entry.action == FOLDED:
            return
        self._frame_ids.add(entry.frame_id)
        self._pixels |= {entry.pixels_sha256} - {""}
        self._by_frame[entry.key].append(entry)
        if entry.num_copies == 1 and entry.pixels_sha256:
            self._by_pixels[entry.pixels_sha256].append(entry)

    def __bool__(self) -> bool:
        return bool(self._by_frame)

    def concerns(self, key: FrameKey) -> bool:
        """Whether an entry has this frame's name or pixels."""
        return key[0] in self._frame_ids or key[1] in self._pixels

    def of(self, key: FrameKey, *, is_unique: bool) -> list[Entry]:
        """Entries about a frame, oldest first.

        Args:
            key: of the frame.
            is_unique: whether no other frame of its manifest has these pixels.
        """
        found = [*self._by_frame.get(key, ()), *self._by_frame.get((key[0], ""), ())]
        if is_unique:
            found += self._by_pixels.get(key[1], ())
        return sorted({entry.number: entry for entry in found}.values(), key=attrgetter("number"))

    def last_of_each(self) -> list[Entry]:
        """The last entry of every frame."""
        return [entries[-1] for entries in self._by_frame.values()]


@dataclass(frozen=True)
class Match:
    """Which decision holds for which row.

    Attributes:
        changes: ROI columns by `frame_id`, for the rows that the store has the last word about.
        covered: last entry by key of the row, for every row that somebody decided about.
        unclear: `frame_id` of rows that a person may have decided about, but nobody can tell: the
            pixels are others now, or the frame has another name and exact copies.
    """

    changes: dict[str, dict[str, str]]
    covered: dict[FrameKey, Entry]
    unclear: list[str]


def match(rows: Iterable[Row], history: History, manifest_name: str) -> Match:
    """Find the decision of every row of a manifest.

    Args:
        rows: of the manifest; only those that a decision may concern are held.
        history: of the store.
        manifest_name: decisions taken under this name are expected to be found.
    """
    near = [row for row in rows if history.concerns(row.key)]
    copies = Counter(row.pixels_sha256 for row in near)
    covered, changes = {}, {}
    for row in near:
        entries = history.of(row.key, is_unique=copies[row.pixels_sha256] == 1)
        if not entries:
            continue
        last = covered[row.key] = entries[-1]
        # A row that was reviewed later than the store knows comes from another machine. One that
        # nobody reviewed has nothing to take back, and may hold a newer proposal.
        if row.reviewed_at <= last.at and (last.is_persons or row.reviewed_at):
            changes[row.frame_id] = last.cells
    found = {entry.number for entry in covered.values()}
    lost = [
        entry
        for entry in history.last_of_each()
        if entry.manifest == manifest_name and entry.is_persons and entry.number not in found
    ]
    names = {entry.frame_id for entry in lost}
    pixels = {entry.pixels_sha256 for entry in lost} - {""}
    unclear = [
        row.frame_id
        for row in near
        if row.key not in covered and (row.frame_id in names or row.pixels_sha256 in pixels)
    ]
    return Match(changes, covered, unclear)


@contextmanager
def manifest_lock(manifest_path: str | Path) -> Iterator[None]:
    """Held by whoever reads a manifest and writes it again; once more by the same thread is fine.

    Raises:
        TimeoutError: if another process holds it for two minutes.
    """
    path = Path(manifest_path).absolute()
    if not path.is_file():
        yield  # nobody can be at work on it, and a mistyped path leaves no lock behind
        return
    lock_path = path.with_name(f"{path.name}.lock")
    with FileLock(lock_path, timeout=_MANIFEST_PATIENCE_S, is_singleton=True):
        yield


def read_entries(manifest_path: str | Path, *, after: int = 0) -> list[Entry]:
    """Decisions about the frames of a folder, in the order in which they were taken.

    Args:
        manifest_path: of any manifest of the folder. Journals of older releases that no review has
            taken over yet are read, too.
        after: number of an entry; those up to it are left out.

    Raises:
        ValueError: if the store or a journal is damaged.
        OSError: if it cannot be read; TimeoutError if another process holds it.
    """
    folder = Path(manifest_path).parent
    entries: list[Entry] = []
    taken: dict[str, int] = {}
    if (folder / STORE_NAME).is_file():
        with _connected(folder) as connection:
            # A writer killed while it made the file has left it without tables.
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] >= 2:
                entries = _entries_after(connection, after)
                taken = dict(connection.execute("SELECT journal, num_bytes FROM taken_over"))
    next_number = (entries[-1].number if entries else after) + 1
    for name, _, content in _new_lines(folder, taken):
        for entry in _from_journal(folder, name, content):
            entries.append(replace(entry, number=next_number))
            next_number += 1
    return entries


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
    with _connected(folder, create=True) as connection:
        connection.executescript(_SCHEMA)
        connection.execute("BEGIN IMMEDIATE")
        try:
            taken = dict(connection.execute("SELECT journal, num_bytes FROM taken_over"))
            for name, end, content in _new_lines(folder, taken):
                _append(connection, _from_journal(folder, name, content))
                connection.execute("REPLACE INTO taken_over VALUES (?, ?)", (name, end))
            yield partial(_append, connection)
            connection.execute("COMMIT")
        except BaseException:
            # SQLite has rolled back by itself where it was the disk that failed.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def fold_decisions(manifest_path: str | Path) -> int:
    """Write what the store says into a manifest, for whoever opens it without this package.

    `read_manifest` needs no such call. Other cells are copied as they are written.

    Returns:
        number of rows changed.

    Raises:
        ValueError: if the store or the manifest is damaged.
        OSError: if the manifest cannot be written; TimeoutError if another process holds it.
    """
    path = Path(manifest_path)
    with manifest_lock(path):
        history = History(read_entries(path))
        changes = match(_rows_of(path), history, path.name).changes
        before = signature(path)
        count = _rewrite(path, changes) if changes else 0
        if count:
            # So that an open review page need not read the table again for what it knows.
            marks = json.dumps(before), json.dumps(signature(path))
            entry = Entry(path.name, "", "", 0, "", "", FOLDED, *marks)
            with writing(path) as append:
                append([entry])
    return count


def signature(path: Path) -> list[int]:
    """Changes whenever a file is replaced or written; [] if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return []
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def check_none_dropped(rows: Sequence[Row], manifest_path: str | Path, history: History) -> None:
    """Refuse a table that would take the place of a manifest and lose a person's decision.

    Args:
        rows: of the new table.
        manifest_path: the manifest it would replace. Where there is none, what was decided under
            its name counts.
        history: of the store.

    Raises:
        ValueError: with the frames that would lose theirs.
    """
    path = Path(manifest_path)
    new = match(rows, history, path.name)
    held = {entry.number for entry in new.covered.values()}
    pixels = {pixels for _, pixels in new.covered}  # decided about anew, under another name
    if path.is_file():
        old = list(match(_rows_of(path), history, path.name).covered.values())
    else:
        old = [entry for entry in history.last_of_each() if entry.manifest == path.name]
    dropped = [
        entry.frame_id
        for entry in old
        if entry.is_persons
        and entry.number not in held
        and not (entry.num_copies == 1 and entry.pixels_sha256 in pixels)
    ]
    if dropped:
        raise ValueError(
            "Expected all frames that a person has decided about. Received: a table for "
            f"{path.name} without {_named(dropped)}, or with other pixels for them, or with "
            "another name while exact copies exist, so that decisions would be lost. Nothing was "
            "written. Put the frames back; or reopen them in `steatosis review`; or write another "
            "manifest with --output."
        )
    check_clear(new, path.name)


def check_clear(found: Match, manifest_name: str) -> None:
    """Refuse to go on where a person's decision may hold and nobody can tell.

    Raises:
        ValueError: with the frames.
    """
    if found.unclear:
        raise ValueError(
            f"Expected every frame that a person has decided about. Received: {manifest_name} with "
            f"{_named(found.unclear)} decided about with other pixels, or under another name "
            f"while exact copies exist. The decisions are in {STORE_NAME}; decide about these "
            "frames again with `steatosis review`."
        )


def reviewed_rows(manifest_path: str | Path) -> list[Entry]:
    """What a manifest file itself says that people have decided, with or without a store."""
    path = Path(manifest_path)
    if not path.is_file():
        return []
    entries: list[Entry] = []
    rows = list(_reviewed_cells(path))
    copies = Counter(row["pixels_sha256"] for row in _records(path)) if rows else Counter()
    for row in rows:
        cells = json.dumps({name: row.get(name, "") for name in DECISION_COLUMNS})
        key = row["frame_id"], row["pixels_sha256"]
        at = row.get("roi_reviewed_at", "")
        entries.append(
            Entry(path.name, *key, copies[key[1]], at, row.get("roi_reviewer", ""),
                  row["roi_state"], cells, cells, -1 - len(entries))
        )  # fmt: skip
    return entries


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


@contextmanager
def _connected(folder: Path, *, create: bool = False) -> Iterator[sqlite3.Connection]:
    # One connection a use: none is carried into a forked process, none holds the file open. Not
    # read-only even to read, or what a killed writer left half done could not be rolled back.
    path = (folder / STORE_NAME).absolute()
    address = f"{path.as_uri()}?mode={'rwc' if create else 'rw'}"
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
        raise _as_usual(error) from error


def _as_usual(error: sqlite3.DatabaseError) -> Exception:
    """An error of SQLite as the one that a file would have raised."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return TimeoutError(f"{STORE_NAME} is held by another process ({error})")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
        return ValueError(
            f"Expected the store of decisions. Received: {STORE_NAME}, which is damaged ({error}). "
            "Restore it from a backup."
        )
    return OSError(f"{STORE_NAME} cannot be used ({error})")


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
    for row in _records(path) if wanted and path.is_file() else ():
        copies[row["pixels_sha256"]] += 1
        if row["frame_id"] in wanted:
            pixels[row["frame_id"]] = row["pixels_sha256"]
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


def _records(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a manifest as texts, one at a time."""
    with path.open(newline="", encoding="utf-8-sig") as stream:
        for row in csv.DictReader(stream, restval=""):
            if "frame_id" not in row or "pixels_sha256" not in row:
                return  # no manifest; whoever needs one says so
            yield row


def _rows_of(path: Path) -> Iterator[Row]:
    for row in _records(path):
        yield Row(row["frame_id"], row["pixels_sha256"], row.get("roi_reviewed_at", ""))


def _reviewed_cells(path: Path) -> Iterator[dict[str, str]]:
    return (row for row in _records(path) if row.get("roi_state", ""))


def _rewrite(path: Path, changes: Mapping[str, Mapping[str, str]]) -> int:
    """Copy a CSV row by row, so that memory does not grow with it; other cells stay as they are.

    Returns:
        number of rows changed; with none, the file is left alone.
    """
    differing = sum(
        any(row.get(name, "") != changes[row["frame_id"]][name] for name in DECISION_COLUMNS)
        for row in _records(path)
        if row["frame_id"] in changes
    )
    if not differing:
        return 0
    with (
        path.open(newline="", encoding="utf-8-sig") as source,
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as target,
    ):
        reader, writer = csv.DictReader(source, restval=""), csv.writer(target, lineterminator="\n")
        old = list(reader.fieldnames or ())
        header = [*old, *(name for name in DECISION_COLUMNS if name not in old)]
        writer.writerow(header)
        for row in reader:
            if "roi_source" not in old:
                # A box of the label table is a person's, as `steatosis roi` has it, too.
                row["roi_source"] = "person" if row.get("roi_height") else ""
            row.update(changes.get(row["frame_id"], {}))
            writer.writerow([row.get(name, "") for name in header])
    return differing


def _named(frame_ids: Sequence[str]) -> str:
    shown = ", ".join(frame_ids[:_NUM_NAMED])
    more = f" and {len(frame_ids) - _NUM_NAMED} more" if len(frame_ids) > _NUM_NAMED else ""
    frames = "1 frame" if len(frame_ids) == 1 else f"{len(frame_ids)} frames"
    return f"{frames} (frame_id {shown}{more})"
