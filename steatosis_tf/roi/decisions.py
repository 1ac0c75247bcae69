"""What people have decided about the ROI of each frame: take it in, keep it, undo it."""

import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from steatosis_tf.cohort.manifest import read_manifest
from steatosis_tf.roi.decision_rules import Decision, Outcome, decided, journal_entry
from steatosis_tf.roi.fold import (
    Pending,
    apply_entry,
    fold_pending,
    journal_of,
    manifest_lock,
    signature,
)
from steatosis_tf.roi.review_queue import ReviewQueue
from steatosis_tf.roi.roi_cells import ROI_CELLS, RoiCells

# Rewriting the manifest may take this share of the time, so that a big one leaves room to work.
_FOLD_SHARE = 0.05


class DecisionStore:
    """The ROI cells of a manifest, shared with other threads and other processes.

    `mutex` is held by whoever needs several answers that belong together.

    Args:
        manifest_path: as `build_manifest` writes it.

    Raises:
        ValueError: if the manifest or its journal cannot be read.
    """

    def __init__(self, manifest_path: str | Path) -> None:
        self.path = Path(manifest_path)
        self.fold_error = ""
        self._journal = journal_of(self.path)
        self.mutex = threading.RLock()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._offset = 0
        self._start()

    def __len__(self) -> int:
        return len(self._table)

    def position(self, frame_id: str) -> int:
        """Row of a frame.

        Raises:
            ValueError: if the manifest has no such frame.
        """
        at = self._index.get_indexer([frame_id])[0]
        if at < 0:
            raise ValueError(
                f"Expected a frame_id of {self.path.name}. Received: frame_id={frame_id!r}."
            )
        return int(at)

    def frame_id(self, position: int) -> str:
        """Name of the frame in a row."""
        return str(self._table["frame_id"].iat[position])

    def manifest_path_of(self, position: int) -> str:
        """Path of the frame in a row, as the manifest has it."""
        return str(self._table["path"].iat[position])

    def frame_path(self, position: int) -> Path:
        """File of the frame in a row."""
        return self.path.parent / self.manifest_path_of(position)

    def cells(self, position: int) -> RoiCells:
        """ROI cells of a row, with all decisions known here; `refresh` fetches those of others."""
        changed = self._changed.get(position)
        if changed is not None:
            return changed
        columns = [name for name in ROI_CELLS if name in self._table.columns]
        return RoiCells.from_row({name: self._table[name].iat[position] for name in columns})

    def num_decisions(self, position: int) -> int:
        """How many decisions about a row can be taken back."""
        return len(self._undo.get(self.frame_id(position), ()))

    def refresh(self) -> None:
        """Take in what other processes have decided or rewritten."""
        with self.mutex:
            if self._journal.size() < self._offset:  # somebody removed or replaced the journal
                self._start()
                return
            entries, self._offset = self._journal.read(self._offset)
            for start, entry in entries:
                self._take_in(start, entry)
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
            TimeoutError: if another process holds the journal.
            OSError: if the journal cannot be written, for example on a full disk.
        """
        outcomes, entries = [], []
        with self.mutex, self._journal.lock():
            self.refresh()
            for decision in decisions:
                before = self.cells(self.position(decision.frame_id))
                saved = before.revision == decision.revision
                stack = self._undo.get(decision.frame_id, [])
                after = decided(before, stack, decision, reviewer) if saved else before
                outcomes.append(Outcome(saved, after))
                if saved:
                    entries.append(journal_entry(decision, before, after, reviewer))
            if entries:
                self._journal.append(entries)
                self.refresh()
        self._wake.set()
        return outcomes

    def fold(self) -> None:
        """Write the decisions that are only in the journal into the manifest.

        Raises:
            OSError: if the manifest cannot be written; TimeoutError if another process holds it.
        """
        with manifest_lock(self.path):
            with self.mutex, self._journal.lock():
                self.refresh()
                pending, end = dict(self._pending), self._offset
            if pending:
                fold_pending(self.path, self._journal, pending, end)
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
                # The decisions are safe in the journal; the page says that the table lags behind.
                self.fold_error = str(error.args[-1] if error.args else error)
                self._stop.wait(5)
                self._wake.set()
            self._stop.wait((time.monotonic() - begin) / _FOLD_SHARE)

    def _start(self) -> None:
        self._pending: Pending = {}
        self._undo: dict[str, list[RoiCells]] = {}
        self._offset = 0
        self._signature: list[int] = []
        self._changed: dict[int, RoiCells] = {}
        self._load_table()
        entries, self._offset = self._journal.read(0)
        for start, entry in entries:
            self._remember(start, entry)
        self._apply_pending()

    def _load_table(self) -> None:
        while True:
            self._signature = signature(self.path) if self.path.exists() else []
            table = read_manifest(self.path)
            if signature(self.path) == self._signature:
                break  # else it was replaced between the look at it and the reading
        columns = ["frame_id", "path", *(name for name in ROI_CELLS if name in table.columns)]
        self._table = table[columns]
        self._index = pd.Index(self._table["frame_id"])
        states = self._table.get("roi_state", pd.Series("", index=table.index))
        qualities = self._table.get("roi_quality", pd.Series(float("nan"), index=table.index))
        has_box = pd.Series("roi_top" in columns, index=table.index)
        for name in set(columns) & set(ROI_CELLS[:4]):
            has_box &= self._table[name].notna()
        self.queue = ReviewQueue(
            states.to_numpy(dtype=object), qualities.to_numpy(dtype=float), has_box.to_numpy()
        )
        self._apply_pending()

    def _apply_pending(self) -> None:
        self._changed = {}
        for frame_id, (_, cells) in self._pending.items():
            self._set(frame_id, cells)

    def _take_in(self, start: int, entry: dict[str, Any]) -> None:
        self._remember(start, entry)
        if "folded_to" not in entry:
            self._set(entry["frame_id"], RoiCells.from_dict(entry["after"]))
        elif entry["from"] == self._signature:
            # The rewrite put in what is known here already, so there is no need to read it.
            self._signature = entry["to"]

    def _remember(self, start: int, entry: dict[str, Any]) -> None:
        apply_entry(self._pending, start, entry)
        if "folded_to" in entry:
            return
        stack = self._undo.setdefault(entry["frame_id"], [])
        if entry["action"] == "reopen":
            stack.clear()
        elif entry["action"] == "undo":
            del stack[-1:]
        else:
            stack.append(RoiCells.from_dict(entry["before"]))

    def _set(self, frame_id: str, cells: RoiCells) -> None:
        at = self._index.get_indexer([frame_id])[0]
        if at >= 0:  # a frame that was taken out of the manifest keeps its line in the journal
            self._changed[int(at)] = cells
            self.queue.set(int(at), cells.state, has_box=cells.rectangle is not None)
