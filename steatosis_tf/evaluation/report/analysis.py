"""What a report computes anew from the scores of a run: intervals, thresholds, subgroups.

Temperature, operating points and prediction sets are fixed by validation patients and applied once
to the test patients. Each fold has its own model, so its own temperature and thresholds, from its
own validation patients.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from steatosis_tf.evaluation.clinical.calibration import (
    BINNINGS,
    apply_temperature,
    calibration_line,
    ece_interval,
    fit_temperature,
)
from steatosis_tf.evaluation.clinical.decision_curve import (
    decision_curve,
    fit_index_probability,
    index_probability,
)
from steatosis_tf.evaluation.clinical.prediction_sets import evaluate_conformal, fit_conformal
from steatosis_tf.evaluation.clinical.robustness import repeatability
from steatosis_tf.evaluation.clinical.subgroups import abstention_by_group, subgroup_metrics
from steatosis_tf.evaluation.clinical.thresholds import (
    apply_operating_points,
    choose_operating_points,
)
from steatosis_tf.evaluation.metrics.intervals import bootstrap_intervals
from steatosis_tf.evaluation.metrics.registry import metrics_of
from steatosis_tf.evaluation.metrics.scores import labels_and_probabilities, patient_scores
from steatosis_tf.evaluation.metrics.weighted import CUMULATIVE_TASKS, cumulative_scores
from steatosis_tf.evaluation.report.checks import Check, check_run
from steatosis_tf.evaluation.report.run import RunRecord
from steatosis_tf.grades import GRADES, SCORE_COLUMNS

_COVERAGE = 0.9


@dataclass(frozen=True)
class Thresholds:
    """Results that need validation scores; a part that could not be made is None, `notes` say why.

    Attributes:
        temperatures: fold -> result of `calibration.fit_temperature`.
        calibrated: test patients with probabilities at the temperature of their fold.
        calibration: "before" the temperature and, where there is one, "after" -> name -> entry:
            `brier`, `nll` and `<question>.<binning>` with intervals, `<task>.line` of
            `calibration.calibration_line`.
        points_source: "operating_points.json" or "validation_scores.csv".
        operating: of `operating_points.apply_operating_points`.
        conformal: of `conformal.evaluate_conformal`; hold-out runs only.
        decisions: task -> result of `decision_curve.decision_curve`.
        notes: part -> why it is None.
    """

    temperatures: dict[str, dict[str, Any]] | None
    calibrated: pd.DataFrame | None
    calibration: dict[str, dict[str, dict[str, Any]]]
    points_source: str
    operating: dict[str, Any] | None
    conformal: dict[str, Any] | None
    decisions: dict[str, dict[str, Any]]
    notes: dict[str, str]


def apply_validation(
    run: RunRecord,
    intervals: dict[str, dict[str, Any]] | None,
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Thresholds:
    """Fit on validation patients, apply to test patients.

    Args:
        run: of `run_record.read_run`.
        intervals: `bootstrap_intervals` of its patients as scored; None without patient scores.
        num_resamples: bootstrap resamples of further intervals and of the decision curves' bands.
        seed: of these.
    """
    test = run.patient_scores
    notes: dict[str, str] = {}
    validation = _validation_patients(run, notes)
    if test is None or intervals is None or "repeat" in test:
        why = "no patient scores" if test is None else "repeated cross-validation"
        parts = ("temperature", "operating", "conformal", "decision")
        return Thresholds(None, None, {}, "", None, None, {}, dict.fromkeys(parts, why))
    labels, _ = labels_and_probabilities(test)
    temperatures, calibrated = _temperatures(validation, test, notes)
    calibration = {"before": _calibration(test, intervals, seed)}
    if calibrated is not None:
        found = bootstrap_intervals(calibrated, num_resamples=num_resamples, seed=seed)
        calibration["after"] = _calibration(calibrated, found, seed)
    source, operating = _operating(run, validation, test, notes)
    judged = test if calibrated is None else calibrated
    decisions = {}
    for task, first in CUMULATIVE_TASKS.items():
        if 0 < (labels >= first).sum() < len(labels):
            index = _index_probability(run, test, first, notes)
            decisions[task] = decision_curve(
                judged, task, comparators=index, num_resamples=num_resamples, seed=seed
            )
    return Thresholds(
        temperatures=temperatures,
        calibrated=calibrated,
        calibration=calibration,
        points_source=source,
        operating=operating,
        conformal=_conformal(run, validation, test, notes),
        decisions=decisions,
        notes=notes,
    )


def _calibration(
    patients: pd.DataFrame, intervals: dict[str, dict[str, Any]], seed: int
) -> dict[str, dict[str, Any]]:
    labels, scores = labels_and_probabilities(patients)
    entries = {name: intervals[name] for name in ("brier", "nll")}
    questions = {"confidence": (scores.argmax(axis=1) == labels, scores.max(axis=1))}
    for task, score in cumulative_scores(scores).items():
        questions[task] = (labels >= CUMULATIVE_TASKS[task], score)
        entries[f"{task}.line"] = calibration_line(*questions[task])
    for question, (happened, probability) in questions.items():
        for binning in BINNINGS:
            error = ece_interval(happened, probability, binning=binning, seed=seed)
            entries[f"{question}.{binning}"] = error
    return entries


def _validation_patients(run: RunRecord, notes: dict[str, str]) -> pd.DataFrame | None:
    if run.validation_scores is None:
        for part in ("temperature", "operating", "conformal"):
            notes[part] = "no validation scores (validation_scores.csv)"
        return None
    rule = (run.config or {}).get("evaluation", {}).get("aggregation", "mean")
    return patient_scores(run.validation_scores, rule, validation=True)


def _temperatures(
    validation: pd.DataFrame | None, test: pd.DataFrame, notes: dict[str, str]
) -> tuple[dict[str, dict[str, Any]] | None, pd.DataFrame | None]:
    if validation is None:
        return None, None
    folds = sorted(set(test["fold"]))
    lacking = [fold for fold in folds if not (validation["fold"] == fold).any()]
    if lacking:
        notes["temperature"] = f"fold {lacking[0]} has no validation patients"
        return None, None
    found = {}
    calibrated = test.astype(dict.fromkeys(SCORE_COLUMNS, np.float64))
    for fold in folds:
        part = validation[validation["fold"] == fold]
        fit = fit_temperature(*labels_and_probabilities(part, validation=True))
        rows = calibrated["fold"] == fold
        scores = calibrated.loc[rows, list(SCORE_COLUMNS)].to_numpy()
        calibrated.loc[rows, list(SCORE_COLUMNS)] = apply_temperature(scores, fit["temperature"])
        found[str(fold)] = fit
    return found, calibrated


def _operating(
    run: RunRecord, validation: pd.DataFrame | None, test: pd.DataFrame, notes: dict[str, str]
) -> tuple[str, dict[str, Any] | None]:
    locked = run.parts.get("operating_points.json")
    source = "validation_scores.csv" if locked is None else "operating_points.json"
    if locked is None and validation is None:
        return source, None
    try:
        points = choose_operating_points(validation) if locked is None else locked
        return source, apply_operating_points(points, test)
    except (ValueError, KeyError, TypeError) as error:
        notes["operating"] = f"{source} cannot be used: {error}"
        return source, None


def _index_probability(
    run: RunRecord, test: pd.DataFrame, first: int, notes: dict[str, str]
) -> dict[str, np.ndarray]:
    """Probability of a task from the hepatorenal index of the test patients, fold by fold.

    The curve from index to probability is fitted on all patients of the fold that are not tested:
    the index itself learns from nobody. A test patient without an index gets the share of
    positives among those patients, as a reader would who sees no kidney.
    """
    if run.hepatorenal is None or run.split is None or run.manifest is None:
        notes["hepatorenal"] = "no hepatorenal.csv, or no split or manifest with it"
        return {}
    index = run.hepatorenal.dropna().set_index("patient_id")["hepatorenal_index"]
    grades = run.manifest.drop_duplicates("patient_id").set_index("patient_id")["grade"]
    tested = test["patient_id"].astype(str)
    num_lacking = int((~tested.isin(index.index)).sum())
    if 2 * num_lacking > len(tested):
        notes["hepatorenal"] = f"{num_lacking} of {len(tested)} test patients lack it"
        return {}
    probability = np.zeros(len(test))
    for fold in sorted(set(test["fold"])):
        part = run.split[(run.split["fold"] == str(fold))
                         & run.split["split"].isin(["train", "validation"])]  # fmt: skip
        graded = [p for p in part["patient_id"] if grades.get(p) in GRADES]
        known = [p for p in graded if p in index.index]
        positive = np.array([GRADES.index(grades[p]) >= first for p in known], dtype=bool)
        if not 0 < positive.sum() < len(known):
            notes["hepatorenal"] = f"fold {fold} has untested patients on one side only"
            return {}
        curve = fit_index_probability(index.loc[known].to_numpy(), positive)
        rows = (test["fold"] == fold).to_numpy()
        values = index.reindex(tested[rows]).to_numpy()
        share = np.mean([GRADES.index(grades[p]) >= first for p in graded])
        seen = ~np.isnan(values)
        probability[np.flatnonzero(rows)[seen]] = index_probability(curve, values[seen])
        probability[np.flatnonzero(rows)[~seen]] = share
    if num_lacking:
        notes["hepatorenal_lacking"] = (
            f"For {num_lacking} of {len(tested)} test patients it could not be measured: the "
            "share of positives among the patients not tested stands in."
        )
    return {"hepatorenal index": probability}


def _conformal(
    run: RunRecord, validation: pd.DataFrame | None, test: pd.DataFrame, notes: dict[str, str]
) -> dict[str, Any] | None:
    if validation is None:
        return None
    if run.num_folds > 1:
        notes["conformal"] = "a promise for one model; this run has one model per fold"
        return None
    return evaluate_conformal(fit_conformal(validation, _COVERAGE), test)


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
            metrics[level] = metrics_of(table)
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
