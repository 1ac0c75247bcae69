"""The head, alone on features and put back on its backbone as one Keras functional model."""

import keras
import numpy as np

from steatosis_tf.config import ModelConfig
from steatosis_tf.grades import GRADES
from steatosis_tf.model.backbone import FEATURE_LAYER
from steatosis_tf.model.heads import end_network

NORMALIZATION_LAYER = "feature_normalization"


def build_head(
    config: ModelConfig, training_features: np.ndarray, seed: int, num_grades: int = len(GRADES)
) -> keras.Model:
    """The trainable head on features.

    The optional normalisation holds mean and variance of the training features. It is a frozen
    BatchNormalization, because Keras' Normalization would add a required input to the ONNX file.

    Args:
        config: hidden units, dropout, normalisation, kind of head.
        training_features: `(num_frames, num_features)` float32 of the training part only.
        seed: of the initial weights and the dropout.
        num_grades: probabilities to give.

    Returns:
        model `(batch, num_features)` float32 -> `(batch, num_grades)` float32, sum 1.
    """
    features = keras.Input((training_features.shape[1],), name=FEATURE_LAYER)
    keras.utils.set_random_seed(seed)
    head = keras.Model(features, _head_layers(features, config, num_grades), name="head")
    if config.normalize_features:
        mean = training_features.mean(axis=0, dtype=np.float64)
        variance = training_features.var(axis=0, dtype=np.float64)
        head.get_layer(NORMALIZATION_LAYER).set_weights(
            [mean.astype(np.float32), variance.astype(np.float32)]
        )
    return head


def assemble(backbone: keras.Model, head: keras.Model, config: ModelConfig) -> keras.Model:
    """One flat model, pixels in and probabilities out, with the weights of both.

    Flat, because a nested backbone breaks Grad-CAM and reload (see docs/architecture.md).

    Args:
        backbone: as `build_backbone` gives it; shared, not copied.
        head: as `build_head` gives it, trained.
        config: the config both were built with.

    Returns:
        model `roi` (batch, 224, 224, 1) uint8 -> `probabilities` (batch, 4) float32.
    """
    num_grades = head.output_shape[-1]
    outputs = _head_layers(backbone.output, config, num_grades)
    model = keras.Model(backbone.input, outputs, name="steatosis_grader")
    for layer in head.layers:
        if layer.weights:
            model.get_layer(layer.name).set_weights(layer.get_weights())
    return model


def copy_weights(model: keras.Model, head: keras.Model) -> None:
    """Give the head the weights of the layers of the same names in the whole model."""
    for layer in head.layers:
        if layer.weights:
            layer.set_weights(model.get_layer(layer.name).get_weights())


def _head_layers(
    features: keras.KerasTensor, config: ModelConfig, num_grades: int
) -> keras.KerasTensor:
    x = features
    if config.normalize_features:
        x = keras.layers.BatchNormalization(
            center=False, scale=False, epsilon=1e-6, trainable=False, name=NORMALIZATION_LAYER
        )(x)
    x = keras.layers.Dense(config.hidden_units, activation="relu", name="hidden")(x)
    x = keras.layers.Dropout(config.dropout, name="dropout")(x)
    return end_network(x, config.head, num_grades)
