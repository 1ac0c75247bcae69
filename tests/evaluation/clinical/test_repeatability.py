"""Within-patient variation against hand-worked numbers and a published example."""

import numpy as np
import pandas as pd
import pytest

from steatosis_tf.evaluation.clinical.repeatability import (
    repeatability,
    visit_repeatability,
)
from steatosis_tf.grades import SCORE_COLUMNS


def _frames(expected):
    """Frames with given expected grades, mass on the two neighbouring grades."""
    rows = []
    for patient, values in expected.items():
        for value in values:
            low = min(int(value), 2)
            scores = np.zeros(4)
            scores[low], scores[low + 1] = 1 - (value - low), value - low
            rows.append((patient, *scores))
    return pd.DataFrame(rows, columns=["patient_id", *SCORE_COLUMNS])


def test_two_patients_by_hand():
    found = repeatability(_frames({"A": [0.0, 0.2], "B": [2.0, 2.4], "C": [1.0]}))
    # Variances 0.02 and 0.08, one degree of freedom each: mean 0.05.
    assert found["within_sd"] == pytest.approx(np.sqrt(0.05))
    assert found["limits_of_agreement"] == pytest.approx(
        [-1.96 * np.sqrt(0.1), 1.96 * np.sqrt(0.1)]
    )
    assert (found["num_patients"], found["num_frames"], found["num_single"]) == (2, 4, 1)
    # Means 0.1 and 2.2: mean square 2 x (1.05^2 + 1.05^2) = 4.41; (4.41 - 0.05) / 2 = 2.18.
    assert found["between_sd"] == pytest.approx(np.sqrt(2.18))
    assert found["icc"] == pytest.approx(2.18 / 2.23)
    assert found["mixed_share"] == 0
    assert found["notes"] == []


def test_frames_are_named_by_the_decision_rule():
    """Half of the probability is reached at Mild in both frames, most of it lies elsewhere."""
    rows = [("A", 0.4, 0.3, 0.2, 0.1), ("A", 0.1, 0.4, 0.0, 0.5)]
    frames = pd.DataFrame(rows, columns=["patient_id", *SCORE_COLUMNS])
    assert repeatability(frames)["mixed_share"] == 1
    assert repeatability(frames.assign(decision_rule="median"))["mixed_share"] == 0


def test_the_interval_of_the_within_patient_sd_holds_the_truth():
    """60 studies of 40 patients with 3 frames, SD 0.2; per patient the spread itself varies."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(60):
        noise = rng.normal(0, 0.2, (40, 3)) * rng.choice([0.5, np.sqrt(1.75)], (40, 1))
        values = 1.0 + noise  # mean variance 0.2^2 * (0.25 + 1.75) / 2 = 0.2^2
        found = repeatability(_frames({f"P{k}": list(row) for k, row in enumerate(values)}))
        low, high = found["within_sd_interval"]
        assert low < found["within_sd"] < high
        held += low <= 0.2 <= high
    assert held >= 52  # 95 % of 60 is 57, less two standard errors of 1.7


def test_icc_of_shrout_and_fleiss_1979():
    # Psychol Bull 86:420, Table 2: 6 targets, 4 judges; ICC(1,1) = .17 in their Table 4.
    ratings = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    scaled = {str(k): [value * 0.3 for value in row] for k, row in enumerate(ratings)}
    found = repeatability(_frames(scaled))
    assert round(found["icc"], 2) == 0.17
    assert found["mixed_share"] == 1


def test_single_frames_say_so_instead_of_nan():
    found = repeatability(_frames({"A": [0.0], "B": [1.0]}))
    assert found["within_sd"] is None
    assert found["icc"] is None
    assert found["notes"] == ["No patient has two frames, so nothing can be said."]
    one = repeatability(_frames({"A": [0.0, 1.0]}))
    assert one["icc"] is None
    assert one["within_sd"] == pytest.approx(np.sqrt(0.5))
    assert one["within_sd_interval"] is None
    still = repeatability(_frames({"A": [1.0, 1.0], "B": [1.0, 1.0]}))
    assert still["within_sd_interval"] is None
    assert (still["within_sd"], still["icc"]) == (0, None)


def test_a_limit_over_visits_by_hand():
    """Ten patients; nine pairs of visits 1 apart, one of two frames each: 0 and 2, mean 1."""
    patients = [f"P{k}" for k in range(9) for _ in range(2)] + ["P9"] * 4 + ["P10", "P10"]
    visits = [f"V{k}" for k in range(18)] + ["A", "A", "B", "B"] + ["C", ""]
    values = np.array([0.0, 1.0] * 9 + [0.0, 2.0, 2.0, 2.0] + [5.0, 9.0])
    found = visit_repeatability(pd.Series(patients), pd.Series(visits), values)
    # Every pair of visit means is 1 apart: variance 0.5 each. The last was seen once.
    assert found["within_sd"] == pytest.approx(np.sqrt(0.5))
    assert found["coefficient"] == pytest.approx(1.96)
    assert (found["num_patients"], found["num_visits"], found["note"]) == (10, 20, None)


def test_a_limit_over_visits_holds_95_percent_of_pairs():
    rng = np.random.default_rng(1)
    values = np.repeat(rng.normal(5, 2, 400), 2) + rng.normal(0, 0.6, 800)
    patients = pd.Series(np.repeat(np.arange(400), 2).astype(str))
    visits = pd.Series(np.arange(800).astype(str))
    found = visit_repeatability(patients, visits, values)
    low, high = found["within_sd_interval"]
    assert low < 0.6 < high
    again = rng.normal(0, 0.6, (100_000, 2))
    assert np.mean(np.abs(np.diff(again)) < found["coefficient"]) == pytest.approx(0.95, abs=0.02)


def test_few_patients_seen_twice_give_no_limit():
    patients, visits = pd.Series(["A", "A", "B"]), pd.Series(["1", "2", "3"])
    found = visit_repeatability(patients, visits, np.array([1.0, 2.0, 3.0]))
    assert found["coefficient"] is None
    assert found["note"] == "1 patients were seen twice; a limit needs 10."
