"""The fit of `train.fit`, compiled: for sweeps, where a head is trained thousands of times.

Keras spends more than half of a small head's time outside its arithmetic. Here one epoch, with its
batches, AdamW, dropout and validation, is one XLA program that is compiled once per head width and
shared by all folds. It does the same steps as `train.fit`; the random order and dropout differ.
Folds are not batched into one product: what is left is arithmetic already.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import tensorflow as tf

from steatosis_tf.config import TrainConfig
from steatosis_tf.grades import GRADES
from steatosis_tf.model.features import StoredViews

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-7  # AdamW as Keras sets it
_NORMALIZATION_EPSILON = 1e-6  # that of the layer in classifier.py
_MIN_LEARNING_RATE = 1e-7
_MIN_RISE = 1e-4  # of Keras' ReduceLROnPlateau

#: Hidden kernel and bias, output kernel and bias: the order of `head.trainable_variables`.
HeadWeights = list[np.ndarray]


@dataclass(frozen=True)
class Fold:
    """Rows of the frames a head is trained on, and of those it is validated on."""

    train: np.ndarray
    validation: np.ndarray


@dataclass(frozen=True)
class HeadSettings:
    """What a sweep varies. `class_weights` is `(4,)`, ones for none."""

    dropout: float
    class_weights: np.ndarray
    train: TrainConfig


class StoredStudy:
    """Features and labels of a study, put where the compiled program reads them, once."""

    def __init__(self, views: np.ndarray | StoredViews, labels: np.ndarray) -> None:
        """
        Args:
            views: `(1 + K, num_frames, num_features)` float32; view 0 is the frame as it is, the
                others are trained on (view 0 too if there is no other).
            labels: `(num_frames,)` int, 0 to 3.
        """
        self.num_views, self.num_frames, num_features = views.shape
        self.plain = views[0]
        self.labels = np.asarray(labels, np.int32)
        self.table = tf.constant(np.asarray(views).reshape(-1, num_features))


def random_passes(fold: Fold, study: StoredStudy, config: TrainConfig) -> np.ndarray:
    """The rows of `study.table` each epoch reads: shuffled frames, each in a view drawn anew.

    Returns:
        `(epochs, len(fold.train))` int32.
    """
    generator = np.random.default_rng(config.seed)
    shape = (config.epochs, len(fold.train))
    frames = generator.permuted(np.broadcast_to(fold.train, shape), axis=1)
    first = min(1, study.num_views - 1)
    views = generator.integers(first, study.num_views, shape)
    return (views * study.num_frames + frames).astype(np.int32)


def fit_compiled(
    start: HeadWeights,
    study: StoredStudy,
    fold: Fold,
    settings: HeadSettings,
    passes: np.ndarray | None = None,
) -> tuple[HeadWeights, pd.DataFrame]:
    """Train one head on one fold. Safe to call from several threads.

    Args:
        start: initial weights, for example `build_head(...).trainable_variables` as arrays.
        study: features and labels.
        fold: who trains and who validates; features are normalised by the training frames.
        settings: dropout, class weights, optimizer, schedule, epochs.
        passes: as `random_passes` gives them, or None to draw them.

    Returns:
        the weights of the epoch with the lowest validation loss (of the last epoch with
        `checkpoint` "last"), and one row per epoch as `train.fit` gives it.

    Raises:
        RuntimeError: if no epoch had a finite validation loss.
    """
    config = settings.train
    passes = random_passes(fold, study, config) if passes is None else passes
    fixed = _fixed_arguments(study, fold, settings)
    state = _start_state(start)
    rate, plateau = config.learning_rate, _Plateau(config)
    rows, best, lowest = [], state, math.inf
    for epoch, drawn in enumerate(passes):
        batches = _batches(drawn, study, settings)
        seed = tf.constant([config.seed, epoch], tf.int32)
        state, numbers = _epoch(state, batches, tf.constant(rate, tf.float32), seed, fixed)
        loss, accuracy, val_loss, val_accuracy = (float(number) for number in numbers)
        rows.append((epoch, accuracy, loss, rate, val_accuracy, val_loss))
        if val_loss < lowest:
            lowest, best = val_loss, state
        rate = plateau.next_rate(rate, val_accuracy)
    if not math.isfinite(lowest):
        raise RuntimeError(
            "Expected a finite validation loss in at least one epoch. Received: none with "
            f"train.learning_rate={config.learning_rate}. Choose a lower one."
        )
    kept = best if config.checkpoint == "best" else state
    columns = ["epoch", "accuracy", "loss", "learning_rate", "val_accuracy", "val_loss"]
    return [value.numpy() for value in kept[:4]], pd.DataFrame(rows, columns=columns)


def probabilities(
    weights: HeadWeights, study: StoredStudy, fold: Fold, rows: np.ndarray
) -> np.ndarray:
    """`(len(rows), 4)` float32 of a head trained on `fold`, from plain features."""
    mean, scale = _normalization(study, fold)
    hidden = np.maximum((study.plain[rows] - mean) * scale @ weights[0] + weights[1], 0)
    logits = hidden @ weights[2] + weights[3]
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


class _Plateau:
    """Keras' ReduceLROnPlateau on validation accuracy, as `train.fit` sets it."""

    def __init__(self, config: TrainConfig) -> None:
        self._config, self._best, self._waited = config, -math.inf, 0

    def next_rate(self, rate: float, val_accuracy: float) -> float:
        if val_accuracy > self._best + _MIN_RISE:
            self._best, self._waited = val_accuracy, 0
            return rate
        self._waited += 1
        if self._waited < self._config.plateau_patience:
            return rate
        self._waited = 0
        return max(rate * self._config.plateau_factor, min(rate, _MIN_LEARNING_RATE))


def _normalization(study: StoredStudy, fold: Fold) -> tuple[np.ndarray, np.ndarray]:
    training = study.plain[fold.train]
    mean = training.mean(axis=0, dtype=np.float64)
    variance = training.var(axis=0, dtype=np.float64)
    scale = 1 / np.sqrt(variance + _NORMALIZATION_EPSILON)
    return mean.astype(np.float32), scale.astype(np.float32)


def _fixed_arguments(study: StoredStudy, fold: Fold, settings: HeadSettings) -> dict:
    # Padded to all frames, so that folds of other sizes need no compilation of their own.
    padding = study.num_frames - len(fold.validation)
    validation = np.pad(fold.validation, (0, padding))
    mean, scale = _normalization(study, fold)
    return {
        "table": study.table,
        "mean": tf.constant(mean),
        "scale": tf.constant(scale),
        "validation": tf.constant(validation, tf.int32),
        "validation_labels": tf.constant(study.labels[validation]),
        "counted": tf.constant(np.arange(study.num_frames) < len(fold.validation), tf.float32),
        "dropout": tf.constant(settings.dropout, tf.float32),
        "weight_decay": tf.constant(settings.train.weight_decay, tf.float32),
    }


def _batches(drawn: np.ndarray, study: StoredStudy, settings: HeadSettings) -> dict:
    """One epoch cut into batches; rows that fill up the last one weigh nothing."""
    size = settings.train.batch_size
    steps = -(-len(drawn) // size)
    most = -(-study.num_frames // size)
    shape = (most, size)
    rows = np.pad(drawn, (0, most * size - len(drawn))).reshape(shape)
    real = (np.arange(most * size) < len(drawn)).reshape(shape)
    labels = study.labels[rows % study.num_frames]
    return {
        "steps": tf.constant(steps, tf.int32),
        "rows": tf.constant(rows, tf.int32),
        "labels": tf.constant(labels),
        "real": tf.constant(real, tf.float32),
        "weights": tf.constant(real * settings.class_weights[labels], tf.float32),
    }


def _start_state(start: HeadWeights) -> tuple[tf.Tensor, ...]:
    weights = [tf.constant(value, tf.float32) for value in start]
    zeros = [tf.zeros_like(value) for value in weights]
    return (*weights, *zeros, *zeros, tf.constant(0.0))


def _losses(logits: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    losses = -tf.gather(tf.nn.log_softmax(logits), labels, axis=1, batch_dims=1)
    right = tf.cast(tf.argmax(logits, axis=1, output_type=tf.int32) == labels, tf.float32)
    return losses, right


@tf.function(jit_compile=True)
def _epoch(
    state: tuple[tf.Tensor, ...], batches: dict, rate: tf.Tensor, seed: tf.Tensor, fixed: dict
) -> tuple[tuple[tf.Tensor, ...], tuple[tf.Tensor, ...]]:
    def normalized(rows: tf.Tensor) -> tf.Tensor:
        return (tf.gather(fixed["table"], rows) - fixed["mean"]) * fixed["scale"]

    def step(number: tf.Tensor, sums: tf.Tensor, *state: tf.Tensor) -> tuple[tf.Tensor, ...]:
        features, labels = normalized(batches["rows"][number]), batches["labels"][number]
        shape = (batches["rows"].shape[1], state[0].shape[1])
        draws = tf.random.stateless_uniform(shape, tf.stack([seed[0], seed[1] * 65536 + number]))
        kept = tf.cast(draws >= fixed["dropout"], tf.float32) / (1 - fixed["dropout"])
        real = batches["real"][number]
        with tf.GradientTape() as tape:
            tape.watch(state[:4])
            hidden = tf.nn.relu(features @ state[0] + state[1]) * kept
            losses, right = _losses(hidden @ state[2] + state[3], labels)
            total = tf.reduce_sum(losses * batches["weights"][number])
            loss = total / tf.reduce_sum(real)
        gradients = tape.gradient(loss, state[:4])
        sums += tf.stack([total, tf.reduce_sum(right * real), tf.reduce_sum(real)])
        return number + 1, sums, *_adamw(state, gradients, rate, fixed["weight_decay"])

    start = (tf.constant(0), tf.zeros(3), *state)
    _, sums, *new_state = tf.while_loop(lambda number, *_: number < batches["steps"], step, start)
    hidden = tf.nn.relu(normalized(fixed["validation"]) @ new_state[0] + new_state[1])
    losses, right = _losses(hidden @ new_state[2] + new_state[3], fixed["validation_labels"])
    counted = fixed["counted"] / tf.reduce_sum(fixed["counted"])
    val_loss, val_right = tf.reduce_sum(losses * counted), tf.reduce_sum(right * counted)
    return tuple(new_state), (sums[0] / sums[2], sums[1] / sums[2], val_loss, val_right)


def _adamw(
    state: tuple[tf.Tensor, ...], gradients: list[tf.Tensor], rate: tf.Tensor, decay: tf.Tensor
) -> tuple[tf.Tensor, ...]:
    """One step of AdamW (Loshchilov and Hutter 2019), in the order in which Keras takes it."""
    count = state[12] + 1
    step = rate * tf.sqrt(1 - _BETA_2**count) / (1 - _BETA_1**count)
    weights, first, second = [], [], []
    for weight, m, v, gradient in zip(state[:4], state[4:8], state[8:12], gradients, strict=True):
        m += (gradient - m) * (1 - _BETA_1)
        v += (gradient * gradient - v) * (1 - _BETA_2)
        weights.append(weight * (1 - decay * rate) - step * m / (tf.sqrt(v) + _EPSILON))
        first.append(m)
        second.append(v)
    return (*weights, *first, *second, count)


def balanced(labels: np.ndarray, power: float) -> np.ndarray:
    """Class weights between none (`power` 0) and those of `train.class_weights` (`power` 1).

    Raises:
        ValueError: if a grade is absent.
    """
    counts = np.bincount(labels, minlength=len(GRADES))
    if (counts == 0).any():
        raise ValueError(
            "Expected every grade in the training part. Received: training frames per label "
            f"{counts.tolist()}. Add patients, or take fewer inner folds."
        )
    return (len(labels) / (len(GRADES) * counts)) ** power
