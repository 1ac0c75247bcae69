"""What a report computes anew from the scores of a run: intervals, subgroups, repeatability."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from steatosis_tf.evaluation.intervals import bootstrap_intervals
from steatosis_tf.evaluation.metrics import compute_metrics
from steatosis_tf.evaluation.repeatability import repeatability
from steatosis_tf.evaluation.run_checks import Check, check_run
from steatosis_tf.evaluation.run_record import RunRecord
from steatosis_tf.evaluation.scores import labels_and_probabilities
from steatosis_tf.evaluation.subgroups import subgroup_metrics
from steatosis_tf.grades import SCORE_COLUMNS

#: Covariates looked at if the manifest has them.
COVARIATES = ("sex", "age", "bmi", "scanner", "manufacturer", "model", "site")


@dataclass(frozen=True)
class Analysis:
    """Results that follow from the score files alone; None where a file is absent.

    Attributes:
        checks: the self-check.
        metrics: level ("patient", "frame") -> metrics recomputed from the scores. A report prints
            these, never the file: an edited metrics.json cannot reach it.
        intervals: level -> metric name -> entry of `intervals.bootstrap_intervals`.
        subgroups: column -> result of `subgroups.subgroup_metrics`.
        subgroup_notes: covariate -> why it was not looked at.
        repeatability: of `repeatability.repeatability`, or None.
        num_resamples: bootstrap resamples behind every interval.
    """

    checks: list[Check]
    metrics: dict[str, dict[str, Any]]
    intervals: dict[str, dict[str, dict[str, Any]]]
    subgroups: dict[str, dict[str, Any]]
    subgroup_notes: dict[str, str]
    repeatability: dict[str, Any] | None
    num_resamples: int


def analyse_run(run: RunRecord, *, num_resamples: int = 2000, seed: int = 0) -> Analysis:
    """Compute everything a report adds to the files of a run.

    Args:
        run: of `run_record.read_run`.
        num_resamples: bootstrap resamples, 2,000 or more for a report.
        seed: of the bootstrap.
    """
    metrics, intervals = {}, {}
    for level, table in (("patient", run.patient_scores), ("frame", run.frame_scores)):
        if table is not None:
            labels, scores = labels_and_probabilities(table)
            fat = table["fat_percent"].to_numpy(np.float64) if "fat_percent" in table else None
            metrics[level] = compute_metrics(labels, scores, fat)
            intervals[level] = bootstrap_intervals(table, num_resamples=num_resamples, seed=seed)
    subgroups, notes = _subgroups(run, num_resamples, seed)
    return Analysis(
        checks=check_run(run),
        metrics=metrics,
        intervals=intervals,
        subgroups=subgroups,
        subgroup_notes=notes,
        repeatability=None if run.frame_scores is None else repeatability(run.frame_scores),
        num_resamples=num_resamples,
    )


def coverage_risk(patient_scores: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Error rate among the k most certain patients, for every k.

    Certainty is the probability of the predicted grade. Patients of equal certainty are kept or
    left together, because nothing tells who of them goes first.

    Args:
        patient_scores: patient score table.

    Returns:
        coverage `(c,)`, rising to 1, and the error rate `(c,)` at it, both 0 to 1.
    """
    labels, scores = labels_and_probabilities(patient_scores)
    certainty = scores.max(axis=1)
    order = np.argsort(-certainty, kind="stable")
    wrong = (scores.argmax(axis=1) != labels)[order]
    kept = np.arange(1, len(order) + 1)
    last_of_tie = np.append(np.diff(certainty[order]) != 0, True)
    return (kept / len(order))[last_of_tie], (wrong.cumsum() / kept)[last_of_tie]


def calibration_errors(table: pd.DataFrame, num_bins: int = 10) -> dict[str, float]:
    """Expected calibration error of the predicted grade, Brier score and negative log-likelihood.

    Args:
        table: score table.
        num_bins: equal bins of the predicted grade's probability, from 0 to 1.

    Returns:
        `ece` (0 to 1), `brier` (sum over the four grades, 0 to 2) and `nll` (nats; probabilities
        below 1e-7, the resolution of a float32 softmax, count as 1e-7).
    """
    labels, scores = labels_and_probabilities(table)
    stated, right = scores.max(axis=1), scores.argmax(axis=1) == labels
    edges = np.linspace(0, 1, num_bins + 1)
    bins = np.clip(np.digitize(stated, edges) - 1, 0, num_bins - 1)
    gaps = np.bincount(bins, weights=stated - right, minlength=num_bins)
    truth = np.eye(len(SCORE_COLUMNS))[labels]
    return {
        "ece": float(np.abs(gaps).sum() / len(labels)),
        "brier": float(((scores - truth) ** 2).sum(axis=1).mean()),
        "nll": float(-np.log(np.maximum((scores * truth).sum(axis=1), 1e-7)).mean()),
    }


def _subgroups(
    run: RunRecord, num_resamples: int, seed: int
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    found: dict[str, dict[str, Any]] = {}
    notes: dict[str, str] = {}
    if run.patient_scores is None or run.manifest is None:
        return found, {"all": "patient_scores.csv or manifest.csv is absent or damaged."}
    for column in COVARIATES:
        if column not in run.manifest.columns:
            notes[column] = "not in the manifest"
            continue
        if (run.manifest[column].astype(str).str.strip() == "").all():
            notes[column] = "empty for every frame"
            continue
        try:
            found[column] = subgroup_metrics(
                run.patient_scores, run.manifest, column, num_resamples=num_resamples, seed=seed
            )
        except ValueError as error:
            notes[column] = str(error)
    return found, notes
