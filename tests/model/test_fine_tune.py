"""Fine-tuning: only what is above the cut learns, from the same start in every fold."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import onnxruntime
import pandas as pd
import pytest
import tensorflow as tf

from steatosis_tf import tracking
from steatosis_tf.cohort.partition import Partition
from steatosis_tf.config import AugmentConfig, Config, ModelConfig, TrainConfig
from steatosis_tf.deploy.export import export_onnx
from steatosis_tf.evaluation.metrics.scores import read_scores
from steatosis_tf.grades import SCORE_COLUMNS
from steatosis_tf.model.engines import choose_engine
from steatosis_tf.model.features import stored_features
from steatosis_tf.model.heads import assemble, build_head
from steatosis_tf.model.train import (
    CUT_LAYER,
    feature_batches,
    fine_tune,
    frame_order,
    make_repeatable,
    maps_at_cut,
)
from steatosis_tf.records.pipeline import read_index, read_records
from steatosis_tf.training import StudyData, train_and_score, train_fold

_MODEL = ModelConfig(weights="random", hidden_units=8)
_CALM = ModelConfig(weights="random", hidden_units=8, dropout=0.0)
_HEAD = ("hidden/", "probabilities/")
_TRAIN = TrainConfig(
    epochs=2, batch_size=4, learning_rate=1e-3, views=1,
    fine_tune_epochs=2, fine_tune_learning_rate=1e-3,
)  # fmt: skip


def _small_network() -> keras.Model:
    """A frozen network with a cut called as in ResNet-50 and normed convolutions on both sides."""
    keras.utils.set_random_seed(5)
    roi = keras.Input((224, 224, 1), dtype="uint8", name="roi")
    x = keras.layers.AveragePooling2D(16)(keras.layers.Rescaling(1 / 255)(roi))
    x = keras.layers.Conv2D(6, 3, name="conv4")(x)
    x = keras.layers.BatchNormalization(name="conv4_bn")(x)
    x = keras.layers.Activation("relu", name=CUT_LAYER)(x)
    x = keras.layers.Conv2D(8, 3, name="conv5")(x)
    x = keras.layers.BatchNormalization(name="conv5_bn")(x)
    x = keras.layers.Activation("relu")(x)
    features = keras.layers.GlobalAveragePooling2D(name="features")(x)
    backbone = keras.Model(roi, features, name="small")
    for layer in backbone.layers:
        layer.trainable = False
    return backbone


@pytest.fixture(scope="module")
def study(phantom_records, tmp_path_factory) -> StudyData:
    return _study(_small_network(), phantom_records, tmp_path_factory.mktemp("store"))


def _study(backbone: keras.Model, records_dir: Path, folder: Path) -> StudyData:
    examples = read_records(records_dir)
    engine = choose_engine("keras", backbone, np.empty((0, 224, 224, 1)), folder)
    views = stored_features(examples, folder, backbone, engine, AugmentConfig(), 1)
    maps = maps_at_cut(examples, backbone, AugmentConfig(), 1, folder)
    return StudyData(records_dir, read_index(records_dir), views, backbone, maps)


def _partition(study: StudyData, first_tested: int = 0) -> Partition:
    """12 patients, one frame each: 2 tested, 2 validate, every grade trains."""
    patients = study.index.sort_values("label", kind="stable")["patient_id"].tolist()
    tested, validating = patients[first_tested::11], patients[first_tested + 3 :: 11]
    train = frozenset(patients) - set(tested) - set(validating)
    return Partition("fold", train, frozenset(validating), frozenset(tested))


def _weights(model: keras.Model) -> dict[str, np.ndarray]:
    return {weight.path: weight.numpy() for weight in model.weights}


def _pixels(study: StudyData) -> np.ndarray:
    examples = read_records(study.records_dir).as_numpy_iterator()
    return np.stack([example["roi"] for example in examples])


def test_maps_are_those_of_the_network_plain_and_as_the_stored_views(study):
    below = keras.Model(study.backbone.input, study.backbone.get_layer(CUT_LAYER).output)
    np.testing.assert_allclose(study.maps[0], below.predict(_pixels(study), verbose=0), atol=1e-6)
    above = keras.Model(study.backbone.get_layer(CUT_LAYER).output, study.backbone.output)
    for number in (0, 1):  # the same augmented pictures as those of the features
        features = above.predict(np.asarray(study.maps[number]), verbose=0)
        np.testing.assert_allclose(features, study.views[number], atol=1e-6)
    assert not np.array_equal(study.maps[0], study.maps[1])


def test_full_disk_is_said(study, monkeypatch):
    """/dev/full takes no byte."""
    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: open("/dev/full", "wb"))  # noqa: SIM115
    with pytest.raises(OSError, match=r"room for the maps.*No space left.*fewer train\.views"):
        maps_at_cut(read_records(study.records_dir), study.backbone, AugmentConfig(), 0, "/tmp")


def test_only_convolutions_above_the_cut_and_the_head_change(study):
    config = Config(model=_MODEL, train=_TRAIN)
    before = _weights(study.backbone)
    head, first = train_fold(dataclasses.replace(study, maps=None), _partition(study), config, None)
    tuned, history = train_fold(study, _partition(study), config, None)
    start, end = _weights(assemble(study.backbone, head, _MODEL)), _weights(tuned)
    changed = {path for path in start if not np.array_equal(start[path], end[path])}
    assert changed == {
        "conv5/kernel", "conv5/bias", "hidden/kernel", "hidden/bias",
        "probabilities/kernel", "probabilities/bias",
    }  # fmt: skip
    after = _weights(study.backbone)
    assert all(np.array_equal(before[path], after[path]) for path in before)
    assert history["epoch"].tolist() == [0, 1, 2, 3]
    assert history.iloc[:2].equals(first)
    assert history["learning_rate"].tolist() == pytest.approx([1e-3] * 4)


def test_a_regression_is_tuned_too(study):
    model = dataclasses.replace(_MODEL, head="regression")
    config = Config(model=model, train=_TRAIN)
    index = study.index.assign(fat_percent=np.linspace(1, 90, len(study.index)))
    study = dataclasses.replace(study, index=index)
    tuned, history = train_fold(study, _partition(study), config, None)
    assert len(history) == 4
    assert not np.array_equal(_weights(tuned)["conv5/kernel"],
                              _weights(study.backbone)["conv5/kernel"])  # fmt: skip
    assert tuned.predict(_pixels(study), verbose=0).shape == (len(index), 4)


def test_every_fold_starts_from_the_same_weights(study):
    """A fold gives the same model to the bit before and after another one."""
    make_repeatable(0)
    config = Config(model=_MODEL, train=dataclasses.replace(_TRAIN, epochs=1, fine_tune_epochs=1))
    one, other = _partition(study, 0), _partition(study, 1)
    assert one.test != other.test
    first, between, again = (
        _weights(train_fold(study, part, config, None)[0]) for part in (one, other, one)
    )
    assert all(np.array_equal(first[path], again[path]) for path in first)
    assert not np.array_equal(first["conv5/kernel"], between["conv5/kernel"])


def test_a_fold_that_is_broken_off_goes_on_inside_fine_tuning(study, tmp_path):
    make_repeatable(0)
    config = Config(model=_MODEL, train=dataclasses.replace(_TRAIN, epochs=1, fine_tune_epochs=3))
    backup, writes = tmp_path / "fold_0.npz", []
    expected, history = train_fold(study, _partition(study), config, None)

    def stop(epoch: int, logs: dict[str, float]) -> None:
        assert backup.exists() == (epoch > 0)  # the head's own epochs are short
        if epoch == 2:
            raise InterruptedError

    def tell(epoch: int, logs: dict[str, float]) -> None:
        writes.append((epoch, backup.stat().st_mtime_ns))

    with pytest.raises(InterruptedError):
        train_fold(study, _partition(study), config, stop, backup)
    tuned, again = train_fold(study, _partition(study), config, tell, backup)
    epochs, times = zip(*writes, strict=True)
    assert epochs == (0, 1, 2, 3)
    assert times[0] == times[2] < times[3]  # of fine-tuning, the last epoch alone was trained
    before, after = _weights(expected), _weights(tuned)
    assert all(np.array_equal(before[path], after[path]) for path in before)
    assert again.equals(history)


def test_epochs_lower_the_loss_and_the_tuned_model_is_kept(study, tmp_path):
    train = dataclasses.replace(_TRAIN, fine_tune_epochs=6, fine_tune_learning_rate=3e-3)
    labels = study.index["label"].to_numpy()
    order = frame_order(np.arange(len(labels)), seed=0)
    batches = feature_batches(study.maps[1:], labels, order, batch_size=4, seed=0)
    start = assemble(study.backbone, build_head(_CALM, study.views[0], seed=0), _CALM)
    pixels = _pixels(study)
    held_out = feature_batches(
        study.maps[:1], labels, tf.data.Dataset.range(len(labels)), batch_size=4, seed=0
    )
    told = []
    tuned, history = fine_tune(
        start, batches, held_out, None, train, lambda epoch, logs: told.append(epoch)
    )
    assert told == history["epoch"].tolist() == [2, 3, 4, 5, 6, 7]  # after 2 of the head
    # Not in every epoch: each draws other views, and threads add up in another order.
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    above = keras.Model(tuned.get_layer(CUT_LAYER).output, tuned.output)
    expected = above.predict(np.asarray(study.maps[0]), verbose=0)
    np.testing.assert_allclose(tuned.predict(pixels, verbose=0), expected, atol=1e-5)
    assert np.abs(start.predict(pixels, verbose=0) - expected).max() > 0.01
    tuned.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert export_onnx(loaded, tmp_path / "model.onnx", pixels) <= 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    np.testing.assert_allclose(session.run(None, {"roi": pixels})[0], expected, atol=1e-4)


def test_cut_of_resnet50_lies_below_its_last_stage(phantom_records, random_backbone, tmp_path):
    """The real network: what learns is conv5's convolutions and the head, to the letter."""
    examples = read_records(phantom_records).take(2)
    maps = maps_at_cut(examples, random_backbone, AugmentConfig(), 0, tmp_path)
    assert maps.shape == (1, 2, 14, 14, 1024)
    model = assemble(
        random_backbone, build_head(_MODEL, np.ones((2, 2048), np.float32), seed=0), _MODEL
    )
    rows = tf.data.Dataset.range(2)
    batches = feature_batches(maps, np.array([0, 3]), rows, batch_size=2, seed=0)
    train = dataclasses.replace(_TRAIN, fine_tune_epochs=1)
    tuned, _ = fine_tune(model, batches, batches, None, train)
    start, end = _weights(model), _weights(tuned)
    changed = {path for path in start if not np.array_equal(start[path], end[path])}
    convolutions = {path for path in start if path.startswith("conv5") and "_conv/" in path}
    assert len(convolutions) == 20  # 3 blocks of 3, and the shortcut: kernel and bias
    assert convolutions <= changed
    assert changed - convolutions <= {path for path in start if path.startswith(_HEAD)}


@pytest.mark.parametrize("num_folds", [1, 2])
def test_run_scores_and_returns_the_tuned_model(study, num_folds, tmp_path, monkeypatch):
    monkeypatch.setenv("STEATOSIS_MLRUNS", str(tmp_path / "mlruns"))
    config = Config(model=_MODEL, train=dataclasses.replace(_TRAIN, epochs=1, fine_tune_epochs=1))
    folds = [_partition(study, number) for number in range(num_folds)]
    with tracking.start_run("test", "fine_tune"):
        model = train_and_score(study, folds, config, tmp_path)
    assert model.input_shape == (None, 224, 224, 1)
    start, end = _weights(study.backbone), _weights(model)
    assert not np.array_equal(start["conv5/kernel"], end["conv5/kernel"])
    assert np.array_equal(start["conv4/kernel"], end["conv4/kernel"])
    scores = read_scores(tmp_path / "frame_scores.csv").set_index("frame_id")
    assert set(scores["patient_id"]) == set().union(*(fold.test for fold in folds))
    history = pd.read_csv(tmp_path / "history.csv")
    assert len(history) == 2 * (1 if num_folds == 1 else 3)  # the folds, and all patients at last
    if num_folds == 1:  # the very model that is exported
        tested = study.index["frame_id"].isin(scores.index).to_numpy()
        expected = model.predict(_pixels(study)[tested], verbose=0)
        received = scores.loc[study.index["frame_id"][tested], list(SCORE_COLUMNS)]
        np.testing.assert_allclose(received, expected, atol=1e-5)


# In a process of its own, because logical processors must be set up before TensorFlow starts.
_ON_TWO_DEVICES = """
import numpy as np
import tensorflow as tf

two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], two)

import pathlib
import keras
from steatosis_tf.config import TrainConfig
from steatosis_tf.model.train import CUT_LAYER, fine_tune
from steatosis_tf.model.train import make_repeatable

make_repeatable(0)
x = keras.Input((4,), name="roi")
cut = keras.layers.Dense(5, trainable=False, name=CUT_LAYER)(x)
y = keras.layers.Dense(4, activation="softmax", name="probabilities")(cut)
model = keras.Model(x, y)
maps = np.random.default_rng(0).normal(size=(16, 5)).astype("float32")
config = TrainConfig(fine_tune_epochs=3, fine_tune_learning_rate=1e-2, views=1)
weights = {0: 1.0, 1: 2.0, 2: 1.0, 3: 1.0}


def fit(tell=None, backup=None):
    keras.utils.set_random_seed(0)
    # In one order: one of chance is another where devices share the batches.
    batches = tf.data.Dataset.from_tensor_slices((maps, np.arange(16) % 4)).batch(8)
    return fine_tune(model, batches, batches, weights, config, tell, backup)


def stop(epoch, logs):
    if epoch == config.epochs + 1:
        raise InterruptedError


losses, kernels = [], []
for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
    with strategy.scope():
        tuned, history = fit()
        backup = pathlib.Path("devices") / f"{strategy.num_replicas_in_sync}.npz"
        try:
            fit(stop, backup)
        except InterruptedError:
            again, history_again = fit(None, backup)
    assert history_again.equals(history)
    for weight, expected in zip(again.get_weights(), tuned.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)
    losses.append(history["loss"])
    kernels.append(tuned.get_layer("probabilities").kernel.numpy())
    print(strategy.num_replicas_in_sync, "devices", history["loss"].tolist())
np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
np.testing.assert_allclose(kernels[1], kernels[0], atol=1e-6)
"""


@pytest.mark.slow
def test_batches_shared_out_among_devices_teach_the_same(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _ON_TWO_DEVICES], cwd=tmp_path, capture_output=True, text=True,
        timeout=900, check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 devices" in done.stdout
