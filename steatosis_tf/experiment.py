"""The line as one function: from a manifest to a trained, evaluated, tracked, exported model.

Every script in `experiments/` is a docstring, a config and a call of `main` here.
"""

import argparse
import dataclasses
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from steatosis_tf import tracking
from steatosis_tf.atomic import replacing
from steatosis_tf.cohort.manifest import read_manifest, relocate, write_manifest
from steatosis_tf.cohort.splits import Partition, make_partitions, split_table, test_column
from steatosis_tf.config import Config, flatten, override, save_config
from steatosis_tf.deploy.export import NUM_CHECKED, export_onnx, roi_metadata
from steatosis_tf.environment import describe_environment
from steatosis_tf.evaluation.evaluate import evaluate_run, metrics_text
from steatosis_tf.evaluation.metrics import compute_metrics
from steatosis_tf.evaluation.scores import labels_and_probabilities, write_scores
from steatosis_tf.grades import GRADES, SCORE_COLUMNS
from steatosis_tf.model.backbone import build_backbone
from steatosis_tf.model.classifier import assemble, build_head, copy_weights
from steatosis_tf.model.engines import choose_engine
from steatosis_tf.model.features import stored_features
from steatosis_tf.model.train import (
    EpochCallback,
    class_weights,
    feature_batches,
    fit,
    make_repeatable,
)
from steatosis_tf.records.builder import records_fingerprint, usable_rows, write_records
from steatosis_tf.records.pipeline import (
    keep_patients,
    pixel_batches,
    read_index,
    read_records,
    training_batches,
)
from steatosis_tf.roi.columns import add_roi_columns
from steatosis_tf.roi.fold import fold_decisions

_REFIT_FOLD = -1  # `fold` of the final model of a cross-validated run in history.csv


@dataclass(frozen=True)
class RunSummary:
    """Where a run lies and what it found."""

    run_id: str
    experiment: str
    run_dir: str
    seconds: float
    metrics: dict[str, Any]


@dataclass(frozen=True)
class _Data:
    """The records of a study and the features of every frame, in the same order."""

    records_dir: Path
    index: pd.DataFrame
    views: np.ndarray
    backbone: keras.Model


def main(doc: str, experiment: str, config: Config, argv: Sequence[str] | None = None) -> int:
    """Command line of an experiment script.

    Args:
        doc: the script's docstring, shown by `--help`.
        experiment: MLflow experiment and folder below `runs/`.
        config: the script's CONFIG.
        argv: arguments, those of the process if None.

    Returns:
        exit code: 0, or 1 with the reason on stderr.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--manifest", required=True, metavar="MANIFEST_CSV")
    parser.add_argument("--weights", help='"imagenet", "random" or a path')
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="STAGE.NAME=VALUE", dest="settings"
    )
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--report", metavar="FILE", help="write a JSON summary of the run")
    args = parser.parse_args(argv)
    settings = [*args.settings, *([f"model.weights={args.weights}"] if args.weights else [])]
    try:
        summary = run(experiment, args.manifest, override(config, settings), args.runs_dir)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if args.report:
        with replacing(args.report) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(summary), indent=2) + "\n")
    print(metrics_text(summary.metrics))
    print(f"\nrun: {summary.run_dir}\ncompare: steatosis compare {experiment}, or make ui")
    return 0


def run(
    experiment: str, manifest_path: str | Path, config: Config, runs_dir: str | Path = "runs"
) -> RunSummary:
    """Do whatever is missing (split, ROI, records, features), then train, evaluate and export.

    The manifest itself is never changed: the run keeps a complete copy. The test part is scored
    once, at the end. Cross-validated runs score every patient out of fold; the model they export
    is trained on all patients afterwards, and no figure is claimed for it but those of the folds.

    Args:
        experiment: name in MLflow and below `runs_dir`.
        manifest_path: manifest of graded frames.
        config: all stages.
        runs_dir: folder of runs; records and features are kept in `runs_dir/cache`.

    Returns:
        the run's id, directory and metrics.

    Raises:
        ValueError: for faults of the data or of the config.
        RuntimeError: if weights cannot be fetched or the exported model differs.
    """
    start = time.monotonic()
    make_repeatable(config.train.seed)
    with tracking.start_run(experiment, config.split.kind, flatten(config)) as tracked:
        run_dir = Path(runs_dir) / experiment / tracked.run_id
        run_dir.mkdir(parents=True)
        save_config(config, run_dir / "config.json")
        partitions, records_dir = _prepare(Path(manifest_path), run_dir, Path(runs_dir), config)
        data = _load(records_dir, Path(runs_dir) / "cache" / "features", config)
        model = _train_and_score(data, partitions, config, run_dir)
        model.save(run_dir / "model.keras")
        metrics = evaluate_run(run_dir)
        difference = _export(model, data, config, run_dir, tracked.run_id)
        seconds = time.monotonic() - start
        environment = describe_environment() | {"seconds": round(seconds, 1)}
        _write_json(environment, run_dir / "environment.json")
        _track(run_dir, metrics, seconds, difference)
    return RunSummary(tracked.run_id, experiment, str(run_dir), seconds, metrics)


def _prepare(
    manifest_path: Path, run_dir: Path, runs_dir: Path, config: Config
) -> tuple[list[Partition], Path]:
    """Complete the manifest in the run directory and see that its records exist."""
    fold_decisions(manifest_path)  # a review page that was killed leaves its last ones aside
    table = read_manifest(manifest_path)
    partitions = make_partitions(table, config.split)
    table = add_roi_columns(table, manifest_path, config.roi)
    table = relocate(table, manifest_path, run_dir)
    table["split"] = test_column(table, partitions)
    write_manifest(table, run_dir / "manifest.csv")
    with replacing(run_dir / "split.csv") as temporary:
        split_table(partitions).to_csv(temporary, index=False)
    _write_rejected(table, run_dir / "rejected.csv")
    fingerprint = records_fingerprint(usable_rows(table))
    records_dir = runs_dir / "cache" / "records" / fingerprint[:16]
    write_records(
        run_dir / "manifest.csv", records_dir, partitions, time_column=config.split.time_column
    )
    shutil.copy(records_dir / "leak_gate.json", run_dir)
    return partitions, records_dir


def _write_rejected(table: pd.DataFrame, path: Path) -> None:
    rejected = table.loc[table["roi_height"].isna(), ["frame_id", "patient_id", "roi_reason"]]
    with replacing(path) as temporary:
        rejected.rename(columns={"roi_reason": "reason"}).to_csv(temporary, index=False)
    if len(rejected):
        print(f"{len(rejected)} frames without ROI, see {path}", file=sys.stderr)


def _load(records_dir: Path, features_dir: Path, config: Config) -> _Data:
    backbone = build_backbone(config.model)
    examples = read_records(records_dir)
    engine = choose_engine(config.model.engine, backbone, _check_rois(examples), features_dir)
    tracking.log_tags({"engine": f"{engine.name} {engine.precision}"})
    tracking.log_metrics({"engine_min_cosine": engine.min_cosine})
    views = stored_features(
        examples, features_dir, backbone, engine, config.augment, config.train.views
    )
    return _Data(records_dir, read_index(records_dir), views, backbone)


def _check_rois(examples: tf.data.Dataset) -> np.ndarray:
    """The first frames of the study, on which engines and exports are held against Keras."""
    return np.stack([e["roi"] for e in examples.take(NUM_CHECKED).as_numpy_iterator()])


def _train_and_score(
    data: _Data, partitions: list[Partition], config: Config, run_dir: Path
) -> keras.Model:
    histories, tested, validated = [], [], []
    for fold, partition in enumerate(partitions):
        head, history = _tracked_fold(data, partition, config, nested=len(partitions) > 1)
        histories.append(history.assign(fold=fold))
        tested.append(_scores(head, data, partition.test, fold))
        validated.append(_scores(head, data, partition.validation, fold))
    if len(partitions) > 1:
        head, history = _fit_head(data, _without_test(partitions[0]), config, None)
        histories.append(history.assign(fold=_REFIT_FOLD))
    with replacing(run_dir / "history.csv") as temporary:
        pd.concat(histories).to_csv(temporary, index=False)
    write_scores(pd.concat(tested), run_dir / "frame_scores.csv")
    with replacing(run_dir / "validation_scores.csv") as temporary:
        pd.concat(validated).to_csv(temporary, index=False)
    return assemble(data.backbone, head, config.model)


def _tracked_fold(
    data: _Data, partition: Partition, config: Config, *, nested: bool
) -> tuple[keras.Model, pd.DataFrame]:
    """Train one partition; a fold of several is a run of its own below the run."""
    if not nested:
        return _fit_head(data, partition, config, _log_epoch)
    experiment = tracking.open_experiment()
    with tracking.start_run(experiment, partition.name, nested=True):
        head, history = _fit_head(data, partition, config, None)
        tracking.log_history(history)
        scores = _scores(head, data, partition.test, 0)
        tracking.log_metrics({"test": compute_metrics(*labels_and_probabilities(scores))})
    return head, history


def _log_epoch(epoch: int, logs: dict[str, float]) -> None:
    tracking.log_metrics(logs, step=epoch)


def _without_test(partition: Partition) -> Partition:
    """The final model of a cross-validation learns from the tested patients too."""
    return dataclasses.replace(
        partition, name="refit", train=partition.train | partition.test, test=frozenset()
    )


def _fit_head(
    data: _Data, partition: Partition, config: Config, on_epoch: EpochCallback | None
) -> tuple[keras.Model, pd.DataFrame]:
    labels = data.index["label"].to_numpy()
    train = _rows_of(data, partition.train)
    validation = _rows_of(data, partition.validation)
    seed = config.train.seed
    head = build_head(config.model, data.views[0, train], seed)
    weights = class_weights(labels[train], len(GRADES)) if config.train.class_weights else None
    if config.train.views:
        batches = feature_batches(
            data.views[1:, train], labels[train], batch_size=config.train.batch_size, seed=seed
        )
        held_out = (data.views[0, validation], labels[validation])
        return head, fit(head, batches, held_out, weights, config.train, on_epoch)
    model = assemble(data.backbone, head, config.model)
    examples = read_records(data.records_dir)
    batches = training_batches(
        keep_patients(examples, partition.train),
        config.augment,
        batch_size=config.train.batch_size,
        seed=seed,
    )
    held_out = pixel_batches(keep_patients(examples, partition.validation))
    history = fit(model, batches, held_out, weights, config.train, on_epoch)
    copy_weights(model, head)
    return head, history


def _rows_of(data: _Data, patient_ids: frozenset[str]) -> np.ndarray:
    return np.flatnonzero(data.index["patient_id"].isin(patient_ids))


def _scores(head: keras.Model, data: _Data, patient_ids: frozenset[str], fold: int) -> pd.DataFrame:
    rows = _rows_of(data, patient_ids)
    probabilities = np.asarray(head(data.views[0, rows], training=False))
    index = data.index.iloc[rows]
    table = index[["frame_id", "patient_id"]].assign(
        fold=fold, grade=[GRADES[label] for label in index["label"]],
        fat_percent=index["fat_percent"],
    )  # fmt: skip
    table[list(SCORE_COLUMNS)] = probabilities
    table["predicted"] = [GRADES[label] for label in probabilities.argmax(axis=1)]
    return table.sort_values("frame_id")


def _export(model: keras.Model, data: _Data, config: Config, run_dir: Path, run_id: str) -> float:
    rois = _check_rois(read_records(data.records_dir))
    texts = {"run_id": run_id} | roi_metadata(config.roi)
    return export_onnx(model, run_dir / "model.onnx", rois, texts)


def _track(run_dir: Path, metrics: dict[str, Any], seconds: float, difference: float) -> None:
    tracking.log_metrics({"patient": metrics["patient"], "frame": metrics["frame"]})
    tracking.log_metrics({"seconds": seconds, "onnx_difference": difference})
    tracking.log_tags(
        {
            f"{name}_sha256": hashlib.sha256((run_dir / f"{name}.csv").read_bytes()).hexdigest()
            for name in ("manifest", "split")
        }
        | {"run_dir": str(run_dir)}
    )
    for name in ("config.json", "environment.json", "metrics.json", "history.csv", "split.csv",
                 "frame_scores.csv", "patient_scores.csv", "validation_scores.csv",
                 "rejected.csv", "manifest.csv", "leak_gate.json"):  # fmt: skip
        tracking.log_artifacts(run_dir / name)
    tracking.log_artifacts(run_dir / "figures", "figures")
    tracking.log_onnx_model(run_dir / "model.onnx", size_px=224, num_grades=len(GRADES))


def _write_json(content: dict[str, Any], path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
