"""Random changes of a ROI, the same eagerly and inside `Dataset.map`."""

import tensorflow as tf

from steatosis_tf.config import AugmentConfig

#: Counts up whenever another view may come of the same ROI, seed and config.
AUGMENT_VERSION = 1


def augment(roi: tf.Tensor, seed: tf.Tensor, config: AugmentConfig) -> tf.Tensor:
    """One random view of one ROI, fixed by its seed.

    The flip is horizontal only, so that the near field stays on top; in beam space it mirrors the
    beams. Rotation and zoom are one bilinear resampling about the centre, the scale of depth is
    about the first row, where the probe is; what comes from outside the ROI is 0, as outside the
    sector. Then come the grey levels: gain, its slope over the rows, dynamic range. A display is
    log-compressed, so gain adds to every level, and dynamic range scales the distance to white.
    Pixels of 0 stay 0. (Keras' random layers flip vertically and fill by reflection unless told
    otherwise, and cannot be exported to ONNX.)

    Args:
        roi: `(height, width, 1)` uint8, 0 to 255.
        seed: `(2,)` int32 or int64.
        config: which changes and how strong; `Config.augmentation` of a run.

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
    across = tf.stack([a, b, col - a * col - b * row])
    down = tf.stack([d, e, row - d * col - e * row])
    # Draws of their own, so that the others stay what they were without these.
    more = tf.random.stateless_uniform([4], tf.random.fold_in(seed, 1), -1.0, 1.0)
    down /= 1.0 + more[0] * config.depth_scale
    transform = tf.concat([across, down, [0.0, 0.0]], axis=0)
    view = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(roi, tf.float32)[tf.newaxis],
        transforms=transform[tf.newaxis],
        output_shape=tf.shape(roi)[:2],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )[0]
    view = _regained(view, more[1:], config)
    return tf.ensure_shape(tf.cast(tf.round(view), tf.uint8), roi.shape)


def _regained(view: tf.Tensor, draws: tf.Tensor, config: AugmentConfig) -> tf.Tensor:
    """Grey levels as another setting of the scanner would show them; float32."""
    if not (config.gain or config.gain_slope or config.dynamic_range):
        return view
    depth = tf.linspace(-0.5, 0.5, tf.shape(view)[0])[:, tf.newaxis, tf.newaxis]
    levels = view + draws[0] * config.gain + draws[1] * config.gain_slope * depth
    levels = 255.0 + (levels - 255.0) / (1.0 + draws[2] * config.dynamic_range)
    return tf.where(view > 0.0, tf.clip_by_value(levels, 0.0, 255.0), 0.0)


def view_seed(frame_id: tf.Tensor, seed: int, view: int) -> tf.Tensor:
    """Seed of an augmented copy: depends on the frame, not on its place in the data.

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
    """One augmented copy of every example, in their order.

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
