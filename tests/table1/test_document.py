"""The page of the table, and the command line of one file, on simulated patients."""

import dataclasses
import re
from pathlib import Path
from subprocess import CompletedProcess

import cv2
import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.metrics import cohen_kappa_score

from experiments.table1 import run_all
from experiments.table1.classical import FittedPipeline, learnable_rows
from experiments.table1.command_line import main
from experiments.table1.document import write_page
from experiments.table1.method import FoldData, Method
from experiments.table1.protocol import read_row, row_dir
from experiments.table1.run_all import methods_of_papers
from experiments.table1.study import load_study
from steatosis_tf.cohort.manifest import build_manifest
from steatosis_tf.grades import GRADES, SCORE_COLUMNS
from steatosis_tf.sources.phantom.study import write_phantoms


def fit_prior(fold_data: FoldData, *, weights: str) -> FittedPipeline:
    rows = learnable_rows(fold_data)
    dummy = DummyClassifier(strategy="prior").fit(
        fold_data.study.rois[rows], fold_data.classes(rows)
    )
    return FittedPipeline(dummy, 1234)


PRIOR = Method("prior", "Prior 2026", 2026, "nobody's paper", ("at_least_mild", "four_grades"),
               fit_prior, {"weights": "random"})  # fmt: skip
LATER = dataclasses.replace(PRIOR, name="later", title="Later 2027")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table1")
    labels_path = write_phantoms(folder / "phantoms", num_patients=34, frames_per_patient=1, seed=2)
    build_manifest(labels_path, folder / "manifest.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEATOSIS_MLRUNS", str(folder / "mlruns"))
        patch.chdir(folder)
        arguments = ["--manifest", "manifest.csv", "--only", "prior"]
        assert main("About priors.", [PRIOR, LATER], arguments) == 0
    return folder


def test_the_page_holds_every_finished_row_and_names_the_others(folder: Path) -> None:
    study = load_study(folder / "manifest.csv", folder / "runs")
    rows = [read_row(PRIOR, task, study, folder / "runs") for task in PRIOR.tasks]
    page = folder / "docs" / "table1.md"
    write_page(rows, [(LATER, "four_grades")], study, page)
    text = page.read_text()
    four, two = text.split("## Four grades")[1].split("## 2 classes: Normal, Mild or worse")
    for part in (four, two):
        line = next(line for line in part.splitlines() if line.startswith("| Prior 2026 |"))
        mine = next(row for row in rows if (row.task == "four_grades") == (part is four))
        assert f"~~{mine.cost['by_image_accuracy']:.2f}~~ |" in line
    assert re.search(r"\| Prior 2026 \| 4 \| 1,234 \| \d+\.\d\d \| \d+\.\d \| 1 \| weights random",
                     text)  # fmt: skip
    assert text.split("## Not run")[1].count("- Later 2027: Normal, Mild, Moderate, Severe") == 1
    assert "34 patients" in text
    assert "dashed line" not in text  # no floor is drawn
    assert "Not a diagnosis" in text
    picture = cv2.imread(str(folder / "docs" / "images" / "table1.png"))
    assert picture is not None
    assert picture.shape[1] == 1800  # 12 inches at 150 dpi


def test_the_page_pairs_every_system_with_the_nearest_neighbour(folder: Path) -> None:
    study = load_study(folder / "manifest.csv", folder / "runs")
    floor = read_row(PRIOR, "four_grades", study, folder / "runs")
    nearest = dataclasses.replace(PRIOR, name="nearest", title="Nearest", year=0)
    patients = floor.patient_scores.copy()
    # Three of four patients are graded rightly, the fourth is called Normal.
    given = np.where(np.arange(len(patients)) % 4 < 3, patients["grade"], "Normal")
    patients[list(SCORE_COLUMNS)] = (given[:, None] == np.array(GRADES)) * 1.0
    row = dataclasses.replace(floor, patient_scores=patients.assign(predicted=given))
    page = folder / "docs" / "paired.md"
    write_page([dataclasses.replace(floor, method=nearest), row], [], study, page)
    part = page.read_text().split("### More than a memory of pictures?")[1]
    assert "Of 1 methods 1 are above it in kappa and 1 in AUC" in part
    mine, floors = (
        cohen_kappa_score(patients["grade"], predicted, labels=GRADES, weights="quadratic")
        for predicted in (given, floor.patient_scores["predicted"])
    )
    assert f"| Prior 2026 | {mine - floors:+.2f} (+" in part


def test_weights_are_a_setting_of_their_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("STEATOSIS_MLRUNS", str(folder / "mlruns"))
    study = load_study("manifest.csv")
    other = dataclasses.replace(PRIOR, settings={"weights": "imagenet"})
    assert row_dir(PRIOR, "four_grades", study, "runs") != row_dir(
        other, "four_grades", study, "runs"
    )
    assert main("About priors.", [PRIOR], ["--manifest", "manifest.csv"]) == 0
    printed = capsys.readouterr().out
    assert "repeat 0" not in printed  # nothing was computed again
    assert "Prior 2026: Normal, Mild or worse" in printed
    assert "Not a diagnosis" in printed


def test_an_unknown_system_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--manifest", str(folder / "manifest.csv"), "--only", "gone"]
    assert main("About priors.", [PRIOR], arguments) == 1
    assert "Expected --only out of prior. Received: only='gone'" in capsys.readouterr().err


def test_every_paper_has_methods_with_names_of_their_own() -> None:
    methods = [one for some in methods_of_papers().values() for one in some]
    names = [method.name for method in methods]
    assert len(set(names)) == len(names)
    assert {"majority", "nearest", "chen2008", "istepanian2011_svm"} <= set(names)
    for method in methods:
        assert method.tasks[-1] == "four_grades", method.name


def test_one_method_alone_leaves_a_page_of_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("subprocess.run", lambda command, **_: CompletedProcess(command, 0))
    page = folder / "docs" / "of_all.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text("17 rows")
    arguments = ["--manifest", "manifest.csv", "--only", "majority", "--output", str(page)]
    assert run_all.main(arguments) == 0
    assert page.read_text() == "17 rows"
    assert "is left as it is" in capsys.readouterr().out
