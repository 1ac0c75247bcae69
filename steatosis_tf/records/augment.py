"""Random flip, rotation and zoom of a ROI, the same eagerly and inside `Dataset.map`."""

import tensorflow as tf

from steatosis_tf.config import AugmentConfig


def augment(roi: tf.Tensor, seed: tf.Tensor, config: AugmentConfig) -> tf.Tensor:
    """One random view of one ROI, fixed by its seed.

    The flip is horizontal only, so that the near field stays on top. Rotation and zoom are one
    bilinear resampling about the centre; what comes from outside the ROI is 0, as outside the
    sector. (Keras' random layers flip vertically and fill by reflection unless told otherwise,
    and cannot be exported to ONNX.)

    Args:
        roi: `(height, width, 1)` uint8, 0 to 255.
        seed: `(2,)` int32 or int64.
        config: which changes and how strong.

    Returns:
        `(height, width, 1)` uint8, 0 to 255.
    """
    draws = tf.random.stateless_uniform([3], seed, -1.0, 1.0)
    angle = draws[0] * config.rotation_deg * 3.14159265 / 180.0
    scale = 1.0 + draws[1] * config.zoom
    mirror = tf.where(draws[2] < 0.0, -1.0, 1.0) if config.flip else tf.constant(1.0)
    height, width = tf.cast(tf.shape(roi)[0], tf.float32), tf.cast(tf.shape(roi)[1], tf.float32)
    row, col = (height - 1.0) / 2.0, (width - 1.0) / 2.0
    # Output pixel (x, y) is read at (a x + b y + c, d x + e y + f).
    a, b = mirror * tf.cos(angle) / scale, -mirror * tf.sin(angle) / scale
    d, e = tf.sin(angle) / scale, tf.cos(angle) / scale
    transform = tf.stack([a, b, col - a * col - b * row, d, e, row - d * col - e * row, 0.0, 0.0])
    view = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(roi, tf.float32)[tf.newaxis],
        transforms=transform[tf.newaxis],
        output_shape=tf.shape(roi)[:2],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )[0]
    return tf.ensure_shape(tf.cast(tf.round(view), tf.uint8), roi.shape)


def view_seed(frame_id: tf.Tensor, seed: int, view: int) -> tf.Tensor:
    """Seed of a stored view: depends on the frame, not on its place in the data.

    Args:
        frame_id: scalar string.
        seed: `augment.seed` of the config.
        view: number of the view, 1 or more.

    Returns:
        `(2,)` int64.
    """
    return tf.stack(
        [tf.strings.to_hash_bucket_fast(frame_id, 2**31), tf.constant(seed * 4096 + view, tf.int64)]
    )


def stored_view(examples: tf.data.Dataset, number: int, config: AugmentConfig) -> tf.data.Dataset:
    """One stored view of every example, in their order.

    Args:
        examples: dicts with `roi` (height, width, 1) uint8 and `frame_id`.
        number: 0 for the frame as it is, 1 or more for an augmented view.
        config: which changes and how strong; its seed goes into every view's.

    Returns:
        `(height, width, 1)` uint8 each.
    """

    def pixels(example: dict[str, tf.Tensor]) -> tf.Tensor:
        if number == 0:
            return example["roi"]
        return augment(example["roi"], view_seed(example["frame_id"], config.seed, number), config)

    return examples.map(pixels, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
