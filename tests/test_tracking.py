"""Runs land in a real SQLite store, also when two start at the same moment."""

import resource
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from steatosis_tf import tracking
from steatosis_tf.tracking import store as store_file

_START_TOGETHER = """
import pathlib, sys, time
from steatosis_tf import tracking
tracking.store.LONGEST_WAIT_S = 100  # a busy machine takes longer to make a store
ready, go = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
ready.touch()
while not go.exists():
    time.sleep(0.002)
with tracking.start_run("together", ready.name, {"train.epochs": 3}):
    tracking.log_metrics({"auc": 0.5}, step=0)
"""


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory) -> Path:
    """A store with its tables and no experiment: MLflow takes seconds to make one."""
    folder = tmp_path_factory.mktemp("empty") / "mlruns"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEATOSIS_MLRUNS", str(folder))
        with pytest.raises(ValueError, match=r"out of \(none logged yet\)"):
            tracking.runs_table("resnet")
    return folder


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch, empty_store) -> Path:
    shutil.copytree(empty_store, tmp_path / "mlruns")
    monkeypatch.setenv("STEATOSIS_MLRUNS", str(tmp_path / "mlruns"))
    return tmp_path / "mlruns"


def test_two_runs_started_at_the_same_moment_on_a_new_store_both_land(tmp_path, store):
    shutil.rmtree(store)
    go = tmp_path / "go"
    ready = [tmp_path / "first", tmp_path / "second"]
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", _START_TOGETHER, str(mark), str(go)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for mark in ready
    ]
    try:
        deadline = time.monotonic() + 120
        while not all(mark.exists() for mark in ready) and time.monotonic() < deadline:
            time.sleep(0.05)
        go.touch()
        errors = [run.communicate(timeout=300)[1] for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [0, 0], errors
    table = tracking.runs_table("together")
    assert sorted(table["tags.mlflow.runName"]) == ["first", "second"]
    assert list(table["metrics.auc"]) == [0.5, 0.5]
    assert list(table["params.train.epochs"]) == ["3", "3"]


def test_a_kill_while_the_store_is_made_leaves_none(tmp_path, store):
    shutil.rmtree(store)
    ready, go = tmp_path / "first", tmp_path / "go"
    go.touch()
    run = subprocess.Popen([sys.executable, "-c", _START_TOGETHER, str(ready), str(go)],
                           stderr=subprocess.DEVNULL)  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(store.glob(".unfinished-*.db")) and time.monotonic() < deadline:
        time.sleep(0.001)
    run.kill()
    run.wait()
    assert not (store / "mlflow.db").exists()
    with tracking.start_run("e", "run"):
        pass
    assert tracking.untracked() is None


def test_everything_lies_below_the_store_folder(tmp_path, store, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.csv").write_text("a\n1\n")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "roc.png").write_bytes(b"png")
    with tracking.start_run("demo", "holdout") as run:
        tracking.log_artifacts("table.csv")
        tracking.log_artifacts("figures", "figures")
    assert {path.name for path in tmp_path.iterdir()} == {"mlruns", "table.csv", "figures"}
    assert (store / "mlflow.db").is_file()
    artifacts = next(store.rglob(run.run_id)) / "artifacts"
    assert (artifacts / "table.csv").read_text() == "a\n1\n"
    assert (artifacts / "figures" / "roc.png").read_bytes() == b"png"


def test_folds_are_nested_and_stay_out_of_the_table():
    with tracking.start_run("folds", "kfold", {"split.kind": "kfold"}) as outer:
        for fold in range(2):
            name = tracking.open_experiment()
            with tracking.start_run(name, f"fold {fold}", nested=True) as inner:
                tracking.log_metrics({"auc": 0.1 * fold})
                assert inner.experiment == "folds"
        tracking.log_metrics({"auc": 0.9})  # lands in the outer run again
    table = tracking.runs_table("folds")
    assert list(table["run_id"]) == [outer.run_id]
    assert list(table["metrics.auc"]) == [0.9]
    children = mlflow.search_runs(
        experiment_names=["folds"], filter_string=f"tags.mlflow.parentRunId = '{outer.run_id}'"
    )
    assert sorted(children["tags.mlflow.runName"]) == ["fold 0", "fold 1"]


def test_failing_run_is_marked_and_left_out_of_the_table():
    with pytest.raises(ValueError, match="no such frame"), tracking.start_run("e", "bad") as bad:
        raise ValueError("no such frame")
    failed = mlflow.get_run(bad.run_id)
    assert failed.info.status == "FAILED"
    assert failed.data.tags["steatosis.reason"] == "ValueError: no such frame"
    assert failed.data.tags["mlflow.note.content"] == "Failed: no such frame"
    assert tracking.runs_table("e").empty
    with tracking.start_run("e", "good") as good:
        pass
    assert list(tracking.runs_table("e")["run_id"]) == [good.run_id]


def test_the_link_opens_the_runs_of_an_experiment_or_the_newest():
    places = {}
    for name in ("first", "second"):
        with tracking.start_run(name, "run"):
            time.sleep(0.002)  # start times are kept in ms
        number = mlflow.get_experiment_by_name(name).experiment_id
        places[name] = f"/#/experiments/{number}/runs?workflowType=machine_learning"
    assert tracking.ui_address("first") == "http://127.0.0.1:5000" + places["first"]
    assert tracking.ui_address(port=5001) == "http://127.0.0.1:5001" + places["second"]
    assert tracking.ui_address("third") == "http://127.0.0.1:5000"
    store = f"sqlite:///{tracking.store_dir() / 'mlflow.db'}"
    assert store_file.ui_command() == f"mlflow ui --backend-store-uri {store}"


def test_table_is_newest_first():
    for name in ("first", "second", "third"):
        with tracking.start_run("order", name):
            time.sleep(0.002)  # start times are kept in ms
    table = tracking.runs_table("order")
    assert list(table["tags.mlflow.runName"]) == ["third", "second", "first"]


def test_unknown_experiment_names_the_known_ones():
    for name in ("resnet50_frozen", "demo"):
        with tracking.start_run(name, "run"):
            pass
    expected = r"out of demo, resnet50_frozen in .*Received: experiment='resnet'"
    with pytest.raises(ValueError, match=expected):
        tracking.runs_table("resnet")


def test_metrics_are_flattened_and_what_is_no_number_is_left_out():
    metrics = {
        "patient": {"auc": np.float32(0.5), "per class": {"Mild": {"recall": 1}}},
        "undefined": float("nan"),
        "name": "mean",
        "matrix": [[1, 2], [3, 4]],
        "count": np.int64(7),
    }
    with tracking.start_run("e", "run") as run:
        tracking.log_metrics(metrics)
        tracking.log_tags({"manifest_sha256": "ab"})
    logged = mlflow.get_run(run.run_id).data
    assert logged.metrics == {"patient.auc": 0.5, "patient.per_class.Mild.recall": 1, "count": 7}
    assert logged.tags["manifest_sha256"] == "ab"


def test_history_is_logged_per_epoch():
    history = pd.DataFrame({"epoch": [0, 1, 2], "loss": [3.0, 2.0, 1.5], "val_loss": [4, 5, 6]})
    with tracking.start_run("e", "run") as run:
        tracking.log_history(history)
    client = mlflow.MlflowClient()
    received = client.get_metric_history(run.run_id, "loss")
    assert [(point.step, point.value) for point in received] == [(0, 3.0), (1, 2.0), (2, 1.5)]
    assert len(client.get_metric_history(run.run_id, "val_loss")) == 3


def test_long_parameters_do_not_stop_a_run():
    with tracking.start_run("e", "run", {"model.weights": "x" * 7000}) as run:
        pass
    assert mlflow.get_run(run.run_id).data.params["model.weights"] == "x" * 6000


def test_no_open_run_is_an_error():
    with pytest.raises(ValueError, match=r"open run.*tracking\.start_run"):
        tracking.open_experiment()


def _lock(path: Path) -> sqlite3.Connection:
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    return holder


def _fault(name: str, path: Path) -> sqlite3.Connection | None:
    if name == "locked":
        return _lock(path)
    if name == "garbage":
        path.write_bytes(b"\x00garbage" * 4000)
    elif name == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif name == "folder":
        path.unlink()
        path.mkdir()
    elif name == "schema":
        with sqlite3.connect(path) as store:
            store.execute("UPDATE alembic_version SET version_num = 'ffff'")
    return None


@pytest.mark.parametrize("name", ["locked", "garbage", "cut", "folder", "schema"])
def test_a_store_that_cannot_be_used_does_not_cost_the_run(name, store, monkeypatch, capsys):
    monkeypatch.setattr(store_file, "LONGEST_WAIT_S", 0.5)
    holder = _fault(name, store / "mlflow.db")
    start = time.monotonic()
    with tracking.start_run("e", "run", {"a": 1}) as run:
        with tracking.start_run(tracking.open_experiment(), "fold", nested=True):
            tracking.log_history(pd.DataFrame({"epoch": [0], "loss": [1.0]}))
        tracking.log_metrics({"auc": 0.5})
        tracking.log_tags({"a": "b"})
    assert time.monotonic() - start < 15
    said = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("MLflow: ") for line in said) == 1
    assert len(said) == 1 + (name == "locked")  # that it is waited for
    assert "Received" in said[-1]
    assert "The run goes on" in said[-1]
    assert "Received" in tracking.untracked()
    assert len(run.run_id) == 32
    with pytest.raises(OSError, match="Expected a store of MLflow"):
        tracking.runs_table("e")
    if holder:
        holder.close()


def test_a_full_disk_is_told_in_one_line(store, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with tracking.start_run("of a full disk", "run"):
            tracking.log_metrics({"auc": 0.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in said] == ["MLflow"]
    assert "disk I/O error" in said[0]


def test_a_store_that_is_locked_in_the_middle_loses_the_run_at_most(store, monkeypatch, capsys):
    monkeypatch.setattr(store_file, "LONGEST_WAIT_S", 0.5)
    with tracking.start_run("e", "run") as run:
        holder = _lock(store / "mlflow.db")
        tracking.log_metrics({"auc": 0.5})
        holder.close()
        tracking.log_metrics({"late": 0.5})
    assert "locked" in tracking.untracked()
    assert mlflow.get_run(run.run_id).info.status == "FAILED"
    capsys.readouterr()
    with tracking.start_run("e", "run", again=run.run_id) as later:  # as `report --log` does
        tracking.log_metrics({"auc": 0.5})
    assert later.run_id == run.run_id
    assert tracking.untracked() is None
    assert list(tracking.runs_table("e")["run_id"]) == [run.run_id]


def test_a_run_unknown_to_the_store_is_logged_later_once():
    for _ in range(2):
        with tracking.start_run("e", "run", {"a": 1}, again="made-here") as run:
            tracking.log_metrics({"auc": 0.5})
            tracking.log_history(pd.DataFrame({"epoch": [0, 1], "loss": [3.0, 2.0]}))
    assert run.run_id == "made-here"
    table = tracking.runs_table("e")
    assert list(table["tags.steatosis.run_id"]) == ["made-here"]
    client, run_id = mlflow.MlflowClient(), table["run_id"][0]
    assert len(client.get_metric_history(run_id, "auc")) == 1
    assert [point.step for point in client.get_metric_history(run_id, "loss")] == [0, 1]


def test_a_killed_run_is_gone_on_with_by_its_key_and_its_halves_go(store):
    outer = mlflow.MlflowClient(tracking.store_uri())
    with tracking.start_run("e", "first"):
        experiment = mlflow.active_run().info.experiment_id
    killed, other, alive = (
        outer.create_run(experiment, tags={"steatosis.run_key": key}).info.run_id
        for key in ("k", "other", "alive")
    )
    for parent in (killed, other):
        outer.create_run(experiment, run_name="fold 1", tags={"mlflow.parentRunId": parent})
    with tracking.start_run("e", "again", key="k") as run:
        assert run.run_id == killed
        tracking.end_killed(lambda key: key in ("k", "alive"))
        with tracking.start_run("e", "fold 0", nested=True):
            pass
        assert tracking.finished_children() == {"fold 0"}
    left = mlflow.search_runs([experiment]).set_index("run_id")
    assert left.loc[other, ["status", "tags.steatosis.reason"]].tolist() == ["FAILED", "killed"]
    assert list(left.index[left["status"] == "RUNNING"]) == [alive]
    assert set(tracking.runs_table("e", finished=False)["run_id"]) == {other, alive}
    with tracking.start_run("e", "new", key="k") as run:  # the other one has come to its end
        assert run.run_id != killed


def test_store_folder_is_below_the_current_one_unless_told(tmp_path, monkeypatch):
    monkeypatch.delenv("STEATOSIS_MLRUNS")
    monkeypatch.chdir(tmp_path)
    assert tracking.store_dir() == Path(tmp_path, "mlruns")
    assert tracking.store_uri() == f"sqlite:///{tmp_path}/mlruns/mlflow.db"
