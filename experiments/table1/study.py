"""The frames, folds and ROI that every method of the table shares, made as in a run."""

import dataclasses
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from steatosis_tf import __version__
from steatosis_tf.cohort.manifest import (
    MANIFEST_COLUMNS,
    MARKS_COLUMN,
    ROI_COLUMNS,
    SCALE_COLUMN,
    read_manifest,
)
from steatosis_tf.cohort.partition import Partition
from steatosis_tf.cohort.splits import make_partitions
from steatosis_tf.config import Config, RoiConfig, SplitConfig
from steatosis_tf.pipeline import Preparation, complete_manifest, keep_records
from steatosis_tf.records.pipeline import read_index, read_records

#: Most rounds of 5-fold cross-validation a method may ask for.
MAX_REPEATS = 5

#: `sector`, not `liver`, was chosen before any method was scored: the contrast of liver to renal
#: cortex, and attenuation along the whole depth, need more in view than the best parenchyma.
PROTOCOL = Config(
    split=SplitConfig(kind="kfold", folds=5, repeats=MAX_REPEATS), roi=RoiConfig(method="sector")
)

HIDDEN = -1
_NO_COVARIATE = (*MANIFEST_COLUMNS, *ROI_COLUMNS, "split", "roi_source", "roi_quality",
                 "roi_reason", "roi_code", MARKS_COLUMN, "roi_view", SCALE_COLUMN,
                 "roi_sector")  # fmt: skip


@dataclass(frozen=True)
class Study:
    """All graded frames.

    Attributes:
        index: one row per frame: `frame_id, patient_id` (str), `label` (int 0..3, -1 where
            hidden), `fat_percent` (NaN where unknown or hidden), and every further column of the
            label table as text, "" where unknown (age, fibrosis and so on).
        rois: `(num_frames, 224, 224, 1)` uint8, 0 outside the sector, in the order of `index`.
        partitions: folds of all repeats; whole patients.
        config: split and ROI.
        folder: where `manifest.csv` of these frames lies, and what methods keep between folds.
        records_dir: records of these frames.
        fingerprint: hash of all of this, part of every result's key.
    """

    index: pd.DataFrame
    rois: np.ndarray
    partitions: list[Partition]
    config: Config
    folder: Path
    records_dir: Path
    fingerprint: str

    def rows_of(self, patient_ids: frozenset[str]) -> np.ndarray:
        """Positions of the frames of some patients, ascending."""
        return np.flatnonzero(self.index["patient_id"].isin(patient_ids))

    def hiding(self, rows: np.ndarray) -> "Study":
        """The same study without the labels and fat of the rows to be tested; covariates stay."""
        index = self.index.copy()
        index.loc[index.index[rows], "label"] = HIDDEN
        index.loc[index.index[rows], "fat_percent"] = np.nan
        return dataclasses.replace(self, index=index)


def load_study(
    manifest_path: str | Path, runs_dir: str | Path = "runs", config: Config = PROTOCOL
) -> Study:
    """Split, ROI and records of a manifest, by the same functions as of `train`.

    They are kept in `runs_dir/cache`, so that the methods need not make them again. The
    data-leakage check judges the folds of every repeat.

    Args:
        manifest_path: manifest of graded frames; never changed.
        runs_dir: folder of runs.
        config: `split` (k-fold) and `roi` are used.

    Raises:
        ValueError: for faults of the data, or a leak.
    """
    manifest_path, runs_dir = Path(manifest_path), Path(runs_dir)
    table = read_manifest(manifest_path)
    settings = json.dumps(
        [__version__, dataclasses.asdict(config.split), dataclasses.asdict(config.roi)]
    )
    # Without paths: the same frames are the same study wherever they lie.
    rows = table.drop(columns="path").to_csv(index=False)
    digest = hashlib.sha256((settings + rows).encode()).hexdigest()
    folder = runs_dir / "cache" / "table1" / digest[:16]
    place, partitions = Preparation(config, folder, runs_dir), make_partitions(table, config.split)
    if not (folder / "manifest.csv").is_file():
        first = [part for part in partitions if part.repeat == 0]
        complete_manifest(table, manifest_path, first, place)
    table = read_manifest(folder / "manifest.csv")
    if num_rejected := int(table["roi_height"].isna().sum()):
        print(f"{num_rejected} frames without ROI, see {folder}/manifest.csv", file=sys.stderr)
    records_dir, _ = keep_records(table, partitions, place)
    rois = np.stack([row["roi"] for row in read_records(records_dir).as_numpy_iterator()])
    index = read_index(records_dir)
    covariates = table.drop(
        columns=[name for name in _NO_COVARIATE if name != "frame_id"], errors="ignore"
    )
    index = index.merge(covariates, on="frame_id", how="left", validate="one_to_one")
    return Study(index, rois, partitions, config, folder, records_dir, digest)
