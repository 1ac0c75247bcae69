"""Train the head on each partition of a study, and score the part that it has not seen."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from tqdm import tqdm

from steatosis_tf import tracking
from steatosis_tf.cohort.partition import Partition
from steatosis_tf.config import CLOSED_FORM, Config, HeadKind
from steatosis_tf.deploy.export import NUM_CHECKED
from steatosis_tf.evaluation.metrics.comparison import COMPARED
from steatosis_tf.evaluation.metrics.registry import compute_metrics
from steatosis_tf.evaluation.metrics.scores import (
    labels_and_probabilities,
    read_scores,
    score_table,
    write_scores,
)
from steatosis_tf.files import flat, write_csv
from steatosis_tf.grades import GRADES, label_of
from steatosis_tf.model.backbone import build_backbone
from steatosis_tf.model.engines import WORTH_TRYING, Engine, choose_engine
from steatosis_tf.model.features import (
    StoredViews,
    in_slices,
    plain_rows,
    spread_features,
    stored_features,
)
from steatosis_tf.model.heads import assemble, build_head, copy_weights, linear_head
from steatosis_tf.model.joint import NETWORK, JointModel
from steatosis_tf.model.joint_fit import Part, fit_joint
from steatosis_tf.model.rules import check_patients
from steatosis_tf.model.train import (
    EpochCallback,
    class_weights,
    feature_batches,
    fine_tune,
    fit,
    frame_order,
    maps_at_cut,
)
from steatosis_tf.quantitative.measure import FAT_SIGNS
from steatosis_tf.quantitative.study import MEASURED
from steatosis_tf.records.pipeline import (
    keep_frames,
    keep_patients,
    pixel_batches,
    read_index,
    read_records,
    training_batches,
)
from steatosis_tf.unfinished import keeping, kept

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

#: `fold` of the final model of a cross-validated run in history.csv.
REFIT_FOLD = -1

#: What the joint head reads beside the network: each may count in the one direction of fat.
_MEASURED_PART = Part("measured", MEASURED, tuple(FAT_SIGNS[name] for name in MEASURED))

# Files of a run, and of each fold while the run is unfinished.
_TESTED, _VALIDATED, _HISTORY = "frame_scores.csv", "validation_scores.csv", "history.csv"


@dataclass(frozen=True)
class StudyData:
    """The records of a study and what the frozen network says of every frame, in one order.

    Attributes:
        records_dir: as given to `write_records`.
        index: as `read_index` gives it.
        views: features, as `stored_features` gives them.
        backbone: as `build_backbone` gives it.
        maps: for fine-tuning, as `maps_at_cut` gives them, else None.
        engine: what computed the features.
        measured: for the joint head, `(num_frames, 3)` measured features, NaN where a patient's
            frames do not show one, else None.
        grey_spreads: for the joint head, `rules.grey_spread` of every frame, else None.
    """

    records_dir: Path
    index: pd.DataFrame
    views: np.ndarray | StoredViews
    backbone: keras.Model
    maps: np.ndarray | None = None
    engine: Engine | None = None
    measured: np.ndarray | None = None
    grey_spreads: np.ndarray | None = None


def rows_of(data: StudyData, patient_ids: frozenset[str]) -> np.ndarray:
    """Rows of the index that hold these patients' frames, `(num_frames,)` int."""
    return np.flatnonzero(data.index["patient_id"].isin(patient_ids))


def load_study(
    records_dir: Path,
    features_dir: Path,
    config: Config,
    options: "PipelineOptions | None" = None,
    backbone: keras.Model | None = None,
) -> StudyData:
    """Read the index of the records and compute or find what the network says of every frame.

    Args:
        records_dir: as given to `write_records`.
        features_dir: feature store, shared by all runs.
        config: backbone, engine, augmentation, number of views and their format on disk.
        options: Beam runner whose workers compute, see `parallel.beam_options`; None computes here.
        backbone: of the config, if it is built already.

    Raises:
        ValueError: if the records or a weights file cannot be used.
        RuntimeError: if ImageNet weights or the engine asked for cannot be had.
    """
    examples, index = read_records(records_dir), read_index(records_dir)
    if backbone is None:
        backbone = build_backbone(config.model, tuple(examples.element_spec["roi"].shape[:2]))
    rois = check_rois(index, examples)
    is_small = len(index) * (1 + config.train.views) < WORTH_TRYING
    name = "keras" if config.model.engine == "auto" and is_small else config.model.engine
    engine = choose_engine(name, backbone, rois, features_dir)
    if options is None:
        views = stored_features(
            examples, features_dir, backbone, engine, config.augmentation, config.train.views,
            dtype=config.train.store_dtype,
        )  # fmt: skip
    else:
        views = spread_features(records_dir, features_dir, backbone, engine, config, options)
    maps = None
    if config.train.fine_tune_epochs:
        maps = maps_at_cut(
            examples, backbone, config.augmentation, config.train.views, features_dir
        )
    return StudyData(records_dir, index, views, backbone, maps, engine)


def check_rois(data_index: pd.DataFrame, examples: tf.data.Dataset) -> np.ndarray:
    """One frame each of the first patients, on which engines and exports are held against Keras.

    Args:
        data_index: as `read_index` gives it.
        examples: as `read_records` gives them, in the same order.

    Returns:
        `(num_frames, height, width, 1)` uint8; at most `NUM_CHECKED`, one per patient.
    """
    first = set(data_index.drop_duplicates("patient_id").head(NUM_CHECKED)["frame_id"])
    chosen = keep_frames(examples, first)
    return np.stack([example["roi"] for example in chosen.as_numpy_iterator()])


def check_learnable(table: pd.DataFrame, partitions: list[Partition], config: Config) -> None:
    """Refuse a study that the head cannot learn from, before anything is computed.

    Args:
        table: rows of the manifest.
        partitions: of one round.
        config: head and training.

    Raises:
        ValueError: if a grade is absent where one is trained and grades are weighted, a regression
            would learn from a frame without fat percent, or a rule from fewer than 10 patients.
    """
    if config.model.head in CLOSED_FORM:
        check_patients(min(len(one.train) for one in partitions))
        return
    index = table.loc[table["grade"] != ""].reset_index(drop=True)
    index["label"] = index["grade"].map(label_of)
    refit = [_refit(partitions[0], config)] if len(partitions) > 1 else []
    for one in [*partitions, *refit]:
        train, rest = (
            np.flatnonzero(index["patient_id"].isin(part)) for part in (one.train, one.validation)
        )
        _targets(index, np.concatenate([train, rest]), config.model.head)
        _class_weights(index.iloc[train], config)


def train_and_score(
    data: StudyData, partitions: list[Partition], config: Config, run_dir: Path
) -> keras.Model | JointModel:
    """Train every partition, score its test part out of fold, and build the model to keep.

    What a fold leaves is kept in the run directory until the run is finished: called again, the
    folds that were trained are read. Writes `frame_scores.csv`, `validation_scores.csv` and, of
    heads that have epochs, `history.csv` into the run directory.

    Returns:
        the model pixels to probabilities: the one that was tested if there is one partition,
        else one trained on all patients, less the first partition's validation part where that
        steers the epochs. For the joint head the grading rule, which reads features of the
        backbone.
    """
    fat = data.index.drop_duplicates("patient_id")["fat_percent"]
    if config.model.head in CLOSED_FORM and 0 < (num_unknown := fat.isna().sum()) < len(fat):
        print(
            f"{num_unknown} of {len(fat)} patients have no fat_percent: the score is fitted to the "
            "grades of all, and answers name no fat percent; without these patients it is of fat",
            file=sys.stderr,
        )
    nested = len(partitions) > 1
    logged = tracking.finished_children() if nested else set()
    tested, validated, histories = [], [], []
    folds = tqdm(partitions, "training", unit="fold", disable=not nested)
    for fold, partition in enumerate(folds):
        is_logged = not nested or partition.name in logged
        with contextlib.nullcontext() if is_logged else fold_run(partition.name):
            folder = _kept_fold(data, partition, fold, config, run_dir, nested=nested)
            tested.append(read_scores(folder / _TESTED))
            validated.append(read_scores(folder / _VALIDATED, validation=True))
            histories.append(pd.read_csv(folder / _HISTORY))
            if not is_logged:
                log_fold(tested[-1], histories[-1])
    if nested:  # the final model learns from the tested patients too
        refit = _refit(partitions[0], config)
        folder = _kept_fold(data, refit, REFIT_FOLD, config, run_dir, nested=nested)
        histories.append(pd.read_csv(folder / _HISTORY))
    trained = _read_model(folder)
    # A fine-tuned model is whole already: its last stage is no longer the backbone's.
    is_whole = data.maps is not None or isinstance(trained, JointModel)
    model = trained if is_whole else assemble(data.backbone, trained, config.model)
    if not nested and not isinstance(model, JointModel):
        # What is claimed of a hold-out run is claimed of the very model that is exported, in
        # float32, whatever engine computed the features its head was trained on.
        tested = [_scored(model, data, partitions[0].test, 0, whole=True)]
    if config.model.head not in CLOSED_FORM:
        write_csv(pd.concat(histories), run_dir / _HISTORY)
    write_scores(pd.concat(tested), run_dir / _TESTED)
    write_scores(pd.concat(validated), run_dir / _VALIDATED, validation=True)
    return model


def log_fold(tested: pd.DataFrame, history: pd.DataFrame) -> None:
    """Log into the open run what a fold of several has shown.

    Args:
        tested: scores of its test part.
        history: one row per epoch; empty of a head that is solved.
    """
    tracking.log_history(history.drop(columns="fold"))
    found = flat(compute_metrics(*labels_and_probabilities(tested)))
    tracking.log_metrics({"test": {name: found[name] for name in COMPARED}})


def fold_run(name: str) -> contextlib.AbstractContextManager[tracking.Run]:
    """A fold of several is a run of its own below the run."""
    return tracking.start_run(tracking.open_experiment(), name, nested=True)


def _kept_fold(
    data: StudyData, partition: Partition, fold: int, config: Config, run_dir: Path, *, nested: bool
) -> Path:
    """Folder of what a fold leaves; it is trained and scored unless that is kept already.

    Scores and history have the run's own file names. The model lies there where it is exported;
    one that was trained on all patients has no scores.
    """
    is_refit = fold == REFIT_FOLD
    part = "refit" if is_refit else f"fold_{fold}"
    if folder := kept(run_dir, part):
        return folder
    with keeping(run_dir, part) as folder, _telling(config, nested=nested) as told:
        backup = folder.with_suffix(".npz")  # beside the folder, which is emptied at every start
        trained, epochs = train_fold(data, partition, config, told, backup)
        epochs.assign(fold=fold).to_csv(folder / _HISTORY, index=False)
        if not is_refit:
            whole = data.maps is not None
            tested = _scored(trained, data, partition.test, fold, whole=whole)
            write_scores(tested, folder / _TESTED)
            validated = _scored(trained, data, partition.validation, fold, whole=whole)
            # Visits are compared on tested patients alone.
            validated = validated.drop(columns="sqrt_fat", errors="ignore")
            write_scores(validated, folder / _VALIDATED, validation=True)
        if is_refit or not nested:
            _write_model(trained, folder)
    backup.unlink(missing_ok=True)
    return folder


def _write_model(trained: keras.Model | JointModel, folder: Path) -> None:
    if isinstance(trained, JointModel):
        (folder / "joint.json").write_text(trained.to_json(), encoding="utf-8")
    else:
        trained.save(folder / "trained.keras")


def _read_model(folder: Path) -> keras.Model | JointModel:
    if (folder / "joint.json").is_file():
        return JointModel.from_json((folder / "joint.json").read_text(encoding="utf-8"))
    return keras.models.load_model(folder / "trained.keras", compile=False)


@contextlib.contextmanager
def _telling(config: Config, *, nested: bool) -> Iterator[EpochCallback | None]:
    """Log and show epochs as they pass, where the run that is open is the fold's own."""
    if nested or config.model.head in CLOSED_FORM:
        yield None
        return
    with tqdm(desc="training", total=config.train.epochs, unit="epoch") as bar:

        def tell(epoch: int, logs: dict[str, float]) -> None:
            tracking.log_metrics(logs, step=epoch)
            bar.update()

        yield tell


def _refit(partition: Partition, config: Config) -> Partition:
    """The final model of a cross-validation learns from the tested patients too.

    A head that is solved has no epochs to be steered: it learns from the validating ones as well.
    """
    train, validation = partition.train | partition.test, partition.validation
    if config.model.head in CLOSED_FORM:
        train, validation = train | validation, frozenset()
    return dataclasses.replace(
        partition, name="refit", train=train, validation=validation, test=frozenset()
    )


def _scored(
    trained: keras.Model | JointModel,
    data: StudyData,
    patient_ids: frozenset[str],
    fold: int,
    *,
    whole: bool,
) -> pd.DataFrame:
    """Score table of a patient group, sorted by frame; a whole model is asked by the pixels."""
    rows = rows_of(data, patient_ids)
    index = data.index.iloc[rows]
    if isinstance(trained, JointModel):
        score = trained.score(_joint_inputs(data, rows))
        table = score_table(index, trained.probabilities(score), fold, trained.decision_rule)
        if trained.target == "sqrt_fat":
            table["sqrt_fat"] = score
    elif whole:
        table = score_table(index, _by_model(trained, data, patient_ids), fold)
    else:
        table = score_table(index, _by_head(trained, data, rows), fold)
    return table.sort_values("frame_id")


def _by_head(head: keras.Model, data: StudyData, rows: np.ndarray) -> np.ndarray:
    """Probabilities of frames from the stored plain features."""
    features = plain_rows(data.views, rows)
    return np.concatenate([head(part, training=False) for part in in_slices(features)])


def _by_model(model: keras.Model, data: StudyData, patient_ids: frozenset[str]) -> np.ndarray:
    """Probabilities of a patient group from the pixels, in the order of the index."""
    examples = keep_patients(read_records(data.records_dir), patient_ids)
    batches = pixel_batches(examples).as_numpy_iterator()
    return np.concatenate([model.predict_on_batch(rois) for rois, _ in batches])


def train_fold(
    data: StudyData,
    partition: Partition,
    config: Config,
    on_epoch: EpochCallback | None,
    backup: Path | None = None,
) -> tuple[keras.Model | JointModel, pd.DataFrame]:
    """Train on the training part of a partition; its validation part steers the learning rate.

    Args:
        data: the study.
        partition: who trains and who validates; who is tested is not looked at.
        config: head and training.
        on_epoch: called after every epoch.
        backup: as of `fit`, of the stage whose epochs are long: on pixels, or fine-tuning.

    Returns:
        the head on features, after fine-tuning the whole model on pixels, or the joint rule; and
        one row per epoch, none for a head that is solved.

    Raises:
        ValueError: if a training or validation frame lacks what the head is to learn.
        RuntimeError: if no epoch had a finite validation loss.
    """
    train, validation = (rows_of(data, part) for part in (partition.train, partition.validation))
    if config.model.head in CLOSED_FORM:
        rule = _solve(data, train)
        return rule if config.model.head == "joint" else linear_head(rule), pd.DataFrame()
    targets = _targets(data.index, np.concatenate([train, validation]), config.model.head)
    weights = _class_weights(data.index.iloc[train], config)
    head = build_head(config.model, plain_rows(data.views, train), config.train.seed)
    if not config.train.views:
        model = assemble(data.backbone, head, config.model)
        pixels = _online_batches(data, partition, targets, config)
        history = fit(model, *pixels, weights, config.train, on_epoch, backup)
        copy_weights(model, head, head)
        return head, history
    order = _order(data.index.iloc[train], train, config)
    batching = {"batch_size": config.train.batch_size, "seed": config.train.seed}
    batches = feature_batches(data.views[1:], targets, order, **batching)
    plain = tf.data.Dataset.from_tensor_slices(validation.astype(np.int64))
    held_out = feature_batches(data.views[:1], targets, plain, **batching)
    history = fit(head, batches, held_out, weights, config.train, on_epoch)
    if data.maps is None:
        return head, history
    tuned, more = fine_tune(
        assemble(data.backbone, head, config.model),
        feature_batches(data.maps[1:], targets, order, **batching),
        feature_batches(data.maps[:1], targets, plain, **batching),
        weights,
        config.train,
        on_epoch,
        backup,
    )
    return tuned, pd.concat([history, more], ignore_index=True)


def _order(training: pd.DataFrame, rows: np.ndarray, config: Config) -> tf.data.Dataset:
    balanced = config.train.sampling == "patients"
    patient_ids = training["patient_id"].to_numpy() if balanced else None
    return frame_order(rows, patient_ids, seed=config.train.seed)


def _online_batches(
    data: StudyData, partition: Partition, targets: np.ndarray, config: Config
) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Training and validation on pixels, augmented anew in every epoch."""
    examples = _with_targets(read_records(data.records_dir), targets)

    def of(patient_ids: frozenset[str]) -> tf.data.Dataset:
        # Keras would warn in the first epoch that data of unknown length ran out.
        known = tf.data.experimental.assert_cardinality(len(rows_of(data, patient_ids)))
        return keep_patients(examples, patient_ids).apply(known)

    training = training_batches(
        of(partition.train),
        config.augmentation,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
    )
    return training, pixel_batches(of(partition.validation))


def _targets(index: pd.DataFrame, rows: np.ndarray, head: HeadKind) -> np.ndarray:
    """What a head is to say of every frame; `rows` are those it learns or is validated on."""
    if head != "regression":
        return index["label"].to_numpy()
    unknown = index.iloc[rows].loc[lambda part: part["fat_percent"].isna(), "patient_id"].unique()
    if len(unknown):
        raise ValueError(
            "Expected fat_percent for every frame that trains or validates, which "
            f"model.head=regression learns. Received: none for {len(unknown)} patients, first "
            f"{', '.join(unknown[:3])}. Leave them out of the manifest, or use model.head=ordinal."
        )
    return np.sqrt(index["fat_percent"].to_numpy(np.float32))


def _class_weights(training: pd.DataFrame, config: Config) -> dict[int, float] | None:
    if not config.train.class_weights or config.model.head == "regression":
        return None
    if config.train.sampling == "patients":  # a grade then counts as often as it has patients
        training = training.drop_duplicates("patient_id")
    return class_weights(training["label"].to_numpy(), len(GRADES))


def _with_targets(examples: tf.data.Dataset, targets: np.ndarray) -> tf.data.Dataset:
    """The records with each frame's target in place of its label, in the order of the index."""
    pairs = tf.data.Dataset.zip(examples, tf.data.Dataset.from_tensor_slices(targets))
    return pairs.map(lambda example, target: example | {"label": target})


def _solve(data: StudyData, rows: np.ndarray) -> JointModel:
    """Fit the rule in closed form; the target is fat percent, or the grade where one lacks it: of
    the whole study, since the scores of all folds stand in one table."""
    index = data.index.iloc[rows]
    parts = (Part(NETWORK),) if data.measured is None else (Part(NETWORK), _MEASURED_PART)
    inputs, patient_ids = _joint_inputs(data, rows), index["patient_id"].tolist()
    spreads = None if data.grey_spreads is None else data.grey_spreads[rows]
    known: dict[str, Any] = {"grades": [GRADES[label] for label in index["label"]]}
    if data.index["fat_percent"].notna().all():
        known = {"fat_percent": index["fat_percent"].tolist()}
    return fit_joint(parts, inputs, patient_ids, grey_spreads=spreads, **known)


def _joint_inputs(data: StudyData, rows: np.ndarray) -> dict[str, np.ndarray]:
    inputs = {NETWORK: np.concatenate(list(in_slices(plain_rows(data.views, rows))))}
    if data.measured is not None:
        inputs[_MEASURED_PART.name] = data.measured[rows]
    return inputs
