"""A plain deep CNN: convolution and pooling in turn, two dense layers, nothing else."""

import keras
from keras import layers

from experiments.table1.networks.grey import grey_input
from steatosis_tf.model.heads import end_network

#: Filters of the blocks, each of two 3 x 3 convolutions and a halving: 112 px down to 7.
WIDTHS = (16, 32, 64, 128)


def plain_cnn(num_classes: int, seed: int) -> keras.Model:
    """The untrained network.

    Args:
        num_classes: probabilities to give.
        seed: of the initial weights and the dropout.

    Returns:
        flat model: `roi` `(batch, 224, 224, 1)` uint8 -> `probabilities` `(batch, num_classes)`.
    """
    keras.utils.set_random_seed(seed)
    roi, x = grey_input(112, channels=1)
    x = convolution_blocks(x, WIDTHS)
    x = layers.Flatten(name="flat")(x)
    x = layers.Dense(128, activation="relu", kernel_initializer="he_uniform", name="dense")(x)
    x = layers.Dropout(0.5)(x)
    return keras.Model(roi, end_network(x, "softmax", num_classes), name="plain_cnn")


def convolution_blocks(x: keras.KerasTensor, widths: tuple[int, ...]) -> keras.KerasTensor:
    """Per width two 3 x 3 convolutions, each normalised over the batch, and a 2 x 2 maximum."""
    for width in widths:
        for _ in range(2):
            x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
            x = layers.BatchNormalization(momentum=0.9)(x)
            x = layers.ReLU()(x)
        x = layers.MaxPooling2D()(x)
    return x
