"""Runs, metrics and models in MLflow. The only file that imports mlflow.

MLflow is not the run. Where the store cannot be used (locked, damaged, a folder, of another
version, on a full disk) the reason is printed once, what would be logged is left out, and the block
inside `start_run` goes on. Nothing waits in silence, and nothing waits for longer than
`LONGEST_WAIT_S`.

The store is `mlruns/mlflow.db` (SQLite) with the artifacts beside it, below the current folder or
below `$STEATOSIS_MLRUNS`. Look at it with `make ui` or
`mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db`.
"""

import os
import sqlite3
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import mlflow
import numpy as np
import pandas as pd
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from sqlalchemy.exc import SQLAlchemyError

from steatosis_tf.files import file_sha256
from steatosis_tf.grades import OUTPUT_LAYER

_PARAM_LENGTH = 6000  # MLflow's limit for one parameter's text
_METRICS_PER_BATCH = 1000  # MLflow's limit for one call


#: How long a locked store is waited for; a message says so after the first second.
LONGEST_WAIT_S = 30.0

_T = TypeVar("_T")

# Tag of what a run is called outside of the store: its folder's name, also where MLflow could not
# give it.
_FOLDER_TAG = "steatosis.run_id"
_REASON_TAG = "steatosis.reason"


class StoreError(OSError):
    """The MLflow store cannot be used; the text says why and what to do."""


@dataclass(frozen=True)
class Run:
    """A started run.

    Attributes:
        run_id: MLflow's, or one made here where the store could not be used.
        experiment: its name.
        url: where `make ui` shows it; "" if it is not tracked.
    """

    run_id: str
    experiment: str
    url: str = ""


class _State:
    """Whether the open run is tracked: why it is not, or None."""

    untracked: str | None = None


def untracked() -> str | None:
    """Why the open run, or the last one, is not in MLflow as a whole; None if it is."""
    return _State.untracked


def store_dir() -> Path:
    """Folder of the MLflow store, absolute."""
    return Path(os.environ.get("STEATOSIS_MLRUNS", "mlruns")).absolute()


def store_uri() -> str:
    """SQLAlchemy address of the MLflow store."""
    return f"sqlite:///{store_dir() / 'mlflow.db'}"


@contextmanager
def start_run(
    experiment: str,
    run_name: str,
    params: Mapping[str, Any] | None = None,
    *,
    nested: bool = False,
    again: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Iterator[Run]:
    """Open a run; it ends FINISHED, or FAILED with its reason if the block raises.

    Without a usable store the block runs all the same, see the module's text.

    Args:
        experiment: MLflow experiment name; made if new.
        run_name: shown in the UI.
        params: flat parameters, for example `config.flatten(config)`.
        nested: put it below the run that is open, as folds are.
        again: `run_id` of a run that was started before, to go on with it; where the store does
            not know it, it is made there under an id of MLflow's.
        tags: free texts of the run.
    """
    if not nested:
        _State.untracked = None
    outer = mlflow.active_run()
    begun = _attempt(
        lambda: _begin(experiment, run_name, params or {}, nested, again, dict(tags or {}))
    )
    run = begun or Run(again or uuid.uuid4().hex, experiment)
    try:
        yield run
    except BaseException as error:
        reason = str(error) or "interrupted"
        log_tags({_REASON_TAG: f"{type(error).__name__}: {reason}"[:_PARAM_LENGTH]})
        _end("FAILED", outer)
        raise
    _end("FINISHED", outer)


def _begin(
    experiment: str,
    run_name: str,
    params: Mapping[str, Any],
    nested: bool,
    again: str | None,
    tags: dict[str, str],
) -> Run:
    experiment_id = _experiment_id(experiment)
    if known := _find(experiment_id, again) if again else None:
        started = mlflow.start_run(run_id=known)
        mlflow.set_tags({"mlflow.runName": run_name} | tags)
        if _REASON_TAG in started.data.tags:
            mlflow.MlflowClient().delete_tag(known, _REASON_TAG)
    else:
        tags = tags | {_FOLDER_TAG: again} if again else tags
        started = mlflow.start_run(
            experiment_id=experiment_id, run_name=run_name, nested=nested, tags=tags
        )
    new = {key: value for key, value in params.items() if key not in started.data.params}
    if new:
        mlflow.log_params({key: str(value)[:_PARAM_LENGTH] for key, value in new.items()})
    found = str(started.info.run_id)
    url = f"http://127.0.0.1:5000/#/experiments/{experiment_id}/runs/{found}"
    return Run(again or found, experiment, url)


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


def unfinished_runs(experiment: str, tag: str, value: str) -> list[str]:
    """Ids of the top-level runs with this tag that never came to an end, newest first.

    A run that was killed between its start in MLflow and its folder has left nothing else.
    """

    def look() -> list[str]:
        runs = mlflow.MlflowClient().search_runs(
            [_experiment_id(experiment)],
            f"tags.`{tag}` = '{value}' and attributes.status = 'RUNNING'",
        )
        return [run.info.run_id for run in runs if "mlflow.parentRunId" not in run.data.tags]

    _State.untracked = None
    return _attempt(look) or []


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
    numbers = dict(_numbers(metrics))
    _attempt(lambda: mlflow.log_metrics(numbers, step=step))


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
        # One call per epoch would be one transaction each, and take longer than training the head.
        for start in range(0, len(metrics), _METRICS_PER_BATCH):
            part = metrics[start : start + _METRICS_PER_BATCH]
            mlflow.MlflowClient().log_batch(run_id, metrics=part)

    _attempt(log)


def log_tags(tags: Mapping[str, str]) -> None:
    """Log free texts, for example hashes."""
    _attempt(lambda: mlflow.set_tags(dict(tags)))


def describe(markdown: str) -> None:
    """Give the open run the text that the UI shows first."""
    log_tags({"mlflow.note.content": markdown})


def log_manifest(path: str | Path) -> None:
    """Log a manifest as the dataset of the open run: name, hash, columns and number of rows."""
    path = Path(path)
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    digest = file_sha256(path)[:36]  # MLflow's limit

    def log() -> None:
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


def log_onnx_model(path: str | Path, *, input_shape: tuple[int, int], num_grades: int) -> None:
    """Log an ONNX grading model with its signature, loadable with `mlflow.onnx.load_model`.

    The logged `model.onnx` is the file, byte for byte. A model that the run has already is left
    as it is.

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
    sha256 = file_sha256(path)

    def log() -> None:
        run = _open_run()
        for known in mlflow.search_logged_models(
            [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'", output_format="list"
        ):
            if known.status == "READY" and known.tags.get("sha256") == sha256:
                return
            mlflow.MlflowClient().delete_logged_model(known.model_id)
        logged = mlflow.onnx.log_model(
            onnx.load(str(path)),
            name="model",
            signature=signature,
            pip_requirements=["onnxruntime", "numpy"],
            save_as_external_data=False,  # MLflow would put the weights into a second file
        )
        mlflow.set_logged_model_tags(logged.model_id, {"sha256": sha256})

    _attempt(log)


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
            _wait_for_store()  # another program's write took longer than MLflow waits by itself
            return work()
    except MlflowException as error:
        if error.error_code == "INVALID_PARAMETER_VALUE":  # a fault of the caller
            raise
        _State.untracked = str(error).strip().split("\n")[0]
    except (OSError, SQLAlchemyError, sqlite3.Error) as error:
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
        _wait_for_store()
        mlflow.set_tracking_uri(store_uri())
        # The first connection creates the tables; two runs that start at the same moment would
        # both try, and one would fail.
        with _alone():
            mlflow.search_experiments(max_results=1)
    except StoreError:
        raise
    except (MlflowException, OSError, SQLAlchemyError) as error:
        raise _refusal(str(error).strip().split("\n")[0]) from error


def _refusal(why: str) -> StoreError:
    return StoreError(
        f"Expected a store of MLflow {mlflow.__version__} at {store_dir().name}/mlflow.db. "
        f"Received: {why.rstrip('.')}. Move it away, or name another folder in STEATOSIS_MLRUNS."
    )


def _wait_for_store() -> None:
    """Wait until nobody else writes to the store, for `LONGEST_WAIT_S` at most.

    MLflow itself tries a store that it cannot open ten times, for 100 s, without a word.

    Raises:
        StoreError: if it stays locked, is no SQLite file, or is cut short.
    """
    path = store_dir() / "mlflow.db"
    if not path.exists():
        return
    if not path.is_file():
        raise _refusal("a folder, a device or a pipe")
    start, told = time.monotonic(), False
    while True:
        try:
            with closing(sqlite3.connect(path, timeout=1.0, isolation_level=None)) as store:
                store.execute("BEGIN IMMEDIATE")
                pages = store.execute("PRAGMA page_count").fetchone()[0]
                size = pages * store.execute("PRAGMA page_size").fetchone()[0]
                store.execute("ROLLBACK")
            if path.stat().st_size < size:
                raise _refusal("a file that was cut short")
            return
        except sqlite3.DatabaseError as error:
            if "locked" not in str(error):
                raise _refusal(str(error)) from error
        if not told:
            print("waiting for MLflow's store, which another program has locked", file=sys.stderr)
            told = True
        if time.monotonic() - start > LONGEST_WAIT_S:
            raise _refusal(f"one that another program has locked for over {LONGEST_WAIT_S:.0f} s")


@contextmanager
def _alone() -> Iterator[None]:
    """Hold the lock of what two runs must not do at the same moment."""
    lock = FileLock(store_dir() / ".mlflow.lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        print("waiting for another run that opens MLflow's store", file=sys.stderr)
        try:
            lock.acquire(timeout=LONGEST_WAIT_S)
        except Timeout as error:
            why = f"one that another run has been opening for over {LONGEST_WAIT_S:.0f} s"
            raise _refusal(why) from error
    try:
        yield
    finally:
        lock.release()


def _experiment_id(name: str) -> str:
    _connect()
    with _alone():
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
