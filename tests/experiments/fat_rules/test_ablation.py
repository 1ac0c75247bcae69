"""Systems side by side on made-up numbers: tables, differences, and what is kept of a run."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.fat_rules.comparison import HEADINGS, MeasuredStudy, compare_systems, text_of
from steatosis_tf.evaluation.metrics.scores import patient_scores, read_scores
from steatosis_tf.evaluation.report.checks import check_run
from steatosis_tf.evaluation.report.run import read_run
from steatosis_tf.grades import NOTICE, grade_from_fat_percent
from steatosis_tf.model.joint_fit import Part


def study(num_patients: int = 12) -> tuple[pd.DataFrame, pd.DataFrame]:
    fat = np.random.default_rng(8).permutation(np.linspace(0, 95, num_patients))
    frames = pd.DataFrame({"patient_id": [f"P{i:02d}" for i in range(num_patients)]})
    frames = frames.assign(frame_id=frames["patient_id"] + "a", fat_percent=fat)
    frames = frames.assign(path=frames["frame_id"] + ".png", pixels_sha256="0")
    frames["grade"] = [grade_from_fat_percent(percent) for percent in fat]
    noise = np.random.default_rng(2).normal(size=num_patients)
    good = np.sqrt(fat) + noise / 9
    return frames, pd.DataFrame({"hepatorenal_db": good, "noise": noise})


def test_good_numbers_beside_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    frames, features = study()
    systems = {
        "good": (Part("good", ("hepatorenal_db",), (1,)),),
        "noise": (Part("noise", ("noise",)),),
    }
    text, values = compare_systems(
        "try", systems, MeasuredStudy(tmp_path / "m.csv", frames, features), tmp_path / "runs"
    )
    assert values["good"]["AUC, Severe"]["value"] == 1.0
    assert values["noise"]["AUC, Severe"]["value"] < 0.8
    assert values["good"]["Spearman"]["value"] > 0.95
    lines = text.splitlines()
    assert "12 patients, 12 frames" in lines[0]
    shown = {cell.strip() for line in (lines[2], lines[7]) for cell in line.split("|")}
    assert set(HEADINGS) <= shown
    difference = [line for line in lines if line.startswith("| noise")][-1]
    assert difference.split("|")[2].strip().startswith("-")  # worse than the first system
    runs = sorted((tmp_path / "runs").iterdir())
    assert len(runs) == 2
    for run in runs:
        scores = read_scores(run / "frame_scores.csv")
        assert patient_scores(scores).equals(read_scores(run / "patient_scores.csv"))
        row = json.loads((run / "row.json").read_text())
        assert row["notice"] == NOTICE
        assert len(row["folds"]) == 12
        failed = [check for check in check_run(read_run(run)) if check.passed is not True]
        assert not failed
        index = pd.read_csv(run / "hepatorenal.csv")["hepatorenal_index"]
        assert index.to_numpy() == pytest.approx(features["hepatorenal_db"].to_numpy())


def test_cells_of_the_table():
    entry = {"value": 0.5, "low": 0.25, "high": 0.75}
    assert text_of(entry) == "0.500 (0.250 to 0.750)"
    assert text_of(entry, sign="+") == "+0.500 (+0.250 to +0.750)"
    assert text_of(entry | {"low": None}) == "0.500"
    assert text_of(entry | {"value": None}) == "-"
