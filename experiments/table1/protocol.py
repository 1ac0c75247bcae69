"""One method through repeated patient-level cross-validation, and once through the wrong split.

Every finished repeat lies in `runs/table1/<method>/<task>/<key>/repeat_<n>/`, laid out as a run
of the pipeline, and is not computed again while its key stands.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.table1.exported import MAX_DIFFERENCE, load_exported, milliseconds_per_frame
from experiments.table1.method import Fitted, FoldData, Method, classes_of, lowest_labels
from experiments.table1.study import Study
from steatosis_tf import tracking
from steatosis_tf.cohort.partition import Partition, split_table
from steatosis_tf.config import flatten, save_config
from steatosis_tf.evaluation.metrics.registry import compute_metrics
from steatosis_tf.evaluation.metrics.scores import (
    labels_and_probabilities,
    read_scores,
    score_table,
    write_scores,
)
from steatosis_tf.evaluation.report.evaluate import evaluate_run
from steatosis_tf.files import replacing, write_json
from steatosis_tf.grades import GRADES, TASKS

EXPERIMENT = "table1"
_NUM_CHECKED = 16
_DONE = "cost.json"


@dataclass(frozen=True)
class Row:
    """A finished method on one task.

    Attributes:
        method: the method.
        task: name out of `grades.TASKS`.
        patient_scores: patient table with the column `repeat`; a grade stands for the lowest of
            its class (see `method.lowest_labels`).
        cost: `num_parameters`, `train_minutes` (processor time of the folds of one repeat),
            `total_minutes` (processor time of everything, all repeats),
            `ms_per_frame` (processor time), `by_image_accuracy` (per frame, split without regard
            to patients).
    """

    method: Method
    task: str
    patient_scores: pd.DataFrame
    cost: dict[str, float]


def run_method(
    method: Method,
    study: Study,
    runs_dir: str | Path = "runs",
    *,
    again: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Do what is missing of a method: each task, each repeat, and the split by image.

    Args:
        method: what to run.
        study: from `load_study`.
        runs_dir: folder of runs.
        again: compute what is there once more.
        say: where one line per finished step goes.

    Raises:
        ValueError: if a method gives back what is no probability.
        RuntimeError: if an exported file gives other probabilities than the trained method.
    """
    for task in method.tasks:
        for repeat in range(method.repeats):
            folder = row_dir(method, task, study, runs_dir) / f"repeat_{repeat}"
            if again or not (folder / _DONE).is_file():
                cost = _run_repeat(method, task, repeat, study, folder)
                say(f"{method.name} {task} repeat {repeat}: {cost['train_minutes']:.1f} minutes")


def read_row(method: Method, task: str, study: Study, runs_dir: str | Path = "runs") -> Row | None:
    """The repeats of a method on a task that are finished; None without the first."""
    folders = [row_dir(method, task, study, runs_dir) / f"repeat_{repeat}"
               for repeat in range(method.repeats)]  # fmt: skip
    finished = list(takewhile(lambda folder: (folder / _DONE).is_file(), folders))
    if not finished:
        return None
    tables = [
        read_scores(folder / "patient_scores.csv").assign(repeat=repeat)
        for repeat, folder in enumerate(finished)
    ]
    costs = [json.loads((folder / _DONE).read_text()) for folder in finished]
    minutes = {
        "train_minutes": float(np.mean([cost["train_minutes"] for cost in costs])),
        "total_minutes": sum(cost["total_minutes"] for cost in costs),
    }
    return Row(method, task, pd.concat(tables, ignore_index=True), costs[0] | minutes)


def row_dir(method: Method, task: str, study: Study, runs_dir: str | Path) -> Path:
    """Folder of the repeats of a method on a task."""
    return Path(runs_dir) / EXPERIMENT / method.name / task / method.key(study, task)


def _run_repeat(
    method: Method, task: str, repeat: int, study: Study, folder: Path
) -> dict[str, Any]:
    start_repeat, seed = time.process_time(), study.config.train.seed + repeat
    partitions = [part for part in study.partitions if part.repeat == repeat]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _DONE).unlink(missing_ok=True)
    params = _params(method, study) | {"task": task, "repeat": repeat, "seed": seed}
    with tracking.start_run(EXPERIMENT, f"{method.name} {task} {repeat}", params):
        cost: dict[str, Any] = {"train_minutes": 0.0}
        tables = []
        for fold, partition in enumerate(partitions):
            with tracking.start_run(EXPERIMENT, partition.name, nested=True):
                tested = study.rows_of(partition.test)
                start = time.process_time()
                fitted = method.fit(_lesson(study, partition, task, seed), **method.settings)
                cost["train_minutes"] += (time.process_time() - start) / 60
                table = _score_table(method, fitted, study, tested, task, fold)
                tracking.log_metrics({"test": compute_metrics(*labels_and_probabilities(table))})
            tables.append(table)
            if fold == 0:
                cost |= _export(method, fitted, study, folder)
        if repeat == 0:
            cost |= {"by_image_accuracy": _by_image(method, task, study, seed)}
        with replacing(folder / "split.csv") as temporary:
            split_table(partitions).to_csv(temporary, index=False)
        write_scores(pd.concat(tables, ignore_index=True), folder / "frame_scores.csv")
        _evaluate(folder, study, task, cost)
    cost["total_minutes"] = (time.process_time() - start_repeat) / 60
    write_json(cost, folder / _DONE)
    return cost


def _params(method: Method, study: Study) -> dict[str, Any]:
    shared = {k: v for k, v in flatten(study.config).items() if k.startswith(("split.", "roi."))}
    own = {f"method.{name}": value for name, value in method.settings.items()}
    return {"method": method.name, **own, **shared}


def _lesson(study: Study, partition: Partition, task: str, seed: int) -> FoldData:
    train, validation = study.rows_of(partition.train), study.rows_of(partition.validation)
    return FoldData(study.hiding(study.rows_of(partition.test)), train, validation, task, seed)


def _evaluate(folder: Path, study: Study, task: str, cost: dict[str, Any]) -> None:
    """The pipeline's own evaluation of the folder, and all of it to MLflow."""
    save_config(study.config, folder / "config.json")
    metrics = evaluate_run(folder)
    tracking.log_metrics({"patient": metrics["patient"], "frame": metrics["frame"]} | cost)
    tracking.log_tags({"run_dir": str(folder), "classes": ", ".join(TASKS[task][0])})
    for name in ("patient_scores.csv", "frame_scores.csv", "metrics.json", "split.csv"):
        tracking.log_artifacts(folder / name)


def _score_table(
    method: Method, fitted: Fitted, study: Study, rows: np.ndarray, task: str, fold: int
) -> pd.DataFrame:
    """Frame scores; a class is written as its lowest grade, truth and probabilities alike."""
    probabilities = np.asarray(fitted.probabilities(_seen(method, study, rows)), np.float64)
    expected = (len(rows), len(TASKS[task][0]))
    if probabilities.shape != expected:
        raise ValueError(
            f"Expected probabilities {expected} for task={task}. "
            f"Received: shape={probabilities.shape}."
        )
    lowest = lowest_labels(task)
    spread = np.zeros((len(rows), len(GRADES)))
    spread[:, lowest] = probabilities
    index = study.index.iloc[rows]
    truth = lowest[classes_of(index["label"].to_numpy(), task)]
    return score_table(index.assign(label=truth), spread, fold).sort_values("frame_id")


def _by_image(method: Method, task: str, study: Study, seed: int) -> float:
    """Accuracy per frame when frames are dealt without regard to patients: the mistake.

    One fifth of the frames is tested, a tenth validates. The data-leakage check would refuse
    this; it is here only to show, struck through, what it would have bought.
    """
    order = np.random.default_rng(seed).permutation(len(study.index))
    tested, validation, train = np.split(order, [len(order) // 5, 3 * len(order) // 10])
    fold_data = FoldData(study.hiding(tested), np.sort(train), np.sort(validation), task, seed)
    fitted = method.fit(fold_data, **method.settings)
    truth = classes_of(study.index["label"].to_numpy()[tested], task)
    found = fitted.probabilities(_seen(method, study, tested))
    return float((found.argmax(axis=1) == truth).mean())


def _seen(method: Method, study: Study, rows: np.ndarray) -> np.ndarray:
    return rows if method.whole_frames else study.rois[rows]


def _export(method: Method, fitted: Fitted, study: Study, folder: Path) -> dict[str, float]:
    """Save the first fold's method, hold the file against it, and time the file."""
    if method.whole_frames:
        fitted.save(folder, np.arange(0))
        return {"num_parameters": fitted.num_parameters, "ms_per_frame": float("nan")}
    rois = study.rois[:: max(1, len(study.rois) // _NUM_CHECKED)][:_NUM_CHECKED]
    path = fitted.save(folder, rois)
    grader = load_exported(path)
    difference = float(np.abs(grader(rois) - fitted.probabilities(rois)).max())
    if not difference <= MAX_DIFFERENCE:
        raise RuntimeError(
            f"Expected {path.name} to give the trained method's probabilities within "
            f"{MAX_DIFFERENCE}. Received: difference={difference:.2g}."
        )
    return {
        "num_parameters": fitted.num_parameters,
        "export_difference": difference,
        "file_mb": path.stat().st_size / 1e6,
        "ms_per_frame": milliseconds_per_frame(grader, rois),
    }
