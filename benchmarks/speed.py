"""One table of ratios, each measured side by side in this process.

    python benchmarks/speed.py
    python benchmarks/speed.py --manifest MANIFEST_CSV --views 4

Without a manifest simulated frames are used, as many patients as `--patients` says. Ratios are of
processor time, because others may use the machine; wall times and the load stand beside them.
Limits inside keep it to a few minutes on two idle cores: of the plain way a few batches are
measured and carried on in a straight line to 100 epochs, which a frozen network allows.

What is compared in (a) is time. That both ways give the same grades stands in docs/speed.md ("How
many views": plain Keras is K = 0 there). Peak memory (d) is memory.py, the next of `make bench`.
"""

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf
from speed_engines import engine_rows
from speed_line import line_rows
from speed_records import record_rows

from steatosis_tf.cohort.manifest import build_manifest
from steatosis_tf.sources.phantom.study import write_phantoms


def main(argv: list[str] | None = None) -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--manifest", type=Path, help="simulated frames if not given")
    parser.add_argument("--patients", type=int, default=44, help="simulated, ten frames each")
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3, help="of engines and records")
    arguments = parser.parse_args(argv)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest_path = arguments.manifest or _phantoms(folder, arguments.patients)
        heads = ("", "what", "measured", "ratio", "aim")
        _print_rows([heads, tuple("---" for _ in heads)])
        _print_rows(line_rows(manifest_path, folder / "line", num_views=arguments.views))
        _print_rows(engine_rows(rounds=arguments.rounds))
        _print_rows(record_rows(manifest_path, folder / "records", rounds=arguments.rounds))
    print(f"load of the machine: {load:.1f} before, {os.getloadavg()[0]:.1f} after, "
          f"on {os.cpu_count()} cores")  # fmt: skip


def _print_rows(rows: list[tuple[str, ...]]) -> None:
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


def _phantoms(folder: Path, num_patients: int) -> Path:
    labels_path = write_phantoms(
        folder / "phantoms", num_patients=num_patients, frames_per_patient=10, seed=0
    )
    build_manifest(labels_path, folder / "phantom_manifest.csv")
    return folder / "phantom_manifest.csv"


if __name__ == "__main__":
    tf.get_logger().setLevel("ERROR")
    main()
