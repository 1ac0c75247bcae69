"""Backbone features, computed once per frame and view, kept on disk.

The backbone is frozen, so running it in every epoch is waste. A store is a folder per backbone and
view that holds shards. A row is named by the hash of its ROI pixels and frame id, a folder by the
hash of weights, engine, augmentation and number format: what is stale is never found, what is valid
is never computed again.

`stored_features` does all of it in one process. Where several share the work, one of them calls
`row_name`, `store_views` and, inside `writing`, `missing_rows`; every worker calls `compute_rows`
on its part; `open_views` gives the result.
"""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from filelock import FileLock
from tqdm import tqdm

from steatosis_tf.config import AugmentConfig
from steatosis_tf.model.backbone import backbone_sha256
from steatosis_tf.model.engines import BATCH, Engine, padded
from steatosis_tf.model.shards import ABSENT, StoredViews, add_shard, clear_away, find_rows
from steatosis_tf.records.augment import stored_view

#: Rows of a shard: 16 MB as float32. What a killed process loses at most.
SHARD_ROWS = 2048


@dataclass(frozen=True)
class View:
    """One stored view: number 0 is the frame as it is, the others are augmented. Can be pickled."""

    number: int
    folder: Path
    augment: AugmentConfig
    dtype: str


def stored_features(
    examples: tf.data.Dataset,
    store_dir: str | Path,
    backbone: keras.Model,
    engine: Engine,
    config: AugmentConfig,
    num_views: int,
    *,
    dtype: str = "float32",
) -> StoredViews:
    """Features of every example, plain and in `num_views` augmented views.

    Args:
        examples: as `read_records` gives them, in a fixed order.
        store_dir: folder of the store, shared by all runs.
        backbone: as `build_backbone` gives it; names the store by its weights.
        engine: runs the backbone, see `engines.choose_engine`.
        config: augmentation of the views.
        num_views: augmented views per frame, 0 or more.
        dtype: number format on disk, see `TrainConfig.store_dtype`.

    Returns:
        `(1 + num_views, num_frames, num_features)`, on disk, read as float32; view 0 is the frame
        as it is.

    Raises:
        OSError: if a shard cannot be written, for example on a full disk. The shards before it
            stay, and the next call goes on from them.
        ValueError: if a feature is not finite in the number format of the store.
    """
    rows = [row_name(e["frame_id"], e["roi"]) for e in examples.as_numpy_iterator()]
    views = store_views(store_dir, backbone, engine, config, num_views, dtype=dtype)
    for view in views:
        if not any(missing_rows(view, rows)):
            continue
        with writing(view):
            missing = missing_rows(view, rows)  # another writer may have been here
            names = list(itertools.compress(rows, missing))
            compute_rows(view, engine, selected(examples, missing), names)
    return open_views(views, rows)


def row_name(frame_id: bytes, roi: np.ndarray) -> str:
    """Name of a frame's row in every view: hash of its id and its ROI pixels."""
    digest = hashlib.sha256(frame_id)
    digest.update(roi.tobytes())
    return digest.hexdigest()[:32]


def store_views(
    store_dir: str | Path,
    backbone: keras.Model,
    engine: Engine,
    config: AugmentConfig,
    num_views: int,
    *,
    dtype: str = "float32",
) -> list[View]:
    """The views of a store, 0 to `num_views`; arguments as of `stored_features`."""
    name = f"{backbone.name}-{backbone_sha256(backbone)[:16]}-{engine.name}-{engine.precision}"
    if dtype != "float32":
        name += f"-kept-as-{dtype}"
    folder = Path(store_dir) / name
    return [
        View(number, folder / _view_name(number, config), config, dtype)
        for number in range(num_views + 1)
    ]


def missing_rows(view: View, rows: Sequence[str]) -> list[bool]:
    """For each row, whether no whole shard of the view holds it."""
    return (find_rows(view.folder, rows)[1] == ABSENT).tolist()


@contextlib.contextmanager
def writing(view: View) -> Iterator[None]:
    """Be the one who has a view written, by this process or by its workers; others wait.

    Whoever writes first clears away what is damaged and what a killed writer left.
    """
    view.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(view.folder / ".lock"):  # the system frees it when its holder is killed
        clear_away(view.folder)
        yield


def selected(examples: tf.data.Dataset, wanted: list[bool]) -> tf.data.Dataset:
    """Only the examples whose flag is set; one flag per example."""
    flags = tf.data.Dataset.from_tensor_slices(wanted)
    return (
        tf.data.Dataset.zip(examples, flags)
        .filter(lambda _, flag: flag)
        .map(lambda example, _: example)
    )


def compute_rows(view: View, engine: Engine, examples: tf.data.Dataset, rows: list[str]) -> None:
    """Run the backbone over examples and keep each shard as soon as it is full.

    Args:
        view: whose rows.
        engine: of the kind `store_views` was called with.
        examples: dicts with `roi` and `frame_id`.
        rows: `row_name` of each example, in the same order.

    Raises:
        OSError, ValueError: as `stored_features`.
    """
    batches = stored_view(examples, view.number, view.augment).batch(BATCH).prefetch(4)
    forward = engine.forward(padded(batch) for batch in batches.as_numpy_iterator())
    total = -(-len(rows) // BATCH)
    name = f"features, view {view.number}"
    with tqdm(forward, name, total, unit="frame", unit_scale=BATCH) as computed:
        remaining = iter(computed)
        for start in range(0, len(rows), SHARD_ROWS):
            names = rows[start : start + SHARD_ROWS]
            shard = list(itertools.islice(remaining, -(-len(names) // BATCH)))
            values = np.concatenate(shard)[: len(names)]  # the last batch is filled up
            add_shard(view.folder, names, _as_stored(values, view.dtype))
        next(remaining, None)  # lets engine and bar come to their end


def open_views(views: Sequence[View], rows: Sequence[str]) -> StoredViews:
    """The rows in every view, in the order asked for.

    Raises:
        ValueError: if a row is missing or its shard is damaged.
    """
    paths: list[Path] = []
    shards, places = [], []
    for view in views:
        found, shard, place = find_rows(view.folder, rows)
        if num_missing := int((shard == ABSENT).sum()):
            raise ValueError(
                f"Expected features of {len(rows)} frames in view {view.number}. Received: "
                f"{num_missing} missing or damaged. Compute them again."
            )
        shards.append(shard + len(paths))
        places.append(place)
        paths += found
    return StoredViews(paths, np.stack(shards), np.stack(places))


def _view_name(number: int, config: AugmentConfig) -> str:
    if number == 0:
        return "plain"
    text = json.dumps([number, asdict(config)], sort_keys=True)
    return f"view-{number:03d}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _as_stored(values: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        stored = values.astype(dtype, copy=False)
    if not np.isfinite(stored).all():
        raise ValueError(
            f"Expected finite features. Received: NaN, or numbers up to {np.nanmax(values):.3g}, "
            f"which {dtype} cannot hold. See to the weights, or keep features as float32."
        )
    return stored
