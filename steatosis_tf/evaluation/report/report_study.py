"""Sections 1 to 7 of a report: for what, on whom, against what, split how, by which method."""

from typing import Any

import pandas as pd

from steatosis_tf.cohort.flow import short_reason
from steatosis_tf.evaluation.report.analysis import COVARIATES, Analysis
from steatosis_tf.evaluation.report.document import (
    Alarm,
    Block,
    Lack,
    Picture,
    Section,
    Table,
    Text,
    number,
    with_interval,
)
from steatosis_tf.evaluation.report.report_method import method_blocks, split_blocks
from steatosis_tf.evaluation.report.run import STUDY_KEYS, RunRecord
from steatosis_tf.grades import GRADES

_NUMERIC = ("age", "bmi")
_ABOUT_DATA = ("data_sources", "dates", "devices", "eligibility", "consent", "deidentification")


def study_sections(run: RunRecord, analysis: Analysis) -> list[Section]:
    """Sections 1 to 7."""
    return [
        Section("use", "Intended use and limits of use", _use(run)),
        Section("data", "Data", stated(run, *_ABOUT_DATA)),
        Section("reference", "Reference standard", _reference(run)),
        Section("flow", "Flow of patients and frames", _flow(run)),
        Section("split", "Split and leak audit", split_blocks(run)),
        Section("method", "Preprocessing, model and computation", method_blocks(run)),
        Section("size", "Sample size", _size(run, analysis)),
    ]


def stated(run: RunRecord, *keys: str) -> list[Block]:
    """The author's words, and one list of what the author has not stated."""
    blocks: list[Block] = [
        Text(f"{_name(key)}: {run.study[key]}") for key in keys if key in run.study
    ]
    missing = [f"{_name(key)}: {STUDY_KEYS[key]}" for key in keys if key not in run.study]
    if missing:
        blocks.append(Lack("Needs the author (study.json):", missing))
    return blocks


def _name(key: str) -> str:
    return key.replace("_", " ").capitalize()


def _use(run: RunRecord) -> list[Block]:
    return [
        Text(
            "The model reads one region of interest of a B-mode frame that shows liver and gives "
            "the probabilities of four grades of hepatic steatosis; frames of one patient are "
            "joined into one grade. It is meant to support a qualified reader who sees the frames "
            "and the probabilities beside the grade."
        ),
        Text(
            "Not meant for: a decision without a clinician; other organs, other modalities "
            "(elastography, Doppler, contrast) or pictures of a screen; children; fibrosis or "
            "focal lesions, which it does not see; scanners and populations unlike those below."
        ),
        *stated(run, "intended_use", "users", "population"),
    ]


def _reference(run: RunRecord) -> list[Block]:
    blocks: list[Block] = [
        Text(
            "Where a fat percentage is known, grades follow from it: Normal under 5 %, Mild 5 to "
            "33 %, Moderate over 33 to 66 %, Severe over 66 % of hepatocytes."
        )
    ]
    if run.manifest is not None:
        graded = run.manifest[run.manifest["grade"] != ""].drop_duplicates("patient_id")
        with_fat = int(graded["fat_percent"].notna().sum())
        blocks.append(
            Text(f"{len(graded):,} graded patients, {with_fat:,} of them with a fat percentage.")
        )
    return blocks + stated(run, "reference_standard", "readers", "missing_data")


def _flow(run: RunRecord) -> list[Block]:
    if run.manifest is None:
        return [Lack("Not done: manifest.csv is absent or damaged.")]
    blocks: list[Block] = [Picture(path, "Flow of patients and frames")
                           for name, path in run.figures.items() if "flow" in name]  # fmt: skip
    before, later = _rejected_rows(run.rejected)
    rows = [*before, _flow_row("In the manifest", run.manifest)]
    graded = run.manifest[run.manifest["grade"] != ""]
    rows.append(_flow_row("Without a grade, left aside", run.manifest[run.manifest["grade"] == ""]))
    rows += later
    for name, part in _partitions(run, graded).items():
        rows.append(_flow_row(name, part))
    blocks.append(Table(("Step", "Patients", "Frames"), rows, "Who entered, who left, and why."))
    return [*blocks, _characteristics(run, graded)]


def _rejected_rows(rejected: pd.DataFrame | None) -> list[list[tuple[str, str, str]]]:
    """Rows of those left out before the manifest was made, and of those without a ROI."""
    if rejected is None or not {"frame_id", "reason"} <= set(rejected.columns):
        return [[], []]
    early = rejected["frame_id"] == ""
    kinds = rejected["reason"].where(~early, rejected["reason"].map(short_reason))
    return [
        [_flow_row(f"{name}: {kind}", part) for kind, part in rejected[rows].groupby(kinds[rows])]
        for name, rows in (("Rejected before the manifest", early), ("Rejected", ~early))
    ]


def _flow_row(name: str, part: pd.DataFrame) -> tuple[str, str, str]:
    patients = part.loc[part["patient_id"] != "", "patient_id"]
    return name, number(int(patients.nunique())), number(len(part))


def _partitions(run: RunRecord, graded: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Graded frames of each part; one part "tested out of fold" for cross-validation."""
    if run.split is None:
        return {}
    if run.num_folds > 1:
        tested = set(run.split.loc[run.split["split"] == "test", "patient_id"])
        name = f"Tested out of fold, once each, in {run.num_folds} folds"
        return {name: graded[graded["patient_id"].isin(tested)]}
    return {
        str(side).replace("_", " ").capitalize(): graded[
            graded["patient_id"].isin(set(part["patient_id"]))
        ]
        for side, part in run.split.groupby("split", sort=False)
    }


def _characteristics(run: RunRecord, graded: pd.DataFrame) -> Block:
    parts = _partitions(run, graded) or {"All graded": graded}
    patients = {name: part.drop_duplicates("patient_id") for name, part in parts.items()}
    rows = [["Patients", *(number(len(part)) for part in patients.values())]]
    rows.append(["Frames", *(number(len(part)) for part in parts.values())])
    for grade in GRADES:
        rows.append([grade, *(_share(part["grade"] == grade) for part in patients.values())])
    for column in COVARIATES:
        if column not in graded.columns:
            continue
        if column in _NUMERIC:
            rows.append([column, *(_spread(part[column]) for part in patients.values())])
            continue
        for value in sorted(set(graded[column].astype(str))):
            name = f"{column}: {value or 'unknown'}"
            rows.append([name, *(_share(part[column].astype(str) == value)
                                 for part in patients.values())])  # fmt: skip
    absent = [name for name in ("sex", "age", "bmi", "scanner", "site") if name not in graded]
    caption = "Patients of each part. Number (share), or median (range)."
    if absent:
        caption += f" Not in the manifest: {', '.join(absent)}."
    return Table(("", *parts), rows, caption)


def _share(mask: pd.Series) -> str:
    return f"{int(mask.sum()):,} ({100 * mask.mean():.0f} %)" if len(mask) else "0"


def _spread(values: pd.Series) -> str:
    numbers = pd.to_numeric(values, errors="coerce")
    known = numbers.dropna()
    if known.empty:
        return "unknown"
    text = f"{known.median():g} ({known.min():g} to {known.max():g})"
    missing = len(numbers) - len(known)
    return f"{text}, {missing} unknown" if missing else text


def _size(run: RunRecord, analysis: Analysis) -> list[Block]:
    found: dict[str, Any] = analysis.metrics.get("patient", {})
    if not found:
        return [Lack("Not known: no patient scores.")]
    support = found["support"]
    entry = analysis.intervals["patient"]
    rows = [(grade, number(support[grade])) for grade in GRADES]
    blocks: list[Block] = [Table(("Tested patients", "n"), rows)]
    for name, words in (("accuracy", "accuracy"), ("ordinal.quadratic_kappa", "quadratic kappa")):
        one = entry[name]
        if one["low"] is not None:
            width = one["high"] - one["low"]
            blocks.append(
                Text(f"Width of the interval of {words}: {width:.3f}, {with_interval(one)}.")
            )
    few = [grade for grade in GRADES if support[grade] < 10]
    if few:
        blocks.append(
            Alarm(
                f"Fewer than 10 tested patients with grade {', '.join(few)}: values of "
                f"{'this grade' if len(few) == 1 else 'these grades'} can hardly be read."
            )
        )
    return blocks + stated(run, "sample_size")
