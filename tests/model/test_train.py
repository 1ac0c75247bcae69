"""Fitting: only the head learns, the schedule and the checkpoint do what they say, repeatably."""

import dataclasses
import json
from collections import Counter

import keras
import numpy as np
import pytest

from steatosis_tf.config import AugmentConfig, ModelConfig, TrainConfig
from steatosis_tf.model.engines import choose_engine
from steatosis_tf.model.features import stored_features
from steatosis_tf.model.heads import assemble, build_head
from steatosis_tf.model.train import (
    class_weights,
    feature_batches,
    fit,
    frame_order,
    make_repeatable,
)
from steatosis_tf.records.pipeline import (
    keep_patients,
    pixel_batches,
    read_index,
    read_records,
    training_batches,
)

_MODEL = ModelConfig(weights="random", hidden_units=8)
_CALM = ModelConfig(weights="random", hidden_units=8, dropout=0.0)
_TRAIN = TrainConfig(epochs=3, batch_size=8, learning_rate=1e-2)


def _cohort(num_frames: int = 40, num_views: int = 2, seed: int = 0):
    """Features whose four grades lie apart, in slightly different views."""
    generator = np.random.default_rng(seed)
    labels = np.arange(num_frames) % 4
    centres = np.random.default_rng(99).normal(0, 2, (4, 12))
    noise = generator.normal(0, 0.5, (num_views, num_frames, 12))
    return (centres[labels] + noise).astype(np.float32), labels


def _batches(views: np.ndarray, labels: np.ndarray, seed: int = 0):
    order = frame_order(np.arange(len(labels)), seed=seed)
    return feature_batches(views, labels, order, batch_size=8, seed=seed)


def _fit(train: TrainConfig, model: ModelConfig = _MODEL, *, labels_of=lambda labels: labels):
    views, labels = _cohort()
    held_out, held_out_labels = _cohort(seed=1)
    head = build_head(model, views[0], seed=train.seed)
    batches = _batches(views, labels, train.seed)
    validation = (held_out[0], labels_of(held_out_labels))
    return head, fit(head, batches, validation, None, train), validation


def _assert_same(received: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for weight, wanted in zip(received, expected, strict=True):
        np.testing.assert_array_equal(weight, wanted)


def test_class_weights_by_hand():
    # 10 frames: 5, 2, 2, 1 of the grades; 10 / (4 x 5) = 0.5, 10 / (4 x 2) = 1.25, 10 / 4 = 2.5
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 2, 2, 3])
    assert class_weights(labels, 4) == {0: 0.5, 1: 1.25, 2: 1.25, 3: 2.5}


def test_absent_grade_is_refused():
    with pytest.raises(ValueError, match=r"every grade in the training part.*\[2, 1, 0, 1\]"):
        class_weights(np.array([0, 0, 1, 3]), 4)


def test_class_weights_reach_the_loss():
    views, labels = _cohort(num_frames=8)
    labels = np.array([0, 0, 0, 0, 0, 1, 2, 3])
    head = build_head(_CALM, views[0], seed=0)
    probabilities = head.predict(views[0], verbose=0)
    weights = class_weights(labels, 4)
    losses = -np.log(probabilities[np.arange(8), labels])
    expected = np.mean([weights[label] * loss for label, loss in zip(labels, losses, strict=True)])
    batches = _batches(views[:1], labels)
    config = dataclasses.replace(_TRAIN, epochs=1)
    history = fit(head, batches, (views[0], labels), weights, config)
    # One batch: the loss reported is that before the first step.
    assert history["loss"][0] == pytest.approx(expected, rel=1e-5)


def test_batches_draw_views_anew_and_repeat_by_seed():
    views, labels = _cohort(num_frames=30, num_views=3)

    def epochs(seed: int) -> list[np.ndarray]:
        batches = _batches(views, labels, seed)
        return [np.concatenate([x for x, _ in batches.as_numpy_iterator()]) for _ in range(2)]

    first, second = epochs(5)
    _assert_same(epochs(5), [first, second])
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, epochs(6)[0])
    places = {row.tobytes(): divmod(n, 30) for n, row in enumerate(views.reshape(90, 12))}
    drawn = [places[row.tobytes()] for row in first]
    assert sorted(frame for _, frame in drawn) == list(range(30))  # every frame once
    assert {view for view, _ in drawn} == {0, 1, 2}
    for x, y in _batches(views, labels, 5).as_numpy_iterator():
        assert [labels[places[row.tobytes()][1]] for row in x] == y.tolist()


def _read_per_patient(counts: dict[str, int], frames: np.ndarray, seed: int = 0) -> list[dict]:
    """How often each of two epochs reads each patient, and how often each row."""
    patient_ids = np.repeat(list(counts), list(counts.values()))
    owner = dict(zip(frames.tolist(), patient_ids.tolist(), strict=True))
    order = frame_order(frames, patient_ids, seed=seed)
    epochs = [[int(row) for row in order.as_numpy_iterator()] for _ in range(2)]
    assert order.cardinality() == len(epochs[0]) == len(epochs[1])
    assert epochs[0] != epochs[1]
    return [
        {"patients": Counter(owner[row] for row in rows), "rows": Counter(rows)} for rows in epochs
    ]


def test_every_patient_is_read_equally_often_whatever_number_of_frames():
    # 1 + 2 + 30 frames of 3 patients, rows 5 to 37 of the study: 11 draws each make 33
    for epoch in _read_per_patient({"a": 1, "b": 2, "c": 30}, np.arange(5, 38)):
        assert epoch["patients"] == {"a": 11, "b": 11, "c": 11}
        assert epoch["rows"][5] == 11  # the only frame of a
        assert set(epoch["rows"]) <= set(range(5, 38))
        assert len([row for row in epoch["rows"] if row >= 8]) > 5  # not one frame of c only
    # 4 frames of 3 patients: 2 draws each, no fewer draws than frames
    for epoch in _read_per_patient({"a": 1, "b": 1, "c": 2}, np.array([7, 0, 3, 9]), seed=3):
        assert epoch["patients"] == {"a": 2, "b": 2, "c": 2}


def test_every_frame_is_read_once_without_patients():
    order = frame_order(np.array([8, 2, 5]), seed=0)
    assert sorted(order.as_numpy_iterator()) == [2, 5, 8]


def test_features_are_read_from_a_mapped_file(tmp_path):
    views, labels = _cohort(num_frames=12)
    np.save(tmp_path / "views.npy", views)
    mapped = np.load(tmp_path / "views.npy", mmap_mode="r")
    for expected, received in zip(_batches(views, labels), _batches(mapped, labels), strict=True):
        np.testing.assert_array_equal(received[0], expected[0])
        np.testing.assert_array_equal(received[1], expected[1])


def test_training_learns_and_tells_of_every_epoch():
    told = []
    views, labels = _cohort()
    head = build_head(_MODEL, views[0], seed=0)
    batches = _batches(views, labels)
    config = dataclasses.replace(_TRAIN, epochs=8)
    history = fit(
        head, batches, (views[0], labels), None, config, lambda epoch, logs: told.append(epoch)
    )
    assert told == list(range(8))
    assert list(history["epoch"]) == told
    columns = {"epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"}
    assert set(history.columns) == columns
    assert history["val_accuracy"].iloc[-1] > 0.9


def test_learning_rate_falls_when_validation_accuracy_does_not_rise():
    # Learning rates this small change no prediction, so the accuracy stays where it is: after
    # each epoch without a rise (patience 1) the rate is halved.
    config = dataclasses.replace(_TRAIN, epochs=4, learning_rate=4e-6, plateau_patience=1)
    _, history, _ = _fit(config)
    assert history["val_accuracy"].nunique() == 1
    np.testing.assert_allclose(history["learning_rate"], [4e-6, 4e-6, 2e-6, 1e-6], rtol=1e-5)


def test_learning_rate_falls_when_validation_accuracy_falls():
    """With the direction left to Keras' guess a falling accuracy could pass for progress."""
    config = dataclasses.replace(_TRAIN, epochs=5, learning_rate=3e-2, plateau_patience=1)
    # Only the grade that is never right is asked for: the better the head, the less accurate.
    _, history, _ = _fit(config, labels_of=lambda labels: (labels + 1) % 4)
    assert history["val_accuracy"].iloc[-1] <= history["val_accuracy"].iloc[0]
    assert history["learning_rate"].iloc[-1] < 3e-2


def test_learning_rate_stays_while_validation_accuracy_rises():
    config = dataclasses.replace(_TRAIN, epochs=3, learning_rate=5e-3, plateau_patience=1)
    _, history, _ = _fit(config, _CALM)
    rises = history["val_accuracy"].diff().iloc[1:] > 0
    assert rises.all()  # or this test shows nothing
    np.testing.assert_allclose(history["learning_rate"], 5e-3, rtol=1e-6)


def _loss(head: keras.Model, validation: tuple[np.ndarray, np.ndarray]) -> float:
    probabilities = head.predict(validation[0], verbose=0)
    return float(-np.log(probabilities[np.arange(len(validation[1])), validation[1]]).mean())


def test_best_epoch_is_restored():
    """Validation labels are wrong, so that learning makes the loss worse after a while."""

    def wrong(labels: np.ndarray) -> np.ndarray:
        return np.where(np.arange(len(labels)) % 3 == 0, (labels + 2) % 4, labels)

    config = dataclasses.replace(_TRAIN, epochs=12, learning_rate=6e-3, checkpoint="best")
    best, history, validation = _fit(config, _CALM, labels_of=wrong)
    lowest = history["val_loss"].idxmin()
    assert 0 < lowest < 11  # or this test shows nothing
    assert _loss(best, validation) == pytest.approx(history["val_loss"].min(), rel=1e-4)
    last, history, _ = _fit(dataclasses.replace(config, checkpoint="last"), _CALM, labels_of=wrong)
    assert _loss(last, validation) == pytest.approx(history["val_loss"].iloc[-1], rel=1e-4)
    assert _loss(last, validation) > _loss(best, validation) + 0.01


def test_diverged_training_is_an_error():
    with pytest.raises(RuntimeError, match=r"finite validation loss.*train\.learning_rate=1e\+38"):
        _fit(dataclasses.replace(_TRAIN, learning_rate=1e38))


class _BrokenOff(Exception):
    pass


def _fit_with_backup(train: TrainConfig, backup=None, *, stop: int | None = None):
    """A fit that learns what validation calls wrong: rate and best epoch change on the way.

    One that goes on begins with other weights, so that it cannot train the first epochs again.
    """
    views, labels = _cohort()
    head = build_head(_MODEL, views[0], seed=0)
    if backup is not None and backup.exists():
        for layer in head.layers:
            for variable in layer.variables if layer.trainable else []:
                variable.assign(variable + 1)
    patient_ids = np.arange(len(labels)) // 3 if train.sampling == "patients" else None
    order = frame_order(np.arange(len(labels)), patient_ids, seed=0)
    batches = feature_batches(views, labels, order, batch_size=8, seed=0)
    validation = (views[1], np.where(labels == 2, 3, labels))
    told = []

    def tell(epoch: int, row: dict[str, float]) -> None:
        told.append(epoch)
        if epoch == stop:
            raise _BrokenOff

    history = fit(head, batches, validation, {0: 2.0, 1: 1.0, 2: 1.0, 3: 1.0}, train, tell, backup)
    assert told == list(range(train.epochs))
    return head.get_weights(), history


def test_a_fit_that_is_broken_off_goes_on_to_the_same_digits(tmp_path):
    make_repeatable(0)
    train = dataclasses.replace(
        _TRAIN, epochs=9, learning_rate=3e-2, plateau_patience=2, sampling="patients",
        checkpoint="best",
    )  # fmt: skip
    weights, history = _fit_with_backup(train)
    backup = tmp_path / "fold_0.npz"
    with pytest.raises(_BrokenOff):
        _fit_with_backup(train, backup, stop=4)
    again, history_again = _fit_with_backup(train, backup)
    # Or this test shows nothing: the rate falls after the break, the best epoch is before it.
    assert history["learning_rate"].iloc[-1] < history["learning_rate"].iloc[5]
    assert history["val_loss"].idxmin() < 4
    _assert_same(again, weights)
    assert history_again.equals(history)


def test_a_damaged_backup_is_not_used(tmp_path):
    backup = tmp_path / "fold_0.npz"
    np.savez(backup, np.ones(1000), state=json.dumps({"rows": [{"val_loss": 0.0}]}))
    content = bytearray(backup.read_bytes())
    content[len(content) // 2] ^= 1
    backup.write_bytes(content)
    _, history = _fit_with_backup(dataclasses.replace(_TRAIN, epochs=1), backup)
    assert history["val_loss"][0] > 0.1


def test_two_fits_with_the_same_seed_are_equal_to_the_bit():
    results = []
    for seed in (0, 0, 1):
        make_repeatable(seed)
        head, history, _ = _fit(dataclasses.replace(_TRAIN, seed=seed))
        results.append((head.get_weights(), history))
    (first, first_history), (again, again_history), (other, _) = results
    _assert_same(again, first)
    assert first_history.equals(again_history)
    assert not np.array_equal(first[2], other[2])


def _fit_online(records_dir, backbone: keras.Model, epochs: int):
    index = read_index(records_dir)
    patients = index["patient_id"]
    tested = frozenset(patients.iloc[:3])
    examples = read_records(records_dir)
    features = backbone.predict(pixel_batches(examples), verbose=0)
    model = assemble(backbone, build_head(_MODEL, features, seed=0), _MODEL)
    config = dataclasses.replace(_TRAIN, epochs=epochs, batch_size=4, views=0)
    training = training_batches(
        keep_patients(examples, frozenset(patients) - tested),
        AugmentConfig(),
        batch_size=4,
        seed=0,
    )
    validation = pixel_batches(keep_patients(examples, tested))
    before = [weight.numpy() for weight in model.trainable_weights]
    history = fit(model, training, validation, None, config)
    after = [weight.numpy() for weight in model.trainable_weights]
    assert not np.array_equal(before[0], after[0])  # it did learn
    return model, history


def test_online_fits_with_the_same_seed_are_equal_to_the_bit(phantom_records, tiny_backbone):
    results = []
    for _ in range(2):
        make_repeatable(0)
        model, history = _fit_online(phantom_records, tiny_backbone, epochs=2)
        results.append((model.get_weights(), history))
    _assert_same(results[0][0], results[1][0])
    assert results[0][1].equals(results[1][1])
    assert len(results[0][1]) == 2


def test_backbone_is_the_same_to_the_bit_after_both_kinds_of_fit(
    phantom_records, random_backbone, tmp_path
):
    before = random_backbone.get_weights()
    norms = [x for x in random_backbone.layers if isinstance(x, keras.layers.BatchNormalization)]
    statistics = [(x.moving_mean.numpy(), x.moving_variance.numpy()) for x in norms]
    _fit_online(phantom_records, random_backbone, epochs=1)
    examples = read_records(phantom_records)
    engine = choose_engine("keras", random_backbone, np.empty((0, 224, 224, 1)), tmp_path)
    views = stored_features(examples, tmp_path, random_backbone, engine, AugmentConfig(), 1)
    labels = read_index(phantom_records)["label"].to_numpy()
    head = build_head(_MODEL, views[0], seed=0)
    batches = _batches(views[1:], labels)
    fit(head, batches, (views[0], labels), None, dataclasses.replace(_TRAIN, epochs=1))
    model = assemble(random_backbone, head, _MODEL)
    _assert_same(random_backbone.get_weights(), before)
    for layer, (mean, variance) in zip(norms, statistics, strict=True):
        np.testing.assert_array_equal(layer.moving_mean, mean)
        np.testing.assert_array_equal(layer.moving_variance, variance)
        np.testing.assert_array_equal(model.get_layer(layer.name).moving_mean, mean)
    assert np.isfinite(np.asarray(views)).all()
