"""The line as one function: from a manifest to a trained, evaluated, tracked, exported model.

Every script in `experiments/` is a docstring, a config and a call of `main` here.
"""

import argparse
import dataclasses
import sys
import time
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import pandas as pd

from steatosis_tf import tracking
from steatosis_tf.cohort.flow import count_flow
from steatosis_tf.cohort.flow_figure import write_flow
from steatosis_tf.cohort.manifest import read_manifest
from steatosis_tf.cohort.rejected import read_rejected
from steatosis_tf.cohort.splits import Partition, make_partitions, split_table
from steatosis_tf.config import Config, ModelConfig, flatten, override, save_config
from steatosis_tf.deploy.export import export_onnx, milliseconds_per_frame, run_metadata
from steatosis_tf.environment import describe_environment
from steatosis_tf.evaluation.comparison import tracked_intervals
from steatosis_tf.evaluation.evaluate import evaluate_run, lock_operating_points, metrics_text
from steatosis_tf.evaluation.gallery import draw_run_gallery
from steatosis_tf.evaluation.report import write_report
from steatosis_tf.evaluation.run_hepatorenal import write_hepatorenal
from steatosis_tf.evaluation.scores import read_scores
from steatosis_tf.files import check_output, file_sha256, replacing, write_json, write_sums
from steatosis_tf.fold_fit import StudyData
from steatosis_tf.folds import check_rois, load_study, train_and_score
from steatosis_tf.grades import GRADES
from steatosis_tf.model.train import make_repeatable
from steatosis_tf.records.pipeline import read_records
from steatosis_tf.runner_arguments import add_runner_arguments, runner_options
from steatosis_tf.study import Preparation, complete_manifest, keep_records

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions


@dataclass(frozen=True)
class RunSummary:
    """Where a run lies and what it found."""

    run_id: str
    experiment: str
    run_dir: str
    seconds: float
    metrics: dict[str, Any]


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
    add_config_arguments(parser)
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--report", metavar="FILE", help="write a JSON summary of the run")
    add_runner_arguments(parser)
    args = parser.parse_args(argv)
    try:
        if args.report:
            check_output(args.report, [args.manifest], suffixes=(".json",))
        config = override(config, given_settings(args))
        options = runner_options(args)
        summaries = [
            run(experiment, args.manifest, config, args.runs_dir, repeat=repeat, options=options)
            for repeat in range(config.split.repeats)
        ]
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if args.report:
        write_json({"runs": [dataclasses.asdict(summary) for summary in summaries]}, args.report)
    print(metrics_text([summary.metrics for summary in summaries]))
    print("", *(f"run: {summary.run_dir}" for summary in summaries), sep="\n")
    print(f"compare: steatosis compare {experiment}, or make ui")
    return 0


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """What every script that runs the backbone takes: `--weights`, `--engine`, `--set`."""
    engines = typing.get_args(typing.get_type_hints(ModelConfig)["engine"])
    parser.add_argument("--weights", help='"imagenet", "random" or a path')
    parser.add_argument("--engine", choices=engines, help="runs the backbone; see docs/speed.md")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="STAGE.NAME=VALUE", dest="settings"
    )


def given_settings(args: argparse.Namespace) -> list[str]:
    """The arguments of `add_config_arguments` as settings for `config.override`."""
    named = {"model.weights": args.weights, "model.engine": args.engine}
    return args.settings + [f"{name}={value}" for name, value in named.items() if value]


def run(
    experiment: str,
    manifest_path: str | Path,
    config: Config,
    runs_dir: str | Path = "runs",
    *,
    repeat: int = 0,
    options: "PipelineOptions | None" = None,
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
        repeat: which round of a repeated k-fold, from 0. Each is a run of its own, with other
            folds and the seed `train.seed + repeat`, so that no patient is counted twice.
        options: Beam runner that proposes ROIs and makes records and features, see
            `spread.beam_options`; None does it here.

    Returns:
        the run's id, directory and metrics.

    Raises:
        ValueError: for faults of the data or of the config.
        RuntimeError: if weights cannot be fetched or the exported model differs.
    """
    start = time.monotonic()
    train = dataclasses.replace(config.train, seed=config.train.seed + repeat)
    config = dataclasses.replace(config, train=train)
    make_repeatable(config.train.seed)
    params = flatten(config) | {"repeat": repeat}
    with tracking.start_run(experiment, config.split.kind, params) as tracked:
        run_dir = Path(runs_dir) / experiment / tracked.run_id
        run_dir.mkdir(parents=True)
        save_config(config, run_dir / "config.json")
        place = Preparation(config, run_dir, Path(runs_dir), options)
        partitions, records_dir = _prepare(Path(manifest_path), repeat, place)
        data = load_study(records_dir, Path(runs_dir) / "cache" / "features", config, options)
        train_start = time.monotonic()
        model = train_and_score(data, partitions, config, run_dir)
        train_minutes = (time.monotonic() - train_start) / 60
        with replacing(run_dir / "model.keras") as temporary:
            model.save(temporary)
        lock_operating_points(run_dir, config.evaluation.aggregation)
        metrics = evaluate_run(run_dir)
        cost = _export(model, data, config, run_dir, tracked.run_id)
        seconds = time.monotonic() - start
        environment = describe_environment() | {"seconds": round(seconds, 1)}
        write_json(environment, run_dir / "environment.json")
        draw_run_gallery(run_dir)
        write_hepatorenal(run_dir)
        write_report(run_dir)
        write_sums(run_dir)
        _track(run_dir, metrics, cost | {"train_minutes": train_minutes, "seconds": seconds})
    return RunSummary(tracked.run_id, experiment, str(run_dir), seconds, metrics)


def _prepare(manifest_path: Path, repeat: int, place: Preparation) -> tuple[list[Partition], Path]:
    """Complete the manifest in the run directory and see that its records exist."""
    run_dir, table = place.folder, read_manifest(manifest_path)
    partitions = [p for p in make_partitions(table, place.config.split) if p.repeat == repeat]
    table = complete_manifest(table, manifest_path, partitions, place)
    with replacing(run_dir / "split.csv") as temporary:
        split_table(partitions).to_csv(temporary, index=False)
    before = read_rejected(manifest_path.with_name("rejected.csv"))[["patient_id", "reason"]]
    _write_rejected(table, before, run_dir / "rejected.csv")
    flow = count_flow(table, before, partitions)
    write_flow(flow, run_dir / "figures" / "flow.svg", run_dir / "figures" / "flow.png")
    return partitions, keep_records(table, partitions, place)[0]


def _write_rejected(table: pd.DataFrame, before: pd.DataFrame, path: Path) -> None:
    """Everything the run leaves out; what never was in the manifest has no frame_id."""
    rejected = table.loc[table["roi_height"].isna(), ["frame_id", "patient_id", "roi_reason"]]
    rejected = rejected.rename(columns={"roi_reason": "reason"})
    with replacing(path) as temporary:
        pd.concat([before.assign(frame_id=""), rejected])[rejected.columns].to_csv(
            temporary, index=False
        )
    if len(rejected):
        print(f"{len(rejected)} frames without ROI, see {path}", file=sys.stderr)


def _export(
    model: keras.Model, data: StudyData, config: Config, run_dir: Path, run_id: str
) -> dict[str, float]:
    """Export the model; what that showed, for the comparison of runs."""
    rois = check_rois(data.index, read_records(data.records_dir))
    texts = {"run_id": run_id} | run_metadata(run_dir, config)
    path = run_dir / "model.onnx"
    return {
        "onnx_difference": export_onnx(model, path, rois, texts),
        "file_mb": path.stat().st_size / 1e6,
        "ms_per_frame": milliseconds_per_frame(path, rois),
    }


def _track(run_dir: Path, metrics: dict[str, Any], cost: dict[str, float]) -> None:
    compared = tracked_intervals(read_scores(run_dir / "patient_scores.csv"))
    tracking.log_metrics(
        {"patient": metrics["patient"], "frame": metrics["frame"], "compare": compared} | cost
    )
    tracking.log_tags(
        {f"{name}_sha256": file_sha256(run_dir / f"{name}.csv") for name in ("manifest", "split")}
        | {"run_dir": str(run_dir)}
    )
    for path in sorted(run_dir.iterdir()):
        if path.is_file() and not path.name.startswith("model."):
            tracking.log_artifacts(path)
    tracking.log_artifacts(run_dir / "figures", "figures")
    tracking.log_onnx_model(run_dir / "model.onnx", size_px=224, num_grades=len(GRADES))
