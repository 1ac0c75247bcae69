"""Everything that is measured of the frames of a study, kept on disk frame by frame.

Physics, polar blocks and pooled liver features of one frame take a tenth of a second and know no
grade. A killed run goes on where it stopped; a file is named by the hash of the frame's pixels.
"""

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from experiments.fat_rules.clinical import clinical_numbers
from experiments.fat_rules.liver_features import LIVER_COLUMNS, liver_features
from experiments.fat_rules.polar import POLAR_COLUMNS, polar_blocks
from steatosis_tf.cohort.manifest import frame_path
from steatosis_tf.files import replacing
from steatosis_tf.quantitative.measure import UNITS, measure_regions
from steatosis_tf.roi.anatomy.kidney import find_kidney_cortex
from steatosis_tf.roi.anatomy.liver import liver_mask, network_input
from steatosis_tf.roi.sector import Sector, find_sector
from steatosis_tf.roi.views import Rectangle
from steatosis_tf.sources.images import read_frame, to_grey

#: Counts up whenever a definition changes, so that what is stored is measured anew.
VERSION = 2
#: Names of what is measured of every frame.
MEASURED_COLUMNS = (*UNITS, *POLAR_COLUMNS, *LIVER_COLUMNS)

#: Finds the patch of renal cortex of one frame of a patient.
CortexFinder = Callable[[str, np.ndarray, Sector, np.ndarray], Rectangle | None]


def shipped_cortex(
    patient_id: str, frame: np.ndarray, sector: Sector, liver: np.ndarray
) -> Rectangle | None:
    """The shipped finder, for patients whose operator boxes it was not fitted to."""
    return find_kidney_cortex(frame, sector, liver).box


def measure_study(
    frames: pd.DataFrame,
    manifest_path: str | Path,
    store_dir: str | Path,
    find_cortex: CortexFinder = shipped_cortex,
) -> pd.DataFrame:
    """Measure every frame of a manifest and add its patient's clinical covariates.

    Args:
        frames: manifest rows.
        manifest_path: the manifest they are from.
        store_dir: folder of the store; one for each way of finding cortex.
        find_cortex: from `patient_id`, frame, sector and liver mask to a patch, or None.

    Returns:
        `MEASURED_COLUMNS` and `CLINICAL_COLUMNS`, float64, one row per frame with the index of
        `frames`. What a frame does not show is the mean over the patient's other frames, and NaN
        where none shows it.

    Raises:
        ValueError: if a frame cannot be read or has no sector.
    """
    folder = Path(store_dir) / f"measured-{VERSION}"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for row in tqdm(list(frames.itertuples()), "measured", file=sys.stderr, unit="frame"):
        stored = folder / f"{str(row.pixels_sha256)[:24]}.npy"
        if not stored.is_file():
            try:
                frame = read_frame(frame_path(manifest_path, str(row.path)))
                values = _measured(str(row.patient_id), frame, find_cortex)
            except ValueError as error:
                raise ValueError(
                    f"Expected a frame that can be measured. Received: frame_id={row.frame_id}: "
                    f"{error} Take it out of the manifest; what is measured stays."
                ) from error
            with replacing(stored) as temporary, temporary.open("wb") as file:
                np.save(file, values)
        rows.append(np.load(stored))
    table = pd.DataFrame(np.array(rows), index=frames.index, columns=list(MEASURED_COLUMNS))
    of_patient = table.groupby(frames["patient_id"]).transform("mean")
    return table.fillna(of_patient).join(clinical_numbers(frames))


def _measured(patient_id: str, frame: np.ndarray, find_cortex: CortexFinder) -> np.ndarray:
    sector = find_sector(frame)
    liver = liver_mask(frame, sector)
    crop, place = network_input(frame, sector.mask)
    cortex = find_cortex(patient_id, frame, sector, liver)
    physics = asdict(measure_regions(frame, sector, liver, cortex))
    return np.concatenate(
        [
            [physics[name] for name in UNITS],
            polar_blocks(to_grey(frame), sector.fan),
            liver_features(crop, liver, place),
        ]
    )
