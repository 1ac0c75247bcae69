"""A patient's frames pooled by attention: what is pooled, and what is learnt."""

import keras
import numpy as np

from experiments.head_search.attention_pooling import (
    ATTENTION_LAYER,
    bags,
    build_pooled_head,
    whole_patients,
)
from steatosis_tf.config import ModelConfig, TrainConfig
from steatosis_tf.model.train import fit

_CONFIG = ModelConfig(weights="random", hidden_units=8, dropout=0.0)


def _patients(num_patients: int = 16, seed: int = 0):
    """Patients of 2 to 5 frames that each show a grade; the first is marked and tells the truth."""
    generator = np.random.default_rng(seed)
    counts = 2 + np.arange(num_patients) % 4
    frames_of = np.split(np.arange(counts.sum()), np.cumsum(counts)[:-1])
    labels = np.arange(num_patients) // 4 % 4
    features = generator.normal(0, 0.1, (counts.sum(), 6)).astype(np.float32)
    shown = generator.integers(0, 4, len(features))
    for rows, label in zip(frames_of, labels, strict=True):
        shown[rows[0]] = label
        features[rows[0], 4] += 4  # the mark
    features[np.arange(len(features)), shown] += 4
    return features, labels, frames_of


def test_pooling_is_the_gated_attention_of_the_paper():
    features, _, _ = _patients()
    head = build_pooled_head(_CONFIG, features, seed=0)
    bag = features[:7]
    hidden = keras.Model(head.input, head.get_layer("dropout").output)(bag[np.newaxis])[0].numpy()
    weights = {weight.path: weight.numpy() for weight in head.weights}
    signal = np.tanh(hidden @ weights["attention_signal/kernel"])
    gate = 1 / (1 + np.exp(-hidden @ weights["attention_gate/kernel"]))  # biases start at 0
    score = (signal * gate) @ weights["attention_score/kernel"]
    share = np.exp(score) / np.exp(score).sum()
    logits = (share * hidden).sum(axis=0) @ weights["probabilities/kernel"]
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(head(bag[np.newaxis])[0], expected, atol=1e-5)


def test_order_and_repetition_of_frames_change_nothing():
    features, _, _ = _patients()
    head = build_pooled_head(_CONFIG, features, seed=0)
    expected = head(features[:5][np.newaxis])
    np.testing.assert_allclose(head(features[[4, 2, 0, 1, 3]][np.newaxis]), expected, atol=1e-6)
    np.testing.assert_allclose(
        head(np.repeat(features[:5], 3, axis=0)[np.newaxis]), expected, atol=1e-6
    )


def test_bags_hold_frames_of_one_patient_and_every_patient_equally_often():
    features, labels, frames_of = _patients()
    views = np.stack([features, features + 100])
    owner = {}
    for number, rows in enumerate(frames_of):
        for view in (0, 1):
            owner |= {views[view, row].tobytes(): (number, view) for row in rows}
    batches = bags(views, labels, frames_of, frames_per_bag=3, batch_size=5, seed=0)
    read, seen = np.zeros(len(frames_of), int), set()
    for batch, answers in batches.as_numpy_iterator():
        assert batch.shape[1:] == (3, 6)
        for bag, answer in zip(batch, answers, strict=True):
            patients = {owner[frame.tobytes()][0] for frame in bag}
            seen |= {owner[frame.tobytes()] for frame in bag}
            assert len(patients) == 1
            (patient,) = patients
            assert labels[patient] == answer
            read[patient] += 1
    assert set(read) == {4}  # 56 frames of 16 patients: 4 bags each are no fewer bags than frames
    assert len({view for _, view in seen}) == 2
    first, again = (next(batches.as_numpy_iterator())[0] for _ in range(2))
    assert not np.array_equal(first, again)


def test_attention_finds_the_frame_that_tells_the_truth():
    features, labels, frames_of = _patients(num_patients=48)
    held_out, held_out_labels, held_out_frames = _patients(seed=1)
    head = build_pooled_head(_CONFIG, features, seed=0)
    batches = bags(features[np.newaxis], labels, frames_of, frames_per_bag=6, batch_size=16, seed=0)
    validation = whole_patients(held_out, held_out_labels, held_out_frames)
    config = TrainConfig(epochs=25, learning_rate=1e-2, plateau_patience=25)
    history = fit(head, batches, validation, None, config)
    assert history["val_accuracy"].iloc[-1] >= 0.75
    shares = keras.Model(head.input, head.get_layer(ATTENTION_LAYER).output)
    looked_at = [
        shares(held_out[rows][np.newaxis])[0, :, 0].numpy().argmax() for rows in held_out_frames
    ]
    assert np.mean(np.array(looked_at) == 0) >= 0.75
