"""Confidence intervals for every metric: patient-cluster bootstrap, percentile and BCa.

Frames of one patient are alike, so an interval that counts frames as independent is far too
narrow (docs/evaluation_intervals.md shows by how much). Here whole patients are resampled; see
`resampling.py` for strata, folds and repeats. `paired_bootstrap` does the same for the difference
of two models.

What the intervals say: how the number would vary over other test patients, for the models at
hand. In cross-validation the out-of-fold scores are pooled, each patient once; the interval
does not contain the spread over training sets and seeds, which needs repeated training. A
pooled AUC also compares scores of different folds' models, so each AUC is given twice: pooled,
and as `fold_mean.<name>`, the mean over the folds in which it is defined.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import special

from steatosis_tf.evaluation.metrics.resampling import (
    PatientTable,
    bootstrap_weights,
    code_patients,
    jackknife_weights,
)
from steatosis_tf.grades import GRADES

# Weights (B, P) -> name -> (B,).
_Statistic = Callable[[np.ndarray], dict[str, np.ndarray]]

#: Of every interval.
CONFIDENCE = 0.95

#: An interval from resamples of which more than this proportion was undefined would describe only
#: the lucky ones, so there is none.
MAX_UNDEFINED_SHARE = 0.05

#: With fewer patients of a grade every interval gets a note: resamples of four hold little.
FEW_PATIENTS = 5

#: The statistics literature asks for this many resamples before tails of 2.5 % are stable.
DEFAULT_RESAMPLES = 2000


def bootstrap_intervals(
    scores: pd.DataFrame,
    *,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
    names: Collection[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Every metric with its 95 % confidence interval.

    Args:
        scores: frame table (resampled by patient) or patient table, see `scores.py`.
        num_resamples: bootstrap resamples, 2,000 or more for a report.
        seed: of the draws; the same seed gives the same intervals to the last digit.
        names: only these of `METRICS`, with the same numbers; all, and the means over folds, if
            None.

    Returns:
        Name of `METRICS`, and `fold_mean.<auc>` for cross-validation,
        -> `value`, `low`, `high`, `method` (what `low` and `high` are: `bca`, `percentile`,
        `wilson` or None), `percentile` and `bca` ([low, high] or None), `standard_error`,
        `confidence`, `num_patients`, `num_resamples`, `num_undefined` (resamples in which the
        metric is undefined), `note` (why something is None or was replaced, else None).

        Where every resample gives the same number (for example all patients right) the bootstrap
        knows nothing: accuracy, error rate and recall of 0 or 1 then get Wilson's interval on
        the number of patients, other metrics none.

    Raises:
        ValueError: if the table cannot be evaluated or an argument is out of range.
    """
    _check_resamples(num_resamples)
    table = code_patients(scores)
    entries: dict[str, dict[str, Any]] = {}
    drawn: list[tuple[_Statistic, np.ndarray]]
    drawn = [(partial(table.metrics, names=names), table.grade)]
    if not names:
        drawn.append((table.fold_means, table.fold_cell))
    for statistic, stratum in drawn:
        value = statistic(np.ones((1, table.num_patients)))
        if not value:
            continue
        rng = np.random.default_rng(seed)
        replicates = statistic(bootstrap_weights(stratum, num_resamples, rng))
        left_out, left_out_of = _jackknife(statistic, stratum, rng)
        for name in value:
            acceleration = bca_acceleration(left_out[name], left_out_of) if left_out else 0.0
            entry = make_entry(value[name][0], replicates[name], acceleration)
            entry["num_patients"] = table.num_patients
            entries[name] = _proportion_instead(name, entry, table)
    if not names:
        _add_fold_notes(entries, table)
    _add_few_patients_notes(entries, table)
    return entries


def _jackknife(
    statistic: _Statistic, stratum: np.ndarray, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    weights, names = jackknife_weights(stratum, rng)
    return (statistic(weights) if len(names) else {}), names


def _add_fold_notes(entries: dict[str, dict[str, Any]], table: PatientTable) -> None:
    for name, (defined, num_folds) in table.num_defined_folds().items():
        if name in entries and defined < num_folds:
            lacking = f"Mean over {defined} of {num_folds} folds: the others lack a grade it needs."
            entries[name]["note"] = " ".join(filter(None, (lacking, entries[name]["note"])))


def _add_few_patients_notes(entries: dict[str, dict[str, Any]], table: PatientTable) -> None:
    counts = np.bincount(table.grade, minlength=len(GRADES))
    few = {grade: n for grade, n in zip(GRADES, counts, strict=True) if 0 < n < FEW_PATIENTS}
    if not few or table.num_patients == 1:
        return
    listed = ", ".join(f"{n} {grade}" for grade, n in few.items())
    note = f"Few patients ({listed}): the interval is rough."
    if 1 in few.values():
        note += " A lone patient of a grade is in every resample, which makes it too narrow."
    for entry in entries.values():
        if entry["method"]:
            entry["note"] = " ".join(filter(None, (entry["note"], note)))


def percentile_interval(replicates: np.ndarray, confidence: float = CONFIDENCE) -> list[float]:
    """Percentile interval [low, high] of bootstrap replicates `(B,)`."""
    tail = (1 - confidence) / 2
    return [float(bound) for bound in np.quantile(replicates, [tail, 1 - tail])]


def bca_interval(
    value: float, replicates: np.ndarray, acceleration: float, confidence: float = CONFIDENCE
) -> list[float] | None:
    """Bias-corrected and accelerated interval [low, high] (Efron 1987).

    Args:
        value: the metric on the original sample.
        replicates: `(B,)` bootstrap replicates.
        acceleration: from `bca_acceleration`.
        confidence: 0.95 for a 95 % interval.

    Returns:
        None where the correction is undefined: the value lies outside all replicates.
    """
    # Ties count half: metrics of few patients take few values.
    share = ((replicates < value).mean() + (replicates <= value).mean()) / 2
    if not 0 < share < 1:
        return None
    bias = special.ndtri(share)
    tail = (1 - confidence) / 2
    deviates = bias + special.ndtri([tail, 1 - tail])
    scale = 1 - acceleration * deviates
    if not (np.isfinite(acceleration) and (scale > 0).all()):
        return None
    levels = special.ndtr(bias + deviates / scale)
    return [float(bound) for bound in np.quantile(replicates, levels)]


def bca_acceleration(left_out: np.ndarray, stratum: np.ndarray) -> float:
    """Acceleration from jackknife values `(J,)`, each with the stratum it was left out of.

    The several-sample form: influences are centred within their stratum, and moments of strata
    add up (as `scipy.stats.bootstrap` does for several samples). 0 without any variation.
    """
    cubes = squares = 0.0
    for name in np.unique(stratum):
        values = left_out[(stratum == name) & ~np.isnan(left_out)]
        if len(values) > 1:
            influence = (len(values) - 1) / len(values) * (values.mean() - values)
            cubes += float((influence**3).sum())
            squares += float((influence**2).sum())
    return cubes / (6 * squares**1.5) if squares > 1e-24 else 0.0


def _check_resamples(num_resamples: int) -> None:
    if num_resamples < 100:
        raise ValueError(
            f"Expected num_resamples of 100 at least, 2000 for a report. "
            f"Received: num_resamples={num_resamples}."
        )


def make_entry(value: float, replicates: np.ndarray, acceleration: float) -> dict[str, Any]:
    """One entry of `bootstrap_intervals`, without `num_patients`."""
    defined = replicates[~np.isnan(replicates)]
    num_undefined = len(replicates) - len(defined)
    entry: dict[str, Any] = {
        "value": None if np.isnan(value) else float(value),
        "low": None,
        "high": None,
        "method": None,
        "percentile": None,
        "bca": None,
        "standard_error": None,
        "confidence": CONFIDENCE,
        "num_resamples": len(replicates),
        "num_undefined": num_undefined,
        "note": None,
    }
    if np.isnan(value):
        entry["note"] = "The metric is undefined on these patients."
    elif num_undefined > MAX_UNDEFINED_SHARE * len(replicates):
        share = num_undefined / len(replicates)
        entry["note"] = f"Undefined in {share:.0%} of the resamples: too few patients."
    elif np.ptp(defined) < 1e-12:
        entry["note"] = "Every resample gave this number: the bootstrap cannot bound it."
    else:
        entry["standard_error"] = float(defined.std(ddof=1))
        entry["percentile"] = percentile_interval(defined)
        entry["bca"] = bca_interval(value, defined, acceleration)
        entry["method"] = "bca"
        if entry["bca"] is None:
            entry["method"] = "percentile"
            entry["note"] = "BCa is undefined here (value outside its resamples): percentile."
        entry["low"], entry["high"] = entry[entry["method"]]
    return entry


def _proportion_instead(name: str, entry: dict[str, Any], table: PatientTable) -> dict[str, Any]:
    """Wilson's interval for a proportion of 0 or 1 in all resamples."""
    is_bound = entry["method"] is None and entry["value"] in (0.0, 1.0)
    num_patients = _patients_behind(name, table)
    if not is_bound or not num_patients or entry["num_undefined"]:
        return entry
    low, high = wilson_interval(round(entry["value"] * num_patients), num_patients)
    note = f"Every resample gave this number: Wilson's interval on {num_patients} patients."
    return entry | {"low": low, "high": high, "method": "wilson", "note": note}


def _patients_behind(name: str, table: PatientTable) -> int:
    """Number of patients in the denominator of a proportion; 0 for other metrics."""
    if name in ("accuracy", "ordinal.error_over_one_grade_rate"):
        return table.num_patients
    parts = name.split(".")
    if len(parts) == 3 and parts[0] == "per_class" and parts[2] == "recall":
        return int((table.grade == GRADES.index(parts[1])).sum())
    return 0


def paired_bootstrap(
    scores: pd.DataFrame,
    baseline_scores: pd.DataFrame,
    *,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
    names: Collection[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Difference of every pooled metric between two models, patients resampled together.

    Args:
        scores: frame or patient table of the model of interest.
        baseline_scores: the same of the baseline. Patients and grades must agree; frames, folds
            and repeats may differ (another ROI may have rejected other frames).
        num_resamples, seed, names: as of `bootstrap_intervals`; the same patients are drawn for
            both models.

    Returns:
        Dotted metric name -> the keys of `bootstrap_intervals`, where `value`, `low` and `high`
        are of the difference model minus baseline, and `model`, `baseline` (their values) and
        `p_value` (two-sided: twice the smaller proportion of resamples on one side of 0, at least
        2 / (num_resamples + 1)). Many metrics are compared, so a small p-value of one of them is
        no finding unless that metric was named beforehand.

    Raises:
        ValueError: if a table cannot be evaluated, or patients or grades differ.
    """
    _check_resamples(num_resamples)
    model, baseline = code_patients(scores), code_patients(baseline_scores)
    check_same_study(model, baseline)
    rng = np.random.default_rng(seed)
    drawn = bootstrap_weights(model.grade, num_resamples, rng)
    left_out, left_out_of = jackknife_weights(model.grade, rng)
    others = np.concatenate([np.ones((1, model.num_patients), drawn.dtype), left_out])
    sides = [[one.metrics(part, names) for part in (drawn, others)] for one in (model, baseline)]
    entries = {}
    for name in sides[0][0]:
        if name not in sides[1][0]:
            continue
        replicates, rest = (
            first[name] - second[name] for first, second in zip(*sides, strict=True)
        )
        entry = make_entry(rest[0], replicates, bca_acceleration(rest[1:], left_out_of))
        entries[name] = entry | {
            "model": _none_if_nan(sides[0][1][name][0]),
            "baseline": _none_if_nan(sides[1][1][name][0]),
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
    """Proportion of resamples that contradict the sign of the difference; never exactly 0."""
    defined = differences[~np.isnan(differences)]
    smaller = min((defined <= 0).sum(), (defined >= 0).sum())
    return float(min(1.0, 2 * (smaller + 1) / (len(defined) + 1)))


def wilson_interval(num_successes: int, num_trials: int) -> list[float]:
    """Wilson's score interval [low, high] of a proportion of independent trials (patients)."""
    from scipy import stats  # half a second that comparing runs does without

    test = stats.binomtest(int(num_successes), int(num_trials))
    bounds = test.proportion_ci(CONFIDENCE, method="wilson")
    return [float(bounds.low), float(bounds.high)]


def proportion(num_successes: int, num_trials: int) -> dict[str, float | None]:
    """A proportion of patients as `value`, `low` and `high`, by Wilson; all None without patients.

    Example:
        >>> proportion(9, 10)["value"]
        0.9
    """
    if not num_trials:
        return {"value": None, "low": None, "high": None}
    low, high = wilson_interval(num_successes, num_trials)
    return {"value": num_successes / num_trials, "low": low, "high": high}


def predictive_value_intervals(
    sensitivity: tuple[int, int], specificity: tuple[int, int], prevalence: float
) -> dict[str, dict[str, Any]]:
    """PPV and NPV at a stated prevalence, with logit intervals.

    Mercaldo, Lau and Zhou 2007 (Statistics in Medicine 26, 2170): delta method on the logit
    scale. A rate of exactly 0 or 1 has no logit: for it alone z^2 / 2 successes and failures are
    added. (Added always, as their adjusted interval does, coverage fell to 0.65 for a
    sensitivity of 0.97 in our simulation; this way it was 0.95 to 0.98.) The value itself is not
    adjusted; an interval that would miss it is widened to reach it.

    Args:
        sensitivity: detected and all positive patients.
        specificity: spared and all negative patients.
        prevalence: proportion of positives to assume, 0 to 1.

    Returns:
        `ppv` and `npv`, each `{value, low, high, method}`; value None if nothing is called.
    """
    z = float(special.ndtri((1 + CONFIDENCE) / 2))
    raw = [hits / trials for hits, trials in (sensitivity, specificity)]
    (sens, num_positive), (spec, num_negative) = (
        (hits / trials, trials)
        if 0 < hits < trials
        else ((hits + z**2 / 2) / (trials + z**2), trials + z**2)
        for hits, trials in (sensitivity, specificity)
    )
    variance = {
        "ppv": (1 - sens) / (sens * num_positive) + spec / ((1 - spec) * num_negative),
        "npv": sens / ((1 - sens) * num_positive) + (1 - spec) / (spec * num_negative),
    }
    values = predictive_values(raw[0], raw[1], prevalence)
    centres = predictive_values(sens, spec, prevalence)
    result = {}
    for name in values:
        value = _none_if_nan(values[name])
        reach = z * np.sqrt(variance[name])
        centre = special.logit(centres[name])
        low, high = (float(special.expit(centre + side * reach)) for side in (-1, 1))
        if value is not None:
            low, high = min(low, value), max(high, value)
        result[name] = {"value": value, "low": low, "high": high, "method": "logit"}
    return result


def predictive_values(
    sensitivity: ArrayLike, specificity: ArrayLike, prevalence: float
) -> dict[str, Any]:
    """`ppv` and `npv` of rates, numbers or arrays; NaN where nothing is called so."""
    sens, spec = np.asarray(sensitivity), np.asarray(specificity)
    caught, spared = prevalence * sens, (1 - prevalence) * spec
    alarms, missed = (1 - prevalence) * (1 - spec), prevalence * (1 - sens)
    with np.errstate(invalid="ignore"):
        return {"ppv": caught / (caught + alarms), "npv": spared / (spared + missed)}
