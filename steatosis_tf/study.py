"""From a manifest to records and features, found or made: what scripts that train many heads share.

`experiment.run` does the same step by step and keeps more of it: flow, rejected frames, hashes.
"""

from pathlib import Path

import pandas as pd

from steatosis_tf.cohort.manifest import read_manifest, relocate, write_manifest
from steatosis_tf.cohort.splits import make_partitions, test_column
from steatosis_tf.config import Config
from steatosis_tf.fold_fit import StudyData
from steatosis_tf.folds import load_study
from steatosis_tf.records.builder import records_fingerprint, usable_rows, write_records
from steatosis_tf.roi.columns import add_roi_columns
from steatosis_tf.roi.fold import fold_decisions


def prepare_study(
    manifest_path: str | Path, config: Config, folder: Path, runs_dir: Path, *, every: int = 1
) -> tuple[StudyData, str]:
    """Records and features of the manifest; the leak gate looks at `config.split` first.

    Args:
        manifest_path: manifest of graded frames.
        config: split, ROI, backbone, engine, augmentation and number of views.
        folder: where the completed manifest and the gate's findings are kept.
        runs_dir: records and features are kept in `runs_dir/cache`, shared by all runs.
        every: take every n-th frame of each patient, in order of `frame_id`.

    Returns:
        records and features, and the fingerprint of the records.

    Raises:
        ValueError, RuntimeError, OSError: as `write_records` and `load_study`.
    """
    fold_decisions(manifest_path)  # a review page that was killed leaves its last ones aside
    table = _every(read_manifest(manifest_path), every)
    partitions = make_partitions(table, config.split)
    hashes_path = runs_dir / "cache" / "perceptual_hashes.csv"
    table = add_roi_columns(table, Path(manifest_path), config.roi, hashes_path=hashes_path)
    folder.mkdir(parents=True, exist_ok=True)
    table = relocate(table, Path(manifest_path), folder)
    table["split"] = test_column(table, partitions)
    write_manifest(table, folder / "manifest.csv")
    fingerprint = records_fingerprint(usable_rows(table))
    records_dir = runs_dir / "cache" / "records" / fingerprint[:16]
    write_records(
        folder / "manifest.csv",
        records_dir,
        partitions,
        time_column=config.split.time_column,
        gate_path=folder / "leak_gate.json",
        hashes_path=hashes_path,
    )
    return load_study(records_dir, runs_dir / "cache" / "features", config), fingerprint


def _every(table: pd.DataFrame, every: int) -> pd.DataFrame:
    if every == 1:
        return table
    place = table.sort_values("frame_id").groupby("patient_id").cumcount()
    return table.loc[place.sort_index() % every == 0].reset_index(drop=True)
