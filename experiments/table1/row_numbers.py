"""The numbers of a row of the table, with intervals over patients."""

from typing import Any

import numpy as np

from experiments.table1.method import lowest_labels
from experiments.table1.protocol import Row
from steatosis_tf.evaluation.metrics.intervals import (
    DEFAULT_RESAMPLES,
    bca_acceleration,
    bootstrap_intervals,
    make_entry,
)
from steatosis_tf.evaluation.metrics.resampling import (
    bootstrap_weights,
    code_patients,
    jackknife_weights,
)
from steatosis_tf.grades import GRADES, TASKS

#: Metric -> heading. Fixed before any method was scored.
SHOWN = {
    "accuracy": "accuracy",
    "macro.f1": "macro F1",
    "ordinal.quadratic_kappa": "quadratic kappa",
    "ordinal.auc_at_least_mild": "AUC >= Mild",
    "ordinal.auc_at_least_moderate": "AUC >= Moderate",
    "ordinal.auc_severe": "AUC Severe",
}
#: Which of them say something about a task of fewer classes.
_AUC_TASKS = {
    "ordinal.auc_at_least_mild": "at_least_mild",
    "ordinal.auc_at_least_moderate": "at_least_moderate",
    "ordinal.auc_severe": "severe",
}


def row_numbers(row: Row, num_resamples: int = DEFAULT_RESAMPLES) -> dict[str, dict[str, Any]]:
    """Metric name (as in `SHOWN`) -> entry with `value`, `low`, `high` and what else
    `bootstrap_intervals` gives. Pooled over folds, mean of repeats, patients resampled; an AUC
    that the task's classes cannot answer has the value None."""
    found = bootstrap_intervals(row.patient_scores, num_resamples=num_resamples)
    found["macro.f1"] = _macro_f1(row, num_resamples)
    numbers = {name: dict(found[name]) for name in SHOWN}
    for name, cut in _AUC_TASKS.items():
        if not _answers(row.task, cut):
            numbers[name] |= {"value": None, "low": None, "high": None}
    return numbers


def text_lines(row: Row, numbers: dict[str, dict[str, Any]]) -> list[str]:
    """A row for the terminal."""
    classes = ", ".join(TASKS[row.task][0])
    cost = row.cost
    timed = "" if row.method.whole_frames else f", {cost['ms_per_frame']:.1f} ms a frame"
    return [
        f"{row.method.title}: {classes}",
        *(f"  {heading:16} {interval_text(numbers[name])}" for name, heading in SHOWN.items()),
        f"  {cost['num_parameters']:,} parameters, {cost['train_minutes']:.1f} processor minutes "
        "for five folds" + timed,
        f"  split by image, the mistake: accuracy per frame {cost['by_image_accuracy']:.2f}",
    ]


def interval_text(entry: dict[str, Any]) -> str:
    """`0.61 (0.47 to 0.74)`, `0.61` without an interval, `-` where undefined.

    Patients are resampled within their grade, so an answer that is the same for everybody has
    hardly an interval: none is printed where both ends would round to the value.
    """
    if entry["value"] is None:
        return "-"
    value, low, high = (
        "" if bound is None else f"{bound:.2f}"
        for bound in (entry["value"], entry["low"], entry["high"])
    )
    return value if not low or low == value == high else f"{value} ({low} to {high})"


def _answers(task: str, cut: str) -> bool:
    """Whether every class of a task lies on one side of a cumulative cut."""
    sides = TASKS[cut][1]
    return all(
        len({side for one, side in zip(TASKS[task][1], sides, strict=True) if one == label}) == 1
        for label in range(len(TASKS[task][0]))
    )


def _macro_f1(row: Row, num_resamples: int) -> dict[str, Any]:
    """Mean F1 of the task's own classes: the usual macro average is of all four grades."""
    table = code_patients(row.patient_scores)
    names = [f"per_class.{GRADES[label]}.f1" for label in lowest_labels(row.task)]
    rng = np.random.default_rng(0)
    weights = bootstrap_weights(table.grade, num_resamples, rng)
    left_out, strata = jackknife_weights(table.grade, rng)
    stacked = np.concatenate([np.ones((1, table.num_patients), weights.dtype), weights, left_out])
    metrics = table.metrics(stacked)
    values = np.mean([metrics[name] for name in names], axis=0)
    replicates, jackknife = np.split(values[1:], [num_resamples])
    acceleration = bca_acceleration(jackknife, strata)
    return make_entry(values[0], replicates, acceleration)
