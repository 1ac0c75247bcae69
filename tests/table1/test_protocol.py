"""The protocol of the table from its outside door, on simulated patients."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.metrics import f1_score, roc_auc_score

from experiments.table1.classical import FittedPipeline, inner_folds, learnable_rows
from experiments.table1.exported import load_exported
from experiments.table1.method import FoldData, Method
from experiments.table1.protocol import read_row, row_dir, run_method
from experiments.table1.row_numbers import interval_text, row_numbers
from experiments.table1.study import Study, load_study
from steatosis_tf.cohort.manifest import read_manifest, relocate, write_manifest


class Brightness:
    """Grades by a cut on mean grey level: a method without a library."""

    def __init__(self, cut: float) -> None:
        self.cut = cut
        self.num_parameters = 1

    def probabilities(self, rois: np.ndarray) -> np.ndarray:
        bright = rois.mean(axis=(1, 2, 3)) > self.cut
        return np.stack([~bright, bright], axis=1).astype(np.float32)


def fit_prior(fold_data: FoldData, *, strategy: str = "prior") -> FittedPipeline:
    rows = learnable_rows(fold_data)
    dummy = DummyClassifier(strategy=strategy).fit(
        fold_data.study.rois[rows], fold_data.classes(rows)
    )
    return FittedPipeline(dummy, fold_data.num_classes)


PRIOR = Method("prior", "Prior", 0, "none", ("at_least_mild", "four_grades"), fit_prior, repeats=2)


@pytest.fixture(scope="module")
def runs_dir(small_study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEATOSIS_MLRUNS", str(folder / "mlruns"))
        run_method(PRIOR, small_study, folder)
    return folder


def test_no_patient_is_in_two_folds_of_a_repeat(small_study: Study, runs_dir: Path) -> None:
    for repeat in range(2):
        folder = row_dir(PRIOR, "four_grades", small_study, runs_dir) / f"repeat_{repeat}"
        split = pd.read_csv(folder / "split.csv")
        assert not split.duplicated(["fold", "patient_id"]).any()
        tested = split.loc[split["split"] == "test"]
        assert sorted(tested["patient_id"]) == sorted(small_study.index["patient_id"].unique())
        scored = pd.read_csv(folder / "frame_scores.csv")
        assert sorted(scored["frame_id"]) == sorted(small_study.index["frame_id"])
        fold_of = dict(zip(tested["patient_id"], tested["fold"] % 3, strict=True))
        assert (scored["fold"] == scored["patient_id"].map(fold_of)).all()


def test_repeats_deal_the_patients_anew(small_study: Study, runs_dir: Path) -> None:
    patients = read_row(PRIOR, "four_grades", small_study, runs_dir).patient_scores
    folds = [set(map(frozenset, part.groupby("fold")["patient_id"].apply(list)))
             for _, part in patients.groupby("repeat")]  # fmt: skip
    assert folds[0] != folds[1]


def test_a_run_directory_can_be_read_like_one_of_the_line(
    small_study: Study, runs_dir: Path
) -> None:
    folder = row_dir(PRIOR, "at_least_mild", small_study, runs_dir) / "repeat_0"
    present = {path.name for path in folder.iterdir()}
    assert present >= {"frame_scores.csv", "patient_scores.csv", "metrics.json", "config.json",
                       "split.csv", "model.skops", "cost.json", "figures"}  # fmt: skip
    metrics = json.loads((folder / "metrics.json").read_text())
    # Everybody is called Mild or worse: right in all but the Normal patients.
    normal = (small_study.index.drop_duplicates("patient_id")["label"] == 0).mean()
    assert metrics["patient"]["accuracy"] == pytest.approx(1 - normal)


def test_finished_repeats_are_not_computed_again(
    small_study: Study, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEATOSIS_MLRUNS", str(runs_dir / "mlruns"))
    said: list[str] = []
    run_method(PRIOR, small_study, runs_dir, say=said.append)
    assert said == []
    (row_dir(PRIOR, "four_grades", small_study, runs_dir) / "repeat_1" / "cost.json").unlink()
    row = read_row(PRIOR, "four_grades", small_study, runs_dir)
    assert set(row.patient_scores["repeat"]) == {0}
    run_method(PRIOR, small_study, runs_dir, say=said.append)
    assert [line.split(":")[0] for line in said] == ["prior four_grades repeat 1"]


def test_another_setting_is_another_result(small_study: Study, runs_dir: Path) -> None:
    other = dataclasses.replace(PRIOR, settings={"strategy": "most_frequent"})
    assert read_row(other, "four_grades", small_study, runs_dir) is None
    assert read_row(PRIOR, "four_grades", small_study, runs_dir) is not None


def test_a_moved_manifest_is_the_same_study(small_study: Study, study_folder: Path) -> None:
    table = read_manifest(study_folder / "manifest.csv")
    moved = study_folder / "moved" / "manifest.csv"
    write_manifest(relocate(table, study_folder / "manifest.csv", moved.parent), moved)
    assert moved.read_bytes() != (study_folder / "manifest.csv").read_bytes()
    again = load_study(moved, study_folder / "runs", small_study.config)
    assert again.fingerprint == small_study.fingerprint
    regraded = table.assign(fat_percent=table["fat_percent"] + 0.001)
    write_manifest(regraded, study_folder / "regraded.csv")
    other = load_study(study_folder / "regraded.csv", study_folder / "runs", small_study.config)
    assert other.fingerprint != small_study.fingerprint


def test_mlflow_holds_one_parent_per_repeat_with_its_folds_below(
    small_study: Study, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEATOSIS_MLRUNS", str(runs_dir / "mlruns"))
    from steatosis_tf import tracking

    runs = tracking.runs_table("table1")
    mine = runs.loc[(runs["params.method"] == "prior") & (runs["params.task"] == "at_least_mild")]
    assert sorted(mine["params.repeat"]) == ["0", "1"]
    assert (mine["metrics.by_image_accuracy"].notna() == (mine["params.repeat"] == "0")).all()


def test_tested_labels_are_hidden_from_a_system(small_study: Study) -> None:
    tested = small_study.rows_of(small_study.partitions[0].test)
    fold_data = FoldData(small_study.hiding(tested), np.array([0]), np.array([1]), "four_grades", 0)
    with pytest.raises(ValueError, match="tested in this fold"):
        fold_data.classes(tested)
    assert (small_study.index["label"] >= 0).all()


def test_wrong_probabilities_are_refused(
    small_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEATOSIS_MLRUNS", str(tmp_path / "mlruns"))
    two = Method("two", "Two", 0, "none", ("four_grades",), lambda fold_data: Brightness(90.0))
    with pytest.raises(ValueError, match=r"Expected probabilities \(\d+, 4\).*shape=\(\d+, 2\)"):
        run_method(two, small_study, tmp_path)


def test_a_system_says_what_is_wrong_with_it() -> None:
    with pytest.raises(ValueError, match="Expected tasks out of four_grades"):
        Method("a", "A", 0, "none", ("nine_grades",), fit_prior)
    with pytest.raises(ValueError, match="Expected repeats from 1"):
        Method("a", "A", 0, "none", ("four_grades",), fit_prior, repeats=0)


def test_numbers_of_two_classes_equal_scikit_learn(small_study: Study, runs_dir: Path) -> None:
    row = read_row(PRIOR, "at_least_mild", small_study, runs_dir)
    patients = row.patient_scores.copy()
    # Scores of our own, so that the numbers are not trivial.
    fat = np.random.default_rng(3).uniform(0.05, 0.95, len(patients))
    patients["p_normal"], patients["p_mild"] = 1 - fat, fat
    patients["predicted"] = np.where(fat > 0.5, "Mild", "Normal")
    numbers = row_numbers(dataclasses.replace(row, patient_scores=patients), num_resamples=200)
    parts = [part for _, part in patients.groupby("repeat")]
    f1 = [f1_score(part["grade"], part["predicted"], average="macro") for part in parts]
    auc = [roc_auc_score(part["grade"] == "Mild", part["p_mild"]) for part in parts]
    assert numbers["macro.f1"]["value"] == pytest.approx(np.mean(f1))
    assert numbers["ordinal.auc_at_least_mild"]["value"] == pytest.approx(np.mean(auc))
    assert numbers["macro.f1"]["low"] < np.mean(f1) < numbers["macro.f1"]["high"]
    assert numbers["ordinal.auc_severe"]["value"] is None


def test_intervals_are_printed_where_they_say_something() -> None:
    assert interval_text({"value": 0.614, "low": 0.47, "high": 0.738}) == "0.61 (0.47 to 0.74)"
    assert interval_text({"value": 0.682, "low": 0.6818, "high": 0.6819}) == "0.68"
    assert interval_text({"value": 0.5, "low": None, "high": None}) == "0.50"
    assert interval_text({"value": None, "low": None, "high": None}) == "-"


def test_thinning_keeps_every_patient(small_study: Study) -> None:
    fold_data = FoldData(
        small_study, np.arange(len(small_study.index)), np.array([]), "four_grades", 0
    )
    kept = fold_data.thinned(fold_data.train, 2)
    assert len(kept) == len(fold_data.train) // 2
    assert set(fold_data.patients(kept)) == set(fold_data.patients(fold_data.train))


def test_inner_folds_keep_patients_whole_and_need_two_of_each_class() -> None:
    patients = np.repeat(np.arange(8), 3)
    classes = patients % 2
    for train, held_out in inner_folds(classes, patients, 0):
        assert not set(patients[train]) & set(patients[held_out])
        assert set(classes[train]) == set(classes[held_out]) == {0, 1}
    with pytest.raises(ValueError, match=r"patients per class=\[7, 1\]"):
        inner_folds((patients == 0).astype(int), patients, 0)


def test_a_file_with_foreign_code_is_not_opened(tmp_path: Path) -> None:
    import skops.io
    from sklearn.preprocessing import FunctionTransformer

    skops.io.dump(FunctionTransformer(pd.read_csv), tmp_path / "model.skops")
    with pytest.raises(ValueError, match="not opened"):
        load_exported(tmp_path / "model.skops")
    (tmp_path / "odd.skops").write_text("no model")
    with pytest.raises(ValueError, match=r"Received: odd\.skops, which cannot be read"):
        load_exported(tmp_path / "odd.skops")
    with pytest.raises(ValueError, match=r"Expected a \.onnx or \.skops file"):
        load_exported(tmp_path / "model.pkl")
