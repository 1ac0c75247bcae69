"""Do the probabilities mean what they say: temperature, calibration errors, reliability."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special
from sklearn.linear_model import LogisticRegression

from steatosis_tf.evaluation.checks import checked_labels, checked_probabilities
from steatosis_tf.evaluation.ordinal import CUMULATIVE_TASKS, cumulative_scores
from steatosis_tf.evaluation.proper_scores import SMALLEST, proper_score_terms
from steatosis_tf.evaluation.proportions import wilson_interval

#: Range in which a temperature is sought; outside, the model is certain or knows nothing.
TEMPERATURE_RANGE = (0.05, 20.0)

BINNINGS = ("equal_mass", "equal_width")


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
    labels, scores = _checked(grades_true, probabilities)

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


def calibration_metrics(
    grades_true: ArrayLike, probabilities: ArrayLike, num_bins: int = 10
) -> dict[str, Any]:
    """Calibration of the four probabilities and of each cumulative task.

    Args:
        grades_true: `(N,)` int 0..3.
        probabilities: `(N, 4)`, rows sum to 1.
        num_bins: bins of both binnings.

    Returns:
        `nll` (nats, mean over rows; probabilities below 1e-12 count as 1e-12), `brier` (mean over
        rows of the sum over grades of squared errors, 0 to 2), `confidence` (the probability of
        the predicted grade against how often it is right) and one entry per cumulative task,
        each with `brier` (0 to 1, binary), `mean_probability` and `observed` (calibration in the
        large), `slope` and `intercept` of a logistic fit to the logit of the probability (1 and 0
        is perfect, a slope below 1 is over-confidence; Cox 1958; None with a `note` where the fit
        does not exist), `ece_equal_mass`, `ece_equal_width` and the `reliability` tables behind
        them; `num_bins`, `num_rows`.

        The expected calibration error is the mean over rows of |observed - mean probability| of
        the row's bin. Equal-mass bins have edges at the quantiles, equal-width bins at
        0, 1 / num_bins, .. 1. With few rows per bin it is above 0 for a perfect model too.

    Raises:
        ValueError: bad labels, probabilities or num_bins.
    """
    labels, scores = _checked(grades_true, probabilities)
    predicted = scores.argmax(axis=1)
    terms = proper_score_terms(labels, scores)
    result: dict[str, Any] = {
        "num_rows": len(labels),
        "num_bins": num_bins,
        "nll": float(terms["nll"].mean()),
        "brier": float(terms["brier"].mean()),
        "confidence": _binary(predicted == labels, scores.max(axis=1), num_bins),
    }
    for task, score in cumulative_scores(scores).items():
        result[task] = _binary(labels >= CUMULATIVE_TASKS[task], score, num_bins)
    return result


def reliability_table(
    happened: ArrayLike,
    probability: ArrayLike,
    num_bins: int = 10,
    binning: str = "equal_mass",
) -> list[dict[str, Any]]:
    """Observed share against mean probability, bin by bin, for a reliability diagram.

    Args:
        happened: `(N,)` bool.
        probability: `(N,)` float, 0 to 1.
        num_bins: number of bins; empty ones are left out, equal probabilities stay together.
        binning: `equal_mass` or `equal_width`.

    Returns:
        Per bin `low`, `high` (edges), `num_rows`, `mean_probability`, `observed`, and Wilson's
        `observed_low`, `observed_high` (right for patients; for frames too narrow).

    Raises:
        ValueError: unknown binning, fewer than one bin, or lengths that differ.
    """
    outcome, values = np.asarray(happened, dtype=bool), np.asarray(probability, dtype=np.float64)
    if binning not in BINNINGS or num_bins < 1 or outcome.shape != values.shape or not len(values):
        raise ValueError(
            f"Expected binning out of {', '.join(BINNINGS)}, num_bins >= 1 and two (N,) arrays. "
            f"Received: binning={binning!r}, num_bins={num_bins}, shapes={outcome.shape}, "
            f"{values.shape}."
        )
    if binning == "equal_width":
        edges = np.linspace(0, 1, num_bins + 1)
    else:
        edges = np.unique(np.quantile(values, np.linspace(0, 1, num_bins + 1)))
    index = np.clip(np.searchsorted(edges, values, "right") - 1, 0, max(len(edges) - 2, 0))
    rows = []
    for position in np.unique(index):
        inside = index == position
        hits, total = int(outcome[inside].sum()), int(inside.sum())
        low, high = wilson_interval(hits, total)
        rows.append(
            {
                "low": float(edges[position]),
                "high": float(edges[min(position + 1, len(edges) - 1)]),
                "num_rows": total,
                "mean_probability": float(values[inside].mean()),
                "observed": hits / total,
                "observed_low": low,
                "observed_high": high,
            }
        )
    return rows


def _checked(grades_true: ArrayLike, probabilities: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = checked_labels(grades_true), checked_probabilities(probabilities)
    if len(labels) != len(scores):
        raise ValueError(
            "Expected one row of probabilities per label. "
            f"Received: labels={len(labels)}, probabilities={len(scores)}."
        )
    return labels, scores


def _nll(labels: np.ndarray, scores: np.ndarray) -> float:
    return float(proper_score_terms(labels, scores)["nll"].mean())


def _binary(happened: np.ndarray, probability: np.ndarray, num_bins: int) -> dict[str, Any]:
    result: dict[str, Any] = {
        "brier": float(((probability - happened) ** 2).mean()),
        "mean_probability": float(probability.mean()),
        "observed": float(happened.mean()),
    }
    result |= _logistic_recalibration(happened, probability)
    for binning in BINNINGS:
        table = reliability_table(happened, probability, num_bins, binning)
        gaps = [row["num_rows"] * abs(row["observed"] - row["mean_probability"]) for row in table]
        result[f"ece_{binning}"] = sum(gaps) / len(happened)
        result.setdefault("reliability", {})[binning] = table
    return result


def _logistic_recalibration(happened: np.ndarray, probability: np.ndarray) -> dict[str, Any]:
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
