"""The store of measurements, and the verb that measures one patient, on simulated frames."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from experiments.fat_rules.measurements import MEASURED_COLUMNS, measure_study
from steatosis_tf import cli
from steatosis_tf.cohort.manifest import build_manifest, read_manifest
from steatosis_tf.grades import NOTICE
from steatosis_tf.quantitative.measure import NAMES, UNITS
from steatosis_tf.roi.views import Rectangle
from steatosis_tf.sources.phantom.study import simulate_patient


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest of two patients with two frames each."""
    folder = tmp_path_factory.mktemp("study")
    rows = []
    for number, fat in enumerate((2.0, 80.0)):
        frames, _ = simulate_patient(fat, num_frames=2, generator=np.random.default_rng(number))
        for index, frame in enumerate(frames):
            name = f"{number}_{index}.png"
            cv2.imwrite(str(folder / name), frame)
            rows.append({"path": name, "patient_id": f"P{number}", "fat_percent": fat, "bmi": 25})
    pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)
    build_manifest(folder / "labels.csv", folder / "manifest.csv")
    return folder / "manifest.csv"


def test_measured_once_and_kept(study, tmp_path):
    frames = read_manifest(study)
    calls = []

    def cortex(patient_id, frame, sector, liver):
        calls.append(patient_id)
        return None if len(calls) in (1, 2, 4) else Rectangle(250, 300, 20, 20)

    first = measure_study(frames, study, tmp_path, cortex)
    assert calls == ["P0", "P0", "P1", "P1"]
    assert first.notna()["attenuation_db_per_depth"].all()
    # P0 never shows cortex; P1's second frame takes the number of its first.
    index = first["hepatorenal_db"]
    assert index[:2].isna().all()
    assert index[2] == index[3]
    assert first["bmi"].tolist() == [25.0] * 4
    stored = sorted(tmp_path.rglob("*.npy"))
    assert len(stored) == 4
    stored[0].unlink()  # as after a kill
    again = measure_study(frames, study, tmp_path, cortex)
    assert len(calls) == 5
    polar = [name for name in MEASURED_COLUMNS if name.startswith("polar_")]
    pd.testing.assert_frame_equal(again[polar], first[polar])
    assert first["attenuation_db_per_depth"][2:].min() > first["attenuation_db_per_depth"][:2].max()


def test_a_frame_that_cannot_be_measured_is_named(study, tmp_path):
    frames = read_manifest(study).head(1)
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((300, 300), np.uint8))
    frames = frames.assign(path="black.png", frame_id="f00", pixels_sha256="0" * 64)
    with pytest.raises(ValueError, match=r"frame_id=f00: .* Take it out of the manifest"):
        measure_study(frames, tmp_path / "manifest.csv", tmp_path)


def test_verb_prints_for_programs_and_for_people(study, tmp_path, capsys):
    paths = [str(study.parent / "1_0.png"), str(study.parent / "1_1.png")]
    assert cli.main(["measure", *paths, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["notice"] == NOTICE
    assert len(values["frames"]) == 2
    both = [frame["attenuation_db_per_depth"] for frame in values["frames"]]
    assert values["mean"]["attenuation_db_per_depth"] == pytest.approx(np.mean(both))
    assert values["mean"]["attenuation_db_per_cm"] is None
    scale = ["--dynamic-range-db", "60", "--px-per-cm", "20"]
    assert cli.main(["measure", paths[0], *scale]) == 0
    text = capsys.readouterr().out
    assert NOTICE in text
    assert "assumed" not in text
    assert all(NAMES[name] in text for name in UNITS)


def test_verb_says_what_is_wrong(tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((300, 300), np.uint8))
    assert cli.main(["measure", str(tmp_path / "black.png")]) == 1
    assert "black.png" in capsys.readouterr().err
    with pytest.raises(SystemExit):  # it measures, and grades nothing
        cli.main(["measure", "none.png", "--model", "model.json"])
    assert "--model" in capsys.readouterr().err


def test_the_old_name_of_the_verb_says_the_new_one(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["physics", "frame.png"])
    assert "physics is called measure now" in capsys.readouterr().err
