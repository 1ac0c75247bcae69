"""All metrics under patient weights, many weightings at once: what the bootstrap runs on.

A bootstrap resample of patients is the original table with an integer weight per patient, a
jackknife sample one with a weight 0. So nothing is copied: counts are matrix products with
per-patient totals, and rank metrics need one sort of the scores and a running sum of weights.
Results equal `compute_metrics` on the table written out (tests/evaluation/test_weighted.py).
Inside this file an undefined number is NaN; the doors in `intervals.py` turn it into None.
"""

from dataclasses import dataclass

import numpy as np

from steatosis_tf.evaluation.ordinal import (
    CUMULATIVE_TASKS,
    cumulative_scores,
    expected_grades,
)
from steatosis_tf.evaluation.proper_scores import proper_score_terms
from steatosis_tf.grades import GRADES

#: Weightings worked on at once: bounds memory to some rows x 64 arrays of float64.
CHUNK = 64


@dataclass(frozen=True)
class RankedTask:
    """One binary question, sorted once.

    `negatives` and `positives` hold the patient of each row, ascending by score; for each
    positive, `below`, `through` count the negatives with a smaller, a smaller or equal score, and
    `first_equal` the positives with a smaller score.
    """

    negatives: np.ndarray
    positives: np.ndarray
    below: np.ndarray
    through: np.ndarray
    first_equal: np.ndarray


@dataclass(frozen=True)
class RankedValues:
    """Values sorted once for weighted mid-ranks: `order` sorts, `low`/`high` bound each tie."""

    order: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class WeightedTable:
    """Scores made ready for weighting; see `prepare`."""

    confusion: np.ndarray  # (P, 16) counts of each patient
    sums: dict[str, np.ndarray]  # name -> (P,) sum over each patient's rows of a mean's terms
    tasks: dict[str, RankedTask]
    fat: tuple[np.ndarray, RankedValues, RankedValues] | None


def prepare(
    labels: np.ndarray,
    probabilities: np.ndarray,
    patient: np.ndarray,
    num_patients: int,
    fat_percent: np.ndarray | None = None,
) -> WeightedTable:
    """Sort and total a score table so that any weighting of its patients is cheap.

    Args:
        labels: `(N,)` int 0..3.
        probabilities: `(N, 4)` float64, rows sum to 1.
        patient: `(N,)` int 0..num_patients - 1, the patient of each row.
        num_patients: patients in the weights, also those without a row here (another fold).
        fat_percent: `(N,)` float, percent, NaN where unknown.
    """
    cell = labels * len(GRADES) + probabilities.argmax(axis=1)
    confusion = np.zeros((num_patients, len(GRADES) ** 2))
    np.add.at(confusion, (patient, cell), 1.0)
    terms = proper_score_terms(labels, probabilities)
    return WeightedTable(
        confusion=confusion,
        sums={
            name: np.bincount(patient, weights=term, minlength=num_patients)
            for name, term in terms.items()
        },
        tasks=_tasks(labels, probabilities, patient),
        fat=_ranked_fat(probabilities, fat_percent, patient),
    )


def weighted_metrics(table: WeightedTable, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Every metric under every weighting.

    Args:
        table: from `prepare`.
        weights: `(B, P)` weight of each patient in each of B samples, >= 0.

    Returns:
        Names as in `flatten_metrics(compute_metrics(...))`, without the counts, each `(B,)`
        float64, NaN where the metric is undefined in that sample.
    """
    parts = []
    for start in range(0, len(weights), CHUNK):
        chunk = np.ascontiguousarray(weights[start : start + CHUNK].T, dtype=np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            parts.append(_chunk_metrics(table, chunk))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _tasks(
    labels: np.ndarray, probabilities: np.ndarray, patient: np.ndarray
) -> dict[str, RankedTask]:
    tasks = {
        f"per_class.{grade}": _ranked(labels == label, probabilities[:, label], patient)
        for label, grade in enumerate(GRADES)
    }
    for task, score in cumulative_scores(probabilities).items():
        tasks[task] = _ranked(labels >= CUMULATIVE_TASKS[task], score, patient)
    one_hot = labels[:, None] == np.arange(len(GRADES))
    rows = np.repeat(patient, len(GRADES))
    tasks["micro"] = _ranked(one_hot.ravel(), probabilities.ravel(), rows)
    return tasks


def _ranked(positive: np.ndarray, score: np.ndarray, patient: np.ndarray) -> RankedTask:
    order = np.argsort(score, kind="stable")
    score, positive, patient = score[order], positive[order], patient[order]
    return RankedTask(
        negatives=patient[~positive],
        positives=patient[positive],
        below=np.searchsorted(score[~positive], score[positive], "left"),
        through=np.searchsorted(score[~positive], score[positive], "right"),
        first_equal=np.searchsorted(score[positive], score[positive], "left"),
    )


def _ranked_fat(
    probabilities: np.ndarray, fat_percent: np.ndarray | None, patient: np.ndarray
) -> tuple[np.ndarray, RankedValues, RankedValues] | None:
    if fat_percent is None or np.isnan(fat_percent).all():
        return None
    known = ~np.isnan(fat_percent)
    expected = expected_grades(probabilities[known])
    return patient[known], _ranked_values(expected), _ranked_values(fat_percent[known])


def _ranked_values(values: np.ndarray) -> RankedValues:
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    low = np.searchsorted(ascending, values, "left")
    return RankedValues(order, low, np.searchsorted(ascending, values, "right"))


def _chunk_metrics(table: WeightedTable, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics under weights `(P, b)`: one column per sample, so that row operations are long."""
    counts = (table.confusion.T @ weights).T.reshape(-1, len(GRADES), len(GRADES))
    result = _matrix_metrics(counts)
    total = counts.sum(axis=(1, 2))
    result |= {name: sums @ weights / total for name, sums in table.sums.items()}
    for name, task in table.tasks.items():
        per_class = name.startswith("per_class.")
        auc, average_precision = _rank_metrics(task, weights, per_class)
        if per_class:
            result[f"{name}.auc"] = auc
            result[f"{name}.average_precision"] = average_precision
        else:
            result["auc_micro" if name == "micro" else f"ordinal.auc_{name}"] = auc
    for metric in ("auc", "average_precision"):
        parts = [result[f"per_class.{grade}.{metric}"] for grade in GRADES]
        result[f"{metric}_macro"] = np.mean(parts, axis=0)
    if table.fat is not None:
        result["ordinal.spearman_fat"] = _spearman(*table.fat, weights)
    return result


def _matrix_metrics(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics `(b,)` that follow from weighted confusion matrices `(b, 4, 4)`."""
    hits = np.diagonal(counts, axis1=1, axis2=2)
    support, predicted, total = counts.sum(axis=2), counts.sum(axis=1), counts.sum(axis=(1, 2))
    parts = {
        "precision": hits / predicted,
        "recall": hits / support,
        "f1": 2 * hits / (support + predicted),
    }
    result = {"accuracy": hits.sum(axis=1) / total}
    present = support > 0
    recall = np.where(present, parts["recall"], 0.0)
    result["balanced_accuracy"] = recall.sum(axis=1) / present.sum(axis=1)
    for metric, values in parts.items():
        for label, grade in enumerate(GRADES):
            result[f"per_class.{grade}.{metric}"] = values[:, label]
        result[f"macro.{metric}"] = values.mean(axis=1)
        shares = np.where(present, values * support, 0.0)
        result[f"weighted.{metric}"] = shares.sum(axis=1) / total
    distance = np.abs(np.subtract.outer(np.arange(len(GRADES)), np.arange(len(GRADES))))
    by_chance = support[:, :, None] * predicted[:, None, :] / total[:, None, None]
    for scheme, power in (("quadratic", 2), ("linear", 1)):
        observed = (counts * distance**power).sum(axis=(1, 2))
        expected = (by_chance * distance**power).sum(axis=(1, 2))
        result[f"ordinal.{scheme}_kappa"] = 1 - observed / expected
    result["ordinal.mean_absolute_error"] = (counts * distance).sum(axis=(1, 2)) / total
    result["ordinal.error_over_one_grade_rate"] = (counts * (distance > 1)).sum(axis=(1, 2)) / total
    return result


def _running_total(weights: np.ndarray, patient: np.ndarray) -> np.ndarray:
    """Weight of the first 0, 1, 2 .. rows, `(rows + 1, b)`."""
    totals = np.zeros((len(patient) + 1, weights.shape[1]))
    np.cumsum(weights[patient], axis=0, out=totals[1:])
    return totals


def _rank_metrics(
    task: RankedTask, weights: np.ndarray, with_average_precision: bool
) -> tuple[np.ndarray, np.ndarray]:
    """AUC (ties half) and average precision `(b,)`, NaN where one side has no weight."""
    negatives = _running_total(weights, task.negatives)
    own = weights[task.positives]
    num_positive, num_negative = own.sum(axis=0), negatives[-1]
    below = negatives[task.below]
    wins = np.einsum("ib,ib->b", own, below) + np.einsum("ib,ib->b", own, negatives[task.through])
    auc = wins / 2 / (num_positive * num_negative)
    if not with_average_precision:
        return auc, auc
    positives = _running_total(weights, task.positives)
    above = positives[-1] - positives[task.first_equal]
    called = above + (num_negative - below)
    # Where nothing is called the row itself has no weight, so its precision does not matter.
    precision = np.divide(above, called, out=np.zeros_like(above), where=called > 0)
    average_precision = np.einsum("ib,ib->b", own, precision) / num_positive
    return auc, np.where(num_negative > 0, average_precision, np.nan)


def _spearman(
    patient: np.ndarray, score: RankedValues, fat: RankedValues, weights: np.ndarray
) -> np.ndarray:
    own = weights[patient]
    total = own.sum(axis=0)
    centred = []
    for values in (score, fat):
        running = _running_total(weights, patient[values.order])
        rank = (running[values.low] + running[values.high] + 1) / 2
        centred.append(rank - np.einsum("ib,ib->b", own, rank) / total)
    covariance = np.einsum("ib,ib,ib->b", own, *centred)
    spread = [np.einsum("ib,ib,ib->b", own, side, side) for side in centred]
    # Rounding leaves about 1e-20 of a constant side, whose correlation is undefined.
    constant = (spread[0] < 1e-9) | (spread[1] < 1e-9)
    return np.where(constant, np.nan, covariance / np.sqrt(spread[0] * spread[1]))
