"""DeLong's variance and test against published output and against brute force."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from steatosis_tf.evaluation.metrics.comparison import auc_covariance, delong_test
from steatosis_tf.grades import SCORE_COLUMNS

# Ovarian cancer patients of DeLong, DeLong and Clarke-Pearson 1988, compared number by number with
# the SAS/STAT User's Guide, PROC LOGISTIC, "Comparing Receiver Operating Characteristic Curves"
# (support.sas.com, docset statug 68162, statug_logistic_examples08.htm, example 72.8; 43 patients,
# those of the 49 with no test missing): albumin, total protein, K-G score (SAS takes 10 - score),
# benefit from surgery.
OVARIAN = """
3.0 5.8 10 0   3.2 6.3  5 1   3.9 6.8  3 1   2.8 4.8  6 0   3.2 5.8  3 1   0.9 4.0  5 0
2.5 5.7  8 0   1.6 5.6  5 1   3.8 5.7  5 1   3.7 6.7  6 1   3.2 5.4  4 1   3.8 6.6  6 1
4.1 6.6  5 1   3.6 5.7  5 1   4.3 7.0  4 1   3.6 6.7  4 0   2.3 4.4  6 1   4.2 7.6  4 0
4.0 6.6  6 0   3.5 5.8  6 1   3.8 6.8  7 1   3.0 4.7  8 0   4.5 7.4  5 1   3.7 7.4  5 1
3.1 6.6  6 1   4.1 8.2  6 1   4.3 7.0  5 1   4.3 6.5  4 1   3.2 5.1  5 1   2.6 4.7  6 1
3.3 6.8  6 0   1.7 4.0  7 0   3.7 6.1  5 1   3.3 6.3  7 1   4.2 7.7  6 1   3.5 6.2  5 1
2.9 5.7  9 0   2.1 4.8  7 1   2.8 6.2  8 0   4.0 7.0  7 1   3.3 5.7  6 1   3.7 6.9  5 1
3.6 6.6  5 1
"""


def ovarian() -> tuple[np.ndarray, np.ndarray]:
    table = np.array(OVARIAN.split(), dtype=float).reshape(-1, 4)
    return table[:, 3] == 1, np.stack([table[:, 0], 10 - table[:, 2], table[:, 1]])


def by_definition(
    positive: np.ndarray, scores: np.ndarray, cluster: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AUCs and covariance from all pairs, summed per cluster (Obuchowski 1997), in plain loops."""
    kernels = []
    for score in scores:
        rows = [[(p > n) + 0.5 * (p == n) for n in score[~positive]] for p in score[positive]]
        kernels.append(np.array(rows, dtype=float))
    aucs = np.array([kernel.mean() for kernel in kernels])
    covariance = np.zeros((len(scores), len(scores)))
    for axis, units in ((1, cluster[positive]), (0, cluster[~positive])):
        names = sorted(set(units))
        for a, first in enumerate(kernels):
            for b, second in enumerate(kernels):
                total = 0.0
                for unit in names:
                    own = units == unit
                    total += (first.mean(axis=axis)[own] - aucs[a]).sum() * (
                        second.mean(axis=axis)[own] - aucs[b]
                    ).sum()
                covariance[a, b] += len(names) / (len(names) - 1) * total / len(units) ** 2
    return aucs, covariance


def test_ovarian_example_of_delong_1988() -> None:
    """The joint test SAS prints for these data: chi-square 2.5340 on 2 df, p = 0.2817.

    It needs all three areas and the whole covariance, which also equal the definition.
    """
    positive, scores = ovarian()
    aucs, covariance = auc_covariance(positive, scores)
    assert aucs[1:] == pytest.approx([0.7258, 0.6478], abs=5e-5)
    contrast = np.array([[1, -1, 0], [0, -1, 1]])  # albumin and total protein against K-G score
    difference, spread = contrast @ aucs, contrast @ covariance @ contrast.T
    chi_square = difference @ np.linalg.solve(spread, difference)
    assert chi_square == pytest.approx(2.5340, abs=5e-5)
    assert stats.chi2.sf(chi_square, 2) == pytest.approx(0.2817, abs=5e-5)
    expected_aucs, expected = by_definition(positive, scores, np.arange(43))
    np.testing.assert_allclose(aucs, expected_aucs)
    np.testing.assert_allclose(covariance, expected)


def patient_table(positive: np.ndarray, score: np.ndarray) -> pd.DataFrame:
    p_mild = score / 20
    return pd.DataFrame(
        {
            "patient_id": [f"{row:02d}" for row in range(len(positive))],
            "fold": 0,
            "grade": np.where(positive, "Mild", "Normal"),
            **dict(zip(SCORE_COLUMNS, [1 - p_mild, p_mild, 0 * p_mild, 0 * p_mild], strict=True)),
        }
    )


def test_the_door_gives_the_contrast_of_the_definition() -> None:
    positive, (albumin, score, _) = ovarian()
    result = delong_test(patient_table(positive, albumin), patient_table(positive, score))
    aucs, covariance = by_definition(positive, np.stack([albumin, score]), np.arange(43))
    error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert result["difference"] == pytest.approx(aucs[0] - aucs[1])
    assert result["standard_error"] == pytest.approx(error)
    assert result["low"] == pytest.approx(aucs[0] - aucs[1] - 1.959964 * error, abs=1e-6)
    assert result["high"] == pytest.approx(aucs[0] - aucs[1] + 1.959964 * error, abs=1e-6)
    assert result["p_value"] == pytest.approx(stats.chi2.sf(result["z"] ** 2, 1))
    assert (result["num_positive"], result["num_negative"], result["note"]) == (31, 12, None)


def test_row_order_of_the_baseline_does_not_matter() -> None:
    positive, (albumin, score, _) = ovarian()
    first, second = patient_table(positive, albumin), patient_table(positive, score)
    assert delong_test(first, second) == delong_test(first, second[::-1])


def test_frames_of_a_patient_are_one_unit() -> None:
    rng = np.random.default_rng(0)
    positive = np.repeat([True, True, True, False, False, False, False], 3)
    cluster = np.repeat(np.arange(7), 3)
    scores = np.round(rng.normal(positive, 1, size=(2, 21)), 1)
    found_aucs, found = auc_covariance(positive, scores, cluster)
    aucs, covariance = by_definition(positive, scores, cluster)
    np.testing.assert_allclose(found_aucs, aucs)
    np.testing.assert_allclose(found, covariance)


def test_undefined_tests_say_why() -> None:
    positive, (albumin, score, _) = ovarian()
    first, second = patient_table(positive, albumin), patient_table(positive, score)
    result = delong_test(first[positive], second[positive])
    assert result["auc"] is None
    assert "all patients are on one side" in result["note"]
    one = positive | (np.arange(43) == 0)
    result = delong_test(first[one], second[one])
    assert result["difference"] is not None
    assert (result["p_value"], result["low"]) == (None, None)
    assert "single patient" in result["note"]
    assert "no variance" in delong_test(first, first)["note"]
