"""From a manifest to records and features, found or made: the steps before anything is trained."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from steatosis_tf.cohort.manifest import read_manifest, relocate, write_manifest
from steatosis_tf.cohort.splits import Partition, make_partitions, test_column
from steatosis_tf.config import Config
from steatosis_tf.fold_fit import StudyData
from steatosis_tf.folds import load_study
from steatosis_tf.records.builder import records_fingerprint, usable_rows, write_records
from steatosis_tf.roi.columns import add_roi_columns

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions


@dataclass(frozen=True)
class Preparation:
    """Where and how a study is prepared.

    Attributes:
        config: split and ROI.
        folder: where the completed manifest and the gate's findings are kept.
        runs_dir: records and hashes are kept in `runs_dir/cache`, shared by all runs.
        options: Beam runner that proposes ROIs and writes records, see `spread.beam_options`; None
            does it here.
    """

    config: Config
    folder: Path
    runs_dir: Path
    options: "PipelineOptions | None" = None

    @property
    def hashes_path(self) -> Path:
        """File that keeps the leak gate's hashes, which the ROI step takes along."""
        return self.runs_dir / "cache" / "perceptual_hashes.csv"


def complete_manifest(
    table: pd.DataFrame, manifest_path: str | Path, partitions: list[Partition], place: Preparation
) -> pd.DataFrame:
    """Write `manifest.csv`, a copy with split and ROI columns, into the folder.

    Args:
        table: rows of the manifest.
        manifest_path: where they are from; never changed.
        partitions: the split, one or the folds of one round.
        place: where to, and how.

    Returns:
        what was written.
    """
    table = add_roi_columns(
        table, Path(manifest_path), place.config.roi, place.options, place.hashes_path
    )
    table = relocate(table, manifest_path, place.folder)
    table["split"] = test_column(table, partitions)
    write_manifest(table, place.folder / "manifest.csv")
    return table


def keep_records(
    table: pd.DataFrame, partitions: list[Partition], place: Preparation
) -> tuple[Path, str]:
    """Records of a completed manifest, once the leak gate has looked and left `leak_gate.json`.

    Args:
        table: what `complete_manifest` wrote.
        partitions: the split, of all rounds.
        place: as of `complete_manifest`.

    Returns:
        folder of the records and their fingerprint.

    Raises:
        ValueError, RuntimeError, OSError: as `write_records`.
    """
    fingerprint = records_fingerprint(usable_rows(table))
    records_dir = place.runs_dir / "cache" / "records" / fingerprint[:16]
    write_records(
        place.folder / "manifest.csv",
        records_dir,
        partitions,
        time_column=place.config.split.time_column,
        gate_path=place.folder / "leak_gate.json",
        hashes_path=place.hashes_path,
        options=place.options,
    )
    return records_dir, fingerprint


def prepare_study(
    manifest_path: str | Path, config: Config, folder: Path, runs_dir: Path, *, every: int = 1
) -> tuple[StudyData, str]:
    """Records and features of a manifest, for scripts that train many heads.

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
    table = _every(read_manifest(manifest_path), every)
    partitions = make_partitions(table, config.split)
    place = Preparation(config, folder, runs_dir)
    table = complete_manifest(table, manifest_path, partitions, place)
    records_dir, fingerprint = keep_records(table, partitions, place)
    return load_study(records_dir, runs_dir / "cache" / "features", config), fingerprint


def _every(table: pd.DataFrame, every: int) -> pd.DataFrame:
    if every == 1:
        return table
    place = table.sort_values("frame_id").groupby("patient_id").cumcount()
    return table.loc[place.sort_index() % every == 0].reset_index(drop=True)
