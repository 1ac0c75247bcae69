"""The paper's size on this machine: 10,000 simulated frames, 100 epochs, batch 32, K stored views.

    python benchmarks/paper_scale.py
    python benchmarks/paper_scale.py --patients 100 --views 2

The same command again goes on where the last one stopped, killed or not: a stage that is done is
not done again, and its time is kept in `times.json`. Simulating the frames is not counted. The
plain way (online augmentation, the backbone in every epoch) is not run: its hours are the frames
of 100 epochs over the speed of plain Keras, measured here on a few batches.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from processor_time import processor_seconds

from steatosis_tf import tracking
from steatosis_tf.cohort.manifest import build_manifest, read_manifest, write_manifest
from steatosis_tf.cohort.splits import Partition, make_partitions, partitions_of_column, test_column
from steatosis_tf.config import Config, ModelConfig, RoiConfig, TrainConfig, save_config
from steatosis_tf.evaluation.report.evaluate import evaluate_run, lock_operating_points
from steatosis_tf.files import replacing
from steatosis_tf.model.backbone import build_backbone
from steatosis_tf.model.engines import BATCH, choose_engine, padded
from steatosis_tf.model.features import missing_rows, row_name, store_views, stored_features
from steatosis_tf.records.builder import write_records
from steatosis_tf.records.pipeline import read_index, read_records
from steatosis_tf.roi.columns import add_roi_columns
from steatosis_tf.sources.phantom.study import write_phantoms
from steatosis_tf.training import StudyData, check_rois, train_and_score

FRAMES_PER_PATIENT = 10


@dataclass(frozen=True)
class Clock:
    """Seconds of finished stages, kept in a file."""

    path: Path

    def seconds(self) -> dict[str, list[float]]:
        return json.loads(self.path.read_text()) if self.path.is_file() else {}

    def stage(self, name: str, work: Callable[[], float | None]) -> None:
        """Do the work unless it is done. It may return the share of the stage it found left."""
        if name in self.seconds():
            return
        start = np.array([time.perf_counter(), processor_seconds()])
        share = work() or 1.0
        spent = list((np.array([time.perf_counter(), processor_seconds()]) - start) / share)
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(self.seconds() | {name: spent}, indent=2))
        print(f"{name}: {spent[0]:.0f} s, {spent[1]:.0f} CPU-s", flush=True)


def main(argv: list[str] | None = None) -> None:
    """Run what is left and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patients", type=int, default=1000, help="ten frames each")
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--folder", type=Path, default=Path("runs/paper_scale"))
    args = parser.parse_args(argv)
    config = Config(
        model=ModelConfig(weights="random"),
        roi=RoiConfig(method="sector"),
        train=TrainConfig(epochs=args.epochs, views=args.views, learning_rate=1e-3),
    )
    folder = args.folder / f"{args.patients}-patients-{args.views}-views"
    clock = Clock(folder / "times.json")
    manifest_path = _phantoms(folder, args.patients)
    clock.stage("ROI and records", lambda: _records(manifest_path, folder, config))
    for number in range(args.views + 1):
        clock.stage(f"features, view {number}", lambda n=number: _features(folder, config, n))
    clock.stage("training and evaluation", lambda: _train(folder, config))
    _print_table(clock.seconds(), folder, config)


def _phantoms(folder: Path, num_patients: int) -> Path:
    manifest_path = folder / "phantom_manifest.csv"
    if not manifest_path.is_file():
        labels_path = write_phantoms(
            folder / "phantoms",
            num_patients=num_patients,
            frames_per_patient=FRAMES_PER_PATIENT,
            seed=0,
        )
        build_manifest(labels_path, manifest_path)
    return manifest_path


def _records(manifest_path: Path, folder: Path, config: Config) -> None:
    table = add_roi_columns(read_manifest(manifest_path), manifest_path, config.roi)
    partitions = make_partitions(table, config.split)
    table["split"] = test_column(table, partitions)
    write_manifest(table, folder / "manifest.csv")
    write_records(folder / "manifest.csv", folder / "records", partitions)


def _features(folder: Path, config: Config, number: int) -> float:
    """One view; returns the share of its rows that was still to be computed."""
    backbone = build_backbone(config.model)
    examples, index = read_records(folder / "records"), read_index(folder / "records")
    rois = check_rois(index, examples)
    engine = choose_engine(config.model.engine, backbone, rois, folder / "store")
    view = store_views(folder / "store", backbone, engine, config.augment, number)[number]
    rows = [row_name(e["frame_id"], e["roi"]) for e in examples.as_numpy_iterator()]
    share = float(np.mean(missing_rows(view, rows)))
    stored_features(examples, folder / "store", backbone, engine, config.augment, number)
    return share


def _partition(folder: Path) -> Partition:
    (partition,) = partitions_of_column(read_manifest(folder / "manifest.csv"))
    return partition


def _train(folder: Path, config: Config) -> None:
    backbone = build_backbone(config.model)
    examples, index = read_records(folder / "records"), read_index(folder / "records")
    engine = choose_engine(
        config.model.engine, backbone, check_rois(index, examples), folder / "store"
    )
    views = stored_features(
        examples, folder / "store", backbone, engine, config.augment, config.train.views
    )
    data = StudyData(folder / "records", index, views, backbone)
    run_dir = folder / "run"
    run_dir.mkdir(exist_ok=True)
    save_config(config, run_dir / "config.json")
    with tracking.start_run("paper_scale", "paper_scale"):
        train_and_score(data, [_partition(folder)], config, run_dir)
    lock_operating_points(run_dir, config.evaluation.aggregation)
    evaluate_run(run_dir)


def _plain_hours(folder: Path, config: Config) -> tuple[float, float]:
    """Wall and CPU hours of the plain way, from plain Keras on a few batches."""
    index = read_index(folder / "records")
    rois = check_rois(index, read_records(folder / "records"))
    engine = choose_engine("keras", build_backbone(config.model), rois, folder / "store")
    batch = padded(rois[:BATCH])
    list(engine.forward([batch]))  # compile
    start = time.perf_counter(), time.process_time()
    list(engine.forward([batch] * 3))
    spent = time.perf_counter() - start[0], time.process_time() - start[1]
    partition = _partition(folder)
    learned = int(index["patient_id"].isin(partition.train | partition.validation).sum())
    wall, cpu = (learned * config.train.epochs * s / (3 * BATCH) / 3600 for s in spent)
    return wall, cpu


def _print_table(seconds: dict[str, list[float]], folder: Path, config: Config) -> None:
    total = np.sum(list(seconds.values()), axis=0)
    num_frames = len(read_index(folder / "records"))
    print(f"\n{num_frames} simulated frames, {config.train.epochs} epochs, "
          f"batch {config.train.batch_size}, {config.train.views} views")  # fmt: skip
    print("| stage | minutes | CPU minutes |", "|---|---|---|", sep="\n")
    for name, spent in (*seconds.items(), ("together", total)):
        print(f"| {name} | {spent[0] / 60:.1f} | {spent[1] / 60:.1f} |")
    wall, cpu = _plain_hours(folder, config)
    print(f"| plain way, extrapolated | {wall * 60:.0f} | {cpu * 60:.0f} |")
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
