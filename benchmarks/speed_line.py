"""100 epochs the plain way against 100 epochs on stored features, same data, batch and head.

    python benchmarks/speed_line.py
    python benchmarks/speed_line.py --manifest MANIFEST_CSV --plain-epochs 3

Without a manifest simulated frames are used. Plain: Keras `fit` of the whole model, backbone
frozen, records cached in memory, augmentation online in a parallel map, batches prefetched, as a
competent user would write it. A few of its epochs are measured, half of them before the pipeline
and half after it, and carried on in a straight line to 100: epochs of a frozen network cost the
same. The pipeline is measured whole: the engine's start with its check, the store of K views, 100
epochs; then a second experiment on the same store. Records are made before, for both.
Read the ratios, and the ratios of processor time where the machine is shared.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from steatosis_tf.cohort.manifest import build_manifest, read_manifest, relocate, write_manifest
from steatosis_tf.cohort.splits import Partition, make_partitions, test_column
from steatosis_tf.config import Config, ModelConfig, RoiConfig, TrainConfig
from steatosis_tf.folds import check_rois
from steatosis_tf.model.backbone import build_backbone
from steatosis_tf.model.classifier import assemble, build_head
from steatosis_tf.model.engines import choose_engine
from steatosis_tf.model.features import stored_features
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
from steatosis_tf.sources.phantom import write_phantoms

EPOCHS = 100
Times = np.ndarray  # wall and processor seconds


def main(argv: list[str] | None = None) -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--manifest", type=Path, help="simulated frames if not given")
    parser.add_argument("--plain-epochs", type=int, default=2, help="measured, 2 or more")
    parser.add_argument("--views", type=int, default=4)
    arguments = parser.parse_args(argv)
    config = Config(
        model=ModelConfig(weights="random"),
        train=TrainConfig(epochs=EPOCHS, views=arguments.views),
        roi=RoiConfig(method="sector"),
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest_path = arguments.manifest or _phantoms(folder)
        partition = _write_records(manifest_path, folder, config)
        print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        half = arguments.plain_epochs // 2
        before = _plain(folder, partition, config, half)
        first = _timed(lambda: _pipeline(folder, partition, config))
        second = _timed(lambda: _pipeline(folder, partition, config))
        after = _plain(folder, partition, config, arguments.plain_epochs - half)
    _print_table((before + after) / arguments.plain_epochs * EPOCHS, first, second)
    print(f"plain: extrapolated in a straight line from {arguments.plain_epochs} measured epochs")


def _phantoms(folder: Path) -> Path:
    labels_path = write_phantoms(
        folder / "phantoms", num_patients=44, frames_per_patient=10, seed=0
    )
    build_manifest(labels_path, folder / "phantom_manifest.csv")
    return folder / "phantom_manifest.csv"


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


def _plain(folder: Path, partition: Partition, config: Config, epochs: int) -> Times:
    """Seconds of `epochs` epochs, after one short fit that compiles."""
    backbone = build_backbone(config.model)
    features = np.random.default_rng(0).normal(size=(8, 2048)).astype(np.float32)
    model = assemble(backbone, build_head(config.model, features, 0), config.model)
    examples = read_records(folder / "records").cache()
    train = training_batches(
        keep_patients(examples, partition.train),
        config.augment,
        batch_size=config.train.batch_size,
        seed=0,
    )
    held_out = pixel_batches(keep_patients(examples, partition.validation)).cache()
    model.compile("adamw", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(train.take(1), validation_data=held_out.take(1), verbose=0)
    return _timed(lambda: model.fit(train, validation_data=held_out, epochs=epochs, verbose=0))


def _pipeline(folder: Path, partition: Partition, config: Config) -> None:
    backbone = build_backbone(config.model)
    examples = read_records(folder / "records")
    engine = choose_engine(config.model.engine, backbone, check_rois(examples), folder / "store")
    views = stored_features(
        examples, folder / "store", backbone, engine, config.augment, config.train.views
    )
    index = read_index(folder / "records")
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


def _print_table(plain: Times, first: Times, second: Times) -> None:
    print(f"{'':44} {'wall s':>8} {'CPU s':>8} {'ratio':>7} {'CPU ratio':>10}")
    for name, times in (
        (f"plain Keras, {EPOCHS} epochs (extrapolated)", plain),
        ("this pipeline, store building included", first),
        ("a second experiment on the same store", second),
    ):
        ratio = plain / times
        print(f"{name:44} {times[0]:8.1f} {times[1]:8.1f} {ratio[0]:7.1f} {ratio[1]:10.1f}")


if __name__ == "__main__":
    tf.get_logger().setLevel("ERROR")
    main()
