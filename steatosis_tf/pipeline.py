"""The pipeline as one function: from a manifest to a trained, evaluated, tracked, exported model.

`_run` reads from top to bottom. What is missing is made on the way: split, region of interest,
records, features. Scripts take the same first steps by `complete_manifest` and `keep_records`.
"""

import dataclasses
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pandas as pd

from steatosis_tf.cohort.flow import write_cohort
from steatosis_tf.cohort.manifest import read_manifest, relocate, write_manifest
from steatosis_tf.cohort.near_duplicates import HASH_VERSION
from steatosis_tf.cohort.partition import Partition, test_column
from steatosis_tf.cohort.splits import is_split, make_partitions, resolve_split
from steatosis_tf.config import Config, override, save_config
from steatosis_tf.deploy.bundle_write import write_run_bundle
from steatosis_tf.deploy.export import export_onnx, milliseconds_per_frame, run_metadata, save_keras
from steatosis_tf.deploy.figures import draw_explanations
from steatosis_tf.deploy.predict import open_model
from steatosis_tf.environment import describe_environment
from steatosis_tf.evaluation.clinical.baselines import write_hepatorenal
from steatosis_tf.evaluation.figures.results import draw_run_gallery
from steatosis_tf.evaluation.report.evaluate import evaluate_run, lock_operating_points
from steatosis_tf.evaluation.report.report import read_verdict, write_report
from steatosis_tf.files import rejected_beside, write_json, write_sums
from steatosis_tf.model.backbone import build_backbone
from steatosis_tf.model.engines import Engine, check_installed
from steatosis_tf.model.joint import JointModel
from steatosis_tf.model.rules import grey_spread
from steatosis_tf.model.train import make_repeatable
from steatosis_tf.quantitative.study import measured_features
from steatosis_tf.recipes import RECIPES
from steatosis_tf.records.builder import records_fingerprint, usable_rows, write_records
from steatosis_tf.records.pipeline import read_records
from steatosis_tf.roi.columns import add_roi_columns
from steatosis_tf.roi.views import input_shape
from steatosis_tf.run_log import begun, read_results, track
from steatosis_tf.training import (
    StudyData,
    check_learnable,
    check_rois,
    load_study,
    train_and_score,
)
from steatosis_tf.unfinished import finished_before, forget, run_key

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions


@dataclass(frozen=True)
class RunSummary:
    """Where a run lies and what it found; `verdict` is the report's first sentence."""

    run_id: str
    experiment: str
    run_dir: str
    seconds: float
    verdict: str
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Preparation:
    """Where and how a study is prepared.

    Attributes:
        config: split and ROI.
        folder: where the completed manifest and the leakage check's findings are kept.
        runs_dir: records and hashes are kept in `runs_dir/cache`, shared by all runs.
        options: Beam runner that proposes ROIs and writes records, see `parallel.beam_options`;
            None does it here.
    """

    config: Config
    folder: Path
    runs_dir: Path
    options: "PipelineOptions | None" = None

    @property
    def manifest_path(self) -> Path:
        """The completed manifest."""
        return self.folder / "manifest.csv"

    @property
    def cache_dir(self) -> Path:
        """What all runs share."""
        return self.runs_dir / "cache"

    @property
    def hashes_path(self) -> Path:
        """File that keeps the data-leakage check's hashes, which the ROI step takes along."""
        return self.cache_dir / f"perceptual_hashes-{HASH_VERSION}.csv"

    @property
    def crops_dir(self) -> Path:
        """Where the ROI step leaves what it cut for the records; gone when these are written."""
        return self.folder / "crops"


def train(
    manifest_path: str | Path,
    recipe: str = next(iter(RECIPES)),
    settings: Sequence[str] = (),
    runs_dir: str | Path = "runs",
    *,
    options: "PipelineOptions | None" = None,
) -> list[RunSummary]:
    """Train, evaluate, track and export by a recipe: `steatosis train` from Python.

    Args:
        manifest_path: manifest of graded frames.
        recipe: name out of `recipes.RECIPES`.
        settings: `stage.name=value`, what differs from the recipe.
        runs_dir: folder of runs.
        options: as of `run_all`.

    Returns:
        one summary per round of a repeated k-fold, else one.

    Raises:
        ValueError, RuntimeError: as of `run_all` and `config.override`.

    Example:
        >>> from steatosis_tf.cohort.manifest import build_manifest
        >>> from steatosis_tf.sources.phantom.study import write_phantoms
        >>> labels = write_phantoms("phantoms", num_patients=40, frames_per_patient=1, seed=0)
        >>> summary = build_manifest(labels, "manifest.csv")
        >>> settings = ["split.folds=2", "roi.depth_px=64", "roi.num_beams=64"]
        >>> (run,) = train("manifest.csv", "linear", settings)
        >>> run.metrics["patient"]["n"]
        40
    """
    if recipe not in RECIPES:
        raise ValueError(f"Expected a recipe out of {', '.join(RECIPES)}. Received: {recipe!r}.")
    config = override(RECIPES[recipe].config, list(settings))
    return run_all(recipe, manifest_path, [config], runs_dir, options)


def run_all(
    experiment: str,
    manifest_path: str | Path,
    configs: Sequence[Config],
    runs_dir: str | Path = "runs",
    options: "PipelineOptions | None" = None,
) -> list[RunSummary]:
    """Do whatever is missing (split, ROI, records, features), then train, evaluate and export.

    A run of the same manifest and config that was begun before and has not come to its end is gone
    on with; what this call finished before it was killed is not run again. The manifest itself is
    never changed: each run keeps a complete copy. The test part is scored once, at the end.
    Cross-validated runs score every patient out of fold; the model they export is trained on all
    patients afterwards, and no figure is claimed for it but those of the folds.

    Args:
        experiment: name in MLflow and below `runs_dir`.
        manifest_path: manifest of graded frames.
        configs: all stages, one for each run, or for each round of a repeated k-fold. A round is a
            run of its own, with other folds and the seed `train.seed` plus its number, so that no
            patient is counted twice.
        runs_dir: folder of runs; records and features are kept in `runs_dir/cache`.
        options: Beam runner that proposes ROIs and makes records and features, see
            `parallel.beam_options`; None does it here.

    Returns:
        one summary per run.

    Raises:
        ValueError: for faults of the data or of the config.
        RuntimeError: if weights cannot be fetched, the exported model differs, or another process
            computes the same run.
    """
    manifest_path, folder = Path(manifest_path), Path(runs_dir) / experiment
    table = read_manifest(manifest_path)
    rounds = _rounds(configs, table)
    keys = [run_key(experiment, manifest_path, config, repeat) for repeat, config in rounds]
    summaries = []
    for (repeat, config), key in zip(rounds, keys, strict=True):
        if before := finished_before(folder, key):
            summaries.append(_summary(before))
            continue
        with begun(folder, key, config, repeat) as run_dir:
            _run(run_dir, table, manifest_path, config, repeat, options)
        summaries.append(_summary(run_dir))
    for key in keys:
        forget(folder, key)
    return summaries


def _rounds(configs: Sequence[Config], table: pd.DataFrame) -> list[tuple[int, Config]]:
    """Number and config of each round: its seed, and how the patients of the table are divided."""
    rounds = []
    for config in configs:
        split, said = resolve_split(table, config.split)
        print(said, file=sys.stderr)
        for repeat in range(split.repeats):
            train = dataclasses.replace(config.train, seed=config.train.seed + repeat)
            rounds.append((repeat, dataclasses.replace(config, split=split, train=train)))
    return rounds


def _summary(run_dir: Path) -> RunSummary:
    metrics, environment = read_results(run_dir)
    seconds = float(environment["cost"]["seconds"])
    verdict = read_verdict(run_dir)
    return RunSummary(run_dir.name, run_dir.parent.name, str(run_dir), seconds, verdict, metrics)


def _run(
    run_dir: Path,
    table: pd.DataFrame,
    manifest_path: Path,
    config: Config,
    repeat: int,
    options: "PipelineOptions | None",
) -> None:
    """Everything from the manifest's rows to the tracked run, into the run's folder."""
    start = time.monotonic()
    keras.utils.clear_session(free_memory=False)  # names of layers count up over runs
    make_repeatable(config.train.seed)
    save_config(config, run_dir / "config.json")
    place = Preparation(config, run_dir, run_dir.parent.parent, options)
    is_given = is_split(table.loc[table["grade"] != ""])
    partitions = [part for part in make_partitions(table, config.split) if part.repeat == repeat]
    check_learnable(table, partitions, config)
    check_installed(config.model.engine)
    # First, since its weights may be absent or not for it.
    backbone = build_backbone(config.model, input_shape(config.roi.view))
    table = complete_manifest(table, manifest_path, partitions, place)
    write_cohort(table, rejected_beside(manifest_path), partitions, run_dir)
    records_dir, _ = keep_records(table, partitions, place)
    data = load_study(records_dir, place.cache_dir / "features", config, options, backbone)
    if config.model.head == "joint":
        data = _with_measured(data, table, place)
    train_start = time.monotonic()
    model = train_and_score(data, partitions, config, run_dir)
    train_minutes = (time.monotonic() - train_start) / 60
    lock_operating_points(run_dir, config.evaluation.aggregation)
    evaluate_run(run_dir)
    print("exporting the model, and checking what was exported", file=sys.stderr)
    cost = _keep(model, data, place) | {"train_minutes": train_minutes}
    made = {"repeat": repeat} | ({"split": "as the manifest's column says"} if is_given else {})
    _write_environment(data.engine, made, cost, start, run_dir / "environment.json")
    print("drawing figures, and writing the report with its intervals", file=sys.stderr)
    draw_run_gallery(run_dir)
    write_hepatorenal(run_dir, place.cache_dir)
    write_report(run_dir)
    write_sums(run_dir)
    track(run_dir)


def _with_measured(data: StudyData, table: pd.DataFrame, place: Preparation) -> StudyData:
    """The study with measured features and spreads of grey, in the order of its index."""
    frames = table.set_index("frame_id").loc[data.index["frame_id"]].reset_index()
    measured = measured_features(frames, place.manifest_path, place.cache_dir)
    examples = read_records(data.records_dir).as_numpy_iterator()
    spreads = np.array([grey_spread(example["roi"]) for example in examples])
    return dataclasses.replace(data, measured=measured, grey_spreads=spreads)


def _keep(model: keras.Model | JointModel, data: StudyData, place: Preparation) -> dict[str, float]:
    """Save and export the model, draw how it sees; what that showed, for comparing runs."""
    rois, run_dir = check_rois(data.index, read_records(data.records_dir)), place.folder
    if isinstance(model, JointModel):
        difference = write_run_bundle(run_dir, model, place.config, rois, place.cache_dir)
        size = (run_dir / "bundle" / "model.onnx").stat().st_size
        draw_explanations(run_dir, open_model(run_dir / "bundle"))
        return {"onnx_difference": difference, "file_mb": size / 1e6}
    save_keras(model, run_dir / "model.keras")
    path = run_dir / "model.onnx"
    texts = run_metadata(run_dir, place.config)
    difference = export_onnx(model, path, rois, texts, cache_dir=place.cache_dir)
    draw_explanations(run_dir, open_model(path))
    return {
        "onnx_difference": difference,
        "file_mb": path.stat().st_size / 1e6,
        "ms_per_frame": milliseconds_per_frame(path, rois),
    }


def _write_environment(
    engine: Engine | None, made: dict[str, Any], cost: dict[str, float], start: float, path: Path
) -> None:
    """What the run was made with, and what it cost: the only numbers that are others next time."""
    content = describe_environment() | made | {"cost": cost}
    if engine:
        content["engine"] = f"{engine.name} {engine.precision}"
        cost["engine_min_cosine"] = engine.min_cosine
        cost["engine_changed_decisions"] = engine.changed
        cost["engine_speedup"] = engine.speedup
    cost["seconds"] = round(time.monotonic() - start, 1)
    write_json(content, path)


def complete_manifest(
    table: pd.DataFrame, manifest_path: str | Path, partitions: list[Partition], place: Preparation
) -> pd.DataFrame:
    """Write `manifest.csv`, a copy with split and ROI columns, into the folder.

    Args:
        table: rows of the manifest.
        manifest_path: where they are from; never changed.
        partitions: the split, one or the folds of one round.
        place: where to, and how.

    Returns:
        what was written.
    """
    # From here on the frames are looked for from the copy: the manifest's own place is told once.
    table = relocate(table, manifest_path, place.folder)
    table = add_roi_columns(
        table, place.manifest_path, place.config.roi, place.options, place.hashes_path,
        place.crops_dir,
    )  # fmt: skip
    table["split"] = test_column(table, partitions)
    write_manifest(table, place.manifest_path)
    return table


def keep_records(
    table: pd.DataFrame, partitions: list[Partition], place: Preparation
) -> tuple[Path, str]:
    """Records of a completed manifest, once the data-leakage check has left `leak_gate.json`.

    Args:
        table: what `complete_manifest` wrote.
        partitions: the split, of all rounds.
        place: as of `complete_manifest`.

    Returns:
        folder of the records and their fingerprint.

    Raises:
        ValueError, RuntimeError, OSError: as `write_records`.
    """
    fingerprint = records_fingerprint(usable_rows(table))
    records_dir = place.cache_dir / "records" / fingerprint[:16]
    write_records(
        place.manifest_path,
        records_dir,
        partitions,
        time_column=place.config.split.time_column,
        gate_path=place.folder / "leak_gate.json",
        hashes_path=place.hashes_path,
        crops_dir=place.crops_dir,
        options=place.options,
    )
    shutil.rmtree(place.crops_dir, ignore_errors=True)
    return records_dir, fingerprint
