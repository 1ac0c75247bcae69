"""The self-check of a run, does everything it claims follow from its scores; and the checklists.

A run is called consistent only if every check could be made and none failed. Of a reporting
checklist each item is met, not met, or waits for the author.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from steatosis_tf.evaluation.metrics.registry import metrics_of
from steatosis_tf.evaluation.metrics.scores import check_same_patients, patient_scores
from steatosis_tf.evaluation.published import check_tables
from steatosis_tf.evaluation.report.run import STUDY_SECTIONS, RunRecord
from steatosis_tf.files import flat
from steatosis_tf.grades import GRADES, SCORE_COLUMNS

if TYPE_CHECKING:
    from steatosis_tf.evaluation.report.analysis import Analysis

_TOLERANCE = 1e-6
_SHOWN = 5  # differences named in one check; the rest are counted


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: what should hold, as a sentence.
        passed: True, False, or None if it could not be made.
        detail: what was found, or why the check could not be made.
    """

    name: str
    passed: bool | None
    detail: str


def check_run(run: RunRecord) -> list[Check]:
    """Hold metrics, scores, split and manifest of a run against each other."""
    checks = [Check(f"{fault.partition(':')[0]} can be read", False, fault) for fault in run.faults]
    if run.external:
        return [*checks, *_check_external(run, run.external)]
    for level, table in (("patient", run.patient_scores), ("frame", run.frame_scores)):
        checks.append(_metrics_follow(run, level, table))
    for level in ("patient", "frame"):
        checks.append(_tables_agree(run, level))
    return [
        *checks,
        _patients_follow_from_frames(run),
        _scored_as_split(run),
        _split_is_disjoint(run),
        _frames_in_manifest(run),
    ]


def is_consistent(checks: list[Check]) -> bool:
    """Whether every check was made and passed."""
    return bool(checks) and all(check.passed is True for check in checks)


def _metrics_follow(run: RunRecord, level: str, table: pd.DataFrame | None) -> Check:
    name = f"The {level} metrics in metrics.json follow from {level}_scores.csv"
    claimed = (run.metrics or {}).get(level)
    if claimed is None or table is None:
        lacking = "metrics.json" if claimed is None else f"{level}_scores.csv"
        return Check(name, None, f"No {level} results in {lacking}.")
    computed, written = (
        flat({key: part for key, part in metrics.items() if key not in ("notes", "grades")})
        for metrics in (metrics_of(table), claimed)
    )
    # The author of a newer version may add numbers; those that are known have to be right.
    differ = [key for key in computed if not _same(computed[key], written.get(key, "absent"))]
    if not differ:
        return Check(name, True, f"{len(computed)} numbers recomputed, all equal.")
    shown = [f"{key}: written {written.get(key, 'nothing')}, recomputed {computed[key]}"
             for key in differ[:_SHOWN]]  # fmt: skip
    more = f" and {len(differ) - _SHOWN} more" if len(differ) > _SHOWN else ""
    return Check(
        name, False, f"{'; '.join(shown)}{more}. Run `steatosis evaluate` on this run again."
    )


def _same(computed: Any, written: Any) -> bool:
    if computed is None or written is None:
        return computed is written
    if isinstance(written, bool) or not isinstance(written, int | float):
        return False
    return bool(np.isclose(computed, written, rtol=0, atol=_TOLERANCE))


def _tables_agree(run: RunRecord, level: str) -> Check:
    name = f"Matrix, supports, accuracy, per-class values and averages agree ({level})"
    claimed = (run.metrics or {}).get(level)
    if claimed is None:
        return Check(name, None, f"No {level} metrics in metrics.json.")
    try:
        findings = check_tables(published_form(claimed))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return Check(name, False, f"metrics.json has not the expected form: {error!r}.")
    if not findings:
        return Check(name, True, f"All tables follow from the {claimed['n']} counted {level}s.")
    return Check(name, False, " ".join(str(finding) for finding in findings[:_SHOWN]))


def published_form(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of one level in the form `published.check_tables` reads.

    Raises:
        KeyError: if a part is missing.
    """
    values = ("precision", "recall", "f1")
    # An average with an undefined part is None here and 0-filled there; None is not compared.
    return {
        "grades": list(GRADES),
        "confusion_matrix": metrics["confusion_matrix"],
        "per_class": {
            grade: [*(metrics["per_class"][grade][value] for value in values),
                    metrics["per_class"][grade]["support"]]
            for grade in GRADES
        },
        "macro": [metrics["macro"][value] for value in values],
        "weighted": [metrics["weighted"][value] for value in values],
        "n": metrics["n"],
        "accuracy": metrics["accuracy"],
    }  # fmt: skip


def _patients_follow_from_frames(run: RunRecord) -> Check:
    name = "patient_scores.csv follows from frame_scores.csv by the configured rule"
    if run.frame_scores is None or run.patient_scores is None:
        return Check(name, None, "One of the two score files is absent or damaged.")
    rule = run.rule
    try:
        check_same_patients(run.frame_scores, run.patient_scores)
        joined = patient_scores(run.frame_scores, rule)
    except ValueError as error:
        return Check(name, False, str(error))
    written = run.patient_scores.set_index("patient_id").loc[joined["patient_id"]]
    columns = list(SCORE_COLUMNS)
    distance = np.abs(written[columns].to_numpy() - joined[columns].to_numpy()).max(axis=1)
    if (distance > _TOLERANCE).any():
        first = joined["patient_id"].iloc[int(distance.argmax())]
        return Check(
            name, False, f"{int((distance > _TOLERANCE).sum())} patients have other scores than "
            f"their frames give by {rule}, most patient_id={first}.",
        )  # fmt: skip
    return Check(name, True, f"{len(joined)} patients joined from their frames by {rule}.")


def _scored_as_split(run: RunRecord) -> Check:
    name = "Exactly the test patients of split.csv are scored, each in its fold"
    if run.split is None or run.frame_scores is None:
        return Check(name, None, "split.csv or frame_scores.csv is absent or damaged.")
    fault, excused = scored_as_split(run.split, run.frame_scores, run.manifest)
    if fault:
        return Check(name, False, fault)
    num_test = int((run.split["split"] == "test").sum())
    detail = f"{num_test - excused} test patients, all scored, nobody else."
    if excused:
        detail += f" {excused} more have no region of interest on any frame."
    return Check(name, True, detail)


def scored_as_split(
    split: pd.DataFrame, frame_scores: pd.DataFrame, manifest: pd.DataFrame | None
) -> tuple[str, int]:
    """Hold the scored patients against the test part.

    Args:
        split: `fold, patient_id, split`, all text.
        frame_scores: frame table.
        manifest: to excuse patients without a region of interest on any frame; None excuses none.

    Returns:
        what is wrong, "" if nothing; and the number of test patients excused.
    """
    test = split[split["split"] == "test"]
    wanted = set(zip(test["patient_id"], test["fold"], strict=True))
    found = set(
        zip(frame_scores["patient_id"].astype(str), frame_scores["fold"].astype(str), strict=True)
    )
    blind: set[str] = set()
    if manifest is not None and "roi_height" in manifest.columns:
        seen = manifest.loc[manifest["roi_height"].notna(), "patient_id"]
        blind = set(manifest["patient_id"]) - set(seen)
    excused = {(patient, fold) for patient, fold in wanted - found if patient in blind}
    parts = []
    for label, patients in (
        ("not scored", wanted - found - excused),
        ("scored but not test", found - wanted),
    ):
        if patients:
            first, fold = min(patients)
            parts.append(f"{len(patients)} {label}, first patient_id={first} of fold {fold}")
    return f"{'; '.join(parts)}. Score the run again." if parts else "", len(excused)


def _split_is_disjoint(run: RunRecord) -> Check:
    name = "No patient is on two sides of a partition"
    if run.split is None:
        return Check(name, None, "split.csv is absent or damaged.")
    twice = run.split[run.split.duplicated(["fold", "patient_id"])]
    if len(twice):
        first = twice.iloc[0]
        return Check(
            name, False,
            f"{len(twice)} are, first patient_id={first['patient_id']} of fold {first['fold']}.",
        )  # fmt: skip
    num_patients = run.split["patient_id"].nunique()
    return Check(name, True, f"{num_patients} patients in {run.num_folds} partition(s).")


def _check_external(run: RunRecord, external: Mapping[str, Any]) -> list[Check]:
    """What has to hold of patients of another study; a leak stands before every number."""
    found = [_metrics_follow(run, "patient", run.patient_scores), _tables_agree(run, "patient"),
             _everybody_is_told_of(run)]  # fmt: skip
    leakage = external["leakage"]
    if leakage["passed"] is not None:
        name = "No frame is one that the model was trained on"
        found.append(Check(name, leakage["passed"], leakage["text"]))
    return found


def _everybody_is_told_of(run: RunRecord) -> Check:
    name = "Every labelled patient of manifest.csv is graded with its own grade, or listed"
    if run.manifest is None or run.external is None:
        return Check(name, None, "manifest.csv or external.json is absent or damaged.")
    rows = run.manifest[(run.manifest["grade"] != "") & (run.manifest["patient_id"] != "")]
    labelled = rows.groupby("patient_id")["grade"].first().to_dict()
    told = {one["patient_id"]: one["grade"] for one in run.external["not_graded"]}
    if run.patient_scores is not None:
        scored = run.patient_scores
        told |= dict(zip(scored["patient_id"].astype(str), scored["grade"], strict=True))
    if differ := sorted(
        one for one in labelled.keys() | told if labelled.get(one) != told.get(one)
    ):
        return Check(name, False, f"{len(differ)} are not, first patient_id={differ[0]}.")
    return Check(name, True, f"{len(labelled)} patients found.")


def _frames_in_manifest(run: RunRecord) -> Check:
    name = "Every scored frame is in manifest.csv with the same patient, grade and fat percent"
    if run.manifest is None or run.frame_scores is None:
        return Check(name, None, "manifest.csv or frame_scores.csv is absent or damaged.")
    fault = scored_as_listed(run.frame_scores, run.manifest)
    return Check(name, not fault, fault or f"{len(run.frame_scores)} frames found.")


def scored_as_listed(frame_scores: pd.DataFrame, manifest: pd.DataFrame) -> str:
    """Hold the truth that stands beside the scores against the manifest.

    Args:
        frame_scores: frame table.
        manifest: of the run.

    Returns:
        what is wrong, "" if nothing.
    """
    rows = manifest.set_index("frame_id")
    absent = ~frame_scores["frame_id"].isin(rows.index)
    if absent.any():
        first = frame_scores.loc[absent, "frame_id"].iloc[0]
        return f"{int(absent.sum())} frames are not in manifest.csv, first frame_id={first}."
    listed = rows.loc[frame_scores["frame_id"]]
    for column in ("patient_id", "grade", "fat_percent"):
        if column not in listed or column not in frame_scores:
            continue
        here, there = (table[column].to_numpy() for table in (frame_scores, listed))
        differs = here != there
        if column == "fat_percent":  # records keep it as float32
            differs = ~np.isclose(here, there, rtol=1e-6, equal_nan=True)
        if differs.any():
            place = int(differs.argmax())
            return (
                f"{int(differs.sum())} frames have another {column}, first frame_id="
                f"{frame_scores['frame_id'].iloc[place]}: {here[place]} in the scores, "
                f"{there[place]} in manifest.csv."
            )
    return ""


_ITEMS_PATH = Path(__file__).with_name("templates") / "checklists.txt"

MET = "met"
NOT_MET = "not met"
AUTHOR = "needs the author"


@dataclass(frozen=True)
class Item:
    """One item of a checklist.

    Attributes:
        number: as in the guideline.
        subject: what it asks for, in our words.
        status: `MET`, `NOT_MET` or `AUTHOR`.
        section: key of the report's section that answers it or says what is missing; "" where
            only a manuscript can.
    """

    number: str
    subject: str
    status: str
    section: str


def _evidence(run: RunRecord, analysis: "Analysis") -> dict[str, tuple[str, bool]]:
    """What a run itself answers: name -> section and whether it does."""
    columns: set[str] = set() if run.manifest is None else set(run.manifest)
    passed = " ".join(check.name for check in analysis.checks if check.passed)
    is_leaky = run.leak_gate is not None and run.leak_gate.get("passed") is False
    outputs = {"frame_scores.csv", "model.onnx", "config.json"}
    return {
        "calibration": ("calibration", analysis.thresholds.calibrated is not None),
        "characteristics": ("flow", {"sex", "age"} <= columns),
        "config": ("method", run.config is not None),
        "disjoint": ("split", "two sides of a partition" in passed),
        "environment": ("method", run.environment is not None),
        "external": ("external", run.is_external),
        "flow": ("flow", run.manifest is not None and run.rejected is not None),
        "gallery": ("failures", any("gallery" in name for name in run.figures)),
        "intervals": ("results", "patient" in analysis.intervals),
        "leak": ("split", run.leak_gate is not None and not is_leaky),
        "metrics": ("results", "patient" in analysis.metrics),
        "model": ("split", "model.onnx" in run.hashes),
        "operating": ("operating", analysis.thresholds.operating is not None),
        "outputs": ("split", outputs <= set(run.hashes)),
        "preprocessing": ("method", "roi_height" in columns),
        "rejection": ("abstention", analysis.abstaining is not None),
        "robustness": ("robustness", run.robustness is not None),
        "split": ("split", run.split is not None and run.config is not None),
        "subgroups": ("subgroups", bool(analysis.subgroups)),
    }


def read_items() -> dict[str, list[tuple[str, str, str]]]:
    """Guideline -> number, subject and evidence of its items; see `templates/checklists.txt`."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for line in _ITEMS_PATH.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            items = found.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            number, subject, evidence = (part.strip() for part in line.split("|"))
            items.append((number, subject, evidence))
    return found


def fill_checklists(run: RunRecord, analysis: "Analysis") -> dict[str, list[Item]]:
    """Fill CLAIM 2024, TRIPOD+AI and STARD-AI for a run.

    "Met" says that the report answers the item from the run or in the author's words, not that
    the answer is good.

    Returns:
        guideline -> its items in order.
    """
    known = _evidence(run, analysis)
    return {
        name: [_item(*item, known, run.study) for item in items]
        for name, items in read_items().items()
    }


def count_statuses(items: list[Item]) -> str:
    """`20 met, 8 not met, 16 need the author`."""
    met, not_met, author = (
        sum(item.status == status for item in items) for status in (MET, NOT_MET, AUTHOR)
    )
    return f"{met} met, {not_met} not met, {author} need the author"


def _item(
    number: str, subject: str, evidence: str, known: Mapping[str, tuple[str, bool]],
    study: Mapping[str, str],
) -> Item:  # fmt: skip
    answers = [_answer(part.strip(), known, study) for part in evidence.split("+")]
    # What the run lacks stands before what only the author can add.
    status = next(s for s in (NOT_MET, AUTHOR, MET) if s in [status for status, _ in answers])
    return Item(number, subject, status, next(place for s, place in answers if s == status))


def _answer(
    evidence: str, known: Mapping[str, tuple[str, bool]], study: Mapping[str, str]
) -> tuple[str, str]:
    """Status and section of one piece of evidence."""
    kind, _, name = evidence.partition(":")
    if kind == "auto":
        section, holds = known[name]
        return MET if holds else NOT_MET, section
    if kind == "study":
        return MET if name in study else AUTHOR, STUDY_SECTIONS[name]
    return AUTHOR, ""
