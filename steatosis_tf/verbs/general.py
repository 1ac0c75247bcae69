"""Verbs about the program and its files: info, demo, verify."""

import argparse
import gc
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from steatosis_tf import __version__
from steatosis_tf.files import find_changed
from steatosis_tf.grades import GRADES, NOTICE
from steatosis_tf.recipes import RECIPES
from steatosis_tf.verbs.common import OutputDir, Result

if TYPE_CHECKING:
    from steatosis_tf.pipeline import RunSummary

# The demo trains the paper's network with random weights, then the default recipe, whose bundle
# answers.
_EXPERIMENT, _TRAINED = "demo_simulated_phantoms", ("demo", "joint")


def info(args: Namespace) -> Result:
    """Say what is installed here, at once.

    Example:
        steatosis info
    """
    from steatosis_tf.environment import NETWORK, describe_environment

    values = {
        "steatosis_tf": __version__,
        "grades": list(GRADES),
        **describe_environment(),
        "network": NETWORK,
        "notice": NOTICE,
    }
    lines = [f"steatosis_tf {__version__}: grades {', '.join(GRADES)}"]
    lines += [f"{name:22}{version}" for name, version in values["packages"].items()]
    lines += [
        f"{'python':22}{values['python']}",
        f"{'machine':22}{values['num_cores']} cores, {values['memory_gib']} GiB, "
        f"{values['processor']}",
        NETWORK,
        NOTICE,
    ]
    return Result(values, "\n".join(lines))


def verify(args: Namespace) -> Result:
    """Check every hash of a run, a manifest's frames or a bundle; exit 1 if one differs.

    Example:
        steatosis verify runs/joint/RUN_ID
    """
    from steatosis_tf.deploy.bundle import SHIPPED, find_faults, is_bundle, open_bundle

    path = Path(args.path or SHIPPED)
    if is_bundle(path):
        faults = find_faults(open_bundle(path))
        checked = (
            "every file has its SHA-256, and the reference frames are answered as when it was made"
        )
    elif path.is_dir():
        faults = find_changed(path)
        checked = "every file has the SHA-256 that SHA256SUMS gives"
    else:
        from steatosis_tf.cohort.manifest import find_changed_frames

        faults = find_changed_frames(path)
        checked = "every frame has the pixels of the manifest's hash"
    values = {"whole": not faults, "faults": faults}
    if not faults:
        return Result(values, f"{path.name}: {checked}")
    lines = [f"{path.name}: {len(faults)} not as they were written"]
    lines += [f"  {name}: {fault}" for name, fault in faults.items()]
    return Result(values, "\n".join(lines), exit_code=1)


def demo(args: Namespace) -> Result:
    """Run the whole pipeline on simulated phantoms: no data and no network needed.

    Example:
        steatosis demo --output demo
    """
    from steatosis_tf.environment import load_tensorflow

    print(
        f"demo: {args.patients} simulated patients, two recipes, a few minutes on two cores",
        file=sys.stderr,
    )
    load_tensorflow()
    from steatosis_tf.cohort.manifest import build_manifest
    from steatosis_tf.deploy.predict import predict
    from steatosis_tf.pipeline import run_all
    from steatosis_tf.sources.phantom.study import write_phantoms

    gc.freeze()  # what was imported is no garbage, and every collection would look through it
    output_dir = Path(args.output)
    frames_dir, manifest_path = output_dir / "phantoms", output_dir / "manifest.csv"
    if not (frames_dir / "labels.csv").is_file():
        write_phantoms(frames_dir, num_patients=args.patients, frames_per_patient=2, seed=0)
    build_manifest(frames_dir / "labels.csv", manifest_path)
    configs = [RECIPES[name].config for name in _TRAINED]
    runs = dict(zip(_TRAINED, run_all(_EXPERIMENT, manifest_path, configs), strict=True))
    predicted = predict(
        [frames_dir / "labels.csv"],
        model=runs[_TRAINED[-1]].run_dir,
        output_dir=output_dir / "predictions",
    )
    values = {
        "runs": {name: summary.run_dir for name, summary in runs.items()},
        "metrics": {name: summary.metrics for name, summary in runs.items()},
        "predicted": predicted.counts,
        "simulated": True,
    }
    return Result(values, _demo_text(runs, predicted.counts, output_dir / "predictions"))


def _demo_text(runs: dict[str, "RunSummary"], counts: dict[str, int], folder: Path) -> str:
    from steatosis_tf.evaluation.report.evaluate import metrics_text
    from steatosis_tf.tracking import ui_address
    from steatosis_tf.tracking.store import ui_command

    parts = ["SIMULATED phantoms: shows that the pipeline runs, says nothing about patients."]
    parts += [f"recipe {name}: {RECIPES[name].summary}\n{metrics_text([summary.metrics])}\n\n"
              f"{summary.verdict}\nrun: {summary.run_dir}\nreport: {summary.run_dir}/report.html"
              for name, summary in runs.items()]  # fmt: skip
    parts.append(
        f"the bundle of {_TRAINED[-1]} graded {counts['graded']} of {counts['patients']} of the "
        f"demo's own patients: {folder}\n"
        f"compare the runs: steatosis compare {_EXPERIMENT}, or {ui_command()}: "
        f"{ui_address(_EXPERIMENT)}"
    )
    return "\n\n".join(parts)


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--output", type=OutputDir, default="demo", metavar="DIR", help="folder to write into")
    add("--patients", type=int, default=40, metavar="N", help="to simulate")


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", nargs="?", metavar="RUN_DIR|MANIFEST|BUNDLE",
        help="what to check; the model that comes with the package if left out",
    )  # fmt: skip


VERBS = (
    ("info", info, lambda parser: None),
    ("demo", demo, _demo_arguments),
    ("verify", verify, _verify_arguments),
)
