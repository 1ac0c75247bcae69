"""Variance of an AUC and test of two AUCs on the same patients, without resampling.

DeLong, DeLong and Clarke-Pearson 1988 (Biometrics 44, 837); with several frames per patient the
structural components are summed by patient first (Obuchowski 1997, Biometrics 53, 567), which
is DeLong's formula again when each patient has one row.
"""

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from steatosis_tf.evaluation.ordinal import CUMULATIVE_TASKS, cumulative_scores
from steatosis_tf.evaluation.paired import check_same_study
from steatosis_tf.evaluation.resampling import code_patients
from steatosis_tf.evaluation.scores import labels_and_probabilities


def delong_test(
    scores: pd.DataFrame,
    baseline_scores: pd.DataFrame,
    task: str = "at_least_mild",
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Compare the pooled AUCs of two models for one cumulative task on the same patients.

    Args:
        scores: patient table (or frame table: rows are then grouped by patient).
        baseline_scores: the same for the baseline, with the same rows.
        task: `at_least_mild`, `at_least_moderate` or `severe`.
        confidence: 0.95 for a 95 % interval.

    Returns:
        `task`, `auc`, `baseline_auc`, `difference`, `standard_error`, `low`, `high`, `z`,
        `p_value` (two-sided), `num_positive`, `num_negative` (patients), `note`. Where the test
        is undefined (fewer than two patients on a side, or no variance) numbers are None and
        `note` says why.

    Raises:
        ValueError: unknown task, a table that cannot be evaluated, or different patients,
            grades or numbers of rows per patient.
    """
    if task not in CUMULATIVE_TASKS:
        raise ValueError(
            f"Expected a task out of {', '.join(CUMULATIVE_TASKS)}. Received: task={task!r}."
        )
    key = "frame_id" if "frame_id" in scores else "patient_id"
    if "repeat" in scores or "repeat" in baseline_scores:
        raise ValueError("Expected scores of one repeat. Received: a column repeat. Choose one.")
    check_same_study(code_patients(scores), code_patients(baseline_scores))
    if key not in baseline_scores or set(scores[key]) != set(baseline_scores[key]):
        raise ValueError(
            f"Expected the same {key} in both tables. Received: others. Use patient scores."
        )
    baseline = baseline_scores.set_index(key).loc[scores[key]].reset_index()
    labels, probabilities = labels_and_probabilities(scores)
    columns = [cumulative_scores(probabilities)[task]]
    columns.append(cumulative_scores(labels_and_probabilities(baseline)[1])[task])
    positive = labels >= CUMULATIVE_TASKS[task]
    patient = scores["patient_id"].to_numpy()
    return {"task": task} | _compare(positive, np.stack(columns), patient, confidence)


def auc_covariance(
    positive: np.ndarray, scores: np.ndarray, cluster: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """AUCs of K scores on the same rows and their covariance.

    Args:
        positive: `(N,)` bool.
        scores: `(K, N)` float, higher means more likely positive; ties count half.
        cluster: `(N,)` id of the independent unit each row belongs to, all rows of a unit on one
            side; None: every row is a unit.

    Returns:
        `(K,)` AUCs and `(K, K)` covariance. NaN where a side has fewer than two units.
    """
    units = np.arange(len(positive)) if cluster is None else cluster
    aucs, positives, negatives = [], [], []
    for score in scores:
        ranks = stats.rankdata(score)
        own = stats.rankdata(score[positive]), stats.rankdata(score[~positive])
        num_positive, num_negative = len(own[0]), len(own[1])
        # Share of the other side that each row outranks (placement value).
        placed = (ranks[positive] - own[0]) / num_negative
        outranked = 1 - (ranks[~positive] - own[1]) / num_positive
        aucs.append(placed.mean())
        positives.append(placed - placed.mean())
        negatives.append(outranked - outranked.mean())
    covariance = _side_covariance(np.array(positives), units[positive])
    covariance = covariance + _side_covariance(np.array(negatives), units[~positive])
    return np.array(aucs), covariance


def _side_covariance(components: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Covariance `(K, K)` of the mean of components `(K, n)`, whose units are independent."""
    code = np.unique(units, return_inverse=True)[1]
    num_units = code.max() + 1
    if num_units < 2:
        return np.full((len(components), len(components)), np.nan)
    sums = np.stack([np.bincount(code, weights=row) for row in components])
    return num_units / (num_units - 1) * (sums @ sums.T) / components.shape[1] ** 2


def _compare(
    positive: np.ndarray, scores: np.ndarray, patient: np.ndarray, confidence: float
) -> dict[str, Any]:
    sides = len(set(patient[positive])), len(set(patient[~positive]))
    result: dict[str, Any] = dict.fromkeys(
        ("auc", "baseline_auc", "difference", "standard_error", "low", "high", "z", "p_value")
    )
    result |= {"num_positive": sides[0], "num_negative": sides[1], "note": None}
    if min(sides) < 1:
        return result | {"note": "The AUC is undefined: all patients are on one side."}
    aucs, covariance = auc_covariance(positive, scores, patient)
    difference = float(aucs[0] - aucs[1])
    result |= {"auc": float(aucs[0]), "baseline_auc": float(aucs[1]), "difference": difference}
    if min(sides) < 2:
        return result | {"note": "No test: one side has a single patient."}
    contrast = np.array([1.0, -1.0])
    error = float(np.sqrt(max(contrast @ covariance @ contrast, 0.0)))
    if error < 1e-12:
        return result | {"note": "No test: the difference has no variance on these patients."}
    reach = float(stats.norm.ppf((1 + confidence) / 2)) * error
    z = difference / error
    return result | {
        "standard_error": error,
        "low": difference - reach,
        "high": difference + reach,
        "z": z,
        "p_value": float(2 * stats.norm.sf(abs(z))),
    }
