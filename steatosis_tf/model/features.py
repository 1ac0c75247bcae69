"""Backbone features, computed once per frame and view, kept on disk in shards.

The backbone is frozen, so running it in every epoch is waste. A store is a folder per backbone and
view. A shard is a .npy file of `(num_rows, num_features)` and a JSON beside it that names the rows.
Both are called by the hash of what they hold, so a shard is never changed, only added or removed,
and several processes may add to one folder at the same time. A row is named by the hash of its ROI
pixels and frame id, a folder by the hash of weights, engine, augmentation and number format: what
is stale is never found, what is valid is never computed again.

`stored_features` does all of it in one process. Where several share the work, one of them calls
`row_name`, `store_views` and, inside `writing`, `missing_rows`; every worker calls `compute_rows`
on its part; `open_views` gives the result.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from filelock import FileLock
from tqdm import tqdm

from steatosis_tf.config import AugmentConfig, Config, ModelConfig
from steatosis_tf.files import clear_killed, file_sha256, replacing, write_bytes, write_json
from steatosis_tf.model.backbone import backbone_sha256, build_backbone
from steatosis_tf.model.engines import BATCH, Engine, choose_engine, padded
from steatosis_tf.parallel import run_parts
from steatosis_tf.records.pipeline import (
    AUGMENT_VERSION,
    count_examples,
    read_part,
    read_records,
    stored_view,
)

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

#: Rows of a shard, 16 MB as float32, and of a part: what a killed process or worker loses at most.
SHARD_ROWS = PART_ROWS = 2048
#: Place of a row that no whole shard holds.
ABSENT = -1
_SLICE_ROWS = 1024  # read at once


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
        write_bytes(data, data_path)
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


@dataclass(frozen=True)
class View:
    """One copy of the frames: number 0 as they are, the others augmented. Can be pickled."""

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
    name = f"{backbone.name}-{backbone_sha256(backbone)[:16]}"
    name += f"-{engine.name}-{engine.precision}-{engine.version}"
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
    text = json.dumps([number, AUGMENT_VERSION, asdict(config)], sort_keys=True)
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


@dataclass(frozen=True)
class _Study:
    """What every part has in common."""

    records_dir: str
    store_dir: str
    weights_path: str
    model: ModelConfig
    augment: AugmentConfig
    engine: str
    dtype: str


def spread_features(
    records_dir: str | Path,
    store_dir: str | Path,
    backbone: keras.Model,
    engine: Engine,
    config: Config,
    options: "PipelineOptions",
) -> StoredViews:
    """As `stored_features`, with the work done by the workers of a runner.

    Args:
        records_dir: as given to `write_records`; every worker sees it.
        store_dir: folder of the store; every worker sees it.
        backbone: as `build_backbone` gives it for `config.model`.
        engine: of this process. Workers use one of the same name, held against Keras there too.
        config: backbone, augmentation, number of views and their format on disk.
        options: from `parallel.beam_options`.

    Raises:
        RuntimeError: if the runner gave up, or a worker's engine is another than the one here.
            What is stored stays, and the next call goes on from there.
        ValueError, OSError: as `stored_features`.
    """
    rows = [
        row_name(example["frame_id"], example["roi"])
        for example in read_records(records_dir).as_numpy_iterator()
    ]
    dtype = config.train.store_dtype
    views = store_views(
        store_dir, backbone, engine, config.augmentation, config.train.views, dtype=dtype
    )
    unfinished = [view for view in views if any(missing_rows(view, rows))]
    weights_path = views[0].folder.parent.resolve() / "weights.npz"
    study = _Study(
        str(Path(records_dir).resolve()), str(Path(store_dir).resolve()), str(weights_path),
        config.model, config.augmentation, engine.name, dtype,
    )  # fmt: skip
    with contextlib.ExitStack() as held:
        for view in unfinished:
            held.enter_context(writing(view))
        plans = [path for view in unfinished for path in _plan(view, records_dir, rows)]
        if plans:
            with replacing(weights_path) as temporary:
                np.savez(temporary, *backbone.get_weights())
            work = functools.partial(compute_part, study)
            run_parts(work, plans, options, desc="features")
        for view in unfinished:
            shutil.rmtree(view.folder / "parts", ignore_errors=True)
        weights_path.unlink(missing_ok=True)
    return open_views(views, rows)


def compute_part(study: _Study, plan_path: str) -> None:
    """Compute what a plan asks for, by the engine this process keeps.

    Raises:
        RuntimeError: if the engine is another than the plan was made with.
    """
    plan = json.loads(Path(plan_path).read_text())
    view, engine = _view_and_engine(study, plan["view"])
    if view.folder.name != plan["folder"][1] or view.folder.parent.name != plan["folder"][0]:
        raise RuntimeError(
            f"Expected the engine of {plan['folder'][0]} on every worker. Received: "
            f"{view.folder.parent.name}. Name model.engine=keras where processors differ."
        )
    examples = read_part(study.records_dir, plan["split"], plan["start"], plan["stop"])
    wanted = selected(examples, plan["missing"])
    compute_rows(view, engine, wanted, plan["rows"])


def _plan(view: View, records_dir: str | Path, rows: Sequence[str]) -> Iterator[str]:
    """Write down, shard of features by shard, which examples of which split are missing."""
    missing = missing_rows(view, rows)
    offset = 0
    for split, count in count_examples(records_dir).items():
        for start in range(0, count, PART_ROWS):
            stop = min(count, start + PART_ROWS)
            flags = missing[offset + start : offset + stop]
            names = list(itertools.compress(rows[offset + start : offset + stop], flags))
            if names:
                plan = {
                    "folder": [view.folder.parent.name, view.folder.name], "view": view.number,
                    "split": split, "start": start, "stop": stop, "missing": flags, "rows": names,
                }  # fmt: skip
                path = view.folder.resolve() / "parts" / f"{split}-{start:09d}.json"
                write_json(plan, path, indent=None)
                yield str(path)
        offset += count


def _view_and_engine(study: _Study, number: int) -> tuple[View, Engine]:
    backbone, engine = _backbone_and_engine(study)
    views = store_views(study.store_dir, backbone, engine, study.augment, number, dtype=study.dtype)
    return views[number], engine


@functools.lru_cache(maxsize=1)
def _backbone_and_engine(study: _Study) -> tuple[keras.Model, Engine]:
    """Made once in the life of a worker process.

    The weights are those of the process that started the job: a worker may have no network to fetch
    them, and random ones come out differently where other threads draw random numbers.
    """
    first = next(read_records(study.records_dir).batch(BATCH).as_numpy_iterator())
    shape = first["roi"].shape[1:3]
    backbone = build_backbone(dataclasses.replace(study.model, weights="random"), shape)
    with np.load(study.weights_path) as kept:
        backbone.set_weights([kept[name] for name in kept.files])
    return backbone, choose_engine(study.engine, backbone, first["roi"], study.store_dir)
