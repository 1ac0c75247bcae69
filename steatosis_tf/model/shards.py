"""Shards of features on disk: whole or not used, read row by row.

A shard is a .npy file of `(num_rows, num_features)` and a JSON beside it that names the rows. Both
are called by the hash of what they hold, so a shard is never changed, only added or removed, and
several processes may add to one folder at the same time.
"""

import hashlib
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from steatosis_tf.files import clear_killed, file_sha256, replacing, write_json

#: Place of a row that no whole shard holds.
ABSENT = -1
# Rows that are read at once.
_SLICE_ROWS = 1024


class StoredViews:
    """Features on disk, indexed as an array of `(num_views, num_frames, num_features)`.

    What still has several views stays on disk: `views[1:, frames]`. All else is read, and only
    that: `views[0, frames]`, or pair by pair `views[[2, 1], [0, 7]]`, float32. `np.asarray(views)`
    reads everything. Rows are read, not mapped: mapped files count as memory of the process.
    """

    def __init__(self, paths: Sequence[Path], shards: np.ndarray, rows: np.ndarray) -> None:
        """
        Args:
            paths: the .npy files.
            shards: `(num_views, num_frames)` or, of one view, `(num_frames,)` int, which path
                each row is in.
            rows: the same, where in it.
        """
        self._paths, self._shards, self._rows = paths, shards, rows
        first = np.load(paths[0], mmap_mode="r")  # for its header alone
        self._dtype = first.dtype
        self.shape = (*shards.shape, first.shape[1])

    def __getitem__(self, key: Any) -> Any:
        shards, rows = self._shards[key], self._rows[key]
        if np.ndim(shards) == 2:
            return StoredViews(self._paths, shards, rows)
        values = self._read(np.atleast_1d(shards), np.atleast_1d(rows))
        return values.reshape(*np.shape(shards), self.shape[-1])

    def one_view(self, number: int, frames: np.ndarray) -> "StoredViews":
        """`(len(frames), num_features)` that stays on disk until it is sliced."""
        return StoredViews(self._paths, self._shards[number, frames], self._rows[number, frames])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = self._read(self._shards.ravel(), self._rows.ravel())
        return values.reshape(self.shape).astype(dtype or np.float32, copy=False)

    def _read(self, shards: np.ndarray, rows: np.ndarray) -> np.ndarray:
        values = np.empty((len(rows), self.shape[-1]), self._dtype)
        for number in np.unique(shards):
            with self._paths[number].open("rb", buffering=0) as file:
                np.lib.format.read_magic(file)
                np.lib.format.read_array_header_1_0(file)
                start = file.tell()
                for place in np.flatnonzero(shards == number):
                    file.seek(start + int(rows[place]) * values[place].nbytes)
                    file.readinto(values[place].data)
        return values.astype(np.float32, copy=False)


def plain_rows(views: np.ndarray | StoredViews, frames: np.ndarray) -> np.ndarray | StoredViews:
    """Frames as they are, `(len(frames), num_features)`; those of a store are read by the slice."""
    return views.one_view(0, frames) if isinstance(views, StoredViews) else views[0, frames]


def in_slices(rows: np.ndarray | StoredViews) -> Iterator[np.ndarray]:
    """What `plain_rows` gives, a part at a time."""
    for start in range(0, rows.shape[0], _SLICE_ROWS):
        yield rows[start : start + _SLICE_ROWS]


def add_shard(folder: Path, names: Sequence[str], values: np.ndarray) -> None:
    """Add a shard, whole or not at all. Safe from several processes at once.

    Args:
        folder: of one view.
        names: of the rows.
        values: `(len(names), num_features)`.

    Raises:
        OSError: if it cannot be written, for example on a full disk; nothing of it stays.
    """
    # Hashed in memory: a hash of the file would vouch for whatever a full disk let through.
    memory = io.BytesIO()
    np.save(memory, values)
    data = memory.getbuffer()
    digest = hashlib.sha256(data).hexdigest()
    data_path = folder / f"{_stem(names, digest)}.npy"
    try:
        with replacing(data_path) as temporary:
            temporary.write_bytes(data)
        # The JSON comes last: a shard without it was never finished and is never read.
        write_json({"rows": list(names)}, data_path.with_suffix(".json"), indent=None)
    except OSError as error:
        if not data_path.with_suffix(".json").exists():
            data_path.unlink(missing_ok=True)
        raise OSError(
            f"Expected to write {len(data) / 1e6:.1f} MB of features to the store. Received: "
            f"{error.strerror or error}. Free space, or choose another runs folder; what is "
            "stored already is kept, and the next run goes on from there."
        ) from error


def find_rows(folder: Path, names: Sequence[str]) -> tuple[list[Path], np.ndarray, np.ndarray]:
    """Where the rows lie. Shards that hold any of them are read once and held to their hash.

    Returns:
        paths of shards, and per name the number of its path and its row in there; `ABSENT` if no
        whole shard holds it.
    """
    wanted = {name: place for place, name in enumerate(names)}
    paths: list[Path] = []
    shards, rows = np.full((2, len(names)), ABSENT, np.int32)
    for note_path in sorted(folder.glob("*.json")):
        held = _noted_rows(note_path)
        places = [(wanted[name], row) for row, name in enumerate(held) if name in wanted]
        if places and _is_whole(note_path, held):
            found = np.array(places)
            shards[found[:, 0]], rows[found[:, 0]] = len(paths), found[:, 1]
            paths.append(note_path.with_suffix(".npy"))
    return paths, shards, rows


def clear_away(folder: Path) -> None:
    """Remove what is damaged or was never finished. Only while nobody else writes."""
    clear_killed(folder)
    for data_path in folder.glob("*.npy"):
        if not data_path.with_suffix(".json").exists():
            data_path.unlink()
    for note_path in folder.glob("*.json"):
        if not _is_whole(note_path, _noted_rows(note_path)):
            note_path.unlink()
            note_path.with_suffix(".npy").unlink(missing_ok=True)
            tqdm.write(
                f"feature store: shard {note_path.stem} is damaged; computing it again",
                file=sys.stderr,
            )


def _noted_rows(note_path: Path) -> list[str]:
    """Names in a note; none if it cannot be read."""
    try:
        return [str(name) for name in json.loads(note_path.read_text())["rows"]]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _is_whole(note_path: Path, names: Iterable[str]) -> bool:
    """Whether a shard and its note are what was written: its name is made of both."""
    try:
        digest = file_sha256(note_path.with_suffix(".npy"))
    except OSError:
        return False
    return note_path.stem == _stem(names, digest)


def _stem(names: Iterable[str], digest: str) -> str:
    return hashlib.sha256("".join([*names, digest]).encode()).hexdigest()[:32]
