"""Peak memory and time of every stage, ROI to evaluation, against the number of frames.

    python benchmarks/memory.py --folder FOLDER
    python benchmarks/memory.py --folder FOLDER --frames 1000 10000

Every stage runs in a process of its own. Frames are those of simulated patients, 636 x 434 px,
each under many names (hard links): every name is decoded, cut and stored anew. A patient's frames
may be alike, so the data-leakage check lets them pass, after comparing all. Features come from a
stand-in for the backbone that picks 2048 pixels, through the same store: ResNet-50 would take an
hour for the largest study, and its own memory does not depend on the study. Scores are drawn at
random, and ten frames are one patient then. What a stage starts from is written by another
process. Killed, the script goes on from what is finished in FOLDER. Read time as ratios; the load
is printed.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

STAGES = ("roi", "records", "features", "training", "evaluation")
FRAMES = (1_000, 10_000, 100_000)
NUM_PATIENTS = 400


def main(argv: list[str] | None = None) -> None:
    """Measure what has not been measured yet and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="8 GB for 100,000 frames")
    parser.add_argument("--frames", type=int, nargs="+", default=list(FRAMES))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.stage:
        _measure(arguments.folder, arguments.stage, arguments.frames[0])
        return
    if not (arguments.folder / "base.csv").is_file():
        _in_own_process(_write_base, arguments.folder)
    for num_frames in arguments.frames:
        for stage in arguments.stages:
            if not _result_path(arguments.folder, stage, num_frames).is_file():
                _in_own_process(_write_manifest, arguments.folder, num_frames)
                if stage == "evaluation":
                    _in_own_process(_write_run, arguments.folder, num_frames)
                command = [sys.executable, __file__, "--folder", str(arguments.folder)]
                subprocess.run(
                    [*command, "--frames", str(num_frames), "--stage", stage], check=True
                )
    _print_table(arguments.folder, arguments.stages, arguments.frames)


def _in_own_process(work: Callable[..., None], folder: Path, *arguments: int) -> None:
    """A child's peak begins at its parent's, so this process imports nothing heavy."""
    given = ", ".join(map(repr, (str(folder.resolve()), *arguments)))
    code = f"import memory; memory.{work.__name__}({given})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


def _write_base(place: str) -> None:
    """One frame per patient, with a ROI, graded and split."""
    from steatosis_tf.cohort.manifest import build_manifest, read_manifest, write_manifest
    from steatosis_tf.cohort.partition import test_column
    from steatosis_tf.cohort.splits import make_partitions
    from steatosis_tf.config import RoiConfig, SplitConfig
    from steatosis_tf.roi.columns import add_roi_columns
    from steatosis_tf.sources.phantom.study import write_phantoms

    folder = Path(place)
    labels_path = write_phantoms(
        folder / "phantoms", num_patients=NUM_PATIENTS, frames_per_patient=1, seed=0
    )
    build_manifest(labels_path, folder / "all.csv")
    table = read_manifest(folder / "all.csv")
    table["split"] = test_column(table, make_partitions(table, SplitConfig(kind="holdout")))
    table = add_roi_columns(table, folder / "all.csv", RoiConfig(method="sector"))
    write_manifest(table.loc[table["roi_height"].notna()], folder / "base.csv")


def _write_manifest(place: str, num_frames: int) -> None:
    """`num_frames` names for the frames of the base."""
    from steatosis_tf.cohort.manifest import read_manifest, write_manifest

    folder = Path(place)
    base = read_manifest(folder / "base.csv")
    table = base.iloc[np.arange(num_frames) % len(base)].reset_index(drop=True)
    links = folder / f"frames-{num_frames}"
    links.mkdir(exist_ok=True)
    sources = [folder / path for path in table["path"]]
    table["path"] = [f"{links.name}/{number}.png" for number in range(num_frames)]
    table["frame_id"] = [f"{number:016x}" for number in range(num_frames)]
    for source, path in zip(sources, table["path"], strict=True):
        if not (folder / path).exists():
            os.link(source, folder / path)
    write_manifest(table, folder / f"manifest-{num_frames}.csv")


def _write_run(place: str, num_frames: int) -> None:
    """Scores of five folds, drawn at random."""
    from steatosis_tf.cohort.manifest import read_manifest, write_manifest
    from steatosis_tf.config import Config, save_config
    from steatosis_tf.evaluation.metrics.scores import write_scores
    from steatosis_tf.grades import GRADES, SCORE_COLUMNS

    run_dir = Path(place) / f"run-{num_frames}"
    table = read_manifest(Path(place) / f"manifest-{num_frames}.csv")
    patient = np.arange(len(table)) // 10
    table["patient_id"] = [f"patient{number}" for number in patient]
    table["grade"] = np.array(GRADES)[patient % 4]
    table["fat_percent"] = np.array([2.0, 20.0, 50.0, 80.0])[patient % 4]
    write_manifest(table, run_dir / "manifest.csv")
    odds = np.random.default_rng(0).gamma(1.0, size=(len(table), 4))
    odds[np.arange(len(table)), patient % 4] *= 2
    scores = table[["frame_id", "patient_id", "grade", "fat_percent"]].assign(fold=patient % 5)
    scores[list(SCORE_COLUMNS)] = odds / odds.sum(axis=1, keepdims=True)
    scores["predicted"] = np.array(GRADES)[odds.argmax(axis=1)]
    write_scores(scores, run_dir / "frame_scores.csv")
    save_config(Config(), run_dir / "config.json")


def _measure(folder: Path, stage: str, num_frames: int) -> None:
    manifest_path = folder / f"manifest-{num_frames}.csv"
    records_dir, store_dir = folder / f"records-{num_frames}", folder / f"store-{num_frames}"
    work = {"roi": _roi, "records": _records, "features": _features, "training": _training,
            "evaluation": _evaluation}[stage]  # fmt: skip
    start = time.perf_counter(), os.times()
    work(manifest_path, records_dir, store_dir)
    end = os.times()
    note = {
        "seconds": time.perf_counter() - start[0],
        "cpu_seconds": sum(end[:4]) - sum(start[1][:4]),  # of this process and finished children
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "largest_child_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        "load": os.getloadavg()[0],
    }
    _result_path(folder, stage, num_frames).write_text(json.dumps(note))


def _roi(manifest_path: Path, records_dir: Path, store_dir: Path) -> None:
    """Sectors, rectangles, marks and the check's hashes of all frames anew."""
    from steatosis_tf.cohort.manifest import read_manifest
    from steatosis_tf.config import RoiConfig
    from steatosis_tf.roi.columns import add_roi_columns

    table = read_manifest(manifest_path)
    table = table.drop(columns=[name for name in table if name.startswith("roi_")])
    hashes_path = records_dir.with_name(f"hashes-{records_dir.name}.csv")
    hashes_path.unlink(missing_ok=True)
    add_roi_columns(table, manifest_path, RoiConfig("sector"), hashes_path=hashes_path)
    _stop_workers()


def _records(manifest_path: Path, records_dir: Path, store_dir: Path) -> None:
    from steatosis_tf.records.builder import write_records

    write_records(manifest_path, records_dir)
    _stop_workers()


def _features(manifest_path: Path, records_dir: Path, store_dir: Path) -> None:
    import keras

    from steatosis_tf.config import AugmentConfig
    from steatosis_tf.model.engines import Engine
    from steatosis_tf.model.features import stored_features
    from steatosis_tf.records.pipeline import read_records

    pick = np.arange(2048) * 24
    engine = Engine(
        "stand-in",
        "float32",
        lambda batches: (
            batch.reshape(len(batch), -1)[:, pick].astype(np.float32) for batch in batches
        ),
    )
    stand_in = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    stand_in.set_weights([np.ones((2, 1), np.float32)])
    stored_features(read_records(records_dir), store_dir, stand_in, engine, AugmentConfig(), 0)


def _training(manifest_path: Path, records_dir: Path, store_dir: Path) -> None:
    """One epoch of training batches from the store."""
    from steatosis_tf.config import AugmentConfig
    from steatosis_tf.model.features import View, open_views, row_name
    from steatosis_tf.model.train import feature_batches, frame_order
    from steatosis_tf.records.pipeline import read_index, read_records

    [folder] = store_dir.glob("*/plain")
    view = View(0, folder, AugmentConfig(), "float32")
    examples = read_records(records_dir).as_numpy_iterator()
    rows = [row_name(example["frame_id"], example["roi"]) for example in examples]
    labels = read_index(records_dir)["label"].to_numpy()
    order = frame_order(np.arange(len(rows)), seed=0)
    batches = feature_batches(open_views([view], rows), labels, order, batch_size=32, seed=0)
    for _ in batches:
        pass


def _evaluation(manifest_path: Path, records_dir: Path, store_dir: Path) -> None:
    """All that is claimed of a run of five folds, with intervals of 2,000 resamples."""
    from steatosis_tf.evaluation.metrics.intervals import bootstrap_intervals
    from steatosis_tf.evaluation.metrics.scores import read_scores
    from steatosis_tf.evaluation.report.evaluate import evaluate_run

    run_dir = records_dir.with_name(records_dir.name.replace("records", "run"))
    evaluate_run(run_dir)
    bootstrap_intervals(read_scores(run_dir / "patient_scores.csv"))


def _stop_workers() -> None:
    """Ends the processes that cut ROIs, so that their time and memory are counted."""
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True)


def _result_path(folder: Path, stage: str, num_frames: int) -> Path:
    return folder / f"measured-{stage}-{num_frames}.json"


def _print_table(folder: Path, stages: list[str], frames: list[int]) -> None:
    names = ("frames", "peak MB", "child MB", "CPU s", "wall s", "load")
    print(f"{'stage':10}" + "".join(f"{name:>10}" for name in names))
    for stage in stages:
        notes = [json.loads(_result_path(folder, stage, count).read_text()) for count in frames]
        keys = ("peak_mb", "largest_child_mb", "cpu_seconds", "seconds", "load")
        for count, note in zip(frames, notes, strict=True):
            print(f"{stage:10}{count:10}" + "".join(f"{note[key]:10.1f}" for key in keys))
        if len(frames) > 1:
            _print_growth(frames, notes)


def _print_growth(frames: list[int], notes: list[dict[str, float]]) -> None:
    growth = notes[-1]["peak_mb"] / notes[-2]["peak_mb"] - 1
    seconds = np.array([note["cpu_seconds"] for note in notes])
    slope, offset = np.polyfit(frames, seconds, 1)
    power = np.log(seconds[-1] / seconds[-2]) / np.log(frames[-1] / frames[-2])
    print(
        f"  from {frames[-2]} to {frames[-1]}: memory {100 * growth:+.1f} %, time as frames to the "
        f"power {power:.2f}; CPU time = {offset:.1f} s + {1000 * slope:.2f} ms per frame"
    )


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main()
