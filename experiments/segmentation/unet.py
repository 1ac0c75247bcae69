"""The small Keras U-Net that outlines the liver: network and loss.

It is the first half of the U-Net + CNN system of the source paper. After Ronneberger et al. 2015
(doi 10.1007/978-3-319-24574-4_28), with a strided stem, because a liver border is smooth: working
from half resolution on costs a quarter of the time and no measurable Dice.
"""

import keras
import tensorflow as tf
from keras import layers

from steatosis_tf.roi.anatomy.liver import INPUT_HEIGHT_PX, INPUT_WIDTH_PX

#: Channels from half resolution (80 x 112) down to 1/32 (5 x 7).
WIDTHS = (16, 32, 48, 64, 96)
#: Rows of the decoder levels that `with_features` gives out.
FEATURE_ROWS = (40, 20, 10)


def build_unet(
    widths: tuple[int, ...] = WIDTHS,
    dropout: float = 0.2,
    size_px: tuple[int, int] = (INPUT_HEIGHT_PX, INPUT_WIDTH_PX),
) -> keras.Model:
    """The untrained network.

    Input `(batch, 160, 224, 2)` float32 as `steatosis_tf.roi.anatomy.liver.network_input` makes it
    (normalised grey, sector 0/1). Output `(batch, 80, 112, 1)` float32: logit of "this is liver".

    Args:
        widths: channels per level, finest first; at least two levels.
        dropout: proportion of the coarsest level's channels dropped in training, 0 to below 1.
        size_px: height and width of the input, if not 160 x 224; the output has half of each.

    Raises:
        ValueError: if there are fewer than two levels or the frame cannot be halved so often.
    """
    factor = 2 ** len(widths)
    height_px, width_px = size_px
    if len(widths) < 2 or height_px % factor or width_px % factor:
        raise ValueError(
            f"Expected 2 to 5 levels, so that {height_px} x {width_px} px halve "
            f"evenly. Received: widths={widths}."
        )
    crop = keras.Input((height_px, width_px, 2), name="crop")
    level = layers.Conv2D(widths[0], 5, strides=2, padding="same", name="stem")(crop)
    skips = []
    for width in widths[:-1]:
        level = two_convolutions(level, width)
        skips.append(level)
        level = layers.MaxPooling2D()(level)
    level = two_convolutions(level, widths[-1])
    level = layers.SpatialDropout2D(dropout)(level)
    for width, skip in zip(widths[-2::-1], skips[::-1], strict=True):
        level = layers.UpSampling2D()(level)
        level = layers.Concatenate(name=f"joined_{skip.shape[1]}")([level, skip])
        level = two_convolutions(level, width)
    logit = layers.Conv2D(1, 1, name="liver_logit")(level)
    return keras.Model(crop, logit, name="liver_unet")


def two_convolutions(level: keras.KerasTensor, width: int) -> keras.KerasTensor:
    for _ in range(2):
        level = layers.Conv2D(width, 3, padding="same", use_bias=False)(level)
        level = layers.BatchNormalization(momentum=0.95)(level)
        level = layers.ReLU()(level)
    return level


def with_features(model: keras.Model) -> keras.Model:
    """The same network, same weights, that also gives what a further head can build on.

    Returns:
        Model with the outputs `liver_logit` `(batch, 80, 112, 1)` and `features_40`,
        `features_20`, `features_10`: the decoder at 40 x 56, 20 x 28 and 10 x 14, float32.
    """
    outputs = {"liver_logit": model.output}
    for layer in model.layers:
        # Decoder layers come after the encoder's of the same size, and so overwrite them.
        if isinstance(layer, layers.ReLU) and layer.output.shape[1] in FEATURE_ROWS:
            outputs[f"features_{layer.output.shape[1]}"] = layer.output
    return keras.Model(model.input, outputs, name="liver_unet_with_features")


def dice_and_cross_entropy(target: tf.Tensor, logit: tf.Tensor) -> tf.Tensor:
    """Loss of a batch: mean cross-entropy plus one minus the soft Dice per image.

    Args:
        target: `(batch, height, width, 1)` float32, 0 to 1; fractions at the border are welcome.
        logit: same shape, float32.

    Returns:
        Scalar float32, 0 for a perfect outline.
    """
    entropy = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(target, logit))
    # Cross-entropy of a fraction with itself is not 0; without its floor the loss could not be.
    floor = tf.reduce_mean(
        -tf.math.xlogy(target, target) - tf.math.xlogy(1.0 - target, 1.0 - target)
    )
    score = tf.sigmoid(logit)
    # p*t alone would punish a right fraction (0.5 * 0.5); this form is 1 when score == target.
    overlap = tf.reduce_sum(score + target - tf.abs(score - target), axis=(1, 2, 3))
    total = tf.reduce_sum(score + target, axis=(1, 2, 3))
    dice = (overlap + 1.0) / (total + 1.0)
    return entropy - floor + tf.reduce_mean(1.0 - dice)
