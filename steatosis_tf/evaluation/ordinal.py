"""Metrics that use the order of the grades."""

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from steatosis_tf.evaluation.ranking import auc_or_none, number_or_none
from steatosis_tf.grades import GRADES, TASKS

#: Cumulative tasks: name of the task -> lowest label that counts as positive. The score of a
#: task is the sum of the probabilities of its positive grades.
CUMULATIVE_TASKS = {
    task: TASKS[task][1].index(1) for task in ("at_least_mild", "at_least_moderate", "severe")
}


def cumulative_scores(probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """Score `(N,)` of each cumulative task: the summed probabilities of its positive grades."""
    return {
        task: _without_rounding_noise(probabilities[:, first:].sum(axis=1))
        for task, first in CUMULATIVE_TASKS.items()
    }


def expected_grades(probabilities: np.ndarray) -> np.ndarray:
    """Expected grade `(N,)`, 0 to 3: the labels weighted by their probabilities."""
    return _without_rounding_noise(probabilities @ np.arange(len(GRADES)))


def _without_rounding_noise(sums: np.ndarray) -> np.ndarray:
    """Values cut to 40 bits, so that 0.1 + 0.2 and 0.3 tie: votes of few frames tie often."""
    mantissa, exponent = np.frexp(sums)
    return np.ldexp(np.round(mantissa * 2.0**40) / 2.0**40, exponent)


def cumulative_aucs(
    labels: np.ndarray, scores: np.ndarray, notes: list[str]
) -> dict[str, float | None]:
    """The AUC of each cumulative task."""
    result: dict[str, float | None] = {}
    for task, score in cumulative_scores(scores).items():
        positive = labels >= CUMULATIVE_TASKS[task]
        result[f"auc_{task}"] = auc_or_none(positive, score, f"task {task}", notes)
    return result


def fat_correlation(
    scores: np.ndarray, fat_percent: ArrayLike, notes: list[str]
) -> dict[str, float | int | None]:
    """Rank correlation of the expected grade with the fat percentage, where it is known.

    Raises:
        ValueError: if `fat_percent` is not `(N,)` or holds a value outside 0..100.
    """
    fat = np.asarray(fat_percent, dtype=np.float64)
    if fat.shape != (len(scores),):
        raise ValueError(f"Expected fat_percent ({len(scores)},). Received: shape={fat.shape}.")
    known = ~np.isnan(fat)
    if (known & ~((fat >= 0) & (fat <= 100))).any():
        raise ValueError("Expected fat_percent from 0 to 100 or NaN. Received: a value outside.")
    expected_grade = expected_grades(scores[known])
    constant = known.sum() < 2 or np.ptp(fat[known]) == 0 or np.ptp(expected_grade) == 0
    value = np.nan if constant else stats.spearmanr(expected_grade, fat[known]).statistic
    reason = f"{known.sum()} rows with known fat_percent, or all alike on one side"
    return {
        "spearman_fat": number_or_none(value, "Spearman against fat_percent", reason, notes),
        "num_fat_known": int(known.sum()),
    }
