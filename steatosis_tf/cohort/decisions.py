"""What people have decided about the ROI of frames, and the manifests that hold a copy of it.

The store of a folder is the truth and a manifest's ROI columns are a copy, so that a manifest that
is made again, or restored from a backup, holds every decision. A decision belongs to a frame: its
`frame_id` and the hash of its pixels. It goes by the hash alone only where no other frame has these
pixels, because some patients' folders hold exact copies. `read_manifest` and `write_manifest` look
here, so no other code has to.
"""

import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from filelock import FileLock

from steatosis_tf.cohort.decision_store import (
    DECISION_COLUMNS,
    FOLDED,
    STORE_NAME,
    Entry,
    FrameKey,
    manifest_rows,
    read_entries,
    writing,
)
from steatosis_tf.files import replacing

if TYPE_CHECKING:
    import pandas as pd

# Rewriting two million rows takes half a minute on a slow network disk.
_MANIFEST_PATIENCE_S = 120
_NUM_NAMED = 5
# How `roi_sector` begins where no person has set the fan: with the version that found it.
_FOUND_BY = re.compile(r"^v\d+ ")


class Row(NamedTuple):
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
        # A row that was reviewed later than the store knows comes from another folder. One that
        # nobody reviewed has nothing to take back, and may hold a newer proposal.
        is_known = row.reviewed_at <= last.at or any(
            entry.cells["roi_reviewed_at"] == row.reviewed_at for entry in entries
        )
        if is_known and (last.is_persons or row.reviewed_at):
            changes[row.frame_id] = last.cells
    lost = _not_among(covered, (e for e in history.last_of_each() if e.manifest == manifest_name))
    names = {entry.frame_id for entry in lost}
    pixels = {entry.pixels_sha256 for entry in lost} - {""}
    unclear = [
        row.frame_id
        for row in near
        if row.key not in covered and (row.frame_id in names or row.pixels_sha256 in pixels)
    ]
    return Match(changes, covered, unclear)


def _not_among(covered: Mapping[FrameKey, Entry], entries: Iterable[Entry]) -> list[Entry]:
    """Decisions of persons that hold for no row, and whose picture nobody decided about anew."""
    numbers = {entry.number for entry in covered.values()}
    pixels = {pixels for _, pixels in covered}
    return [
        entry
        for entry in entries
        if entry.is_persons
        and entry.number not in numbers
        and not (entry.num_copies == 1 and entry.pixels_sha256 in pixels)
    ]


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


def check_none_dropped(rows: Iterable[Row], manifest_path: str | Path, history: History) -> None:
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
    if path.is_file():
        old = list(match(_rows_of(path), history, path.name).covered.values())
    else:
        old = [entry for entry in history.last_of_each() if entry.manifest == path.name]
    dropped = [entry.frame_id for entry in _not_among(new.covered, old)]
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


def with_accepted_fans(table: "pd.DataFrame") -> "pd.DataFrame":
    """The manifest, in which a fan that a person accepted in beam space counts as that person's.

    Else a later version of the search would put another fan, or none, in its place.

    Args:
        table: manifest rows with what people have decided; changed in place.
    """
    if not {"roi_state", "roi_view", "roi_sector"} <= set(table.columns):
        return table
    is_persons = (table["roi_state"] == "accepted") & (table["roi_view"] != "")
    cells = table.loc[is_persons, "roi_sector"]
    table.loc[is_persons, "roi_sector"] = cells.str.replace(_FOUND_BY, "person ", regex=True)
    return table


def reviewed_rows(manifest_path: str | Path) -> list[Entry]:
    """What a manifest file itself says that people have decided, with or without a store."""
    path = Path(manifest_path)
    if not path.is_file():
        return []
    names = ("frame_id", "pixels_sha256", *DECISION_COLUMNS)
    copies: Counter[str] = Counter()
    entries: list[Entry] = []
    for frame_id, digest, *texts in manifest_rows(path, names):
        copies[digest] += 1
        cells = dict(zip(DECISION_COLUMNS, texts, strict=True))
        if cells["roi_state"]:
            entries.append(
                Entry(
                    manifest=path.name,
                    frame_id=frame_id,
                    pixels_sha256=digest,
                    num_copies=0,
                    at=cells["roi_reviewed_at"],
                    reviewer=cells["roi_reviewer"],
                    action=cells["roi_state"],
                    before="{}",
                    after=json.dumps(cells),
                    number=-1 - len(entries),  # older than whatever a store holds
                )
            )
    return [replace(entry, num_copies=copies[entry.pixels_sha256]) for entry in entries]


def _rows_of(path: Path) -> Iterator[Row]:
    return map(Row._make, manifest_rows(path, ("frame_id", "pixels_sha256", "roi_reviewed_at")))


def _rewrite(path: Path, changes: Mapping[str, Mapping[str, str]]) -> int:
    """Copy a CSV row by row, so that memory does not grow with it; other cells stay as they are.

    Returns:
        number of rows changed; with none, the file is left alone.
    """
    wanted = {key: [cells[name] for name in DECISION_COLUMNS] for key, cells in changes.items()}
    num_differing = sum(
        cells != wanted.get(frame_id, cells)
        for frame_id, *cells in manifest_rows(path, ("frame_id", *DECISION_COLUMNS))
    )
    if not num_differing:
        return 0
    with (
        path.open(newline="", encoding="utf-8-sig") as source,
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as target,
    ):
        reader, writer = csv.reader(source), csv.writer(target, lineterminator="\n")
        header = next(reader)
        has_boxes_of_labels = "roi_height" in header and "roi_source" not in header
        header += [name for name in DECISION_COLUMNS if name not in header]
        writer.writerow(header)
        places = [header.index(name) for name in ("frame_id", *DECISION_COLUMNS)]
        height, source_at = header.index("roi_height"), header.index("roi_source")
        for row in filter(None, reader):
            row += [""] * (len(header) - len(row))
            if has_boxes_of_labels and row[height]:
                row[source_at] = "person"  # as `steatosis roi` has it, too
            for place, text in zip(places[1:], wanted.get(row[places[0]], ()), strict=False):
                row[place] = text
            writer.writerow(row)
    return num_differing


def _named(frame_ids: Sequence[str]) -> str:
    shown = ", ".join(frame_ids[:_NUM_NAMED])
    more = f" and {len(frame_ids) - _NUM_NAMED} more" if len(frame_ids) > _NUM_NAMED else ""
    frames = "1 frame" if len(frame_ids) == 1 else f"{len(frame_ids)} frames"
    return f"{frames} (frame_id {shown}{more})"
