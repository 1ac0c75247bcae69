"""(a) 100 epochs the plain way against 100 epochs on stored features, same data, batch and head.

Plain: Keras `fit` of the whole model, backbone frozen, records cached in memory, augmentation
online in a parallel map, batches prefetched, as a competent user would write it. The pipeline is
measured whole: the engine's start with its checks, the store of K views, 100 epochs; then a second
experiment on the same store. Records are made before, for both.
"""

import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from steatosis_tf.cohort.manifest import read_manifest, relocate, write_manifest
from steatosis_tf.cohort.partition import Partition, test_column
from steatosis_tf.cohort.splits import make_partitions
from steatosis_tf.config import Config, ModelConfig, RoiConfig, SplitConfig, TrainConfig
from steatosis_tf.model.backbone import build_backbone
from steatosis_tf.model.engines import choose_engine
from steatosis_tf.model.features import stored_features
from steatosis_tf.model.heads import assemble, build_head
from steatosis_tf.model.train import feature_batches, fit, frame_order
from steatosis_tf.records.builder import write_records
from steatosis_tf.records.pipeline import (
    keep_patients,
    pixel_batches,
    read_index,
    read_records,
    training_batches,
)
from steatosis_tf.roi.columns import add_roi_columns
from steatosis_tf.training import check_rois

EPOCHS = 100
MEASURED_BATCHES = 3  # of the plain way, before and again after the pipeline
Times = np.ndarray  # wall and processor seconds


def line_rows(manifest_path: Path, folder: Path, *, num_views: int) -> list[tuple[str, ...]]:
    """Rows of the table."""
    config = Config(
        split=SplitConfig(kind="holdout"),
        model=ModelConfig(weights="random"),
        train=TrainConfig(epochs=EPOCHS, views=num_views),
        roi=RoiConfig(method="sector"),
    )
    folder.mkdir(parents=True)
    partition = _write_records(manifest_path, folder, config)
    num_frames = len(read_index(folder / "records"))
    before = _plain_epoch(folder, partition, config)
    first = _timed(lambda: _pipeline(folder, partition, config))
    second = _timed(lambda: _pipeline(folder, partition, config))
    plain = (before + _plain_epoch(folder, partition, config)) / 2 * EPOCHS

    def row(name: str, times: Times, aim: str) -> tuple[str, ...]:
        ratio = plain / times
        return ("a", name, f"{times[1]:.0f} CPU-s, {times[0]:.0f} s",
                f"{ratio[1]:.0f} ({ratio[0]:.0f} of wall time)", aim)  # fmt: skip

    return [
        row(f"plain Keras, {num_frames} frames, {EPOCHS} epochs, extrapolated", plain, ""),
        row(f"this pipeline, store of {num_views} views included", first, "20"),
        row("a second experiment on the same store", second, "100"),
    ]


def _write_records(manifest_path: Path, folder: Path, config: Config) -> Partition:
    table = add_roi_columns(read_manifest(manifest_path), manifest_path, config.roi)
    partitions = make_partitions(table, config.split)
    table = relocate(table, manifest_path, folder)
    table["split"] = test_column(table, partitions)
    write_manifest(table, folder / "manifest.csv")
    write_records(folder / "manifest.csv", folder / "records", partitions)
    return partitions[0]


def _timed(work: Callable[[], object]) -> Times:
    start = time.perf_counter(), time.process_time()
    work()
    return np.array([time.perf_counter() - start[0], time.process_time() - start[1]])


def _plain_epoch(folder: Path, partition: Partition, config: Config) -> Times:
    """Seconds of one epoch with its validation: a few batches, carried on to all."""
    backbone = build_backbone(config.model)
    features = np.random.default_rng(0).normal(size=(8, 2048)).astype(np.float32)
    model = assemble(backbone, build_head(config.model, features, 0), config.model)
    examples = read_records(folder / "records").cache()
    for _ in examples:  # from the second epoch on they come from memory
        pass
    batch_size = config.train.batch_size
    train = training_batches(
        keep_patients(examples, partition.train), config.augment, batch_size=batch_size, seed=0
    )
    held_out = pixel_batches(keep_patients(examples, partition.validation), batch_size)
    model.compile("adamw", "sparse_categorical_crossentropy", metrics=["accuracy"])
    one = _of_length(1)  # or Keras warns that data of unknown length ran out
    model.fit(train.take(1).apply(one), validation_data=held_out.take(1).apply(one), verbose=0)
    index = read_index(folder / "records")
    shares = [index["patient_id"].isin(part).sum() / batch_size
              for part in (partition.train, partition.validation)]  # fmt: skip
    few = train.repeat().take(MEASURED_BATCHES).apply(_of_length(MEASURED_BATCHES))
    fitted = _timed(lambda: model.fit(few, verbose=0)) / MEASURED_BATCHES
    judged = _timed(lambda: model.evaluate(held_out.take(1).apply(one), verbose=0))
    keras.backend.clear_session()
    return fitted * shares[0] + judged * max(1, shares[1])


def _of_length(count: int) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
    return tf.data.experimental.assert_cardinality(count)


def _pipeline(folder: Path, partition: Partition, config: Config) -> None:
    backbone = build_backbone(config.model)
    examples, index = read_records(folder / "records"), read_index(folder / "records")
    rois = check_rois(index, examples)
    engine = choose_engine(config.model.engine, backbone, rois, folder / "store")
    views = stored_features(
        examples, folder / "store", backbone, engine, config.augment, config.train.views
    )
    train, held_out = (
        np.flatnonzero(index["patient_id"].isin(part))
        for part in (partition.train, partition.validation)
    )
    labels = index["label"].to_numpy()
    batches = feature_batches(
        views[1:],
        labels,
        frame_order(train, seed=0),
        batch_size=config.train.batch_size,
        seed=0,
    )
    head = build_head(config.model, views[0, train], 0)
    fit(head, batches, (views[0, held_out], labels[held_out]), None, config.train)
    assemble(backbone, head, config.model)
