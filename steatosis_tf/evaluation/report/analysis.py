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

from steatosis_tf.evaluation.clinical.baselines import (
    index_probabilities,
    majority_scores,
    scores_of_tasks,
    untested_grades,
)
from steatosis_tf.evaluation.clinical.calibration import (
    BINNINGS,
    apply_temperature,
    calibration_line,
    coverage_risk_curve,
    ece_interval,
    evaluate_conformal,
    fit_conformal,
    fit_temperature,
)
from steatosis_tf.evaluation.clinical.repeatability import repeatability
from steatosis_tf.evaluation.clinical.subgroups import abstention_by_group, subgroup_metrics
from steatosis_tf.evaluation.clinical.thresholds import (
    apply_operating_points,
    choose_operating_points,
    decision_curve,
)
from steatosis_tf.evaluation.metrics.intervals import bootstrap_intervals, paired_bootstrap
from steatosis_tf.evaluation.metrics.registry import metrics_of
from steatosis_tf.evaluation.metrics.scores import (
    labels_and_probabilities,
    named_labels,
    patient_scores,
)
from steatosis_tf.evaluation.metrics.weighted import CUMULATIVE_TASKS, cumulative_scores
from steatosis_tf.evaluation.report.checks import Check, check_run
from steatosis_tf.evaluation.report.run import RunRecord
from steatosis_tf.grades import SCORE_COLUMNS

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
        operating: of `thresholds.apply_operating_points`.
        conformal: of `calibration.evaluate_conformal`; hold-out runs only.
        decisions: task -> result of `thresholds.decision_curve`.
        hepatorenal: task -> its probability by the hepatorenal index alone.
        notes: part -> why it is None.
    """

    temperatures: dict[str, dict[str, Any]] | None
    calibrated: pd.DataFrame | None
    calibration: dict[str, dict[str, dict[str, Any]]]
    points_source: str
    operating: dict[str, Any] | None
    conformal: dict[str, Any] | None
    decisions: dict[str, dict[str, Any]]
    hepatorenal: dict[str, np.ndarray]
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
        run: of `run.read_run`.
        intervals: `bootstrap_intervals` of its patients as scored; None without patient scores.
        num_resamples: bootstrap resamples of further intervals and of the decision curves' bands.
        seed: of these.
    """
    test = run.patient_scores
    notes: dict[str, str] = {}
    validation = _validation_patients(run, notes)
    if test is None or intervals is None:
        parts = ("temperature", "operating", "conformal", "decision")
        notes = dict.fromkeys(parts, "no patient scores")
        return Thresholds(None, None, {}, "", None, None, {}, {}, notes)
    labels, _ = labels_and_probabilities(test)
    temperatures, calibrated = _temperatures(validation, test, notes)
    calibration = {"before": _calibration(test, intervals, seed)}
    if calibrated is not None:
        found = bootstrap_intervals(calibrated, num_resamples=num_resamples, seed=seed)
        calibration["after"] = _calibration(calibrated, found, seed)
    source, operating = _operating(run, validation, test, notes)
    index = _hepatorenal(run, test, notes)
    decisions = {
        task: decision_curve(
            test, task, num_resamples=num_resamples, seed=seed,
            comparators={"hepatorenal index": index[task]} if task in index else None,
        )
        for task, first in CUMULATIVE_TASKS.items()
        if 0 < (labels >= first).sum() < len(labels)
    }  # fmt: skip
    return Thresholds(
        temperatures=temperatures,
        calibrated=calibrated,
        calibration=calibration,
        points_source=source,
        operating=operating,
        conformal=_conformal(run, validation, test, notes),
        decisions=decisions,
        hepatorenal=index,
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
    return patient_scores(run.validation_scores, run.rule, validation=True)


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
    # A temperature keeps the most probable grade, but not what another decision rule names.
    calibrated = test.drop(columns="predicted", errors="ignore")
    calibrated = calibrated.astype(dict.fromkeys(SCORE_COLUMNS, np.float64))
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
    locked = run.operating_points
    source = "validation_scores.csv" if locked is None else "operating_points.json"
    if locked is None and validation is None:
        return source, None
    try:
        points = choose_operating_points(validation) if locked is None else locked
        return source, apply_operating_points(points, test)
    except (ValueError, KeyError, TypeError) as error:
        notes["operating"] = f"{source} cannot be used: {error}"
        return source, None


def _hepatorenal(
    run: RunRecord, test: pd.DataFrame, notes: dict[str, str]
) -> dict[str, np.ndarray]:
    """Probability of each task by the hepatorenal index of the test patients; {} with a note."""
    if run.hepatorenal is None or run.split is None or run.manifest is None:
        notes["hepatorenal"] = "no hepatorenal.csv, or no split or manifest with it"
        return {}
    index = run.hepatorenal.dropna().set_index("patient_id")["hepatorenal_index"]
    untested = untested_grades(run.split, run.manifest, test["fold"])
    try:
        found = index_probabilities(test, index, untested)
    except ValueError as error:
        notes["hepatorenal"] = str(error)
        return {}
    if len(found) < len(CUMULATIVE_TASKS):
        notes["hepatorenal"] = "a fold has untested patients on one side of a question only"
    num_lacking = int((~test["patient_id"].astype(str).isin(index.index)).sum())
    if num_lacking:
        notes["hepatorenal_lacking"] = (
            f"For {num_lacking} of {len(test)} test patients it could not be measured: the "
            "proportion of positives among the patients not tested stands in."
        )
    return found


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
        majority: `grade` that the commonest answer is and paired difference of the `accuracy` to it
            (an entry of `intervals.paired_bootstrap`); empty without patient scores.
        baselines: heading -> intervals of a reader without the model.
        abstaining: of `calibration.coverage_risk_curve` on patients, or None.
        subgroups: column -> result of `subgroups.subgroup_metrics`.
        abstention: of `subgroups.abstention_by_group`, one per column of `subgroups`.
        subgroup_notes: covariate -> why it was not looked at.
        repeatability: of `repeatability.repeatability`, or None.
        thresholds: what validation fixes, applied to the test patients.
        num_resamples: bootstrap resamples behind every interval.
    """

    checks: list[Check]
    metrics: dict[str, dict[str, Any]]
    intervals: dict[str, dict[str, dict[str, Any]]]
    majority: dict[str, Any]
    baselines: dict[str, dict[str, dict[str, Any]]]
    abstaining: dict[str, Any] | None
    subgroups: dict[str, dict[str, Any]]
    abstention: list[dict[str, Any]]
    subgroup_notes: dict[str, str]
    repeatability: dict[str, Any] | None
    thresholds: Thresholds
    num_resamples: int


def analyse_run(
    run: RunRecord, *, num_resamples: int = 2000, covariates: Sequence[str] = (), seed: int = 0
) -> Analysis:
    """Compute everything a report adds to the files of a run.

    Args:
        run: of `run.read_run`.
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
    thresholds = apply_validation(
        run, intervals.get("patient"), num_resamples=num_resamples, seed=seed
    )
    majority, baselines = _baselines(run, thresholds.hepatorenal, num_resamples, seed)
    patients = run.patient_scores
    return Analysis(
        checks=check_run(run),
        metrics=metrics,
        intervals=intervals,
        majority=majority,
        baselines=baselines,
        abstaining=None if patients is None
        else coverage_risk_curve(
            *labels_and_probabilities(patients), named=named_labels(patients)
        ),
        subgroups=subgroups,
        abstention=_abstention(run, subgroups),
        subgroup_notes=notes,
        repeatability=None if run.frame_scores is None else repeatability(run.frame_scores),
        thresholds=thresholds,
        num_resamples=num_resamples,
    )  # fmt: skip


def _baselines(
    run: RunRecord, hepatorenal: dict[str, np.ndarray], num_resamples: int, seed: int
) -> tuple[dict[str, Any], dict[str, dict[str, dict[str, Any]]]]:
    """What the commonest grade and the hepatorenal index give on the same patients."""
    test = run.patient_scores
    if test is None:
        return {}, {}
    untested = {}
    if run.split is not None and run.manifest is not None:
        untested = untested_grades(run.split, run.manifest, test["fold"])
    constant = majority_scores(test, untested)
    grade = constant["predicted"].iloc[0]
    options: dict[str, Any] = {"num_resamples": num_resamples, "seed": seed}
    gain = paired_bootstrap(test, constant, **options)["accuracy"]
    found = {f"Always {grade}": bootstrap_intervals(constant, **options)}
    if len(hepatorenal) == len(CUMULATIVE_TASKS):
        index = scores_of_tasks(test, hepatorenal)
        found["Hepatorenal index"] = bootstrap_intervals(index, **options)
    return {"grade": grade, "accuracy": gain}, found


def _abstention(run: RunRecord, subgroups: dict[str, Any]) -> list[dict[str, Any]]:
    if run.patient_scores is None or run.manifest is None:
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
