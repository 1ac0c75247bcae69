"""Stored features are the backbone's, are computed once, and are never stale or damaged."""

import hashlib
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from steatosis_tf.config import AugmentConfig
from steatosis_tf.model.features import stored_features
from steatosis_tf.records.augment import augment, view_seed
from steatosis_tf.records.pipeline import read_records

_AUGMENT = AugmentConfig()


def _examples(num_frames: int = 7) -> tf.data.Dataset:
    generator = np.random.default_rng(0)
    return tf.data.Dataset.from_tensor_slices(
        {
            "roi": generator.integers(0, 256, (num_frames, 224, 224, 1), np.uint8),
            "frame_id": [f"{number:016x}" for number in range(num_frames)],
        }
    )


def _with_first_pixel(examples: tf.data.Dataset, number: int) -> tf.data.Dataset:
    """The same examples with one pixel of one frame changed."""
    rows = list(examples.as_numpy_iterator())
    roi = np.stack([row["roi"] for row in rows])
    roi[number, 0, 0, 0] ^= 255
    return tf.data.Dataset.from_tensor_slices(
        {"roi": roi, "frame_id": [row["frame_id"] for row in rows]}
    )


def _poison(store_dir, pattern: str = "*") -> None:
    """Add 1000 to what is stored, with a right hash: whoever reads 1000 has not computed."""
    for path in store_dir.glob(f"*/{pattern}/*.npy"):
        np.save(path, np.load(path) + 1000)
        note = json.loads(path.with_suffix(".json").read_text())
        note["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        path.with_suffix(".json").write_text(json.dumps(note))


def test_features_are_those_of_the_backbone(phantom_records, random_backbone, tmp_path):
    examples = read_records(phantom_records)
    received = stored_features(examples, tmp_path, random_backbone, _AUGMENT, 1)
    rois = np.stack([example["roi"] for example in examples.as_numpy_iterator()])
    expected = random_backbone.predict(rois, batch_size=5, verbose=0)
    assert received.shape == (2, 12, 2048)
    assert received.dtype == np.float32
    np.testing.assert_allclose(received[0], expected, rtol=1e-5, atol=1e-5)
    assert np.abs(received[1] - expected).max() > 0.01 * expected.max()


def test_views_are_those_of_the_augmentation(tiny_backbone, tmp_path):
    examples = _examples(3)
    received = stored_features(examples, tmp_path, tiny_backbone, _AUGMENT, 2)
    for frame, example in enumerate(examples.as_numpy_iterator()):
        for view in (1, 2):
            seed = view_seed(tf.constant(example["frame_id"]), _AUGMENT.seed, view)
            roi = augment(tf.constant(example["roi"]), seed, _AUGMENT)
            expected = tiny_backbone.predict(roi[None], verbose=0)[0]
            np.testing.assert_allclose(received[view, frame], expected, rtol=1e-5, atol=1e-5)
    assert not np.allclose(received[1], received[2])


def test_second_call_computes_nothing(tiny_backbone, tmp_path):
    first = stored_features(_examples(), tmp_path, tiny_backbone, _AUGMENT, 2)
    _poison(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    second = stored_features(_examples(), tmp_path, tiny_backbone, _AUGMENT, 2)
    np.testing.assert_array_equal(second, first + 1000)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_rows_are_found_in_any_order_and_number(tiny_backbone, tmp_path):
    first = stored_features(_examples(), tmp_path, tiny_backbone, _AUGMENT, 1)
    _poison(tmp_path)
    rows = list(_examples().as_numpy_iterator())
    chosen = [5, 2, 6]
    some = tf.data.Dataset.from_tensor_slices(
        {name: [rows[n][name] for n in chosen] for name in ("roi", "frame_id")}
    )
    received = stored_features(some, tmp_path, tiny_backbone, _AUGMENT, 1)
    np.testing.assert_array_equal(received, first[:, chosen] + 1000)


def test_only_what_changed_is_computed(tiny_backbone, tmp_path):
    first = stored_features(_examples(), tmp_path, tiny_backbone, _AUGMENT, 1)
    _poison(tmp_path)
    changed = _with_first_pixel(_examples(), 3)
    received = stored_features(changed, tmp_path, tiny_backbone, _AUGMENT, 1)
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
    first = stored_features(_examples(), tmp_path, tiny_backbone, _AUGMENT, 1)
    _poison(tmp_path)
    received = stored_features(_examples(), tmp_path, tiny_backbone, config, 1)
    np.testing.assert_array_equal(received[0], first[0] + 1000)
    assert np.abs(received[1]).max() < 500
    assert not np.array_equal(received[1], first[1])


def test_more_views_keep_those_there_are(tiny_backbone, tmp_path):
    first = stored_features(_examples(), tmp_path, tiny_backbone, _AUGMENT, 1)
    _poison(tmp_path)
    received = stored_features(_examples(), tmp_path, tiny_backbone, _AUGMENT, 2)
    np.testing.assert_array_equal(received[:2], first + 1000)
    assert np.abs(received[2]).max() < 500


def test_other_weights_make_new_features(tiny_backbone, tmp_path):
    stored_features(_examples(), tmp_path, tiny_backbone, _AUGMENT, 0)
    _poison(tmp_path)
    other = keras.models.clone_model(tiny_backbone)
    weights = tiny_backbone.get_weights()
    other.set_weights([*weights[:-1], weights[-1] * 2])  # only a moving variance differs
    received = stored_features(_examples(), tmp_path, other, _AUGMENT, 0)
    rois = np.stack([example["roi"] for example in _examples().as_numpy_iterator()])
    np.testing.assert_allclose(received[0], other.predict(rois, verbose=0), rtol=1e-5, atol=1e-5)


def _flip_a_byte(data_path, note_path):
    data = bytearray(data_path.read_bytes())
    data[-5] ^= 64
    data_path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        _flip_a_byte,
        lambda data_path, note_path: data_path.write_bytes(data_path.read_bytes()[:-100]),
        lambda data_path, note_path: data_path.unlink(),
        lambda data_path, note_path: note_path.write_bytes(note_path.read_bytes()[:-20]),
        lambda data_path, note_path: note_path.write_bytes(b"\xff\xfe\0\0"),
        lambda data_path, note_path: note_path.write_text("[]"),
        lambda data_path, note_path: note_path.unlink(),
    ],
    ids=["bit", "cut", "gone", "note cut", "note not text", "note empty", "note gone"],
)
def test_damaged_shard_is_computed_again(tiny_backbone, tmp_path, damage):
    first = stored_features(_examples(), tmp_path, tiny_backbone, _AUGMENT, 0)
    (data_path,) = tmp_path.rglob("*.npy")
    damage(data_path, data_path.with_suffix(".json"))
    again = stored_features(_examples(), tmp_path, tiny_backbone, _AUGMENT, 0)
    np.testing.assert_array_equal(again, first)
    _poison(tmp_path)  # and the store is whole again
    third = stored_features(_examples(), tmp_path, tiny_backbone, _AUGMENT, 0)
    np.testing.assert_array_equal(third, first + 1000)
