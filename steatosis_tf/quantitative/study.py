"""Measured features of a patient's frames, and of all frames of a study.

Apart from `measure.py`, which opening a bundle imports: it brings no pandas.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock

from steatosis_tf.cohort.manifest import frame_path, pixels_sha256
from steatosis_tf.files import replacing
from steatosis_tf.parallel import map_on_cores
from steatosis_tf.quantitative.display import Display
from steatosis_tf.quantitative.measure import UNITS, MeasuredFeatures, measure_frame
from steatosis_tf.roi.sector.find import ROI_VERSION
from steatosis_tf.sources.images import read_frame


def measure_patient(
    paths: Sequence[str | Path], display: Display
) -> tuple[list[MeasuredFeatures], MeasuredFeatures]:
    """Measure a patient's frames.

    Args:
        paths: of one or more frames of one patient.
        display: scale of all of them.

    Returns:
        the numbers of each frame, and their means over the frames that show them.

    Raises:
        ValueError: if a frame cannot be read or shows no sector.
    """
    found = []
    for path in paths:
        try:
            found.append(measure_frame(read_frame(path), display))
        except ValueError as error:
            raise ValueError(f"{Path(path).name}: {error}") from error
    table = pd.DataFrame([asdict(numbers) for numbers in found])
    means: dict[str, Any] = table[list(UNITS)].mean().to_dict()
    return found, MeasuredFeatures(**means, is_assumed_scale=display.dynamic_range_db is None)


#: What the joint head reads: hepatorenal index, attenuation, diaphragm.
MEASURED = ("hepatorenal_db", "attenuation_db_per_depth", "diaphragm_db")

#: Counts up whenever a definition changes, so that what is stored is measured anew.
_VERSION = 3


def measured_features(frames: pd.DataFrame, manifest_path: Path, store_dir: Path) -> np.ndarray:
    """Measured features of the frames of a study, as the joint head reads them.

    Args:
        frames, manifest_path, store_dir: as of `measured_table`.

    Returns:
        `(num_frames, 3)` float64, `MEASURED` in the order of `frames`. What a frame does not show
        is the mean of the patient's other frames, NaN where none shows it. Frames without a liver
        are named on stderr.

    Raises:
        ValueError: if a frame cannot be read.
    """
    table = measured_table(frames, manifest_path, store_dir)
    unseen = frames.loc[table["attenuation_db_per_depth"].isna(), "frame_id"].tolist()
    if unseen:
        print(
            f"warning: no liver to measure is seen in frames={len(unseen)}, frame_id="
            f"{', '.join(unseen[:10])}{' ...' if len(unseen) > 10 else ''}. The model learns from "
            "them and is scored on them, and `steatosis predict` passes over them: reject them in "
            "`steatosis review`",
            file=sys.stderr,
        )
    means = table.groupby(frames["patient_id"]).transform("mean")
    return table.fillna(means).to_numpy(float)


def measured_table(frames: pd.DataFrame, manifest_path: Path, store_dir: Path) -> pd.DataFrame:
    """Measured features of the frames of a study, on all cores, kept on disk by the frame.

    Args:
        frames: rows of the manifest.
        manifest_path: the manifest they are from.
        store_dir: of what was measured before, by any run.

    Returns:
        columns `MEASURED`, index of `frames`; NaN for what a frame does not show.

    Raises:
        ValueError: if a frame cannot be read, or is another than when the manifest was made.
    """
    store = store_dir / f"measured-{_VERSION}-{ROI_VERSION}.csv"
    known = _kept(store)
    missing = frames.loc[~frames["pixels_sha256"].isin(known.index)]
    missing = missing.drop_duplicates("pixels_sha256")
    paths = [frame_path(manifest_path, str(path)) for path in missing["path"]]
    frames_of = list(zip(paths, missing["pixels_sha256"], strict=True))
    found = list(map_on_cores(_measured, frames_of, "measured features")) if paths else []
    if found:
        table = pd.DataFrame(found, index=missing["pixels_sha256"], columns=list(MEASURED))
        store_dir.mkdir(parents=True, exist_ok=True)
        # Another run may have added its frames meanwhile.
        with FileLock(store.with_suffix(".lock")), replacing(store) as temporary:
            kept = _kept(store)
            others = kept.drop(table.index, errors="ignore")
            known = pd.concat([others, table]) if len(others) else table
            known.to_csv(temporary)
    return known.loc[frames["pixels_sha256"], list(MEASURED)].set_axis(frames.index)


def _kept(store: Path) -> pd.DataFrame:
    if not store.is_file():
        return pd.DataFrame(columns=list(MEASURED), dtype=float)
    return pd.read_csv(store, index_col=0, float_precision="round_trip")


def _measured(frame_of: tuple[Path, str]) -> list[float]:
    path, digest = frame_of
    frame = read_frame(path)
    if pixels_sha256(frame) != digest:  # what is kept under it must be of these pixels
        raise ValueError(
            f"Expected the frames that the manifest was made from. Received: {path.name}, whose "
            "pixels are others. Put the file back, or make the manifest again."
        )
    try:
        numbers = measure_frame(frame)
    except ValueError:  # no sector, or Doppler: its ROI is a person's, and nothing is measured
        return [float("nan")] * len(MEASURED)
    return [getattr(numbers, name) for name in MEASURED]
