"""The line from simulated frames to a graded patient, through the doors a user has."""

import json
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from same_files import contents

from steatosis_tf import cli

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "experiments" / "resnet50_frozen.py"
SETTINGS = ["roi.method=sector", "train.epochs=3", "train.views=1", "train.learning_rate=1e-3"]


def call(*words: object) -> int:
    return cli.main([str(word) for word in words])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with phantoms, a manifest and two runs of the same experiment."""
    folder = tmp_path_factory.mktemp("study")
    assert call("phantom", folder / "phantoms", "--patients", 24, "--frames", 1) == 0
    labels = folder / "phantoms" / "labels.csv"
    assert call("manifest", labels, "--output", folder / "manifest.csv") == 0
    for name in ("first", "second"):
        done = subprocess.run(
            [sys.executable, str(SCRIPT), "--manifest", "manifest.csv", "--weights", "random",
             "--report", f"{name}.json", "--set", *SETTINGS],
            cwd=folder, capture_output=True, text=True, timeout=600, check=False,
            env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin", "HOME": str(folder)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (folder / f"{name}.err").write_text(done.stderr)
    return folder


def run_dir(study: Path, name: str = "first") -> Path:
    return study / json.loads((study / f"{name}.json").read_text())["result"]["runs"][0]["run_dir"]


def test_run_directory_is_complete(study: Path) -> None:
    present = {path.name for path in run_dir(study).iterdir()}
    assert present >= {
        "config.json", "manifest.csv", "split.csv", "rejected.csv", "model.keras", "model.onnx",
        "history.csv", "frame_scores.csv", "patient_scores.csv", "validation_scores.csv",
        "metrics.json", "environment.json", "figures", "leak_gate.json", "operating_points.json",
        "report.html", "model_card.md", "hepatorenal.csv", "SHA256SUMS",
    }  # fmt: skip
    figures = {path.name for path in (run_dir(study) / "figures").iterdir()}
    assert figures >= {
        "confusion_patients.png", "roc_patients.png", "training_0.png", "explanation.png",
    }  # fmt: skip


def test_stderr_says_what_we_do_and_nothing_of_libraries(study: Path) -> None:
    lines = (study / "first.err").read_text().replace("\r", "\n").splitlines()
    noise = re.compile(r"oneDNN|absl|cuda|\bINFO\b|Downloading|downloaded|Warning|WARNING")
    assert [line for line in lines if noise.search(line)] == []
    assert "split: hold-out of 24 patients" in lines


def test_a_run_verifies(study: Path) -> None:
    assert call("verify", run_dir(study)) == 0


def test_the_same_command_gives_the_same_files(study: Path) -> None:
    first, second = (contents(run_dir(study, run)) for run in ("first", "second"))
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_no_patient_is_in_two_splits(study: Path) -> None:
    split = pd.read_csv(run_dir(study) / "split.csv")
    assert split["patient_id"].is_unique
    assert set(split["split"]) == {"train", "validation", "test"}
    scored = pd.read_csv(run_dir(study) / "frame_scores.csv")["patient_id"]
    assert set(scored) == set(split.loc[split["split"] == "test", "patient_id"])


def test_experiment_leaves_the_manifest_alone(study: Path) -> None:
    assert "split" not in pd.read_csv(study / "manifest.csv").columns


def test_onnx_file_gives_the_scores_of_the_run(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = study / "predictions"
    model = run_dir(study) / "model.onnx"
    images = study / "phantoms" / "images"
    assert call("predict", images, "--model", model, "--output", output) == 0
    assert "not a medical device" in capsys.readouterr().out
    predicted = pd.read_csv(output / "patients.csv").rename(columns={"patient": "path"})
    assert len(predicted) == 24
    manifest = pd.read_csv(run_dir(study) / "manifest.csv")
    manifest["path"] = manifest["path"].map(lambda path: Path(path).name)
    scores = pd.read_csv(run_dir(study) / "frame_scores.csv").merge(
        manifest[["frame_id", "path"]], on="frame_id"
    )
    both = scores.merge(predicted, on="path", suffixes=("_run", "_onnx"))
    assert len(both) == len(scores) > 0
    for column in ("p_normal", "p_mild", "p_moderate", "p_severe"):
        np.testing.assert_allclose(both[f"{column}_onnx"], both[f"{column}_run"], atol=1e-4)
    assert (both["grade_onnx"] == both["predicted"]).all()


def test_the_verdict_that_is_printed_opens_the_report(study: Path) -> None:
    told = json.loads((study / "first.json").read_text())["result"]["runs"][0]["verdict"]
    assert re.match(r"(Better|Not shown to be better|Worse) than always saying [A-Z]", told)
    assert f"**{told}**" in (run_dir(study) / "report.md").read_text()


def test_evaluate_repeats_the_metrics(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run_dir(study) / "metrics.json").read_bytes()
    assert call("evaluate", run_dir(study), "--json") == 0
    assert (run_dir(study) / "metrics.json").read_bytes() == before
    assert json.loads(capsys.readouterr().out) == json.loads(before)


def test_export_writes_a_checked_model(study: Path) -> None:
    output = study / "again.onnx"
    assert call("export", run_dir(study), "--output", output, "--report", study / "e.json") == 0
    report = json.loads((study / "e.json").read_text())
    assert report["result"]["largest_difference"] <= 1e-4
    assert output.stat().st_size > 1e6


def test_mlflow_holds_the_run(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STEATOSIS_MLRUNS", str(study / "mlruns"))
    figure = study / "compare.png"
    assert call("compare", "resnet50_frozen", "--json", "--figure", figure) == 0
    assert figure.stat().st_size > 10_000
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert len(runs) == 2
    assert runs[0]["accuracy"]["value"] == runs[1]["accuracy"]["value"]
    assert runs[0]["accuracy"]["difference"]["value"] == 0  # the same seeds: the same digits
    assert runs[1]["accuracy"]["difference"] is None  # the oldest run is the baseline
    assert runs[0]["ms_per_frame"] > 0
    with sqlite3.connect(study / "mlruns" / "mlflow.db") as store:
        params = dict(store.execute("SELECT key, value FROM params").fetchall())
        steps = store.execute("SELECT COUNT(*) FROM metrics WHERE key = 'val_accuracy'").fetchone()
        tags = dict(store.execute("SELECT key, value FROM tags").fetchall())
        signature = store.execute("SELECT COUNT(*) FROM logged_models").fetchone()
        inputs = store.execute(
            "SELECT COUNT(*) FROM inputs WHERE source_type = 'DATASET'"
        ).fetchone()
        columns = store.execute(
            "SELECT key, value FROM latest_metrics WHERE run_uuid = ?", (runs[0]["run_id"],)
        ).fetchall()
    assert params["train.epochs"] == "3"
    assert steps == (6,)  # 2 runs, 3 epochs each
    assert len(tags["manifest_sha256"]) == len(tags["split_sha256"]) == 64
    assert signature == (2,)
    shown = dict(columns)  # the UI shows what `compare` prints
    of_epochs = {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"}
    assert shown.keys() - of_epochs == {
        "patient.accuracy", "patient.macro.f1", "patient.ordinal.quadratic_kappa",
        "patient.ordinal.auc_at_least_mild", "train_minutes", "seconds", "file_mb", "ms_per_frame",
    }  # fmt: skip
    assert shown["patient.accuracy"] == runs[0]["accuracy"]["value"]
    assert shown["ms_per_frame"] == runs[0]["ms_per_frame"]
    assert runs[0]["name"].startswith("resnet50 random, sector, hold-out ")
    assert runs[0]["differs"] == {}  # but for the seeds' digits the two runs are one
    assert "Differs from the defaults: `roi.method=sector`" in tags["mlflow.note.content"]
    assert "| Accuracy |" in tags["mlflow.note.content"]
    assert inputs == (2,)
    assert list((study / "mlruns").rglob("confusion_patients.png"))


def test_unknown_experiment_is_said_with_the_known_ones(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STEATOSIS_MLRUNS", str(study / "mlruns"))
    assert call("compare", "no_such") == 1
    assert "resnet50_frozen" in capsys.readouterr().err


def test_verbs_along_the_line(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """split, roi and records by hand lead to what the experiment does by itself."""
    manifest = study / "by_hand.csv"
    labels = study / "phantoms" / "labels.csv"
    assert call("manifest", labels, "--output", manifest) == 0
    assert call("split", manifest, "--set", "split.kind=holdout") == 0
    assert call("roi", manifest, "--set", "roi.method=sector") == 0
    assert call("records", manifest, "--output", study / "records") == 0
    assert "records" in capsys.readouterr().out
    by_hand = pd.read_csv(manifest).set_index("frame_id")["split"]
    by_run = pd.read_csv(run_dir(study) / "manifest.csv").set_index("frame_id")["split"]
    assert by_hand.equals(by_run)
    assert call("split", manifest, "--set", "split.kind=holdout", "split.split_seed=9") == 1
    assert "--replace" in capsys.readouterr().err
    assert (
        call("split", manifest, "--set", "split.kind=holdout", "split.split_seed=9", "--replace")
        == 0
    )


def test_robustness_reaches_the_report(study: Path) -> None:
    assert call("robustness", run_dir(study), "--resamples", 200) == 0
    assert call("report", run_dir(study), "--resamples", 200) == 0
    curves = pd.read_csv(run_dir(study) / "robustness.csv")
    assert {"gain", "blur"} <= set(curves["perturbation"])
    assert "Robustness" in (run_dir(study) / "report.md").read_text(encoding="utf-8")
