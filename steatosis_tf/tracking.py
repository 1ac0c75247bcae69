"""Runs, metrics and models in MLflow. The only file that imports mlflow.

The store is `mlruns/mlflow.db` (SQLite) with the artifacts beside it, below the current folder or
below `$STEATOSIS_MLRUNS`. Look at it with `make ui` or
`mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db`.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import Metric
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from steatosis_tf.grades import OUTPUT_LAYER

_PARAM_LENGTH = 6000  # MLflow's limit for one parameter's text
_METRICS_PER_BATCH = 1000  # MLflow's limit for one call


@dataclass(frozen=True)
class Run:
    """A started run: its id and the experiment it belongs to."""

    run_id: str
    experiment: str


def store_dir() -> Path:
    """Folder of the MLflow store, absolute."""
    return Path(os.environ.get("STEATOSIS_MLRUNS", "mlruns")).absolute()


def store_uri() -> str:
    """SQLAlchemy address of the MLflow store."""
    return f"sqlite:///{store_dir() / 'mlflow.db'}"


@contextmanager
def start_run(
    experiment: str, run_name: str, params: Mapping[str, Any] | None = None, *, nested: bool = False
) -> Iterator[Run]:
    """Open a run; it ends FINISHED, or FAILED if the block raises.

    Args:
        experiment: MLflow experiment name; made if new.
        run_name: shown in the UI.
        params: flat parameters, for example `config.flatten(config)`.
        nested: put it below the run that is open, as folds are.
    """
    experiment_id = _experiment_id(experiment)
    with mlflow.start_run(experiment_id=experiment_id, run_name=run_name, nested=nested) as run:
        if params:
            mlflow.log_params({k: str(v)[:_PARAM_LENGTH] for k, v in params.items()})
        yield Run(run.info.run_id, experiment)


def open_experiment() -> str:
    """Name of the experiment of the open run.

    Raises:
        ValueError: if no run is open.
    """
    return str(mlflow.get_experiment(_open_run().info.experiment_id).name)


def log_metrics(metrics: Mapping[str, Any], step: int | None = None) -> None:
    """Log the numbers of a dict, nested ones as `outer.inner`; what is not a number is left out."""
    mlflow.log_metrics(dict(_numbers(metrics)), step=step)


def log_history(history: pd.DataFrame) -> None:
    """Log a training history at once: one row per epoch, with the column `epoch`."""
    now = int(time.time() * 1000)
    metrics = [
        Metric(str(name), float(row[name]), now, int(row["epoch"]))
        for row in history.to_dict("records")
        for name in row
        if name != "epoch"
    ]
    run_id = _open_run().info.run_id
    # One call per epoch would be one transaction each, and take longer than training the head.
    for start in range(0, len(metrics), _METRICS_PER_BATCH):
        part = metrics[start : start + _METRICS_PER_BATCH]
        mlflow.MlflowClient().log_batch(run_id, metrics=part)


def log_tags(tags: Mapping[str, str]) -> None:
    """Log free texts, for example hashes."""
    mlflow.set_tags(dict(tags))


def log_artifacts(path: str | Path, folder: str | None = None) -> None:
    """Copy a file, or all files of a folder, into the run's artifacts."""
    path = Path(path)
    if path.is_dir():
        mlflow.log_artifacts(str(path), folder)
    else:
        mlflow.log_artifact(str(path), folder)


def log_onnx_model(path: str | Path, *, input_shape: tuple[int, int], num_grades: int) -> None:
    """Log an ONNX grading model with its signature, loadable with `mlflow.onnx.load_model`.

    Args:
        path: ONNX file with the input `roi` and the output `probabilities`.
        input_shape: height and width of the ROI in px.
        num_grades: number of probabilities.
    """
    import onnx

    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, *input_shape, 1), "roi")]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, num_grades), OUTPUT_LAYER)]),
    )
    mlflow.onnx.log_model(
        onnx.load(str(path)),
        name="model",
        signature=signature,
        pip_requirements=["onnxruntime", "numpy"],
    )


def runs_table(experiment: str) -> pd.DataFrame:
    """Every finished top-level run of an experiment with its params and metrics, newest first.

    Raises:
        ValueError: if there is no such experiment; the text lists those there are.
    """
    _connect()
    found = mlflow.get_experiment_by_name(experiment)
    if found is None:
        names = sorted(e.name for e in mlflow.search_experiments() if e.name != "Default")
        raise ValueError(
            f"Expected an experiment out of {', '.join(names) or '(none logged yet)'} in "
            f"mlruns/mlflow.db. Received: experiment={experiment!r}."
        )
    runs = mlflow.search_runs([found.experiment_id], order_by=["attributes.start_time DESC"])
    if "tags.mlflow.parentRunId" in runs.columns:
        runs = runs.loc[runs["tags.mlflow.parentRunId"].isna()]
    return runs.loc[runs["status"] == "FINISHED"].reset_index(drop=True)


def artifact_path(run_id: str, name: str) -> Path:
    """Where an artifact of a run can be read.

    Raises:
        ValueError: if the run has no such artifact.
    """
    _connect()
    try:
        return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name))
    except (OSError, mlflow.exceptions.MlflowException) as error:
        raise ValueError(f"Expected {name} in run {run_id[:8]}. Received: none logged.") from error


def _open_run() -> mlflow.ActiveRun:
    run = mlflow.active_run()
    if run is None:
        raise ValueError("Expected an open run. Open one with tracking.start_run.")
    return run


def _connect() -> None:
    folder = store_dir()
    folder.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(store_uri())
    # The first connection creates the tables; two runs that start at the same moment would both
    # try, and one would fail.
    with FileLock(folder / ".mlflow.lock"):
        mlflow.search_experiments(max_results=1)


def _experiment_id(name: str) -> str:
    _connect()
    with FileLock(store_dir() / ".mlflow.lock"):
        found = mlflow.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        artifacts = (store_dir() / "artifacts").as_uri()
        # Without this tag the UI opens on traces of language models instead of the runs.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        return str(mlflow.create_experiment(name, artifact_location=artifacts, tags=tags))


def _numbers(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        # MLflow allows only these marks in a metric name.
        key = prefix + str(name).replace(" ", "_")
        if isinstance(value, Mapping):
            yield from _numbers(value, key + ".")
        elif isinstance(value, int | float | np.integer | np.floating) and np.isfinite(value):
            yield key, float(value)
