"""Every number of the results table: one registry of metrics.

`METRICS` is the only list of them: a metric is added by one entry there, and then stands in
metrics.json, has an interval, is compared between runs and is printed wherever its entry says.

The same functions serve frames and patients; the caller says which it is. The arithmetic is in
`weighted.py`; scikit-learn is the oracle in its tests.

`compute_metrics` gives None and a sentence in `notes`, never the
0 that a `zero_division=0` would print as if it were a result:

- recall, AUC and average precision of a grade that no row has; precision of a grade that was
  never predicted; F1 (2 TP / (2 TP + FP + FN)) only where the grade was neither;
- a macro average when one of its four parts is undefined (leaving the part out would compare
  means over different grades); a weighted average when a part with support is;
- `balanced_accuracy` is the mean recall of the grades present, as scikit-learn has it;
- kappa when all rows lie in one cell; Spearman when one side is constant.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import methodcaller
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from steatosis_tf.evaluation.metrics.scores import labels_and_probabilities, named_labels
from steatosis_tf.evaluation.metrics.weighted import (
    CUMULATIVE_TASKS,
    Samples,
    WeightedTable,
    kappas,
    prepare,
)
from steatosis_tf.grades import GRADES, TASKS

#: Weightings worked on at once: bounds memory to some rows x 64 arrays of float64.
CHUNK = 64


def compute_metrics(
    grades_true: ArrayLike,
    probabilities: ArrayLike,
    fat_percent: ArrayLike | None = None,
    named: np.ndarray | None = None,
) -> dict[str, Any]:
    """All metrics of one set of frames or of one set of patients.

    Args:
        grades_true: `(N,)` labels, int 0..3 in the order of `GRADES`.
        probabilities: `(N, 4)` float, 0 to 1, each row sums to 1. The predicted grade is the
            most probable one, the lower where two tie.
        fat_percent: `(N,)` reference fat in percent, NaN where unknown; adds
            `ordinal.spearman_fat` and `ordinal.num_fat_known`.
        named: `(N,)` labels that a decision rule names, of `scores.named_labels`.

    Returns:
        Nested, ready for JSON: every metric of `METRICS` at the place of its dotted name, None
        where it is undefined; `n`, `num_correct`, `grades`, `confusion_matrix` (row = true grade),
        `support` and `num_predicted` (its row and column totals); `notes` with one sentence per
        undefined number.

    Example:
        >>> compute_metrics([0, 1], [[0.9, 0.1, 0, 0], [0.6, 0.4, 0, 0]])["accuracy"]
        0.5
    """
    labels, scores = np.asarray(grades_true, int), np.asarray(probabilities, np.float64)
    fat = None if fat_percent is None else np.asarray(fat_percent, np.float64)
    table = prepare(labels, scores, np.zeros(len(labels), dtype=int), 1, fat, named)
    result = _nested(table, with_fat=fat is not None)
    if fat is not None:
        result["ordinal"]["num_fat_known"] = int((~np.isnan(fat)).sum())
    return result


def metrics_of(table: pd.DataFrame) -> dict[str, Any]:
    """Every metric of a frame or patient score table, see `compute_metrics`."""
    fat = table["fat_percent"].to_numpy(np.float64) if "fat_percent" in table else None
    return compute_metrics(*labels_and_probabilities(table), fat, named_labels(table))


def weighted_metrics(
    table: WeightedTable, weights: np.ndarray, names: Iterable[str] | None = None
) -> dict[str, np.ndarray]:
    """Metrics under every weighting.

    Args:
        table: from `prepare`.
        weights: `(B, P)` weight of each patient in each of B samples, >= 0.
        names: of `METRICS`; all that this table allows if None.

    Returns:
        name -> `(B,)` float64, NaN where the metric is undefined in that sample.
    """
    wanted = {name: METRICS[name] for name in (METRICS if names is None else names)}
    wanted = {name: metric for name, metric in wanted.items() if metric.allowed_by(table)}
    parts = []
    for start in range(0, len(weights), CHUNK):
        chunk = np.ascontiguousarray(weights[start : start + CHUNK].T, dtype=np.float64)
        sample = Samples(table, chunk)
        with np.errstate(invalid="ignore", divide="ignore"):
            parts.append({name: metric.function(sample) for name, metric in wanted.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in wanted}


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        label: what people read.
        function: `Samples` -> `(b,)` values, NaN where undefined.
        undefined: why it has no value when it has none.
        needs: "counts", "scores" or "fat".
        higher_is_better: direction.
        shown: places that print it, a set of words: `first` (first page of the report), `report`
            (its ordinal section), `groups` (subgroups and robustness), `compare` (runs side by
            side: named beforehand, so that a comparison does not pick its winner's metric),
            `terminal`.
        is_auc: an area that compares scores of several models where folds are pooled, so that its
            mean over folds is given too.
    """

    label: str
    function: Callable[[Samples], np.ndarray]
    undefined: str = ""
    needs: str = "counts"
    higher_is_better: bool = True
    shown: tuple[str, ...] = ()
    is_auc: bool = False

    def allowed_by(self, table: WeightedTable) -> bool:
        """Whether a table holds what the metric is computed from."""
        return {"counts": True, "scores": bool(table.tasks), "fat": table.fat is not None}[
            self.needs
        ]


def _averages() -> Iterator[tuple[str, Metric]]:
    """Macro and weighted precision, recall and F1."""
    shown = {"macro.f1": ("first", "compare", "terminal"), "weighted.f1": ("terminal",)}
    for rate, word in (("precision", "precision"), ("recall", "recall"), ("f1", "F1")):
        for kind in ("macro", "weighted"):
            name = f"{kind}.{rate}"
            yield name, Metric(
                f"{kind.capitalize()} {word}", methodcaller(kind, rate),
                "a grade that counts has none", shown=shown.get(name, ()),
            )  # fmt: skip


def _areas() -> Iterator[tuple[str, Metric]]:
    """Areas of the cumulative tasks, and of every grade against the rest, averaged."""
    one_side, absent = "all rows are on one side of this question", "a grade has none"
    for task in CUMULATIVE_TASKS:
        further = ("groups", "compare", "terminal") if task == "at_least_mild" else ()
        yield f"ordinal.auc_{task}", Metric(
            f"AUC, {TASKS[task][0][1]}", methodcaller("auc", task), one_side, "scores",
            shown=("first", "report", *further), is_auc=True,
        )  # fmt: skip
    yield "auc_macro", Metric(
        "AUC, one against the rest, macro", methodcaller("mean_over_grades", "auc"), absent,
        "scores", shown=("report", "terminal"), is_auc=True,
    )  # fmt: skip
    yield "auc_micro", Metric(
        "AUC, one against the rest, micro", methodcaller("auc", "micro"), one_side, "scores",
        shown=("report",), is_auc=True,
    )  # fmt: skip
    yield "average_precision_macro", Metric(
        "Average precision, macro", methodcaller("mean_over_grades", "average_precision"), absent,
        "scores", shown=("report",),
    )  # fmt: skip


def _of_each_grade() -> Iterator[tuple[str, Metric]]:
    """Precision, recall, F1, AUC and average precision of each grade."""
    one_side = "no row has this grade, or all have"
    for grade in GRADES:
        for rate, word, why in (
            ("precision", "Precision", "never predicted"),
            ("recall", "Recall", "no row has this grade"),
            ("f1", "F1", "neither present nor predicted"),
        ):
            name = f"per_class.{grade}.{rate}"
            yield name, Metric(f"{word} of {grade}", methodcaller("rate", rate, grade), why)
        for rate, word in (("auc", "AUC"), ("average_precision", "Average precision")):
            yield f"per_class.{grade}.{rate}", Metric(
                f"{word} of {grade}", methodcaller(rate, grade), one_side, "scores",
                is_auc=rate == "auc",
            )  # fmt: skip


#: Every metric, dotted name -> what it is, in the order in which it is printed.
METRICS: dict[str, Metric] = {
    "accuracy": Metric(
        "Accuracy", lambda s: s.hits.sum(axis=1) / s.total,
        shown=("first", "groups", "compare", "terminal"),
    ),
    "balanced_accuracy": Metric(
        "Balanced accuracy",
        lambda s: s.where_present(s.rates["recall"]).sum(axis=1) / (s.support > 0).sum(axis=1),
        shown=("first", "groups", "terminal"),
    ),
    **dict(_averages()),
    "ordinal.quadratic_kappa": Metric(
        "Quadratic weighted kappa", lambda s: kappas(s.counts, 2),
        "all rows have one grade, true and given",
        shown=("first", "report", "groups", "compare", "terminal"),
    ),
    "ordinal.linear_kappa": Metric(
        "Linear weighted kappa", lambda s: kappas(s.counts, 1),
        "all rows have one grade, true and given", shown=("report",),
    ),
    "ordinal.mean_absolute_error": Metric(
        "Mean absolute error (grades)", lambda s: s.mean_distance(lambda distance: distance),
        higher_is_better=False, shown=("report", "groups"),
    ),
    "ordinal.error_over_one_grade_rate": Metric(
        "Proportion of errors over one grade", lambda s: s.mean_distance(lambda d: d > 1),
        higher_is_better=False, shown=("report",),
    ),
    "ordinal.ranked_probability_score": Metric(
        "Ranked probability score", methodcaller("mean", "ordinal.ranked_probability_score"),
        needs="scores", higher_is_better=False, shown=("report",),
    ),
    "ordinal.spearman_fat": Metric(
        "Spearman with fat percent", Samples.spearman,
        "fewer than two rows with known fat_percent, or all alike on one side", "fat",
        shown=("report",),
    ),
    **dict(_areas()),
    "brier": Metric(
        "Brier score (sum over grades, 0 to 2)", methodcaller("mean", "brier"), needs="scores",
        higher_is_better=False,
    ),
    "nll": Metric(
        "Negative log-likelihood (nats)", methodcaller("mean", "nll"), needs="scores",
        higher_is_better=False,
    ),
    **dict(_of_each_grade()),
}  # fmt: skip


def shown_in(place: str) -> dict[str, str]:
    """Metric -> label of those that a place prints, see `Metric.shown`; it says where a lower value
    is the better one.

    Example:
        >>> shown_in("compare")["macro.f1"]
        'Macro F1'
    """
    return {
        name: metric.label + ("" if metric.higher_is_better else ", lower is better")
        for name, metric in METRICS.items()
        if place in metric.shown
    }


def _nested(table: WeightedTable, *, with_fat: bool) -> dict[str, Any]:
    """Counts, and every metric of the table as it stands at the place of its name."""
    counts = table.confusion.sum(axis=0).reshape(len(GRADES), len(GRADES)).astype(np.int64)
    support = dict(zip(GRADES, counts.sum(axis=1).tolist(), strict=True))
    result: dict[str, Any] = {
        "n": int(counts.sum()),
        "num_correct": int(np.trace(counts)),
        "grades": list(GRADES),
        "confusion_matrix": counts.tolist(),
        "support": support,
        "num_predicted": dict(zip(GRADES, counts.sum(axis=0).tolist(), strict=True)),
    }
    notes = []
    values = weighted_metrics(table, np.ones((1, 1)))
    if with_fat:
        values.setdefault("ordinal.spearman_fat", np.array([np.nan]))
    # The grades first: what their averages lack follows from what they lack.
    for name in sorted(values, key=lambda name: not name.startswith("per_class")):
        value = values[name][0]
        *path, last = name.split(".")
        place = result
        for key in path:
            place = place.setdefault(key, {})
        place[last] = None if np.isnan(value) else float(value)
        if np.isnan(value):
            notes.append(f"{METRICS[name].label} is undefined: {METRICS[name].undefined}.")
    num_present = sum(number > 0 for number in support.values())
    if num_present < len(GRADES):
        notes.append(f"The balanced accuracy is the mean recall of {num_present} grades present.")
    for grade in GRADES:
        result["per_class"][grade]["support"] = support[grade]
    return {**result, "notes": notes}
