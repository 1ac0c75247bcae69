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
    predictive_value_intervals,
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
        validation_scores: patient table of the validation part.
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
        ValueError: if the table cannot be evaluated.
    """
    settings = {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "cost_ratio": cost_ratio,
        "prevalence": prevalence,
    }
    labels, probabilities = labels_and_probabilities(validation_scores, validation=True)
    fold = _folds(validation_scores)
    scores = cumulative_scores(probabilities)
    return {
        "unit": "patient",
        "settings": settings,
        "folds": {
            name: {
                task: _choose(labels[fold == name] >= first, scores[task][fold == name], settings)
                for task, first in CUMULATIVE_TASKS.items()
            }
            for name in sorted(set(fold))
        },
    }


def apply_operating_points(points: dict[str, Any], scores: pd.DataFrame) -> dict[str, Any]:
    """What locked thresholds are worth on test scores.

    Args:
        points: from `choose_operating_points`, unchanged, or some of its rules. Points of one fold
            serve any table; with several, each row is called by the threshold of its fold.
        scores: test patient table.

    Returns:
        task -> rule -> `thresholds` (fold -> value), `note`, counts `true_positive`,
        `false_negative`, `true_negative`, `false_positive`, and `sensitivity`, `specificity`,
        `ppv`, `npv`, each `{value, low, high, method}`; in `at_prevalence` a list of
        `{prevalence, ppv, npv}`. Intervals are Wilson's, at a stated prevalence logit (Mercaldo
        2007). An undefined number is `{value: None, ...}`.

    Raises:
        ValueError: if the table cannot be evaluated.
    """
    labels, probabilities = labels_and_probabilities(scores)
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
                cell = np.where(positive, 1 - called, 2 + called)
                entry |= _binary_rates(np.bincount(cell, minlength=4).tolist())
            result[task][rule] = entry
    return result


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


def _binary_rates(counts: list[int]) -> dict[str, Any]:
    """Counts, sensitivity, specificity, predictive values, and those at `PREVALENCES`."""
    hits, missed, spared, alarms = counts
    nothing = {"value": None, "low": None, "high": None, "method": None}
    return {
        "true_positive": hits,
        "false_negative": missed,
        "true_negative": spared,
        "false_positive": alarms,
        **{
            name: proportion(count, count + others)
            | {"method": "wilson" if count + others else None}
            for name, count, others in (
                ("sensitivity", hits, missed),
                ("specificity", spared, alarms),
                ("ppv", hits, alarms),
                ("npv", spared, missed),
            )
        },
        "at_prevalence": [
            {"prevalence": prevalence}
            | (
                predictive_value_intervals(
                    (hits, hits + missed), (spared, spared + alarms), prevalence
                )
                if hits + missed and spared + alarms
                else {"ppv": nothing, "npv": nothing}
            )
            for prevalence in PREVALENCES
        ],
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
        scores: patient table.
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
        ValueError: if the table cannot be evaluated.
    """
    cuts = np.asarray(thresholds, dtype=float)
    table = code_patients(scores)
    labels, probabilities = labels_and_probabilities(scores)
    positive = labels >= CUMULATIVE_TASKS[task]
    patient = np.searchsorted(table.patient_ids, scores["patient_id"].astype(str).to_numpy(str))
    strategies = {
        "model": cumulative_scores(probabilities)[task],
        "treat_all": np.ones(len(labels)),
        "treat_none": np.zeros(len(labels)),
    }
    strategies |= {name: np.asarray(values) for name, values in (comparators or {}).items()}
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
