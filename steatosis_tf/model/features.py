"""Backbone features, computed once per frame and view, kept on disk.

The backbone is frozen, so running it in every epoch is waste. A store is a folder per backbone and
view; in it, shards of features with a JSON beside each that names the rows and the hash of the
file. A row is named by the hash of its ROI pixels and frame id, a folder by the hash of weights,
engine and augmentation: what is stale is never found, what is valid is never computed again.

One process writes to a store at a time; another waits for it and then finds the work done. Whoever
writes first clears away what a killed writer left.
"""

import hashlib
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from filelock import FileLock
from tqdm import tqdm

from steatosis_tf.atomic import replacing
from steatosis_tf.config import AugmentConfig
from steatosis_tf.model.backbone import backbone_sha256
from steatosis_tf.model.engines import BATCH, Engine, padded
from steatosis_tf.records.augment import augment, view_seed

_SHARD_ROWS = 2048


@dataclass(frozen=True)
class _View:
    """One stored view: number 0 is the frame as it is, the others are augmented."""

    number: int
    folder: Path


def stored_features(
    examples: tf.data.Dataset,
    store_dir: str | Path,
    backbone: keras.Model,
    engine: Engine,
    config: AugmentConfig,
    num_views: int,
) -> np.ndarray:
    """Features of every example, plain and in `num_views` augmented views.

    Args:
        examples: as `read_records` gives them, in a fixed order.
        store_dir: folder of the store, shared by all runs.
        backbone: as `build_backbone` gives it; names the store by its weights.
        engine: runs the backbone, see `engines.choose_engine`.
        config: augmentation of the views.
        num_views: augmented views per frame, 0 or more.

    Returns:
        `(1 + num_views, num_frames, 2048)` float32; view 0 is the frame as it is.

    Raises:
        OSError: if a shard cannot be written, for example on a full disk. The shards before it
            stay, and the next call goes on from them.
    """
    rows = _row_names(examples)
    name = f"resnet50-{backbone_sha256(backbone)[:16]}-{engine.name}-{engine.precision}"
    engine_dir = Path(store_dir) / name
    views = []
    for number in range(num_views + 1):
        view = _View(number, engine_dir / _view_name(number, config))
        known = _load(view.folder, frozenset(rows))
        if any(row not in known for row in rows):
            known = _complete(examples, view, config, engine, rows)
        views.append(np.stack([known[row] for row in rows]))
    return np.stack(views)


def _row_names(examples: tf.data.Dataset) -> list[str]:
    names = []
    for example in examples.as_numpy_iterator():
        digest = hashlib.sha256(example["frame_id"])
        digest.update(example["roi"].tobytes())
        names.append(digest.hexdigest()[:32])
    return names


def _view_name(number: int, config: AugmentConfig) -> str:
    if number == 0:
        return "plain"
    text = json.dumps([number, asdict(config)], sort_keys=True)
    return f"view-{number:03d}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _complete(
    examples: tf.data.Dataset, view: _View, config: AugmentConfig, engine: Engine, rows: list[str]
) -> dict[str, np.ndarray]:
    """Compute the rows that are not there, as the only writer of the view."""
    view.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(view.folder / ".lock"):  # the system frees it when its holder is killed
        _clear_away(view.folder)
        known = _load(view.folder, frozenset(rows))  # another writer may have been here
        missing = [row not in known for row in rows]
        new_rows = [row for row, needed in zip(rows, missing, strict=True) if needed]
        if new_rows:
            known |= _compute(_selected(examples, missing), view, config, engine, new_rows)
    return known


def _clear_away(folder: Path) -> None:
    """Remove what is damaged or was never finished; only the holder of the lock may."""
    for path in folder.glob(".unfinished-*"):
        path.unlink()
    for data_path in folder.glob("*.npy"):
        if not data_path.with_suffix(".json").exists():
            data_path.unlink()
    for note_path in folder.glob("*.json"):
        if not _whole_rows(note_path, note_path.with_suffix(".npy")):
            note_path.unlink()
            note_path.with_suffix(".npy").unlink(missing_ok=True)
            tqdm.write(
                f"feature store: shard {note_path.stem} is damaged; computing it again",
                file=sys.stderr,
            )


def _selected(examples: tf.data.Dataset, wanted: list[bool]) -> tf.data.Dataset:
    flags = tf.data.Dataset.from_tensor_slices(wanted)
    return (
        tf.data.Dataset.zip(examples, flags)
        .filter(lambda _, flag: flag)
        .map(lambda example, _: example)
    )


def _compute(
    examples: tf.data.Dataset,
    view: _View,
    config: AugmentConfig,
    engine: Engine,
    rows: list[str],
) -> dict[str, np.ndarray]:
    """Run the backbone over the examples and keep each shard as soon as it is full."""

    def pixels(example: dict[str, tf.Tensor]) -> tf.Tensor:
        if view.number == 0:
            return example["roi"]
        seed = view_seed(example["frame_id"], config.seed, view.number)
        return augment(example["roi"], seed, config)

    batches = (
        examples.map(pixels, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(BATCH)
        .prefetch(4)
    )
    computed: dict[str, np.ndarray] = {}
    shard: list[np.ndarray] = []
    names = iter(rows)
    remaining = len(rows)
    with tqdm(total=len(rows), desc=f"features, view {view.number}", unit="frame") as bar:
        for values in engine.forward(padded(batch) for batch in batches.as_numpy_iterator()):
            count = min(BATCH, remaining)  # the last batch is filled up
            shard.extend(values[:count])
            remaining -= count
            bar.update(count)
            if len(shard) >= _SHARD_ROWS:
                computed |= _keep_shard(view.folder, names, shard)
                shard = []
    if shard:
        computed |= _keep_shard(view.folder, names, shard)
    return computed


def _keep_shard(
    folder: Path, names: Iterator[str], shard: list[np.ndarray]
) -> dict[str, np.ndarray]:
    rows = [next(names) for _ in shard]
    values = np.stack(shard)
    # Hashed in memory: a hash of the file would vouch for whatever a full disk let through.
    memory = io.BytesIO()
    np.save(memory, values)
    data = memory.getvalue()
    note = {"sha256": hashlib.sha256(data).hexdigest(), "rows": rows}
    stem = _stem(rows)
    try:
        with replacing(folder / f"{stem}.npy") as temporary:
            temporary.write_bytes(data)
        # The JSON comes last: a shard without it was never finished and is never read.
        with replacing(folder / f"{stem}.json") as temporary:
            temporary.write_text(json.dumps(note))
    except OSError as error:
        (folder / f"{stem}.npy").unlink(missing_ok=True)
        raise OSError(
            f"Expected to write {len(data) / 1e6:.1f} MB of features to the store. Received: "
            f"{error.strerror or error}. Free space, or choose another runs folder; what is "
            "stored already is kept, and the next run goes on from there."
        ) from error
    return dict(zip(rows, values, strict=True))


def _stem(rows: list[str]) -> str:
    return hashlib.sha256("".join(rows).encode()).hexdigest()[:16]


def _load(folder: Path, wanted: frozenset[str]) -> dict[str, np.ndarray]:
    """The wanted rows out of all whole shards; of other studies' rows nothing is kept."""
    known: dict[str, np.ndarray] = {}
    for note_path in sorted(folder.glob("*.json")):
        data_path = note_path.with_suffix(".npy")
        rows = _whole_rows(note_path, data_path)
        if wanted.intersection(rows):
            pairs = zip(rows, np.load(data_path), strict=True)
            known |= {row: values for row, values in pairs if row in wanted}
    return known


def _whole_rows(note_path: Path, data_path: Path) -> list[str]:
    """Rows of a shard; none if the shard or its note is not what was written."""
    try:
        note = json.loads(note_path.read_text())
        digest = hashlib.sha256(data_path.read_bytes()).hexdigest()
        rows = note["rows"]
        whole = digest == note["sha256"] and note_path.stem == _stem(rows)
        return rows if whole else []
    except (OSError, ValueError, TypeError, KeyError):
        return []
