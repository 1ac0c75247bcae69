"""Runs, metrics and models in MLflow. The only file that imports mlflow.

MLflow is not the run. Where the store cannot be used (locked, damaged, a folder, of another
version, on a full disk) the reason is printed once, what would be logged is left out, and the block
inside `start_run` goes on. Nothing waits in silence, and nothing for long: `store` says how long.

The store is `mlruns/mlflow.db` (SQLite) with the artifacts beside it, below the current folder or
below `$STEATOSIS_MLRUNS`. Look at it with `make ui` or
`mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db`.
"""

import io
import logging
import os
import sqlite3
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import mlflow
import numpy as np
import pandas as pd
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from sqlalchemy.exc import SQLAlchemyError

from steatosis_tf import __version__
from steatosis_tf.files import file_sha256, flat, reason_of, replacing
from steatosis_tf.grades import SCORE_COLUMNS
from steatosis_tf.tracking.store import (
    StoreError,
    alone,
    refusal,
    store_dir,
    store_uri,
    wait_for_store,
)

# It prints the trace of what it raises, and what it raises is told in one line.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

_PARAM_LENGTH = 6000  # MLflow's limit for one parameter's text
_METRICS_PER_BATCH = 1000  # MLflow's limit for one call

# Run by MLflow, as a file: models from code.
_SERVED_BY = Path(__file__).with_name("served_model.py")
# Columns of an answer about a patient, as `served_model` gives them -> MLflow's type.
_ANSWER = {
    **dict.fromkeys(("patient", "date", "kind", "grade"), "string"),
    **dict.fromkeys(("fat_percent", *SCORE_COLUMNS), "double"),
    "prediction_set": "string",
    **dict.fromkeys(("num_frames", "num_used"), "long"),
    **dict.fromkeys(("reason", "frames_left_out", "notice"), "string"),
}

_T = TypeVar("_T")

# Tag of what a run is called outside of the store: its folder's name, also where MLflow could not
# give it.
_FOLDER_TAG = "steatosis.run_id"
_REASON_TAG = "steatosis.reason"
_KEY_TAG = "steatosis.run_key"


@dataclass(frozen=True)
class Run:
    """A started run.

    Attributes:
        run_id: MLflow's, or one made here where the store could not be used.
        experiment: its name.
    """

    run_id: str
    experiment: str


class _State:
    """Why the open run is not tracked, or None; metrics and steps that a run had when it was gone
    on with, by its id."""

    untracked: str | None = None
    logged: ClassVar[dict[str, set[tuple[str, int]]]] = {}


def untracked() -> str | None:
    """Why the open run, or the last one, is not in MLflow as a whole; None if it is."""
    return _State.untracked


@contextmanager
def start_run(
    experiment: str,
    run_name: str,
    params: Mapping[str, Any] | None = None,
    *,
    nested: bool = False,
    again: str | None = None,
    key: str = "",
) -> Iterator[Run]:
    """Open a run; it ends FINISHED, or FAILED with its reason if the block raises.

    Without a usable store the block runs all the same, see the module's text. A run that is gone on
    with keeps what was logged: the same metric of the same step is not logged a second time.

    Args:
        experiment: MLflow experiment name; made if new.
        run_name: shown in the UI.
        params: flat parameters, for example `config.flatten(config)`.
        nested: put it below the run that is open, as folds are.
        again: `run_id` of a run that was started before, to go on with it; where the store does
            not know it, it is made there under an id of MLflow's.
        key: of `unfinished.run_key`, by which a killed run is found again.
    """
    if not nested:
        _State.untracked = None
    outer = mlflow.active_run()
    begun = _attempt(lambda: _begin(experiment, run_name, params or {}, nested, again, key))
    run = begun or Run(again or uuid.uuid4().hex, experiment)
    try:
        yield run
    except BaseException as error:  # Ctrl+C too; it is raised again
        reason = reason_of(error) or "interrupted"
        log_tags({_REASON_TAG: f"{type(error).__name__}: {reason}"[:_PARAM_LENGTH]})
        describe(f"Failed: {reason}"[:_PARAM_LENGTH])
        _end("FAILED", outer)
        raise
    _end("FINISHED", outer)


def _begin(
    experiment: str,
    run_name: str,
    params: Mapping[str, Any],
    nested: bool,
    again: str | None,
    key: str,
) -> Run:
    experiment_id = _experiment_id(experiment)
    known = _find(experiment_id, again) if again else _killed(experiment_id).get(key)
    if known:
        started = mlflow.start_run(run_id=known)
        mlflow.set_tag("mlflow.runName", run_name)
        if _REASON_TAG in started.data.tags:
            mlflow.MlflowClient().delete_tag(known, _REASON_TAG)
        _State.logged[known] = {
            (name, point.step)
            for name in started.data.metrics
            for point in mlflow.MlflowClient().get_metric_history(known, name)
        }
    else:
        tags = {_FOLDER_TAG: again} if again else {}
        tags |= {_KEY_TAG: key} if key else {}
        started = mlflow.start_run(
            experiment_id=experiment_id, run_name=run_name, nested=nested, tags=tags
        )
    new = {name: value for name, value in params.items() if name not in started.data.params}
    if new:
        mlflow.log_params({name: str(value)[:_PARAM_LENGTH] for name, value in new.items()})
    return Run(again or str(started.info.run_id), experiment)


def _end(status: str, outer: mlflow.ActiveRun | None) -> None:
    """End the runs inside `outer`, and take them off MLflow's list of open ones.

    Also those that were given up: to end them may be all that the store takes now, and MLflow
    would try when the process ends, and wait for long.
    """
    given_up, _State.untracked = _State.untracked, None
    while (run := mlflow.active_run()) is not None and run is not outer:
        _State.untracked = None
        _attempt(lambda: mlflow.end_run("FAILED" if given_up else status), quiet=bool(given_up))
    _State.untracked = given_up or _State.untracked


def _find(experiment_id: str, folder_name: str) -> str | None:
    """MLflow's id of the run that has this name on disk."""
    client = mlflow.MlflowClient()
    try:
        if str(client.get_run(folder_name).info.experiment_id) == experiment_id:
            return folder_name
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    found = client.search_runs([experiment_id], f"tags.`{_FOLDER_TAG}` = '{folder_name}'")
    return str(found[0].info.run_id) if found else None


def _killed(experiment_id: str) -> dict[str, str]:
    """Ids of the top-level runs that never came to an end, by their keys.

    A run that was killed between its start in MLflow and its folder has left nothing else.
    """
    runs = mlflow.MlflowClient().search_runs([experiment_id], "attributes.status = 'RUNNING'")
    return {run.data.tags[_KEY_TAG]: run.info.run_id for run in runs if _KEY_TAG in run.data.tags}


def end_killed(is_computed: Callable[[str], bool]) -> None:
    """Mark the runs of the open one's experiment as failed whose process is gone.

    Args:
        is_computed: whether a process computes the run with this key.
    """

    def end() -> None:
        client, experiment_id = mlflow.MlflowClient(), _open_run().info.experiment_id
        for key, run_id in _killed(experiment_id).items():
            if is_computed(key):
                continue
            below = f"tags.`mlflow.parentRunId` = '{run_id}' and attributes.status = 'RUNNING'"
            for child in client.search_runs([experiment_id], below):
                client.set_terminated(child.info.run_id, "FAILED")
            client.set_tag(run_id, _REASON_TAG, "killed")
            client.set_terminated(run_id, "FAILED")

    _attempt(end)


def finished_children() -> set[str]:
    """Names of the runs below the open one that are whole; halves of others are taken away."""

    def look() -> set[str]:
        run, client = _open_run(), mlflow.MlflowClient()
        children = client.search_runs(
            [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
        )
        whole = {child.info.run_id for child in children if child.info.status == "FINISHED"}
        for child in children:
            if child.info.run_id not in whole:
                client.delete_run(child.info.run_id)
        return {str(child.info.run_name) for child in children if child.info.run_id in whole}

    return _attempt(look) or set()


def open_experiment() -> str:
    """Name of the experiment of the open run; "" if that is not tracked.

    Raises:
        ValueError: if no run is open.
    """
    if _State.untracked and mlflow.active_run() is None:
        return ""
    return str(mlflow.get_experiment(_open_run().info.experiment_id).name)


def log_metrics(metrics: Mapping[str, Any], step: int | None = None) -> None:
    """Log the numbers of a dict, nested ones as `outer.inner`; what is not a number is left out."""
    numbers = {
        name.replace(" ", "_"): float(value)
        for name, value in flat(dict(metrics)).items()
        if "[" not in name and isinstance(value, int | float | np.number) and np.isfinite(value)
    }

    def log() -> None:
        known = _State.logged.get(_open_run().info.run_id, set())
        new = {name: value for name, value in numbers.items() if (name, step or 0) not in known}
        mlflow.log_metrics(new, step=step)

    _attempt(log)


def log_history(history: pd.DataFrame) -> None:
    """Log a training history at once: one row per epoch, with the column `epoch`."""
    now = int(time.time() * 1000)
    metrics = [
        Metric(str(name), float(row[name]), now, int(row["epoch"]))
        for row in history.to_dict("records")
        for name in row
        if name != "epoch"
    ]

    def log() -> None:
        run_id = _open_run().info.run_id
        known = _State.logged.get(run_id, set())
        new = [metric for metric in metrics if (metric.key, metric.step) not in known]
        # One call per epoch would be one transaction each, and take longer than training the head.
        for start in range(0, len(new), _METRICS_PER_BATCH):
            part = new[start : start + _METRICS_PER_BATCH]
            mlflow.MlflowClient().log_batch(run_id, metrics=part)

    _attempt(log)


def log_tags(tags: Mapping[str, str]) -> None:
    """Log free texts, for example hashes."""
    _attempt(lambda: mlflow.set_tags(dict(tags)))


def describe(markdown: str) -> None:
    """Give the open run the text that the UI shows first."""
    log_tags({"mlflow.note.content": markdown})


def ui_address(experiment: str = "", port: int = 5000) -> str:
    """Where `make ui` shows the runs of an experiment, or of the newest run if none is named.

    Without a usable store, or a run, it is where the UI begins.
    """

    def look() -> str:
        _connect()
        client, known = mlflow.MlflowClient(), mlflow.search_experiments()
        ids = [one.experiment_id for one in known if one.name == experiment or not experiment]
        newest = client.search_runs(ids, max_results=1) if ids else []
        # Unless told, the UI shows what it has for language models.
        return "".join(f"/#/experiments/{run.info.experiment_id}/runs?workflowType=machine_learning"
                       for run in newest)  # fmt: skip

    return f"http://127.0.0.1:{port}{_attempt(look) or ''}"


def log_manifest(path: str | Path) -> None:
    """Log a manifest as the dataset of the open run: name, hash, columns and number of rows."""
    path = Path(path)
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    digest = file_sha256(path)[:36]  # MLflow's limit

    def log() -> None:
        with warnings.catch_warnings():  # two kinds of source fit a bare name; it is only shown
            warnings.simplefilter("ignore", UserWarning)
            dataset = from_pandas(
                table, source=path.name, name=path.stem, digest=digest, targets="grade"
            )
        mlflow.log_input(dataset, context="training")

    _attempt(log)


def log_artifacts(path: str | Path, folder: str | None = None) -> None:
    """Copy a file, or all files of a folder, into the run's artifacts."""
    path = Path(path)
    log = mlflow.log_artifacts if path.is_dir() else mlflow.log_artifact
    _attempt(lambda: log(str(path), folder))


def log_model(path: str | Path) -> None:
    """Log a grading model with its signature, and register it under the experiment's name.

    The logged file is the one given, byte for byte. A model that the run has already is left as it
    is.

    Args:
        path: ONNX file or zip of a bundle.
    """
    path = Path(path)
    sha256 = file_sha256(path)
    signature = ModelSignature(
        inputs=Schema([ColSpec("string", "image"), ColSpec("string", "patient", required=False)]),
        outputs=Schema([ColSpec(kind, name) for name, kind in _ANSWER.items()]),
    )

    def log() -> None:
        run = _open_run()
        for known in mlflow.search_logged_models(
            [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'", output_format="list"
        ):
            if known.status == "READY" and known.tags.get("sha256") == sha256:
                return
            mlflow.MlflowClient().delete_logged_model(known.model_id)
        # It says that it has registered the model, and asks for an example of a patient's picture.
        with redirect_stderr(io.StringIO()), warnings.catch_warnings(action="ignore"):
            logged = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(_SERVED_BY),
                artifacts={"model": str(path)},
                signature=signature,
                pip_requirements=[f"steatosis_tf=={__version__}"],
                registered_model_name=open_experiment(),
            )
        mlflow.set_logged_model_tags(logged.model_id, {"sha256": sha256})

    _attempt(log)


def runs_table(experiment: str, *, finished: bool = True) -> pd.DataFrame:
    """Top-level runs of an experiment with params, metrics and tags, newest first.

    Args:
        experiment: its name.
        finished: those that came to their end, or those that did not.

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
    # The store chooses: most runs of an experiment are those of folds.
    return mlflow.search_runs(
        [found.experiment_id],
        f"tags.`mlflow.parentRunId` IS NULL AND attributes.status {'=' if finished else '!='} "
        "'FINISHED'",
        order_by=["attributes.start_time DESC"],
    )


def artifact_path(run: Mapping[str, Any], name: str) -> Path:
    """Where an artifact of a run, which is a row of `runs_table`, can be read.

    Raises:
        ValueError: if the run has no such artifact.
    """
    try:
        # By its address, which the row holds: by its id MLflow asks the store again, 18 ms a run.
        return Path(mlflow.artifacts.download_artifacts(f"{run['artifact_uri']}/{name}"))
    except (OSError, mlflow.exceptions.MlflowException) as error:
        run_id = run["run_id"][:8]
        raise ValueError(f"Expected {name} in run {run_id}. Received: none logged.") from error


def _open_run() -> mlflow.ActiveRun:
    run = mlflow.active_run()
    if run is None:
        raise ValueError("Expected an open run. Open one with tracking.start_run.")
    return run


def _attempt(work: Callable[[], _T], *, quiet: bool = False) -> _T | None:
    """Do something in the store; where it fails, say so once and leave MLflow out from then on."""
    if _State.untracked:
        return None
    try:
        try:
            return work()
        except MlflowException as error:
            if quiet or "database is locked" not in str(error):
                raise
            wait_for_store()  # another program's write took longer than MLflow waits by itself
            return work()
    except (MlflowException, OSError, SQLAlchemyError, sqlite3.Error) as error:
        if getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE":  # a fault of the caller
            raise
        _State.untracked = str(error).strip().split("\n")[0]
    if not quiet:
        print(
            f"MLflow: {_State.untracked} The run goes on and keeps its files, untracked.",
            file=sys.stderr,
        )
    return None


def _connect() -> None:
    """See that the store can be used, and that it has its tables.

    Raises:
        StoreError: if it cannot; the text says why and what to do.
    """
    folder = store_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        wait_for_store()
        mlflow.set_tracking_uri(store_uri())
        # The first connection makes the tables, one after the other: two runs that start at the
        # same moment would both try, and a kill would leave a store that no later run can use.
        with alone():
            if not (path := folder / "mlflow.db").exists():
                with replacing(path) as temporary:
                    mlflow.MlflowClient(f"sqlite:///{temporary}").search_experiments(max_results=1)
            mlflow.search_experiments(max_results=1)
    except StoreError:
        raise
    except (MlflowException, OSError, SQLAlchemyError) as error:
        raise refusal(str(error).strip().split("\n")[0]) from error


def _experiment_id(name: str) -> str:
    _connect()
    with alone():
        found = mlflow.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        artifacts = (store_dir() / "artifacts").as_uri()
        # Without this tag the UI opens on traces of language models instead of the runs.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        return str(mlflow.create_experiment(name, artifact_location=artifacts, tags=tags))
