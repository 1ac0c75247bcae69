"""Patient-split TFRecords from a manifest, written by tensorflow-datasets."""

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds
from absl import logging as absl_logging

from steatosis_tf import __version__
from steatosis_tf.atomic import replacing
from steatosis_tf.cohort.leak_gate import refuse_leaks
from steatosis_tf.cohort.manifest import ROI_COLUMNS, frame_path, read_manifest
from steatosis_tf.cohort.splits import Partition, partitions_of_column
from steatosis_tf.grades import GRADES, label_of
from steatosis_tf.roi.crop import INPUT_SIZE_PX, Rectangle, crop_roi
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.sources.folder import read_frame

# tensorflow-datasets warns of its own deprecated attribute at every read.
absl_logging.set_verbosity(absl_logging.ERROR)

_CHUNK = 256  # frames decoded ahead of the writer: bounds memory, whatever the size of a study


class SteatosisRecords(tfds.core.GeneratorBasedBuilder):
    """One example per graded frame; one tfds split per value of the manifest's `split`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "Grey ROI, label, ids and fat."}

    def __init__(self, *, manifest_path: str | Path, **kwargs: Any) -> None:
        self._manifest_path = Path(manifest_path)
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="Hepatic steatosis ultrasound ROIs, split by patient.",
            features=tfds.features.FeaturesDict(
                {
                    "roi": tfds.features.Tensor(
                        shape=(INPUT_SIZE_PX, INPUT_SIZE_PX, 1),
                        dtype=np.uint8,
                        # Raw bytes: decoding a PNG would cost more than reading 50 kB.
                        encoding=tfds.features.Encoding.BYTES,
                    ),
                    "label": tfds.features.ClassLabel(names=list(GRADES)),
                    "frame_id": tfds.features.Text(),
                    "patient_id": tfds.features.Text(),
                    "fat_percent": np.float32,
                }
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        rows = usable_rows(read_manifest(self._manifest_path))
        return {
            str(split): self._generate_examples(group) for split, group in rows.groupby("split")
        }

    def _generate_examples(self, rows: pd.DataFrame) -> Iterator[tuple[str, dict[str, Any]]]:
        def example(row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
            return row["frame_id"], {
                "roi": cut_roi(row, self._manifest_path)[..., np.newaxis],
                "label": label_of(row["grade"]),
                "frame_id": row["frame_id"],
                "patient_id": row["patient_id"],
                "fat_percent": row["fat_percent"],
            }

        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            for start in range(0, len(rows), _CHUNK):
                yield from pool.map(example, rows.iloc[start : start + _CHUNK].to_dict("records"))


def write_records(
    manifest_path: str | Path,
    records_dir: str | Path,
    partitions: list[Partition] | None = None,
    *,
    time_column: str = "",
    gate_path: str | Path | None = None,
    hashes_path: str | Path | None = None,
) -> Path:
    """Pass the leak gate, then write the records of a manifest unless the same ones are there.

    Args:
        manifest_path: manifest with `split` and ROI columns.
        records_dir: folder for the records; `records.json` in it says what they were made of.
        partitions: who trains, validates and tests; what the `split` column says if None.
        time_column: date column of a temporal split.
        gate_path: JSON file for what the gate looked at.
        hashes_path: file that keeps the gate's perceptual hashes between calls.

    Returns:
        the folder tensorflow-datasets reads (`records_dir/steatosis_records/1.0.0`).

    Raises:
        ValueError: if the manifest has no split or ROI columns or no usable row, if the gate
            finds a leak (the text lists every one), or if the folder holds other records.
    """
    records_dir = Path(records_dir)
    rows = usable_rows(read_manifest(manifest_path))
    partitions = partitions or partitions_of_column(rows)
    gate = refuse_leaks(
        rows, partitions, manifest_path, time_column=time_column, cache_path=hashes_path
    )
    if gate_path is not None:
        with replacing(gate_path) as temporary:
            temporary.write_text(json.dumps(gate, indent=2) + "\n")
    fingerprint = records_fingerprint(rows)
    note_path = records_dir / "records.json"
    if note_path.is_file():
        known = json.loads(note_path.read_text())["fingerprint"]
        if known == fingerprint:
            return records_location(records_dir)
        raise ValueError(
            f"Expected an empty folder or records of this manifest. Received: {records_dir.name} "
            "with records of other frames, splits or ROIs. Name another folder, or delete it."
        )
    # Without records.json whatever lies here is the remains of a killed run.
    shutil.rmtree(records_dir / SteatosisRecords.name, ignore_errors=True)
    builder = SteatosisRecords(manifest_path=manifest_path, data_dir=str(records_dir))
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for results, tfds prints progress
        builder.download_and_prepare()
    with replacing(note_path) as temporary:
        counts = {str(split): int(count) for split, count in rows["split"].value_counts().items()}
        temporary.write_text(
            json.dumps({"fingerprint": fingerprint, "frames": counts}, indent=2) + "\n"
        )
    return records_location(records_dir)


def records_location(records_dir: str | Path) -> Path:
    """The folder below `records_dir` that tensorflow-datasets reads."""
    return Path(records_dir) / SteatosisRecords.name / str(SteatosisRecords.VERSION)


def records_fingerprint(rows: pd.DataFrame) -> str:
    """SHA-256 of all that the records hold: pixels, ROI, grade, patient and split of each row.

    The package version stands for the code that finds the sector and cuts the ROI.
    """
    columns = ["frame_id", "pixels_sha256", *ROI_COLUMNS, "grade", "fat_percent", "patient_id",
               "split"]  # fmt: skip
    text = rows[columns].sort_values("frame_id").to_csv(index=False)
    return hashlib.sha256(f"{SteatosisRecords.VERSION} {__version__}\n{text}".encode()).hexdigest()


def usable_rows(frame_table: pd.DataFrame) -> pd.DataFrame:
    """Rows with a grade, a split and a ROI: those a model can train on or be scored with.

    Raises:
        ValueError: if a needed column is absent or no row is usable.
    """
    missing = [name for name in ("split", *ROI_COLUMNS) if name not in frame_table.columns]
    if missing:
        raise ValueError(
            f"Expected a manifest with split and ROI. Received: one without {', '.join(missing)}. "
            "Run `steatosis split MANIFEST_CSV` and `steatosis roi MANIFEST_CSV` first."
        )
    usable = (frame_table["grade"] != "") & (frame_table["split"] != "")
    rows = frame_table.loc[usable & frame_table["roi_height"].notna()]
    if rows.empty:
        raise ValueError(
            f"Expected at least one frame with grade, split and ROI. Received: none out of "
            f"{len(frame_table)}. The columns roi_reason and rejected.csv say why."
        )
    return rows


def cut_roi(row: dict[str, Any], manifest_path: str | Path) -> np.ndarray:
    """The ROI of a manifest row as the model sees it: `(224, 224)` uint8, 0 outside the sector.

    Raises:
        ValueError: if the frame is gone, has no sector, or does not hold the rectangle. The text
            names the frame.
    """
    path = frame_path(manifest_path, row["path"])
    try:
        frame = read_frame(path)
        rectangle = Rectangle(*(int(row[name]) for name in ROI_COLUMNS))
        return crop_roi(frame, find_sector(frame).mask, rectangle)
    except ValueError as error:
        raise ValueError(f"{path.name} (frame_id={row['frame_id']}): {error}") from error
