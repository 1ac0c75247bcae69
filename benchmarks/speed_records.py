"""(c) ROI and records against a plain loop of OpenCV and TFRecordWriter, frames per CPU-second.

The plain loop decodes each PNG, cuts one fixed rectangle, makes it square and writes it: no sector
is looked for, nothing outside it is blanked, no leak is searched, nothing is shuffled or checked.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import tensorflow as tf
from processor_time import processor_seconds

from steatosis_tf.cohort.manifest import frame_path, read_manifest, relocate, write_manifest
from steatosis_tf.cohort.splits import make_partitions, test_column
from steatosis_tf.config import RoiConfig, SplitConfig
from steatosis_tf.records.builder import write_records
from steatosis_tf.roi.columns import add_roi_columns


def record_rows(manifest_path: Path, folder: Path, *, rounds: int) -> list[tuple[str, ...]]:
    """Rows of the table."""
    table = read_manifest(manifest_path)
    folder.mkdir(parents=True)
    _ours(table, manifest_path, folder)  # imports and the start of workers are not measured
    ours, plain = [], []
    for _ in range(rounds):
        plain.append(_cpu_seconds(lambda: _plain(table, manifest_path, folder)))
        ours.append(_cpu_seconds(lambda: _ours(table, manifest_path, folder)))
    ratios = np.array(plain) / np.array(ours)
    return [
        ("c", f"plain loop of OpenCV and TFRecordWriter, {len(table)} frames",
         f"{len(table) / np.median(plain):.0f} frames per CPU-s", "1", ""),
        ("c", "sector ROI, leak gate, records", f"{len(table) / np.median(ours):.0f} frames per "
         "CPU-s", f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})",
         "150 frames per CPU-s"),
    ]  # fmt: skip


def _ours(table: pd.DataFrame, manifest_path: Path, folder: Path) -> None:
    shutil.rmtree(folder / "records", ignore_errors=True)
    hashes_path = folder / "hashes.csv"
    hashes_path.unlink(missing_ok=True)
    sector = RoiConfig(method="sector")
    table = add_roi_columns(table, manifest_path, sector, hashes_path=hashes_path)
    partitions = make_partitions(table, SplitConfig())
    table = relocate(table, manifest_path, folder)
    table["split"] = test_column(table, partitions)
    write_manifest(table, folder / "manifest.csv")
    write_records(folder / "manifest.csv", folder / "records", partitions, hashes_path=hashes_path)


def _plain(table: pd.DataFrame, manifest_path: Path, folder: Path) -> None:
    with tf.io.TFRecordWriter(str(folder / "plain.tfrecord")) as writer:
        for row in table.itertuples():
            grey = cv2.imread(str(frame_path(manifest_path, row.path)), cv2.IMREAD_GRAYSCALE)
            height, width = grey.shape
            window = grey[height // 4 : -height // 8, width // 4 : -width // 4]
            roi = cv2.resize(window, (224, 224), interpolation=cv2.INTER_AREA)
            feature = {"roi": _bytes(roi.tobytes()), "patient_id": _bytes(row.patient_id.encode())}
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString())


def _bytes(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def _cpu_seconds(work: Callable[[], None]) -> float:
    start = processor_seconds()
    work()
    return processor_seconds() - start
