"""Command line of each file in `experiments/table1/`."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from experiments.table1.method import Method
from experiments.table1.protocol import read_row, run_method
from experiments.table1.row_numbers import row_numbers, text_lines
from experiments.table1.study import load_study
from steatosis_tf.grades import NOTICE


def main(doc: str, methods: Sequence[Method], argv: Sequence[str] | None = None) -> int:
    """Run the methods of one file under the protocol and print their rows.

    Args:
        doc: the file's docstring, shown by `--help`.
        methods: of the file.
        argv: arguments, those of the process if None.

    Returns:
        exit code: 0, or 1 with the reason on stderr.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--manifest", required=True, metavar="MANIFEST_CSV")
    parser.add_argument("--weights", help='"imagenet", "random" or a path, for the methods that '
                        "start from pretrained weights")  # fmt: skip
    parser.add_argument(
        "--only", metavar="NAME", help="one of " + ", ".join(s.name for s in methods)
    )
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--again", action="store_true", help="compute finished repeats once more")
    args = parser.parse_args(argv)
    try:
        chosen = _named(with_weights(methods, args.weights), args.only)
        study = load_study(args.manifest, args.runs_dir)
        for method in chosen:
            run_method(method, study, args.runs_dir, again=args.again)
            for task in method.tasks:
                if row := read_row(method, task, study, args.runs_dir):
                    print("", *text_lines(row, row_numbers(row)), sep="\n")
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("", NOTICE, sep="\n")
    return 0


def with_weights(methods: Sequence[Method], weights: str | None) -> list[Method]:
    """The methods with another setting `weights`, where they have one."""
    return [
        dataclasses.replace(method, settings={**method.settings, "weights": weights})
        if weights and "weights" in method.settings
        else method
        for method in methods
    ]


def _named(methods: Sequence[Method], only: str | None) -> list[Method]:
    chosen = [method for method in methods if only in (None, method.name)]
    if not chosen:
        names = ", ".join(method.name for method in methods)
        raise ValueError(f"Expected --only out of {names}. Received: only={only!r}.")
    return chosen
