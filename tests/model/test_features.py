"""Stored features are the backbone's, are computed once, and are never stale or damaged."""

import hashlib
import json
import pickle
import resource
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from steatosis_tf.config import AugmentConfig, ModelConfig
from steatosis_tf.model import features
from steatosis_tf.model.engines import Engine, choose_engine
from steatosis_tf.model.features import (
    compute_rows,
    find_rows,
    missing_rows,
    open_views,
    plain_rows,
    row_name,
    store_views,
    stored_features,
    writing,
)
from steatosis_tf.model.heads import NORMALIZATION_LAYER, build_head
from steatosis_tf.records.pipeline import augment, read_records, view_seed

_AUGMENT = AugmentConfig()


def _examples(num_frames: int = 7) -> tf.data.Dataset:
    generator = np.random.default_rng(0)
    return tf.data.Dataset.from_tensor_slices(
        {
            "roi": generator.integers(0, 256, (num_frames, 224, 224, 1), np.uint8),
            "frame_id": [f"{number:016x}" for number in range(num_frames)],
        }
    )


def _stored(examples, store_dir, backbone, config, num_views) -> np.ndarray:
    engine = choose_engine("keras", backbone, np.empty((0, 224, 224, 1), np.uint8), store_dir)
    return np.asarray(stored_features(examples, store_dir, backbone, engine, config, num_views))


def _with_first_pixel(examples: tf.data.Dataset, number: int) -> tf.data.Dataset:
    """The same examples with one pixel of one frame changed."""
    rows = list(examples.as_numpy_iterator())
    roi = np.stack([row["roi"] for row in rows])
    roi[number, 0, 0, 0] ^= 255
    return tf.data.Dataset.from_tensor_slices(
        {"roi": roi, "frame_id": [row["frame_id"] for row in rows]}
    )


def _poison(store_dir) -> None:
    """Add 1000 to what is stored, with a right hash: whoever reads 1000 has not computed."""
    for note_path in list(store_dir.glob("*/*/*.json")):
        data_path = note_path.with_suffix(".npy")
        np.save(data_path, np.load(data_path) + 1000)
        digest = hashlib.sha256(data_path.read_bytes()).hexdigest()
        names = json.loads(note_path.read_text())["rows"]
        stem = hashlib.sha256("".join([*names, digest]).encode()).hexdigest()[:32]
        data_path.rename(data_path.with_stem(stem))
        note_path.rename(note_path.with_stem(stem))


def test_features_are_those_of_the_backbone(phantom_records, random_backbone, tmp_path):
    examples = read_records(phantom_records).take(6)
    received = _stored(examples, tmp_path, random_backbone, _AUGMENT, 1)
    rois = np.stack([example["roi"] for example in examples.as_numpy_iterator()])
    expected = random_backbone.predict(rois, batch_size=5, verbose=0)
    assert received.shape == (2, 6, 2048)
    assert received.dtype == np.float32
    np.testing.assert_allclose(received[0], expected, rtol=1e-5, atol=1e-5)
    assert np.abs(received[1] - expected).max() > 0.01 * expected.max()


def test_views_are_those_of_the_augmentation(tiny_backbone, tmp_path):
    examples = _examples(3)
    received = _stored(examples, tmp_path, tiny_backbone, _AUGMENT, 2)
    for frame, example in enumerate(examples.as_numpy_iterator()):
        for view in (1, 2):
            seed = view_seed(tf.constant(example["frame_id"]), _AUGMENT.seed, view)
            roi = augment(tf.constant(example["roi"]), seed, _AUGMENT)
            expected = tiny_backbone.predict(roi[None], verbose=0)[0]
            np.testing.assert_allclose(received[view, frame], expected, rtol=1e-5, atol=1e-5)
    assert not np.allclose(received[1], received[2])


def test_second_call_computes_nothing(tiny_backbone, tmp_path):
    first = _stored(_examples(), tmp_path, tiny_backbone, _AUGMENT, 2)
    _poison(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    second = _stored(_examples(), tmp_path, tiny_backbone, _AUGMENT, 2)
    np.testing.assert_array_equal(second, first + 1000)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_rows_are_found_in_any_order_and_number(tiny_backbone, tmp_path):
    first = _stored(_examples(), tmp_path, tiny_backbone, _AUGMENT, 1)
    _poison(tmp_path)
    rows = list(_examples().as_numpy_iterator())
    chosen = [5, 2, 6]
    some = tf.data.Dataset.from_tensor_slices(
        {name: [rows[n][name] for n in chosen] for name in ("roi", "frame_id")}
    )
    received = _stored(some, tmp_path, tiny_backbone, _AUGMENT, 1)
    np.testing.assert_array_equal(received, first[:, chosen] + 1000)


def test_only_what_changed_is_computed(tiny_backbone, tmp_path):
    first = _stored(_examples(), tmp_path, tiny_backbone, _AUGMENT, 1)
    _poison(tmp_path)
    changed = _with_first_pixel(_examples(), 3)
    received = _stored(changed, tmp_path, tiny_backbone, _AUGMENT, 1)
    others = [0, 1, 2, 4, 5, 6]
    np.testing.assert_array_equal(received[:, others], first[:, others] + 1000)
    roi = list(changed.as_numpy_iterator())[3]["roi"]
    expected = tiny_backbone.predict(roi[None], verbose=0)[0]
    np.testing.assert_allclose(received[0, 3], expected, rtol=1e-5, atol=1e-5)
    assert np.abs(received[1, 3]).max() < 500


@pytest.mark.parametrize(
    "config", [AugmentConfig(seed=1), AugmentConfig(zoom=0.2), AugmentConfig(flip=False)]
)
def test_other_augmentation_makes_new_views_and_keeps_the_plain_one(
    tiny_backbone, tmp_path, config
):
    first = _stored(_examples(), tmp_path, tiny_backbone, _AUGMENT, 1)
    _poison(tmp_path)
    received = _stored(_examples(), tmp_path, tiny_backbone, config, 1)
    np.testing.assert_array_equal(received[0], first[0] + 1000)
    assert np.abs(received[1]).max() < 500
    assert not np.array_equal(received[1], first[1])


def test_more_views_keep_those_there_are(tiny_backbone, tmp_path):
    first = _stored(_examples(), tmp_path, tiny_backbone, _AUGMENT, 1)
    _poison(tmp_path)
    received = _stored(_examples(), tmp_path, tiny_backbone, _AUGMENT, 2)
    np.testing.assert_array_equal(received[:2], first + 1000)
    assert np.abs(received[2]).max() < 500


def test_other_weights_make_new_features(tiny_backbone, tmp_path):
    _stored(_examples(), tmp_path, tiny_backbone, _AUGMENT, 0)
    _poison(tmp_path)
    other = keras.models.clone_model(tiny_backbone)
    weights = tiny_backbone.get_weights()
    other.set_weights([*weights[:-1], weights[-1] * 2])  # only a moving variance differs
    received = _stored(_examples(), tmp_path, other, _AUGMENT, 0)
    rois = np.stack([example["roi"] for example in _examples().as_numpy_iterator()])
    np.testing.assert_allclose(received[0], other.predict(rois, verbose=0), rtol=1e-5, atol=1e-5)


def _flip_a_byte(data_path, note_path):
    data = bytearray(data_path.read_bytes())
    data[-5] ^= 64
    data_path.write_bytes(data)


def _lose_note(data_path, note_path):
    note_path.unlink()


def _swap_two_rows(data_path, note_path):
    """The hash of the data still fits, but frames would get each other's features."""
    note = json.loads(note_path.read_text())
    note["rows"][:2] = note["rows"][1::-1]
    note_path.write_text(json.dumps(note))


@pytest.mark.parametrize(
    "damage",
    [
        _flip_a_byte,
        lambda data_path, note_path: data_path.write_bytes(data_path.read_bytes()[:-100]),
        lambda data_path, note_path: data_path.unlink(),
        lambda data_path, note_path: note_path.write_bytes(note_path.read_bytes()[:-20]),
        lambda data_path, note_path: note_path.write_bytes(b"\xff\xfe\0\0"),
        lambda data_path, note_path: note_path.write_text("[]"),
        _swap_two_rows,
        _lose_note,
    ],
    ids=[
        "byte",
        "cut",
        "gone",
        "note cut",
        "note not text",
        "note empty",
        "rows swapped",
        "note gone",
    ],
)
def test_damaged_shard_is_computed_again(tiny_backbone, tmp_path, capsys, damage):
    first = _stored(_examples(), tmp_path, tiny_backbone, _AUGMENT, 0)
    (data_path,) = tmp_path.rglob("*.npy")
    damage(data_path, data_path.with_suffix(".json"))
    again = _stored(_examples(), tmp_path, tiny_backbone, _AUGMENT, 0)
    np.testing.assert_array_equal(again, first)
    captured = capsys.readouterr()
    assert captured.out == ""
    told = "is damaged; computing it again" in captured.err
    assert told == (damage is not _lose_note)  # a shard without a note was never finished
    _poison(tmp_path)  # and the store is whole again
    third = _stored(_examples(), tmp_path, tiny_backbone, _AUGMENT, 0)
    np.testing.assert_array_equal(third, first + 1000)


@contextmanager
def _largest_file(num_bytes: int) -> Iterator[None]:
    """What a full disk does: the write stops short and fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [7000, 40000], ids=["in the data", "in the note"])
def test_full_disk_is_refused_and_leaves_nothing(tmp_path, room):
    """A shard of 2048 frames is 8 KB, its note 74 KB: one of them does not fit."""
    engine = mean_engine(lambda number: None)
    call = (many_examples(), tmp_path, nothing_backbone(), engine, _AUGMENT, 0)
    with (
        _largest_file(room),
        pytest.raises(OSError, match=r"write 0\.0 MB.*Received: File too large.*Free space"),
    ):
        stored_features(*call)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {".lock"}
    np.testing.assert_array_equal(stored_features(*call)[0][:, 0], np.arange(5000))


# Writes 2048-row shards of one number per frame, and is killed by the system in the middle of
# writing the second: SIGXFSZ at its default ends a process at once, as SIGKILL does, but at a
# byte that can be chosen.
_KILLED_WRITER = """
    import resource, signal, sys
    import keras, numpy as np
    sys.path.insert(0, sys.argv[2])
    from test_features import many_examples, mean_engine, nothing_backbone
    from steatosis_tf.config import AugmentConfig
    from steatosis_tf.model.features import stored_features

    def before_batch(number):
        if number == 200:  # 16 frames each: the first shard of 2048 is written, the second not
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    engine = mean_engine(before_batch)
    stored_features(many_examples(), sys.argv[1], nothing_backbone(), engine, AugmentConfig(), 0)
"""


def many_examples() -> tf.data.Dataset:
    """5000 tiny frames that can be told from each other by their mean."""

    def example(number: tf.Tensor) -> dict[str, tf.Tensor]:
        digits = tf.stack([number // 250, number % 250])
        roi = tf.cast(tf.reshape(digits, (2, 1, 1)), tf.uint8)
        return {"roi": roi, "frame_id": tf.strings.as_string(number)}

    return tf.data.Dataset.range(5000).map(example)


def nothing_backbone() -> keras.Model:
    roi = keras.Input((2, 1, 1), dtype="uint8")
    return keras.Model(roi, keras.layers.Flatten()(roi), name="nothing")


def mean_engine(before_batch) -> Engine:
    """An engine whose feature is the number of the frame."""

    def forward(batches):
        for number, batch in enumerate(batches):
            before_batch(number)
            yield batch[:, :, 0, 0].astype(np.float32) @ np.float32([[250], [1]])

    return Engine("keras", "float32", forward)


def test_killed_writer_leaves_whole_shards_and_nothing_half_used(tmp_path):
    script = textwrap.dedent(_KILLED_WRITER)
    here = Path(__file__).parent
    command = [sys.executable, "-c", script, str(tmp_path / "store"), str(here)]
    killed = subprocess.run(command, cwd=here.parents[1], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGXFSZ, killed.stderr.decode()[-2000:]
    (half,) = (tmp_path / "store").rglob(".unfinished-*")
    assert half.stat().st_size == 5000  # it was in the middle
    assert len(list((tmp_path / "store").rglob("*.json"))) == 1

    seen = []
    engine = mean_engine(seen.append)
    received = stored_features(
        many_examples(), tmp_path / "store", nothing_backbone(), engine, _AUGMENT, 0
    )
    np.testing.assert_array_equal(received[0][:, 0], np.arange(5000))
    assert len(seen) == -(-(5000 - 2048) // 16)  # the first shard was not computed again
    assert not list((tmp_path / "store").rglob(".unfinished-*"))
    assert len(list((tmp_path / "store").rglob("*.npy"))) == 3


def test_only_the_rows_asked_for_are_read_in_numpys_way(tmp_path):
    engine = mean_engine(lambda number: None)
    views = stored_features(many_examples(), tmp_path, nothing_backbone(), engine, _AUGMENT, 0)
    assert len(list(tmp_path.rglob("*.npy"))) == 3
    assert views.shape == (1, 5000, 1)
    chosen = np.array([4999, 0, 2048, 2047, 17])
    np.testing.assert_array_equal(views[0, chosen][:, 0], chosen)
    np.testing.assert_array_equal(views[np.zeros(5, int), chosen][:, 0], chosen)
    np.testing.assert_array_equal(views[0, 3], [3])
    np.testing.assert_array_equal(np.asarray(views)[0, :, 0], np.arange(5000))
    part = views[:, chosen]  # several views stay on disk
    assert part.shape == (1, 5, 1)
    np.testing.assert_array_equal(part[0, [1, 0]][:, 0], [0, 4999])
    np.testing.assert_array_equal(np.asarray(part)[0, :, 0], chosen)


def test_features_are_not_held_in_memory(tmp_path, monkeypatch):
    """5000 rows of 4000 float32 are 80 MB; a shard of 256 of them is 4 MB."""
    monkeypatch.setattr(features, "SHARD_ROWS", 256)

    def forward(batches):
        for batch in batches:
            yield np.repeat(batch[:, :1, 0, 0].astype(np.float32), 4000, axis=1)

    engine = Engine("keras", "float32", forward)
    tracemalloc.start()
    views = stored_features(many_examples(), tmp_path, nothing_backbone(), engine, _AUGMENT, 0)
    head = build_head(ModelConfig(hidden_units=2), plain_rows(views, np.arange(5000)), seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    mean, variance = head.get_layer(NORMALIZATION_LAYER).get_weights()
    expected = np.arange(5000) // 250  # what the engine above gives: the first of the two digits
    np.testing.assert_allclose(mean, np.full(4000, expected.mean()), rtol=1e-6)
    np.testing.assert_allclose(variance, np.full(4000, expected.var()), rtol=1e-6)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.npy")) > 80e6
    assert peak < 64e6  # a slice of 1024 rows is 16 MB, squared as float64 32 MB


def test_float16_halves_the_disk_and_keeps_three_digits(tiny_backbone, tmp_path):
    engine = choose_engine("keras", tiny_backbone, np.empty((0, 224, 224, 1), np.uint8), tmp_path)
    read = {
        dtype: np.asarray(
            stored_features(_examples(), tmp_path, tiny_backbone, engine, _AUGMENT, 1, dtype=dtype)
        )
        for dtype in ("float32", "float16")
    }
    assert read["float16"].dtype == np.float32
    np.testing.assert_allclose(read["float16"], read["float32"], rtol=1e-3, atol=1e-4)
    assert not np.array_equal(read["float16"], read["float32"])
    assert len({path.stat().st_size for path in tmp_path.rglob("*.npy")}) == 2


@pytest.mark.parametrize(
    ("factor", "dtype", "received"),
    [(1000, "float16", r"numbers up to 2\.49e\+05, which float16"), (np.nan, "float32", "NaN, or")],
)
def test_features_that_are_no_numbers_are_not_kept(tmp_path, factor, dtype, received):
    def forward(batches):
        for batch in batches:
            yield batch[:, :, 0, 0].astype(np.float32) * np.float32([1, factor])

    engine = Engine("keras", "float32", forward)
    (view,) = store_views(tmp_path, nothing_backbone(), engine, _AUGMENT, 0, dtype=dtype)
    rows = [f"{number:032x}" for number in range(5000)]
    with writing(view), pytest.raises(ValueError, match=f"finite features.*{received}"):
        compute_rows(view, engine, many_examples(), rows)


def test_damaged_or_missing_rows_are_not_opened(tiny_backbone, tmp_path):
    _stored(_examples(), tmp_path, tiny_backbone, _AUGMENT, 0)
    engine = choose_engine("keras", tiny_backbone, np.empty((0, 224, 224, 1), np.uint8), tmp_path)
    views = store_views(tmp_path, tiny_backbone, engine, _AUGMENT, 0)
    assert missing_rows(views[0], ["0" * 32]) == [True]
    rows = [row_name(e["frame_id"], e["roi"]) for e in _examples().as_numpy_iterator()]
    assert missing_rows(views[0], [*rows, "0" * 32]) == [False] * 7 + [True]
    with pytest.raises(ValueError, match=r"of 8 frames in view 0\. Received: 1 missing"):
        open_views(views, [*rows, "0" * 32])
    (data_path,) = tmp_path.rglob("*.npy")
    _flip_a_byte(data_path, None)
    with pytest.raises(ValueError, match=r"of 7 frames in view 0\. Received: 7 missing"):
        open_views(views, rows)


# What a worker of a cluster does with its part of the rows, in a process of its own.
_WORKER = """
    import pathlib, pickle, sys
    sys.path.insert(0, sys.argv[2])
    from test_features import many_examples, mean_engine
    from steatosis_tf.model.features import compute_rows

    view = pickle.loads(bytes.fromhex(sys.argv[1]))
    rows = [f"{number:032x}" for number in range(3000)]
    pathlib.Path(sys.argv[3]).touch()
    compute_rows(view, mean_engine(lambda number: None), many_examples().take(3000), rows)
"""


def test_workers_fill_one_view_at_the_same_time(tmp_path):
    engine = mean_engine(lambda number: None)
    views = store_views(tmp_path, nothing_backbone(), engine, _AUGMENT, 0)
    here = Path(__file__).parent
    with writing(views[0]):
        # There 0 to 3000, here 2000 to 5000: some are computed twice, as after a lost worker.
        worker = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(_WORKER), pickle.dumps(views[0]).hex(),
             str(here), str(tmp_path / "ready")],
            cwd=here.parents[1],
        )  # fmt: skip
        while not (tmp_path / "ready").exists() and worker.poll() is None:
            time.sleep(0.01)
        rows = [f"{number:032x}" for number in range(2000, 5000)]
        compute_rows(views[0], engine, many_examples().skip(2000), rows)
        assert worker.wait() == 0
    rows = [f"{number:032x}" for number in range(5000)]
    assert not any(missing_rows(views[0], rows))
    np.testing.assert_array_equal(open_views(views, rows)[0][:, 0], np.arange(5000))
    paths, _, _ = find_rows(views[0].folder, rows[:10])
    assert len(paths) == 1  # only the shards that hold a row are read
