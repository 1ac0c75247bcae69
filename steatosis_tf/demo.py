"""The whole line on simulated phantoms: what `make demo` runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steatosis_tf.cohort.manifest import build_manifest
from steatosis_tf.deploy.predict import predict
from steatosis_tf.evaluation.report.evaluate import metrics_text
from steatosis_tf.pipeline import run
from steatosis_tf.recipes import RECIPES
from steatosis_tf.sources.phantom.study import write_phantoms

EXPERIMENT = "demo_simulated_phantoms"


@dataclass(frozen=True)
class DemoSummary:
    """What the demo found, for programs and for people."""

    values: dict[str, Any]
    text: str


def run_demo(output_dir: str | Path, *, num_patients: int = 60) -> DemoSummary:
    """Simulate patients, train, evaluate, track, export, and grade the demo's own frames.

    Args:
        output_dir: folder for frames, manifest and predictions. Runs go to `runs/`, tracking to
            `mlruns/`, as for real data.
        num_patients: simulated patients, two frames each.
    """
    output_dir = Path(output_dir)
    frames_dir = output_dir / "phantoms"
    if not (frames_dir / "labels.csv").is_file():
        write_phantoms(frames_dir, num_patients=num_patients, frames_per_patient=2, seed=0)
    manifest_path = output_dir / "manifest.csv"
    build_manifest(frames_dir / "labels.csv", manifest_path)
    summary = run(EXPERIMENT, manifest_path, RECIPES["demo"].config)
    predicted = predict(
        [frames_dir / "labels.csv"], model=summary.run_dir, output_dir=output_dir / "predictions"
    )
    values = {
        "run_dir": summary.run_dir,
        "metrics": summary.metrics,
        "predicted": predicted.counts,
        "simulated": True,
    }
    text = (
        "SIMULATED phantoms, random backbone: shows that the line runs, says nothing about "
        f"patients.\n\n{metrics_text([summary.metrics])}\n\n"
        f"run:          {summary.run_dir}\n"
        f"its model:    graded {predicted.counts['graded']} of {predicted.counts['patients']} of "
        f"the demo's own patients: {output_dir / 'predictions'}\n"
        "MLflow UI:    make ui\n"
        f"compare runs: steatosis compare {EXPERIMENT}"
    )
    return DemoSummary(values, text)
