"""Verbs that bring frames in: key, ingest, audit-phi, download, phantom."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from shlex import quote

from steatosis_tf.verbs.common import OutputDir, OutputFile, Result, plain


def key(args: Namespace) -> Result:
    """Make the secret key that pseudonyms are made with.

    Example:
        steatosis key project.key
    """
    from steatosis_tf.sources.pseudonym import create_key

    path = create_key(args.file)
    return Result(
        {"key": str(path)},
        f"key: {path} (readable by you only; keep a copy where patient lists are kept)",
    )


def ingest(args: Namespace) -> Result:
    """Turn a DICOM export into de-identified frames and a label table.

    Example:
        steatosis ingest export.zip --key project.key --output study
    """
    from steatosis_tf.sources.dicom.ingest import ingest_dicom

    summary = ingest_dicom(
        args.source,
        args.output,
        key_path=args.key,
        frame_choice=args.frames,
        allow_burned_in=args.allow_burned_in,
        keep_region=args.keep_region,
        with_sheets=args.sheet,
    )
    lines = [
        f"{summary.num_files_used} of {summary.num_files} files used: {summary.num_frames} frames, "
        f"{summary.num_studies} studies, {summary.num_patients} patients: {summary.labels_path}"
    ]
    lines += [f"{count:6} rejected: {reason}" for reason, count in summary.reasons.items()]
    if summary.num_findings:
        lines.append(f"{summary.num_findings} patients to look at in patient_findings.csv")
    if summary.num_sheets:
        lines.append(f"{summary.num_sheets} contact sheets of every kept frame in sheets/")
    if summary.marked:
        more = f" and {len(summary.marked) - 10} more" if len(summary.marked) > 10 else ""
        lines.append(
            f"warning: text or other marks remain in {len(summary.marked)} frames; look at them "
            f"before they leave: {', '.join(summary.marked[:10])}{more}"
        )
    if not summary.num_frames:
        return Result(plain(summary), "\n".join(lines), 1)
    lines.append(
        f"now: steatosis manifest {quote(str(summary.labels_path))} --grades GRADES_CSV "
        f"--key {quote(args.key)} --output manifest.csv (--key where the grades stand by the "
        "hospital's own ids)"
    )
    return Result(plain(summary), "\n".join(lines))


def _ingest_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="SOURCE", help="folder, zip or file of DICOM")
    add("--output", required=True, type=OutputDir, metavar="DIR", help="folder to write into")
    add("--key", required=True, metavar="FILE", help="made by `steatosis key`")
    add("--frames", default="all", metavar="all|every:N|evenly:N", help="which frames of a clip")
    add("--allow-burned-in", action="store_true",
                        help="also take files marked as having burned-in annotation")  # fmt: skip
    add("--keep-region", action="store_true",
                        help="keep all of a stated region, not only its sector")  # fmt: skip
    add("--sheet", action="store_true", help="write contact sheets of every kept frame")


def download(args: Namespace) -> Result:
    """Fetch a public set of biopsy-proven frames.

    Example:
        steatosis download byra2018 --output byra2018
    """
    from steatosis_tf.sources.byra2018 import download_byra2018

    url = {} if args.url is None else {"url": args.url}
    summary = download_byra2018(args.output, mat_path=args.mat, **url)
    values = plain(summary)
    return Result(values, "\n".join(f"{name}: {value}" for name, value in values.items()))


def _download_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("name", choices=("byra2018",), help="of the set")
    add("--output", required=True, type=OutputDir, metavar="DIR", help="folder to write into")
    add("--mat", metavar="FILE", help="the published .mat, if it is here already")
    add("--url", help="another address of the published file, such as a mirror")


def audit_phi(args: Namespace) -> Result:
    """Look for personal values of a DICOM export in a folder made from it; never a proof.

    Example:
        steatosis audit-phi study --source export
    """
    from steatosis_tf.sources.dicom.audit import UNREAD
    from steatosis_tf.sources.dicom.audit import audit_phi as audit

    findings = audit(args.directory, args.source)
    values = {"clean": not findings, "findings": [plain(finding) for finding in findings]}
    if not findings:
        text = "no personal value of the source found; pixels were not looked at"
        return Result(values, f"{args.directory}: {text}")
    num_unread = sum(finding.kind == UNREAD for finding in findings)
    lines = [
        f"{args.directory}: {len(findings) - num_unread} personal values found, {num_unread} files "
        "or parts not looked into"
    ]
    lines += [f"  {one.file}, {one.place}: {one.kind} {one.tag}".rstrip() for one in findings]
    return Result(values, "\n".join(lines), 1)


def _audit_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("directory", metavar="DIR", help="folder to search")
    add("--source", required=True, metavar="DICOM_DIR", help="export that it was made from")


def phantom(args: Namespace) -> Result:
    """Write simulated frames with labels, for trying the pipeline without data.

    Example:
        steatosis phantom phantoms --patients 60
    """
    from steatosis_tf.sources.phantom.study import write_phantoms

    labels_path = write_phantoms(
        args.output_dir, num_patients=args.patients, frames_per_patient=args.frames, seed=args.seed
    )
    values = {"labels": str(labels_path), "num_patients": args.patients, "simulated": True}
    return Result(
        values,
        f"{args.patients} SIMULATED patients, {args.frames} frames each: {labels_path}\n"
        f"now: steatosis manifest {quote(str(labels_path))} --output "
        f"{quote(str(Path(args.output_dir) / 'manifest.csv'))}",
    )


def _phantom_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("output_dir", type=OutputDir, metavar="OUTPUT_DIR", help="folder to write into")
    add("--patients", type=int, default=60, metavar="N", help="to simulate")
    add("--frames", type=int, default=2, metavar="N", help="per patient")
    add("--seed", type=int, default=0, metavar="N", help="of all that is drawn")


def _key_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("file", type=OutputFile, metavar="FILE", help="to write, outside the study")


VERBS = (
    ("key", key, _key_arguments),
    ("ingest", ingest, _ingest_arguments),
    ("audit-phi", audit_phi, _audit_arguments),
    ("download", download, _download_arguments),
    ("phantom", phantom, _phantom_arguments),
)
