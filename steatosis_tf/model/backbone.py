"""The frozen backbone as a flat Keras graph: uint8 grey ROI in, features out."""

import hashlib

import keras

from steatosis_tf.config import ModelConfig
from steatosis_tf.model.efficientnet_lite0 import lite0_taps, pool_taps
from steatosis_tf.model.grey_input import at_one_level, roi_input
from steatosis_tf.model.pooling import NUM_BANDS
from steatosis_tf.model.pretrained import LEVEL, pretrained_map
from steatosis_tf.roi.crop import INPUT_SIZE_PX

FEATURE_LAYER = "features"


def build_backbone(
    config: ModelConfig, input_shape: tuple[int, int] = (INPUT_SIZE_PX, INPUT_SIZE_PX)
) -> keras.Model:
    """A published network without its top, with the preprocessing inside.

    Every layer is set untrainable, its BatchNorm included: `training=False` alone would be
    overridden inside `fit`.

    Args:
        config: `backbone` names the network; `weights` "imagenet", "random" (drawn from
            `backbone_seed`) or a path.
        input_shape: height and width of the ROI in px, see `roi.views.input_shape`.

    Returns:
        flat model: `roi` (batch, height, width, 1) uint8, 0 to 255 -> `features` float32.
        With `pooling` "global" the mean of the last map over its places: (batch, 2048) for
        resnet50, 1024 for densenet121, 512 for resnet18, vgg16 and vgg19; efficientnet_lite0 has
        two maps, 112 + 192 = 304. With "depth" (efficientnet_lite0 only) the map of 112 channels
        in four bands of depth, nearest first, then the mean of the other: 4 * 112 + 192 = 640.

    Raises:
        ValueError: if a weights file is missing or is not for this network.
        RuntimeError: if ImageNet weights are asked for and cannot be fetched. There is no silent
            fall-back to random weights. Or if KerasHub is needed and not installed.
    """
    roi, grey = roi_input(input_shape)
    if config.normalize_gain:
        grey = at_one_level(grey, LEVEL)
    name = f"frozen_{config.backbone}"
    if config.backbone == "efficientnet_lite0":
        taps = lite0_taps(grey, config.weights, config.backbone_seed)
        pooled = pool_taps(taps, NUM_BANDS if config.pooling == "depth" else 1, FEATURE_LAYER)
        name = f"{name}_{config.pooling}"
    else:
        last_map = pretrained_map(config.backbone, grey, config.weights, config.backbone_seed)
        pooled = keras.layers.GlobalAveragePooling2D(name=FEATURE_LAYER)(last_map)
    return _frozen(roi, pooled, f"{name}_one_level" if config.normalize_gain else name)


def with_whole_map(backbone: keras.Model) -> keras.Model:
    """The same backbone with the last map itself as its features, for heads that look at places.

    Args:
        backbone: as `build_backbone` gives it; its layers are shared.

    Returns:
        flat model: `roi` -> `features` (batch, height * width * channels) float32; the layer
        before has the map's shape. Another name than the backbone, so another feature store.
    """
    last_map = backbone.get_layer(FEATURE_LAYER).input
    flat = keras.layers.Flatten(name=FEATURE_LAYER)(last_map)
    return _frozen(backbone.input, flat, f"{backbone.name}_whole_map")


def _frozen(roi: keras.KerasTensor, features: keras.KerasTensor, name: str) -> keras.Model:
    backbone = keras.Model(roi, features, name=name)
    for layer in backbone.layers:
        layer.trainable = False
    return backbone


def backbone_sha256(backbone: keras.Model) -> str:
    """SHA-256 of what decides the features: preprocessing (the model's name says which), all
    weights and moving statistics in graph order."""
    digest = hashlib.sha256(backbone.name.encode())
    for weight in backbone.get_weights():
        digest.update(str(weight.shape).encode())
        digest.update(weight.tobytes())
    return digest.hexdigest()
