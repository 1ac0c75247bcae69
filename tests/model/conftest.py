"""Parts that the tests of `model/` share."""

import keras
import pytest


@pytest.fixture(scope="session")
def tiny_backbone() -> keras.Model:
    """A frozen network of 48 features that takes a ROI: what the store and the fit see of any."""
    keras.utils.set_random_seed(5)
    roi = keras.Input((224, 224, 1), dtype="uint8", name="roi")
    x = keras.layers.Rescaling(1 / 255)(roi)
    x = keras.layers.AveragePooling2D(8)(x)
    x = keras.layers.Conv2D(12, 3, strides=3, name="map")(x)
    x = keras.layers.BatchNormalization(name="normalization")(x)
    x = keras.layers.MaxPooling2D(4)(x)
    backbone = keras.Model(roi, keras.layers.Flatten(name="features")(x), name="tiny")
    backbone.trainable = False
    for layer in backbone.layers:
        layer.trainable = False
    return backbone
