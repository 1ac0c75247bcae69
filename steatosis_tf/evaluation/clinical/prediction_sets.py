"""Sets of neighbouring grades that hold the true grade with a stated probability, and abstention.

Split conformal prediction (Vovk 2005) with ordinal sets (Lu, Angelopoulos and Pomerantz 2022):
a set starts at the most probable grade and grows by its more probable neighbour. The score of a
patient is the probability mass gathered before the true grade joins. The promise holds on average
over new patients who are exchangeable with the validation patients (same hospital, scanner, mix of
grades), not for each grade, and it is made per patient: frames of one patient are not exchangeable
draws, so only patient scores are accepted.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from steatosis_tf.evaluation.metrics.intervals import wilson_interval
from steatosis_tf.evaluation.metrics.scores import (
    checked_labels,
    checked_probabilities,
    labels_and_probabilities,
)
from steatosis_tf.grades import GRADES
from steatosis_tf.model.joint import TINY, mass_before


def fit_conformal(validation_scores: pd.DataFrame, coverage: float = 0.9) -> dict[str, Any]:
    """Threshold on the gathered mass, from patients the model was not trained on.

    Args:
        validation_scores: patient table of the validation part.
        coverage: probability that the set holds the true grade, 0 to 1.

    Returns:
        `coverage`, `threshold` (a grade joins the set when the mass gathered before it is at most
        this), `num_patients`, `note` (if there are too few patients: the set is then always all
        four grades).

    Raises:
        ValueError: a frame table, repeated patients, a bad table, or coverage outside 0..1.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"Expected coverage between 0 and 1. Received: coverage={coverage}.")
    labels, probabilities = _patients(validation_scores)
    mass = np.sort(mass_before(probabilities)[np.arange(len(labels)), labels])
    # The smallest rank that keeps the promise for the next patient, n + 1 together.
    rank = int(np.ceil((len(mass) + 1) * coverage - TINY))
    note, threshold = None, 1.0
    if rank <= len(mass):
        threshold = float(mass[rank - 1])
    else:
        needed = int(np.ceil(coverage / (1 - coverage) - TINY))
        note = (
            f"{len(mass)} validation patients cannot promise {coverage:.0%}: it takes {needed}. "
            "Every set holds all four grades."
        )
    return {
        "coverage": coverage,
        "threshold": threshold,
        "num_patients": len(mass),
        "note": note,
    }


def grade_sets(conformal: dict[str, Any], probabilities: np.ndarray) -> np.ndarray:
    """Which grades each patient's set holds, `(N, 4)` bool: never empty, never with a gap.

    Args:
        conformal: from `fit_conformal`.
        probabilities: `(N, 4)`, rows sum to 1.

    Raises:
        ValueError: bad probabilities.
    """
    return mass_before(checked_probabilities(probabilities)) <= conformal["threshold"] + TINY


def evaluate_conformal(conformal: dict[str, Any], scores: pd.DataFrame) -> dict[str, Any]:
    """Coverage and size of the sets on test patients.

    Returns:
        `stated_coverage`, `coverage` and `coverage_by_grade` ({value, low, high} with Wilson's
        interval, None where a grade is absent), `mean_size` (grades), `size_counts`
        (patients with a set of 1, 2, 3, 4 grades), `single_grade_accuracy` (share right among
        the sets of one grade), `num_patients`, `note` of the fit.

    Raises:
        ValueError: a frame table, repeated patients or a bad table.
    """
    labels, probabilities = _patients(scores)
    sets = grade_sets(conformal, probabilities)
    size, held = sets.sum(axis=1), sets[np.arange(len(labels)), labels]
    return {
        "stated_coverage": conformal["coverage"],
        "coverage": _share(held),
        "coverage_by_grade": {
            grade: _share(held[labels == label]) for label, grade in enumerate(GRADES)
        },
        "mean_size": float(size.mean()),
        "size_counts": {str(k): int((size == k).sum()) for k in range(1, len(GRADES) + 1)},
        "single_grade_accuracy": _share(held[size == 1]),
        "num_patients": len(labels),
        "note": conformal["note"],
    }


def _patients(scores: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    if "frame_id" in scores or "repeat" in scores:
        raise ValueError(
            "Expected patient scores, one row per patient. Received: a column "
            f"{'frame_id' if 'frame_id' in scores else 'repeat'}. Use patient_scores() first."
        )
    return labels_and_probabilities(scores)


def _share(held: np.ndarray) -> dict[str, Any]:
    if not len(held):
        return {"value": None, "low": None, "high": None, "num_patients": 0}
    low, high = wilson_interval(int(held.sum()), len(held))
    return {"value": float(held.mean()), "low": low, "high": high, "num_patients": len(held)}


def coverage_risk_curve(
    grades_true: ArrayLike,
    probabilities: ArrayLike,
    confidence: ArrayLike | None = None,
    named: np.ndarray | None = None,
) -> dict[str, Any]:
    """Error rate and error in grades among the most confident rows, for every share of them.

    Args:
        grades_true: `(N,)` int 0..3.
        probabilities: `(N, 4)`, rows sum to 1.
        confidence: `(N,)` finite; rows with lower values are refused first. Default: the
            highest probability of the row.
        named: `(N,)` labels that a decision rule names, of `scores.named_labels`; the most
            probable grades if None.

    Returns:
        Lists of equal length, most confident first, one entry per distinct confidence (rows
        that tie are graded or refused together): `coverage` (share graded, 0 to 1), `threshold`
        (lowest confidence graded), `risk` (share of graded rows that are wrong),
        `mean_absolute_error` (grades); and `area` under the risk (mean of the risk over rows
        in this order; a useless confidence gives about the full risk), `full_risk`, `num_rows`.

    Raises:
        ValueError: bad labels, probabilities or confidence.
    """
    labels, scores = checked_labels(grades_true), checked_probabilities(probabilities)
    certainty = scores.max(axis=1) if confidence is None else np.asarray(confidence, dtype=float)
    if len(labels) != len(scores) or certainty.shape != labels.shape:
        raise ValueError(
            "Expected one row of probabilities and one confidence per label. Received: "
            f"labels={len(labels)}, probabilities={len(scores)}, confidence={certainty.shape}."
        )
    if not np.isfinite(certainty).all():
        raise ValueError("Expected finite confidence. Received: NaN or infinite values.")
    distance = np.abs(labels - (scores.argmax(axis=1) if named is None else named))
    values, group = np.unique(-certainty, return_inverse=True)
    graded = np.cumsum(np.bincount(group))
    risk = np.cumsum(np.bincount(group, weights=distance > 0)) / graded
    error = np.cumsum(np.bincount(group, weights=distance)) / graded
    return {
        "coverage": (graded / len(labels)).tolist(),
        "threshold": (-values).tolist(),
        "risk": risk.tolist(),
        "mean_absolute_error": error.tolist(),
        "area": float(risk[group].mean()),
        "full_risk": float(risk[-1]),
        "num_rows": len(labels),
    }
