"""Fitting the head: AdamW, class weights, ReduceLROnPlateau, best checkpoint."""

import math
from collections.abc import Callable

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from steatosis_tf.config import TrainConfig
from steatosis_tf.model.heads import has_regression, objective, set_spread
from steatosis_tf.model.shards import StoredViews

EpochCallback = Callable[[int, dict[str, float]], None]

# Python comes in once in so many steps: a quarter of an epoch's time on features, the same digits.
_STEPS_AT_A_TIME = 50


def make_repeatable(seed: int) -> None:
    """Seed every generator and use deterministic kernels: same seeds, same digits."""
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def frame_order(
    frames: np.ndarray, patient_ids: np.ndarray | None = None, *, seed: int
) -> tf.data.Dataset:
    """Which frames an epoch reads, in which order; every pass over the dataset draws anew.

    Args:
        frames: `(num_frames,)` int, rows of the training part.
        patient_ids: `(num_frames,)`, whose they are, to read every patient equally often: patients
            in turn, each time a frame drawn at random, until there were as many draws as frames or
            just more. None: every frame once.
        seed: of the order and the draws.

    Returns:
        dataset of int64 scalars, of known length.
    """
    if patient_ids is None:
        places = tf.data.Dataset.range(len(frames)).shuffle(len(frames), seed=seed)
        rows = tf.constant(frames, tf.int64)
        return places.map(lambda place: rows[place])
    owners = np.unique(np.asarray(patient_ids, str), return_inverse=True)[1]
    own = tf.ragged.stack([frames[owners == owner] for owner in range(owners.max() + 1)])
    own, num_own = tf.cast(own.to_tensor(), tf.int64), tf.cast(own.row_lengths(), tf.int64)
    num_patients = len(num_own)
    patients = tf.data.Dataset.range(num_patients).shuffle(num_patients, seed=seed)
    turns = patients.repeat(-(-len(frames) // num_patients))
    draws = tf.data.Dataset.random(seed=seed + 1, rerandomize_each_iteration=True)
    return tf.data.Dataset.zip(turns, draws).map(
        lambda patient, draw: own[patient, draw % num_own[patient]]
    )


def feature_batches(
    views: np.ndarray | StoredViews,
    targets: np.ndarray,
    order: tf.data.Dataset,
    *,
    batch_size: int,
    seed: int,
) -> tf.data.Dataset:
    """Training batches; each pass draws one of the stored copies of every frame anew.

    Args:
        views: `(num_views, num_frames, ...)` float32; of it only the rows of the batches under way
            are read.
        targets: `(num_frames,)` what the head is to say: labels, int, or square roots of fat
            percent, float32.
        order: which frames are read, as `frame_order` gives them.
        batch_size: frames per batch.
        seed: of the draw.

    Returns:
        dataset of (`(batch, ...)` float32, `(batch,)` int64 or float32).
    """
    draws = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
    is_label = np.issubdtype(targets.dtype, np.integer)
    answers = tf.constant(targets, tf.int64 if is_label else tf.float32)

    def read(frame: np.ndarray, draw: np.ndarray) -> np.ndarray:
        return views[draw % views.shape[0], frame]

    def gather(frame: tf.Tensor, draw: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        batch = tf.numpy_function(read, (frame, draw), tf.float32, stateful=False)
        return tf.ensure_shape(batch, (None, *views.shape[2:])), tf.gather(answers, frame)

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

    A regression's `spread` is set to its error on the validation part.

    With `config.checkpoint` "best" the model is left with the weights of the epoch with the
    lowest validation loss, otherwise with those of the last epoch.

    Args:
        model: head on features, or the whole model on pixels.
        training: batches of inputs and labels.
        validation: the same, from other patients.
        weights: class weights, or None; None for a regression.
        config: optimizer, schedule, epochs.
        on_epoch: called after each epoch with its number (from 0) and its numbers.

    Returns:
        one row per epoch: `epoch, loss, accuracy, val_loss, val_accuracy, learning_rate`.

    Raises:
        RuntimeError: if no epoch had a finite validation loss.
    """
    fitted = objective(model)
    fitted.model.compile(
        optimizer=keras.optimizers.AdamW(config.learning_rate, weight_decay=config.weight_decay),
        loss=fitted.loss,
        metrics=[fitted.accuracy],
        steps_per_execution=_STEPS_AT_A_TIME,
    )
    best = _BestWeights()
    callbacks = [_plateau(config), best]
    if on_epoch is not None:
        callbacks.append(keras.callbacks.LambdaCallback(on_epoch_end=on_epoch))
    history = fitted.model.fit(
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
    kept_loss = best.restore() if config.checkpoint == "best" else history["val_loss"][-1]
    if has_regression(model):
        set_spread(model, kept_loss)
    return pd.DataFrame({"epoch": range(config.epochs), **history})


def _plateau(config: TrainConfig) -> keras.callbacks.Callback:
    return keras.callbacks.ReduceLROnPlateau(
        "val_accuracy",
        mode="max",  # Keras guesses the direction only of names it knows
        factor=config.plateau_factor,
        patience=config.plateau_patience,
        min_lr=1e-7,
    )


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

    def restore(self) -> float:
        """Put the weights back; their validation loss."""
        for variable, value in zip(self.model.trainable_variables, self._weights, strict=True):
            variable.assign(value)
        return self._lowest
