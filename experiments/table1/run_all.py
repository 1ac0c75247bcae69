"""Which of the methods of Table I is the best on the same patients?

Command:
    make table1                      # everything that is not finished yet, then docs/table1.md
    make table1 ONLY=chen2008        # one method
    python -m experiments.table1.run_all --manifest MANIFEST_CSV
Each file in papers/ runs as a process of its own, so that one that fails costs only its own
rows. What is finished lies in runs/table1 and is not run again.
Expected time: see docs/table1.md, which says what its rows took; 70 minutes by the clock on two
cores with as much other work beside it.
Memory: up to 4 GB, but tf2onnx takes 17 GB for a minute to write AlexNet's file (57 M weights).
Where there is less its file is ended by the method, the others run, and the same command goes on.
"""

import argparse
import importlib
import pkgutil
import subprocess
import sys
import time

from experiments.table1 import papers
from experiments.table1.command_line import with_weights
from experiments.table1.document import write_page
from experiments.table1.method import Method
from experiments.table1.protocol import read_row
from experiments.table1.study import load_study
from steatosis_tf.grades import NOTICE


def methods_of_papers() -> dict[str, tuple[Method, ...]]:
    """Module -> its methods, in the order of the papers."""
    found = {
        module.name: importlib.import_module(f"{papers.__name__}.{module.name}").METHODS
        for module in pkgutil.iter_modules(papers.__path__)
    }
    return dict(sorted(found.items(), key=lambda pair: (pair[1][0].year, pair[0])))


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--manifest", required=True, metavar="MANIFEST_CSV")
    parser.add_argument("--only", metavar="NAME", help="run one method")
    parser.add_argument("--weights", help='"imagenet", "random" or a path')
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--output", default="docs/table1.md", metavar="PAGE_MD")
    args = parser.parse_args(argv)
    start = time.monotonic()
    files = methods_of_papers()
    names = [method.name for methods in files.values() for method in methods]
    if args.only and args.only not in names:
        print(f"error: Expected --only out of {', '.join(names)}. Received: {args.only!r}.",
              file=sys.stderr)  # fmt: skip
        return 1
    failed = [name for name, methods in files.items()
              if not args.only or args.only in [method.name for method in methods]
              if _run(name, args)]  # fmt: skip
    try:
        study = load_study(args.manifest, args.runs_dir)
        methods = [one for some in files.values() for one in with_weights(some, args.weights)]
        found = {(method.name, task): read_row(method, task, study, args.runs_dir)
                 for method in methods for task in method.tasks}  # fmt: skip
        rows = [row for row in found.values() if row]
        missing = [(method, task) for method in methods for task in method.tasks
                   if not found[method.name, task]]  # fmt: skip
        if args.only and missing:  # on a fresh clone the page would lose all other rows
            print(f"{args.output} is left as it is: {len(missing)} other results are not here. "
                  f"Those of {args.only} are in {args.runs_dir}/table1/{args.only}.")  # fmt: skip
            return int(bool(failed))
        write_page(rows, missing, study, args.output)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    minutes = (time.monotonic() - start) / 60
    print(f"{args.output}: {len(rows)} rows, {minutes:.0f} minutes by the clock", NOTICE, sep="\n")
    if failed:
        print(f"error: failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def _run(name: str, args: argparse.Namespace) -> int:
    command = [sys.executable, "-m", f"{papers.__name__}.{name}"]
    command += ["--manifest", args.manifest, "--runs-dir", args.runs_dir]
    command += ["--only", args.only] if args.only else []
    command += ["--weights", args.weights] if args.weights else []
    print(f"== {name}", flush=True)
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
