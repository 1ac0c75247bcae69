"""The demonstration behind the data-leakage check, on the real frames."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from steatosis_tf.cohort.manifest import build_manifest, read_manifest

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "leak_demo.py"


@pytest.fixture(scope="module")
def leak_demo():
    spec = importlib.util.spec_from_file_location("leak_demo", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nearest_outside_the_own_fold_by_hand(leak_demo):
    # Points on a line: 0 and 1 are neighbours, 10 and 12 are neighbours.
    points = np.array([0.0, 1.0, 10.0, 12.0])
    distances = np.abs(points[:, None] - points[None])
    grades = np.array(["Mild", "Mild", "Severe", "Severe"])
    apart = np.array([0, 1, 0, 1])  # each neighbour is in the other fold
    together = np.array([0, 0, 1, 1])  # only strangers are in the other fold
    assert leak_demo.nearest_grade_accuracy(distances, grades, apart) == 1.0
    assert leak_demo.nearest_grade_accuracy(distances, grades, together) == 0.0


def test_image_folds_are_ten_equal_parts(leak_demo):
    assert list(np.bincount(leak_demo.folds_by_image(40, 0))) == [4] * 10


def test_split_by_image_looks_perfect_and_by_patient_does_not(
    leak_demo, real_data_dir, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("steatosis_tf.tracking")
    monkeypatch.setenv("STEATOSIS_MLRUNS", str(tmp_path / "mlruns"))
    manifest_path = tmp_path / "manifest.csv"
    build_manifest(real_data_dir / "byra2018" / "labels.csv", manifest_path)
    assert leak_demo.main(["--manifest", str(manifest_path), "--seeds", "3"]) == 0
    printed = capsys.readouterr().out
    assert "split by image" in printed
    assert "Not a diagnosis" in printed

    from steatosis_tf import tracking

    row = tracking.runs_table("leak_demo").iloc[0]
    assert row["metrics.accuracy_by_image"] > 0.99
    assert 0.25 < row["metrics.accuracy_by_patient"] < 0.5
    frames = read_manifest(manifest_path)
    folds = leak_demo.folds_by_patient(frames, seed=0)
    assert (frames.assign(fold=folds).groupby("patient_id")["fold"].nunique() == 1).all()


def test_a_missing_manifest_is_told(leak_demo, tmp_path, monkeypatch, capsys):
    pytest.importorskip("steatosis_tf.tracking")
    monkeypatch.setenv("STEATOSIS_MLRUNS", str(tmp_path / "mlruns"))
    assert leak_demo.main(["--manifest", str(tmp_path / "gone.csv")]) == 1
    assert "does not exist" in capsys.readouterr().err
