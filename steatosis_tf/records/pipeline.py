"""Reading the records through tf.data."""

from pathlib import Path

import pandas as pd
import tensorflow as tf
import tensorflow_datasets as tfds

from steatosis_tf.config import AugmentConfig
from steatosis_tf.records.augment import augment
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
