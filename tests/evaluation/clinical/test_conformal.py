"""Conformal grade sets: contiguity, the promise, and small validation parts."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from scipy import special

from steatosis_tf.evaluation.clinical.calibration import (
    evaluate_conformal,
    fit_conformal,
    grade_sets,
)
from steatosis_tf.grades import GRADES, SCORE_COLUMNS


def patients(labels: np.ndarray, scores: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "patient_id": [f"{row:05d}" for row in range(len(labels))],
            "grade": np.asarray(GRADES)[labels],
            **dict(zip(SCORE_COLUMNS, scores.T, strict=True)),
        }
    )


def sample(rng: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.integers(0, 4, num)
    place = labels + rng.normal(0, 0.9, num)
    return labels, special.softmax(-((np.arange(4) - place[:, None]) ** 2), axis=1)


def test_sets_grow_by_the_likelier_neighbour_by_hand() -> None:
    scores = np.array([[0.1, 0.2, 0.4, 0.3]])
    grown = {0.0: [2], 0.4: [2, 3], 0.7: [1, 2, 3], 0.9: [0, 1, 2, 3]}
    for threshold, grades in grown.items():
        for inside in (threshold, threshold + 0.05):
            held = grade_sets({"threshold": inside}, scores)[0]
            assert np.flatnonzero(held).tolist() == grades
    # Severe is likelier than Mild, but Mild stands between: a set has no gap.
    held = grade_sets({"threshold": 0.5}, np.array([[0.5, 0.1, 0.1, 0.3]]))[0]
    assert held.tolist() == [True, True, False, False]


def test_sets_are_never_empty_and_never_have_a_gap() -> None:
    _, scores = sample(np.random.default_rng(0), 500)
    scores[:24] = np.array(list(itertools.permutations([0.0, 0.0, 0.3, 0.7])))
    for threshold in (0.0, 0.5, 0.9, 1.0):
        held = grade_sets({"threshold": threshold}, scores)
        assert held.any(axis=1).all()
        assert (np.abs(np.diff(np.pad(held, ((0, 0), (1, 1))).astype(int))).sum(axis=1) == 2).all()
    assert grade_sets({"threshold": 1.0}, scores).all()


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_coverage_is_kept_on_average_over_validation_draws(coverage: float) -> None:
    rng = np.random.default_rng(1)
    held = []
    for _ in range(150):
        fit = fit_conformal(patients(*sample(rng, 49)), coverage)
        labels, scores = sample(rng, 200)
        held.append(grade_sets(fit, scores)[np.arange(200), labels].mean())
    assert coverage - 0.01 < np.mean(held) < coverage + 0.06


def test_threshold_is_the_promised_rank() -> None:
    """19 patients, 90 %: the 18th smallest of the masses; here they are 0 but for two."""
    scores = np.tile([0.7, 0.3, 0.0, 0.0], (19, 1))
    labels = np.zeros(19, dtype=int)
    labels[:2] = 1
    assert fit_conformal(patients(labels, scores), 0.9)["threshold"] == pytest.approx(0.7)
    labels[1] = 0
    assert fit_conformal(patients(labels, scores), 0.9)["threshold"] == 0


def test_too_few_patients_promise_nothing() -> None:
    labels, scores = sample(np.random.default_rng(0), 8)
    fit = fit_conformal(patients(labels, scores), 0.9)
    assert "8 validation patients cannot promise 90%: it takes 9" in fit["note"]
    assert grade_sets(fit, scores).all()
    labels, scores = sample(np.random.default_rng(0), 9)
    assert fit_conformal(patients(labels, scores), 0.9)["note"] is None


def test_report_of_the_test_part() -> None:
    rng = np.random.default_rng(3)
    fit = fit_conformal(patients(*sample(rng, 100)), 0.9)
    labels, scores = sample(rng, 60)
    table = patients(labels, scores)[labels != 3]
    found = evaluate_conformal(fit, table)
    json.dumps(found, allow_nan=False)
    held = grade_sets(fit, scores[labels != 3])
    assert found["mean_size"] == pytest.approx(held.sum(axis=1).mean())
    assert sum(found["size_counts"].values()) == len(table)
    assert found["coverage_by_grade"]["Severe"]["value"] is None
    assert found["coverage"]["low"] < found["coverage"]["value"]


def test_refusals() -> None:
    table = patients(*sample(np.random.default_rng(0), 20))
    with pytest.raises(ValueError, match="each patient_id once"):
        fit_conformal(pd.concat([table, table]))
