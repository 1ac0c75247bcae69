"""Runs side by side: intervals, paired differences to a baseline, cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from steatosis_tf.evaluation.canvas import COLOURS, FAINT, INK, new_sheet, save_sheet, style_axes
from steatosis_tf.evaluation.delong import delong_test
from steatosis_tf.evaluation.intervals import bootstrap_intervals
from steatosis_tf.evaluation.paired import paired_bootstrap

#: Metric -> heading. Named beforehand, so that a comparison does not pick its winner's metric.
COMPARED = {
    "accuracy": "accuracy",
    "macro.f1": "macro F1",
    "ordinal.quadratic_kappa": "quadratic kappa",
    "ordinal.auc_at_least_mild": "AUC, Mild or worse",
}


@dataclass(frozen=True)
class ComparedRun:
    """One run to compare.

    Attributes:
        run_id: MLflow id.
        name: what tells it from the others.
        patient_scores: its patient table.
        cost: for example `train_minutes`, `file_mb`, `ms_per_frame`; None where unknown.
    """

    run_id: str
    name: str
    patient_scores: pd.DataFrame
    cost: dict[str, float | None]


def compare_runs(
    runs: Sequence[ComparedRun], baseline_id: str, *, num_resamples: int = 2000
) -> list[dict[str, Any]]:
    """Every run with intervals over patients and its difference to the baseline.

    Args:
        runs: one or more.
        baseline_id: run_id, or its beginning, of one of them.
        num_resamples: bootstrap resamples of patients.

    Returns:
        per run `run_id`, `name`, `num_patients`, the cost, and for each of `COMPARED` a dict
        `value, low, high, difference`; `difference` is `{value, low, high, p_value}`, None for
        the baseline, or a text if the run has other patients and cannot be paired. Beside it
        `delong`: DeLong's test of the AUC, see `delong.delong_test`; None for the baseline, for
        unpaired runs and for repeated cross-validation.

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
    intervals = bootstrap_intervals(run.patient_scores, num_resamples=num_resamples)
    differences: dict[str, Any] = dict.fromkeys(COMPARED)
    if run is not baseline:
        try:
            paired = paired_bootstrap(
                run.patient_scores, baseline.patient_scores, num_resamples=num_resamples
            )
            differences = {
                name: {key: paired[name][key] for key in ("value", "low", "high", "p_value")}
                for name in COMPARED
            }
        except ValueError as error:
            differences = dict.fromkeys(COMPARED, str(error))
    row: dict[str, Any] = {
        "run_id": run.run_id,
        "name": run.name,
        "num_patients": int(run.patient_scores["patient_id"].nunique()),
        **run.cost,
    }
    for name in COMPARED:
        interval = {key: intervals[name][key] for key in ("value", "low", "high")}
        row[name] = interval | {"difference": differences[name]}
    tables = run.patient_scores, baseline.patient_scores
    is_paired = isinstance(differences["accuracy"], dict)
    once = not any("repeat" in table for table in tables)
    return row | {"delong": delong_test(*tables) if is_paired and once else None}


def tracked_intervals(patient_scores: pd.DataFrame) -> dict[str, float | None]:
    """`COMPARED` for the columns of MLflow's UI: `<metric>`, `<metric>_low`, `<metric>_high`."""
    found = bootstrap_intervals(patient_scores)
    return {
        f"{name}{end}": found[name][key]
        for name in COMPARED
        for end, key in (("", "value"), ("_low", "low"), ("_high", "high"))
    }


def comparison_text(rows: Sequence[dict[str, Any]]) -> str:
    """The comparison as a table for the terminal; a star marks an interval that leaves out 0."""
    table = pd.DataFrame(
        [
            {"run": row["name"], "patients": row["num_patients"]}
            | {heading: _value_text(row[name]) for name, heading in COMPARED.items()}
            | {key: _number(row.get(key)) for key in ("train_minutes", "file_mb", "ms_per_frame")}
            for row in rows
        ]
    )
    unpaired = sum(isinstance(row["accuracy"]["difference"], str) for row in rows)
    lines = [
        table.to_string(index=False),
        "value [95 % interval over patients] difference to the baseline, paired; "
        "* its interval leaves out 0 (not corrected for the number of comparisons)",
    ]
    lines += [_delong_text(row["name"], row["delong"]) for row in rows if row["delong"]]
    if unpaired:
        lines.append(f"{unpaired} runs tested other patients than the baseline: not paired")
    return "\n".join(lines)


def comparison_figure(
    rows: Sequence[dict[str, Any]],
    path: str | Path,
    *,
    compared: Mapping[str, str] = COMPARED,
    title: str = "Runs side by side",
    reference: int | None = None,
) -> Path:
    """Forest plot: one panel per metric, one line per row, 95 % intervals over patients.

    Args:
        rows: each with `name` and for each metric a dict `value, low, high`, and `difference`
            where it is to stand above the dot.
        path: PNG to write.
        compared: metric -> heading of its panel.
        title: of the figure.
        reference: row whose value is drawn through each panel as a dashed line.
    """
    subtitle = f"{len(rows)} runs; 95 % intervals over patients"
    if any(_difference_text(row[name].get("difference")) for row in rows for name in compared):
        subtitle += (
            "; above each dot the paired difference to the baseline (* its interval leaves out 0)"
        )
    figure = new_sheet(title, subtitle, 12.0, 2.2 + 0.4 * len(rows))
    axes = figure.subplots(1, len(compared), sharey=True)
    places = range(len(rows))
    for panel, (name, heading) in zip(axes, compared.items(), strict=True):
        style_axes(panel, heading, "")
        if reference is not None and rows[reference][name]["value"] is not None:
            panel.axvline(rows[reference][name]["value"], color=FAINT, linestyle="--", linewidth=1)
        for place, row in zip(places, rows, strict=True):
            cell = row[name]
            if cell["value"] is None:
                continue
            if cell["low"] is not None:
                panel.plot([cell["low"], cell["high"]], [place, place], color=COLOURS[0])
            panel.plot(cell["value"], place, "o", color=INK)
            if text := _difference_text(cell.get("difference")):
                panel.annotate(text, (cell["value"], place), (0, 5), textcoords="offset points",
                               ha="center", size=7, color=FAINT)  # fmt: skip
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    axes[0].set_yticks(places, [row["name"] for row in rows])
    return save_sheet(figure, path)


def _value_text(cell: dict[str, Any]) -> str:
    if cell["value"] is None:
        return "-"
    text = f"{cell['value']:.3f}"
    if cell["low"] is not None:
        text += f" [{cell['low']:.3f}, {cell['high']:.3f}]"
    return f"{text} {_difference_text(cell['difference'])}".rstrip()


def _difference_text(difference: Any) -> str:
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
    return (
        f"{where}: {found['difference']:+.3f} [{found['low']:.3f}, {found['high']:.3f}], "
        f"p = {found['p_value']:.3f}"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
