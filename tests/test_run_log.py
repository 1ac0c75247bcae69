"""A finished run whose store was away is logged later, and nothing twice."""

import json
import sqlite3
from pathlib import Path

import numpy as np
import pandas as pd

from steatosis_tf import cli
from steatosis_tf.config import override, save_config
from steatosis_tf.evaluation.metrics.registry import metrics_of
from steatosis_tf.evaluation.metrics.scores import patient_scores, score_table, write_scores
from steatosis_tf.recipes import RECIPES


def _finished_run(run_dir: Path) -> None:
    """What stands in the folder of a run of two folds."""
    (run_dir / "figures").mkdir(parents=True)
    (run_dir / "bundle.zip").write_bytes(b"not opened here")
    ids = [f"p{n:02}" for n in range(24)]
    index = pd.DataFrame({
        "frame_id": [f"f{n}" for n in ids], "patient_id": ids, "label": np.arange(24) % 4,
        "fat_percent": np.nan,
    })  # fmt: skip
    chances = np.random.default_rng(0).dirichlet(np.ones(4), 24)
    frames = score_table(index, chances, np.arange(24) // 12)
    write_scores(frames, run_dir / "frame_scores.csv")
    patients = patient_scores(frames)
    write_scores(patients, run_dir / "patient_scores.csv")
    metrics = {"patient": metrics_of(patients), "frame": metrics_of(frames)}
    (run_dir / "metrics.json").write_text(json.dumps(metrics))
    split = pd.DataFrame({"fold": frames["fold"], "patient_id": ids, "split": "test"})
    split.assign(partition=[f"fold_{n}" for n in split["fold"]]).to_csv(
        run_dir / "split.csv", index=False
    )
    history = pd.DataFrame({"epoch": [0, 1] * 3, "loss": 0.5, "fold": [0, 0, 1, 1, -1, -1]})
    history.to_csv(run_dir / "history.csv", index=False)
    (run_dir / "manifest.csv").write_text("path,grade\n")
    (run_dir / "report.md").write_text(
        "# A run\n\nrun 1\n\n**Notice.**\n\n**Better.**\n\n| a |\n| - |\n\n## 1. Use\n\nNot this.\n"
    )
    environment = {"repeat": 0, "engine": "keras float32", "cost": {"seconds": 2.5}}
    (run_dir / "environment.json").write_text(json.dumps(environment))
    settings = ["split.kind=kfold", "model.weights=random", "roi.depth_px=256"]
    save_config(override(RECIPES["joint"].config, settings), run_dir / "config.json")


def test_a_run_is_logged_later_and_nothing_twice(tmp_path, monkeypatch, capsys):
    run_dir = tmp_path / "runs" / "joint" / "made-here"
    _finished_run(run_dir)
    monkeypatch.setenv("STEATOSIS_MLRUNS", str(tmp_path / "mlruns"))
    (tmp_path / "mlruns").write_text("no folder")
    assert cli.main(["report", str(run_dir), "--log"]) == 1
    assert "Expected a store that takes the run" in capsys.readouterr().err
    (tmp_path / "mlruns").unlink()
    for _ in range(2):
        assert cli.main(["report", str(run_dir), "--log"]) == 0
    with sqlite3.connect(tmp_path / "mlruns" / "mlflow.db") as store:
        tags = dict(store.execute("SELECT value, run_uuid FROM tags WHERE key LIKE 'steatosis.%'"))
        status = store.execute("SELECT status FROM runs").fetchall()
        metrics = store.execute("SELECT key, step, value FROM metrics WHERE run_uuid = ?",
                                (tags["made-here"],)).fetchall()  # fmt: skip
        told = dict(store.execute("SELECT key, value FROM tags WHERE run_uuid = ?",
                                  (tags["made-here"],)))  # fmt: skip
        inputs = store.execute(
            "SELECT COUNT(*) FROM inputs WHERE source_type = 'DATASET'"
        ).fetchone()
        models = store.execute("SELECT name, version FROM model_versions").fetchall()
        of_folds = store.execute("SELECT COUNT(*) FROM metrics WHERE key = 'loss'").fetchone()
    assert status == [("FINISHED",)] * 3  # the run and its two folds
    assert ("seconds", 0, 2.5) in metrics
    assert sorted(key for key, *_ in metrics) == [
        "patient.accuracy", "patient.macro.f1", "patient.ordinal.auc_at_least_mild",
        "patient.ordinal.quadratic_kappa", "seconds",
    ]  # fmt: skip
    assert told["mlflow.runName"] == "joint, efficientnet_lite0 random, beamspace, 5-fold"
    assert told["mlflow.note.content"] == (
        "**Better.**\n\nDiffers from recipe joint: `roi.depth_px=256`, "
        "`model.weights=random`\n\n**Notice.**\n\n| a |\n| - |"
    )
    assert inputs == (1,)  # the manifest
    assert of_folds == (4,)
    assert models == [("joint", 1)]


def test_a_folder_that_is_no_run_of_this_version_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STEATOSIS_MLRUNS", str(tmp_path / "mlruns"))
    run_dir = tmp_path / "runs" / "joint" / "old"
    _finished_run(run_dir)
    (run_dir / "environment.json").write_text('{"seconds": 1}')
    assert cli.main(["report", str(run_dir), "--log"]) == 1
    assert "'old' ('repeat')" in capsys.readouterr().err
    assert not (tmp_path / "mlruns").exists()
