"""Two models on the same patients: the difference of every metric, by paired bootstrap."""

from typing import Any

import numpy as np
import pandas as pd

from steatosis_tf.evaluation.intervals import (
    DEFAULT_RESAMPLES,
    bca_acceleration,
    check_arguments,
    make_entry,
)
from steatosis_tf.evaluation.resampling import (
    PatientTable,
    bootstrap_weights,
    code_patients,
    jackknife_weights,
)
from steatosis_tf.grades import GRADES


def paired_bootstrap(
    scores: pd.DataFrame,
    baseline_scores: pd.DataFrame,
    *,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
    confidence: float = 0.95,
    method: str = "bca",
) -> dict[str, dict[str, Any]]:
    """Difference of every pooled metric between two models, patients resampled together.

    Args:
        scores: frame or patient table of the model of interest.
        baseline_scores: the same of the baseline. Patients and grades must agree; frames, folds
            and repeats may differ (another ROI may have rejected other frames).
        num_resamples: bootstrap resamples; the same patients are drawn for both models.
        seed: of the draws.
        confidence: 0.95 for a 95 % interval.
        method: `bca` or `percentile`.

    Returns:
        Dotted metric name -> the keys of `bootstrap_intervals`, where `value`, `low` and `high`
        are of the difference model minus baseline, and `model`, `baseline` (their values) and
        `p_value` (two-sided: twice the smaller share of resamples on one side of 0, at least
        2 / (num_resamples + 1)). Many metrics are compared, so a small p-value of one of them is
        no finding unless that metric was named beforehand.

    Raises:
        ValueError: if a table cannot be evaluated, or patients or grades differ.
    """
    check_arguments(num_resamples, confidence, method)
    model, baseline = code_patients(scores), code_patients(baseline_scores)
    check_same_study(model, baseline)
    rng = np.random.default_rng(seed)
    weights = bootstrap_weights(model.grade, num_resamples, rng)
    left_out, names = jackknife_weights(model.grade, rng)
    everyone = np.ones((1, model.num_patients), dtype=weights.dtype)
    stacked = np.concatenate([everyone, weights, left_out])
    first, second = model.metrics(stacked), baseline.metrics(stacked)
    entries = {}
    for name in first:
        if name not in second:
            continue
        difference = first[name] - second[name]
        replicates, jackknife = np.split(difference[1:], [num_resamples])
        acceleration = bca_acceleration(jackknife, names)
        entry = make_entry(difference[0], replicates, acceleration, confidence, method)
        entries[name] = entry | {
            "model": _none_if_nan(first[name][0]),
            "baseline": _none_if_nan(second[name][0]),
            "num_patients": model.num_patients,
            "p_value": _two_sided_p(replicates) if entry["method"] else None,
        }
    return entries


def check_same_study(model: PatientTable, baseline: PatientTable) -> None:
    """Refuse to pair two tables of different patients or grades.

    Raises:
        ValueError: naming patients that only one table has, or that differ in grade.
    """
    only_one = np.setxor1d(model.patient_ids, baseline.patient_ids)
    if len(only_one):
        raise ValueError(
            "Expected the same patients for both models. Received: "
            f"{len(only_one)} patients with scores of one model only, first "
            f"{only_one[:5].tolist()}. Compare runs with the same manifest and split."
        )
    differs = model.grade != baseline.grade
    if differs.any():
        label = int(np.flatnonzero(differs)[0])
        raise ValueError(
            "Expected the same grades for both models. Received: "
            f"{int(differs.sum())} patients with two grades, first {model.patient_ids[label]}: "
            f"{GRADES[model.grade[label]]} and {GRADES[baseline.grade[label]]}."
        )


def _none_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _two_sided_p(differences: np.ndarray) -> float:
    """Share of resamples that contradict the sign of the difference; never exactly 0."""
    defined = differences[~np.isnan(differences)]
    smaller = min((defined <= 0).sum(), (defined >= 0).sum())
    return float(min(1.0, 2 * (smaller + 1) / (len(defined) + 1)))
