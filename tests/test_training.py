"""What a fold learns from a store: targets of each head, grades that count the same, sampling."""

import dataclasses

import keras
import numpy as np
import pandas as pd
import pytest

from experiments.head_search.head_sweep import Sweep
from steatosis_tf import tracking
from steatosis_tf.cohort.partition import Partition, split_table
from steatosis_tf.config import Config, ModelConfig, TrainConfig, override
from steatosis_tf.deploy.bundle_write import describe_training
from steatosis_tf.grades import GRADES
from steatosis_tf.model.features import plain_rows
from steatosis_tf.model.train import make_repeatable
from steatosis_tf.recipes import RECIPES
from steatosis_tf.records.pipeline import read_index
from steatosis_tf.training import (
    StudyData,
    check_learnable,
    load_study,
    train_and_score,
    train_fold,
)

_FAT = (2.0, 20.0, 50.0, 80.0)


def _study(tmp_path, frames_of_last: int = 2) -> StudyData:
    """16 patients, four of each grade, two frames each, the last one perhaps with more."""
    counts = [2] * 15 + [frames_of_last]
    patient = np.repeat(np.arange(16), counts)
    index = pd.DataFrame({
        "frame_id": [f"f{n}" for n in range(len(patient))],
        "patient_id": [f"p{n:02d}" for n in patient],
        "label": patient % 4,
        "fat_percent": [_FAT[n % 4] for n in patient],
    })  # fmt: skip
    noise = np.random.default_rng(0).normal(0, 0.1, (2, len(patient), 5))
    views = (np.eye(5)[patient % 4] + noise).astype(np.float32)
    return StudyData(tmp_path, index, views, keras.Sequential())


def _partition(study: StudyData) -> Partition:
    patients = sorted(set(study.index["patient_id"]))
    parts = (frozenset(patients[8:]), frozenset(patients[4:8]), frozenset(patients[:4]))
    return Partition("fold", *parts)


def _config(head: str = "softmax", **train) -> Config:
    settings = {"epochs": 1, "views": 1, "learning_rate": 1e-9, "batch_size": 64} | train
    return Config(
        model=ModelConfig(weights="random", hidden_units=4, dropout=0.0, head=head),
        train=TrainConfig(**settings),
    )


def test_regression_needs_fat_where_it_learns_but_not_where_it_is_tested(tmp_path):
    study = _study(tmp_path)
    index = study.index.copy()
    tested = index["patient_id"].isin(["p00", "p01"])
    index.loc[tested, "fat_percent"] = np.nan
    partition = _partition(study)
    train_fold(dataclasses.replace(study, index=index), partition, _config("regression"), None)
    index.loc[index["patient_id"].isin(["p05", "p12"]), "fat_percent"] = np.nan
    unknown = dataclasses.replace(study, index=index)
    message = r"fat_percent for every frame.*none for 2 patients, first p12, p05.*head=ordinal"
    with pytest.raises(ValueError, match=message):
        train_fold(unknown, partition, _config("regression"), None)
    train_fold(unknown, partition, _config("ordinal"), None)


@pytest.mark.parametrize("kind", ["kfold", "holdout"])
def test_what_cannot_be_learned_is_refused_before_anything_is_computed(kind):
    patients = [f"p{n:02d}" for n in range(16)]
    grades = [GRADES[n % 4] for n in range(16)]
    table = pd.DataFrame({"patient_id": patients, "grade": grades, "fat_percent": 3.0})
    first = Partition("a", frozenset(patients[:8]), frozenset(patients[8:12]),
                      frozenset(patients[12:]))  # fmt: skip
    second = dataclasses.replace(first, test=frozenset(patients[:8]), train=first.test)
    partitions = [first, second] if kind == "kfold" else [first]
    regression = _config("regression")
    check_learnable(table, partitions, regression)
    # the last one is tested: of a cross-validation the final model learns from it too
    table.loc[15, "fat_percent"] = np.nan
    if kind == "holdout":
        check_learnable(table, partitions, regression)
    else:
        with pytest.raises(ValueError, match="none for 1 patients, first p15"):
            check_learnable(table, partitions, regression)
    check_learnable(table, partitions, _config("softmax"))
    table.loc[[3, 7], "grade"] = "Mild"
    with pytest.raises(ValueError, match=r"every grade in the training part.*\[2, 4, 2, 0\]"):
        check_learnable(table, partitions, _config("softmax"))
    check_learnable(table, partitions, _config("softmax", class_weights=False))
    with pytest.raises(ValueError, match=r"Expected 10 patients or more.*Received: [48]\."):
        check_learnable(table, partitions, RECIPES["joint"].config)


def test_regression_learns_the_square_root_of_fat(tmp_path):
    study = _study(tmp_path)
    head, history = train_fold(study, _partition(study), _config("regression"), None)
    rows = study.index["patient_id"].isin(_partition(study).train).to_numpy()
    sqrt_fat = keras.Model(head.input, head.get_layer("sqrt_fat").output)
    predicted = sqrt_fat.predict(study.views[1, rows], verbose=0)[:, 0]
    truth = np.sqrt(study.index["fat_percent"].to_numpy()[rows])
    # one step at a rate of 1e-9: the loss is that of the untrained head, no grade weighs more
    assert history["loss"][0] == pytest.approx(np.mean((predicted - truth) ** 2), rel=1e-4)


@pytest.mark.parametrize("sampling", ["frames", "patients"])
def test_grades_count_the_same_by_what_is_read(tmp_path, sampling):
    """One Severe patient has 20 frames: by frames it fills Severe, by patients it is one of two."""
    study = _study(tmp_path, frames_of_last=20)
    partition = _partition(study)
    head, history = train_fold(study, partition, _config(sampling=sampling), None)
    rows = np.flatnonzero(study.index["patient_id"].isin(partition.train))
    index = study.index.iloc[rows]
    probabilities = head.predict(study.views[1, rows], verbose=0)
    losses = pd.Series(-np.log(probabilities[np.arange(len(rows)), index["label"]]), index.index)
    by_grade = [losses[index["label"] == label].mean() for label in range(4)]
    if sampling == "frames":
        assert history["loss"][0] == pytest.approx(np.mean(by_grade), rel=1e-4)
        return
    # two patients of every grade, so every weight is 1; frames of a patient are nearly alike
    by_patient = losses.groupby(index["patient_id"]).mean()
    assert history["loss"][0] == pytest.approx(by_patient.mean(), rel=0.05)


def test_online_fit_gets_the_targets_of_its_own_frames(phantom_records, tiny_pixels):
    """Each frame's own fat percent, although records and index are read apart."""
    index = read_index(phantom_records)
    patients = index.sort_values("label", kind="stable")["patient_id"].tolist()
    partition = Partition("fold", frozenset(patients[2:]), frozenset(patients[:2]), frozenset())
    views = np.ones((1, len(index), tiny_pixels.output_shape[-1]), np.float32)
    study = StudyData(phantom_records, index, views, tiny_pixels)
    config = _config("regression", views=0)
    head, history = train_fold(study, partition, config, None)
    # nothing is learnt, all features are alike: each prediction is the same constant
    sqrt_fat = keras.Model(head.input, head.get_layer("sqrt_fat").output)
    constant = float(sqrt_fat.predict(views[0, :1], verbose=0)[0, 0])
    truth = np.sqrt(index.loc[index["patient_id"].isin(partition.validation), "fat_percent"])
    assert history["val_loss"][0] == pytest.approx(((truth - constant) ** 2).mean(), rel=1e-3)


@pytest.fixture
def tiny_pixels() -> keras.Model:
    """A network that says the same of every frame."""
    roi = keras.Input((224, 224, 1), dtype="uint8", name="roi")
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(0.0, 1.0)(roi))
    return keras.Model(roi, keras.layers.RepeatVector(3)(x)[:, :, 0], name="constant")


def test_a_run_goes_on_inside_a_fold_on_pixels(
    phantom_records, tiny_backbone, tmp_path, monkeypatch
):
    """The state that is kept was left by a rate of its own, which tells it from a new beginning."""
    make_repeatable(0)
    index = read_index(phantom_records)
    patients = index.sort_values("label", kind="stable")["patient_id"].tolist()
    tested, validating = frozenset(patients[::11]), frozenset(patients[3::11])
    fold = Partition("all", frozenset(patients) - tested - validating, validating, tested)
    views = np.random.default_rng(0).random((1, len(index), 48), np.float32)
    study = StudyData(phantom_records, index, views, tiny_backbone)
    config = Config(
        model=ModelConfig(weights="random", hidden_units=4),
        train=TrainConfig(views=0, epochs=4, batch_size=4, learning_rate=1e-2, plateau_patience=1),
    )
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, learning_rate=1e-3))
    head, history = train_fold(study, fold, config, None)

    def stop(epoch: int, logs: dict[str, float]) -> None:
        if epoch == 1:
            raise InterruptedError

    backup = tmp_path / "run" / ".work" / "fold_0.npz"
    with pytest.raises(InterruptedError):
        train_fold(study, fold, config, stop, backup)
    monkeypatch.setenv("STEATOSIS_MLRUNS", str(phantom_records / "records.json"))  # is no folder
    with tracking.start_run("pixels", "again"):
        model = train_and_score(study, [fold], other, tmp_path / "run")
    assert pd.read_csv(tmp_path / "run" / "history.csv").drop(columns="fold").equals(history)
    for name in ("hidden", "probabilities"):
        for weight, expected in zip(
            model.get_layer(name).get_weights(), head.get_layer(name).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(weight, expected)
    assert not backup.exists()  # the fold is kept in its place


@pytest.mark.parametrize(("kind", "num_unknown"), [("kfold", 0), ("holdout", 0), ("kfold", 1)])
def test_a_solved_model_learns_from_whom_its_bundle_says(
    tmp_path, monkeypatch, capsys, kind, num_unknown
):
    """Of two folds all 16, the validating ones too, whom nothing waits for; of a hold-out 10.

    One patient without fat percent makes the grade the target of every fold."""
    (tmp_path / "no_folder").touch()
    monkeypatch.setenv("STEATOSIS_MLRUNS", str(tmp_path / "no_folder"))
    study = _study(tmp_path)
    study.index.loc[: 2 * num_unknown - 1, "fat_percent"] = np.nan  # tested in the first fold
    names = sorted(set(study.index["patient_id"]))
    folds = [
        Partition("fold_0", frozenset(names[6:]), frozenset(names[4:6]), frozenset(names[:4])),
        Partition("fold_1", frozenset(names[:10]), frozenset(names[10:12]), frozenset(names[12:])),
    ][: 2 if kind == "kfold" else 1]
    run_dir = tmp_path / "run"
    config = override(RECIPES["joint"].config, [f"split.kind={kind}"])
    with tracking.start_run("joint", kind):
        joint = train_and_score(study, folds, config, run_dir)
    frames = study.index.assign(grade=[GRADES[label] for label in study.index["label"]])
    known = {"path": frames["frame_id"], "pixels_sha256": "", "roi_height": 1}
    ungraded = frames.head(1).assign(frame_id="of no grade", grade="", fat_percent=np.nan)
    pd.concat([ungraded, frames]).assign(**known).to_csv(run_dir / "manifest.csv", index=False)
    split_table(folds).to_csv(run_dir / "split.csv", index=False)
    (run_dir / "metrics.json").write_text("{}")
    said = describe_training(run_dir)
    assert len(joint.calibration.left_out) == said["num_patients"] == {"kfold": 16}.get(kind, 10)
    assert said["num_frames"] == 2 * said["num_patients"]
    assert sum(said["by_grade"].values()) == said["num_patients"]
    assert joint.target == ("grade" if num_unknown else "sqrt_fat")
    assert ("sqrt_fat" in pd.read_csv(run_dir / "frame_scores.csv")) == (not num_unknown)
    said_so = "1 of 16 patients have no fat_percent: the score is fitted to the grades of all"
    assert (said_so in capsys.readouterr().err) == bool(num_unknown)


def test_sweep_refuses_what_it_does_not_do(tmp_path):
    study = _study(tmp_path)
    for config in (_config("ordinal"), _config(sampling="patients"), _config(fine_tune_epochs=1)):
        with pytest.raises(ValueError, match=r"head=softmax, train\.sampling=frames.*in a sweep"):
            Sweep(study.index, study.views, config, 3)


_TRAIN = TrainConfig(epochs=10, learning_rate=1e-3, batch_size=4, views=1)


def test_a_float16_store_has_half_the_size_and_gives_nearly_the_same_scores(
    phantom_records, tmp_path, monkeypatch
):
    monkeypatch.setenv("STEATOSIS_MLRUNS", str(tmp_path / "mlruns"))
    stores, sizes = [], []
    for dtype in ("float32", "float16"):
        config = Config(
            model=ModelConfig(backbone="efficientnet_lite0", weights="random"),
            train=dataclasses.replace(_TRAIN, store_dtype=dtype),
        )
        with tracking.start_run("store", dtype):
            data = load_study(phantom_records, tmp_path / "features", config)
        assert data.engine.name == "keras", "24 pictures are not worth trying others"
        # One patient of each of the first two grades validates.
        common = data.index[data.index["label"] < 2].drop_duplicates("label")["patient_id"]
        others = set(data.index["patient_id"]) - set(common)
        fold = Partition("fold", frozenset(others), frozenset(common), frozenset())
        make_repeatable(0)
        head, _ = train_fold(data, fold, config, None)
        stores.append((head, plain_rows(data.views, np.arange(12))[:]))
        sizes.append(sum(path.stat().st_size for path in (tmp_path / "features").rglob("*.npy")))
    assert sizes[1] - sizes[0] == pytest.approx(sizes[0] / 2, rel=0.01)  # a folder of its own
    (head, exact), (other, rounded) = stores
    assert not np.array_equal(exact, rounded)
    read, reread = np.asarray(head(exact)), np.asarray(head(rounded))
    np.testing.assert_allclose(reread, read, atol=0.01)  # as TrainConfig says
    trained_on_rounded = np.asarray(other(rounded))
    # Ten epochs on a dozen frames carry rounding far, on each machine otherwise.
    np.testing.assert_allclose(trained_on_rounded, read, atol=0.25)
