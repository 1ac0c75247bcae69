"""The frozen backbone as a flat Keras graph: uint8 grey ROI in, features out."""

import contextlib
import hashlib
import sys
from pathlib import Path

import keras

from steatosis_tf.config import BACKBONES, ModelConfig
from steatosis_tf.model.efficientnet_lite0 import lite0_taps, pool_taps
from steatosis_tf.model.rules import NUM_BANDS
from steatosis_tf.roi.views import INPUT_SIZE_PX

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
    roi, grey = _read(config, input_shape)
    name = f"frozen_{config.backbone}"
    if config.backbone == "efficientnet_lite0":
        taps = lite0_taps(grey, config.weights, config.backbone_seed)
        pooled = pool_taps(taps, NUM_BANDS if config.pooling == "depth" else 1, FEATURE_LAYER)
        name = f"{name}_{config.pooling}"
    else:
        last_map = pretrained_map(config.backbone, grey, config.weights, config.backbone_seed)
        pooled = keras.layers.GlobalAveragePooling2D(name=FEATURE_LAYER)(last_map)
    return _frozen(roi, pooled, f"{name}_one_level" if config.normalize_gain else name)


def build_taps(config: ModelConfig, input_shape: tuple[int, int]) -> keras.Model:
    """The two maps that `build_backbone` pools, for export with a rule that looks at places.

    Args:
        config: with `backbone` efficientnet_lite0.
        input_shape: as of `build_backbone`.

    Returns:
        flat model: `roi` (batch, height, width, 1) uint8 -> the map of 112 channels and that of
        192, float32.
    """
    roi, grey = _read(config, input_shape)
    return keras.Model(roi, lite0_taps(grey, config.weights, config.backbone_seed), name="taps")


def _read(
    config: ModelConfig, input_shape: tuple[int, int]
) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    roi, grey = roi_input(input_shape)
    return roi, at_one_level(grey, LEVEL) if config.normalize_gain else grey


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


#: Mean grey level every frame is shifted to: about that of a well-set display.
LEVEL = 64.0


def _built(weights: str | None, pixels: keras.KerasTensor, name: str) -> keras.KerasTensor:
    if name == "resnet18":
        return _resnet18(weights, pixels, name)
    constructor = getattr(keras.applications, BACKBONES[name].builder)
    return constructor(include_top=False, weights=weights, input_tensor=pixels, name=name).output


def _resnet18(weights: str | None, pixels: keras.KerasTensor, name: str) -> keras.KerasTensor:
    try:
        from keras_hub.models import ResNetBackbone
    except ImportError as error:
        raise RuntimeError(
            "Expected the package keras-hub, which has ResNet-18. Received: not installed. "
            "Install it with `pip install 'steatosis_tf[table1]'`."
        ) from error
    if weights == "imagenet":
        network = ResNetBackbone.from_preset("resnet_18_imagenet")
    else:
        network = ResNetBackbone(
            input_conv_filters=[64],
            input_conv_kernel_sizes=[7],
            stackwise_num_filters=[64, 128, 256, 512],
            stackwise_num_blocks=[2, 2, 2, 2],
            stackwise_num_strides=[1, 2, 2, 2],
            block_type="basic_block",
            name=name,
        )
    if weights not in (None, "imagenet"):
        network.load_weights(weights)
    # `call`, not `network(pixels)`: its layers then lie flat in the graph they are put into.
    return network.call(pixels)


def pretrained_map(
    network: str, grey: keras.KerasTensor, weights: str, seed: int
) -> keras.KerasTensor:
    """The last convolutional map of a published network, its layers flat in the graph.

    Args:
        network: out of `BACKBONES`, but for efficientnet_lite0.
        grey: `(batch, height, width, 1)` float32, 0 to 255.
        weights: "imagenet", "random" (drawn from the seed) or the path of a weights file.
        seed: of random weights.

    Returns:
        `(batch, height / 32, width / 32, channels)` float32.

    Raises:
        ValueError: if a weights file is missing or is not for this network.
        RuntimeError: if ImageNet weights are asked for and cannot be fetched. There is no silent
            fall-back to random weights. Or if KerasHub is needed and not installed.
    """
    found = BACKBONES[network]
    channels = keras.layers.Concatenate(name="three_channels")([grey, grey, grey])
    pixels = keras.layers.Rescaling(found.scale, found.offset, name="imagenet_mean")(channels)
    if weights == "random":
        keras.utils.set_random_seed(seed)
        return _built(None, pixels, network)
    if weights == "imagenet":
        return _with_imagenet(pixels, network)
    return _with_file(pixels, network, weights)


# Keras and KerasHub build and download in one call. A fault of the network, the disk or a damaged
# file is none of these; a missing package or a fault of the code is.
_NOT_OF_A_DOWNLOAD = (AttributeError, ImportError, NameError, RuntimeError, TypeError)


def _with_imagenet(pixels: keras.KerasTensor, name: str) -> keras.KerasTensor:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Keras draws its bar on stdout
            return _built("imagenet", pixels, name)
    except _NOT_OF_A_DOWNLOAD:
        raise
    except Exception as error:  # Keras raises a plain Exception for a failed address
        place = "put it into ~/.keras/models/"
        if name == "resnet18":
            place = "load the preset resnet_18_imagenet with KerasHub once there and copy its cache"
        raise RuntimeError(
            f"Expected to fetch the ImageNet weights. Received: {error}. On a machine with a "
            f"network download {BACKBONES[name].address}, then either {place} or pass its path: "
            "--weights PATH. --weights random runs without it, as an honest lower bound."
        ) from error


def _with_file(pixels: keras.KerasTensor, name: str, weights: str) -> keras.KerasTensor:
    path = Path(weights)
    if not path.is_file():
        raise ValueError(
            f'Expected model.weights "imagenet", "random" or the path of a weights file. '
            f"Received: weights={weights!r}, which is no file."
        )
    try:
        return _built(str(path), pixels, name)
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(
            f"Expected weights of {BACKBONES[name].title} without top, as "
            f"{BACKBONES[name].address.split('/')[-1]}. "
            f"Received: {path.name}, which does not fit ({error})."
        ) from error


def roi_input(
    shape: tuple[int, int] = (INPUT_SIZE_PX, INPUT_SIZE_PX),
) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """The input `roi` `(batch, *shape, 1)` uint8, 0 to 255, and the same as float32."""
    roi = keras.Input((*shape, 1), dtype="uint8", name="roi")
    return roi, keras.layers.Rescaling(1.0, name="to_float")(roi)


def at_one_level(grey: keras.KerasTensor, level: float) -> keras.KerasTensor:
    """Shift the grey levels inside the sector to one mean; outside it stays 0.

    A display is log-compressed, so the sonographer's gain is added to every echo: taking the mean
    out takes the gain out, and leaves contrast and the fall with depth as they are.

    Args:
        grey: `(batch, height, width, 1)` float32, 0 to 255, 0 outside the sector.
        level: the mean inside the sector afterwards.
    """
    inside = keras.ops.cast(grey > 0, "float32")
    count = keras.ops.maximum(keras.ops.sum(inside, axis=(1, 2, 3), keepdims=True), 1.0)
    mean = keras.ops.sum(grey, axis=(1, 2, 3), keepdims=True) / count
    return (grey - mean + level) * inside
