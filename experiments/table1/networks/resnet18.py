"""ResNet-18 on a grey ROI, all layers trained."""

import keras
from keras import layers

from experiments.table1.networks.grey import smaller
from steatosis_tf.model.backbone import LEVEL, at_one_level, pretrained_map, roi_input
from steatosis_tf.model.heads import end_network
from steatosis_tf.roi.views import INPUT_SIZE_PX


def resnet18(
    num_classes: int, seed: int, *, size_px: int = INPUT_SIZE_PX, weights: str = "random"
) -> keras.Model:
    """ResNet-18 of He et al. 2016 as KerasHub builds it, with a new last layer.

    Args:
        num_classes: probabilities to give.
        seed: of the initial weights.
        size_px: 224 as published, or 112: the mean over all places at the end takes either.
        weights: to start from: "imagenet", "random" or the path of a weights file.

    Returns:
        flat model: `roi` `(batch, 224, 224, 1)` uint8 -> `probabilities` `(batch, num_classes)`.

    Raises:
        ValueError: if 224 is no multiple of the size, or a weights file is missing or is not for
            this network.
        RuntimeError: if ImageNet weights cannot be fetched or KerasHub is not installed.
    """
    roi, grey = roi_input()
    x = pretrained_map("resnet18", smaller(at_one_level(grey, LEVEL), size_px), weights, seed)
    x = layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(roi, end_network(x, "softmax", num_classes), name="resnet18")
