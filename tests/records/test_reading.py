"""Records come back in one order; training batches are repeatable and change between epochs."""

import numpy as np
import pytest

from steatosis_tf.config import AugmentConfig
from steatosis_tf.records.pipeline import (
    keep_patients,
    pixel_batches,
    read_index,
    read_records,
    training_batches,
)


def _epoch(batches):
    pairs = list(batches.as_numpy_iterator())
    return np.concatenate([x for x, _ in pairs]), np.concatenate([y for _, y in pairs])


def test_index_is_in_the_order_of_the_records(phantom_records):
    index = read_index(phantom_records)
    for _ in range(2):
        examples = list(read_records(phantom_records).as_numpy_iterator())
        assert [example["frame_id"].decode() for example in examples] == list(index["frame_id"])
        assert [example["patient_id"].decode() for example in examples] == list(index["patient_id"])
        assert [example["label"] for example in examples] == list(index["label"])
        assert [example["fat_percent"] for example in examples] == list(index["fat_percent"])


def test_training_batches_are_repeatable_and_differ_between_epochs_and_seeds(phantom_records):
    def epochs(seed: int):
        batches = training_batches(
            read_records(phantom_records), AugmentConfig(), batch_size=5, seed=seed
        )
        return _epoch(batches), _epoch(batches)

    first, second = epochs(3)
    again_first, again_second = epochs(3)
    other_first, _ = epochs(4)
    for received, expected in ((again_first, first), (again_second, second)):
        np.testing.assert_array_equal(received[0], expected[0])
        np.testing.assert_array_equal(received[1], expected[1])
    assert not np.array_equal(first[0], second[0])
    assert not np.array_equal(first[0], other_first[0])
    # every frame once per epoch, whatever the order
    expected_labels = sorted(read_index(phantom_records)["label"])
    assert sorted(first[1]) == sorted(second[1]) == expected_labels


def test_order_is_shuffled_anew_in_every_epoch(phantom_records):
    plain = AugmentConfig(flip=False, rotation_deg=0.0, zoom=0.0)
    batches = training_batches(read_records(phantom_records), plain, batch_size=32, seed=0)
    first, second = _epoch(batches)[0], _epoch(batches)[0]
    stored = np.stack([e["roi"] for e in read_records(phantom_records).as_numpy_iterator()])
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, stored)
    as_set = lambda rois: sorted(roi.tobytes() for roi in rois)  # noqa: E731
    assert as_set(first) == as_set(second) == as_set(stored)


def test_batch_shapes(phantom_records):
    config = AugmentConfig()
    batches = training_batches(read_records(phantom_records), config, batch_size=5, seed=0)
    assert [len(y) for _, y in batches] == [5, 5, 2]
    rois, labels = batches.element_spec
    assert rois.shape.as_list() == [None, 224, 224, 1]
    assert (rois.dtype.name, labels.dtype.name) == ("uint8", "int64")


def test_pixel_batches_leave_the_pixels_as_they_are(phantom_records):
    examples = list(read_records(phantom_records).as_numpy_iterator())
    rois, labels = _epoch(pixel_batches(read_records(phantom_records), batch_size=5))
    np.testing.assert_array_equal(rois, [example["roi"] for example in examples])
    np.testing.assert_array_equal(labels, [example["label"] for example in examples])


def test_only_the_patients_named_are_kept(phantom_records):
    index = read_index(phantom_records)
    wanted = frozenset(index["patient_id"].iloc[[1, 4, 5]])
    kept = keep_patients(read_records(phantom_records), wanted)
    received = [example["patient_id"].decode() for example in kept.as_numpy_iterator()]
    assert received == list(index.loc[index["patient_id"].isin(wanted), "patient_id"])


def test_folder_without_records_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"finished records.*Write them with `steatosis records"):
        read_index(tmp_path)
