"""What is trained on one partition of a study: a head on features, or with it the last stage."""

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from steatosis_tf.cohort.splits import Partition
from steatosis_tf.config import Config, HeadKind
from steatosis_tf.grades import GRADES
from steatosis_tf.model.classifier import assemble, build_head, copy_weights
from steatosis_tf.model.fine_tune import fine_tune
from steatosis_tf.model.shards import StoredViews, plain_rows
from steatosis_tf.model.train import (
    EpochCallback,
    class_weights,
    feature_batches,
    fit,
    frame_order,
)
from steatosis_tf.records.pipeline import (
    keep_patients,
    pixel_batches,
    read_records,
    training_batches,
)


@dataclass(frozen=True)
class StudyData:
    """The records of a study and what the frozen network says of every frame, in one order.

    Attributes:
        records_dir: as given to `write_records`.
        index: as `read_index` gives it.
        views: features, as `stored_features` gives them.
        backbone: as `build_backbone` gives it.
        maps: for fine-tuning, as `maps_at_cut` gives them, else None.
    """

    records_dir: Path
    index: pd.DataFrame
    views: np.ndarray | StoredViews
    backbone: keras.Model
    maps: np.ndarray | None = None


def rows_of(data: StudyData, patient_ids: frozenset[str]) -> np.ndarray:
    """Rows of the index that hold these patients' frames, `(num_frames,)` int."""
    return np.flatnonzero(data.index["patient_id"].isin(patient_ids))


def train_fold(
    data: StudyData, partition: Partition, config: Config, on_epoch: EpochCallback | None
) -> tuple[keras.Model, pd.DataFrame]:
    """Train on the training part of a partition; its validation part steers the learning rate.

    Args:
        data: the study.
        partition: who trains and who validates; who is tested is not looked at.
        config: head and training.
        on_epoch: called after every epoch.

    Returns:
        the head on features, or after fine-tuning the whole model on pixels, and one row per
        epoch.

    Raises:
        ValueError: if a training or validation frame lacks what the head is to learn.
        RuntimeError: if no epoch had a finite validation loss.
    """
    train, validation = (rows_of(data, part) for part in (partition.train, partition.validation))
    targets = _targets(data.index, np.concatenate([train, validation]), config.model.head)
    weights = _class_weights(data.index.iloc[train], config)
    head = build_head(config.model, plain_rows(data.views, train), config.train.seed)
    if not config.train.views:
        model = assemble(data.backbone, head, config.model)
        pixels = _online_batches(data, partition, targets, config)
        history = fit(model, *pixels, weights, config.train, on_epoch)
        copy_weights(model, head, head)
        return head, history
    order = _order(data.index.iloc[train], train, config)
    batching = {"batch_size": config.train.batch_size, "seed": config.train.seed}
    batches = feature_batches(data.views[1:], targets, order, **batching)
    plain = tf.data.Dataset.from_tensor_slices(validation.astype(np.int64))
    held_out = feature_batches(data.views[:1], targets, plain, **batching)
    history = fit(head, batches, held_out, weights, config.train, on_epoch)
    if data.maps is None:
        return head, history
    tuned, more = fine_tune(
        assemble(data.backbone, head, config.model),
        feature_batches(data.maps[1:], targets, order, **batching),
        feature_batches(data.maps[:1], targets, plain, **batching),
        weights,
        config.train,
        on_epoch,
    )
    return tuned, pd.concat([history, more], ignore_index=True)


def _order(training: pd.DataFrame, rows: np.ndarray, config: Config) -> tf.data.Dataset:
    balanced = config.train.sampling == "patients"
    patient_ids = training["patient_id"].to_numpy() if balanced else None
    return frame_order(rows, patient_ids, seed=config.train.seed)


def _online_batches(
    data: StudyData, partition: Partition, targets: np.ndarray, config: Config
) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Training and validation on pixels, augmented anew in every epoch."""
    examples = _with_targets(read_records(data.records_dir), targets)
    num_training = len(rows_of(data, partition.train))
    training = training_batches(
        # Keras would warn in the first epoch that data of unknown length ran out.
        keep_patients(examples, partition.train).apply(
            tf.data.experimental.assert_cardinality(num_training)
        ),
        config.augment,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
    )
    return training, pixel_batches(keep_patients(examples, partition.validation))


def _targets(index: pd.DataFrame, rows: np.ndarray, head: HeadKind) -> np.ndarray:
    """What a head is to say of every frame; `rows` are those it learns or is validated on."""
    if head != "regression":
        return index["label"].to_numpy()
    unknown = index.iloc[rows].loc[lambda part: part["fat_percent"].isna(), "patient_id"].unique()
    if len(unknown):
        raise ValueError(
            "Expected fat_percent for every frame that trains or validates, which "
            f"model.head=regression learns. Received: none for {len(unknown)} patients, first "
            f"{', '.join(unknown[:3])}. Leave them out of the manifest, or use model.head=ordinal."
        )
    return np.sqrt(index["fat_percent"].to_numpy(np.float32))


def _class_weights(training: pd.DataFrame, config: Config) -> dict[int, float] | None:
    if not config.train.class_weights or config.model.head == "regression":
        return None
    if config.train.sampling == "patients":  # a grade then counts as often as it has patients
        training = training.drop_duplicates("patient_id")
    return class_weights(training["label"].to_numpy(), len(GRADES))


def _with_targets(examples: tf.data.Dataset, targets: np.ndarray) -> tf.data.Dataset:
    """The records with each frame's target in place of its label, in the order of the index."""
    pairs = tf.data.Dataset.zip(examples, tf.data.Dataset.from_tensor_slices(targets))
    return pairs.map(lambda example, target: example | {"label": target})
