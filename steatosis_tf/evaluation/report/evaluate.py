"""From the frame scores of a run to patient scores, metrics and figures."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from steatosis_tf.cohort.manifest import read_manifest
from steatosis_tf.config import load_config
from steatosis_tf.evaluation.clinical.repeatability import visit_repeatability
from steatosis_tf.evaluation.clinical.thresholds import choose_operating_points
from steatosis_tf.evaluation.figures.results import confusion_figure, roc_figure, training_curves
from steatosis_tf.evaluation.metrics.registry import metrics_of, shown_in
from steatosis_tf.evaluation.metrics.scores import (
    labels_and_probabilities,
    patient_scores,
    read_scores,
    write_scores,
)
from steatosis_tf.evaluation.metrics.weighted import expected_grades
from steatosis_tf.evaluation.report.checks import scored_as_listed, scored_as_split
from steatosis_tf.evaluation.report.run import read_split
from steatosis_tf.files import flat, write_json
from steatosis_tf.grades import GRADES, NOTICE


def evaluate_run(run_dir: str | Path) -> dict[str, Any]:
    """Compute everything that is claimed about a run from its `frame_scores.csv`.

    Writes `patient_scores.csv`, `metrics.json` and `figures/*.png` into the run directory. The
    rule that joins a patient's frames is the one in the run's `config.json`, fixed before.

    Args:
        run_dir: `runs/<experiment>/<run_id>`.

    Returns:
        what stands in `metrics.json`: `patient` and `frame` metrics, `aggregation`, `protocol`,
        and, where the manifest names several visits of a patient (`study_id`), `repeatability`.

    Raises:
        ValueError: if the run directory lacks its scores or config, they are damaged, other
            patients are scored than split.csv has for the test part, or another truth stands
            beside the scores than in manifest.csv.
    """
    run_dir = Path(run_dir)
    config = load_config(run_dir / "config.json")
    frames = read_scores(run_dir / "frame_scores.csv")
    manifest_path = run_dir / "manifest.csv"
    manifest = read_manifest(manifest_path) if manifest_path.is_file() else None
    _check_truth(run_dir, frames, manifest)
    visits = _visits(frames, manifest)
    del manifest  # takes as much memory as the scores
    patients = patient_scores(frames, config.evaluation.aggregation)
    write_scores(patients, run_dir / "patient_scores.csv")
    metrics = {
        "protocol": config.split.kind,
        "aggregation": config.evaluation.aggregation,
        "patient": metrics_of(patients),
        "frame": metrics_of(frames),
        "notice": NOTICE,
    }
    if visits:
        metrics["repeatability"] = visits
    write_json(metrics, run_dir / "metrics.json")
    draw_scores(run_dir, {"patients": patients, "frames": frames})
    history_path = run_dir / "history.csv"
    if history_path.is_file():
        history = pd.read_csv(history_path)
        for fold, part in history.groupby("fold"):
            training_curves(part.drop(columns="fold"), run_dir / "figures" / f"training_{fold}.png")
    return metrics


def lock_operating_points(run_dir: str | Path, aggregation: str) -> dict[str, Any]:
    """Choose cut-offs on the validation scores and write `operating_points.json`.

    Called before the test scores are looked at, and never again: a cut-off moved afterwards would
    know the test part.

    Args:
        run_dir: with `validation_scores.csv`.
        aggregation: how frames become a patient.

    Raises:
        ValueError: if the validation scores are missing or damaged.
    """
    run_dir = Path(run_dir)
    frames = read_scores(run_dir / "validation_scores.csv", validation=True)
    points = choose_operating_points(patient_scores(frames, aggregation, validation=True))
    write_json(points, run_dir / "operating_points.json")
    return points


def metrics_text(runs: list[dict[str, Any]]) -> str:
    """A short table of the test metrics for the terminal.

    Args:
        runs: what `evaluate_run` returned for each run; several are the repeats of one
            experiment, shown as mean and range.
    """
    parts = [[run[unit] for run in runs] for unit in ("patient", "frame")]
    lines = [
        f"{'':32}{'patients':>24}{'frames':>24}",
        f"{'number tested':32}{parts[0][0]['n']:>24}{parts[1][0]['n']:>24}",
    ]
    flats = [[flat(metrics) for metrics in part] for part in parts]
    for name, label in shown_in("terminal").items():
        cells = "".join(f"{_spread([values[name] for values in part]):>24}" for part in flats)
        lines.append(f"{label:32}{cells}")
    lines += ["", f"{'per patient':12}" + "".join(f"{name:>24}" for name in _PER_GRADE)]
    for grade in GRADES:
        rows = [metrics["per_class"][grade] for metrics in parts[0]]
        cells = "".join(f"{_spread([row[key] for row in rows]):>24}" for key in _PER_GRADE)
        lines.append(f"{grade:12}{cells}")
    notes = parts[0][0]["notes"]
    if notes and len(runs) == 1:
        more = f" and {len(notes) - 3} more, see metrics.json" if len(notes) > 3 else ""
        lines += ["", f"- is undefined on these patients: {' '.join(notes[:3])}{more}"]
    if len(runs) > 1:
        lines += ["", f"mean (lowest to highest) of {len(runs)} repeats, other folds and seeds"]
    return "\n".join([*lines, "", NOTICE])


_PER_GRADE = ("precision", "recall", "f1", "auc", "support")


def _check_truth(run_dir: Path, frames: pd.DataFrame, manifest: pd.DataFrame | None) -> None:
    """A lost patient or another grade would only make the numbers other ones."""
    split_path = run_dir / "split.csv"
    if manifest is None or not split_path.is_file():
        return  # not a run of the pipeline; the report says what is absent
    fault, _ = scored_as_split(read_split(split_path), frames, manifest)
    if fault:
        raise ValueError(
            f"Expected scores of the test patients of split.csv and of nobody else. "
            f"Received: {fault}"
        )
    if fault := scored_as_listed(frames, manifest):
        raise ValueError(
            "Expected every frame of frame_scores.csv with the patient, grade and fat percent of "
            f"the run's manifest.csv. Received: {fault} One of the two was changed: `steatosis "
            "verify RUN_DIR` says which."
        )


def _visits(frames: pd.DataFrame, manifest: pd.DataFrame | None) -> dict[str, Any] | None:
    """Repeatability over visits, of the fat score where the model has one; None without visits."""
    if manifest is None or "study_id" not in manifest:
        return None
    studies = manifest.set_index("frame_id")["study_id"].reindex(frames["frame_id"]).fillna("")
    seen = frames.assign(study=studies.to_numpy()).query("study != ''")
    if seen.empty or seen.groupby("patient_id")["study"].nunique().max() < 2:
        return None
    scale = "sqrt_fat" if "sqrt_fat" in seen else "grade"
    values = seen.get("sqrt_fat", expected_grades(labels_and_probabilities(seen)[1]))
    found = visit_repeatability(seen["patient_id"], seen["study"], np.asarray(values))
    if "days_since_first_study" in manifest:  # what changed between far visits is in the limit
        days = pd.to_numeric(manifest["days_since_first_study"], errors="coerce")
        groups = days[manifest["frame_id"].isin(seen["frame_id"])].groupby(manifest["patient_id"])
        most = (groups.max() - groups.min()).max()
        found["most_days_apart"] = None if np.isnan(most) else int(most)
    return found | {"scale": scale}


def draw_scores(run_dir: Path, tables: dict[str, pd.DataFrame]) -> None:
    """Draw confusion matrix and ROC curves of score tables into `figures/`.

    Args:
        run_dir: folder of the run.
        tables: "patients" or "frames" -> score table.
    """
    figures = run_dir / "figures"
    for unit, table in tables.items():
        labels, probabilities = labels_and_probabilities(table)
        matrix = metrics_of(table)["confusion_matrix"]
        confusion_figure(matrix, figures / f"confusion_{unit}.png", unit=unit)
        roc_figure(
            labels,
            probabilities,
            figures / f"roc_{unit}.png",
            unit=unit,
            patient_ids=table["patient_id"].to_numpy(),
        )


def _spread(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return "-"  # undefined in at least one run: a mean of the others would flatter
    if all(isinstance(value, int) for value in known):
        return str(known[0])
    mean = f"{sum(known) / len(known):.3f}"
    return mean if len(known) == 1 else f"{mean} ({min(known):.3f} to {max(known):.3f})"
