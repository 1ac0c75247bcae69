"""Head and backbone give the same numbers apart, together, and after a reload."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from steatosis_tf.config import ModelConfig
from steatosis_tf.model.heads import assemble, build_head, copy_weights
from steatosis_tf.records.pipeline import read_records

_CONFIG = ModelConfig(weights="random", hidden_units=16)


@pytest.fixture(scope="module")
def rois(phantom_records) -> np.ndarray:
    examples = read_records(phantom_records).take(4)
    return np.stack([example["roi"] for example in examples.as_numpy_iterator()])


@pytest.fixture(scope="module")
def features(random_backbone, rois) -> np.ndarray:
    return random_backbone.predict(rois, verbose=0)


@pytest.fixture(scope="module")
def head(features) -> keras.Model:
    return build_head(_CONFIG, features, seed=3)


@pytest.fixture(scope="module")
def grader(random_backbone, head) -> keras.Model:
    return assemble(random_backbone, head, _CONFIG)


def test_head_is_normalise_dense_relu_dense_softmax():
    features = np.random.default_rng(0).normal(5, 3, (50, 6)).astype(np.float32)
    head = build_head(ModelConfig(weights="random", hidden_units=3), features, seed=0)
    mean, variance, first, first_bias, last, last_bias = (
        {w.path: w.numpy() for w in head.weights}[path]
        for path in (
            "feature_normalization/moving_mean",
            "feature_normalization/moving_variance",
            "hidden/kernel",
            "hidden/bias",
            "probabilities/kernel",
            "probabilities/bias",
        )
    )
    np.testing.assert_allclose(mean, features.astype(float).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(variance, features.astype(float).var(axis=0), rtol=1e-6)
    new = np.random.default_rng(1).normal(5, 3, (8, 6)).astype(np.float32)
    hidden = np.maximum((new - mean) / np.sqrt(variance + 1e-6) @ first + first_bias, 0)
    logits = hidden @ last + last_bias
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    # `predict` twice: dropout does nothing outside training
    np.testing.assert_allclose(head.predict(new, verbose=0), expected, atol=1e-6)
    np.testing.assert_allclose(head.predict(new, verbose=0), expected, atol=1e-6)


def test_normalisation_is_not_trained_and_can_be_left_out(features):
    head = build_head(_CONFIG, features, seed=0)
    trained = sorted(weight.path for weight in head.trainable_weights)
    assert trained == ["hidden/bias", "hidden/kernel", "probabilities/bias", "probabilities/kernel"]
    plain = ModelConfig(weights="random", hidden_units=16, normalize_features=False)
    assert len(build_head(plain, features, seed=0).weights) == 4


def test_initial_weights_are_fixed_by_the_seed(features):
    first, again, other = (build_head(_CONFIG, features, seed).get_weights() for seed in (0, 0, 1))
    for weight, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(weight, same)
    assert not np.array_equal(first[2], other[2])


def test_whole_model_equals_head_on_features(grader, head, rois, features):
    received = grader.predict(rois, verbose=0)
    np.testing.assert_allclose(received, head.predict(features, verbose=0), atol=1e-5)
    np.testing.assert_allclose(received.sum(axis=1), 1, atol=1e-6)
    assert received.dtype == np.float32
    # not all frames alike, or the comparison would show little
    assert np.abs(received - received[0]).max() > 0.01


def test_whole_model_is_flat_with_one_uint8_input(grader):
    assert not any(isinstance(layer, keras.Model) for layer in grader.layers)
    (roi,) = grader.inputs
    assert (roi.name, roi.dtype, roi.shape) == ("roi", "uint8", (None, 224, 224, 1))
    assert grader.output_names == ["probabilities"]
    assert len(grader.trainable_weights) == 4


def test_reloaded_model_is_the_same(grader, rois, tmp_path):
    grader.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for weight, expected in zip(loaded.get_weights(), grader.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)
    np.testing.assert_allclose(
        loaded.predict(rois, verbose=0), grader.predict(rois, verbose=0), atol=1e-6
    )
    assert len(loaded.trainable_weights) == 4


def test_gradient_reaches_the_last_map(grader, rois):
    last_map = grader.get_layer("conv5_block3_out").output  # what Grad-CAM looks at
    both = keras.Model(grader.input, [last_map, grader.output])
    with tf.GradientTape() as tape:
        maps, probabilities = both(rois[:2])
        score = tf.reduce_sum(probabilities[:, 3])
    gradient = tape.gradient(score, maps)
    assert gradient.shape == (2, 7, 7, 2048)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


def test_trained_weights_come_back_to_the_head(random_backbone, head, features):
    fresh = build_head(_CONFIG, features, seed=9)
    copy_weights(assemble(random_backbone, head, _CONFIG), fresh, fresh)
    for weight, expected in zip(fresh.get_weights(), head.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_other_number_of_grades(random_backbone, features, rois):
    two = build_head(_CONFIG, features, seed=0, num_grades=2)
    model = assemble(random_backbone, two, _CONFIG)
    assert model.output_shape == (None, 2)
