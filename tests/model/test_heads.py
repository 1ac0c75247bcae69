"""Ordered and continuous heads: what they say, what they learn, and that they can be kept."""

import dataclasses
import functools

import keras
import numpy as np
import onnxruntime
import pytest
from scipy import special, stats

from steatosis_tf.config import ModelConfig, TrainConfig
from steatosis_tf.deploy.export import export_onnx
from steatosis_tf.model.heads import accuracy, assemble, build_head, set_spread
from steatosis_tf.model.train import feature_batches, fit, frame_order

_KINDS = ("softmax", "ordinal", "regression")
_TRAIN = TrainConfig(epochs=25, learning_rate=2e-2)


def _config(head: str) -> ModelConfig:
    return ModelConfig(weights="random", hidden_units=8, dropout=0.0, head=head)


def _cohort(seed: int, num_frames: int = 80) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features that lie along a line by fat percent; the percent itself, and the grade."""
    generator = np.random.default_rng(seed)
    fat = np.tile([0.0, 3.0, 10.0, 25.0, 40.0, 60.0, 75.0, 95.0], num_frames // 8)
    direction = np.random.default_rng(77).normal(0, 1, 12)
    noise = generator.normal(0, 0.3, (num_frames, 12))
    features = np.sqrt(fat)[:, np.newaxis] * direction + noise
    return features.astype(np.float32), fat, np.digitize(fat, [5, 33.001, 66.001])


@functools.cache  # tests look at the same trained heads, and leave them alone
def _trained(head: str, train: TrainConfig = _TRAIN) -> tuple[keras.Model, list[float]]:
    features, fat, labels = _cohort(0)
    held_out, held_out_fat, held_out_labels = _cohort(1)
    if head == "regression":
        labels, held_out_labels = (np.sqrt(x).astype(np.float32) for x in (fat, held_out_fat))
    model = build_head(_config(head), features, seed=0)
    order = frame_order(np.arange(len(features)), seed=0)
    batches = feature_batches(features[np.newaxis], labels, order, batch_size=16, seed=0)
    history = fit(model, batches, (held_out, held_out_labels), None, train)
    return model, history


@pytest.mark.parametrize("head", _KINDS)
def test_untrained_head_gives_four_probabilities(head):
    features = 40 * _cohort(0)[0]  # far outside what it will see: nothing may overflow
    received = build_head(_config(head), _cohort(0)[0], seed=1).predict(features, verbose=0)
    assert received.shape == (80, 4)
    assert received.dtype == np.float32
    assert (received >= 0).all()
    np.testing.assert_allclose(received.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("head", _KINDS)
def test_head_learns_ordered_grades(head):
    model, history = _trained(head)
    held_out, _, labels = _cohort(1)
    assert (model.predict(held_out, verbose=0).argmax(axis=1) == labels).mean() >= 0.8
    assert history["val_accuracy"].iloc[-1] >= 0.8
    assert history["loss"].iloc[-1] < history["loss"].iloc[0] / 2


def test_ordinal_probabilities_are_those_of_the_cumulative_link():
    model, _ = _trained("ordinal")
    features = np.random.default_rng(3).normal(0, 30, (500, 12)).astype(np.float32)
    score = keras.Model(model.input, model.get_layer("score").output).predict(features, verbose=0)
    layer = model.get_layer("cumulative_link")
    gaps = np.log1p(np.exp(layer.gaps.numpy())) + 1e-3
    cuts = np.cumsum([layer.first_cut.numpy()[0], *gaps])
    assert (np.diff(cuts) > 0).all()
    up_to = special.expit(cuts - score.astype(float))
    expected = np.diff(np.concatenate([np.zeros((500, 1)), up_to, np.ones((500, 1))], axis=1))
    received = model.predict(features, verbose=0)
    np.testing.assert_allclose(received, expected, atol=2e-6)
    # the higher the score, the likelier every "at least": at no cut two frames change places
    at_least = received[np.argsort(score[:, 0])][:, ::-1].cumsum(axis=1)[:, :3]
    assert (np.diff(at_least, axis=0) >= -1e-6).all()
    assert at_least.max() > 0.99
    assert at_least.min() < 0.01


def test_ordinal_head_begins_without_a_preference():
    model = build_head(_config("ordinal"), _cohort(0)[0], seed=0)
    hidden = keras.Model(model.get_layer("cumulative_link").input, model.output)
    np.testing.assert_allclose(hidden.predict(np.zeros((1, 1)), verbose=0), [[0.25] * 4], atol=1e-6)


def test_ordinal_loss_has_a_gradient_where_probabilities_vanish():
    """A Severe frame far on the Normal side must be pulled back, not be lost to rounding."""
    model = build_head(_config("ordinal"), _cohort(0)[0], seed=0)
    tail = keras.Model(model.get_layer("cumulative_link").input, model.output)
    start = model.get_layer("cumulative_link").first_cut.numpy()[0]
    tail.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy())
    loss = tail.train_on_batch(np.full((1, 1), -60.0, np.float32), np.array([3]))
    # -log sigmoid(-60 - 1.0986) = 61.1, out of reach of a float32 probability clipped at 1e-7
    assert loss == pytest.approx(61.1, abs=0.1)
    assert model.get_layer("cumulative_link").first_cut.numpy()[0] < start - 0.05


def test_regression_is_read_as_shares_of_a_normal_distribution():
    model, history = _trained("regression")
    features = _cohort(2)[0]
    sqrt_fat = keras.Model(model.input, model.get_layer("sqrt_fat").output)
    predicted = sqrt_fat.predict(features, verbose=0).astype(float)
    spread = model.get_layer("probabilities").spread.numpy()
    # the error on the validation part, whose last mean square the history holds
    assert spread == pytest.approx(history["val_loss"].iloc[-1] ** 0.5, rel=1e-5)
    below = stats.norm.cdf(np.sqrt([5, 33, 66]), loc=predicted, scale=spread)
    expected = np.diff(np.concatenate([np.zeros((80, 1)), below, np.ones((80, 1))], axis=1))
    np.testing.assert_allclose(model.predict(features, verbose=0), expected, atol=2e-6)


def test_no_error_at_all_still_gives_probabilities():
    features = _cohort(0)[0]
    model = build_head(_config("regression"), features, seed=0)
    set_spread(model, 0.0)
    received = model.predict(features, verbose=0)
    np.testing.assert_allclose(received.sum(axis=1), 1, atol=1e-6)


def test_best_epoch_gives_the_spread():
    model, history = _trained("regression", dataclasses.replace(_TRAIN, checkpoint="best"))
    spread = model.get_layer("probabilities").spread.numpy()
    assert spread == pytest.approx(history["val_loss"].min() ** 0.5, rel=1e-5)


def test_accuracy_of_a_regression_compares_grades():
    # 4.9 Normal, 5 and 33 Mild, 34 and 66 Moderate, 67 Severe
    truth = np.sqrt(np.float32([4.9, 5, 33, 34, 66, 67]))
    said = np.sqrt(np.float32([0, 4.9, 6, 60, 67, 99]))
    assert np.asarray(accuracy(truth, said[:, np.newaxis])).tolist() == [1, 0, 1, 1, 0, 1]


def test_other_numbers_of_grades():
    features = _cohort(0)[0]
    three = build_head(_config("ordinal"), features, seed=0, num_grades=3)
    assert three.predict(features[:2], verbose=0).shape == (2, 3)
    two = build_head(_config("ordinal"), features, seed=0, num_grades=2)
    np.testing.assert_allclose(two.predict(features, verbose=0).sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("head", ["ordinal", "regression"])
def test_kept_head_is_the_same_in_keras_and_onnxruntime(head, tiny_backbone, tmp_path):
    rois = np.random.default_rng(0).integers(0, 255, (24, 224, 224, 1), np.uint8)
    rois[::2] //= 3  # dark and bright ones, so that scores differ
    features = tiny_backbone.predict(rois, verbose=0)
    trained = build_head(_config(head), features, seed=0)
    if head == "regression":
        set_spread(trained, 2.0)
    model = assemble(tiny_backbone, trained, _config(head))
    expected = model.predict(rois, verbose=0)
    np.testing.assert_allclose(expected, trained.predict(features, verbose=0), atol=1e-6)
    assert np.abs(expected - expected[0]).max() > 0.05
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")  # safe mode is the default
    np.testing.assert_allclose(loaded.predict(rois, verbose=0), expected, atol=1e-6)
    assert export_onnx(loaded, tmp_path / "model.onnx", rois) <= 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    (roi,) = session.get_inputs()
    assert roi.name == "roi"
    np.testing.assert_allclose(session.run(None, {"roi": rois})[0], expected, atol=1e-4)
