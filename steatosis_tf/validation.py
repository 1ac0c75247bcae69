"""External validation: patients that a model never saw, answered as `predict` answers them.

Nothing is fitted here. Grades are named by the model's own decision rule, thresholds and prediction
sets are those locked in it. Who is refused is listed, and whoever has a score counts for the ranks.
No TensorFlow.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from steatosis_tf.cohort.manifest import read_manifest, relocate, write_manifest
from steatosis_tf.cohort.near_duplicates import find_training_frames
from steatosis_tf.deploy.bundle import Bundle
from steatosis_tf.deploy.figures import draw_explanations
from steatosis_tf.deploy.inputs import open_inputs
from steatosis_tf.deploy.predict import Grader, answer_groups, open_model
from steatosis_tf.deploy.tables import TABLES, AnswerTables, count_answers
from steatosis_tf.evaluation.clinical.calibration import evaluate_conformal
from steatosis_tf.evaluation.metrics.intervals import bootstrap_intervals, proportion
from steatosis_tf.evaluation.metrics.registry import METRICS, metrics_of
from steatosis_tf.evaluation.metrics.scores import named_labels, write_scores
from steatosis_tf.evaluation.report.evaluate import draw_scores
from steatosis_tf.evaluation.report.report import write_report
from steatosis_tf.files import check_output, file_sha256, write_json, write_sums
from steatosis_tf.grades import GRADES, NOTICE, SCORE_COLUMNS
from steatosis_tf.model.answer import PatientAnswer

#: What says how patients were ordered, whatever the scale of the score.
SPEARMAN = "ordinal.spearman_fat"
RANKS = (*(name for name in METRICS if name.startswith("ordinal.auc_")), SPEARMAN)
#: Stated coverage of `PatientAnswer.fat_interval`.
FAT_COVERAGE = 0.9

_SUMMARY = "external.json"


def validate(
    manifest_path: str | Path,
    output_dir: str | Path,
    *,
    model: str | Path | None = None,
    reference: str = "",
    num_resamples: int = 2000,
) -> dict[str, Any]:
    """Answer the labelled patients of a manifest, hold the answers against the labels, report.

    Args:
        manifest_path: patients with `grade`; rows without are left aside and counted.
        output_dir: new, or of an earlier validation. Gets the tables of `predict`,
            `patient_scores.csv` (graded patients), `metrics.json`, `external.json`, the report.
        model: as of `predict.open_model`.
        reference: column of numbers from which the grades were read, where it is not
            `fat_percent`: the ranks are held against it.
        num_resamples: bootstrap resamples of every interval.

    Returns:
        what stands in `external.json`, see `summary`.

    Raises:
        ValueError: if nobody is labelled, the column is none of numbers, the model cannot be used,
            or the folder holds something else.

    Example:
        Simulated frames are no livers, and the model that comes with the package says so.

        >>> from steatosis_tf.cohort.manifest import build_manifest
        >>> from steatosis_tf.sources.phantom.study import write_phantoms
        >>> labels = write_phantoms("phantoms", num_patients=4, frames_per_patient=1, seed=0)
        >>> built = build_manifest(labels, "manifest.csv")
        >>> validate("manifest.csv", "external", num_resamples=100)["counts"]["graded"]
        0
    """
    manifest_path, folder = Path(manifest_path), Path(output_dir)
    table = read_manifest(manifest_path)
    patients = _patients(table, reference)
    _check_folder(folder, manifest_path)
    grader = open_model(model)
    leakage = find_leakage(grader, table, manifest_path, model)  # first: it refuses other frames
    answers = _answers(grader, table, manifest_path, folder, set(patients["patient_id"]))
    scores = _scored(grader, answers, patients)
    graded = scores[scores["kind"] == "graded"].drop(columns=["kind", "reference"])
    write_manifest(relocate(table, manifest_path, folder), folder / "manifest.csv")
    _write_graded(graded, grader, folder)
    found = _summary(grader, answers, patients, scores, reference, num_resamples)
    found["num_unlabelled"] = table["patient_id"].nunique() - len(patients)
    found["manifest_sha256"] = file_sha256(manifest_path)
    found["leakage"] = leakage
    write_json(found, folder / _SUMMARY)
    write_report(folder, num_resamples=num_resamples)
    write_sums(folder)
    return found


def _counts(answers: list[PatientAnswer]) -> dict[str, int]:
    return count_answers((answer.kind, answer.num_frames) for answer in answers)


def _write_graded(graded: pd.DataFrame, grader: Grader, folder: Path) -> None:
    """Scores, metrics, locked thresholds and figures of the graded patients."""
    metrics: dict[str, Any] = {"protocol": "external", "notice": NOTICE}
    for name in ("patient_scores.csv", "operating_points.json"):
        (folder / name).unlink(missing_ok=True)
    if len(graded):
        metrics["patient"] = metrics_of(graded)
        write_scores(graded, folder / "patient_scores.csv")
        draw_scores(folder, {"patients": graded})
        draw_explanations(folder, grader)
        if points := _operating_points(grader):
            write_json(points, folder / "operating_points.json")
    write_json(metrics, folder / "metrics.json")


def validation_text(found: dict[str, Any]) -> str:
    """What `validate` found, for a person."""
    counts = found["counts"]
    lines = [f"model: {found['model']['name']}",
             f"{counts['patients']} labelled patients: {counts['graded']} graded, "
             f"{counts['score_only']} score only, {counts['unable']} unable to assess"]  # fmt: skip
    why = Counter(one["reason"] for one in found["not_graded"])
    lines += [f"  {number} not graded: {reason}" for reason, number in why.most_common()]
    for name, entry in (found["graded"] | found["ranks"]).items():
        if entry["value"] is not None:
            ends = " (too few patients for an interval)"
            if entry["low"] is not None:
                ends = f" ({entry['low']:.3f} to {entry['high']:.3f})"
            who = "with a score" if name in found["ranks"] else "graded"
            label = _label(name, found["reference"])
            lines.append(f"{label}: {entry['value']:.3f}{ends}, {entry['num_patients']} {who}")
    return "\n".join([*lines, found["leakage"]["text"], NOTICE])


def _label(name: str, reference: str) -> str:
    return f"Spearman with {reference}" if name == SPEARMAN else METRICS[name].label


def _patients(table: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Labelled patients in the order in which the manifest first names them, by any row, since
    their answers come so: patient_id, grade, fat_percent, reference."""
    labelled = table[table["grade"] != ""]
    if labelled.empty:
        raise ValueError(
            "Expected patients with a grade to hold the answers against. Received: none. Without "
            "labels, `steatosis predict` answers."
        )
    column = reference or "fat_percent"
    if reference and reference not in table:
        raise ValueError(
            f"Expected a column {reference!r} in the manifest. Received: {', '.join(table)}."
        )
    try:
        numbers = pd.to_numeric(labelled[column].replace("", np.nan))
    except ValueError as error:
        raise ValueError(
            f"Expected numbers in the column {reference!r}. Received: {error}."
        ) from error
    groups = labelled.assign(reference=numbers).groupby("patient_id")
    patients = groups.agg(
        {"grade": "first", "fat_percent": "mean", "reference": "mean"}
    )  # fmt: skip
    ids = table["patient_id"].unique()
    return patients.loc[ids[np.isin(ids, labelled["patient_id"])]].reset_index()


def _check_folder(folder: Path, manifest_path: Path) -> None:
    check_output(folder / "manifest.csv", [manifest_path])
    # A call that was killed leaves the tables of `predict`.
    is_ours = any((folder / name).is_file() for name in (_SUMMARY, *TABLES))
    if folder.is_dir() and any(folder.iterdir()) and not is_ours:
        raise ValueError(
            f"Expected a new folder, or one of an earlier validation. Received: {folder.name!r}, "
            "which holds something else. Give --output another folder."
        )


def _answers(
    grader: Grader, table: pd.DataFrame, manifest_path: Path, folder: Path, labelled: set[str]
) -> list[PatientAnswer]:
    """Answers of the labelled patients, in the order of the manifest; tables as `predict` has."""
    found = []
    with (
        open_inputs([manifest_path]) as inputs,
        AnswerTables(folder, grader, [str(manifest_path)]).opened() as tables,
    ):
        pairs = zip(table["patient_id"].unique(), inputs.groups, strict=True)
        groups = [group for patient, group in pairs if patient in labelled]
        for answer, _ in answer_groups(grader, groups, desc="validate"):
            tables.add(answer)
            found.append(answer)
        tables.finish(inputs.passed_over, _counts(found))
    return found


def _scored(grader: Grader, answers: list[PatientAnswer], patients: pd.DataFrame) -> pd.DataFrame:
    """One row for each patient with a score, a patient table with `kind` and `reference`.

    A patient with a score only is not graded; the probabilities here order it among the others.
    """
    rows = []
    for answer, (_, patient) in zip(answers, patients.iterrows(), strict=True):
        if answer.kind == "unable":
            continue
        shares = [answer.probabilities.get(grade, np.nan) for grade in GRADES]
        if isinstance(grader, Bundle):
            # Every part's rule predicts the mean patient without its numbers, and they add to it.
            start = grader.joint.parts[0].rule.intercept
            score = start + sum(answer.contributions.values())
            shares = grader.joint.probabilities(np.array([score]))[0].tolist()
        rows.append(
            {"fold": 0, "num_frames": answer.num_used, "kind": answer.kind, **patient,
             **dict(zip(SCORE_COLUMNS, shares, strict=True))}
        )  # fmt: skip
    names = ["patient_id", "fold", "grade", "fat_percent", "num_frames", *SCORE_COLUMNS]
    table = pd.DataFrame(rows, columns=[*names, "kind", "reference"])
    if isinstance(grader, Bundle):
        table["decision_rule"] = grader.joint.decision_rule
    if len(table):
        table["predicted"] = [GRADES[label] for label in named_labels(table)]
    return table


def _operating_points(grader: Grader) -> dict[str, Any] | None:
    """Thresholds of a bundle in the form of `thresholds.choose_operating_points`."""
    if not isinstance(grader, Bundle) or not grader.points:
        return None
    tasks: dict[str, dict[str, Any]] = {}
    for point in grader.joint.calibration.operating_points:
        task, _, rule = point.name.partition(", ")
        entry = {"threshold": point.threshold, "note": None}
        tasks.setdefault(task, {})[rule.split()[0]] = entry
    return {"unit": "patient", "folds": {"0": tasks}}


def _summary(
    grader: Grader,
    answers: list[PatientAnswer],
    patients: pd.DataFrame,
    scores: pd.DataFrame,
    reference: str,
    num_resamples: int,
) -> dict[str, Any]:
    """What the section "External validation" tells.

    Returns:
        `model`; `reference`, the column that ranks are held against; `counts` of answers, and
        `by_grade`, kind -> reference grade -> patients; `not_graded`, each with its reason;
        `graded` and `ranks`, metric -> entry of `bootstrap_intervals` over the graded patients and
        over all with a score; `prediction_sets` and `fat_interval`, what they were to cover and
        what they cover, or None; `decision_rule`.
    """
    options: dict[str, Any] = {"num_resamples": num_resamples}
    graded = scores[scores["kind"] == "graded"]
    # Spearman's coefficient needs ranks alone, and the metric takes 0 to 100.
    ranked = scores.assign(fat_percent=100 * scores["reference"].rank(pct=True))
    sides = {
        "graded": bootstrap_intervals(graded, **options) if len(graded) else {},
        "ranks": bootstrap_intervals(ranked, **options) if len(ranked) else {},
    }
    wanted = {"graded": _shown_graded(), "ranks": RANKS}
    entries = {
        side: {name: found[name] for name in wanted[side] if name in found}
        for side, found in sides.items()
    }
    pairs = list(zip(answers, patients.to_dict("records"), strict=True))
    return {
        "notice": NOTICE,
        "model": {"name": grader.name, "sha256": grader.sha256},
        "reference": reference or "fat_percent",
        "counts": _counts(answers),
        "by_grade": {
            kind: {
                grade: sum(one["grade"] == grade and answer.kind == kind for answer, one in pairs)
                for grade in GRADES
            }
            for kind in ("graded", "score_only", "unable")
        },
        "not_graded": [
            {"patient_id": one["patient_id"], "grade": one["grade"], "kind": answer.kind,
             "reason": answer.reason}
            for answer, one in pairs if answer.kind != "graded"
        ],
        **entries,
        "prediction_sets": _sets(grader, graded),
        "fat_interval": _fat_interval(pairs),
        "decision_rule": grader.joint.decision_rule if isinstance(grader, Bundle) else "argmax",
    }  # fmt: skip


def _shown_graded() -> list[str]:
    return [name for name, metric in METRICS.items()
            if "first" in metric.shown and name not in RANKS]  # fmt: skip


def _sets(grader: Grader, graded: pd.DataFrame) -> dict[str, Any] | None:
    if not isinstance(grader, Bundle) or graded.empty:
        return None
    known = grader.joint.calibration
    locked = {"threshold": known.set_threshold, "coverage": known.set_coverage, "note": None}
    return evaluate_conformal(locked, graded)


def _fat_interval(pairs: list[tuple[PatientAnswer, dict[str, Any]]]) -> dict[str, Any] | None:
    held = [
        low <= one["fat_percent"] <= high
        for answer, one in pairs
        if np.isfinite(one["fat_percent"]) and np.isfinite((low_high := answer.fat_interval)[0])
        for low, high in [low_high]
    ]
    if not held:
        return None
    coverage = proportion(int(sum(held)), len(held))
    return {"stated_coverage": FAT_COVERAGE, "coverage": coverage, "num_patients": len(held)}


def find_leakage(
    grader: Grader, table: pd.DataFrame, manifest_path: Path, model: str | Path | None
) -> dict[str, Any]:
    """Frames of a manifest that a model has learned from, as far as can be told.

    Args:
        grader: opened; a bundle may hold hashes of its training frames.
        table: manifest of the frames that it is tested on.
        manifest_path: where the manifest lies.
        model: as given; a run directory, and one around the model, has a manifest of its own,
            whose exact pixels are compared.

    Returns:
        `passed` (None if it is not known), `text`, and `frame_id` of each frame found under
        `same_pixels` and `near_duplicate`.
    """
    training = grader.about["training"] if isinstance(grader, Bundle) else {}
    fitted = grader.about.get("recalibration", {}) if isinstance(grader, Bundle) else {}
    found: dict[str, Any] = {"same_pixels": [], "near_duplicate": []}
    for known, how in ((training, "trained"), (fitted, "recalibrated")):
        if known.get("manifest_sha256") == file_sha256(manifest_path):
            text = f"Leak: this is the very manifest that the model was {how} on."
            return found | {"passed": False, "text": text}
    hashes = training.get("leak_hashes")
    if hashes is not None:
        found |= find_training_frames(hashes, table, manifest_path)
    elif model is not None:
        found["same_pixels"], text = _known_to_run(table, Path(model))
        if text and not found["same_pixels"]:
            return found | {"passed": None, "text": text}
    if hashes is None and not found["same_pixels"]:
        text = (
            "Leakage check: not possible. The model holds no hashes of its training frames (export "
            "--leak-hashes). Whether it learned from a patient here is not known."
        )
        return found | {"passed": None, "text": text}
    named = set(found["same_pixels"]) | set(found["near_duplicate"])
    if not named and fitted:
        text = (
            "Leakage check: not possible. No frame is one that the model was trained on, but it "
            f"was recalibrated on {fitted['num_patients']} local patients, whose frames it does "
            "not know. Leave them out."
        )
        return found | {"passed": None, "text": text}
    if not named:
        text = "Leakage check: passed. No frame is one that the model was trained on, or like one."
        return found | {"passed": True, "text": text}
    who = table.loc[table["frame_id"].isin(named), "patient_id"].nunique()
    alike = "" if hashes is None else f" {len(found['near_duplicate'])} more look like one,"
    text = (
        f"Leak: {len(found['same_pixels'])} frames are training frames of the model,{alike} of "
        f"{who} patients in all. The figures flatter: leave these patients out."
    )
    return found | {"passed": False, "text": text}


def _known_to_run(table: pd.DataFrame, model: Path) -> tuple[list[str], str]:
    """Frames of a table whose pixels are in the manifest of a model's run; of whom it has ids."""
    runs = [one for one in (model, model.parent)
            if (one / "config.json").is_file() and (one / "manifest.csv").is_file()]  # fmt: skip
    if not runs:
        return [], ""
    learned = read_manifest(runs[0] / "manifest.csv")
    known = set(learned["pixels_sha256"]) - {""}
    same_pixels = table.loc[table["pixels_sha256"].isin(known), "frame_id"].tolist()
    ids = sorted(set(learned["patient_id"]) & set(table["patient_id"]) - {""})
    text = (
        f"Leakage check: {len(ids)} patients have the id of one in the manifest of the model's "
        f"run, first {ids[0]}, by other frames. Where these are the same persons, the figures "
        "flatter: leave them out."
    ) if ids else ""  # fmt: skip
    return same_pixels, text
