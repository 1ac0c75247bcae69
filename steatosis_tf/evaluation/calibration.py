"""Do the probabilities mean what they say: temperature, and the line of calibration."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special
from sklearn.linear_model import LogisticRegression

from steatosis_tf.evaluation.checks import checked_labels, checked_probabilities
from steatosis_tf.evaluation.proper_scores import SMALLEST, proper_score_terms

#: Range in which a temperature is sought; outside, the model is certain or knows nothing.
TEMPERATURE_RANGE = (0.05, 20.0)


def fit_temperature(grades_true: ArrayLike, probabilities: ArrayLike) -> dict[str, Any]:
    """Temperature that minimises the negative log-likelihood (Guo 2017), on validation scores.

    Probabilities to the power 1 / temperature, scaled to sum 1, are the softmax of the logits
    divided by the temperature; so the model need not give its logits. The order of grades in a
    row stays, and so does every predicted grade.

    Args:
        grades_true: `(N,)` int 0..3 of the validation part.
        probabilities: `(N, 4)`, rows sum to 1.

    Returns:
        `temperature` (above 1: the model was over-confident), `nll_before`, `nll_after`,
        `num_rows`, `note` (if the optimum lies at the end of `TEMPERATURE_RANGE`).

    Raises:
        ValueError: bad labels or probabilities.
    """
    labels, scores = checked_labels(grades_true), checked_probabilities(probabilities)
    if len(labels) != len(scores):
        raise ValueError(
            "Expected one row of probabilities per label. "
            f"Received: labels={len(labels)}, probabilities={len(scores)}."
        )

    def loss(log_temperature: float) -> float:
        return _nll(labels, apply_temperature(scores, float(np.exp(log_temperature))))

    bounds = tuple(np.log(TEMPERATURE_RANGE))
    found = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    temperature = float(np.exp(found.x))
    note = None
    low, high = TEMPERATURE_RANGE
    if not low * 1.2 < temperature < high / 1.2:
        note = (
            f"The best temperature lies at the end of {list(TEMPERATURE_RANGE)}: "
            f"{len(labels)} validation rows do not determine it."
        )
    return {
        "temperature": temperature,
        "nll_before": _nll(labels, scores),
        "nll_after": _nll(labels, apply_temperature(scores, temperature)),
        "num_rows": len(labels),
        "note": note,
    }


def apply_temperature(probabilities: ArrayLike, temperature: float) -> np.ndarray:
    """Probabilities `(N, 4)` at another temperature.

    Raises:
        ValueError: bad probabilities or a temperature that is not above 0.
    """
    scores = checked_probabilities(probabilities)
    if not 0 < temperature < np.inf:
        raise ValueError(f"Expected temperature above 0. Received: temperature={temperature}.")
    return special.softmax(np.log(np.maximum(scores, SMALLEST)) / temperature, axis=1)


def calibration_line(happened: np.ndarray, probability: np.ndarray) -> dict[str, Any]:
    """Logistic fit of a yes-or-no question to the logit of its probability (Cox 1958).

    Args:
        happened: `(N,)` bool.
        probability: `(N,)` float64, 0 to 1.

    Returns:
        `slope` and `intercept`, 1 and 0 if the probabilities are right; a slope below 1 is
        over-confidence. None where the fit does not exist; `note` then says why.
    """
    nothing: dict[str, Any] = {"slope": None, "intercept": None}
    if happened.all() or not happened.any():
        return nothing | {"note": "No calibration slope: all outcomes are alike."}
    yes, no = probability[happened], probability[~happened]
    # Overlap is what makes the likelihood have a maximum (Albert and Anderson 1984).
    if yes.min() >= no.max() or yes.max() <= no.min():
        return nothing | {"note": "No calibration slope: the scores separate the outcomes."}
    logit = special.logit(np.clip(probability, SMALLEST, 1 - SMALLEST))
    fit = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(logit[:, None], happened)
    return {
        "slope": float(fit.coef_[0, 0]),
        "intercept": float(fit.intercept_[0]),
        "note": None,
    }


def _nll(labels: np.ndarray, scores: np.ndarray) -> float:
    return float(proper_score_terms(labels, scores)["nll"].mean())
