"""The compiled fit does what Keras' `fit` does."""

import numpy as np
import pytest
import tensorflow as tf

from steatosis_tf.config import ModelConfig, TrainConfig
from steatosis_tf.model.classifier import build_head
from steatosis_tf.model.compiled_fit import (
    Fold,
    HeadSettings,
    StoredStudy,
    balanced,
    fit_compiled,
    probabilities,
    random_passes,
)
from steatosis_tf.model.train import class_weights, fit

_MODEL = ModelConfig(weights="random", hidden_units=8, dropout=0.0)


def _study(num_frames: int = 50, num_views: int = 3) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(4)
    labels = np.arange(num_frames) * 7 % 4
    centres = generator.normal(0, 1, (4, 12))
    noise = generator.normal(0, 1.5, (num_views, num_frames, 12))
    return (centres[labels] + noise).astype(np.float32), labels


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(epochs=25, batch_size=8, learning_rate=1e-2, plateau_patience=2),
        TrainConfig(epochs=6, batch_size=64, learning_rate=3e-3, weight_decay=0.3,
                    checkpoint="last"),
    ],
    ids=["plateaus, partial batches", "one batch, decay, last epoch"],
)  # fmt: skip
def test_same_losses_rates_and_weights_as_keras(config):
    views, labels = _study()
    fold = Fold(train=np.arange(0, 37), validation=np.arange(37, 50))
    head = build_head(_MODEL, views[0, fold.train], seed=0)
    start = [variable.numpy() for variable in head.trainable_variables]
    power = class_weights(labels[fold.train], 4)
    settings = HeadSettings(0.0, np.array([power[label] for label in range(4)]), config)
    order = np.random.default_rng(0).permutation(37)
    passes = np.tile(fold.train[order] + 2 * 50, (config.epochs, 1))  # always view 2
    study = StoredStudy(views, labels)
    weights, received = fit_compiled(start, study, fold, settings, passes)
    batches = tf.data.Dataset.from_tensor_slices(
        (views[2, fold.train][order], labels[fold.train][order])
    ).batch(config.batch_size)
    held_out = (views[0, fold.validation], labels[fold.validation])
    expected = fit(head, batches, held_out, power, config)
    assert set(received.columns) == set(expected.columns)
    for name in expected.columns:
        np.testing.assert_allclose(received[name], expected[name], rtol=1e-3, atol=1e-4)
    if config.plateau_patience == 2:
        assert received["learning_rate"].nunique() > 2  # or the schedule was not tried
    for weight, variable in zip(weights, head.trainable_variables, strict=True):
        np.testing.assert_allclose(weight, variable.numpy(), atol=1e-3)
    rows = np.array([3, 41])
    np.testing.assert_allclose(
        probabilities(weights, study, fold, rows), head.predict(views[0, rows], verbose=0),
        atol=1e-3,
    )  # fmt: skip


def test_dropout_drops_its_share_and_repeats_by_seed():
    views, labels = _study()
    fold = Fold(train=np.arange(0, 37), validation=np.arange(37, 50))
    start = [w.numpy() for w in build_head(_MODEL, views[0], seed=0).trainable_variables]
    study = StoredStudy(views, labels)

    def losses(dropout: float, seed: int) -> list[float]:
        config = TrainConfig(epochs=3, batch_size=8, seed=seed)
        return fit_compiled(start, study, fold, HeadSettings(dropout, np.ones(4), config))[1][
            "loss"
        ].tolist()

    assert losses(0.5, 0) == losses(0.5, 0)
    assert losses(0.5, 0) != losses(0.5, 1)
    assert losses(0.5, 0) != losses(0.0, 0)
    # All but dropped: what is left is the output bias, and the loss is that of a guess, ln 4.
    assert losses(0.99999, 0)[0] == pytest.approx(np.log(4), rel=0.01)


def test_passes_hold_every_frame_once_and_draw_augmented_views():
    views, labels = _study()
    study = StoredStudy(views, labels)
    fold = Fold(train=np.array([4, 7, 9, 20]), validation=np.array([1]))
    passes = random_passes(fold, study, TrainConfig(epochs=30))
    assert passes.shape == (30, 4)
    assert (np.sort(passes % 50, axis=1) == fold.train).all()
    assert set(np.unique(passes // 50)) == {1, 2}
    plain = random_passes(fold, StoredStudy(views[:1], labels), TrainConfig(epochs=2))
    assert set(np.unique(plain // 50)) == {0}


def test_class_weights_between_none_and_balanced():
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 2, 2, 3])  # full weights: see test_train.py
    np.testing.assert_allclose(balanced(labels, 0.0), [1, 1, 1, 1])
    np.testing.assert_allclose(balanced(labels, 1.0), [0.5, 1.25, 1.25, 2.5])
    np.testing.assert_allclose(balanced(labels, 0.5), np.sqrt([0.5, 1.25, 1.25, 2.5]))
    with pytest.raises(ValueError, match=r"every grade in the training part.*\[2, 1, 0, 1\]"):
        balanced(np.array([0, 0, 1, 3]), 1.0)


def test_diverged_fit_is_an_error():
    views, labels = _study()
    fold = Fold(train=np.arange(0, 37), validation=np.arange(37, 50))
    start = [w.numpy() for w in build_head(_MODEL, views[0], seed=0).trainable_variables]
    settings = HeadSettings(0.0, np.ones(4), TrainConfig(epochs=3, learning_rate=1e38))
    with pytest.raises(RuntimeError, match=r"finite validation loss.*learning_rate=1e\+38"):
        fit_compiled(start, StoredStudy(views, labels), fold, settings)
