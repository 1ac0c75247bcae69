"""The data-leakage check as a user calls it: leaks, records and an experiment, on real frames."""

import csv
from pathlib import Path

import cv2
import pandas as pd
import pytest

from steatosis_tf import cli
from steatosis_tf.cohort.manifest import read_manifest, write_manifest
from steatosis_tf.config import Config, override
from steatosis_tf.roi.columns import add_roi_columns
from steatosis_tf.verbs.results import script


def call(*words: object) -> int:
    return cli.main([str(word) for word in words])


@pytest.fixture
def leaky(real_data_dir, tmp_path) -> Path:
    """Manifest of eight patients; P99, tested, holds a re-saved frame of P30, who trains."""
    images = real_data_dir / "byra2018" / "images"
    grades = {"P02": "Normal", "P03": "Normal", "P30": "Mild", "P36": "Mild", "P18": "Moderate",
              "P50": "Severe", "P51": "Severe"}  # fmt: skip
    rows = [f"{images}/{patient}_F00.png,{patient},{grade}" for patient, grade in grades.items()]
    frame = cv2.imread(str(images / "P30_F00.png"))
    cv2.imwrite(str(tmp_path / "copy.jpg"), frame, [cv2.IMWRITE_JPEG_QUALITY, 70])
    rows.append("copy.jpg,P99,Mild")
    (tmp_path / "labels.csv").write_text("path,patient_id,grade\n" + "\n".join(rows) + "\n")
    split = ["P02,train", "P30,train", "P18,train", "P50,train", "P03,validation", "P36,validation",
             "P51,test", "P99,test"]  # fmt: skip
    (tmp_path / "split.csv").write_text("patient_id,split\n" + "\n".join(split) + "\n")
    path = tmp_path / "manifest.csv"
    assert call("manifest", tmp_path / "labels.csv", "--output", path) == 0
    assert call("split", path, "--import", tmp_path / "split.csv") == 0
    return path


def test_records_are_refused_and_none_are_written(leaky, tmp_path, capsys):
    settings = override(Config(), ["roi.method=sector"]).roi
    write_manifest(add_roi_columns(read_manifest(leaky), leaky, settings), leaky)
    assert call("records", leaky, "--output", tmp_path / "records") == 1
    error = capsys.readouterr().err
    assert "a near-duplicate under two patients in different splits: 1" in error
    assert "patient_id=P30 and P99 in train and test" in error
    assert not list(tmp_path.rglob("*.tfrecord*"))


def test_an_experiment_is_refused_before_it_trains(leaky, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("STEATOSIS_MLRUNS", str(tmp_path / "mlruns"))
    config = override(Config(), ["roi.method=sector", "model.weights=random"])
    words = ["--manifest", str(leaky), "--runs-dir", str(tmp_path / "runs")]
    assert script("", "leaky", config, words) == 1
    assert "a near-duplicate under two patients in different splits: 1" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.tfrecord*"))
    assert not list((tmp_path / "runs").rglob("model.*"))


def test_leaks_lists_them_and_drops_copies_into_rejected_csv(leaky, tmp_path, capsys):
    assert call("leaks", leaky) == 1
    assert "near-duplicate" in capsys.readouterr().out
    assert len(read_manifest(leaky)) == 8  # only looked at

    assert call("leaks", leaky, "--drop-copies") == 0
    assert "dropped copy.jpg of patient_id=P99: copy of frame_id=" in capsys.readouterr().out
    kept = {"P02", "P03", "P18", "P30", "P36", "P50", "P51"}
    assert set(read_manifest(leaky)["patient_id"]) == kept
    with (tmp_path / "manifest.rejected.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert (row["path"], row["patient_id"]) == ("copy.jpg", "P99")
    assert row["reason"].startswith("copy of frame_id=")

    kept = [line for line in (tmp_path / "split.csv").read_text().splitlines() if "P99" not in line]
    (tmp_path / "split.csv").write_text("\n".join(kept) + "\n")
    assert call("split", leaky, "--import", tmp_path / "split.csv") == 0
    assert call("leaks", leaky) == 0


def test_leaks_merges_patients_that_are_one(leaky, capsys):
    assert call("leaks", leaky, "--merge-patients") == 0
    assert "merged patient_id=P99 into P30" in capsys.readouterr().out
    table = read_manifest(leaky)
    assert (table["patient_id"] == "P30").sum() == 2
    assert "split" not in pd.read_csv(leaky).columns
