"""The compiled fit does what Keras' `fit` does, and a sweep on it chooses without the test part."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from experiments.head_search.compiled_fit import (
    Fold,
    HeadSettings,
    StoredStudy,
    balanced,
    fit_compiled,
    probabilities,
    random_passes,
)
from experiments.head_search.head_sweep import Sweep, outer_folds, ranking_score
from steatosis_tf import tracking
from steatosis_tf.config import Config, ModelConfig, SplitConfig, TrainConfig
from steatosis_tf.model.heads import build_head
from steatosis_tf.model.train import class_weights, fit

_MODEL = ModelConfig(weights="random", hidden_units=8, dropout=0.0)


def _study(num_frames: int = 50, num_views: int = 3) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(4)
    labels = np.arange(num_frames) * 7 % 4
    centres = generator.normal(0, 1, (4, 12))
    noise = generator.normal(0, 1.5, (num_views, num_frames, 12))
    return (centres[labels] + noise).astype(np.float32), labels


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(epochs=25, batch_size=8, learning_rate=1e-2, plateau_patience=2),
        TrainConfig(epochs=6, batch_size=64, learning_rate=3e-3, weight_decay=0.3,
                    checkpoint="last"),
    ],
    ids=["plateaus, partial batches", "one batch, decay, last epoch"],
)  # fmt: skip
def test_same_losses_rates_and_weights_as_keras(config):
    views, labels = _study()
    fold = Fold(train=np.arange(0, 37), validation=np.arange(37, 50))
    head = build_head(_MODEL, views[0, fold.train], seed=0)
    start = [variable.numpy() for variable in head.trainable_variables]
    power = class_weights(labels[fold.train], 4)
    settings = HeadSettings(0.0, np.array([power[label] for label in range(4)]), config)
    order = np.random.default_rng(0).permutation(37)
    passes = np.tile(fold.train[order] + 2 * 50, (config.epochs, 1))  # always view 2
    study = StoredStudy(views, labels)
    weights, received = fit_compiled(start, study, fold, settings, passes)
    batches = tf.data.Dataset.from_tensor_slices(
        (views[2, fold.train][order], labels[fold.train][order])
    ).batch(config.batch_size)
    held_out = (views[0, fold.validation], labels[fold.validation])
    expected = fit(head, batches, held_out, power, config)
    assert set(received.columns) == set(expected.columns)
    for name in expected.columns:
        np.testing.assert_allclose(received[name], expected[name], rtol=1e-3, atol=1e-4)
    if config.plateau_patience == 2:
        assert received["learning_rate"].nunique() > 2  # or the schedule was not tried
    for weight, variable in zip(weights, head.trainable_variables, strict=True):
        np.testing.assert_allclose(weight, variable.numpy(), atol=1e-3)
    rows = np.array([3, 41])
    np.testing.assert_allclose(
        probabilities(weights, study, fold, rows), head.predict(views[0, rows], verbose=0),
        atol=1e-3,
    )  # fmt: skip


def test_dropout_drops_its_share_and_repeats_by_seed():
    views, labels = _study()
    fold = Fold(train=np.arange(0, 37), validation=np.arange(37, 50))
    start = [w.numpy() for w in build_head(_MODEL, views[0], seed=0).trainable_variables]
    study = StoredStudy(views, labels)

    def losses(dropout: float, seed: int) -> list[float]:
        config = TrainConfig(epochs=3, batch_size=8, seed=seed)
        return fit_compiled(start, study, fold, HeadSettings(dropout, np.ones(4), config))[1][
            "loss"
        ].tolist()

    assert losses(0.5, 0) == losses(0.5, 0)
    assert losses(0.5, 0) != losses(0.5, 1)
    assert losses(0.5, 0) != losses(0.0, 0)
    # All but dropped: what is left is the output bias, and the loss is that of a guess, ln 4.
    assert losses(0.99999, 0)[0] == pytest.approx(np.log(4), rel=0.01)


def test_passes_hold_every_frame_once_and_draw_augmented_views():
    views, labels = _study()
    study = StoredStudy(views, labels)
    fold = Fold(train=np.array([4, 7, 9, 20]), validation=np.array([1]))
    passes = random_passes(fold, study, TrainConfig(epochs=30))
    assert passes.shape == (30, 4)
    assert (np.sort(passes % 50, axis=1) == fold.train).all()
    assert set(np.unique(passes // 50)) == {1, 2}
    plain = random_passes(fold, StoredStudy(views[:1], labels), TrainConfig(epochs=2))
    assert set(np.unique(plain // 50)) == {0}


def test_class_weights_between_none_and_balanced():
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 2, 2, 3])  # full weights: see test_train.py
    np.testing.assert_allclose(balanced(labels, 0.0), [1, 1, 1, 1])
    np.testing.assert_allclose(balanced(labels, 1.0), [0.5, 1.25, 1.25, 2.5])
    np.testing.assert_allclose(balanced(labels, 0.5), np.sqrt([0.5, 1.25, 1.25, 2.5]))
    with pytest.raises(ValueError, match=r"every grade in the training part.*\[2, 1, 0, 1\]"):
        balanced(np.array([0, 0, 1, 3]), 1.0)


def test_diverged_fit_is_an_error():
    views, labels = _study()
    fold = Fold(train=np.arange(0, 37), validation=np.arange(37, 50))
    start = [w.numpy() for w in build_head(_MODEL, views[0], seed=0).trainable_variables]
    settings = HeadSettings(0.0, np.ones(4), TrainConfig(epochs=3, learning_rate=1e38))
    with pytest.raises(RuntimeError, match=r"finite validation loss.*learning_rate=1e\+38"):
        fit_compiled(start, StoredStudy(views, labels), fold, settings)


def _index(num_patients: int = 24, frames: int = 2) -> pd.DataFrame:
    patients = np.repeat(np.arange(num_patients), frames)
    return pd.DataFrame(
        {
            "frame_id": [f"{number:016x}" for number in range(len(patients))],
            "patient_id": [f"P{number:02d}" for number in patients],
            "label": patients % 4,
        }
    )


def test_no_tested_patient_is_in_the_inner_folds_that_choose():
    index = _index()
    patients = index["patient_id"].to_numpy()
    config = Config(split=SplitConfig(kind="kfold", folds=3))
    folds = outer_folds(index, config, 2)
    tested = np.concatenate([fold.test for fold in folds])
    assert sorted(tested) == list(range(len(index)))  # every frame tested once
    for fold in folds:
        others = set(patients) - set(patients[fold.test])
        assert set(patients[fold.final.train]) | set(patients[fold.final.validation]) == others
        validated = np.concatenate([inner.validation for inner in fold.inner])
        assert set(patients[validated]) == others
        for inner in fold.inner:
            assert not set(patients[inner.train]) & set(patients[inner.validation])
            assert set(patients[inner.train]) <= others


def test_ranking_score_by_hand():
    # Patients by grade; their mean probability above each cut ranks all but one pair rightly.
    index = pd.DataFrame({"patient_id": list("aabcd"), "label": [0, 0, 1, 2, 3]})
    scores = np.array(
        [
            [0.2, 0.8, 0.0, 0.0],  # patient a: mean (0.6, 0.4, 0, 0)
            [1.0, 0.0, 0.0, 0.0],
            [0.7, 0.1, 0.1, 0.1],
            [0.3, 0.1, 0.3, 0.3],
            [0.1, 0.1, 0.3, 0.5],
        ]
    )
    # >= Mild: a 0.4; b 0.3, c 0.7, d 0.9: 2 of 3 pairs. Other cuts: all pairs right.
    received = ranking_score(index, np.arange(5), scores)
    assert received == pytest.approx((2 / 3 + 1 + 1) / 3)


@pytest.fixture(scope="module")
def sweep_head():
    pytest.importorskip("optuna")
    path = Path(__file__).resolve().parents[3] / "experiments" / "sweep_head.py"
    spec = importlib.util.spec_from_file_location("sweep_head", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _small_sweep() -> Sweep:
    generator = np.random.default_rng(3)
    index = _index()
    noise = generator.normal(0, 0.5, (2, len(index), 12))
    views = (generator.normal(0, 1, (4, 12))[index["label"]] + noise).astype(np.float32)
    config = Config(
        split=SplitConfig(kind="kfold", folds=3), train=TrainConfig(epochs=8, batch_size=8)
    )
    return Sweep(index, views, config, 2)


def test_a_sweep_goes_on_where_it_stopped(sweep_head, tmp_path, monkeypatch):
    monkeypatch.setenv("STEATOSIS_MLRUNS", str(tmp_path / "mlruns"))
    # One width, so that one program is compiled: this test is about resuming.
    propose = sweep_head.propose
    monkeypatch.setattr(sweep_head, "propose", lambda trial: propose(trial) | {"hidden_units": 16})
    sweep = _small_sweep()

    def run(name: str, *totals: int) -> dict:
        for total in totals:
            study = sweep_head.open_study(tmp_path / name, "abc", 0)
            with tracking.start_run("sweep_test", "sweep"):
                sweep_head.add_trials(study, sweep, total)
        return sweep_head.summarize(study, sweep, total)

    straight, resumed = run("straight", 4), run("resumed", 2, 4)
    for summary in (straight, resumed):
        assert summary.pop("cpu_seconds_per_trial") > 0
    assert resumed == straight
    assert straight["num_trials"] == 4
    assert len(straight["chosen_per_outer_fold"]) == 3
    assert straight["test_auc"] > 0.7  # the frames were made so that grades can be told apart
