"""Do the probabilities mean what they say: calibration, prediction sets, abstention.

The expected calibration error is a mean of absolute gaps, so it is above 0 for a perfectly
calibrated model too, and the more so the fewer patients a bin holds: about 0.15 with 44 patients in
10 bins. A bootstrap of the patients adds the same bias once more; with 44 patients its percentile
interval held the truth in 0 to 59 % of simulated studies. So samples are drawn from a smooth guess
of the truth instead, a logistic recalibration (Cox 1958). How far they exceed the guess is taken
off below; above, where a guess that is too smooth would take off too much, only their spread is
added.

Prediction sets are split conformal (Vovk 2005) with ordinal sets (Lu, Angelopoulos and Pomerantz
2022): a set starts at the most probable grade and grows by its more probable neighbour. The score
of a patient is the probability mass gathered before the true grade joins. The promise holds on
average over new patients who are exchangeable with the validation patients (same hospital, scanner,
mix of grades), not for each grade. Frames of one patient are not exchangeable draws, so only
patient scores are accepted.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import optimize, special
from sklearn.linear_model import LogisticRegression

from steatosis_tf.evaluation.metrics.intervals import CONFIDENCE, proportion
from steatosis_tf.evaluation.metrics.scores import labels_and_probabilities
from steatosis_tf.evaluation.metrics.weighted import SMALLEST, proper_score_terms
from steatosis_tf.grades import GRADES
from steatosis_tf.model.joint import TINY, mass_before

#: Range in which a temperature is sought; outside, the model is certain or knows nothing.
TEMPERATURE_RANGE = (0.05, 20.0)


def fit_temperature(grades_true: ArrayLike, probabilities: ArrayLike) -> dict[str, Any]:
    """Temperature that minimises the negative log-likelihood (Guo 2017), on validation scores.

    Probabilities to the power 1 / temperature, scaled to sum 1, are the softmax of the logits
    divided by the temperature; so the model need not give its logits. The order of grades in a
    row stays, and so does the most probable one.

    Args:
        grades_true: `(N,)` int 0..3 of the validation part.
        probabilities: `(N, 4)`, rows sum to 1.

    Returns:
        `temperature` (above 1: the model was over-confident), `nll_before`, `nll_after`,
        `num_rows`, `note` (if the optimum lies at the end of `TEMPERATURE_RANGE`).
    """
    labels, scores = np.asarray(grades_true, int), np.asarray(probabilities, np.float64)

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
    """Probabilities `(N, 4)` at another temperature."""
    return special.softmax(np.log(np.maximum(probabilities, SMALLEST)) / temperature, axis=1)


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
    return {"slope": float(fit.coef_[0, 0]), "intercept": float(fit.intercept_[0]), "note": None}


def _nll(labels: np.ndarray, scores: np.ndarray) -> float:
    return float(proper_score_terms(labels, scores)["nll"].mean())


BINNINGS = ("equal_mass", "equal_width")
NUM_BINS = 10

#: Simulated samples; quantiles of 2.5 % are steady to about a twentieth of the interval.
NUM_SAMPLES = 500

# Beyond either end of an interval.
_TAIL = (1 - CONFIDENCE) / 2

#: Samples worked on at once: bounds memory to 64 arrays of the patients.
_CHUNK = 64

#: Weight of the pull towards "calibrated as it is", so that separated outcomes have a fit too.
_RIDGE = 0.1


def ece_interval(
    happened: ArrayLike,
    probability: ArrayLike,
    num_bins: int = NUM_BINS,
    binning: str = "equal_mass",
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Expected calibration error of a yes-or-no question, with a 95 % interval.

    Args:
        happened: `(N,)` bool, one row per patient.
        probability: `(N,)` float, 0 to 1.
        num_bins: number of bins.
        binning: `equal_mass`: edges at the quantiles, equal probabilities stay together;
            `equal_width`: edges at 0, 1 / num_bins, .. 1.
        seed: of the simulation.

    Returns:
        `value`, the mean over rows of |observed - mean probability| of the row's bin; `low` and
        `high` for the error over many patients; `chance`, which a perfectly calibrated model with
        these probabilities stays under in all but 2.5 % of samples of this size. `low` is
        0 where the value is under `chance`. The interval held the truth in 93 % or more of
        simulated studies of 44 and of 200 patients, for four kinds of miscalibration
        (`tests/evaluation/clinical/test_calibration_intervals.py`).
    """
    outcome = np.asarray(happened, dtype=np.float64)
    values = np.asarray(probability, dtype=np.float64)
    value = float(_errors(values[None], outcome[None], num_bins, binning)[0])
    guess = _recalibrated(values, outcome)
    true_error = _errors(values[None], guess[None], num_bins, binning)[0]
    rng = np.random.default_rng(seed)
    noise = _simulated(values, guess, num_bins, binning, rng) - true_error
    chance = float(np.quantile(_simulated(values, values, num_bins, binning, rng), 1 - _TAIL))
    under, middle, over = (float(level) for level in np.quantile(noise, [_TAIL, 0.5, 1 - _TAIL]))
    return {
        "value": value,
        "low": 0.0 if value <= chance else max(0.0, value - over),
        "high": min(1.0, value + middle - under),
        "chance": chance,
    }


def _recalibrated(probability: np.ndarray, outcome: np.ndarray) -> np.ndarray:
    """Probabilities `(N,)` after a logistic recalibration to the outcomes, slightly held back."""
    logit = special.logit(np.clip(probability, SMALLEST, 1 - SMALLEST))

    def loss(change: np.ndarray) -> float:
        moved = logit + change[0] + change[1] * logit
        likelihood = outcome * moved - np.logaddexp(0, moved)
        return float(_RIDGE / 2 * (change @ change) - likelihood.sum())

    change = optimize.minimize(loss, np.zeros(2), method="Nelder-Mead").x
    return special.expit(logit + change[0] + change[1] * logit)


def _simulated(
    probability: np.ndarray,
    truth: np.ndarray,
    num_bins: int,
    binning: str,
    rng: np.random.Generator,
) -> np.ndarray:
    """Errors `(NUM_SAMPLES,)` of samples whose outcomes happen with the probabilities `truth`."""
    parts = []
    for start in range(0, NUM_SAMPLES, _CHUNK):
        size = (min(_CHUNK, NUM_SAMPLES - start), len(probability))
        drawn = rng.integers(0, len(probability), size)
        outcomes = (rng.random(size) < truth[drawn]).astype(np.float64)
        parts.append(_errors(probability[drawn], outcomes, num_bins, binning))
    return np.concatenate(parts)


def _errors(
    probability: np.ndarray, outcome: np.ndarray, num_bins: int, binning: str
) -> np.ndarray:
    """Expected calibration errors `(B,)` of samples `(B, N)`."""
    inner = np.linspace(0, 1, num_bins + 1)[1:-1]
    if binning == "equal_mass":
        edges = np.quantile(probability, np.linspace(0, 1, num_bins + 1), axis=1)
        # The highest probabilities stay together, also where several edges fall on them.
        inner = np.where(edges[1:-1] < edges[-1], edges[1:-1], np.inf)
    else:
        inner = np.repeat(inner[:, None], len(probability), axis=1)
    place = sum(probability >= edge[:, None] for edge in inner) if len(inner) else 0
    place = place + num_bins * np.arange(len(probability))[:, None]
    gaps = np.bincount(
        place.ravel(), (outcome - probability).ravel(), minlength=num_bins * len(probability)
    )
    return np.abs(gaps.reshape(-1, num_bins)).sum(axis=1) / probability.shape[1]


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
        ValueError: a bad table.
    """
    labels, probabilities = labels_and_probabilities(validation_scores)
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
    return {"coverage": coverage, "threshold": threshold, "num_patients": len(mass), "note": note}


def grade_sets(conformal: dict[str, Any], probabilities: np.ndarray) -> np.ndarray:
    """Which grades each patient's set holds, `(N, 4)` bool: never empty, never with a gap.

    Args:
        conformal: from `fit_conformal`.
        probabilities: `(N, 4)`, rows sum to 1.
    """
    return mass_before(probabilities) <= conformal["threshold"] + TINY


def evaluate_conformal(conformal: dict[str, Any], scores: pd.DataFrame) -> dict[str, Any]:
    """Coverage and size of the sets on test patients.

    Returns:
        `stated_coverage`, `coverage` and `coverage_by_grade` ({value, low, high} with Wilson's
        interval, None where a grade is absent), `mean_size` (grades), `size_counts`
        (patients with a set of 1, 2, 3, 4 grades), `single_grade_accuracy` (proportion right among
        the sets of one grade), `num_patients`, `note` of the fit.

    Raises:
        ValueError: a bad table.
    """
    labels, probabilities = labels_and_probabilities(scores)
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


def _share(held: np.ndarray) -> dict[str, Any]:
    return proportion(int(held.sum()), len(held)) | {"num_patients": len(held)}


def coverage_risk_curve(
    grades_true: ArrayLike, probabilities: ArrayLike, named: np.ndarray | None = None
) -> dict[str, Any]:
    """Error rate and error in grades among the most confident rows, for every proportion of them.

    Args:
        grades_true: `(N,)` int 0..3.
        probabilities: `(N, 4)`, rows sum to 1.
        named: `(N,)` labels that a decision rule names, of `scores.named_labels`; the most
            probable grades if None.

    Returns:
        Lists of equal length, most confident first, one entry per distinct confidence (rows
        that tie are graded or refused together): `coverage` (proportion graded, 0 to 1),
        `threshold` (lowest confidence graded), `risk` (proportion of graded rows that are wrong),
        `mean_absolute_error` (grades); and `area` under the risk (mean of the risk over rows
        in this order; a useless confidence gives about the full risk), `full_risk`, `num_rows`.
    """
    labels, scores = np.asarray(grades_true, int), np.asarray(probabilities, np.float64)
    certainty = scores.max(axis=1)
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
