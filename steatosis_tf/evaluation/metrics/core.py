"""Every number of the results table, from true grades and probabilities or from a matrix alone.

The same functions serve frames and patients; the caller says which it is. All arithmetic is that of
a weighted table: a bootstrap resample of patients is the original table with an integer weight per
patient, a jackknife sample one with a weight 0, and the table itself one with all weights 1. So
nothing is copied: counts are matrix products with per-patient totals, and rank metrics need one
sort of the scores and a running sum of weights.

Inside, an undefined number is NaN. `compute_metrics` gives None and a sentence in `notes` saying
why, never the 0 that a `zero_division=0` would print as if it were a result:

- recall, AUC and average precision of a grade that no row has; precision of a grade that was
  never predicted; F1 (2 TP / (2 TP + FP + FN)) only where the grade was neither;
- a macro average when one of its four parts is undefined (leaving the part out would compare
  means over different grades); a weighted average when a part with support is;
- `balanced_accuracy` keeps scikit-learn's definition, the mean recall of the grades present;
- kappa when all rows lie in one cell; Spearman when one side is constant.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from sklearn import metrics as sk

from steatosis_tf.evaluation.metrics.scores import (
    checked_labels,
    checked_matrix,
    checked_probabilities,
)
from steatosis_tf.grades import GRADES, TASKS

LABELS = tuple(range(len(GRADES)))


def compute_metrics(
    grades_true: ArrayLike, probabilities: ArrayLike, fat_percent: ArrayLike | None = None
) -> dict[str, Any]:
    """All metrics of one set of frames or of one set of patients.

    Args:
        grades_true: `(N,)` labels, int 0..3 in the order of `GRADES`.
        probabilities: `(N, 4)` float, 0 to 1, each row sums to 1. The predicted grade is the
            most probable one, the lower where two tie.
        fat_percent: `(N,)` reference fat in percent, NaN where unknown; adds
            `ordinal.spearman_fat`, the rank correlation with the expected grade
            `sum_k k * p_k` over the rows where fat is known.

    Returns:
        Nested, ready for JSON: everything of `metrics_from_confusion_matrix`, and per class
        `auc` (one against the rest) and `average_precision`; `auc_macro`, `auc_micro`,
        `average_precision_macro`; `brier`, `nll` and in `ordinal` the
        `ranked_probability_score` (see `proper_scores.py`), `auc_at_least_mild`,
        `auc_at_least_moderate`, `auc_severe`; `notes` with one sentence per undefined number.

    Raises:
        ValueError: wrong shape, no row, a label that is NaN, not whole or not 0..3, or
            probabilities that are not finite, not in 0..1 or do not sum to 1.
    """
    labels, scores = checked_labels(grades_true), checked_probabilities(probabilities)
    if len(labels) != len(scores):
        raise ValueError(
            "Expected one row of probabilities per label. "
            f"Received: labels={len(labels)}, probabilities={len(scores)}."
        )
    matrix = sk.confusion_matrix(labels, scores.argmax(axis=1), labels=LABELS)
    result = metrics_from_confusion_matrix(matrix)
    notes = result.pop("notes")
    _add_ranking(result, labels, scores, notes)
    terms = {name: float(term.mean()) for name, term in proper_score_terms(labels, scores).items()}
    result |= {"brier": terms["brier"], "nll": terms["nll"]}
    score = terms["ordinal.ranked_probability_score"]
    result["ordinal"] |= {"ranked_probability_score": score}
    result["ordinal"] |= cumulative_aucs(labels, scores, notes)
    if fat_percent is not None:
        result["ordinal"] |= fat_correlation(scores, fat_percent, notes)
    return {**result, "notes": notes}


def metrics_from_confusion_matrix(matrix: ArrayLike) -> dict[str, Any]:
    """The part of the metrics that follows from a confusion matrix, for published tables too.

    Args:
        matrix: `(4, 4)` whole numbers >= 0; row = true grade, column = predicted grade.

    Returns:
        `n`, `num_correct`, `confusion_matrix`, `support` and `num_predicted` (its row and column
        totals), `accuracy`, `balanced_accuracy`, `per_class` {grade: precision, recall, f1,
        support}, `macro` and `weighted` {precision, recall, f1}, `ordinal`
        {quadratic_kappa, linear_kappa, mean_absolute_error (grades),
        error_over_one_grade_rate}, `notes`.

    Raises:
        ValueError: if the matrix is not 4 x 4, empty, or holds what is not a count.
    """
    counts = checked_matrix(matrix)
    true, predicted = np.divmod(np.arange(counts.size), len(GRADES))
    weight = counts.ravel()
    notes: list[str] = []
    distance = np.abs(true - predicted)
    total = int(weight.sum())
    per_class = _per_class(true, predicted, weight, notes)
    support = counts.sum(axis=1)
    return {
        "n": total,
        "num_correct": int(np.trace(counts)),
        "grades": list(GRADES),
        "confusion_matrix": counts.tolist(),
        "support": dict(zip(GRADES, support.tolist(), strict=True)),
        "num_predicted": dict(zip(GRADES, counts.sum(axis=0).tolist(), strict=True)),
        "accuracy": float(np.trace(counts) / total),
        "balanced_accuracy": _balanced_accuracy(counts, notes),
        "per_class": per_class,
        "macro": _average(per_class, None, "macro", notes),
        "weighted": _average(per_class, support, "weighted", notes),
        "ordinal": {
            "quadratic_kappa": _kappa(true, predicted, weight, "quadratic", notes),
            "linear_kappa": _kappa(true, predicted, weight, "linear", notes),
            "mean_absolute_error": float(weight @ distance / total),
            "error_over_one_grade_rate": float(weight @ (distance > 1) / total),
        },
        "notes": notes,
    }


def flatten_metrics(metrics: dict[str, Any]) -> dict[str, float]:
    """Defined scalar metrics under dotted names, such as `per_class.Mild.f1`, for a tracker.

    Undefined numbers are left out: a tracker would draw them as 0 or NaN.
    """
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": number for key, number in flatten_metrics(value).items()}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[name] = value
    return flat


def _per_class(
    true: np.ndarray, predicted: np.ndarray, weight: np.ndarray, notes: list[str]
) -> dict[str, dict[str, Any]]:
    parts = sk.precision_recall_fscore_support(
        true, predicted, labels=LABELS, sample_weight=weight, zero_division=np.nan
    )
    per_class = {}
    for label, grade in enumerate(GRADES):
        precision, recall, f1, support = (float(part[label]) for part in parts)
        per_class[grade] = {
            "precision": number_or_none(
                precision, f"Precision of {grade}", "never predicted", notes
            ),
            "recall": number_or_none(recall, f"Recall of {grade}", "no row has this grade", notes),
            "f1": number_or_none(f1, f"F1 of {grade}", "neither present nor predicted", notes),
            "support": round(support),
        }
    return per_class


def _average(
    per_class: dict[str, dict[str, Any]],
    support: Sequence[int] | np.ndarray | None,
    name: str,
    notes: list[str],
) -> dict[str, float | None]:
    """Mean over the grades, plain or weighted by support; None if a part that counts is None."""
    weights = np.ones(len(GRADES)) if support is None else np.asarray(support)
    result: dict[str, float | None] = {}
    for metric in ("precision", "recall", "f1"):
        parts = [per_class[grade][metric] for grade in GRADES]
        lacking = [
            grade
            for grade, part, weight in zip(GRADES, parts, weights, strict=True)
            if part is None and weight
        ]
        if lacking:
            notes.append(f"The {name} {metric} is undefined: {', '.join(lacking)} has none.")
            result[metric] = None
        else:
            values = [0.0 if part is None else part for part in parts]
            result[metric] = float(np.average(values, weights=weights))
    return result


def _balanced_accuracy(counts: np.ndarray, notes: list[str]) -> float:
    present = counts.sum(axis=1) > 0
    if not present.all():
        notes.append(f"The balanced accuracy is the mean recall of {present.sum()} grades present.")
    return float((np.diag(counts)[present] / counts.sum(axis=1)[present]).mean())


def _kappa(
    true: np.ndarray, predicted: np.ndarray, weight: np.ndarray, scheme: str, notes: list[str]
) -> float | None:
    occupied = weight > 0
    if occupied.sum() == 1 and (true == predicted)[occupied].all():
        value = np.nan  # no disagreement is possible by chance: 0 / 0
    else:
        value = sk.cohen_kappa_score(
            true, predicted, labels=LABELS, weights=scheme, sample_weight=weight
        )
    return number_or_none(
        value, f"The {scheme} kappa", "all rows have one grade, true and given", notes
    )


def _add_ranking(
    result: dict[str, Any], labels: np.ndarray, scores: np.ndarray, notes: list[str]
) -> None:
    one_hot = labels[:, None] == np.asarray(LABELS)
    for label, grade in enumerate(GRADES):
        positive, score = one_hot[:, label], scores[:, label]
        result["per_class"][grade]["auc"] = auc_or_none(positive, score, grade, notes)
        result["per_class"][grade]["average_precision"] = average_precision_or_none(
            positive, score, grade, notes
        )
    for metric, name in (("auc", "auc_macro"), ("average_precision", "average_precision_macro")):
        parts = [result["per_class"][grade][metric] for grade in GRADES]
        result[name] = None if None in parts else float(np.mean(parts))
        if None in parts:
            notes.append(f"{name} is undefined: not every grade has its {metric}.")
    result["auc_micro"] = float(sk.roc_auc_score(one_hot.ravel(), scores.ravel()))


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


#: Probabilities are cut at this value before a logarithm: a float32 softmax can give 0.
SMALLEST = 1e-12


def proper_score_terms(labels: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
    """The terms `(N,)` whose means are three proper scores; 0 is perfect.

    Args:
        labels: `(N,)` int 0..3.
        scores: `(N, 4)` float64, rows sum to 1.

    Returns:
        `nll`: minus the logarithm of the true grade's probability, nats; below 1e-12 it counts
        as 1e-12, so one certain error does not make the mean infinite. `brier`: squared errors
        summed over the four grades, 0 to 2 (Brier 1950). `ordinal.ranked_probability_score`:
        squared errors of the three cumulative probabilities, their mean, 0 to 1 (Epstein 1969).
    """
    rows = np.arange(len(labels))
    one_hot = labels[:, None] == np.arange(len(GRADES))
    reached = labels[:, None] >= np.asarray(list(CUMULATIVE_TASKS.values()))
    cumulative = np.stack(list(cumulative_scores(scores).values()), axis=1)
    return {
        # `+ 0.0` turns the -0.0 of a perfect row into 0.0.
        "nll": -np.log(np.clip(scores[rows, labels], SMALLEST, 1)) + 0.0,
        "brier": ((scores - one_hot) ** 2).sum(axis=1),
        "ordinal.ranked_probability_score": ((cumulative - reached) ** 2).mean(axis=1),
    }


def number_or_none(value: float, name: str, reason: str, notes: list[str]) -> float | None:
    """The value as a plain float, or None and a note where it is NaN."""
    if np.isfinite(value):
        return float(value)
    notes.append(f"{name} is undefined: {reason}.")
    return None


def auc_or_none(
    positive: np.ndarray, score: np.ndarray, name: str, notes: list[str]
) -> float | None:
    if positive.all() or not positive.any():
        which = "negative" if positive.all() else "positive"
        notes.append(f"The AUC of {name} is undefined: no {which} row.")
        return None
    return float(sk.roc_auc_score(positive, score))


def average_precision_or_none(
    positive: np.ndarray, score: np.ndarray, name: str, notes: list[str]
) -> float | None:
    if positive.all() or not positive.any():
        reason = "1 for any model, as no row is negative" if positive.all() else "no positive row"
        notes.append(f"The average precision of {name} is undefined: {reason}.")
        return None
    return float(sk.average_precision_score(positive, score))
