"""AlexNet on a grey ROI.

The single-tower form of Krizhevsky 2014 ("One weird trick", arXiv 1404.5997), which torchvision
publishes too (61,100,840 parameters at 1,000 classes). The form of 2012 (60,965,224) split its
convolutions over two cards and normalised responses locally; neither is kept anywhere today.
"""

import keras
from keras import layers

from experiments.table1.networks.grey import grey_input
from steatosis_tf.model.heads import end_network

# (filters, kernel, stride, padding, pooled afterwards)
_CONVOLUTIONS = (
    (64, 11, 4, 2, True),
    (192, 5, 1, 2, True),
    (384, 3, 1, 1, False),
    (256, 3, 1, 1, False),
    (256, 3, 1, 1, True),
)


def alexnet(num_classes: int, seed: int) -> keras.Model:
    """The untrained network.

    Args:
        num_classes: probabilities to give.
        seed: of the initial weights and the dropout.

    Returns:
        flat model: `roi` `(batch, 224, 224, 1)` uint8 -> `probabilities` `(batch, num_classes)`.
    """
    keras.utils.set_random_seed(seed)
    roi, x = grey_input()
    for number, (filters, kernel, stride, padding, pooled) in enumerate(_CONVOLUTIONS, 1):
        x = layers.ZeroPadding2D(padding)(x)
        x = layers.Conv2D(
            filters,
            kernel,
            strides=stride,
            activation="relu",
            kernel_initializer="he_uniform",  # a deviation of 0.01, as published, starts slowly
            name=f"conv{number}",
        )(x)
        if pooled:
            x = layers.MaxPooling2D(3, strides=2, name=f"pool{number}")(x)
    x = layers.Flatten(name="flat")(x)
    for number in (6, 7):
        x = layers.Dropout(0.5)(x)
        x = layers.Dense(
            4096, activation="relu", kernel_initializer="he_uniform", name=f"dense{number}"
        )(x)
    return keras.Model(roi, end_network(x, "softmax", num_classes), name="alexnet")
