"""Every number of the results table, from true grades and probabilities or from a matrix alone.

The same function serves frames and patients; the caller says which it is.

What is undefined is `None` and has a sentence in `notes` saying why, never NaN and never the 0
that a `zero_division=0` would print as if it were a result:

- recall, AUC and average precision of a grade that no row has; precision of a grade that was
  never predicted; F1 (2 TP / (2 TP + FP + FN)) only where the grade was neither;
- a macro average when one of its four parts is undefined (leaving the part out would compare
  means over different grades); a weighted average when a part with support is;
- `balanced_accuracy` keeps scikit-learn's definition, the mean recall of the grades present;
- kappa when all rows lie in one cell; Spearman when one side is constant.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn import metrics as sk

from steatosis_tf.evaluation.checks import checked_labels, checked_matrix, checked_probabilities
from steatosis_tf.evaluation.ordinal import cumulative_aucs, fat_correlation
from steatosis_tf.evaluation.proper_scores import proper_score_terms
from steatosis_tf.evaluation.ranking import auc_or_none, average_precision_or_none, number_or_none
from steatosis_tf.grades import GRADES

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
