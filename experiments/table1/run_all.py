"""Which of the systems of Table I is the best on the same patients?

Command:
    make table1                      # everything that is not finished yet, then docs/table1.md
    make table1 ONLY=chen2008        # one system
    python experiments/table1/run_all.py --manifest MANIFEST_CSV
Each file beside this one runs as a process of its own, so that one that fails costs only its own
rows. What is finished lies in runs/table1 and is not run again.
Expected time: see docs/table1.md, which says what its rows took; 70 minutes by the clock on two
cores with as much other work beside it.
Memory: up to 4 GB, but tf2onnx takes 17 GB for a minute to write AlexNet's file (57 M weights).
Where there is less its file is ended by the system, the others run, and the same command goes on.
"""

import argparse
import importlib.util
import subprocess
import sys
import time
from pathlib import Path

from steatosis_tf.grades import NOTICE
from steatosis_tf.table1.document import write_page
from steatosis_tf.table1.main import with_weights
from steatosis_tf.table1.protocol import read_row
from steatosis_tf.table1.study import load_study
from steatosis_tf.table1.system import System

FOLDER = Path(__file__).resolve().parent


def systems_of_folder(folder: Path = FOLDER) -> dict[Path, tuple[System, ...]]:
    """File -> its systems, in the order of the papers."""
    found = {}
    for path in sorted(folder.glob("*.py")):
        if path.samefile(__file__):
            continue
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"Expected a Python file. Received: {path.name}.")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found[path] = module.SYSTEMS
    return dict(sorted(found.items(), key=lambda pair: (pair[1][0].year, pair[0].name)))


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--manifest", required=True, metavar="MANIFEST_CSV")
    parser.add_argument("--only", metavar="NAME", help="run one system")
    parser.add_argument("--weights", help='"imagenet", "random" or a path')
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--output", default="docs/table1.md", metavar="PAGE_MD")
    args = parser.parse_args(argv)
    start = time.monotonic()
    files = systems_of_folder()
    names = [system.name for systems in files.values() for system in systems]
    if args.only and args.only not in names:
        print(f"error: Expected --only out of {', '.join(names)}. Received: {args.only!r}.",
              file=sys.stderr)  # fmt: skip
        return 1
    failed = [path.name for path, systems in files.items()
              if not args.only or args.only in [system.name for system in systems]
              if _run(path, args)]  # fmt: skip
    try:
        study = load_study(args.manifest, args.runs_dir)
        systems = [one for some in files.values() for one in with_weights(some, args.weights)]
        found = {(system.name, task): read_row(system, task, study, args.runs_dir)
                 for system in systems for task in system.tasks}  # fmt: skip
        rows = [row for row in found.values() if row]
        missing = [(system, task) for system in systems for task in system.tasks
                   if not found[system.name, task]]  # fmt: skip
        write_page(rows, missing, study, args.output)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    minutes = (time.monotonic() - start) / 60
    print(f"{args.output}: {len(rows)} rows, {minutes:.0f} minutes by the clock", NOTICE, sep="\n")
    if failed:
        print(f"error: failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def _run(path: Path, args: argparse.Namespace) -> int:
    command = [sys.executable, str(path), "--manifest", args.manifest, "--runs-dir", args.runs_dir]
    command += ["--only", args.only] if args.only else []
    command += ["--weights", args.weights] if args.weights else []
    print(f"== {path.name}", flush=True)
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
