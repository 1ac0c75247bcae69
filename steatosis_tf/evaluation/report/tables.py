"""Tables and figures of the results in a report, from the analysis of a run."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from steatosis_tf.evaluation.figures.curves import (
    coverage_risk_figure,
    decision_curve_figure,
    reliability_figure,
    robustness_figure,
)
from steatosis_tf.evaluation.metrics.registry import METRICS, shown_in
from steatosis_tf.evaluation.metrics.scores import labels_and_probabilities, named_labels
from steatosis_tf.evaluation.metrics.weighted import CUMULATIVE_TASKS, expected_grades
from steatosis_tf.evaluation.report.analysis import Analysis
from steatosis_tf.evaluation.report.content import interval, number
from steatosis_tf.evaluation.report.run import RunRecord
from steatosis_tf.grades import GRADES, SCORE_COLUMNS, TASKS

#: Level -> heading.
LEVELS = {"patient": "Patients", "frame": "Frames"}

#: Question that a threshold answers -> words.
QUESTIONS = {task: TASKS[task][0][1] for task in CUMULATIVE_TASKS}

#: Patients listed by name of their pseudonym; more make the page heavy.
MAX_LISTED = 500

_MAX_LINKS = 12

# Where `deploy.figures` leaves maps, by frame.
_MAPS_DIR = "figures/maps"
_RULES = {
    "youden": "Youden", "sensitivity": "fixed sensitivity", "specificity": "fixed specificity",
    "cost": "least cost",
}  # fmt: skip
_RATES = ("sensitivity", "specificity", "ppv", "npv")
_CURVES = {
    "quadratic_kappa": METRICS["ordinal.quadratic_kappa"].label,
    "changed_share": "Proportion of patients whose grade changes",
}


def interval_notes(analysis: Analysis) -> list[tuple[str, str]]:
    """Which intervals of patients are missing or of another kind, and why."""
    notes = [(entry["note"], name) for name, entry in analysis.intervals.get("patient", {}).items()]
    return grouped((note, name) for note, name in notes if note)


def grouped(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """`(key, name)` pairs as rows of joined names and key, in order of first sight."""
    found: dict[str, list[str]] = {}
    for key, name in pairs:
        found.setdefault(key, []).append(name)
    return [(", ".join(names), key) for key, names in found.items()]


def matrix_rows(found: dict[str, Any]) -> list[list[str]]:
    """Confusion matrix with its margins."""
    rows = [
        [grade, *(number(cell) for cell in row), number(sum(row))]
        for grade, row in zip(GRADES, found["confusion_matrix"], strict=True)
    ]
    columns = [number(found["num_predicted"][grade]) for grade in GRADES]
    return [*rows, ["Sum", *columns, number(found["n"])]]


def per_class_rows(found: dict[str, Any], entries: dict[str, Any]) -> list[list[str]]:
    """Precision, recall, F1, AUC and n of each grade, their averages, and the accuracy."""
    values = ("precision", "recall", "f1", "auc")
    rows = [
        [grade, *(interval(entries.get(f"per_class.{grade}.{value}")) for value in values),
         number(found["support"][grade])]
        for grade in GRADES
    ]  # fmt: skip
    for average in ("macro", "weighted"):
        cells = [interval(entries.get(f"{average}.{value}")) for value in values[:3]]
        area = interval(entries.get("auc_macro")) if average == "macro" else ""
        rows.append([average.capitalize(), *cells, area, number(found["n"])])
    return [*rows, ["Accuracy", interval(entries["accuracy"]), "", "", "", number(found["n"])]]


def absent_grades(found: dict[str, Any]) -> str:
    """What cannot be said because nobody tested has a grade; "" if everybody is there."""
    absent = [grade for grade in GRADES if found["support"][grade] == 0]
    if set(GRADES[1:]) <= set(absent):
        return (
            "nobody in the test part has steatosis. Sensitivity, AUC and kappa do not exist; "
            "accuracy here is specificity. Test on patients of every grade."
        )
    return f"nobody in the test part has grade {', '.join(absent)}." if absent else ""


def ordinal_rows(analysis: Analysis) -> list[list[str]]:
    """Metrics of the ordinal section, and the means of folds where there are folds."""
    labels = shown_in("report")
    means = {
        f"fold_mean.{name}": f"{label}, mean of folds" for name, label in labels.items()
        if METRICS[name].is_auc
    }  # fmt: skip
    columns = analysis.intervals.values()
    return [
        [label, *(interval(entries.get(name)) for entries in columns)]
        for name, label in (labels | means).items()
        if any(name in entries for entries in columns)
    ]


def operating_tables(analysis: Analysis) -> dict[str, list[list[str]]]:
    """Locked thresholds on the test patients, predictive values elsewhere, and notes."""
    rates, predictive, notes = [], [], []
    for task, rules in (analysis.thresholds.operating or {}).items():
        for rule, entry in rules.items():
            name = f"{QUESTIONS[task]}: {_RULES.get(rule, rule)}"
            if entry["note"]:
                notes.append([name, entry["note"]])
            if "sensitivity" not in entry:
                rates.append([name, "none", *["undefined"] * len(_RATES)])
                continue
            cells = [interval(entry[rate], 2) for rate in _RATES]
            rates.append([name, _thresholds(entry["thresholds"]), *cells])
            # The stated prevalences are those of fatty liver of any grade.
            if task == "at_least_mild":
                predictive += [
                    [name, f"{100 * one['prevalence']:.0f} %", interval(one["ppv"], 2),
                     interval(one["npv"], 2)]
                    for one in entry["at_prevalence"]
                ]  # fmt: skip
    return {"rates": rates, "predictive": predictive, "notes": notes}


def _thresholds(thresholds: dict[str, float | None]) -> str:
    known = [value for value in thresholds.values() if value is not None]
    if len(known) < 2:
        return f"{known[0]:.3f}" if known else "none"
    return f"{min(known):.2f} to {max(known):.2f}"


def calibration_rows(analysis: Analysis) -> list[list[str]]:
    """Proper scores, calibration errors and lines, as scored and after the temperature."""
    columns = analysis.thresholds.calibration.values()

    def error(entry: dict[str, Any]) -> str:
        return f"{interval(entry)}, chance {number(entry['chance'])}"

    def line(entry: dict[str, Any]) -> str:
        if entry["slope"] is None:
            return str(entry["note"])
        return f"{entry['slope']:z.2f} and {entry['intercept']:z.2f}"

    rows = [
        [METRICS[name].label, *(interval(c[name]) for c in columns)] for name in ("brier", "nll")
    ]
    for question, words in ({"confidence": "most probable grade"} | QUESTIONS).items():
        for binning in ("equal_width", "equal_mass"):
            name = f"ECE, {words}, {binning.replace('_', ' ')} bins"
            rows.append([name, *(error(c[f"{question}.{binning}"]) for c in columns)])
    for task, words in QUESTIONS.items():
        name = f"Calibration slope and intercept, {words}"
        rows.append([name, *(line(c[f"{task}.line"]) for c in columns)])
    return rows


def temperature(analysis: Analysis) -> str:
    """The fitted temperatures in one sentence."""
    fits = list((analysis.thresholds.temperatures or {}).values())
    values = [fit["temperature"] for fit in fits]
    if len(values) == 1:
        rows = fits[0]["num_rows"]
        return f"Temperature {values[0]:.2f}, fitted on {rows:,} validation patients."
    return (
        f"Temperature fitted for each of {len(values)} folds on its own validation patients: "
        f"median {np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})."
    )


def group_rows(found: dict[str, Any]) -> list[list[str]]:
    """Metrics of each group of a covariate; groups that are too small are suppressed."""
    names = shown_in("groups")
    rows = []
    for group in found["groups"]:
        grades = " / ".join(str(count) for count in group["patients_per_grade"].values())
        cells = ["suppressed"] * len(names)
        if not group["suppressed"]:
            cells = [interval(group["metrics"][name], 2) for name in names]
        rows.append([group["value"], number(group["num_patients"]), grades, *cells])
    return rows


def gap_rows(found: dict[str, Any]) -> list[list[str]]:
    """Largest difference of each metric between two groups."""
    return [
        [METRICS[gap["metric"]].label, gap["higher"], gap["lower"],
         interval({**gap, "value": gap["gap"]}, 2)]
        for gap in found["gaps"]
    ]  # fmt: skip


def abstention_rows(analysis: Analysis) -> list[list[str]]:
    """Who would be left to a reader, by covariate."""
    return [
        [found["column"], group["value"], number(group["num_patients"]), group["suppressed"]
         or interval(group["left_out"], 2)]
        for found in analysis.abstention for group in found["groups"]
    ]  # fmt: skip


def patient_rows(run: RunRecord) -> list[list[str]]:
    """Tested patients, the most wrong first, with links to their frames and map.

    A link is a `[text](target)` of Markdown; the target leads from the run directory.
    """
    patients, manifest = run.patient_scores, run.manifest
    if patients is None:
        return []
    labels, scores = labels_and_probabilities(patients)
    expected, named = expected_grades(scores), named_labels(patients)
    frames: Mapping[str, pd.DataFrame] = {}
    if manifest is not None and "path" in manifest:
        frames = dict(iter(manifest.groupby("patient_id")))
    order = np.argsort(-np.abs(expected - labels), kind="stable")[:MAX_LISTED]
    rows = []
    for place in order:
        row = patients.iloc[place]
        own = frames.get(row["patient_id"], pd.DataFrame(columns=["path", "frame_id"]))
        links = [
            f"[{k}](<{_target(path, run.run_dir)}>)"
            for k, path in enumerate(own["path"][:_MAX_LINKS], start=1)
        ]
        more = [f"and {len(own) - _MAX_LINKS} more"] if len(own) > _MAX_LINKS else []
        maps = [
            f"[map](<{_MAPS_DIR}/{frame_id}.jpg>)"
            for frame_id in own["frame_id"]
            if (run.run_dir / _MAPS_DIR / f"{frame_id}.jpg").is_file()
        ]
        rows.append([
            str(row["patient_id"]), row["grade"], GRADES[named[place]],
            f"{expected[place]:.2f}", f"{expected[place] - labels[place]:+.2f}",
            f"{scores[place].max():.2f}", " ".join([*links, *more]), " ".join(maps),
        ])  # fmt: skip
    return rows


def answer_rows(run: RunRecord) -> list[list[str]]:
    """Kinds of answer of an external validation, by reference grade."""
    found = run.external or {}
    return [
        [kind.replace("_", " "), number(found["counts"][kind]),
         *(number(found["by_grade"][kind][grade]) for grade in GRADES)]
        for kind in ("graded", "score_only", "unable")
    ]  # fmt: skip


def external_rows(run: RunRecord) -> list[list[str]]:
    """Figures of an external validation, each with its n and whom it counts."""
    found = run.external or {}
    rows = []
    for side, who in (("graded", "graded"), ("ranks", "with a score")):
        for name, entry in found[side].items():
            words = METRICS[name].label
            if name == "ordinal.spearman_fat":
                words = f"Spearman with {found['reference'].replace('_', ' ')}"
            rows.append([words, interval(entry), number(entry["num_patients"]), who])
    for key, words, who in (
        ("prediction_sets", "Prediction set holds the grade", "graded"),
        ("fat_interval", "Interval holds the fat percent", "with both"),
    ):
        if one := found[key]:
            stated = f"{words} (stated {one['stated_coverage']:.0%})"
            rows.append([stated, interval(one["coverage"]), number(one["num_patients"]), who])
    return rows


def refused_rows(run: RunRecord) -> list[list[str]]:
    """Patients of an external validation without a grade, and why."""
    return [
        [one["patient_id"], one["grade"], one["kind"].replace("_", " "), one["reason"]]
        for one in (run.external or {})["not_graded"]
    ]


def _target(path: str, run_dir: Path) -> str:
    """A path of the manifest as a link from the run directory; no absolute path is written."""
    place = os.path.relpath(path, run_dir.resolve()) if os.path.isabs(path) else path
    return quote(Path(place).as_posix(), safe="/:")


def draw_figures(run: RunRecord, analysis: Analysis) -> dict[str, Path]:
    """Draw what follows from the scores, and list all figures of the run by name."""
    folder, found = run.run_dir / "figures", analysis.thresholds
    drawn: list[Path] = []
    if run.patient_scores is not None and found.calibration:
        labels, scores = labels_and_probabilities(run.patient_scores)
        sets = {"as scored": scores}
        if found.calibrated is not None:
            sets["after temperature"] = found.calibrated[list(SCORE_COLUMNS)].to_numpy()
        drawn.append(reliability_figure(labels, sets, folder / "reliability_patients.png"))
    drawn += [_draw_decision(curve, folder) for curve in found.decisions.values()]
    table = run.robustness
    if table is not None and {"perturbation", "strength", "unit", "metric", "value"} <= set(table):
        for metric, words in _CURVES.items():
            part = table[table["metric"] == metric]
            if part["value"].notna().any():
                who = ""
                if "num_patients" in part:
                    who = f"n = {int(part['num_patients'].max()):,} patients"
                path = folder / f"robustness_{metric}.png"
                drawn.append(robustness_figure(part, path, metric_label=words, subtitle=who))
    if analysis.abstaining is not None and run.patient_scores is not None:
        who = f"n = {len(run.patient_scores):,} patients, least certain left out first"
        curve = analysis.abstaining
        drawn.append(
            coverage_risk_figure(
                np.array(curve["coverage"]), {"model": np.array(curve["risk"])},
                folder / "coverage_risk.png", subtitle=who,
            )
        )  # fmt: skip
    return run.figures | {path.stem: path for path in drawn}


def _draw_decision(curve: dict[str, Any], folder: Path) -> Path:
    model = curve["net_benefit"]["model"]
    return decision_curve_figure(
        np.array(curve["thresholds"]),
        {name.replace("_", " "): np.array(v["value"]) for name, v in curve["net_benefit"].items()},
        folder / f"decision_{curve['task']}.png",
        subtitle=f"n = {curve['num_patients']:,} patients, "
        f"{100 * curve['prevalence']:.0f} % with it; band: 95 % over patients",
        task=QUESTIONS[curve["task"]],
        bands={"model": (np.array(model["low"]), np.array(model["high"]))},
    )


def figure_captions(figures: Sequence[str]) -> dict[str, str]:
    """Caption of each figure that stands in the report, by name."""
    training = [name for name in figures if name.startswith("training")]
    of = f", first of {len(training)}" if len(training) > 1 else ""
    known = {
        "reliability_patients": "Reliability of the patients' most probable grade.",
        "coverage_risk": "Coverage and risk.",
        "gallery": "Worst errors, one frame per patient; the box is what the model saw.",
        "explanation": "Where the score comes from, in patients named right and wrong.",
        "flow": "Flow of patients and frames",
        **{f"confusion_{words.lower()}": f"Confusion matrix, {words.lower()}."
           for words in LEVELS.values()},
        **{f"roc_{words.lower()}": f"ROC curves, {words.lower()}." for words in LEVELS.values()},
        **{f"decision_{task}": f"Decision curve, {words}." for task, words in QUESTIONS.items()},
        **{f"robustness_{metric}": f"{words} when frames are disturbed."
           for metric, words in _CURVES.items()},
        **{name: f"Training curves{of}." for name in training[:1]},
    }  # fmt: skip
    return {name: caption for name, caption in known.items() if name in figures}
