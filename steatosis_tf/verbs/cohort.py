"""Verbs from frames to records: phantom, manifest, split, records."""

import dataclasses
from argparse import ArgumentParser, Namespace

from steatosis_tf.verbs.common import Result, add_runner_arguments, runner_options
from steatosis_tf.verbs.outputs import OutputCsv, OutputDir


def phantom(args: Namespace) -> Result:
    """Write simulated frames with labels, for trying the line without data."""
    from steatosis_tf.sources.phantom.study import write_phantoms

    labels_path = write_phantoms(
        args.output_dir,
        num_patients=args.patients,
        frames_per_patient=args.frames,
        seed=args.seed,
    )
    values = {"labels": str(labels_path), "num_patients": args.patients, "simulated": True}
    return Result(
        values,
        f"{args.patients} SIMULATED patients, {args.frames} frames each: {labels_path}\n"
        f"next: steatosis manifest {labels_path} --output {args.output_dir}/manifest.csv",
    )


def _phantom_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("output_dir", type=OutputDir, metavar="OUTPUT_DIR")
    parser.add_argument("--patients", type=int, default=60, metavar="N")
    parser.add_argument("--frames", type=int, default=2, metavar="N", help="per patient")
    parser.add_argument("--seed", type=int, default=0)


def manifest(args: Namespace) -> Result:
    """Check a label table and write the manifest; faulty rows go to rejected.csv."""
    from steatosis_tf.cohort.manifest import build_manifest

    summary = build_manifest(args.labels, args.output, strict=args.strict)
    grades = ", ".join(f"{grade} {n}" for grade, n in summary.patients_per_grade.items())
    text = (
        f"{summary.num_accepted} of {summary.num_rows} frames, {summary.num_patients} patients "
        f"({grades or 'none graded'}; {summary.num_ungraded} frames without grade): {args.output}"
    )
    if summary.num_rejected:
        text += f"\n{summary.num_rejected} rows rejected, reasons in {summary.rejected_path}"
    if summary.num_rejected_before:
        text += (
            f"\n{summary.num_rejected_before} files or frames rejected by ingest, listed there too"
        )
    return Result(dataclasses.asdict(summary), text)


def _manifest_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("labels", metavar="LABELS_CSV")
    parser.add_argument("--output", required=True, type=OutputCsv, metavar="MANIFEST_CSV")
    parser.add_argument("--strict", action="store_true", help="refuse if any row has a fault")


def split(args: Namespace) -> Result:
    """Divide the patients of a manifest, stratified by grade, and write its split column."""
    from steatosis_tf.cohort.decisions import manifest_lock
    from steatosis_tf.cohort.manifest import read_manifest, write_manifest
    from steatosis_tf.cohort.splits import import_split, make_partitions, test_column
    from steatosis_tf.config import Config, override

    config = override(Config(), args.settings)
    with manifest_lock(args.manifest):  # a review may be rewriting it
        table = read_manifest(args.manifest)
        unsplit = table.drop(columns="split", errors="ignore")
        if args.import_file:
            partitions = import_split(unsplit, args.import_file)
        else:
            partitions = make_partitions(unsplit, config.split)
        column = test_column(unsplit, partitions)
        if "split" in table.columns and not args.replace and not column.equals(table["split"]):
            raise ValueError(
                "Expected a manifest without a split, or the same one. Received: "
                f"{args.manifest} with another. A split that has been trained on must not change "
                "unseen: use --replace if it must."
            )
        table["split"] = column
        write_manifest(table, args.manifest)
    patients = table.loc[table["split"] != ""].drop_duplicates("patient_id")
    counts = {str(k): int(v) for k, v in patients["split"].value_counts().items()}
    values = {"kind": config.split.kind, "patients": counts}
    lines = [f"{name:14}{count:6} patients" for name, count in counts.items()]
    return Result(values, "\n".join(lines))


def _split_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("manifest", metavar="MANIFEST_CSV")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], dest="settings",
        metavar="split.NAME=VALUE", help="for example split.kind=kfold split.folds=5",
    )  # fmt: skip
    parser.add_argument("--import", dest="import_file", metavar="SPLIT_CSV",
                        help="take the split from a file with patient_id, split")  # fmt: skip
    parser.add_argument("--replace", action="store_true", help="replace a different split")


def records(args: Namespace) -> Result:
    """Write the TFRecords of a manifest that has split and ROI."""
    from steatosis_tf.records.builder import write_records

    location = write_records(args.manifest, args.output, options=runner_options(args))
    return Result({"records": str(location)}, f"records: {location}")


def _records_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("manifest", metavar="MANIFEST_CSV")
    parser.add_argument("--output", required=True, type=OutputDir, metavar="RECORDS_DIR")
    add_runner_arguments(parser)


VERBS = (
    ("phantom", phantom, _phantom_arguments),
    ("manifest", manifest, _manifest_arguments),
    ("split", split, _split_arguments),
    ("records", records, _records_arguments),
)
