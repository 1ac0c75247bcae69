"""Verbs on labels and patients: consensus, manifest, split, leaks."""

import dataclasses
from argparse import ArgumentParser, Namespace
from pathlib import Path
from shlex import quote
from typing import Any

from steatosis_tf.verbs.common import OutputCsv, Result, add_settings_argument, plain

_GRADE_MAP_HELP = "CSV with value, grade: what other words for grades mean"


def manifest(args: Namespace) -> Result:
    """Check a label table and write the manifest; faulty rows go to MANIFEST.rejected.csv.

    Example:
        steatosis manifest labels.csv --output manifest.csv
    """
    from steatosis_tf.cohort.manifest import build_manifest

    summary = build_manifest(
        args.labels,
        args.output,
        strict=args.strict,
        grade_map_path=args.grade_map,
        grades_path=args.grades,
        key_path=args.key,
    )
    grades = ", ".join(f"{grade} {n}" for grade, n in summary.patients_per_grade.items())
    text = (
        f"{summary.num_accepted} of {summary.num_rows} frames, {summary.num_patients} patients "
        f"({grades or 'none graded'}; {summary.num_ungraded} frames without grade): {args.output}"
    )
    if summary.num_rejected:
        kinds = ", ".join(f"{kind} {n}" for kind, n in summary.rejected_kinds.items())
        text += f"\nrejected rows: {summary.num_rejected} ({kinds}): {summary.rejected_path}"
    if summary.spelled_alike:
        same = "; ".join(" = ".join(map(ascii, group)) for group in summary.spelled_alike)
        text += (
            f"\nwarning: one patient in two spellings counts as two: {same}. If these are one, "
            "write the id alike in all rows: training refuses them in two parts of a split"
        )
    if summary.num_of_several_sites:
        text += (
            f"\nwarning: patient_id under several values of site: {summary.num_of_several_sites}. "
            "Each counts as one patient; if hospitals give the same numbers to other people, "
            "write the site before the id"
        )
    for said in filter(None, (summary.later_pages, summary.unknown_grades, summary.joined)):
        text += f"\n{said}"
    if summary.lost_split:
        text += f"\n{summary.lost_split}; split again"
    if summary.num_rejected_before:
        text += (
            f"\n{summary.num_rejected_before} files or frames rejected by ingest, listed there too"
        )
    if summary.patients_per_grade:
        text += f"\nnow: steatosis train {quote(str(args.output))}"
    else:
        text += (
            f"\nnow: steatosis review {quote(str(args.output))} --grade, or this again "
            "with --grades CSV or with columns named grade or fat_percent"
        )
    return Result(dataclasses.asdict(summary), text)


def _manifest_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "labels", metavar="LABELS_CSV|FOLDER",
        help="path, patient_id, grade of each frame; or frames as <grade>/<patient_id>/<frame>",
    )  # fmt: skip
    add("--output", required=True, type=OutputCsv, metavar="MANIFEST_CSV", help="file to write")
    add("--strict", action="store_true", help="refuse if any row has a fault")
    add("--grade-map", metavar="FILE", help=_GRADE_MAP_HELP)
    add("--grades", metavar="CSV", help="grades to join, by path, study_id, patient_id or such")
    add("--key", metavar="FILE", help="of the ingest, for original ids")


def split(args: Namespace) -> Result:
    """Divide the patients of a manifest, stratified by grade, and write its split column.

    Example:
        steatosis split manifest.csv --set split.kind=kfold split.folds=10
    """
    from steatosis_tf.cohort.decisions import manifest_lock
    from steatosis_tf.cohort.manifest import read_manifest, write_manifest
    from steatosis_tf.cohort.partition import import_split, test_column
    from steatosis_tf.cohort.splits import make_partitions, resolve_split
    from steatosis_tf.config import Config, override

    config = override(Config(), args.settings)
    with manifest_lock(args.manifest):  # a review may be rewriting it
        table = read_manifest(args.manifest)
        unsplit = table.drop(columns="split", errors="ignore")
        if args.import_file:
            partitions = import_split(unsplit, args.import_file)
            kind, said = "imported", f"split: as {Path(args.import_file).name} says"
        else:
            # Without a wish a split that stands is told as it is.
            source = unsplit if args.replace or args.settings else table
            partitions = make_partitions(source, config.split)
            resolved, said = resolve_split(source, config.split)
            kind = resolved.kind
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
    values = {"kind": kind, "patients": counts}
    lines = [said, *(f"{name:14}{count:6} patients" for name, count in counts.items())]
    return Result(values, "\n".join([*lines, f"now: steatosis train {quote(str(args.manifest))}"]))


def _split_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("manifest", metavar="MANIFEST_CSV", help="from `steatosis manifest`")
    add_settings_argument(parser, "split.NAME=VALUE", "for example split.kind=kfold split.folds=5")
    parser.add_argument("--import", dest="import_file", metavar="SPLIT_CSV",
                        help="take the split from a file with patient_id, split")  # fmt: skip
    parser.add_argument("--replace", action="store_true", help="replace a different split")


def consensus(args: Namespace) -> Result:
    """Turn the grades of several readers into one; report how far they agree.

    Example:
        steatosis consensus readings.csv --rule median --output labels.csv
    """
    from steatosis_tf.cohort.consensus import build_consensus

    summary = build_consensus(args.labels, args.output, args.rule, args.grade_map)
    fleiss = summary.fleiss_kappa
    shown = "not defined" if fleiss is None else f"{fleiss:.3f}"
    lines = [
        f"{summary.num_by_rule} of {summary.num_patients} patients graded by {args.rule}, "
        f"{summary.num_adjudicated} by adjudication, {summary.num_unread} unread: {args.output}",
        f"Fleiss' kappa {shown} over {summary.fleiss_num_patients} patients",
    ]
    agreed = summary.pairwise_kappa | summary.repeat_kappa
    lines += [f"quadratic kappa {pair}: {kappa}" for pair, kappa in agreed.items()]
    if summary.num_pending:
        lines.append(
            f"{summary.num_pending} patients wait in {summary.adjudicate_path}: fill its column "
            "adjudicated and run this again. Until then they are not used."
        )
    output = quote(str(args.output))
    if summary.joined_by:
        key = " --key KEY" if summary.joined_by.startswith("original") else ""
        output = f"LABELS_CSV --grades {output}{key}"
    lines.append(f"now: steatosis manifest {output} --output manifest.csv")
    return Result(plain(summary), "\n".join(lines))


def _consensus_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("labels", metavar="LABELS_CSV", help="path, patient_id, reader_1, reader_2, ...")
    add("--output", required=True, type=OutputCsv, metavar="LABELS_CSV", help="file to write")
    add(
        "--rule", default="majority", choices=("majority", "median", "unanimous"),
        help="when the readers agree",
    )  # fmt: skip
    add("--grade-map", metavar="FILE", help=_GRADE_MAP_HELP)


def leaks(args: Namespace) -> Result:
    """Run the data-leakage check on a split manifest; repair it when asked to.

    Example:
        steatosis leaks manifest.csv --drop-copies
    """
    from steatosis_tf.cohort.decisions import manifest_lock

    if not (args.merge_patients or args.drop_copies):
        return _leaks_of(args)
    with manifest_lock(args.manifest):  # a review may be rewriting it
        return _leaks_of(args)


def _leaks_of(args: Namespace) -> Result:
    from steatosis_tf.cohort.leakage import (
        check_leaks,
        drop_copies,
        frame_warnings,
        leak_report,
        marked_frames,
        merge_patients,
    )
    from steatosis_tf.cohort.manifest import check_decisions_kept, read_manifest, write_manifest
    from steatosis_tf.cohort.partition import partitions_of_column
    from steatosis_tf.sources.tables import add_rejected

    table = read_manifest(args.manifest)
    if "split" not in table.columns:
        raise ValueError(
            "Expected a manifest with a split. Received: one without. Run `steatosis split` first."
        )
    findings = check_leaks(table, partitions_of_column(table), args.manifest)
    values: dict[str, Any] = {"findings": [plain(finding) for finding in findings]}
    values["frames_with_marks"] = marked_frames(table)
    if not findings:
        text = "\n".join(filter(None, [f"{args.manifest}: no leak found", frame_warnings(table)]))
        return Result(values, text)
    if not (args.merge_patients or args.drop_copies):
        text = "\n".join(filter(None, [leak_report(findings), frame_warnings(table)]))
        return Result(values, text, 1)
    done: list[str] = []
    if args.merge_patients:
        table, lines = merge_patients(table, findings)
        done += lines
    if args.drop_copies:
        table, dropped = drop_copies(table, findings)
        done += [f"dropped {row.path} of patient_id={row.patient_id}: {row.reason}"
                 for row in dropped.itertuples()]  # fmt: skip
    check_decisions_kept(table, args.manifest)
    if args.drop_copies:
        add_rejected(dropped, args.manifest)
    write_manifest(table, args.manifest)
    text = "\n".join([*done, "The manifest is repaired and has no split now: split it again."])
    return Result(values | {"repaired": done}, text)


def _leaks_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("manifest", metavar="MANIFEST_CSV", help="from `steatosis manifest`")
    parser.add_argument("--merge-patients", action="store_true",
                        help="give the frames of one person one patient_id")  # fmt: skip
    parser.add_argument("--drop-copies", action="store_true",
                        help="take out frames that are copies of another patient's")  # fmt: skip


VERBS = (
    ("consensus", consensus, _consensus_arguments),
    ("manifest", manifest, _manifest_arguments),
    ("split", split, _split_arguments),
    ("leaks", leaks, _leaks_arguments),
)
