"""Sections 8 to 14 of a report: what was found, how sure it is, and against whom."""

from typing import Any

from steatosis_tf.evaluation.report.analysis import Analysis
from steatosis_tf.evaluation.report.document import (
    Alarm,
    Block,
    Lack,
    Picture,
    Section,
    Table,
    Text,
    key_value_rows,
    number,
    with_interval,
)
from steatosis_tf.evaluation.report.report_thresholds import (
    calibration_blocks,
    decision_blocks,
    operating_blocks,
)
from steatosis_tf.evaluation.report.run import RunRecord
from steatosis_tf.grades import GRADES

LEVELS = {"patient": "Patients", "frame": "Frames"}

#: Metrics of the overview, name in the intervals -> words.
OVERVIEW = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro.f1": "Macro F1",
    "ordinal.quadratic_kappa": "Quadratic weighted kappa",
    "ordinal.auc_at_least_mild": "AUC, Mild or worse",
    "ordinal.auc_at_least_moderate": "AUC, Moderate or worse",
    "ordinal.auc_severe": "AUC, Severe",
}

_ORDINAL = {
    "ordinal.quadratic_kappa": "Quadratic weighted kappa",
    "ordinal.linear_kappa": "Linear weighted kappa",
    "ordinal.mean_absolute_error": "Mean absolute error (grades)",
    "ordinal.error_over_one_grade_rate": "Share of errors over one grade",
    "ordinal.ranked_probability_score": "Ranked probability score",
    "ordinal.auc_at_least_mild": "AUC, Mild or worse",
    "ordinal.auc_at_least_moderate": "AUC, Moderate or worse",
    "ordinal.auc_severe": "AUC, Severe",
    "ordinal.spearman_fat": "Spearman with fat percent",
    "auc_macro": "AUC, one against the rest, macro",
    "auc_micro": "AUC, one against the rest, micro",
    "average_precision_macro": "Average precision, macro",
    "fold_mean.ordinal.auc_at_least_mild": "AUC, Mild or worse, mean of folds",
    "fold_mean.ordinal.auc_at_least_moderate": "AUC, Moderate or worse, mean of folds",
    "fold_mean.ordinal.auc_severe": "AUC, Severe, mean of folds",
    "fold_mean.auc_macro": "AUC, one against the rest, macro, mean of folds",
}


def result_sections(run: RunRecord, analysis: Analysis) -> list[Section]:
    """Sections 8 to 14."""
    return [
        Section("levels", "Unit of inference and intervals", _levels(run, analysis)),
        Section("results", "Confusion matrix and per-class results", _results(run, analysis)),
        Section("ordinal", "Ordinal results and areas under curves", _ordinal(run, analysis)),
        Section("operating", "Operating points", operating_blocks(run, analysis)),
        Section("calibration", "Calibration and grade sets", calibration_blocks(run, analysis)),
        Section("decision", "Decision curves", decision_blocks(run, analysis)),
        Section("comparators", "Comparators", _comparators(run)),
    ]


def _comparators(run: RunRecord) -> list[Block]:
    pictures: list[Block] = [
        Picture(path, "Comparators.") for stem, path in run.figures.items() if "comparator" in stem
    ]
    if "comparators.json" not in run.parts:
        return pictures or [Lack("Not done: the run holds no comparators.json.")]
    rows = key_value_rows(run.parts["comparators.json"])
    return [*pictures, Table(("", "Value"), rows, "comparators.json")]


def _levels(run: RunRecord, analysis: Analysis) -> list[Block]:
    if not analysis.metrics:
        return [Lack("Not done: no score file could be read.")]
    rule = (run.config or {}).get("evaluation", {}).get("aggregation", "not known")
    text = (
        f"The patient is the unit of inference. The {rule} of a patient's frame probabilities is "
        "that patient's score; the rule was part of the configuration before the test part was "
        f"scored. Intervals are 95 % bootstrap intervals of {analysis.num_resamples:,} resamples "
        "of whole patients (BCa unless noted), also for frames, because frames of one patient "
        "are not independent."
    )
    blocks: list[Block] = [Text(text)]
    if run.num_folds > 1:
        blocks.append(
            Text(
                f"The {run.num_folds} folds are not independent repetitions: every patient is "
                "tested once, and the interval is over patients. It does not contain the variation "
                "of training itself (another seed, another split). A pooled AUC compares scores of "
                "different folds' models; the mean of folds does not, and is given beside it."
            )
        )
    blocks.extend(_interval_notes(analysis))
    if analysis.num_resamples < 2000:
        blocks.append(Alarm(f"Only {analysis.num_resamples} resamples; 2,000 are asked for."))
    return blocks


def _interval_notes(analysis: Analysis) -> list[Block]:
    """Which intervals of patients are missing or of another kind, and why."""
    by_note: dict[str, list[str]] = {}
    for name, entry in analysis.intervals.get("patient", {}).items():
        if entry["note"]:
            by_note.setdefault(entry["note"], []).append(name)
    rows = [(", ".join(names), note) for note, names in by_note.items()]
    return [Table(("Metric", "Note on its interval"), rows)] if rows else []


def _results(run: RunRecord, analysis: Analysis) -> list[Block]:
    blocks: list[Block] = []
    for level, words in LEVELS.items():
        found = analysis.metrics.get(level)
        if found is None:
            blocks.append(Lack(f"{words}: not done, {level}_scores.csv is absent or damaged."))
            continue
        blocks.extend(_absent_grades(found, words))
        blocks.append(_matrix_table(found, words))
        for kind in ("confusion", "roc"):
            path = run.figures.get(f"{kind}_{words.lower()}")
            if path:
                what = "Confusion matrix" if kind == "confusion" else "ROC curves"
                blocks.append(Picture(path, f"{what}, {words.lower()}."))
        blocks.append(_per_class_table(found, analysis.intervals[level], words))
    return blocks


def _absent_grades(found: dict[str, Any], words: str) -> list[Block]:
    support = found["support"]
    if sum(support[grade] for grade in GRADES[1:]) == 0:
        return [
            Alarm(
                f"{words}: nobody in the test part has steatosis. Sensitivity, AUC and kappa do "
                "not exist; accuracy here is specificity. Test on patients of every grade."
            )
        ]
    absent = [grade for grade in GRADES if support[grade] == 0]
    if absent:
        return [Alarm(f"{words}: nobody in the test part has grade {', '.join(absent)}.")]
    return []


def _matrix_table(found: dict[str, Any], words: str) -> Table:
    rows = [
        [grade, *(number(cell) for cell in row), number(sum(row))]
        for grade, row in zip(GRADES, found["confusion_matrix"], strict=True)
    ]
    columns = [number(found["num_predicted"][grade]) for grade in GRADES]
    rows.append(["Sum", *columns, number(found["n"])])
    caption = (
        f"{words}: reference grade (rows) against predicted grade (columns); "
        f"{found['num_correct']:,} of {found['n']:,} correct."
    )
    return Table(("Reference", *GRADES, "Sum"), rows, caption)


def _per_class_table(
    found: dict[str, Any], intervals: dict[str, dict[str, Any]], words: str
) -> Table:
    values = ("precision", "recall", "f1", "auc")
    rows = [
        [grade, *(with_interval(intervals.get(f"per_class.{grade}.{value}")) for value in values),
         number(found["per_class"][grade]["support"])]
        for grade in GRADES
    ]  # fmt: skip
    for average in ("macro", "weighted"):
        cells = [with_interval(intervals.get(f"{average}.{value}")) for value in values[:3]]
        area = with_interval(intervals.get("auc_macro")) if average == "macro" else ""
        rows.append([average.capitalize(), *cells, area, number(found["n"])])
    rows.append(["Accuracy", with_interval(intervals["accuracy"]), "", "", "", number(found["n"])])
    header = ("", "Precision", "Recall", "F1", "AUC against the rest", "n")
    return Table(header, rows, f"{words}: value (95 % interval).")


def _ordinal(run: RunRecord, analysis: Analysis) -> list[Block]:
    if not analysis.metrics:
        return [Lack("Not done: no score file could be read.")]
    names = {
        name: words
        for name, words in _ORDINAL.items()
        if any(name in entries for entries in analysis.intervals.values())
    }
    header = ("", *(LEVELS[level] for level in analysis.intervals))
    rows = [
        [words, *(with_interval(entries.get(name)) for entries in analysis.intervals.values())]
        for name, words in names.items()
    ]
    blocks: list[Block] = [Table(header, rows, "Value (95 % interval).")]
    notes = sorted({note for found in analysis.metrics.values() for note in found["notes"]})
    return blocks + [Alarm(note) for note in notes]
