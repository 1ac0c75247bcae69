"""Verbs on what frames show: roi, review, import-boxes, export-boxes, records, measure."""

import dataclasses
import math
from argparse import ArgumentParser, Namespace
from shlex import quote
from typing import Any

from steatosis_tf.environment import load_tensorflow
from steatosis_tf.grades import NOTICE
from steatosis_tf.verbs.common import (
    OutputBoxes,
    OutputDir,
    OutputPicture,
    Result,
    add_runner_arguments,
    add_server_arguments,
    add_settings_argument,
    runner_options,
)


def roi(args: Namespace) -> Result:
    """Propose a region of interest for every frame that has none; a person's box is kept.

    Example:
        steatosis roi manifest.csv --sheet worst.png
    """
    from steatosis_tf.cohort.manifest import frame_path, read_manifest
    from steatosis_tf.config import Config, override
    from steatosis_tf.files import check_output
    from steatosis_tf.roi.columns import fill_manifest
    from steatosis_tf.roi.sheet import draw_sheet, write_masks

    config = override(Config(), args.settings)
    if args.sheet:
        frames = read_manifest(args.manifest)["path"]
        check_output(args.sheet, (frame_path(args.manifest, path) for path in frames))
    table = fill_manifest(args.manifest, config.roi, again=args.again, options=runner_options(args))
    if args.masks:
        write_masks(table, args.manifest, args.masks, again=args.again)
    if args.sheet:
        draw_sheet(table, args.manifest, args.sheet)
    without = table.loc[table["roi_height"].isna()]
    reasons = {str(k): int(v) for k, v in without["roi_reason"].value_counts().items()}
    counts = {"num_frames": len(table), "num_without_roi": len(without)}
    lines = [f"{len(table) - len(without)} of {len(table)} frames have a ROI"]
    lines += [f"{count:6} without: {reason}" for reason, count in reasons.items()]
    manifest = quote(str(args.manifest))
    lines.append(f"now: steatosis review {manifest}, or steatosis train {manifest}")
    return Result({**counts, "reasons": reasons}, "\n".join(lines))


def _roi_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("manifest", metavar="MANIFEST_CSV", help="from `steatosis manifest`")
    add_settings_argument(parser, "roi.NAME=VALUE", "for example roi.method=sector")
    add("--masks", type=OutputDir, metavar="DIR", help="also write sector and liver masks")
    add("--sheet", type=OutputPicture, metavar="PNG", help="also draw the worst proposals")
    add("--again", action="store_true", help="replace earlier proposals and masks, "
                        "never a person's box")  # fmt: skip
    add_runner_arguments(parser)


def review(args: Namespace) -> Result:
    """Open the page on which a person accepts, corrects or rejects the proposals.

    With --grade it is a reading study instead: readers grade whole patients, blind.

    Example:
        steatosis review manifest.csv --reviewer AB
    """
    where: dict[str, Any] = {
        "port": args.port,
        "frame_folders": args.frames,
        "open_browser": not args.no_browser,
    }
    if args.grade:
        from steatosis_tf.server.grading import grade

        table = grade(args.manifest, repeats=args.repeats, **where)
        agreed = table.with_name("agreed.csv")
        text = f"All answers are saved. Next: steatosis consensus {table} --output {agreed}"
        return Result({"manifest": args.manifest, "readings": str(table)}, text)
    from steatosis_tf.server.review import review as serve

    serve(args.manifest, reviewer=args.reviewer, **where)
    return Result({"manifest": args.manifest}, f"{args.manifest}: all decisions are saved")


def _review_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("manifest", metavar="MANIFEST_CSV", help="from `steatosis manifest`")
    purpose = parser.add_mutually_exclusive_group()
    purpose.add_argument(
        "--reviewer", default="", help="initials, kept in the manifest; needed without --grade"
    )
    purpose.add_argument(
        "--grade", action="store_true",
        help="readers log on and grade patients blind, into readings.csv",
    )  # fmt: skip
    parser.add_argument(
        "--repeats", type=float, default=0.1, metavar="SHARE",
        help="with --grade: proportion of the patients that a new reader sees twice",
    )  # fmt: skip
    parser.add_argument(
        "--frames", action="append", default=[], metavar="DIR",
        help="show frames of this folder too; else only those in the folder of the manifest",
    )  # fmt: skip
    add_server_arguments(parser, 8741)


def export_boxes(args: Namespace) -> Result:
    """Write the boxes of a manifest as COCO or Label Studio JSON, or all decisions as CSV.

    Example:
        steatosis export-boxes manifest.csv --output boxes.json
    """
    from steatosis_tf.roi.review.exchange import export_annotations

    count = export_annotations(
        args.manifest, args.output, file_format=args.format, masks_dir=args.masks
    )
    things = "decisions" if args.format == "csv" else "frames"
    values = {f"num_{things}": count, "output": args.output}
    return Result(values, f"{count} {things}: {args.output}")


def _export_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("manifest", metavar="MANIFEST_CSV", help="from `steatosis manifest`")
    add("--output", required=True, type=OutputBoxes, metavar="JSON_OR_CSV", help="file to write")
    add(
        "--format", default="coco", choices=("coco", "label_studio", "csv"),
        help="csv: all decisions instead of boxes",
    )  # fmt: skip
    add("--masks", metavar="DIR", help="outlines from the masks of `steatosis roi`")


def import_boxes(args: Namespace) -> Result:
    """Take a team's boxes (COCO or Label Studio JSON) into a manifest as a person's.

    Example:
        steatosis import-boxes boxes.json manifest.csv --reviewer AB
    """
    from steatosis_tf.roi.review.exchange import import_annotations

    summary = import_annotations(
        args.annotations,
        args.manifest,
        reviewer=args.reviewer,
        roi_label=args.label,
        masks_dir=args.masks,
    )
    lines = [f"{summary.num_boxes} boxes and {summary.num_masks} masks taken: {args.manifest}"]
    if summary.rejected:
        lines.append(f"{len(summary.rejected)} rejected: {summary.rejected_path}")
        lines += [f"  {path}: {reason}" for path, reason in summary.rejected[:5]]
    return Result(dataclasses.asdict(summary), "\n".join(lines))


def _import_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("annotations", metavar="JSON", help="COCO or Label Studio")
    add("manifest", metavar="MANIFEST_CSV", help="from `steatosis manifest`")
    add("--reviewer", required=True, help="initials, kept in the manifest")
    add("--label", default="roi", help="label of the boxes that are the ROI")
    add("--masks", type=OutputDir, metavar="DIR", help="write outlines there as masks")


def records(args: Namespace) -> Result:
    """Write the TFRecords of a manifest that has split and ROI.

    Example:
        steatosis records manifest.csv --output records
    """
    load_tensorflow()
    from steatosis_tf.records.builder import write_records

    location = write_records(args.manifest, args.output, options=runner_options(args))
    return Result({"records": str(location)}, f"records: {location}")


def _records_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("manifest", metavar="MANIFEST_CSV", help="from `steatosis manifest`")
    parser.add_argument(
        "--output",
        required=True,
        type=OutputDir,
        metavar="RECORDS_DIR",
        help="folder to write into",
    )
    add_runner_arguments(parser)


def measure(args: Namespace) -> Result:
    """Measure one patient's frames: hepatorenal index, attenuation, speckle, landmarks.

    Example:
        steatosis measure frame_1.png frame_2.png
    """
    from steatosis_tf.quantitative.display import Display
    from steatosis_tf.quantitative.study import measure_patient

    display = Display(args.dynamic_range_db, args.px_per_cm)
    of_frames, mean = measure_patient(args.frames, display)
    values = {
        "frames": [
            {"path": path} | _without_nan(dataclasses.asdict(numbers))
            for path, numbers in zip(args.frames, of_frames, strict=True)
        ],
        "mean": _without_nan(dataclasses.asdict(mean)),
        "notice": NOTICE,
    }
    shown = f"{len(of_frames)} frames, taken as one patient's: means of those that show it"
    text = [shown if len(of_frames) > 1 else "1 frame", mean.text()]
    return Result(values, "\n".join([*text, "", NOTICE]))


def _without_nan(numbers: dict) -> dict:
    """NaN is no JSON: what was not measured is null."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in numbers.items()
    }


def _measure_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("frames", nargs="+", metavar="FRAME", help="images of one patient")
    add("--dynamic-range-db", type=float, metavar="DB", help="dB between black and white, if known")
    add("--px-per-cm", type=float, metavar="PX", help="of the image, if known")


VERBS = (
    ("roi", roi, _roi_arguments),
    ("review", review, _review_arguments),
    ("import-boxes", import_boxes, _import_arguments),
    ("export-boxes", export_boxes, _export_arguments),
    ("records", records, _records_arguments),
    ("measure", measure, _measure_arguments),
)
