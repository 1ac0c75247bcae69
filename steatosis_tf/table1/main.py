"""Command line of each file in `experiments/table1/`."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from steatosis_tf.grades import NOTICE
from steatosis_tf.table1.numbers import row_numbers, text_lines
from steatosis_tf.table1.protocol import read_row, run_system
from steatosis_tf.table1.study import load_study
from steatosis_tf.table1.system import System


def main(doc: str, systems: Sequence[System], argv: Sequence[str] | None = None) -> int:
    """Run the systems of one file under the protocol and print their rows.

    Args:
        doc: the file's docstring, shown by `--help`.
        systems: of the file.
        argv: arguments, those of the process if None.

    Returns:
        exit code: 0, or 1 with the reason on stderr.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--manifest", required=True, metavar="MANIFEST_CSV")
    parser.add_argument("--weights", help='"imagenet", "random" or a path, for the systems that '
                        "start from pretrained weights")  # fmt: skip
    parser.add_argument(
        "--only", metavar="NAME", help="one of " + ", ".join(s.name for s in systems)
    )
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--again", action="store_true", help="compute finished repeats once more")
    args = parser.parse_args(argv)
    try:
        chosen = _named(with_weights(systems, args.weights), args.only)
        study = load_study(args.manifest, args.runs_dir)
        for system in chosen:
            run_system(system, study, args.runs_dir, again=args.again)
            for task in system.tasks:
                if row := read_row(system, task, study, args.runs_dir):
                    print("", *text_lines(row, row_numbers(row)), sep="\n")
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("", NOTICE, sep="\n")
    return 0


def with_weights(systems: Sequence[System], weights: str | None) -> list[System]:
    """The systems with another setting `weights`, where they have one."""
    return [
        dataclasses.replace(system, settings={**system.settings, "weights": weights})
        if weights and "weights" in system.settings
        else system
        for system in systems
    ]


def _named(systems: Sequence[System], only: str | None) -> list[System]:
    chosen = [system for system in systems if only in (None, system.name)]
    if not chosen:
        names = ", ".join(system.name for system in systems)
        raise ValueError(f"Expected --only out of {names}. Received: only={only!r}.")
    return chosen
