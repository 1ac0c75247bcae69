"""Keras networks under the protocol: trained from the pixels on, exported as ONNX."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from experiments.table1.exported import MAX_DIFFERENCE
from experiments.table1.method import FoldData
from steatosis_tf.config import AugmentConfig, TrainConfig
from steatosis_tf.deploy.export import export_onnx
from steatosis_tf.grades import OUTPUT_LAYER, TASKS
from steatosis_tf.model.train import class_weights, fit, make_repeatable
from steatosis_tf.records.pipeline import augment, pixel_batches, training_batches

#: `(num_classes, seed)` -> an untrained network from `roi` to `probabilities`.
Network = Callable[[int, int], keras.Model]


@dataclass(frozen=True)
class FittedNetwork:
    """A trained network from `roi` to `probabilities`, perhaps with a second output."""

    model: keras.Model
    task: str

    @property
    def num_parameters(self) -> int:
        """All numbers in it, frozen ones and moving statistics too."""
        return self.model.count_params()

    def probabilities(self, rois: np.ndarray) -> np.ndarray:
        """`(n, num_classes)` float32 of `(n, 224, 224, 1)` uint8."""
        answer = self.model.predict(rois, batch_size=32, verbose=0)
        return answer[OUTPUT_LAYER] if isinstance(answer, dict) else answer

    def save(self, folder: Path, rois: np.ndarray) -> Path:
        """Write `model.onnx`, within `MAX_DIFFERENCE` of Keras on the frames given."""
        path = folder / "model.onnx"
        texts = {"grades": json.dumps(TASKS[self.task][0])}
        export_onnx(self.model, path, rois, texts, max_difference=MAX_DIFFERENCE)
        return path


@dataclass(frozen=True)
class SecondOutput:
    """What a network of two outputs learns beside the classes.

    Attributes:
        name: of the output.
        loss: of `(target, output)` of a batch.
        targets: one per frame of the study: `(num_frames,)` int; or `(num_frames, 224, 224, 1)`
            uint8, 0 to 255, a mask that is turned and flipped with its ROI, and compared at half
            its size as 0 to 1.
        weights: `(num_frames,)` float32; 0 keeps a frame whose target is unknown out of the loss.
    """

    name: str
    loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | keras.losses.Loss
    targets: np.ndarray
    weights: np.ndarray


def fit_network(
    fold_data: FoldData, network: Network, *, frame_step: int, train: TrainConfig
) -> FittedNetwork:
    """Train all layers on augmented frames, classes weighed alike; validation is only watched.

    Args:
        fold_data: what to learn from.
        network: what to train.
        frame_step: every how many of a patient's frames is used.
        train: epochs, batch size, learning rate.
    """
    make_repeatable(fold_data.seed)
    rows, watched = (
        fold_data.thinned(part, frame_step) for part in (fold_data.train, fold_data.validation)
    )
    model = network(fold_data.num_classes, fold_data.seed)
    batches = training_batches(
        _examples(fold_data, rows),
        AugmentConfig(),
        batch_size=train.batch_size,
        seed=fold_data.seed,
    )
    weights = class_weights(fold_data.classes(rows), fold_data.num_classes)
    fit(model, batches, pixel_batches(_examples(fold_data, watched)), weights, train)
    return FittedNetwork(model, fold_data.task)


def fit_two_outputs(
    fold_data: FoldData,
    network: Network,
    second: SecondOutput,
    *,
    frame_step: int,
    train: TrainConfig,
) -> FittedNetwork:
    """Train a network that gives `probabilities` and a second output, on the sum of their losses.

    Args:
        fold_data: what to learn from; validation rows stay unused.
        network: what to train; its outputs are a dict.
        second: the other output.
        frame_step: every how many of a patient's frames is used.
        train: epochs, batch size, learning rate.
    """
    make_repeatable(fold_data.seed)
    rows = fold_data.thinned(fold_data.train, frame_step)
    model = network(fold_data.num_classes, fold_data.seed)
    model.compile(
        optimizer=keras.optimizers.AdamW(train.learning_rate, weight_decay=train.weight_decay),
        loss={OUTPUT_LAYER: keras.losses.SparseCategoricalCrossentropy(), second.name: second.loss},
    )
    batches = _two_output_batches(fold_data, rows, second, train.batch_size)
    model.fit(batches, epochs=train.epochs, shuffle=False, verbose=0)
    return FittedNetwork(model, fold_data.task)


def _examples(fold_data: FoldData, rows: np.ndarray) -> tf.data.Dataset:
    parts = {"roi": fold_data.study.rois[rows], "label": fold_data.classes(rows)}
    return tf.data.Dataset.from_tensor_slices(parts)


def _two_output_batches(
    fold_data: FoldData, rows: np.ndarray, second: SecondOutput, batch_size: int
) -> tf.data.Dataset:
    """Shuffled, augmented batches of ROIs, both targets and both weights."""
    classes = fold_data.classes(rows)
    by_class = class_weights(classes, fold_data.num_classes)
    is_mask = second.targets.ndim == 4
    pictures, targets = fold_data.study.rois[rows], second.targets[rows]
    if is_mask:  # beside the ROI, so that both are turned and flipped alike
        pictures, targets = np.concatenate([pictures, targets], axis=-1), np.zeros(len(rows))
    weights = np.array([by_class[int(one)] for one in classes], np.float32), second.weights[rows]
    parts = tf.data.Dataset.from_tensor_slices((pictures, classes, targets, weights))
    draws = tf.data.Dataset.random(seed=fold_data.seed, rerandomize_each_iteration=True)
    config = AugmentConfig()

    def view(part: tuple[tf.Tensor, ...], draw: tf.Tensor) -> tuple[tf.Tensor, ...]:
        picture, *rest = part
        return augment(picture, tf.stack([draw, fold_data.seed]), config), *rest

    def named(
        picture: tf.Tensor, label: tf.Tensor, target: tf.Tensor, weight: tuple[tf.Tensor, tf.Tensor]
    ) -> tuple[tf.Tensor, Mapping[str, tf.Tensor], Mapping[str, tf.Tensor]]:
        if is_mask:
            target = tf.nn.avg_pool2d(tf.cast(picture[..., 1:], tf.float32) / 255, 2, 2, "VALID")
        names = (OUTPUT_LAYER, second.name)
        return (
            picture[..., :1],
            dict(zip(names, (label, target), strict=True)),
            dict(zip(names, weight, strict=True)),
        )

    return (
        tf.data.Dataset.zip(parts.shuffle(len(rows), seed=fold_data.seed), draws)
        .map(view, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(batch_size)
        .map(named)
        .prefetch(2)
    )
