"""The hepatorenal index of a run's own frames, real ones, from the run directory."""

import cv2
import numpy as np
import pandas as pd
import pytest

from steatosis_tf.cohort.manifest import build_manifest
from steatosis_tf.evaluation.clinical.baselines import write_hepatorenal
from steatosis_tf.evaluation.report.run import read_run
from steatosis_tf.quantitative.measure import measure_frame
from steatosis_tf.sources.images import read_frame


def test_two_frames_of_each_graded_patient_are_measured(real_data_dir, tmp_path):
    """Frames 2 and 7 of ten; a patient without a grade is left out, a frame of noise is empty."""
    images = real_data_dir / "byra2018" / "images"
    noise = np.random.default_rng(0).integers(0, 255, (240, 320), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "noise.png"), noise)
    rows = [f"{images}/P36_F{k:02d}.png,P36,Mild" for k in range(10)]
    rows += [f"{images}/P40_F00.png,P40,", "noise.png,P50,Severe"]
    (tmp_path / "labels.csv").write_text("path,patient_id,grade\n" + "\n".join(rows) + "\n")
    build_manifest(tmp_path / "labels.csv", tmp_path / "manifest.csv", strict=True)
    (tmp_path / "config.json").write_text("{}")

    path = write_hepatorenal(tmp_path, tmp_path / "cache")
    table = pd.read_csv(path)
    assert list(table["patient_id"]) == ["P36", "P36", "P50"]
    expected = [measure_frame(read_frame(images / f"P36_F0{k}.png")).hepatorenal_db for k in (2, 7)]
    np.testing.assert_allclose(table["hepatorenal_index"], [*expected, np.nan], rtol=1e-9)
    assert np.isfinite(expected).all()

    of_patient = read_run(tmp_path).hepatorenal.set_index("patient_id")["hepatorenal_index"]
    assert of_patient["P36"] == pytest.approx(np.mean(expected))
    before = path.read_bytes()
    (store,) = (tmp_path / "cache").glob("*.csv")
    written = store.stat().st_mtime_ns
    assert write_hepatorenal(tmp_path, tmp_path / "cache").read_bytes() == before
    assert store.stat().st_mtime_ns == written, "nothing was measured again"


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Expected a manifest"):
        write_hepatorenal(tmp_path, tmp_path)
