"""The frozen ResNet-50 as a flat Keras graph: uint8 grey ROI in, 2048 features out."""

import contextlib
import hashlib
import sys
from pathlib import Path

import keras

from steatosis_tf.config import ModelConfig
from steatosis_tf.roi.crop import INPUT_SIZE_PX

NUM_FEATURES = 2048
FEATURE_LAYER = "features"
#: Last convolutional map, 7 x 7 x 2048: what Grad-CAM looks at.
LAST_MAP_LAYER = "conv5_block3_out"

# Means of the blue, green and red channel that the ImageNet weights were trained with ("caffe"
# preprocessing, He et al. 2016). Written as one Rescaling, because the library's own
# preprocess_input would give the ONNX file a second required input.
_CHANNEL_MEANS = (103.939, 116.779, 123.68)

# Mean grey level every frame is shifted to: about that of a well-set display.
_LEVEL = 64.0

_WEIGHTS_ADDRESS = "https://storage.googleapis.com/tensorflow/keras-applications/resnet/"
_WEIGHTS_FILE = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"


def build_backbone(config: ModelConfig) -> keras.Model:
    """ResNet-50 without its top, with the preprocessing inside.

    Every layer is set untrainable, its BatchNorm included: `training=False` alone would be
    overridden inside `fit`.

    Args:
        config: `weights` "imagenet", "random" (drawn from `backbone_seed`) or a path.

    Returns:
        flat model: `roi` (batch, 224, 224, 1) uint8, 0 to 255 -> `features` (batch, 2048) float32.

    Raises:
        ValueError: if a weights file is missing or is not for this network.
        RuntimeError: if ImageNet weights are asked for and cannot be fetched. There is no silent
            fall-back to random weights.
    """
    roi = keras.Input((INPUT_SIZE_PX, INPUT_SIZE_PX, 1), dtype="uint8", name="roi")
    grey = keras.layers.Rescaling(1.0, name="to_float")(roi)
    if config.normalize_gain:
        grey = _at_one_level(grey)
    channels = keras.layers.Concatenate(name="three_channels")([grey, grey, grey])
    centred = keras.layers.Rescaling(
        1.0, offset=[-mean for mean in _CHANNEL_MEANS], name="imagenet_mean"
    )(channels)
    network = _resnet50(centred, config)
    pooled = keras.layers.GlobalAveragePooling2D(name=FEATURE_LAYER)(network.output)
    name = "frozen_resnet50_one_level" if config.normalize_gain else "frozen_resnet50"
    backbone = keras.Model(roi, pooled, name=name)
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


def _at_one_level(grey: keras.KerasTensor) -> keras.KerasTensor:
    """Shift the grey levels inside the sector to one mean; outside it stays 0.

    A display is log-compressed, so the sonographer's gain is added to every echo: taking the mean
    out takes the gain out, and leaves contrast and the fall with depth as they are.
    """
    inside = keras.ops.cast(grey > 0, "float32")
    count = keras.ops.maximum(keras.ops.sum(inside, axis=(1, 2, 3), keepdims=True), 1.0)
    level = keras.ops.sum(grey, axis=(1, 2, 3), keepdims=True) / count
    return (grey - level + _LEVEL) * inside


def _resnet50(pixels: keras.KerasTensor, config: ModelConfig) -> keras.Model:
    def network(weights: str | None) -> keras.Model:
        return keras.applications.ResNet50(
            include_top=False, weights=weights, input_tensor=pixels, name="resnet50"
        )

    if config.weights == "random":
        keras.utils.set_random_seed(config.backbone_seed)
        return network(None)
    if config.weights == "imagenet":
        try:
            with contextlib.redirect_stdout(sys.stderr):  # Keras draws its bar on stdout
                return network("imagenet")
        except Exception as error:  # Keras raises a plain Exception for a failed address
            raise RuntimeError(
                f"Expected to fetch the ImageNet weights. Received: {error}. On a machine with a "
                f"network download {_WEIGHTS_ADDRESS + _WEIGHTS_FILE}, then either put it into "
                "~/.keras/models/ or pass its path: --weights PATH. "
                "--weights random runs without it, as an honest lower bound."
            ) from error
    path = Path(config.weights)
    if not path.is_file():
        raise ValueError(
            f'Expected model.weights "imagenet", "random" or the path of a weights file. '
            f"Received: weights={config.weights!r}, which is no file."
        )
    try:
        return network(str(path))
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(
            f"Expected weights of ResNet-50 without top, as {_WEIGHTS_FILE}. "
            f"Received: {path.name}, which does not fit ({error})."
        ) from error
