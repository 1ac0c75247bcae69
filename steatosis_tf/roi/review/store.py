"""The decisions about one manifest while it is reviewed, and which frame comes next."""

import json
import threading
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from steatosis_tf.cohort.decision_store import (
    FOLDED,
    STORE_NAME,
    Entry,
    network_notice,
    read_entries,
    take_over_journals,
    writing,
)
from steatosis_tf.cohort.decisions import History, fold_decisions, signature
from steatosis_tf.cohort.manifest import read_manifest
from steatosis_tf.roi.review.rules import (
    ROI_CELLS,
    STATES,
    Decision,
    Outcome,
    RoiCells,
    decided,
    now,
)

FILTERS = ("to_review", "no_box", *STATES, "all")

_TO_REVIEW = 0
# Rewriting the manifest may take so much of the time, so that a big one leaves room to work.
_FOLD_SHARE = 0.05


class DecisionStore:
    """The ROI cells of a manifest, shared with other threads and other processes.

    `mutex` is held by whoever needs several answers that belong together.

    Args:
        manifest_path: as `build_manifest` writes it.

    Raises:
        ValueError: if the manifest or the store of its folder cannot be read.
        OSError: if a journal of an older release cannot be taken over.
    """

    def __init__(self, manifest_path: str | Path) -> None:
        self.path = Path(manifest_path)
        self.fold_error = ""
        if notice := network_notice(self.path.parent):
            warnings.warn(notice, stacklevel=2)
        take_over_journals(self.path)
        self.mutex = threading.RLock()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._folded: tuple[list[int], int] | None = None
        self._opened = self._number = self._last_decision = 0
        self._start()

    def __len__(self) -> int:
        return len(self._index)

    def position(self, frame_id: str) -> int:
        """Row of a frame.

        Raises:
            ValueError: if the manifest has no such frame.
        """
        try:
            return int(self._index.get_loc(frame_id))
        except KeyError:
            raise ValueError(
                f"Expected a frame_id of {self.path.name}. Received: frame_id={frame_id!r}."
            ) from None

    def frame_id(self, position: int) -> str:
        """Name of the frame in a row."""
        return str(self._columns["frame_id"][position])

    def patient_id(self, position: int) -> str:
        """The study's pseudonym of the patient in a row."""
        return str(self._columns["patient_id"][position])

    def pixels_sha256(self, position: int) -> str:
        """Hash of the pixels of the frame in a row."""
        return self._key(position)[1]

    def manifest_path_of(self, position: int) -> str:
        """Path of the frame in a row, as the manifest has it."""
        return str(self._columns["path"][position])

    def frame_path(self, position: int) -> Path:
        """File of the frame in a row."""
        return self.path.parent / self.manifest_path_of(position)

    def cells(self, position: int) -> RoiCells:
        """ROI cells of a row, with all decisions known here; `refresh` fetches those of others."""
        changed = self._changed.get(position)
        if changed is not None:
            return changed
        names = [name for name in ROI_CELLS if name in self._columns]
        return RoiCells.from_row({name: self._columns[name][position] for name in names})

    def num_decisions(self, position: int) -> int:
        """How many decisions about a row can be taken back."""
        return len(self._stack(position))

    def refresh(self) -> None:
        """Take in what other processes have decided or rewritten."""
        with self.mutex:
            opened, self._opened = self._opened, self._store_file()
            if opened not in (0, self._opened):  # somebody removed or replaced the file
                self._start()
                return
            for entry in read_entries(self.path, after=self._number):
                self._take_in(entry)
            if signature(self.path) != self._signature:
                self._load_table()

    def decide(self, decision: Decision, *, reviewer: str) -> Outcome:
        """Take in one decision; returns when the disk has it. See `decide_all`."""
        return self.decide_all([decision], reviewer=reviewer)[0]

    def decide_all(self, decisions: Iterable[Decision], *, reviewer: str) -> list[Outcome]:
        """Take in decisions, each about another frame; returns when the disk has them.

        Raises:
            ValueError: if an action is unknown or impossible, a reason is missing or too long,
                or a frame is unknown; then nothing is saved.
            TimeoutError: if another process holds the store.
            OSError: if the store cannot be written, for example on a full disk.
        """
        with self.mutex:
            with writing(self.path) as append:
                self.refresh()
                outcomes, entries = self._judge(decisions, reviewer)
                append(entries)
            self.refresh()
        self._wake.set()
        return outcomes

    def fold(self) -> None:
        """Write the decisions that are only in the store into the manifest.

        Raises:
            OSError: if the manifest cannot be written; TimeoutError if another process holds it.
        """
        self.refresh()
        number = self._last_decision
        if (signature(self.path), number) != self._folded:
            fold_decisions(self.path)
            self._folded = signature(self.path), number
            self.refresh()

    def start_folding(self) -> None:
        """Fold in the background whenever something was decided."""
        self._thread = threading.Thread(target=self._keep_folding, daemon=True)
        self._thread.start()
        self._wake.set()

    def close(self) -> None:
        """Stop folding in the background, after one last time."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.fold()

    def _keep_folding(self) -> None:
        while not self._stop.is_set():
            self._wake.wait()
            self._wake.clear()
            begin = time.monotonic()
            try:
                self.fold()
                self.fold_error = ""
            except (OSError, ValueError) as error:
                # The decisions are safe in the store; the page says that the table lags behind.
                self.fold_error = str(error.args[-1] if error.args else error)
                self._stop.wait(5)
                self._wake.set()
            self._stop.wait((time.monotonic() - begin) / _FOLD_SHARE)

    def _judge(
        self, decisions: Iterable[Decision], reviewer: str
    ) -> tuple[list[Outcome], list[Entry]]:
        outcomes, entries = [], []
        for decision in decisions:
            at = self.position(decision.frame_id)
            before = self.cells(at)
            saved = before.revision == decision.revision
            after = decided(before, self._stack(at), decision, reviewer) if saved else before
            outcomes.append(Outcome(saved, after))
            if saved:
                entries.append(
                    Entry(
                        self.path.name,
                        *self._key(at),
                        num_copies=int(self._num_copies[at]),
                        at=now(),
                        reviewer=reviewer,
                        action=decision.action,
                        before=json.dumps(before.as_texts()),
                        after=json.dumps(after.as_texts()),
                    )
                )
        return outcomes, entries

    def _key(self, position: int) -> tuple[str, str]:
        return self.frame_id(position), str(self._columns["pixels_sha256"][position])

    def _stack(self, position: int) -> list[RoiCells]:
        """The row before each decision that still stands, oldest first."""
        stack: list[RoiCells] = []
        is_unique = self._num_copies[position] == 1
        for entry in self._history.of(self._key(position), is_unique=is_unique):
            if entry.action == "reopen":
                stack.clear()
            elif entry.action == "undo":
                del stack[-1:]
            else:
                stack.append(RoiCells.from_row(json.loads(entry.before)))
        return stack

    def _store_file(self) -> int:
        """Number of the store's file; 0 while there is none."""
        path = self.path.with_name(STORE_NAME)
        return path.stat().st_ino if path.exists() else 0

    def _start(self) -> None:
        self._opened = self._store_file()
        self._number = self._last_decision = 0
        self._history = History()
        self._signature: list[int] = []
        self._changed: dict[int, RoiCells] = {}
        for entry in read_entries(self.path):
            self._remember(entry)
        self._load_table()  # with what these entries say

    def _load_table(self) -> None:
        while True:
            self._signature = signature(self.path)
            table = read_manifest(self.path, for_review=True)
            if signature(self.path) == self._signature:
                break  # else it was replaced between the look at it and the reading
        columns = [
            "frame_id",
            "path",
            "patient_id",
            "pixels_sha256",
            *(name for name in ROI_CELLS if name in table.columns),
        ]
        # Arrays, because taking one cell out of a table is a hundred times slower.
        self._columns = {name: table[name].array for name in columns}
        self._index = pd.Index(table["frame_id"])
        pixels = table["pixels_sha256"]
        self._num_copies = pixels.map(pixels.value_counts()).to_numpy()
        self._changed = {}
        states = table.get("roi_state", pd.Series("", index=table.index))
        qualities = table.get("roi_quality", pd.Series(float("nan"), index=table.index))
        has_box = pd.Series("roi_top" in columns, index=table.index)
        for name in set(columns) & set(ROI_CELLS[:4]):
            has_box &= table[name].notna()
        self.queue = ReviewQueue(
            states.to_numpy(dtype=object), qualities.to_numpy(dtype=float), has_box.to_numpy()
        )

    def _take_in(self, entry: Entry) -> None:
        self._remember(entry)
        if entry.action == FOLDED:
            if json.loads(entry.before) == self._signature:
                # The rewrite put in what is known here already, so there is no need to read it.
                self._signature = json.loads(entry.after)
            return
        if entry.frame_id not in self._index:
            return  # a frame that was taken out of the manifest
        at = self.position(entry.frame_id)
        if entry.pixels_sha256 in ("", self._key(at)[1]):
            cells = self._changed[at] = RoiCells.from_row(entry.cells)
            self.queue.set(at, cells.state, has_box=cells.rectangle is not None)

    def _remember(self, entry: Entry) -> None:
        self._number = entry.number
        self._history.add(entry)
        if entry.action != FOLDED:
            self._last_decision = entry.number


class ReviewQueue:
    """States and qualities of all rows of a manifest, by row position.

    Args:
        states: `(rows,)` of str: "" or one of `STATES`.
        qualities: `(rows,)` float, 0 to 1, NaN where there is no proposal.
        has_box: `(rows,)` bool.
    """

    def __init__(self, states: np.ndarray, qualities: np.ndarray, has_box: np.ndarray) -> None:
        self._codes = np.zeros(len(states), np.int8)
        for code, state in enumerate(STATES, start=1):
            self._codes[states == state] = code
        self._has_box = has_box.copy()
        # A frame without a proposal needs a person most; boxes that nobody has rated come last. The
        # order must not hang on decisions, or frames would change their number under the reviewer:
        # a person's box or rejection leaves the quality, which is the proposer's, as it was.
        unrated = np.where(has_box & (states != "corrected"), 2.0, -1.0)
        badness = np.where(np.isnan(qualities), unrated, qualities)
        self._sequence = {
            "file": np.arange(len(states)),
            "worst": np.argsort(badness, kind="stable"),
        }
        self._rank = {}
        for order, sequence in self._sequence.items():
            self._rank[order] = np.empty(len(states), np.int64)
            self._rank[order][sequence] = np.arange(len(states))

    def set(self, position: int, state: str, *, has_box: bool) -> None:
        """Note what has become of a row."""
        self._codes[position] = STATES.index(state) + 1 if state else _TO_REVIEW
        self._has_box[position] = has_box

    def counts(self) -> dict[str, int]:
        """Number of rows behind every filter."""
        return {name: int(np.count_nonzero(self._matches(name))) for name in FILTERS}

    def rank(self, position: int, order: str) -> int:
        """Place of a row in an order, from 0."""
        return int(self._rank[order][position])

    def at_rank(self, rank: int, order: str) -> int:
        """Row at a place of an order; a place beyond the end counts as the end."""
        sequence = self._sequence[order]
        return int(sequence[min(max(rank, 0), len(sequence) - 1)])

    def following(
        self, position: int | None, *, step: int, filter_by: str, order: str, count: int
    ) -> list[int]:
        """Rows that match a filter, from the next one on, around the end and back.

        Args:
            position: row to go on from, itself left out; None begins at the first of the order.
            step: 1 forwards, -1 backwards.
            filter_by: one of `FILTERS`.
            order: "file" or "worst".
            count: at most so many.
        """
        ranks = np.flatnonzero(self._matches(filter_by)[self._sequence[order]])
        if position is not None:
            here = self.rank(position, order)
            ahead = ranks[np.searchsorted(ranks, here, side="right") :]
            behind = ranks[: np.searchsorted(ranks, here, side="left")]
            if step > 0:
                ranks = np.concatenate([ahead, behind])
            else:
                ranks = np.concatenate([behind[::-1], ahead[::-1]])
        return [int(row) for row in self._sequence[order][ranks[:count]]]

    def _matches(self, filter_by: str) -> np.ndarray:
        if filter_by == "all":
            return np.ones(len(self._codes), bool)
        if filter_by == "no_box":
            return (self._codes == _TO_REVIEW) & ~self._has_box
        if filter_by == "to_review":
            return self._codes == _TO_REVIEW
        return self._codes == STATES.index(filter_by) + 1
