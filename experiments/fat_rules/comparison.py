"""Systems of measured numbers side by side, leave-one-patient-out, with paired differences.

Every script that asks what a kind of number brings is a dictionary of systems and one call here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.fat_rules.leave_one_out import (
    by_predicted_fat,
    leave_one_out,
    left_out_scores,
    read_as,
)
from steatosis_tf import tracking
from steatosis_tf.cohort.manifest import relocate, write_manifest
from steatosis_tf.cohort.partition import Partition, split_table
from steatosis_tf.evaluation.metrics.intervals import bootstrap_intervals, paired_bootstrap
from steatosis_tf.evaluation.metrics.registry import metrics_of
from steatosis_tf.evaluation.metrics.scores import patient_scores, write_scores
from steatosis_tf.files import replacing, write_json
from steatosis_tf.grades import NOTICE
from steatosis_tf.model.joint import JointModel
from steatosis_tf.model.joint_fit import Part

_READINGS = ("probable", "middle", "expected")
#: Heading -> metric of the tables in which predicted fat percent ranks.
RANKINGS = {
    "AUC, Mild or worse": "ordinal.auc_at_least_mild",
    "AUC, Moderate or worse": "ordinal.auc_at_least_moderate",
    "AUC, Severe": "ordinal.auc_severe",
    "Spearman": "ordinal.spearman_fat",
}
#: Headings of the table. Rankings are by predicted fat percent; a grade is read three ways.
HEADINGS = (
    *RANKINGS,
    *(f"{name}, {reading}" for name in ("accuracy", "kappa") for reading in _READINGS),
)
# Differences are shown for what was asked for beforehand, so that none is picked afterwards.
_COMPARED = ("AUC, Mild or worse", "AUC, Severe", "Spearman", "accuracy, middle", "kappa, middle")


@dataclass(frozen=True)
class MeasuredStudy:
    """Frames and what was measured of them.

    Attributes:
        manifest_path: the manifest of the frames.
        frames: its rows with `fat_percent` known.
        features: one row per frame, as `measure_study` gives them.
    """

    manifest_path: Path
    frames: pd.DataFrame
    features: pd.DataFrame


#: Reading -> patient table; "fat" ranks by predicted fat.
Tables = dict[str, pd.DataFrame]
#: Heading -> value, low and high.
Row = dict[str, dict]


def compare_systems(
    experiment: str,
    systems: Mapping[str, Sequence[Part]],
    study: MeasuredStudy,
    out_dir: str | Path,
) -> tuple[str, dict[str, Row]]:
    """Score every system, log each as a run, and lay them side by side.

    Args:
        experiment: name in MLflow.
        systems: name -> what it sees; the others are compared with the first one.
        study: whom to grade.
        out_dir: folder of the runs, which `steatosis report` reads.

    Returns:
        Markdown tables of rankings, grades, and differences to the first system; and the values.
        Intervals are 95 %, by bootstrap over patients; differences draw the same patients for both.

    Raises:
        ValueError: see `left_out_scores`.
    """
    tables = {
        name: _scored(experiment, name, parts, study, Path(out_dir))
        for name, parts in systems.items()
    }
    first = next(iter(systems))
    values = {name: row_of(one) for name, one in tables.items()}
    others = {name: one for name, one in tables.items() if name != first}
    differences = {name: row_of(one, tables[first]) for name, one in others.items()}
    text = (
        f"Leave-one-patient-out, {study.frames['patient_id'].nunique()} patients, "
        f"{len(study.frames)} frames; "
        f"95 % intervals over patients.\n\n{markdown(values, tuple(RANKINGS))}\n\n"
        f"{markdown(values, HEADINGS[len(RANKINGS) :])}\n"
    )
    if differences:
        text += f"\nDifference to `{first}`:\n\n{markdown(differences, _COMPARED, sign='+')}\n"
    return text, values


def row_of(tables: Tables, baseline: Tables | None = None) -> Row:
    """One row of the table, or of the differences to a baseline if that is given."""

    def found(reading: str) -> dict[str, dict]:
        if baseline is None:
            return bootstrap_intervals(tables[reading])
        return paired_bootstrap(tables[reading], baseline[reading])

    by_fat = found("fat")
    by_reading = [found(reading) for reading in _READINGS]
    entries = [by_fat[name] for name in RANKINGS.values()]
    for metric in ("accuracy", "ordinal.quadratic_kappa"):
        entries += [one[metric] for one in by_reading]
    return dict(zip(HEADINGS, entries, strict=True))


def markdown(rows: Mapping[str, Row], headings: Sequence[str], *, sign: str = "") -> str:
    """A Markdown table, one line per system."""
    lines = ["| System | " + " | ".join(headings) + " |", "|---" * (len(headings) + 1) + "|"]
    for system, entries in rows.items():
        texts = [text_of(entries[name], sign=sign) for name in headings]
        lines.append(f"| {system} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def text_of(entry: dict, *, sign: str = "") -> str:
    """`value (low to high)` of an entry of `bootstrap_intervals`; "-" where it is undefined."""
    if entry["value"] is None:
        return "-"
    if entry["low"] is None:
        return f"{entry['value']:{sign}.3f}"
    return f"{entry['value']:{sign}.3f} ({entry['low']:{sign}.3f} to {entry['high']:{sign}.3f})"


def _scored(
    experiment: str, system: str, parts: Sequence[Part], study: MeasuredStudy, out_dir: Path
) -> Tables:
    settings = {"system": system, "parts": [part.name for part in parts]}
    with tracking.start_run(experiment, system, settings) as run:
        run_dir = out_dir / run.run_id
        run_dir.mkdir(parents=True)
        folds = leave_one_out(study.frames)
        _write_study(study, folds, run_dir)
        scores, models = left_out_scores(study.frames, study.features, parts, folds, name=system)
        patients = patient_scores(scores)
        frames = scores.drop(columns="sqrt_fat")
        write_scores(frames, run_dir / "frame_scores.csv")
        write_scores(patients, run_dir / "patient_scores.csv")
        tables = {
            "fat": by_predicted_fat(scores, patients),
            "probable": patients,
            **{rule: read_as(patients, rule) for rule in ("middle", "expected")},
        }
        row = row_of(tables)
        metrics = {"patient": metrics_of(patients), "frame": metrics_of(frames)}
        about = {"protocol": "lopo", "aggregation": "mean", "notice": NOTICE}
        write_json(about | metrics, run_dir / "metrics.json")
        write_json({"row": row, "folds": _folds(models), "notice": NOTICE}, run_dir / "row.json")
        # MLflow takes no commas in names.
        readings = {name.replace(", ", "."): row[name]["value"] for name in HEADINGS}
        tracking.log_metrics(metrics | readings)
        tracking.log_artifacts(run_dir)
    return tables


def _write_study(study: MeasuredStudy, partitions: list[Partition], run_dir: Path) -> None:
    """Who was graded, who by whom, and the index that a report compares a score with."""
    frames = study.frames
    write_manifest(relocate(frames, study.manifest_path, run_dir), run_dir / "manifest.csv")
    tables = {"split": split_table(partitions)}
    if "hepatorenal_db" in study.features:
        index = study.features["hepatorenal_db"].to_numpy()
        tables["hepatorenal"] = frames[["frame_id", "patient_id"]].assign(hepatorenal_index=index)
    for name, table in tables.items():
        with replacing(run_dir / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)


def _folds(models: Sequence[JointModel]) -> list[dict[str, Any]]:
    return [
        {
            "shares": [part.share for part in model.parts],
            "penalties": [part.rule.penalty for part in model.parts],
        }
        | asdict(model.link)
        for model in models
    ]
