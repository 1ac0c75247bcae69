"""Reading the records through tf.data, as they are or changed at random."""

from pathlib import Path

import pandas as pd
import tensorflow as tf
import tensorflow_datasets as tfds

from steatosis_tf.config import AugmentConfig
from steatosis_tf.records.builder import records_location

# One file after the other: the order of examples is then the order on disk.
_IN_ORDER = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)


def read_records(records_dir: str | Path) -> tf.data.Dataset:
    """All examples of all splits, once, always in the same order.

    Args:
        records_dir: as given to `write_records`.

    Returns:
        dataset of dicts: `roi` (height, width, 1) uint8, `label` int64 0 to 3, `frame_id` and
        `patient_id` string, `fat_percent` float32 (NaN if unknown).

    Raises:
        ValueError: if there are no finished records in the folder.
    """
    return _read(records_dir, None)


def read_part(records_dir: str | Path, split: str, start: int, stop: int) -> tf.data.Dataset:
    """Examples `start` to `stop` of one split, as `read_records`; other files are not opened."""
    builder = _builder(records_dir)
    place = tfds.core.ReadInstruction(split, from_=start, to=stop, unit="abs")
    return builder.as_dataset(split=place, shuffle_files=False, read_config=_IN_ORDER)


def count_examples(records_dir: str | Path) -> dict[str, int]:
    """Examples of every split, in the order of `read_records`."""
    splits = _builder(records_dir).info.splits
    return {name: splits[name].num_examples for name in sorted(splits)}


def read_index(records_dir: str | Path) -> pd.DataFrame:
    """What the records hold, without the pixels, in the order of `read_records`.

    Returns:
        columns `frame_id, patient_id` (str), `label` (int), `fat_percent` (float).
    """
    names = ("frame_id", "patient_id", "label", "fat_percent")
    wanted = tfds.decode.PartialDecoding({name: True for name in names})
    columns: dict[str, list] = {name: [] for name in names}
    for batch in _read(records_dir, wanted).batch(4096).as_numpy_iterator():
        for name in names:
            columns[name].extend(batch[name].tolist())
    table = pd.DataFrame(columns)
    for name in ("frame_id", "patient_id"):
        table[name] = table[name].str.decode("utf-8")
    return table


def training_batches(
    examples: tf.data.Dataset, config: AugmentConfig, *, batch_size: int, seed: int
) -> tf.data.Dataset:
    """Shuffled, augmented batches; every pass over the dataset draws anew, fixed by the seed.

    Args:
        examples: as `read_records` gives them, already reduced to the training patients.
        config: augmentation.
        batch_size: frames per batch.
        seed: of the shuffle and the augmentation.

    Returns:
        dataset of (`(batch, height, width, 1)` uint8, `(batch,)` int64 labels).
    """
    draws = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)

    def view(example: dict[str, tf.Tensor], draw: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return augment(example["roi"], tf.stack([draw, tf.constant(seed, tf.int64)]), config), (
            example["label"]
        )

    return (
        tf.data.Dataset.zip(examples.shuffle(2048, seed=seed), draws)
        .map(view, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(batch_size)
        .prefetch(tf.data.AUTOTUNE)
    )


def pixel_batches(examples: tf.data.Dataset, batch_size: int = 32) -> tf.data.Dataset:
    """Batches of (`(batch, height, width, 1)` uint8, `(batch,)` int64 labels), as they are."""
    pairs = examples.map(lambda example: (example["roi"], example["label"]))
    return pairs.batch(batch_size).prefetch(tf.data.AUTOTUNE)


def keep_patients(examples: tf.data.Dataset, patient_ids: frozenset[str]) -> tf.data.Dataset:
    """Only the examples of the patients named."""
    wanted = tf.constant(sorted(patient_ids))
    return examples.filter(lambda example: tf.reduce_any(example["patient_id"] == wanted))


def keep_frames(examples: tf.data.Dataset, frame_ids: set[str]) -> tf.data.Dataset:
    """Only the examples of the frames named."""
    wanted = tf.constant(sorted(frame_ids))
    return examples.filter(lambda example: tf.reduce_any(example["frame_id"] == wanted))


def _read(records_dir: str | Path, decoding: tfds.decode.PartialDecoding | None) -> tf.data.Dataset:
    parts = _builder(records_dir).as_dataset(
        decoders=decoding, shuffle_files=False, read_config=_IN_ORDER
    )
    ordered = [parts[name] for name in sorted(parts)]
    dataset = ordered[0]
    for part in ordered[1:]:
        dataset = dataset.concatenate(part)
    return dataset


def _builder(records_dir: str | Path) -> tfds.core.DatasetBuilder:
    if not (Path(records_dir) / "records.json").is_file():
        raise ValueError(
            f"Expected finished records. Received: {Path(records_dir).name} without records.json. "
            "Write them with `steatosis records MANIFEST_CSV --output RECORDS_DIR`."
        )
    return tfds.builder_from_directory(str(records_location(records_dir)))


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
