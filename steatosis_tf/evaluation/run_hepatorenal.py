"""The hepatorenal index of a run's patients: what a radiologist without the model would go by."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from steatosis_tf.cohort.manifest import frame_path, read_manifest
from steatosis_tf.files import replacing
from steatosis_tf.model.baselines.physics import hepatorenal_db
from steatosis_tf.parallel import map_on_cores
from steatosis_tf.sources.folder import read_frame

#: Frames measured of each patient. The frames of a clip are almost one picture, and one costs as
#: much as proposing its ROI.
FRAMES_PER_PATIENT = 2


def write_hepatorenal(run_dir: str | Path) -> Path:
    """Measure the graded patients of a run and write `hepatorenal.csv` for its decision curves.

    Nothing is trained here: the index knows no grade.

    Args:
        run_dir: run directory whose manifest still leads to the frames.

    Returns:
        path of `hepatorenal.csv`: `frame_id, patient_id, hepatorenal_index` (dB, liver over renal
        cortex; empty where a frame shows no kidney, no liver beside it or no sector).

    Raises:
        ValueError: if the manifest is missing or damaged, or a frame cannot be read.
    """
    run_dir = Path(run_dir)
    table = read_manifest(run_dir / "manifest.csv")
    chosen = _spread_over_clips(table.loc[table["grade"] != ""])
    measure = partial(_index_db, run_dir / "manifest.csv")
    indices = list(map_on_cores(measure, chosen["path"].tolist(), "hepatorenal index"))
    path = run_dir / "hepatorenal.csv"
    with replacing(path) as temporary:
        chosen[["frame_id", "patient_id"]].assign(hepatorenal_index=indices).to_csv(
            temporary, index=False, lineterminator="\n"
        )
    return path


def _spread_over_clips(graded: pd.DataFrame) -> pd.DataFrame:
    """A few frames of each patient, at even distances in the order of the manifest."""
    groups = graded.groupby("patient_id", sort=False)
    place, size = groups.cumcount(), groups["patient_id"].transform("size")
    step = np.maximum(size // FRAMES_PER_PATIENT, 1)
    return graded[(place % step == step // 2) & (place // step < FRAMES_PER_PATIENT)]


def _index_db(manifest_path: Path, row_path: str) -> float:
    frame = read_frame(frame_path(manifest_path, row_path))
    try:
        return hepatorenal_db(frame)
    except ValueError:  # no sector
        return float("nan")
