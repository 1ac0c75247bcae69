"""What a report computes anew from the scores of a run: intervals, subgroups, repeatability."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steatosis_tf.evaluation.abstention import abstention_by_group
from steatosis_tf.evaluation.intervals import bootstrap_intervals
from steatosis_tf.evaluation.metrics import compute_metrics
from steatosis_tf.evaluation.repeatability import repeatability
from steatosis_tf.evaluation.run_checks import Check, check_run
from steatosis_tf.evaluation.run_record import RunRecord
from steatosis_tf.evaluation.run_thresholds import Thresholds, apply_validation
from steatosis_tf.evaluation.scores import labels_and_probabilities
from steatosis_tf.evaluation.subgroups import subgroup_metrics

#: Covariates looked at if the manifest has them.
COVARIATES = ("sex", "age", "bmi", "scanner", "manufacturer", "model", "site")


@dataclass(frozen=True)
class Analysis:
    """Results that follow from the score files alone; None where a file is absent.

    Attributes:
        checks: the self-check.
        metrics: level ("patient", "frame") -> metrics recomputed from the scores. A report prints
            these, never the file: an edited metrics.json cannot reach it.
        intervals: level -> metric name -> entry of `intervals.bootstrap_intervals`.
        subgroups: column -> result of `subgroups.subgroup_metrics`.
        abstention: of `abstention.abstention_by_group`, one per column of `subgroups`.
        subgroup_notes: covariate -> why it was not looked at.
        repeatability: of `repeatability.repeatability`, or None.
        thresholds: what validation fixes, applied to the test patients.
        num_resamples: bootstrap resamples behind every interval.
    """

    checks: list[Check]
    metrics: dict[str, dict[str, Any]]
    intervals: dict[str, dict[str, dict[str, Any]]]
    subgroups: dict[str, dict[str, Any]]
    abstention: list[dict[str, Any]]
    subgroup_notes: dict[str, str]
    repeatability: dict[str, Any] | None
    thresholds: Thresholds
    num_resamples: int


def analyse_run(
    run: RunRecord,
    *,
    num_resamples: int = 2000,
    covariates: Sequence[str] = (),
    seed: int = 0,
) -> Analysis:
    """Compute everything a report adds to the files of a run.

    Args:
        run: of `run_record.read_run`.
        num_resamples: bootstrap resamples, 2,000 or more for a report.
        covariates: further columns of the manifest to look at, beside `COVARIATES`.
        seed: of the bootstrap.
    """
    metrics, intervals = {}, {}
    for level, table in (("patient", run.patient_scores), ("frame", run.frame_scores)):
        if table is not None:
            labels, scores = labels_and_probabilities(table)
            fat = table["fat_percent"].to_numpy(np.float64) if "fat_percent" in table else None
            metrics[level] = compute_metrics(labels, scores, fat)
            intervals[level] = bootstrap_intervals(table, num_resamples=num_resamples, seed=seed)
    left_out = str((run.config or {}).get("split", {}).get("column", ""))
    columns = (*COVARIATES, *([left_out] if run.protocol == "logo" else []), *covariates)
    subgroups, notes = _subgroups(run, dict.fromkeys(columns), num_resamples, seed)
    return Analysis(
        checks=check_run(run),
        metrics=metrics,
        intervals=intervals,
        subgroups=subgroups,
        abstention=_abstention(run, subgroups),
        subgroup_notes=notes,
        repeatability=None if run.frame_scores is None else repeatability(run.frame_scores),
        thresholds=apply_validation(
            run, intervals.get("patient"), num_resamples=num_resamples, seed=seed
        ),
        num_resamples=num_resamples,
    )


def _abstention(run: RunRecord, subgroups: dict[str, Any]) -> list[dict[str, Any]]:
    if run.patient_scores is None or run.manifest is None or "repeat" in run.patient_scores:
        return []
    return [abstention_by_group(run.patient_scores, run.manifest, column) for column in subgroups]


def _subgroups(
    run: RunRecord, columns: Iterable[str], num_resamples: int, seed: int
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    found: dict[str, dict[str, Any]] = {}
    notes: dict[str, str] = {}
    if run.patient_scores is None or run.manifest is None:
        return found, {"all": "patient_scores.csv or manifest.csv is absent or damaged."}
    for column in columns:
        if column not in run.manifest.columns:
            notes[column] = "not in the manifest"
            continue
        if (run.manifest[column].astype(str).str.strip() == "").all():
            notes[column] = "empty for every frame"
            continue
        try:
            found[column] = subgroup_metrics(
                run.patient_scores, run.manifest, column, num_resamples=num_resamples, seed=seed
            )
        except ValueError as error:
            notes[column] = str(error)
    return found, notes
