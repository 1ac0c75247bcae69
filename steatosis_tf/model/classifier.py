"""The head, alone on features and put back on its backbone as one Keras functional model."""

import keras
import numpy as np

from steatosis_tf.config import ModelConfig
from steatosis_tf.grades import GRADES
from steatosis_tf.model.backbone import FEATURE_LAYER
from steatosis_tf.model.heads import end_network
from steatosis_tf.model.shards import StoredViews, in_slices

NORMALIZATION_LAYER = "feature_normalization"


def build_head(
    config: ModelConfig,
    training_features: np.ndarray | StoredViews,
    seed: int,
    num_grades: int = len(GRADES),
) -> keras.Model:
    """The trainable head on features.

    The optional normalisation holds mean and variance of the training features. It is a frozen
    BatchNormalization, because Keras' Normalization would add a required input to the ONNX file.

    Args:
        config: hidden units, dropout, normalisation, kind of head.
        training_features: `(num_frames, num_features)` float32 of the training part only, in
            memory or as `plain_rows` gives them.
        seed: of the initial weights and the dropout.
        num_grades: probabilities to give.

    Returns:
        model `(batch, num_features)` float32 -> `(batch, num_grades)` float32, sum 1.
    """
    features = keras.Input((training_features.shape[1],), name=FEATURE_LAYER)
    keras.utils.set_random_seed(seed)
    outputs = end_network(hidden_layers(features, config), config.head, num_grades)
    head = keras.Model(features, outputs, name="head")
    set_normalization(head, training_features)
    return head


def hidden_layers(features: keras.KerasTensor, config: ModelConfig) -> keras.KerasTensor:
    """Normalisation, dense, ReLU, dropout: `(..., num_features)` -> `(..., hidden_units)`."""
    x = features
    if config.normalize_features:
        x = keras.layers.BatchNormalization(
            center=False, scale=False, epsilon=1e-6, trainable=False, name=NORMALIZATION_LAYER
        )(x)
    x = keras.layers.Dense(config.hidden_units, activation="relu", name="hidden")(x)
    return keras.layers.Dropout(config.dropout, name="dropout")(x)


def set_normalization(head: keras.Model, training_features: np.ndarray | StoredViews) -> None:
    """Set mean and variance of the training features, if the head normalises them.

    Args:
        head: with `hidden_layers`.
        training_features: `(num_frames, num_features)` float32 of the training part only, in
            memory or as `plain_rows` gives them.
    """
    if not any(layer.name == NORMALIZATION_LAYER for layer in head.layers):
        return
    head.get_layer(NORMALIZATION_LAYER).set_weights(_moments(training_features))


def _moments(features: np.ndarray | StoredViews) -> list[np.ndarray]:
    """Mean and variance of each feature, from a slice of the frames at a time."""
    sums, squares = np.zeros((2, features.shape[1]))
    for part in in_slices(features):
        sums += part.sum(axis=0, dtype=np.float64)
        squares += np.square(part, dtype=np.float64).sum(axis=0)
    mean = sums / features.shape[0]
    variance = np.maximum(squares / features.shape[0] - mean**2, 0)  # rounding may go below 0
    return [mean.astype(np.float32), variance.astype(np.float32)]


def assemble(backbone: keras.Model, head: keras.Model, config: ModelConfig) -> keras.Model:
    """One flat model, pixels in and probabilities out, with the weights of both.

    Flat, because a nested backbone breaks Grad-CAM and reload (see docs/architecture.md).

    Args:
        backbone: as `build_backbone` gives it; shared, not copied.
        head: as `build_head` gives it, trained.
        config: the config both were built with.

    Returns:
        model `roi` (batch, height, width, 1) uint8 -> `probabilities` (batch, 4) float32.
    """
    num_grades = head.output_shape[-1]
    outputs = end_network(hidden_layers(backbone.output, config), config.head, num_grades)
    model = keras.Model(backbone.input, outputs, name="steatosis_grader")
    copy_weights(head, model, head)
    return model


def copy_weights(source: keras.Model, target: keras.Model, head: keras.Model) -> None:
    """Copy the weights of the layers that the head has, by their names, from one model that has
    them to another."""
    for layer in head.layers:
        if layer.weights:
            weights = source.get_layer(layer.name).get_weights()
            target.get_layer(layer.name).set_weights(weights)
