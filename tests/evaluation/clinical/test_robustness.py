"""Robustness on a model whose answer is known: the grade is the mean grey level."""

import numpy as np
import pandas as pd
import pytest

from steatosis_tf.evaluation.clinical.robustness import CURVES, PERTURBATIONS, robustness_curves

LEVELS = np.array([40, 80, 120, 160])


def by_brightness(rois):
    """Grade by nearest level, with some probability left for the others."""
    mean = rois.reshape(len(rois), -1).mean(axis=1)
    nearest = np.abs(mean[:, None] - LEVELS).argmin(axis=1)
    return np.eye(4)[nearest] * 0.88 + 0.03


@pytest.fixture(scope="module")
def frames():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2, 3] * 3, 2)  # 12 patients, two frames each
    patients = np.repeat([f"P{k:02d}" for k in range(12)], 2)
    noise = rng.integers(-3, 4, (24, 32, 32, 1))
    rois = (LEVELS[labels][:, None, None, None] + noise).astype(np.uint8)
    return rois, labels, patients


def _value(table, perturbation, strength, metric):
    row = table[
        (table["perturbation"] == perturbation)
        & (table["strength"] == strength)
        & (table["metric"] == metric)
    ]
    assert len(row) == 1
    return row["value"].iloc[0]


def test_gain_moves_every_patient_by_the_grade_it_should(frames):
    table = robustness_curves(
        by_brightness, *frames, shifted=lambda down, right: frames[0], num_resamples=100
    )
    assert set(table["perturbation"]) == set(PERTURBATIONS)
    assert set(table["metric"]) == {*CURVES, "mean_shift", "changed_share"}
    for name in PERTURBATIONS:
        assert _value(table, name, 0, "accuracy") == 1
        assert _value(table, name, 0, "mean_shift") == 0
    # 12 dB are 51 grey levels: one grade (40 levels) up, but Severe stays: 9 of 12 change.
    assert _value(table, "gain", 12, "accuracy") == pytest.approx(3 / 12)
    assert _value(table, "gain", 12, "changed_share") == pytest.approx(9 / 12)
    # Expected grade rises by 0.85 to 0.88 per grade of 9 of 12 patients: 0.88 * 9 / 12.
    assert _value(table, "gain", 12, "mean_shift") == pytest.approx(0.88 * 9 / 12)
    assert _value(table, "gain", -12, "mean_shift") == pytest.approx(-0.88 * 9 / 12)
    assert _value(table, "jpeg", 30, "accuracy") == 1
    row = table[(table["perturbation"] == "gain") & (table["strength"] == 12)].set_index("metric")
    # All Severe right, all others wrong: no resample within grades differs, and the table says so.
    assert "Every resample gave this number" in row.loc["accuracy", "reason"]
    assert pd.isna(row.loc["accuracy", "low"])
    assert (table["num_patients"] == 12).all()


def test_one_grade_only_gives_reasons_not_nan(frames):
    rois, labels, patients = frames
    normal = labels == 0
    table = robustness_curves(
        by_brightness,
        rois[normal],
        labels[normal],
        patients[normal],
        shifted=lambda down, right: rois[normal],
        perturbations={"gain": PERTURBATIONS["gain"]},
        num_resamples=100,
    )
    auc = table[table["metric"] == "auc_at_least_mild"]
    assert auc["value"].isna().all()
    assert (auc["reason"] != "").all()
    assert _value(table, "gain", 12, "changed_share") == 1


def test_same_seed_same_table(frames):
    some = {"speckle": PERTURBATIONS["speckle"]}
    first, second = (
        robustness_curves(
            by_brightness, *frames, shifted=lambda down, right: frames[0], perturbations=some,
            num_resamples=100, seed=3,
        )
        for _ in range(2)
    )  # fmt: skip
    pd.testing.assert_frame_equal(first, second)


def test_frames_cropped_anew_stand_in_for_a_shift(frames):
    rois, labels, patients = frames
    asked = []

    def shifted(down_px, right_px):
        asked.append((down_px, right_px))
        return rois + np.uint8(40) if down_px == 16 else rois

    both = {name: PERTURBATIONS[name] for name in ("roi_shift_depth", "roi_shift_lateral")}
    table = robustness_curves(
        by_brightness, rois, labels, patients, perturbations=both, shifted=shifted,
        num_resamples=100,
    )  # fmt: skip
    assert asked == [(k, 0) for k in (-32, -16, 16, 32)] + [(0, k) for k in (-32, -16, 16, 32)]
    assert _value(table, "roi_shift_depth", 16, "accuracy") == pytest.approx(3 / 12)
    assert _value(table, "roi_shift_lateral", 16, "accuracy") == 1
