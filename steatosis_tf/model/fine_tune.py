"""The second stage of training: the last stage of the backbone learns too, at a small rate.

Everything below the cut stays frozen, so its maps are computed once per frame and view and every
epoch starts from there. BatchNorm stays frozen above the cut as well, statistics and weights: with
batches of a few patients its statistics would follow those patients.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from tqdm import tqdm

from steatosis_tf.config import BACKBONES, AugmentConfig, TrainConfig
from steatosis_tf.model.train import EpochCallback, fit
from steatosis_tf.records.augment import stored_view

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
        training: batches of maps at the cut and targets.
        validation: the same, from other patients.
        weights: class weights, or None.
        config: `fine_tune_epochs` and `fine_tune_learning_rate`, the rest as in the first stage.
        on_epoch: called after each epoch; numbers go on from those of the first stage.
        backup: as of `fit`, of this stage.

    Returns:
        the fine-tuned copy, pixels to probabilities, and one row per epoch as `fit` gives them.
    """
    with _strategy().scope():
        keras.utils.set_random_seed(config.seed)  # of the dropout, whatever was trained before
        tuned = keras.Model.from_config(model.get_config())
        tuned.set_weights(model.get_weights())
        above = keras.Model(tuned.get_layer(CUT_LAYER).output, tuned.output, name="above_cut")
        for layer in above.layers:
            layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
        stage = dataclasses.replace(
            config, epochs=config.fine_tune_epochs, learning_rate=config.fine_tune_learning_rate
        )
        told = None if on_epoch is None else lambda n, logs: on_epoch(config.epochs + n, logs)
        history = fit(above, training, validation, weights, stage, told, backup)
    return tuned, history.assign(epoch=history["epoch"] + config.epochs)


def _strategy() -> tf.distribute.Strategy:
    """All GPUs of the machine, unless the caller has chosen."""
    if not tf.distribute.has_strategy() and len(tf.config.list_logical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()
