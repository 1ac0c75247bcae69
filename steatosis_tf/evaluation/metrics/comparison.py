"""Runs side by side: intervals, paired differences to a baseline, cost; DeLong's test of two AUCs.

DeLong, DeLong and Clarke-Pearson 1988 (Biometrics 44, 837); with several frames per patient the
structural components are summed by patient first (Obuchowski 1997, Biometrics 53, 567), which
is DeLong's formula again when each patient has one row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from steatosis_tf.evaluation.metrics.intervals import (
    CONFIDENCE,
    bootstrap_intervals,
    paired_bootstrap,
)
from steatosis_tf.evaluation.metrics.registry import shown_in
from steatosis_tf.evaluation.metrics.scores import labels_and_probabilities
from steatosis_tf.evaluation.metrics.weighted import CUMULATIVE_TASKS, cumulative_scores

#: Metric -> heading. Named beforehand, so that a comparison does not pick its winner's metric.
COMPARED = shown_in("compare")

# The question whose AUCs are compared.
_TASK = "at_least_mild"
# Settings in the column of what differs.
_MOST_SHOWN = 4


@dataclass(frozen=True)
class ComparedRun:
    """One run to compare.

    Attributes:
        run_id: MLflow id.
        name: what tells it from the others.
        patient_scores: its patient table.
        cost: for example `train_minutes`, `file_mb`, `ms_per_frame`; None where unknown.
        differs: settings in which it differs from the others, as of `what_differs`.
    """

    run_id: str
    name: str
    patient_scores: pd.DataFrame
    cost: dict[str, float | None]
    differs: dict[str, str] = field(default_factory=dict)


def compare_runs(
    runs: Sequence[ComparedRun], baseline_id: str, *, num_resamples: int = 2000
) -> list[dict[str, Any]]:
    """Every run with intervals over patients and its difference to the baseline.

    Args:
        runs: one or more.
        baseline_id: run_id, or its beginning, of one of them.
        num_resamples: bootstrap resamples of patients.

    Returns:
        per run `run_id`, `name`, `differs`, `num_patients`, the cost, and per metric of `COMPARED`
        a dict `value, low, high, difference`; `difference` is `{value, low, high, p_value}`, None
        for the baseline, or a text if the run has other patients and cannot be paired. Beside it
        `delong`: DeLong's test of the AUC, see `delong_test`; None for the baseline and for
        unpaired runs.

    Raises:
        ValueError: if no or several runs are called `baseline_id`.
    """
    found = [run for run in runs if run.run_id.startswith(baseline_id)]
    if len(found) != 1:
        raise ValueError(
            f"Expected the run_id of one of {', '.join(run.run_id[:8] for run in runs)}. "
            f"Received: baseline={baseline_id!r}."
        )
    return [_row(run, found[0], num_resamples) for run in runs]


def _row(run: ComparedRun, baseline: ComparedRun, num_resamples: int) -> dict[str, Any]:
    wanted: dict[str, Any] = {"num_resamples": num_resamples, "names": COMPARED}
    intervals = bootstrap_intervals(run.patient_scores, **wanted)
    differences: dict[str, Any] = dict.fromkeys(COMPARED)
    if run is not baseline:
        try:
            paired = paired_bootstrap(run.patient_scores, baseline.patient_scores, **wanted)
            differences = {
                name: {key: paired[name][key] for key in ("value", "low", "high", "p_value")}
                for name in COMPARED
            }
        except ValueError as error:
            differences = dict.fromkeys(COMPARED, str(error))
    row: dict[str, Any] = {
        "run_id": run.run_id,
        "name": run.name,
        "differs": run.differs,
        "num_patients": int(run.patient_scores["patient_id"].nunique()),
        **run.cost,
    }
    for name in COMPARED:
        interval = {key: intervals[name][key] for key in ("value", "low", "high")}
        row[name] = interval | {"difference": differences[name]}
    is_paired = isinstance(differences["accuracy"], dict)
    tables = run.patient_scores, baseline.patient_scores
    return row | {"delong": delong_test(*tables) if is_paired else None}


def what_differs(params: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The settings of each run that are not the same in all of them, those of the model first.

    Args:
        params: of each run `{"stage.name": value}`.

    Example:
        >>> what_differs([{"model.head": "joint", "train.seed": "0"}, {"model.head": "softmax"}])
        [{'model.head': 'joint', 'train.seed': '0'}, {'model.head': 'softmax', 'train.seed': '-'}]
    """
    names = {name for one in params for name in one}
    stages = ("model", "roi", "split", "train", "augment")
    places = {stage: place for place, stage in enumerate(stages)}
    order = sorted(names, key=lambda name: (places.get(name.split(".")[0], len(stages)), name))
    several = [name for name in order if len({one.get(name, "-") for one in params}) > 1]
    return [{name: one.get(name, "-") for name in several} for one in params]


def comparison_text(rows: Sequence[dict[str, Any]]) -> str:
    """The comparison as a table for the terminal; a star marks an interval that leaves out 0."""
    table = pd.DataFrame(
        [
            {"run": row["name"], "patients": row["num_patients"]}
            | {heading: _value_text(row[name]) for name, heading in COMPARED.items()}
            | {key: _number(row.get(key)) for key in ("train_minutes", "file_mb", "ms_per_frame")}
            | {"what differs": _short(row["differs"])}
            for row in rows
        ]
    )
    unpaired = sum(isinstance(row["accuracy"]["difference"], str) for row in rows)
    lines = [table.to_string(index=False), "value [95 % interval over patients]"]
    if len(rows) > 1:
        baseline = next(row["name"] for row in rows if row["accuracy"]["difference"] is None)
        lines[-1] += (
            f" difference to the baseline, paired; * its interval leaves out 0 (not corrected for "
            f"the number of comparisons)\nbaseline: {baseline} (--baseline RUN_ID takes another)"
        )
    lines += [_delong_text(row["name"], row["delong"]) for row in rows if row["delong"]]
    if unpaired:
        many = "1 run" if unpaired == 1 else f"{unpaired} runs"
        lines.append(f"{many} tested other patients than the baseline: not paired")
    return "\n".join(lines)


def _short(differs: Mapping[str, str]) -> str:
    texts = [f"{name}={value}" for name, value in differs.items()]
    more = f" and {len(texts) - _MOST_SHOWN} more" if len(texts) > _MOST_SHOWN else ""
    return (", ".join(texts[:_MOST_SHOWN]) or "-") + more


def _value_text(cell: dict[str, Any]) -> str:
    if cell["value"] is None:
        return "-"
    text = f"{cell['value']:.3f}"
    if cell["low"] is not None:
        text += f" [{cell['low']:.3f}, {cell['high']:.3f}]"
    return f"{text} {difference_text(cell['difference'])}".rstrip()


def difference_text(difference: Any) -> str:
    """`+0.031`, with a star where the interval leaves out 0; "" where there is none."""
    if not isinstance(difference, dict) or difference["value"] is None:
        return ""
    leaves_out = difference["low"] is not None and not (
        difference["low"] <= 0 <= difference["high"]
    )
    return f"{difference['value']:+.3f}{'*' if leaves_out else ''}"


def _delong_text(name: str, found: dict[str, Any]) -> str:
    where = f"DeLong, AUC for Mild or worse, {name} against the baseline"
    if found["p_value"] is None:
        return f"{where}: {found['note']}"
    return f"{where}: {found['difference']:+.3f} [{found['low']:.3f}, {found['high']:.3f}], " + (
        "p < 0.001" if found["p_value"] < 0.0005 else f"p = {found['p_value']:.3f}"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def delong_test(scores: pd.DataFrame, baseline_scores: pd.DataFrame) -> dict[str, Any]:
    """Compare the pooled AUCs of two models, of Mild or worse, on the same patients.

    Args:
        scores: patient table (or frame table: rows are then grouped by patient).
        baseline_scores: the same rows of the baseline, as `paired_bootstrap` has checked.

    Returns:
        `task`, `auc`, `baseline_auc`, `difference`, `standard_error`, `low`, `high`, `z`,
        `p_value` (two-sided), `num_positive`, `num_negative` (patients), `note`. Where the test
        is undefined (fewer than two patients on a side, or no variance) numbers are None and
        `note` says why.

    Raises:
        ValueError: a table that cannot be evaluated.
    """
    key = "frame_id" if "frame_id" in scores else "patient_id"
    baseline = baseline_scores.set_index(key).loc[scores[key]].reset_index()
    labels, probabilities = labels_and_probabilities(scores)
    columns = [cumulative_scores(probabilities)[_TASK]]
    columns.append(cumulative_scores(labels_and_probabilities(baseline)[1])[_TASK])
    positive = labels >= CUMULATIVE_TASKS[_TASK]
    patient = scores["patient_id"].to_numpy()
    return {"task": _TASK} | _compare(positive, np.stack(columns), patient)


def auc_covariance(
    positive: np.ndarray, scores: np.ndarray, cluster: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """AUCs of K scores on the same rows and their covariance.

    Args:
        positive: `(N,)` bool.
        scores: `(K, N)` float, higher means more likely positive; ties count half.
        cluster: `(N,)` id of the independent unit each row belongs to, all rows of a unit on one
            side; None: every row is a unit.

    Returns:
        `(K,)` AUCs and `(K, K)` covariance. NaN where a side has fewer than two units.
    """
    units = np.arange(len(positive)) if cluster is None else cluster
    aucs, positives, negatives = [], [], []
    for score in scores:
        ranks, *own = (
            pd.Series(part).rank().to_numpy() for part in (score, score[positive], score[~positive])
        )
        num_positive, num_negative = len(own[0]), len(own[1])
        # Proportion of the other side that each row outranks (placement value).
        placed = (ranks[positive] - own[0]) / num_negative
        outranked = 1 - (ranks[~positive] - own[1]) / num_positive
        aucs.append(placed.mean())
        positives.append(placed - placed.mean())
        negatives.append(outranked - outranked.mean())
    covariance = _side_covariance(np.array(positives), units[positive])
    covariance = covariance + _side_covariance(np.array(negatives), units[~positive])
    return np.array(aucs), covariance


def _side_covariance(components: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Covariance `(K, K)` of the mean of components `(K, n)`, whose units are independent."""
    code = np.unique(units, return_inverse=True)[1]
    num_units = code.max() + 1
    if num_units < 2:
        return np.full((len(components), len(components)), np.nan)
    sums = np.stack([np.bincount(code, weights=row) for row in components])
    return num_units / (num_units - 1) * (sums @ sums.T) / components.shape[1] ** 2


def _compare(positive: np.ndarray, scores: np.ndarray, patient: np.ndarray) -> dict[str, Any]:
    sides = len(set(patient[positive])), len(set(patient[~positive]))
    result: dict[str, Any] = dict.fromkeys(
        ("auc", "baseline_auc", "difference", "standard_error", "low", "high", "z", "p_value")
    )
    result |= {"num_positive": sides[0], "num_negative": sides[1], "note": None}
    if min(sides) < 1:
        return result | {"note": "The AUC is undefined: all patients are on one side."}
    aucs, covariance = auc_covariance(positive, scores, patient)
    difference = float(aucs[0] - aucs[1])
    result |= {"auc": float(aucs[0]), "baseline_auc": float(aucs[1]), "difference": difference}
    if min(sides) < 2:
        return result | {"note": "No test: one side has a single patient."}
    contrast = np.array([1.0, -1.0])
    error = float(np.sqrt(max(contrast @ covariance @ contrast, 0.0)))
    if error < 1e-12:
        return result | {"note": "No test: the difference has no variance on these patients."}
    reach = float(special.ndtri((1 + CONFIDENCE) / 2)) * error
    z = difference / error
    return result | {
        "standard_error": error,
        "low": difference - reach,
        "high": difference + reach,
        "z": z,
        "p_value": float(2 * special.ndtr(-abs(z))),
    }
