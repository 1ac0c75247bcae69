"""The whole pipeline on simulated phantoms: what `make demo` runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steatosis_tf import tracking
from steatosis_tf.cohort.manifest import build_manifest
from steatosis_tf.deploy.predict import predict
from steatosis_tf.evaluation.report.evaluate import metrics_text
from steatosis_tf.pipeline import run_all
from steatosis_tf.recipes import RECIPES
from steatosis_tf.sources.phantom.study import write_phantoms

EXPERIMENT = "demo_simulated_phantoms"

# The paper's network with random weights, then the default recipe, whose bundle answers.
_TRAINED = ("demo", "joint")


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
    configs = [RECIPES[name].config for name in _TRAINED]
    runs = dict(zip(_TRAINED, run_all(EXPERIMENT, manifest_path, configs), strict=True))
    last = runs[_TRAINED[-1]]
    predicted = predict(
        [frames_dir / "labels.csv"], model=last.run_dir, output_dir=output_dir / "predictions"
    )
    values = {
        "runs": {name: summary.run_dir for name, summary in runs.items()},
        "metrics": {name: summary.metrics for name, summary in runs.items()},
        "predicted": predicted.counts,
        "simulated": True,
    }
    parts = ["SIMULATED phantoms: shows that the pipeline runs, says nothing about patients."]
    parts += [f"recipe {name}: {RECIPES[name].summary}\n{metrics_text([summary.metrics])}\n\n"
              f"{summary.verdict}\nrun: {summary.run_dir}\nreport: {summary.run_dir}/report.html"
              for name, summary in runs.items()]  # fmt: skip
    parts.append(
        f"the bundle of {_TRAINED[-1]} graded {predicted.counts['graded']} of "
        f"{predicted.counts['patients']} of the demo's own patients: {output_dir / 'predictions'}\n"
        f"compare the runs: steatosis compare {EXPERIMENT}, or make ui: "
        f"{tracking.ui_address(EXPERIMENT)}"
    )
    text = "\n\n".join(parts)
    return DemoSummary(values, text)
