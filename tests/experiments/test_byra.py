"""experiments/byra.py: whose weights find a patient's cortex, and which systems stand there."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from experiments import byra
from experiments.fat_rules.measurements import MEASURED_COLUMNS
from experiments.segmentation import kidney_head
from steatosis_tf.roi.anatomy import kidney
from steatosis_tf.roi.anatomy.liver import liver_mask
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.sources.images import read_frame


def test_cortex_is_found_with_the_weights_of_the_patients_own_fold(real_data_dir, tmp_path):
    labels = pd.read_csv(real_data_dir / "byra2018" / "labels.csv", dtype={"patient_id": str})
    patients = labels["patient_id"].unique().tolist()
    frame = read_frame(
        real_data_dir / "byra2018" / labels["path"][labels["patient_id"] == "P25"].iloc[0]
    )
    sector = find_sector(frame)
    liver = liver_mask(frame, sector)
    expected = kidney.find_kidney_cortex(frame, sector, liver).box
    assert expected is not None
    shipped = np.array(json.loads(Path(kidney.__file__).with_name("kidney_head.json").read_text()))
    own = kidney_head.fold_of(patients)["P25"]
    weights = np.zeros((kidney_head.NUM_FOLDS, len(shipped)))  # sees no kidney anywhere
    weights[own] = shipped
    np.save(tmp_path / "kidney_weights.npy", weights)
    cortex = byra.FoldedCortex(real_data_dir / "byra2018", patients, tmp_path)
    assert cortex("P25", frame, sector, liver) == expected
    other = next(name for name in patients if kidney_head.fold_of(patients)[name] != own)
    assert cortex(other, frame, sector, liver) is None


def test_every_system_sees_measured_columns_only():
    assert next(iter(byra.METHODS)) == byra.BEST
    seen = {name for parts in byra.METHODS.values() for part in parts for name in part.columns}
    assert seen <= set(MEASURED_COLUMNS)
    assert not seen & {"fat_percent", "grade", "frame_index"}
