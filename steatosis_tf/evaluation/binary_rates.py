"""Sensitivity, specificity and predictive values of a yes-or-no call, with intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from steatosis_tf.evaluation.intervals import MAX_UNDEFINED_SHARE, percentile_interval
from steatosis_tf.evaluation.proportions import predictive_value_intervals, wilson_interval


def patient_counts(
    positive: np.ndarray, called: np.ndarray, patient: np.ndarray, num_patients: int
) -> np.ndarray:
    """True positives, false negatives, true negatives, false positives of each patient `(P, 4)`."""
    cell = np.where(positive, 1 - called, 2 + called)
    counts = np.zeros((num_patients, 4))
    np.add.at(counts, (patient, cell), 1)
    return counts


def binary_rates(
    counts: np.ndarray,
    weights: np.ndarray | None,
    prevalences: Sequence[float],
    confidence: float,
) -> dict[str, Any]:
    """Counts, sensitivity, specificity, predictive values, and those at stated prevalences.

    Args:
        counts: from `patient_counts`.
        weights: `(B, P)` bootstrap weights, for patient-cluster percentile intervals; None where
            every patient has one row: Wilson, and logit at stated prevalences.
        prevalences: shares of positives, between 0 and 1.
        confidence: 0.95 for 95 % intervals.
    """
    total = counts.sum(axis=0)
    names = ("true_positive", "false_negative", "true_negative", "false_positive")
    result: dict[str, Any] = {name: int(count) for name, count in zip(names, total, strict=True)}
    replicates = None if weights is None else weights @ counts
    for name, hit, miss in (
        ("sensitivity", 0, 1),
        ("specificity", 2, 3),
        ("ppv", 0, 3),
        ("npv", 2, 1),
    ):
        shares = None
        if replicates is not None:
            with np.errstate(invalid="ignore"):
                shares = replicates[:, hit] / (replicates[:, hit] + replicates[:, miss])
        result[name] = _proportion(total[hit], total[hit] + total[miss], shares, confidence)
    result["at_prevalence"] = [
        {"prevalence": prevalence} | _predictive_values(total, replicates, prevalence, confidence)
        for prevalence in prevalences
    ]
    return result


def _proportion(
    hits: float, trials: float, shares: np.ndarray | None, confidence: float
) -> dict[str, Any]:
    if trials == 0:
        return {"value": None, "low": None, "high": None, "method": None}
    value = float(hits / trials)
    if shares is None:
        low, high = wilson_interval(int(hits), int(trials), confidence)
        return {"value": value, "low": low, "high": high, "method": "wilson"}
    return {"value": value} | _percentiles(shares, confidence)


def _percentiles(replicates: np.ndarray, confidence: float) -> dict[str, Any]:
    defined = replicates[~np.isnan(replicates)]
    if len(defined) < (1 - MAX_UNDEFINED_SHARE) * len(replicates) or np.ptp(defined) < 1e-12:
        return {"low": None, "high": None, "method": None}
    low, high = percentile_interval(defined, confidence)
    return {"low": low, "high": high, "method": "percentile"}


def _predictive_values(
    total: np.ndarray, replicates: np.ndarray | None, prevalence: float, confidence: float
) -> dict[str, Any]:
    hits, missed, spared, alarms = total
    if not hits + missed or not spared + alarms:
        nothing = {"value": None, "low": None, "high": None, "method": None}
        return {"ppv": nothing, "npv": nothing}
    if replicates is None:
        return predictive_value_intervals(
            (int(hits), int(hits + missed)),
            (int(spared), int(spared + alarms)),
            prevalence,
            confidence,
        )
    rows = np.vstack([total, replicates])
    with np.errstate(invalid="ignore"):
        sensitivity = rows[:, 0] / (rows[:, 0] + rows[:, 1])
        specificity = rows[:, 2] / (rows[:, 2] + rows[:, 3])
        caught, spare = prevalence * sensitivity, (1 - prevalence) * specificity
        ppv = caught / (caught + (1 - prevalence) * (1 - specificity))
        npv = spare / (spare + prevalence * (1 - sensitivity))
    return {
        name: {"value": None if np.isnan(values[0]) else float(values[0])}
        | _percentiles(values[1:], confidence)
        for name, values in (("ppv", ppv), ("npv", npv))
    }
