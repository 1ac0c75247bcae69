"""The leave-one-patient-out loop of experiments/physics.py on made-up numbers."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from steatosis_tf.grades import SCORE_COLUMNS, grade_from_fat_percent

EXPERIMENTS = Path(__file__).resolve().parents[3] / "experiments"


@pytest.fixture(scope="module")
def experiment():
    pytest.importorskip("steatosis_tf.tracking")
    sys.path.insert(0, str(EXPERIMENTS))
    try:
        spec = importlib.util.spec_from_file_location("physics", EXPERIMENTS / "physics.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(EXPERIMENTS))
    return module


def test_each_patient_is_scored_by_a_model_that_never_saw_it(experiment):
    fat = np.linspace(0, 95, 12)
    frames = pd.DataFrame(
        {
            "frame_id": [f"F{i:02d}{j}" for i in range(12) for j in range(2)],
            "patient_id": [f"P{i:02d}" for i in range(12) for _ in range(2)],
            "fat_percent": np.repeat(fat, 2),
            "grade": [grade_from_fat_percent(value) for value in np.repeat(fat, 2)],
        }
    )
    numbers = pd.DataFrame({"index": np.sqrt(frames["fat_percent"])})
    scores, fits = experiment.left_out_scores(frames, numbers, ("index",))
    assert len(fits) == 12
    assert (scores.groupby("patient_id")["fold"].nunique() == 1).all()
    assert scores[list(SCORE_COLUMNS)].sum(axis=1).to_numpy() == pytest.approx(np.ones(24))
    by_cut = experiment.by_cut(scores)
    assert (by_cut["predicted"] == by_cut["grade"]).mean() > 0.8
    # A patient's own fat does not reach its score.
    changed = frames.copy()
    changed.loc[changed["patient_id"] == "P06", "fat_percent"] = 0.0
    again, _ = experiment.left_out_scores(changed, numbers, ("index",))
    mine = scores["patient_id"] == "P06"
    assert again.loc[mine, "sqrt_fat"].to_numpy() == pytest.approx(
        scores.loc[mine, "sqrt_fat"].to_numpy()
    )
