"""Verbs about the program itself: info, demo."""

import argparse
from argparse import Namespace

from steatosis_tf import __version__
from steatosis_tf.grades import GRADES, NOTICE
from steatosis_tf.verbs.outputs import OutputDir
from steatosis_tf.verbs.result import Result


def info(args: Namespace) -> Result:
    """Say what is installed here, at once."""
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


def demo(args: Namespace) -> Result:
    """Run the whole line on simulated phantoms: no data and no network needed."""
    from steatosis_tf.demo import run_demo

    summary = run_demo(args.output, num_patients=args.patients)
    return Result(summary.values, summary.text)


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=OutputDir, default="demo", metavar="DIR")
    parser.add_argument("--patients", type=int, default=60, metavar="N")


VERBS = (
    ("info", info, lambda parser: None),
    ("demo", demo, _demo_arguments),
)
