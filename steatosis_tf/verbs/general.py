"""Verbs about the program and its files: info, demo, verify."""

import argparse
import sys
from argparse import Namespace
from pathlib import Path

from steatosis_tf import __version__
from steatosis_tf.files import find_changed
from steatosis_tf.grades import GRADES, NOTICE
from steatosis_tf.verbs.common import OutputDir, Result


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

    minutes = max(1, round(args.patients / 20))
    print(
        f"demo: {args.patients} simulated patients, two recipes, about {minutes} minutes on two "
        "idle cores",
        file=sys.stderr,
    )
    load_tensorflow()
    from steatosis_tf.demo import run_demo

    summary = run_demo(args.output, num_patients=args.patients)
    return Result(summary.values, summary.text)


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=OutputDir, default="demo", metavar="DIR", help="folder to write into"
    )
    parser.add_argument("--patients", type=int, default=60, metavar="N", help="to simulate")


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
