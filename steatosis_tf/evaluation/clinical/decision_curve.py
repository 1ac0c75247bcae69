"""Decision curve: the net benefit of acting on a score (Vickers and Elkin 2006).

At threshold probability t one would act on a patient whose risk is t or more, so t says how many
false alarms a found case is worth: t / (1 - t). Net benefit = true positives / n - false
positives / n * t / (1 - t). Its scale is that of the sample's own share of positives: in a sample
enriched with cases it overstates the benefit for a clinic.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from steatosis_tf.evaluation.metrics.intervals import DEFAULT_RESAMPLES
from steatosis_tf.evaluation.metrics.resampling import bootstrap_weights, code_patients
from steatosis_tf.evaluation.metrics.scores import labels_and_probabilities
from steatosis_tf.evaluation.metrics.weighted import CUMULATIVE_TASKS, cumulative_scores

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
