"""A run that is killed at any moment goes on as the same run, and ends with the same files."""

import contextlib
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from same_files import contents

from steatosis_tf.cohort.partition import Partition
from steatosis_tf.config import Config, override
from steatosis_tf.recipes import RECIPES


def _in_folder(work, folder: str, config: Config) -> None:
    """Works in a process group of its own, so that nothing of it outlives the kill."""
    os.setsid()
    os.chdir(folder)
    os.environ["STEATOSIS_MLRUNS"] = "mlruns"
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    work(config)


def _run(config: Config) -> None:
    from steatosis_tf.pipeline import run_all

    run_all("e", "manifest.csv", [config])


def _train(config: Config) -> None:
    """What `run_all` does between its records and its report, on features that need no network."""
    from steatosis_tf.run_log import begun
    from steatosis_tf.training import StudyData, train_and_score

    patient = np.repeat(np.arange(40), 2)
    index = pd.DataFrame({
        "frame_id": [f"f{n:02}" for n in range(80)],
        "patient_id": [f"p{n:02}" for n in patient],
        "label": patient % 4,
        "fat_percent": np.array([2.0, 20.0, 50.0, 80.0])[patient % 4],
    })  # fmt: skip
    noise = np.random.default_rng(0).normal(0, 0.3, (80, 11))
    seen = (patient % 4)[:, None] + noise
    data = StudyData(Path(), index, seen[None, :, :8].astype(np.float32), None,
                     measured=seen[:, 8:])  # fmt: skip
    names = [f"p{n:02}" for n in range(40)]
    fifths = [frozenset(names[n : n + 8]) for n in range(0, 40, 8)]
    folds = [
        Partition(
            f"fold_{n}", frozenset(names) - fifths[n] - fifths[n - 1], fifths[n - 1], fifths[n]
        )
        for n in range(5)
    ]
    with begun(Path("runs", "e"), "key", config, 0) as run_dir:
        joint = train_and_score(data, folds, config, run_dir)
        (run_dir / "joint.json").write_text(joint.to_json())


@pytest.fixture(scope="module")
def start():
    """Starts a run in a new process; TensorFlow is imported once, before the first."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["steatosis_tf.pipeline"])
    first = context.Process(target=print)  # so that no time of a run is that of the import
    first.start()
    first.join()

    def begin(*arguments) -> multiprocessing.Process:
        process = context.Process(target=_in_folder, args=arguments)
        process.start()
        return process

    return begin


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from steatosis_tf.cohort.manifest import build_manifest
    from steatosis_tf.sources.phantom.study import write_phantoms

    folder = tmp_path_factory.mktemp("study")
    labels = write_phantoms(folder / "phantoms", num_patients=24, frames_per_patient=1, seed=0)
    build_manifest(labels, folder / "manifest.csv")
    return folder


def _to_the_end(start, work, folder: Path, config: Config) -> float:
    begun = time.monotonic()
    process = start(work, str(folder), config)
    process.join(3600)  # machines may be shared
    if process.is_alive():
        _kill(process)
    assert process.exitcode == 0, (folder / "log.txt").read_text()[-3000:]
    return time.monotonic() - begun


def _kill(process: multiprocessing.Process) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has no group of its own yet
        process.kill()
    process.join()


def _only_run(folder: Path) -> Path:
    (run_dir,) = (path for path in folder.glob("runs/*/*") if path.parent.name != "cache"
                  and path.is_dir())  # fmt: skip
    return run_dir


def _is_finished(folder: Path) -> bool:
    scores = list(folder.glob("runs/e/*/frame_scores.csv"))
    return bool(scores) and not list(folder.glob("runs/e/*/UNFINISHED.json"))


def _is_tracked_once(folder: Path, run_id: str, num_folds: int) -> None:
    with sqlite3.connect(folder / "mlruns" / "mlflow.db") as store:
        runs = store.execute(
            "SELECT run_uuid, status FROM runs WHERE lifecycle_stage = 'active'"
        ).fetchall()
        twice = store.execute(
            "SELECT key FROM metrics WHERE run_uuid = ? GROUP BY key, step HAVING COUNT(*) > 1",
            (run_id,),
        ).fetchall()
        reasons = store.execute("SELECT value FROM tags WHERE key = 'steatosis.reason'").fetchall()
    assert {status for _, status in runs} == {"FINISHED"}
    assert len(runs) == 1 + num_folds
    assert run_id in {run for run, _ in runs}
    assert twice == reasons == []


def _at_any_moment(process: multiprocessing.Process, folder: Path, seconds: float, share: float):
    process.join(share * seconds)


def _inside_an_epoch(process: multiprocessing.Process, folder: Path, seconds: float, share: float):
    """Two epochs on from where the run was, and a proportion of the next."""
    known = _kept_epochs(folder)
    for _ in range(2):
        begun = time.monotonic()
        while (kept := _kept_epochs(folder)) == known and process.is_alive():
            time.sleep(0.002)
        known = kept
    assert known, (folder / "log.txt").read_text()[-3000:]
    process.join(share * (time.monotonic() - begun))


def _kept_epochs(folder: Path) -> int:
    """How many epochs of a fold are kept."""
    for path in folder.glob("runs/e/*/.work/fold_0.npz"):
        with contextlib.suppress(FileNotFoundError), np.load(path) as file:  # the fold is done
            return len(json.loads(file["state"].item())["rows"])
    return 0


def _kill_and_compare(
    start, work, folder: Path, config: Config, kills: int, seed: int, wait=_at_any_moment
) -> None:
    """The same command in copies of `given`: once to its end, in the others killed so often in all.

    A run that comes to its end before it is killed is compared too, and another copy begun. What
    the first took, on a machine that is shared, may be many times what the next ones take: the
    moments lie in the shortest run so far, or hardly one would be killed.
    """
    whole = shutil.copytree(folder / "given", folder / "whole")
    seconds = _to_the_end(start, work, whole, config)
    num_killed, rounds, moments = 0, itertools.count(), random.Random(seed)
    while num_killed < kills:
        killed = shutil.copytree(folder / "given", folder / f"killed_{next(rounds)}")
        begun, killed_before = time.monotonic(), num_killed
        while num_killed < kills:
            process = start(work, str(killed), config)
            wait(process, killed, seconds, moments.random())
            _kill(process)
            assert process.exitcode in (0, -signal.SIGKILL), (killed / "log.txt").read_text()
            if _is_finished(killed):  # the same command would be a new run now
                if num_killed == killed_before:
                    seconds = min(seconds, time.monotonic() - begun)
                break
            num_killed += 1
        else:
            _to_the_end(start, work, killed, config)
        _is_the_same(whole, killed, config)


def _is_the_same(whole: Path, killed: Path, config: Config) -> None:
    one, other = contents(_only_run(whole)), contents(_only_run(killed))
    assert other.keys() == one.keys()
    assert [name for name in one if other[name] != one[name]] == []
    num_folds = config.split.folds if config.split.kind == "kfold" else 0
    _is_tracked_once(killed, _only_run(killed).name, num_folds)


def test_five_kills_change_nothing(start, tmp_path):
    (tmp_path / "given").mkdir()
    config = override(RECIPES["joint"].config, ["split.kind=kfold"])
    _kill_and_compare(start, _train, tmp_path, config, kills=5, seed=16)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["linear", "demo"])
def test_twenty_kills_change_nothing(start, study, tmp_path, recipe):
    shutil.copytree(study, tmp_path / "given")
    settings = ["split.kind=kfold", "split.folds=3", "model.engine=keras"]
    small = ["roi.depth_px=64", "roi.num_beams=64"] if recipe == "linear" else ["train.epochs=5"]
    config = override(RECIPES[recipe].config, settings + small)
    _kill_and_compare(start, _run, tmp_path, config, kills=20, seed=17)


@pytest.mark.slow
@pytest.mark.parametrize(
    "epochs",
    ["train.views=0 train.epochs=14", "train.views=1 train.epochs=2 train.fine_tune_epochs=14"],
    ids=["pixels", "fine_tune"],
)
def test_kills_inside_long_epochs_change_nothing(start, study, tmp_path, epochs):
    shutil.copytree(study, tmp_path / "given")
    settings = ["split.kind=holdout", "model.engine=keras", "train.plateau_patience=2"]
    config = override(RECIPES["demo"].config, settings + epochs.split())
    _kill_and_compare(start, _run, tmp_path, config, 5, 19, _inside_an_epoch)
