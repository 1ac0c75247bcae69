"""Attention over the channels and the places of a map, and a head that grades through it.

CBAM, Woo et al. 2018 (arXiv 1807.06521): channels are weighed by a small network that sees their
mean and maximum, then places by a 7 x 7 convolution over the mean and maximum of their channels.
"""

import keras
from keras import layers

from steatosis_tf.model.heads import end_network

REDUCTION = 16


def attended(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """The map with each channel and each place weighed by 0 to 1.

    Args:
        x: `(batch, height, width, channels)` float32.
        name: prefix of the layers' names; `<name>_places` gives the weights of the places,
            `(batch, height, width, 1)`.

    Returns:
        same shape.
    """
    channels = x.shape[-1]
    reduce = layers.Dense(channels // REDUCTION, activation="relu", name=f"{name}_reduce")
    expand = layers.Dense(channels, name=f"{name}_expand")
    mean = expand(reduce(layers.GlobalAveragePooling2D(keepdims=True)(x)))
    maximum = expand(reduce(layers.GlobalMaxPooling2D(keepdims=True)(x)))
    x = x * keras.ops.sigmoid(mean + maximum)
    over_channels = layers.Concatenate(name=f"{name}_over_channels")(
        [keras.ops.mean(x, axis=-1, keepdims=True), keras.ops.max(x, axis=-1, keepdims=True)]
    )
    places = layers.Conv2D(1, 7, padding="same", use_bias=False, name=f"{name}_conv")(over_channels)
    places = layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(places)
    return x * layers.Activation("sigmoid", name=f"{name}_places")(places)


def attention_head(map_shape: tuple[int, int, int], num_classes: int, seed: int) -> keras.Model:
    """Attention, mean over the places, softmax: what is trained on a frozen network's last map.

    Args:
        map_shape: height, width, channels.
        num_classes: probabilities to give.
        seed: of the initial weights and the dropout.

    Returns:
        model `(batch, height * width * channels)` float32, flat as stored -> `probabilities`.
    """
    keras.utils.set_random_seed(seed)
    flat = keras.Input((map_shape[0] * map_shape[1] * map_shape[2],), name="features")
    x = layers.Reshape(map_shape, name="map")(flat)
    x = layers.BatchNormalization(momentum=0.9, name="map_norm")(x)
    x = attended(x, "attention")
    x = layers.GlobalAveragePooling2D(name="attended_features")(x)
    x = layers.Dropout(0.5)(x)
    return keras.Model(flat, end_network(x, "softmax", num_classes), name="attention_head")
