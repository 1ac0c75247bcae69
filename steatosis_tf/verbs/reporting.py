"""Verbs that judge what is claimed: validate, report, robustness, check-tables."""

import dataclasses
import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from steatosis_tf.environment import load_tensorflow
from steatosis_tf.files import open_regular, reason_of, renewing_sums
from steatosis_tf.grades import OUTPUT_LAYER
from steatosis_tf.unfinished import refuse_unfinished
from steatosis_tf.verbs.common import OutputDir, Result, add_model_argument, add_resamples_argument

if TYPE_CHECKING:
    import numpy as np


def validate(args: Namespace) -> Result:
    """Hold a model against labelled patients whom it never saw; writes a report of them.

    Example:
        steatosis validate elsewhere/manifest.csv --output external
    """
    from steatosis_tf.validation import validate as hold
    from steatosis_tf.validation import validation_text

    found = hold(
        args.manifest,
        args.output,
        model=args.model,
        reference=args.reference or "",
        num_resamples=args.resamples,
    )
    text = f"{validation_text(found)}\nreport: {Path(args.output) / 'report.html'}"
    return Result(found, text)


def _validate_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("manifest", metavar="MANIFEST_CSV", help="patients with grade")
    add_model_argument(parser)
    add("--output", required=True, type=OutputDir, metavar="DIR", help="answers, metrics, report")
    add(
        "--reference", metavar="COLUMN",
        help="numbers from which the grades were read, if not fat_percent, as cap_db_per_m",
    )  # fmt: skip
    add_resamples_argument(parser)


def report(args: Namespace) -> Result:
    """Write report.html, report.md, the model card and the checklists of a run.

    Example:
        steatosis report runs/joint/RUN_ID
    """
    from steatosis_tf.evaluation.report.report import read_verdict, write_report
    from steatosis_tf.evaluation.report.run import STUDY_KEYS, init_study

    refuse_unfinished(args.run_dir)
    if args.init_study:
        study = init_study(args.run_dir)
        lines = [f"  {key}: {text}" for key, text in STUDY_KEYS.items()]
        lines = [f"{study}: fill in what you can state", *lines]
        return Result(
            {"study": str(study)},
            "\n".join([*lines, f"now: steatosis report {quote(str(args.run_dir))}"]),
        )
    if args.log:
        load_tensorflow()
        from steatosis_tf.run_log import log_run

        if why := log_run(args.run_dir):
            raise RuntimeError(f"Expected a store that takes the run. Received: {why}")
        return Result({"logged": args.run_dir}, f"logged: {args.run_dir}")
    with renewing_sums(args.run_dir):
        path = write_report(args.run_dir, num_resamples=args.resamples, covariates=args.subgroups)
    said = read_verdict(path.parent)
    return Result({"report": str(path), "verdict": said}, f"{said}\nreport: {path}")


def _run_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR", help="folder of the run")
    add_resamples_argument(parser)


def _report_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    _run_arguments(parser)
    add("--subgroups", nargs="+", default=[], metavar="COLUMN",
                        help="also look at these columns of the manifest")  # fmt: skip
    add(
        "--init-study",
        action="store_true",
        help="only write study.json, a form for what the author has to state",
    )
    add("--log", action="store_true", help="only log the run in MLflow, if the store was away")


def robustness(args: Namespace) -> Result:
    """Grade the test frames of a hold-out run of recipe paper, disturbed; the report shows curves.

    Example:
        steatosis robustness runs/paper/RUN_ID
    """
    from steatosis_tf.deploy.bare_network import are_probabilities, open_bare
    from steatosis_tf.evaluation.clinical.robustness import write_robustness

    refuse_unfinished(args.run_dir)
    model_path = Path(args.run_dir) / "model.onnx"
    if (model_path.parent / "bundle").is_dir() and not model_path.is_file():
        raise ValueError(
            "Expected a hold-out run with model.onnx, as of recipe paper. Received: "
            f"{args.run_dir} with a bundle, which measures whole frames beside the ROI that is "
            "disturbed here. Hold a bundle against other frames by `steatosis validate`."
        )
    session = open_bare(model_path).session

    def probabilities(rois: "np.ndarray") -> "np.ndarray":
        scores = session.run([OUTPUT_LAYER], {"roi": rois})[0]
        if not are_probabilities(scores).all():
            raise RuntimeError(
                "Expected probabilities within 0 to 1 that sum to 1 from model.onnx. "
                "Received: others. Export it again with `steatosis export RUN_DIR`."
            )
        return scores

    with renewing_sums(args.run_dir):
        path = write_robustness(args.run_dir, probabilities, num_resamples=args.resamples)
    return Result(
        {"robustness": str(path)}, f"{path}\nnow: steatosis report {quote(str(args.run_dir))}"
    )


def check_tables(args: Namespace) -> Result:
    """Say whether published tables agree with their own confusion matrix; exit 1 if not.

    Example:
        steatosis check-tables tables.json
    """
    from steatosis_tf.evaluation.published import check_tables as check

    path = Path(args.file)
    try:
        with open_regular(path) as file:
            table = json.loads(file.read())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"Expected a JSON file of tables. Received: {path.name} ({reason_of(error)})."
        ) from error
    findings = check(table)
    values = {"consistent": not findings, "findings": [dataclasses.asdict(f) for f in findings]}
    if not findings:
        return Result(values, f"{path.name}: every number that is given follows from the others")
    lines = [f"{path.name}: {len(findings)} numbers do not agree"]
    return Result(values, "\n".join(lines + [f"  {finding}" for finding in findings]), exit_code=1)


def _tables_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("file", metavar="TABLES_JSON", help="numbers of a publication")


VERBS = (
    ("validate", validate, _validate_arguments),
    ("report", report, _report_arguments),
    ("robustness", robustness, _run_arguments),
    ("check-tables", check_tables, _tables_arguments),
)
