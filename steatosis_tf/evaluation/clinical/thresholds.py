"""Cut-offs chosen on validation scores, locked, and applied to test scores; decision curves.

A cut-off picked on the set it is judged by flatters the model. So `choose_operating_points`
sees validation scores only and returns a plain dict that is stored in the model file, and
`apply_operating_points` takes that dict and never moves a threshold.

A row is called positive when its score (summed probabilities of the positive grades) is at or
above the threshold. Thresholds lie midway between two validation scores.

A decision curve is the net benefit of acting on a score (Vickers and Elkin 2006). At threshold
probability t one would act on a patient whose risk is t or more, so a found case is worth
t / (1 - t) false alarms: net benefit = (true positives - false positives * t / (1 - t)) / n. In a
sample enriched with cases it overstates the benefit for a clinic.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from steatosis_tf.evaluation.metrics.intervals import (
    DEFAULT_RESAMPLES,
    MAX_UNDEFINED_SHARE,
    percentile_interval,
    predictive_value_intervals,
    predictive_values,
    proportion,
)
from steatosis_tf.evaluation.metrics.resampling import bootstrap_weights, code_patients
from steatosis_tf.evaluation.metrics.scores import labels_and_probabilities
from steatosis_tf.evaluation.metrics.weighted import CUMULATIVE_TASKS, cumulative_scores

RULES = ("youden", "sensitivity", "specificity", "cost")

#: Prevalence of NAFLD for which predictive values are stated: screening, and the lower and
#: upper end reported for India.
PREVALENCES = (0.25, 0.09, 0.32)


def choose_operating_points(
    validation_scores: pd.DataFrame,
    *,
    sensitivity: float = 0.95,
    specificity: float = 0.90,
    cost_ratio: float = 3.0,
    prevalence: float = PREVALENCES[0],
) -> dict[str, Any]:
    """Thresholds for every cumulative task by four rules, from validation scores only.

    Args:
        validation_scores: patient table of the validation part (a frame table is accepted when
            frames will be called one by one).
        sensitivity: rule `sensitivity` takes the highest threshold that reaches it.
        specificity: rule `specificity` takes the lowest threshold that reaches it.
        cost_ratio: rule `cost` minimises the expected cost when a missed case costs this many
            false alarms, at `prevalence`.
        prevalence: proportion of positives assumed by rule `cost`, 0 to 1.

    Returns:
        `unit`, `settings` and `folds`: fold (text) -> task -> rule -> `threshold` (None with a
        `note` if a side is empty), `sensitivity` and `specificity` on validation,
        `num_positive`, `num_negative`. Rule `youden` maximises sensitivity + specificity; where
        thresholds tie under `youden` or `cost` the more sensitive is taken. In cross-validation
        every fold has its own model and so its own thresholds.

    Raises:
        ValueError: if the table cannot be evaluated or a setting is out of range.
    """
    settings = {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "cost_ratio": cost_ratio,
        "prevalence": prevalence,
    }
    for name in ("sensitivity", "specificity", "prevalence"):
        if not 0 < settings[name] < 1:
            raise ValueError(f"Expected {name} between 0 and 1. Received: {name}={settings[name]}.")
    if not cost_ratio > 0:
        raise ValueError(f"Expected cost_ratio above 0. Received: cost_ratio={cost_ratio}.")
    _refuse_repeats(validation_scores)
    labels, probabilities = labels_and_probabilities(validation_scores, validation=True)
    fold = _folds(validation_scores)
    scores = cumulative_scores(probabilities)
    return {
        "unit": "frame" if "frame_id" in validation_scores else "patient",
        "settings": settings,
        "folds": {
            name: {
                task: _choose(labels[fold == name] >= first, scores[task][fold == name], settings)
                for task, first in CUMULATIVE_TASKS.items()
            }
            for name in sorted(set(fold))
        },
    }


def apply_operating_points(
    points: dict[str, Any],
    scores: pd.DataFrame,
    *,
    num_resamples: int = DEFAULT_RESAMPLES,
) -> dict[str, Any]:
    """What locked thresholds are worth on test scores.

    Args:
        points: from `choose_operating_points`, unchanged, or some of its rules. Points of one fold
            serve any table; with several, each row is called by the threshold of its fold.
        scores: test patient table, or frame table if `points` were chosen on frames.
        num_resamples: bootstrap resamples of patients, used for frames.

    Returns:
        task -> rule -> `thresholds` (fold -> value), `note`, counts `true_positive`,
        `false_negative`, `true_negative`, `false_positive`, and `sensitivity`, `specificity`,
        `ppv`, `npv`, each `{value, low, high, method}`; in `at_prevalence` a list of
        `{prevalence, ppv, npv}`. Intervals for patients are Wilson's, at a stated prevalence
        logit (Mercaldo 2007); for frames all are patient-cluster percentile. An undefined
        number is `{value: None, ...}`.

    Raises:
        ValueError: if the table cannot be evaluated or its unit is not that of `points`.
    """
    unit = "frame" if "frame_id" in scores else "patient"
    if points["unit"] != unit:
        raise ValueError(
            f"Expected {points['unit']} scores, as the thresholds were chosen on them. "
            f"Received: {unit} scores. A mean over frames is less extreme than a frame."
        )
    _refuse_repeats(scores)
    table = code_patients(scores)
    weights = None
    if unit == "frame":
        weights = bootstrap_weights(table.grade, num_resamples, np.random.default_rng(0))
    labels, probabilities = labels_and_probabilities(scores)
    patient = np.searchsorted(table.patient_ids, scores["patient_id"].astype(str).to_numpy(str))
    result: dict[str, Any] = {}
    for task, score in cumulative_scores(probabilities).items():
        result[task] = {}
        known = next(iter(points["folds"].values()))[task]
        for rule in (rule for rule in RULES if rule in known):
            cut, entry = _row_thresholds(points["folds"], task, rule, _folds(scores))
            ready = ~np.isnan(cut)
            if ready.any():
                positive = labels[ready] >= CUMULATIVE_TASKS[task]
                called = score[ready] >= cut[ready]
                counts = patient_counts(positive, called, patient[ready], table.num_patients)
                entry |= _binary_rates(counts, weights)
            result[task][rule] = entry
    return result


def _refuse_repeats(scores: pd.DataFrame) -> None:
    if "repeat" in scores:
        raise ValueError(
            "Expected scores of one repeat: a patient counts once. Received: a column repeat. "
            "Select one repeat."
        )


def _folds(scores: pd.DataFrame) -> np.ndarray:
    """Fold of each row as text, `(N,)`, as JSON keys are."""
    return scores.get("fold", pd.Series(0, index=scores.index)).astype(str).to_numpy(str)


def _row_thresholds(
    folds: dict[str, Any], task: str, rule: str, fold: np.ndarray
) -> tuple[np.ndarray, dict[str, Any]]:
    """Threshold of each row `(N,)`, NaN where its fold has none, and the start of the entry."""
    unknown = sorted(set(fold) - set(folds))
    if unknown and len(folds) > 1:
        raise ValueError(
            f"Expected folds {', '.join(folds)}, for which thresholds were chosen. "
            f"Received: fold={unknown[0]}."
        )
    chosen = {name: tasks[task][rule] for name, tasks in folds.items()}
    thresholds = {name: point["threshold"] for name, point in chosen.items()}
    lacking = [name for name, value in thresholds.items() if value is None]
    notes = [point["note"] for point in chosen.values() if point["note"]]
    if lacking and len(folds) > 1:
        notes = [f"Rows of fold {', '.join(lacking)} left out: no threshold could be chosen."]
    numbers = {name: np.nan if cut is None else cut for name, cut in thresholds.items()}
    if len(folds) == 1:
        cut = np.full(len(fold), next(iter(numbers.values())))
    else:
        cut = np.array([numbers[name] for name in fold])
    return cut, {"thresholds": thresholds, "note": notes[0] if notes else None}


def _choose(positive: np.ndarray, score: np.ndarray, settings: dict[str, float]) -> dict[str, Any]:
    sides = {"num_positive": int(positive.sum()), "num_negative": int((~positive).sum())}
    if min(sides.values()) == 0:
        empty = {"threshold": None, "sensitivity": None, "specificity": None} | sides
        note = "Not chosen: the validation part has no row on one side of this task."
        return {rule: empty | {"note": note} for rule in RULES}
    values = np.unique(score)
    # From "all positive" to "none positive", ascending.
    thresholds = np.concatenate([[0.0], (values[:-1] + values[1:]) / 2, [np.nextafter(1, 2)]])
    hits = np.searchsorted(np.sort(score[positive]), thresholds, "left")
    rejected = np.searchsorted(np.sort(score[~positive]), thresholds, "left")
    sensitivity = 1 - hits / sides["num_positive"]
    specificity = rejected / sides["num_negative"]
    prevalence = settings["prevalence"]
    cost = settings["cost_ratio"] * prevalence * (1 - sensitivity)
    cost = cost + (1 - prevalence) * (1 - specificity)
    tiny = 1e-12  # rounding must not break a tie
    reached = np.flatnonzero(sensitivity >= settings["sensitivity"] - tiny)
    spared = np.flatnonzero(specificity >= settings["specificity"] - tiny)
    gain = sensitivity + specificity
    chosen = {
        "youden": np.flatnonzero(gain >= gain.max() - tiny)[0],
        "sensitivity": reached[-1],
        "specificity": spared[0],
        "cost": np.flatnonzero(cost <= cost.min() + tiny)[0],
    }
    return {
        rule: {
            "threshold": float(thresholds[index]),
            "sensitivity": float(sensitivity[index]),
            "specificity": float(specificity[index]),
            **sides,
            "note": _coarse(rule, sides, settings),
        }
        for rule, index in chosen.items()
    }


def _coarse(rule: str, sides: dict[str, int], settings: dict[str, float]) -> str | None:
    """A warning where the validation part cannot tell the target from 1."""
    if rule not in ("sensitivity", "specificity"):
        return None
    num_rows = sides["num_positive" if rule == "sensitivity" else "num_negative"]
    if num_rows * (1 - settings[rule]) >= 1 - 1e-9:
        return None
    return f"{num_rows} validation rows cannot tell a {rule} of {settings[rule]} from 1."


def patient_counts(
    positive: np.ndarray, called: np.ndarray, patient: np.ndarray, num_patients: int
) -> np.ndarray:
    """True positives, false negatives, true negatives, false positives of each patient `(P, 4)`."""
    cell = np.where(positive, 1 - called, 2 + called)
    counts = np.zeros((num_patients, 4))
    np.add.at(counts, (patient, cell), 1)
    return counts


def _binary_rates(counts: np.ndarray, weights: np.ndarray | None) -> dict[str, Any]:
    """Counts, sensitivity, specificity, predictive values, and those at `PREVALENCES`.

    With weights `(B, P)` intervals are patient-cluster percentile. None where every patient has
    one row: Wilson, and logit at stated prevalences.
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
        result[name] = _proportion(total[hit], total[hit] + total[miss], shares)
    result["at_prevalence"] = [
        {"prevalence": prevalence} | _predictive_values(total, replicates, prevalence)
        for prevalence in PREVALENCES
    ]
    return result


def _proportion(hits: float, trials: float, shares: np.ndarray | None) -> dict[str, Any]:
    found: dict[str, Any] = proportion(int(hits), int(trials))
    if trials == 0 or shares is None:
        return found | {"method": "wilson" if trials else None}
    return found | _percentiles(shares)


def _percentiles(replicates: np.ndarray) -> dict[str, Any]:
    defined = replicates[~np.isnan(replicates)]
    if len(defined) < (1 - MAX_UNDEFINED_SHARE) * len(replicates) or np.ptp(defined) < 1e-12:
        return {"low": None, "high": None, "method": None}
    low, high = percentile_interval(defined)
    return {"low": low, "high": high, "method": "percentile"}


def _predictive_values(
    total: np.ndarray, replicates: np.ndarray | None, prevalence: float
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
        )
    rows = np.vstack([total, replicates])
    with np.errstate(invalid="ignore"):
        sensitivity = rows[:, 0] / (rows[:, 0] + rows[:, 1])
        specificity = rows[:, 2] / (rows[:, 2] + rows[:, 3])
    return {
        name: {"value": None if np.isnan(values[0]) else float(values[0])}
        | _percentiles(values[1:])
        for name, values in predictive_values(sensitivity, specificity, prevalence).items()
    }


#: Threshold probabilities 1 % to 60 %: beyond, nobody would wait that long before acting.
THRESHOLDS = tuple(round(0.01 * step, 2) for step in range(1, 61))


def decision_curve(
    scores: pd.DataFrame,
    task: str = "at_least_mild",
    *,
    comparators: Mapping[str, ArrayLike] | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Net benefit of the model against treating all, none, and other probabilities.

    Args:
        scores: patient table (a frame table is resampled by patient).
        task: `at_least_mild`, `at_least_moderate` or `severe`.
        comparators: name -> probability `(N,)` of the task, 0 to 1, one per row of `scores`. Turn
            an index (such as the hepatorenal index) into a probability with
            `baselines.fit_index_probability` on validation patients first.
        thresholds: threshold probabilities, between 0 and 1.
        num_resamples: bootstrap resamples of patients for the 95 % bands.
        seed: of the draws.

    Returns:
        `task`, `thresholds`, `prevalence`, `num_patients`; `net_benefit`: `model`, `treat_all`,
        `treat_none` and each comparator -> `value`, `low`, `high` (lists along thresholds;
        percentile bands over resamples within grade, so the prevalence is held).

    Raises:
        ValueError: unknown task, bad table, thresholds outside 0..1, a comparator that is not a
            probability for every row, or one with a reserved name.
    """
    if task not in CUMULATIVE_TASKS:
        raise ValueError(
            f"Expected a task out of {', '.join(CUMULATIVE_TASKS)}. Received: task={task!r}."
        )
    cuts = np.asarray(thresholds, dtype=float)
    if cuts.ndim != 1 or not len(cuts) or not ((cuts > 0) & (cuts < 1)).all():
        raise ValueError("Expected thresholds between 0 and 1. Received: others or none.")
    table = code_patients(scores)
    labels, probabilities = labels_and_probabilities(scores)
    positive = labels >= CUMULATIVE_TASKS[task]
    patient = np.searchsorted(table.patient_ids, scores["patient_id"].astype(str).to_numpy(str))
    strategies = {
        "model": cumulative_scores(probabilities)[task],
        "treat_all": np.ones(len(labels)),
        "treat_none": np.zeros(len(labels)),
    }
    for name, values in (comparators or {}).items():
        strategies[name] = _checked_comparator(name, values, len(labels), set(strategies))
    weights = bootstrap_weights(table.grade, num_resamples, np.random.default_rng(seed))
    return {
        "task": task,
        "thresholds": cuts.tolist(),
        "prevalence": float(positive.mean()),
        "num_patients": table.num_patients,
        "net_benefit": {
            name: _net_benefit(positive, score, cuts, patient, weights)
            for name, score in strategies.items()
        },
    }


def _checked_comparator(name: str, values: ArrayLike, num_rows: int, taken: set[str]) -> np.ndarray:
    score = np.asarray(values, dtype=float)
    if name in taken:
        raise ValueError(f"Expected another name. Received: comparator={name!r}, already there.")
    if score.shape != (num_rows,) or not ((score >= 0) & (score <= 1)).all():
        raise ValueError(
            f"Expected a probability from 0 to 1 for each of {num_rows} rows. Received: "
            f"comparator={name!r}, shape={score.shape}. Fit `fit_index_probability` on "
            "validation patients to turn an index into a probability."
        )
    return score


def _net_benefit(
    positive: np.ndarray,
    score: np.ndarray,
    cuts: np.ndarray,
    patient: np.ndarray,
    weights: np.ndarray,
) -> dict[str, list[float]]:
    odds = cuts / (1 - cuts)
    called = score[:, None] >= cuts
    gain = np.where(positive[:, None], called, 0.0 - called * odds)
    sums = np.zeros((weights.shape[1], len(cuts)))
    np.add.at(sums, patient, gain)
    rows = np.bincount(patient, minlength=weights.shape[1])
    replicates = (weights @ sums) / (weights @ rows)[:, None]
    low, high = np.quantile(replicates, [0.025, 0.975], axis=0)
    return {"value": gain.mean(axis=0).tolist(), "low": low.tolist(), "high": high.tolist()}
