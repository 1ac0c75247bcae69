"""What abstaining buys: error rate against the share of rows that are graded at all."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from steatosis_tf.evaluation.checks import checked_labels, checked_probabilities


def coverage_risk_curve(
    grades_true: ArrayLike, probabilities: ArrayLike, confidence: ArrayLike | None = None
) -> dict[str, Any]:
    """Error rate and error in grades among the most confident rows, for every share of them.

    Args:
        grades_true: `(N,)` int 0..3.
        probabilities: `(N, 4)`, rows sum to 1.
        confidence: `(N,)` finite; rows with lower values are refused first. Default: the
            probability of the predicted grade.

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
    distance = np.abs(labels - scores.argmax(axis=1))
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
