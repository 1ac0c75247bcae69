"""Networks under the protocol: they learn, score, leave as ONNX, and see no tested label."""

import dataclasses
import importlib
import json
from pathlib import Path

import cv2
import keras
import numpy as np
import onnxruntime
import pytest

from experiments.segmentation.unet import dice_and_cross_entropy
from experiments.table1.deep import SecondOutput, fit_network, fit_two_outputs
from experiments.table1.exported import load_exported
from experiments.table1.frozen import FrozenFeatures, fit_head
from experiments.table1.liver_output import liver_output
from experiments.table1.method import FoldData
from experiments.table1.networks.two_outputs import fibrosis_labels, two_outputs
from experiments.table1.study import Study
from steatosis_tf.cohort.manifest import frame_path, read_manifest
from steatosis_tf.config import ModelConfig, TrainConfig
from steatosis_tf.grades import TASKS
from steatosis_tf.roi.anatomy.liver import liver_mask
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.sources.images import read_frame

_SHORT = TrainConfig(epochs=2, batch_size=8, learning_rate=1e-3, views=1)


def _fold_data(study: Study, task: str) -> FoldData:
    part = study.partitions[0]
    hidden = study.hiding(study.rows_of(part.test))
    return FoldData(hidden, study.rows_of(part.train), study.rows_of(part.validation), task, 3)


def _small(num_classes: int, seed: int) -> keras.Model:
    """Brightness of 7 x 7 places, one layer."""
    keras.utils.set_random_seed(seed)
    roi = keras.Input((224, 224, 1), dtype="uint8", name="roi")
    x = keras.layers.AveragePooling2D(32)(keras.layers.Rescaling(1 / 64)(roi))
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(num_classes, activation="softmax", name="probabilities")(x)
    return keras.Model(roi, x)


def _small_with_liver(num_classes: int, seed: int) -> keras.Model:
    """The same, and the brightness of each place as the logit of liver."""
    grader = _small(num_classes, seed)
    half = keras.layers.AveragePooling2D(2)(grader.layers[1].output)
    outputs = {
        "probabilities": grader.output,
        "liver_logit": keras.layers.Conv2D(1, 1, name="liver_logit")(half),
    }
    return keras.Model(grader.input, outputs)


def _loss(probabilities: np.ndarray, classes: np.ndarray) -> float:
    """Cross-entropy, every class counted the same."""
    own = -np.log(probabilities[np.arange(len(classes)), classes])
    return float(np.mean([own[classes == one].mean() for one in np.unique(classes)]))


@pytest.mark.parametrize("task", ["at_least_mild", "three_grades"])
def test_a_network_learns_any_task_and_leaves_as_onnx(
    small_study: Study, tmp_path: Path, task: str
) -> None:
    fold_data = _fold_data(small_study, task)
    train = dataclasses.replace(_SHORT, epochs=20, learning_rate=3e-3)
    fitted = fit_network(fold_data, _small, frame_step=1, train=train)
    rois, classes = small_study.rois[fold_data.train], fold_data.classes(fold_data.train)
    found = fitted.probabilities(rois)
    assert found.shape == (len(rois), len(TASKS[task][0]))
    untrained = _small(fold_data.num_classes, fold_data.seed).predict(rois, verbose=0)
    assert _loss(found, classes) < 0.9 * _loss(untrained, classes)
    assert fitted.num_parameters == 50 * len(TASKS[task][0])  # 7 x 7 weights and a bias
    path = fitted.save(tmp_path, rois[:3])
    np.testing.assert_allclose(load_exported(path)(rois), found, atol=1e-4)
    texts = onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
    assert json.loads(texts["steatosis.grades"]) == list(TASKS[task][0])


def test_the_same_seed_gives_the_same_network(small_study: Study) -> None:
    fold_data = _fold_data(small_study, "four_grades")
    first, again = (fit_network(fold_data, _small, frame_step=1, train=_SHORT) for _ in range(2))
    rois = small_study.rois[:5]
    np.testing.assert_array_equal(first.probabilities(rois), again.probabilities(rois))


def test_fibrosis_is_learnt_where_it_is_known_and_only_there(small_study: Study) -> None:
    fold_data = _fold_data(small_study, "four_grades")
    rows = fold_data.thinned(fold_data.train, 2)
    stages = [""] * len(small_study.index)

    def fitted(stages: list[str]) -> list[np.ndarray]:
        labels, known = fibrosis_labels(stages, len(stages))
        loss = keras.losses.SparseCategoricalCrossentropy()
        second = SecondOutput("fibrosis", loss, labels, known)
        trained = fit_two_outputs(fold_data, two_outputs, second, frame_step=2, train=_SHORT)
        return trained.model.get_layer("fibrosis").get_weights()

    start = two_outputs(4, fold_data.seed).get_layer("fibrosis").get_weights()
    unknown = fitted(stages)
    # Nobody's stage is known: weight decay alone, 1e-3 * 0.004 a step, moves the kernel.
    np.testing.assert_allclose(unknown[0], start[0], rtol=1e-3, atol=1e-6)
    stages[rows[0]] = "F4"
    known = fitted(stages)
    assert np.abs(known[0] - unknown[0]).max() > 1e-4
    assert known[1].argmax() == 4  # the bias rises for the one stage that was seen


def test_the_liver_target_is_the_whole_frames_mask_and_turns_with_the_roi(
    small_study: Study,
) -> None:
    fold_data = _fold_data(small_study, "four_grades")
    rows = fold_data.thinned(fold_data.train, 2)
    second = liver_output(small_study, rows)
    assert second.targets.shape == small_study.rois.shape
    others = np.setdiff1d(np.arange(len(small_study.index)), rows)
    assert not second.targets[others].any()
    table = read_manifest(small_study.folder / "manifest.csv").set_index("frame_id")
    row = table.loc[small_study.index["frame_id"].iloc[rows[0]]]
    frame = read_frame(frame_path(small_study.folder / "manifest.csv", row["path"]))
    top, left, height, width = row[["roi_top", "roi_left", "roi_height", "roi_width"]].astype(int)
    mask = liver_mask(frame, find_sector(frame))[top : top + height, left : left + width]
    expected = cv2.resize(mask.astype(np.float32) * 255, (224, 224), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(second.targets[rows[0], ..., 0], expected, atol=1)
    # A target that is the ROI itself, bright where it is bright: learnt only if both are turned
    # alike, or the logit would be flat.
    bright = np.where(small_study.rois > 60, 255, 0).astype(np.uint8)
    itself = SecondOutput("liver_logit", dice_and_cross_entropy, bright, second.weights)
    train = dataclasses.replace(_SHORT, epochs=60, learning_rate=0.1)
    fitted = fit_two_outputs(fold_data, _small_with_liver, itself, frame_step=2, train=train)
    logit = fitted.model.predict(small_study.rois[rows], verbose=0)["liver_logit"]
    wanted = bright[rows].reshape(len(rows), 112, 2, 112, 2, 1).mean(axis=(2, 4)) / 255
    sure = (wanted < 0.1) | (wanted > 0.9)
    assert ((logit > 0) == (wanted > 0.5))[sure].mean() > 0.85


@pytest.fixture
def tiny_features(small_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Frozen features of a network of 16 convolutions in place of a published one."""
    from experiments.table1 import frozen
    from steatosis_tf.model.engines import reference_engine

    keras.utils.set_random_seed(1)
    roi = keras.Input((224, 224, 1), dtype="uint8", name="roi")
    x = keras.layers.AveragePooling2D(8)(keras.layers.Rescaling(1 / 64)(roi))
    x = keras.layers.Conv2D(16, 7, strides=7, activation="relu")(x)
    backbone = keras.Model(roi, keras.layers.Flatten(name="features")(x), name="tiny")
    backbone.trainable = False
    engine = reference_engine(backbone)
    monkeypatch.setattr(frozen, "_backbone", lambda config, whole_map: (backbone, engine))
    return FrozenFeatures(ModelConfig(weights="random"), False, tmp_path / "features")


def test_features_are_those_of_the_frames_in_their_order(
    small_study: Study, tiny_features: FrozenFeatures
) -> None:
    rois = small_study.rois[[4, 1, 4, 7]]  # one frame twice
    found = tiny_features.of(rois, 1)
    assert found.shape == (2, 4, 256)
    expected = tiny_features.backbone.predict(rois, verbose=0)
    np.testing.assert_allclose(found[0, np.arange(4)], expected, atol=1e-5)
    assert np.abs(found[1, np.arange(4)] - expected).max() > 1e-3  # the other view is augmented


def test_a_head_on_frozen_features_leaves_as_one_onnx_file(
    small_study: Study, tiny_features: FrozenFeatures, tmp_path: Path
) -> None:
    from experiments.table1.networks.attention import attention_head

    fold_data = _fold_data(small_study, "three_grades")
    fitted = fit_head(
        fold_data, tiny_features, lambda _: attention_head((4, 4, 16), 3, fold_data.seed),
        frame_step=1, train=_SHORT,
    )  # fmt: skip
    rois = small_study.rois[:6]
    found = fitted.probabilities(rois)
    assert found.shape == (6, 3)
    path = fitted.save(tmp_path, rois)
    np.testing.assert_allclose(load_exported(path)(rois), found, atol=1e-4)
    expected = tiny_features.backbone.count_params() + fitted.head.count_params()
    assert fitted.num_parameters == expected


def _systems() -> list:
    names = ["kim2020", "li2020", "lin2020", "zhou2020", "reddy2021", "densenet121", "two_outputs",
             "vgg19_attention", "resnet50"]  # fmt: skip
    found = []
    for name in names:
        found += importlib.import_module(f"experiments.table1.papers.{name}").METHODS
    return found


def test_every_deep_system_of_the_table_is_there_and_grades_four() -> None:
    methods = {method.name: method for method in _systems()}
    assert len(methods) == 11
    assert all("four_grades" in method.tasks for method in methods.values())
    two_classes = {name for name, method in methods.items() if "at_least_mild" in method.tasks}
    assert two_classes == {"kim2020_alexnet", "kim2020_vgg16", "lin2020"}
    three = {name for name, method in methods.items() if "three_grades" in method.tasks}
    assert three == {"li2020_googlenet", "li2020_resnet18", "vgg19_attention"}
    choosable = {name for name, method in methods.items() if "weights" in method.settings}
    assert choosable == {"kim2020_vgg16", "li2020_resnet18", "lin2020", "densenet121",
                         "vgg19_attention", "resnet50"}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method", _systems(), ids=lambda method: method.name)
def test_every_system_trains_scores_and_leaves_as_onnx(
    small_study: Study, tmp_path: Path, method
) -> None:
    task = method.tasks[0]
    settings = {**method.settings, "epochs": 1, "frame_step": 2}
    fitted = method.fit(_fold_data(small_study, task), **settings)
    rois = small_study.rois[:4]
    found = fitted.probabilities(rois)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(load_exported(fitted.save(tmp_path, rois))(rois), found, atol=1e-4)
