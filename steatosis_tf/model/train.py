"""Fitting: AdamW, class weights, ReduceLROnPlateau, best checkpoint, going on after a kill.

In the second stage the last stage of the backbone learns too, at a small rate. Everything below the
cut stays frozen, so its maps are computed once per frame and view and every epoch starts from
there. BatchNorm stays frozen above the cut as well, statistics and weights: with batches of a few
patients its statistics would follow those patients.
"""

import dataclasses
import json
import math
import sys
import tempfile
import zipfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from tqdm import tqdm

from steatosis_tf.config import BACKBONES, AugmentConfig, TrainConfig
from steatosis_tf.files import replacing
from steatosis_tf.model.features import StoredViews
from steatosis_tf.model.heads import has_regression, objective, set_spread
from steatosis_tf.records.pipeline import stored_view

EpochCallback = Callable[[int, dict[str, float]], None]

# Python comes in once in so many steps: a quarter of an epoch's time on features, the same digits.
# Where an epoch has fewer, the loop around them costs more than it saves. Steps that devices share
# cannot be joined: TensorFlow ends with an error of its own.
_STEPS_AT_A_TIME = 50

# What Keras' ReduceLROnPlateau remembers of the epochs before.
_PLATEAU = ("best", "wait", "cooldown_counter")


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
    backup: Path | None = None,
    inputs: keras.KerasTensor | None = None,
) -> pd.DataFrame:
    """Train what is trainable in the model, in place.

    It is left with the weights of the last epoch, with `config.checkpoint` "best" with those of the
    lowest validation loss. A regression's `spread` is set to its error on the validation part.

    Args:
        model: head on features, or the whole model on pixels.
        training: batches of inputs and labels; with a backup their number must be known.
        validation: the same, from other patients.
        weights: class weights, or None; None for a regression.
        config: optimizer, schedule, epochs.
        on_epoch: called after each epoch with its number (from 0) and its numbers.
        backup: `.npz`, written after every epoch. A call that finds it tells of the epochs in it,
            goes on, and ends with the same digits as one that was not broken off.
        inputs: a tensor inside the model that the batches are of; None for its input.

    Returns:
        one row per epoch: `epoch, loss, accuracy, val_loss, val_accuracy, learning_rate`.

    Raises:
        RuntimeError: if no epoch had a finite validation loss.
    """
    fitted = objective(model, inputs)
    num_devices = tf.distribute.get_strategy().num_replicas_in_sync
    is_long = num_devices == 1 and training.cardinality() >= _STEPS_AT_A_TIME
    fitted.model.compile(
        optimizer=keras.optimizers.AdamW(config.learning_rate, weight_decay=config.weight_decay),
        loss=fitted.loss,
        metrics=[fitted.accuracy],
        steps_per_execution=_STEPS_AT_A_TIME if is_long else 1,
    )
    progress = _Progress(config, on_epoch, backup)
    _pass_epochs(training, len(progress.rows), config)
    fitted.model.fit(
        training,
        validation_data=validation,
        initial_epoch=len(progress.rows),
        epochs=config.epochs,
        class_weight=weights,
        shuffle=False,  # the batches are shuffled already; Keras would warn that it cannot
        callbacks=[progress.plateau, progress],
        verbose=0,
    )
    history = pd.DataFrame(progress.rows).rename_axis("epoch").reset_index()
    _check_loss(history, config)
    loss = progress.settle()
    if has_regression(model):
        set_spread(model, loss)
    return history


def _check_loss(history: pd.DataFrame, config: TrainConfig) -> None:
    if not np.isfinite(history["val_loss"]).any():
        raise RuntimeError(
            "Expected a finite validation loss in at least one epoch. Received: "
            f"{history['val_loss'].iloc[-1]} with train.learning_rate={config.learning_rate}. "
            "Choose a lower one."
        )


def _pass_epochs(training: tf.data.Dataset, epochs: int, config: TrainConfig) -> None:
    """Leave the generators of the batches as so many epochs of a fit leave them.

    They belong to the dataset and can be neither read nor set: an iterator draws from them when it
    is made. Keras makes one for each epoch, and at its end one more that it does not use.
    """
    batches = tf.distribute.get_strategy().experimental_distribute_dataset(training)
    for _ in range(epochs):
        epoch = iter(batches)
        if config.sampling == "patients":  # draws at each turn of the patients
            deque(epoch, maxlen=0)
        iter(batches)


class _Progress(keras.callbacks.Callback):
    """How far a fit has come, kept in a file after every epoch if there is a name for it.

    Keras' `BackupAndRestore` loses plateau, history and the generator of the dropout, and is
    left with weights of one epoch and the number of another by a kill between its two files.

    Attributes:
        rows: numbers of every epoch so far.
        plateau: the schedule; it has to be called before this.
    """

    def __init__(
        self, config: TrainConfig, on_epoch: EpochCallback | None, backup: Path | None
    ) -> None:
        super().__init__()
        self.plateau = keras.callbacks.ReduceLROnPlateau(
            "val_accuracy",
            mode="max",  # Keras guesses the direction only of names it knows
            factor=config.plateau_factor,
            patience=config.plateau_patience,
            min_lr=1e-7,
        )
        self._keeps_best = config.checkpoint == "best"
        self._tell = on_epoch or (lambda epoch, logs: None)
        self._backup = backup
        self._state, self._arrays = _read_backup(backup)
        self.rows: list[dict[str, float]] = self._state.get("rows", [])
        self._lowest: float = self._state.get("lowest", math.inf)
        # Only what is trainable: without the frozen backbone this is a few MB.
        self._best: list[np.ndarray] = []

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        self.model.optimizer.build(self.model.trainable_variables)
        if self.rows:
            variables = self._variables()
            for variable, value in zip(variables, self._arrays, strict=False):
                variable.assign(value)
            self._best = self._arrays[len(variables) :]
            vars(self.plateau).update(self._state["plateau"])
        for epoch, row in enumerate(self.rows):
            self._tell(epoch, row)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        row = dict(logs or {})
        self.rows.append(row)
        if self._keeps_best and row["val_loss"] < self._lowest:
            self._lowest = row["val_loss"]
            self._best = [weight.numpy() for weight in self.model.trainable_variables]
        if self._backup:
            self._write(self._backup)
        self._tell(epoch, row)

    def settle(self) -> float:
        """Leave the model with the weights that are kept; their validation loss."""
        if not self._keeps_best:
            return self.rows[-1]["val_loss"]
        for variable, value in zip(self.model.trainable_variables, self._best, strict=True):
            variable.assign(value)
        return self._lowest

    def _variables(self) -> list[keras.Variable]:
        """What an epoch changes: layers that learn, generators of their dropout, the optimizer."""
        learning = [layer for layer in self.model.layers if layer.trainable]
        of_layers = [variable for layer in learning for variable in layer.variables]
        return of_layers + self.model.optimizer.variables

    def _write(self, path: Path) -> None:
        plateau = {name: getattr(self.plateau, name) for name in _PLATEAU}
        state = {"rows": self.rows, "lowest": self._lowest, "plateau": plateau}
        arrays = [variable.numpy() for variable in self._variables()]
        with replacing(path) as temporary:
            np.savez(temporary, *arrays, *self._best, state=json.dumps(state))


def _read_backup(path: Path | None) -> tuple[dict[str, Any], list[np.ndarray]]:
    """What `_write` wrote; nothing if it is not there or damaged, which its checksums tell."""
    if path is None:
        return {}, []
    try:
        with np.load(path) as file:
            arrays = [file[f"arr_{number}"] for number in range(len(file.files) - 1)]
            return json.loads(file["state"].item()), arrays
    except (OSError, EOFError, ValueError, zipfile.BadZipFile):
        return {}, []


#: The last map that stays as it is, 14 x 14 x 1024 of ResNet-50; what comes after it, learns.
CUT_LAYER = BACKBONES["resnet50"].cut_layer

_BATCH = 16


def maps_at_cut(
    examples: tf.data.Dataset,
    backbone: keras.Model,
    config: AugmentConfig,
    num_views: int,
    folder: str | Path,
) -> np.ndarray:
    """Maps at the cut of every example, plain and in the views that `stored_features` has.

    They lie in a file without a name, which the system removes when the process ends, however it
    ends: 0.8 MB per frame and view of ResNet-50 in float32, exact, and never stale.

    Args:
        examples: as `read_records` gives them.
        backbone: as `build_backbone` gives it.
        config: augmentation of the views.
        num_views: augmented views per frame.
        folder: on a disk with room for them.

    Returns:
        `(1 + num_views, num_frames, height, width, channels)` float32, mapped from the file,
        read-only; view 0 is the frame as it is.

    Raises:
        OSError: if the disk is full.
    """
    below = keras.Model(backbone.input, backbone.get_layer(CUT_LAYER).output)
    run = tf.function(lambda rois: below(rois, training=False), reduce_retracing=True)
    Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        for number in tqdm(range(1 + num_views), "maps at the cut", unit="view", file=sys.stderr):
            num_frames = 0
            for rois in stored_view(examples, number, config).batch(_BATCH).prefetch(2):
                try:
                    file.write(run(rois).numpy().tobytes())
                except OSError as error:
                    raise OSError(
                        "Expected room for the maps of fine-tuning. Received: "
                        f"{error.strerror or error} after {file.tell() / 1e9:.1f} GB. Free space, "
                        "or set fewer train.views."
                    ) from error
                num_frames += len(rois)
        file.flush()
        shape = (1 + num_views, num_frames, *below.output_shape[1:])
        return np.memmap(file, np.float32, "r", shape=shape)


def fine_tune(
    model: keras.Model,
    training: tf.data.Dataset,
    validation: tf.data.Dataset,
    weights: dict[int, float] | None,
    config: TrainConfig,
    on_epoch: EpochCallback | None = None,
    backup: Path | None = None,
) -> tuple[keras.Model, pd.DataFrame]:
    """Train convolutions above the cut, and the head, of a copy of the model.

    Every call starts from the model it is given and leaves it alone, so folds cannot see each
    other. On a machine with several GPUs the batches are shared out among them
    (`tf.distribute.MirroredStrategy`).

    Args:
        model: as `assemble` gives it, with a trained head.
        training, validation: batches of maps at the cut and targets.
        config: `fine_tune_epochs` and `fine_tune_learning_rate`, the rest as in the first stage.
        weights, on_epoch, backup: as of `fit`; numbers of epochs go on from the first stage.

    Returns:
        the fine-tuned copy, pixels to probabilities, and one row per epoch as `fit` gives them.
    """
    with _strategy().scope():
        keras.utils.set_random_seed(config.seed)  # of the dropout, whatever was trained before
        tuned = keras.Model.from_config(model.get_config())
        tuned.set_weights(model.get_weights())
        maps = tuned.get_layer(CUT_LAYER).output
        for layer in keras.Model(maps, tuned.output, name="above_cut").layers:
            layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
        stage = dataclasses.replace(
            config, epochs=config.fine_tune_epochs, learning_rate=config.fine_tune_learning_rate
        )
        told = None if on_epoch is None else lambda n, logs: on_epoch(config.epochs + n, logs)
        history = fit(tuned, training, validation, weights, stage, told, backup, maps)
    return tuned, history.assign(epoch=history["epoch"] + config.epochs)


def _strategy() -> tf.distribute.Strategy:
    """All GPUs of the machine, unless the caller has chosen."""
    if not tf.distribute.has_strategy() and len(tf.config.list_logical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()
