"""Training the head on each partition of a study and scoring the part it has not seen."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from steatosis_tf import tracking
from steatosis_tf.cohort.splits import Partition
from steatosis_tf.config import Config
from steatosis_tf.deploy.export import NUM_CHECKED
from steatosis_tf.evaluation.metrics import compute_metrics
from steatosis_tf.evaluation.scores import labels_and_probabilities, score_table, write_scores
from steatosis_tf.files import replacing
from steatosis_tf.fold_fit import StudyData, rows_of, train_fold
from steatosis_tf.model.backbone import build_backbone
from steatosis_tf.model.classifier import assemble
from steatosis_tf.model.engines import choose_engine
from steatosis_tf.model.feature_parts import spread_features
from steatosis_tf.model.features import stored_features
from steatosis_tf.model.fine_tune import maps_at_cut
from steatosis_tf.model.shards import in_slices, plain_rows
from steatosis_tf.records.pipeline import (
    keep_frames,
    keep_patients,
    pixel_batches,
    read_index,
    read_records,
)

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

#: `fold` of the final model of a cross-validated run in history.csv.
REFIT_FOLD = -1

Scorer = Callable[[frozenset[str]], np.ndarray]


def load_study(
    records_dir: Path,
    features_dir: Path,
    config: Config,
    options: "PipelineOptions | None" = None,
) -> StudyData:
    """Read the index of the records and compute or find what the network says of every frame.

    Args:
        records_dir: as given to `write_records`.
        features_dir: feature store, shared by all runs.
        config: backbone, engine, augmentation, number of views and their format on disk.
        options: Beam runner whose workers compute, see `spread.beam_options`; None computes here.

    Raises:
        ValueError: if the records or a weights file cannot be used.
        RuntimeError: if ImageNet weights or the engine asked for cannot be had.
    """
    backbone = build_backbone(config.model)
    examples, index = read_records(records_dir), read_index(records_dir)
    rois = check_rois(index, examples)
    engine = choose_engine(config.model.engine, backbone, rois, features_dir)
    tracking.log_tags({"engine": f"{engine.name} {engine.precision}"})
    tracking.log_metrics(
        {
            "engine_min_cosine": engine.min_cosine,
            "engine_changed_decisions": engine.changed,
            "engine_speedup": engine.speedup,
        }
    )
    if options is None:
        views = stored_features(
            examples, features_dir, backbone, engine, config.augment, config.train.views,
            dtype=config.train.store_dtype,
        )  # fmt: skip
    else:
        views = spread_features(records_dir, features_dir, backbone, engine, config, options)
    maps = None
    if config.train.fine_tune_epochs:
        maps = maps_at_cut(examples, backbone, config.augment, config.train.views, features_dir)
    return StudyData(records_dir, index, views, backbone, maps)


def check_rois(data_index: pd.DataFrame, examples: tf.data.Dataset) -> np.ndarray:
    """One frame each of the first patients, on which engines and exports are held against Keras.

    Args:
        data_index: as `read_index` gives it.
        examples: as `read_records` gives them, in the same order.

    Returns:
        `(num_frames, 224, 224, 1)` uint8; at most `NUM_CHECKED`, one per patient.
    """
    first = set(data_index.drop_duplicates("patient_id").head(NUM_CHECKED)["frame_id"])
    chosen = keep_frames(examples, first)
    return np.stack([example["roi"] for example in chosen.as_numpy_iterator()])


def train_and_score(
    data: StudyData, partitions: list[Partition], config: Config, run_dir: Path
) -> keras.Model:
    """Train every partition, score its test part out of fold, and build the model to keep.

    Writes `history.csv`, `frame_scores.csv` and `validation_scores.csv` into the run directory.

    Returns:
        the model pixels to probabilities: the one that was tested if there is one partition,
        else one trained on all patients, with the first partition's validation part.
    """
    histories, tested, validated = [], [], []
    for fold, partition in enumerate(partitions):
        trained, history = _tracked_fold(data, partition, config, nested=len(partitions) > 1)
        histories.append(history.assign(fold=fold))
        tested.append(_scores(data, partition.test, fold, _scorer(trained, data)))
        validated.append(_scores(data, partition.validation, fold, _scorer(trained, data)))
    if len(partitions) > 1:
        trained, history = train_fold(data, _without_test(partitions[0]), config, None)
        histories.append(history.assign(fold=REFIT_FOLD))
    # A fine-tuned model is whole already: its last stage is no longer the backbone's.
    model = trained if data.maps is not None else assemble(data.backbone, trained, config.model)
    if len(partitions) == 1:
        # What is claimed of a hold-out run is claimed of the very model that is exported, in
        # float32, whatever engine computed the features its head was trained on.
        tested = [_scores(data, partitions[0].test, 0, _by_model(model, data))]
    with replacing(run_dir / "history.csv") as temporary:
        pd.concat(histories).to_csv(temporary, index=False)
    write_scores(pd.concat(tested), run_dir / "frame_scores.csv")
    write_scores(pd.concat(validated), run_dir / "validation_scores.csv", validation=True)
    return model


def _tracked_fold(
    data: StudyData, partition: Partition, config: Config, *, nested: bool
) -> tuple[keras.Model, pd.DataFrame]:
    """Train one partition; a fold of several is a run of its own below the run."""
    if not nested:
        return train_fold(data, partition, config, _log_epoch)
    experiment = tracking.open_experiment()
    with tracking.start_run(experiment, partition.name, nested=True):
        trained, history = train_fold(data, partition, config, None)
        tracking.log_history(history)
        scores = _scores(data, partition.test, 0, _scorer(trained, data))
        tracking.log_metrics({"test": compute_metrics(*labels_and_probabilities(scores))})
    return trained, history


def _log_epoch(epoch: int, logs: dict[str, float]) -> None:
    tracking.log_metrics(logs, step=epoch)


def _without_test(partition: Partition) -> Partition:
    """The final model of a cross-validation learns from the tested patients too."""
    return dataclasses.replace(
        partition, name="refit", train=partition.train | partition.test, test=frozenset()
    )


def _scorer(trained: keras.Model, data: StudyData) -> Scorer:
    return _by_head(trained, data) if data.maps is None else _by_model(trained, data)


def _by_head(head: keras.Model, data: StudyData) -> Scorer:
    """Probabilities of a patient group from the stored plain features."""

    def score(patient_ids: frozenset[str]) -> np.ndarray:
        features = plain_rows(data.views, rows_of(data, patient_ids))
        return np.concatenate([head(part, training=False) for part in in_slices(features)])

    return score


def _by_model(model: keras.Model, data: StudyData) -> Scorer:
    """Probabilities of a patient group from the pixels."""

    def score(patient_ids: frozenset[str]) -> np.ndarray:
        examples = keep_patients(read_records(data.records_dir), patient_ids)
        batches = pixel_batches(examples).as_numpy_iterator()
        return np.concatenate([model.predict_on_batch(rois) for rois, _ in batches])

    return score


def _scores(
    data: StudyData, patient_ids: frozenset[str], fold: int, scorer: Scorer
) -> pd.DataFrame:
    index = data.index.iloc[rows_of(data, patient_ids)]
    return score_table(index, scorer(patient_ids), fold).sort_values("frame_id")
