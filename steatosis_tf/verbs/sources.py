"""Verbs that bring frames and labels in: key, ingest, download, audit-phi, consensus, leaks."""

import dataclasses
import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from steatosis_tf.verbs.common import Result
from steatosis_tf.verbs.outputs import OutputCsv, OutputDir, OutputFile


def key(args: Namespace) -> Result:
    """Make the secret key that pseudonyms are made with."""
    from steatosis_tf.sources.pseudonym import create_key

    path = create_key(args.file)
    return Result(
        {"key": str(path)},
        f"key: {path} (readable by you only; keep a copy where patient lists are kept)",
    )


def ingest(args: Namespace) -> Result:
    """Turn a DICOM export into de-identified frames and a label table."""
    from steatosis_tf.sources.dicom.ingest import ingest_dicom

    summary = ingest_dicom(
        args.source,
        args.output,
        key_path=args.key,
        frame_choice=args.frames,
        allow_burned_in=args.allow_burned_in,
    )
    lines = [
        f"{summary.num_files_used} of {summary.num_files} files used: {summary.num_frames} frames, "
        f"{summary.num_studies} studies, {summary.num_patients} patients: {summary.labels_path}"
    ]
    lines += [f"{count:6} rejected: {reason}" for reason, count in summary.reasons.items()]
    if summary.num_findings:
        lines.append(f"{summary.num_findings} patients to look at in patient_findings.csv")
    return Result(_plain(summary), "\n".join(lines))


def _ingest_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="folder or zip of DICOM files")
    parser.add_argument("--output", required=True, type=OutputDir, metavar="DIR")
    parser.add_argument("--key", required=True, metavar="FILE", help="made by `steatosis key`")
    parser.add_argument("--frames", default="all", metavar="all|every:N|evenly:N")
    parser.add_argument("--allow-burned-in", action="store_true",
                        help="also take files marked as having burned-in annotation")  # fmt: skip


def download(args: Namespace) -> Result:
    """Fetch a public set of biopsy-proven frames."""
    from steatosis_tf.sources.byra2018 import download_byra2018

    url = {} if args.url is None else {"url": args.url}
    summary = download_byra2018(args.output, mat_path=args.mat, **url)
    values = _plain(summary)
    return Result(values, "\n".join(f"{name}: {value}" for name, value in values.items()))


def _download_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("name", choices=("byra2018",))
    parser.add_argument("--output", required=True, type=OutputDir, metavar="DIR")
    parser.add_argument("--mat", metavar="FILE", help="the published .mat, if it is here already")
    parser.add_argument("--url", help="another address of the published file, such as a mirror")


def audit_phi(args: Namespace) -> Result:
    """Prove that no personal value of a DICOM export stands in a folder made from it."""
    from steatosis_tf.sources.dicom.audit import audit_phi as audit

    findings = audit(args.directory, args.source)
    values = {"clean": not findings, "findings": [_plain(finding) for finding in findings]}
    if not findings:
        return Result(values, f"{args.directory}: no personal value of the source found")
    lines = [f"{args.directory}: {len(findings)} personal values found"]
    return Result(values, "\n".join([*lines, *(f"  {finding}" for finding in findings)]), 1)


def _audit_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR")
    parser.add_argument("--source", required=True, metavar="DICOM_DIR")


def consensus(args: Namespace) -> Result:
    """Turn the grades of several readers into one; report how far they agree."""
    from steatosis_tf import tracking
    from steatosis_tf.cohort.consensus import build_consensus

    summary = build_consensus(args.labels, args.output, args.rule)
    with tracking.start_run("reader_consensus", args.rule, {"rule": args.rule}):
        tracking.log_metrics(summary.metrics())
    fleiss = summary.fleiss_kappa
    shown = "not defined" if fleiss is None else f"{fleiss:.3f}"
    lines = [
        f"{summary.num_by_rule} of {summary.num_patients} patients graded by {args.rule}, "
        f"{summary.num_adjudicated} by adjudication, {summary.num_unread} unread: {args.output}",
        f"Fleiss' kappa {shown} over {summary.fleiss_num_patients} patients",
    ]
    lines += [f"quadratic kappa {pair}: {kappa}" for pair, kappa in summary.pairwise_kappa.items()]
    if summary.num_pending:
        lines.append(
            f"{summary.num_pending} patients wait in {summary.adjudicate_path}: fill its column "
            "adjudicated and run this again. Until then they are not used."
        )
    return Result(_plain(summary), "\n".join(lines))


def _consensus_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("labels", metavar="LABELS_CSV")
    parser.add_argument("--output", required=True, type=OutputCsv, metavar="LABELS_CSV")
    parser.add_argument("--rule", default="majority", choices=("majority", "median", "unanimous"))


def leaks(args: Namespace) -> Result:
    """Run the data-leakage check on a split manifest; repair it when asked to."""
    from steatosis_tf.cohort.decisions import manifest_lock

    if not (args.merge_patients or args.drop_copies):
        return _leaks_of(args)
    with manifest_lock(args.manifest):  # a review may be rewriting it
        return _leaks_of(args)


def _leaks_of(args: Namespace) -> Result:
    from steatosis_tf.cohort.leakage import (
        check_leaks,
        drop_copies,
        leak_report,
        marked_frames,
        marks_warning,
        merge_patients,
    )
    from steatosis_tf.cohort.manifest import (
        check_decisions_kept,
        read_manifest,
        write_manifest,
    )
    from steatosis_tf.cohort.rejected import add_rejected
    from steatosis_tf.cohort.splits import partitions_of_column

    table = read_manifest(args.manifest)
    if "split" not in table.columns:
        raise ValueError(
            "Expected a manifest with a split. Received: one without. Run `steatosis split` first."
        )
    findings = check_leaks(table, partitions_of_column(table), args.manifest)
    values: dict[str, Any] = {"findings": [_plain(finding) for finding in findings]}
    values["frames_with_marks"] = marked_frames(table)
    if not findings:
        text = "\n".join(filter(None, [f"{args.manifest}: no leak found", marks_warning(table)]))
        return Result(values, text)
    if not (args.merge_patients or args.drop_copies):
        text = "\n".join(filter(None, [leak_report(findings), marks_warning(table)]))
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
        add_rejected(dropped, Path(args.manifest).with_name("rejected.csv"))
    write_manifest(table, args.manifest)
    text = "\n".join([*done, "The manifest is repaired and has no split now: split it again."])
    return Result(values | {"repaired": done}, text)


def _leaks_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("manifest", metavar="MANIFEST_CSV")
    parser.add_argument("--merge-patients", action="store_true",
                        help="give the frames of one person one patient_id")  # fmt: skip
    parser.add_argument("--drop-copies", action="store_true",
                        help="take out frames that are copies of another patient's")  # fmt: skip


def _plain(value: Any) -> Any:
    """A dataclass as JSON can hold it: paths as text."""
    return json.loads(json.dumps(dataclasses.asdict(value), default=str))


VERBS = (
    ("key", key, lambda parser: parser.add_argument("file", type=OutputFile, metavar="FILE")),
    ("ingest", ingest, _ingest_arguments),
    ("download", download, _download_arguments),
    ("audit-phi", audit_phi, _audit_arguments),
    ("consensus", consensus, _consensus_arguments),
    ("leaks", leaks, _leaks_arguments),
)
