"""(c) ROI and records against a plain loop of OpenCV and TFRecordWriter, frames per CPU-second.

The plain loop decodes each PNG, cuts one fixed rectangle, makes it square and writes it: no sector
is looked for, nothing outside it is blanked, no leak is searched, nothing is shuffled or checked.
A frame is decoded once by ours, for its ROI, marks and the hash against leakage; its record takes
the ROI from a file that this step leaves.
"""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import tensorflow as tf
from processor_time import processor_seconds

from steatosis_tf.cohort.manifest import frame_path, read_manifest, relocate, write_manifest
from steatosis_tf.cohort.partition import test_column
from steatosis_tf.cohort.splits import make_partitions
from steatosis_tf.config import RoiConfig, SplitConfig
from steatosis_tf.records.builder import write_records
from steatosis_tf.roi.columns import add_roi_columns
from steatosis_tf.sources.images import read_frame


def record_rows(manifest_path: Path, folder: Path, *, rounds: int) -> list[tuple[str, ...]]:
    """Rows of the table."""
    table = read_manifest(manifest_path)
    folder.mkdir(parents=True)
    _ours(table, manifest_path, folder)  # imports and the start of workers are not measured
    work = {
        "limit: every frame decoded once": _decode,
        "plain loop of OpenCV and TFRecordWriter": _plain,
        "sector ROI, data-leakage check, records": _ours,
        "the same, the check's hashes kept from before": partial(_ours, forget_hashes=False),
    }
    spent = np.array(
        [[_cpu_seconds(lambda one=one: one(table, manifest_path, folder)) for one in work.values()]
         for _ in range(rounds)]
    )  # fmt: skip
    speeds, ratios = len(table) / np.median(spent, axis=0), spent[:, [1]] / spent
    return [
        ("c", f"{name}, {len(table)} frames", f"{speeds[at]:.0f} frames per CPU-s",
         f"{np.median(ratios[:, at]):.2f} ({ratios[:, at].min():.2f} to {ratios[:, at].max():.2f})",
         "150 frames per CPU-s" if at > 1 else "")
        for at, name in enumerate(work)
    ]  # fmt: skip


def _decode(table: pd.DataFrame, manifest_path: Path, folder: Path) -> None:
    for path in table["path"]:
        read_frame(frame_path(manifest_path, path))


def _ours(
    table: pd.DataFrame, manifest_path: Path, folder: Path, *, forget_hashes: bool = True
) -> None:
    shutil.rmtree(folder / "records", ignore_errors=True)
    hashes_path, crops_dir = folder / "hashes.csv", folder / "crops"
    if forget_hashes:
        hashes_path.unlink(missing_ok=True)
    sector = RoiConfig(method="sector")
    table = add_roi_columns(
        table, manifest_path, sector, hashes_path=hashes_path, crops_dir=crops_dir
    )
    partitions = make_partitions(table, SplitConfig(kind="holdout"))
    table = relocate(table, manifest_path, folder)
    table["split"] = test_column(table, partitions)
    write_manifest(table, folder / "manifest.csv")
    write_records(
        folder / "manifest.csv", folder / "records", partitions, hashes_path=hashes_path,
        crops_dir=crops_dir,
    )  # fmt: skip
    shutil.rmtree(crops_dir)


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
