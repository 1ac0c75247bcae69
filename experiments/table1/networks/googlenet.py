"""GoogLeNet on a grey ROI.

Szegedy et al. 2015 (arXiv 1409.4842), table 1, in the form torchvision publishes: batch
normalisation after every convolution in place of the two auxiliary classifiers and local response
normalisation, and a 3 x 3 convolution where the paper has 5 x 5 (6,624,904 parameters at 1,000
classes; ImageNet's published weights have that shape).
"""

import keras
from keras import layers

from experiments.table1.networks.grey import grey_input
from steatosis_tf.model.heads import end_network

# Filters of the four branches: 1x1; reduce, 3x3; reduce, "5x5"; after the pooling.
_INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


def googlenet(num_classes: int, seed: int, size_px: int = 224) -> keras.Model:
    """The untrained network.

    Args:
        num_classes: probabilities to give.
        seed: of the initial weights and the dropout.
        size_px: 224 as published, or 112: the mean over all places at the end takes either.

    Returns:
        flat model: `roi` `(batch, 224, 224, 1)` uint8 -> `probabilities` `(batch, num_classes)`.
    """
    keras.utils.set_random_seed(seed)
    roi, x = grey_input(size_px)
    x = _convolution(x, 64, 7, strides=2)
    x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    x = _convolution(x, 64, 1)
    x = _convolution(x, 192, 3)
    x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    for name, filters in _INCEPTIONS.items():
        if name in ("4a", "5a"):
            size = 3 if name == "4a" else 2
            x = layers.MaxPooling2D(size, strides=2, padding="same")(x)
        x = _inception(x, name, filters)
    x = layers.GlobalAveragePooling2D(name="features")(x)
    x = layers.Dropout(0.2)(x)
    return keras.Model(roi, end_network(x, "softmax", num_classes), name="googlenet")


def _inception(
    x: keras.KerasTensor, name: str, filters: tuple[int, int, int, int, int, int]
) -> keras.KerasTensor:
    one, reduce_three, three, reduce_five, five, pooled = filters
    branches = [
        _convolution(x, one, 1),
        _convolution(_convolution(x, reduce_three, 1), three, 3),
        _convolution(_convolution(x, reduce_five, 1), five, 3),
        _convolution(layers.MaxPooling2D(3, strides=1, padding="same")(x), pooled, 1),
    ]
    return layers.Concatenate(name=f"inception_{name}")(branches)


def _convolution(
    x: keras.KerasTensor, filters: int, kernel: int, strides: int = 1
) -> keras.KerasTensor:
    x = layers.Conv2D(filters, kernel, strides=strides, padding="same", use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization(epsilon=1e-3, momentum=0.9)(x))
