"""Fitting the head: AdamW, class weights, ReduceLROnPlateau, best checkpoint."""

import math
from collections.abc import Callable

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from steatosis_tf.config import TrainConfig

EpochCallback = Callable[[int, dict[str, float]], None]


def make_repeatable(seed: int) -> None:
    """Seed every generator and use deterministic kernels: same seeds, same digits."""
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def feature_batches(
    views: np.ndarray, labels: np.ndarray, *, batch_size: int, seed: int
) -> tf.data.Dataset:
    """Shuffled training batches; each pass draws one of the stored views of every frame anew.

    Args:
        views: `(num_views, num_frames, num_features)` float32.
        labels: `(num_frames,)` int, 0 to 3.
        batch_size: frames per batch.
        seed: of the order and of the draw.

    Returns:
        dataset of (`(batch, num_features)` float32, `(batch,)` int64).
    """
    num_views, num_frames, _ = views.shape
    table = tf.constant(views.reshape(num_views * num_frames, -1))
    classes = tf.constant(labels, tf.int64)
    order = tf.data.Dataset.range(num_frames).shuffle(num_frames, seed=seed)
    draws = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)

    def gather(frame: tf.Tensor, draw: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        row = (draw % num_views) * num_frames + frame
        return tf.gather(table, row), tf.gather(classes, frame)

    # Gathering a whole batch at once keeps an epoch of a few hundred frames in milliseconds.
    return tf.data.Dataset.zip(order, draws).batch(batch_size).map(gather).prefetch(2)


def class_weights(labels: np.ndarray, num_grades: int) -> dict[int, float]:
    """Weights that make every grade count the same: n / (number of grades x n of the grade).

    Raises:
        ValueError: if a grade is absent from the training part.
    """
    counts = np.bincount(labels, minlength=num_grades)
    if (counts == 0).any():
        raise ValueError(
            "Expected every grade in the training part. Received: training frames per label "
            f"{counts.tolist()}. Add patients, or choose another split.split_seed."
        )
    return {grade: len(labels) / (num_grades * int(count)) for grade, count in enumerate(counts)}


def fit(
    model: keras.Model,
    training: tf.data.Dataset,
    validation: tf.data.Dataset,
    weights: dict[int, float] | None,
    config: TrainConfig,
    on_epoch: EpochCallback | None = None,
) -> pd.DataFrame:
    """Train what is trainable in the model, in place.

    With `config.checkpoint` "best" the model is left with the weights of the epoch with the
    lowest validation loss, otherwise with those of the last epoch.

    Args:
        model: head on features, or the whole model on pixels.
        training: batches of inputs and labels.
        validation: the same, from other patients.
        weights: class weights, or None.
        config: optimizer, schedule, epochs.
        on_epoch: called after each epoch with its number (from 0) and its numbers.

    Returns:
        one row per epoch: `epoch, loss, accuracy, val_loss, val_accuracy, learning_rate`.

    Raises:
        RuntimeError: if no epoch had a finite validation loss.
    """
    model.compile(
        optimizer=keras.optimizers.AdamW(config.learning_rate, weight_decay=config.weight_decay),
        loss=keras.losses.SparseCategoricalCrossentropy(),
        metrics=["accuracy"],
    )
    best = _BestWeights()
    callbacks: list[keras.callbacks.Callback] = [
        keras.callbacks.ReduceLROnPlateau(
            "val_accuracy",
            mode="max",  # Keras guesses the direction only of names it knows
            factor=config.plateau_factor,
            patience=config.plateau_patience,
            min_lr=1e-7,
        ),
        best,
    ]
    if on_epoch is not None:
        callbacks.append(keras.callbacks.LambdaCallback(on_epoch_end=on_epoch))
    history = model.fit(
        training,
        validation_data=validation,
        epochs=config.epochs,
        class_weight=weights,
        shuffle=False,  # the batches are shuffled already; Keras would warn that it cannot
        callbacks=callbacks,
        verbose=0,
    ).history
    if not np.isfinite(history["val_loss"]).any():
        raise RuntimeError(
            "Expected a finite validation loss in at least one epoch. Received: "
            f"{history['val_loss'][-1]} with train.learning_rate={config.learning_rate}. "
            "Choose a lower one."
        )
    if config.checkpoint == "best":
        best.restore()
    return pd.DataFrame({"epoch": range(config.epochs), **history})


class _BestWeights(keras.callbacks.Callback):
    """Keeps the trainable weights of the epoch with the lowest validation loss in memory.

    Only the head is trainable, so this is a few MB, where a checkpoint file would hold the
    backbone again at every improvement.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lowest = math.inf
        self._weights: list[np.ndarray] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        loss = (logs or {})["val_loss"]
        if loss < self._lowest:
            self._lowest = loss
            self._weights = [weight.numpy() for weight in self.model.trainable_variables]

    def restore(self) -> None:
        for variable, value in zip(self.model.trainable_variables, self._weights, strict=True):
            variable.assign(value)
