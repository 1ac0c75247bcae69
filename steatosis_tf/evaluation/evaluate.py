"""From the frame scores of a run to patient scores, metrics and figures."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from steatosis_tf.atomic import replacing
from steatosis_tf.config import load_config
from steatosis_tf.evaluation.figures import confusion_figure, roc_figure, training_curves
from steatosis_tf.evaluation.metrics import compute_metrics
from steatosis_tf.evaluation.scores import (
    labels_and_probabilities,
    patient_scores,
    read_scores,
    write_scores,
)
from steatosis_tf.grades import GRADES, NOTICE


def evaluate_run(run_dir: str | Path) -> dict[str, Any]:
    """Compute everything that is claimed about a run from its `frame_scores.csv`.

    Writes `patient_scores.csv`, `metrics.json` and `figures/*.png` into the run directory. The
    rule that joins a patient's frames is the one in the run's `config.json`, fixed before.

    Args:
        run_dir: `runs/<experiment>/<run_id>`.

    Returns:
        what stands in `metrics.json`: `patient` and `frame` metrics, `aggregation`, `protocol`.

    Raises:
        ValueError: if the run directory lacks its scores or config, or they are damaged.
    """
    run_dir = Path(run_dir)
    config = load_config(run_dir / "config.json")
    frames = read_scores(run_dir / "frame_scores.csv")
    patients = patient_scores(frames, config.evaluation.aggregation)
    write_scores(patients, run_dir / "patient_scores.csv")
    metrics = {
        "protocol": config.split.kind,
        "aggregation": config.evaluation.aggregation,
        "patient": _metrics(patients),
        "frame": _metrics(frames),
        "notice": NOTICE,
    }
    with replacing(run_dir / "metrics.json") as temporary:
        temporary.write_text(json.dumps(metrics, indent=2) + "\n")
    _draw(run_dir, {"patients": patients, "frames": frames})
    return metrics


def metrics_text(metrics: dict[str, Any]) -> str:
    """A short table of the test metrics for the terminal.

    Args:
        metrics: as `evaluate_run` returns it.
    """
    patient, frame = metrics["patient"], metrics["frame"]
    lines = [
        f"{'':24}{'patients':>10}{'frames':>10}",
        f"{'number tested':24}{patient['n']:>10}{frame['n']:>10}",
    ]
    for name, path in _SHOWN.items():
        cells = "".join(f"{_text(_look_up(part, path)):>10}" for part in (patient, frame))
        lines.append(f"{name:24}{cells}")
    lines += ["", f"{'per patient':12}{'precision':>10}{'recall':>8}{'F1':>8}{'AUC':>8}{'n':>6}"]
    for grade in GRADES:
        row = patient["per_class"][grade]
        cells = "".join(f"{_text(row[key]):>8}" for key in ("recall", "f1", "auc"))
        lines.append(f"{grade:12}{_text(row['precision']):>10}{cells}{row['support']:>6}")
    return "\n".join([*lines, "", NOTICE])


_SHOWN = {
    "accuracy": ("accuracy",),
    "balanced accuracy": ("balanced_accuracy",),
    "macro F1": ("macro", "f1"),
    "weighted F1": ("weighted", "f1"),
    "AUC, macro": ("auc_macro",),
    "AUC, Mild or worse": ("ordinal", "auc_at_least_mild"),
    "quadratic kappa": ("ordinal", "quadratic_kappa"),
}


def _metrics(table: pd.DataFrame) -> dict[str, Any]:
    labels, probabilities = labels_and_probabilities(table)
    return compute_metrics(labels, probabilities, table["fat_percent"].to_numpy(float))


def _draw(run_dir: Path, tables: dict[str, pd.DataFrame]) -> None:
    figures = run_dir / "figures"
    for unit, table in tables.items():
        labels, probabilities = labels_and_probabilities(table)
        matrix = compute_metrics(labels, probabilities)["confusion_matrix"]
        confusion_figure(matrix, figures / f"confusion_{unit}.png", unit=unit)
        roc_figure(
            labels,
            probabilities,
            figures / f"roc_{unit}.png",
            unit=unit,
            patient_ids=table["patient_id"].to_numpy(),
        )
    history_path = run_dir / "history.csv"
    if history_path.is_file():
        history = pd.read_csv(history_path)
        for fold, part in history.groupby("fold"):
            training_curves(part.drop(columns="fold"), figures / f"training_{fold}.png")


def _look_up(metrics: dict[str, Any], path: tuple[str, ...]) -> Any:
    for key in path:
        metrics = metrics[key]
    return metrics


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
