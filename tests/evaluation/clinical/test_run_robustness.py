"""Robustness of a run directory, from frames on disk to the table."""

import json

import cv2
import numpy as np
import pandas as pd
import pytest

from steatosis_tf.cli import main
from steatosis_tf.evaluation.clinical.robustness import write_robustness
from steatosis_tf.grades import GRADES, SCORE_COLUMNS

BOX = (80, 120, 100, 100)  # top, left, height, width in px of the frame


def by_brightness(rois):
    mean = rois.reshape(len(rois), -1).mean(axis=1)
    nearest = np.abs(mean[:, None] - [50, 90, 130, 170]).argmin(axis=1)
    return np.eye(4)[nearest] * 0.8 + 0.05


def _run(folder, num_folds=1):
    """Eight patients; in the frame brightness falls by 0.4 grey levels per px of depth."""
    rng = np.random.default_rng(0)
    rows = []
    for patient in range(8):
        label = patient % 4
        frame = np.zeros((320, 340), np.uint8)
        fan = cv2.ellipse(frame.copy(), (170, 10), (280, 280), 90, -40, 40, 255, -1) > 0
        level = 50 + 40 * label + 0.4 * (130 - np.arange(320))[:, None]
        tissue = np.clip(level + rng.normal(0, 3, frame.shape), 1, 255)
        frame[fan] = tissue[fan].astype(np.uint8)
        cv2.imwrite(str(folder / f"{patient}.png"), frame)
        rows.append((f"f{patient}", f"{patient}.png", f"P{patient}", GRADES[label], "", "0", *BOX))
    columns = ["frame_id", "path", "patient_id", "grade", "fat_percent", "pixels_sha256",
               "roi_top", "roi_left", "roi_height", "roi_width"]  # fmt: skip
    manifest = pd.DataFrame(rows, columns=columns)
    manifest.to_csv(folder / "manifest.csv", index=False)
    scores = manifest[["frame_id", "patient_id", "grade"]].assign(fold=0, fat_percent=np.nan)
    scores[list(SCORE_COLUMNS)] = np.eye(4)[scores["grade"].map(GRADES.index)]
    scores["predicted"] = scores["grade"]
    scores.to_csv(folder / "frame_scores.csv", index=False)
    split = [(k % num_folds, f"P{k}", "test") for k in range(8)]
    pd.DataFrame(split, columns=["fold", "patient_id", "split"]).to_csv(folder / "split.csv")
    (folder / "config.json").write_text(json.dumps({"evaluation": {"aggregation": "mean"}}))
    return folder


def test_real_shift_moves_along_the_gradient_of_the_frame(tmp_path):
    path = write_robustness(_run(tmp_path), by_brightness, num_resamples=100)
    table = pd.read_csv(path)

    def value(name, strength, metric):
        row = table[(table["perturbation"] == name) & (table["strength"] == strength)
                    & (table["metric"] == metric)]  # fmt: skip
        return row["value"].item()

    assert value("gain", 0, "accuracy") == 1
    # 12 dB are 51 grey levels: every patient but the two Severe goes up one grade.
    assert value("gain", 12, "accuracy") == pytest.approx(2 / 8)
    # 32 px of 224 are 14 px of the frame, 5.7 grey levels: too little to change a grade.
    assert value("roi_shift_depth", 32, "changed_share") == 0


def test_cross_validated_run_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"hold-out run\. Received: 2 folds.*learned from every pat"
    ):
        write_robustness(_run(tmp_path, num_folds=2), by_brightness)


def test_missing_frame_is_named(tmp_path):
    _run(tmp_path)
    (tmp_path / "3.png").unlink()
    with pytest.raises(ValueError, match="missing or unreadable file"):
        write_robustness(tmp_path, by_brightness)


def test_a_run_of_a_bundle_is_told_what_to_do(tmp_path, capsys):
    (_run(tmp_path) / "bundle").mkdir()
    assert main(["robustness", str(tmp_path)]) == 1
    assert "run with model.onnx, as of recipe paper" in capsys.readouterr().err
