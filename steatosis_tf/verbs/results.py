"""Verbs on runs and models: train (scripts of experiments too), evaluate, compare, export,
predict, page, recalibrate, sr, node.
"""

import dataclasses
import gc
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from steatosis_tf.config import Config, override
from steatosis_tf.environment import load_tensorflow
from steatosis_tf.files import renewing_sums
from steatosis_tf.grades import GRADES, NOTICE
from steatosis_tf.recipes import RECIPES
from steatosis_tf.unfinished import refuse_unfinished
from steatosis_tf.verbs.common import (
    OutputDir,
    OutputModel,
    OutputOnnx,
    OutputPicture,
    Result,
    add_call_arguments,
    add_config_arguments,
    add_model_argument,
    add_resamples_argument,
    add_runner_arguments,
    add_server_arguments,
    given_settings,
    run_verb,
    runner_options,
)

if TYPE_CHECKING:
    from steatosis_tf.evaluation.metrics.comparison import ComparedRun


def train(args: Namespace) -> Result:
    """Train, evaluate, track and export a model by a recipe; does what is missing before it.

    Example:
        steatosis train manifest.csv --recipe joint
    """
    return _run(args.recipe, RECIPES[args.recipe].config, args)


def script(doc: str, experiment: str, config: Config, argv: Sequence[str] | None = None) -> int:
    """Command line of an experiment script: the verb `train` with a config of its own.

    Args:
        doc: the script's docstring, shown by `--help`.
        experiment: MLflow experiment and folder below `runs/`.
        config: the script's CONFIG.
        argv: arguments, those of the process if None.

    Returns:
        exit code: 0, or 1 with the reason on stderr.
    """
    parser = ArgumentParser(description=doc, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        "--manifest", required=True, metavar="MANIFEST_CSV", help="from `steatosis manifest`"
    )
    _add_run_arguments(parser)
    add_call_arguments(parser)
    args = parser.parse_args(argv)
    args.verb_name = experiment
    return run_verb(lambda given: _run(experiment, config, given), args)


def _run(experiment: str, config: Config, args: Namespace) -> Result:
    config = override(config, given_settings(args))  # refused before TensorFlow is imported
    options = runner_options(args)
    load_tensorflow()
    from steatosis_tf.evaluation.report.evaluate import metrics_text
    from steatosis_tf.pipeline import run_all
    from steatosis_tf.tracking import ui_address
    from steatosis_tf.tracking.store import ui_command

    gc.freeze()  # as in the demo
    summaries = run_all(experiment, args.manifest, [config], args.runs_dir, options)
    lines = [metrics_text([summary.metrics for summary in summaries]), ""]
    for summary in summaries:
        lines += [summary.verdict, f"run: {summary.run_dir}"]
        lines.append(f"report: {summary.run_dir}/report.html")
    looked_at = f"{ui_command()}: {ui_address(experiment)}"
    lines.append(f"compare: steatosis compare {experiment}, or {looked_at}")
    values = {"runs": [dataclasses.asdict(summary) for summary in summaries], "notice": NOTICE}
    return Result(values, "\n".join(lines))


def _add_run_arguments(parser: ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--runs-dir", default="runs", metavar="DIR", help="folder of runs")
    add_runner_arguments(parser)


def _train_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("manifest", metavar="MANIFEST_CSV", help="from `steatosis manifest`")
    told = "; ".join(f"{name}: {recipe.summary}" for name, recipe in RECIPES.items())
    add("--recipe", choices=RECIPES, default=next(iter(RECIPES)), help=f"named config. {told}")
    _add_run_arguments(parser)


def evaluate(args: Namespace) -> Result:
    """Compute patient scores, metrics and figures of a run from its frame scores.

    Example:
        steatosis evaluate runs/joint/RUN_ID
    """
    from steatosis_tf.evaluation.report.evaluate import evaluate_run, metrics_text

    refuse_unfinished(args.run_dir)
    with renewing_sums(args.run_dir):
        metrics = evaluate_run(args.run_dir)
    text = f"{metrics_text([metrics])}\nnow: steatosis report {quote(str(args.run_dir))}"
    return Result(metrics, text)


def export(args: Namespace) -> Result:
    """Write a run's model: its bundle, or as one ONNX file checked against Keras on its frames.

    Example:
        steatosis export runs/joint/RUN_ID --output bundle
    """
    now = f"now: steatosis predict FRAMES --model {quote(str(args.output))}"
    if not isinstance(args.output, OutputOnnx):
        from steatosis_tf.deploy.bundle_write import export_bundle

        bundle = export_bundle(args.run_dir, args.output, leak_hashes=args.leak_hashes)
        values = {"model": args.output, "zip": f"{args.output}.zip", "sha256": bundle.sha256}
        text = f"{args.output}, and {args.output}.zip beside it: {bundle.name}, as it was evaluated"
        return Result(values, f"{text}\n{now}")
    if args.leak_hashes:
        raise ValueError(
            "Expected --leak-hashes with a bundle. Received: one ONNX file, which holds no hashes "
            "of training frames. Give --output a folder, for a run with a bundle."
        )
    load_tensorflow()
    from steatosis_tf.deploy.export import export_run

    difference = export_run(args.run_dir, args.output)
    values = {"model": args.output, "largest_difference": difference}
    text = f"{args.output}: largest difference from Keras {difference:.2g}"
    return Result(values, f"{text}\n{now}")


def _export_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR", help="folder of the run")
    parser.add_argument(
        "--output", required=True, type=OutputModel, metavar="BUNDLE|MODEL_ONNX",
        help="folder of the bundle, a zip is written beside it; or an ONNX file, of any other run",
    )  # fmt: skip
    parser.add_argument(
        "--leak-hashes", action="store_true",
        help="keep hashes of the training frames, by which validate finds them; whoever holds a "
        "frame can then tell whether its patient took part",
    )  # fmt: skip


def predict(args: Namespace) -> Result:
    """Answer patients: frames, folders, zips, DICOM; needs no TensorFlow.

    Example:
        steatosis predict study.zip --output answers
    """
    from steatosis_tf.deploy.predict import predict as answer

    found = answer(
        args.paths,
        model=args.model,
        output_dir=args.output,
        by_folder=args.patient == "folder",
        figures=args.figures,
    )
    return Result(found.values(), found.text())


def _predict_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "paths", nargs="+", metavar="PATH",
        help="frames, DICOM files, folders or zips of both, tables with path and patient_id",
    )  # fmt: skip
    add_model_argument(parser)
    add(
        "--output", type=OutputDir, metavar="DIR",
        help="patients.csv, frames.csv and predictions.json; only text is printed if left out",
    )  # fmt: skip
    add("--patient", choices=["folder"], help="pictures of one folder are one patient's")
    add("--figures", action="store_true", help="also draw what was found in each frame")


def page(args: Namespace) -> Result:
    """Open the page that reads one patient: frames, DICOM clips or a study; nothing is stored.

    Example:
        steatosis page
    """
    from steatosis_tf.server.page import page as serve

    serve(args.model, port=args.port, host=args.host, open_browser=not args.no_browser)
    return Result({"stored": 0}, "The reading page has ended; nothing was stored.")


def _page_arguments(parser: ArgumentParser) -> None:
    add_model_argument(parser, "BUNDLE|RUN_DIR")
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="NAME",
        help="let others open it under this name of the machine, with the token that is printed",
    )  # fmt: skip
    add_server_arguments(parser, 8742)


def recalibrate(args: Namespace) -> Result:
    """Fit a bundle to the scanner at hand by 20 or more local patients.

    Example:
        steatosis recalibrate local/manifest.csv --output local_model
    """
    from steatosis_tf.cohort.manifest import read_manifest
    from steatosis_tf.deploy.predict import open_model
    from steatosis_tf.deploy.recalibrate import ENOUGH_PATIENTS
    from steatosis_tf.deploy.recalibrate import recalibrate as fit_locally
    from steatosis_tf.validation import find_leakage

    says = fit_locally(args.model, args.manifest, args.output)
    table = read_manifest(args.manifest)
    leakage = find_leakage(open_model(args.model), table, args.manifest, args.model)
    text = f"{_recalibration_text(says, ENOUGH_PATIENTS)}\nmodel: {args.output}"
    if leakage["passed"] is False:
        text = f"{leakage['text']}\n{text}"
    text += f"\nnow: steatosis predict FRAMES --model {quote(str(args.output))}"
    return Result(says | {"model": args.output, "notice": NOTICE}, text)


def _recalibration_text(says: dict[str, Any], enough: int) -> str:
    """What `recalibrate` gives, for a person."""
    line, few = says["score"], ""
    if says["is_few"]:
        few = f" (few: take {enough} or more before relying on it)"
    lines = [
        f"{says['from']} fitted to {says['num_patients']} patients{few}, "
        f"{says['num_frames']} frames, {says['num_left_out']} patients without a frame to score"
    ]
    if line is None:
        lines.append("score: as it was, since not every patient has a fat percent")
    for name, one in (line or {}).items():
        lines.append(f"score, {name}: {one['value']:.2f} ({one['low']:.2f} to {one['high']:.2f})")
    for grade, cut in zip(GRADES[1:], says["cut_offs"], strict=True):
        after = f"{cut['value']:.2f} ({cut['low']:.2f} to {cut['high']:.2f})"
        lines.append(f"{grade} or worse from old score {cut['before']:.2f} before, {after} after")
    for name in ("accuracy", "quadratic_kappa", "score_error"):
        if name in says:
            before, after = says[name]
            lines.append(f"{name.replace('_', ' ')}: {before:.2f} before, {after:.2f} after, "
                         "left-out patients")  # fmt: skip
    kappa, accuracy = (
        round(after, 2) - round(before, 2)  # as they are printed
        for before, after in (says["quadratic_kappa"], says["accuracy"])
    )
    if kappa < 0 and accuracy <= 0:  # more grades right at a kappa a little lower is no loss
        lines.append("grades agree less with the labels than before: check labels and view, and "
                     "keep the model as it was where it graded these patients")  # fmt: skip
    if absent := [grade for grade, many in says["by_grade"].items() if not many]:
        lines.append(f"no local patient is {' or '.join(absent)}: how such are graded here is not "
                     "known")  # fmt: skip
    kinds = ", ".join(f"{many} {kind}" for kind, many in says["answers_before"].items())
    return "\n".join([*lines, f"answers before: {kinds}", NOTICE])


def _recalibrate_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("manifest", metavar="MANIFEST_CSV", help="local patients with grade, best with fat_percent")
    add_model_argument(parser, "BUNDLE|RUN_DIR")
    add(
        "--output", required=True, type=OutputDir, metavar="MODEL",
        help="folder of the new bundle; a zip is written beside it",
    )  # fmt: skip


def compare(args: Namespace) -> Result:
    """Show runs side by side: intervals, paired difference to a baseline, cost.

    Example:
        steatosis compare joint paper --figure compared.png
    """
    gc.disable()  # or a fifth of the seconds to import MLflow goes to looking for garbage in it
    from steatosis_tf import tracking
    from steatosis_tf.evaluation.metrics.comparison import compare_runs, comparison_text

    gc.enable()
    gc.freeze()  # as in the demo
    rows = [row for experiment in args.experiments
            for row in tracking.runs_table(experiment).to_dict("records")]  # fmt: skip
    left_out = [one for experiment in args.experiments for one in _unfinished(experiment)]
    if not rows:
        raise ValueError(
            f"Expected finished runs. Received: none in {', '.join(args.experiments)}"
            f"{'; ' if left_out else ''}{', '.join(left_out)}."
        )
    runs = _compared(rows)
    if chosen := [one for one in left_out if args.baseline and one.startswith(args.baseline[:8])]:
        raise ValueError(f"Expected a finished run as baseline. Received: {chosen[0]}.")
    # Without a baseline named, the oldest run is what the others are held against.
    compared = compare_runs(runs, args.baseline or runs[-1].run_id, num_resamples=args.resamples)
    if args.figure:
        from steatosis_tf.evaluation.figures.results import comparison_figure

        comparison_figure(compared, args.figure)
    text = "\n".join([comparison_text(compared), *(f"left out: {one}" for one in left_out), NOTICE])
    return Result({"runs": compared, "left_out": left_out, "notice": NOTICE}, text)


def _compared(rows: list[dict[str, Any]]) -> list["ComparedRun"]:
    """Runs of MLflow with their scores, and with what differs between them."""
    from steatosis_tf import tracking
    from steatosis_tf.evaluation.metrics.comparison import ComparedRun, what_differs
    from steatosis_tf.evaluation.metrics.scores import read_scores

    # A run that lacks a setting or a metric that others have holds NaN there.
    known = [{key: value for key, value in row.items() if value == value} for row in rows]
    # Equal settings on another manifest, or by another version, are no equal runs.
    settings = [
        {key.removeprefix("params."): str(value) for key, value in row.items()
         if key.startswith("params.")}
        | {name: row[f"tags.{name}_sha256"][:8] for name in ("manifest", "code")
           if f"tags.{name}_sha256" in row} for row in known
    ]  # fmt: skip
    return [
        ComparedRun(
            row["run_id"],
            f"{row.get('tags.mlflow.runName', '')} {row['run_id'][:8]}".strip(),
            read_scores(tracking.artifact_path(row, "patient_scores.csv")),
            {key: row.get(f"metrics.{key}") for key in _COST},
            differs,
        )
        for row, differs in zip(known, what_differs(settings), strict=True)
    ]


def _unfinished(experiment: str) -> list[str]:
    """The runs of an experiment that have not come to their end, and why."""
    from steatosis_tf import tracking

    rows = tracking.runs_table(experiment, finished=False).to_dict("records")
    # NaN where other runs have a reason and this one has none.
    reasons = [row.get("tags.steatosis.reason") for row in rows]
    texts = [one if isinstance(one, str) and one else "it is computed, or was killed"
             for one in reasons]  # fmt: skip
    return [
        f"{row['run_id'][:8]}, not finished: {text.splitlines()[0]}"
        for row, text in zip(rows, texts, strict=True)
    ]


def _compare_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("experiments", nargs="+", metavar="EXPERIMENT", help="name of a recipe")
    add("--baseline", metavar="RUN_ID", help="the oldest run if left out")
    add("--figure", type=OutputPicture, metavar="PNG", help="also draw the comparison")
    add_resamples_argument(parser)


_COST = ("train_minutes", "file_mb", "ms_per_frame")


def _evaluate_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="folder of the run")


def sr(args: Namespace) -> Result:
    """Write the structured report and key image of one DICOM study, for the PACS.

    Example:
        steatosis sr study_folder --output answers
    """
    from steatosis_tf.deploy.figures import answer_lines
    from steatosis_tf.deploy.predict import open_model
    from steatosis_tf.deploy.sr import answer_study, write_answer
    from steatosis_tf.deploy.study import read_study

    earlier = sorted(Path(args.output).glob("steatosis-sr-*.dcm"))
    study = read_study(args.study, earlier)
    grader = open_model(args.model)
    answer, made = answer_study(study, grader)
    paths = [str(path) for path in write_answer(made, args.output)]
    values = {
        "files": paths,
        "kind": answer.kind,
        "reason": answer.reason,
        "grade": answer.grade,
        "num_images": len(study.images),
        "passed_over": study.passed_over,
        "notice": NOTICE,
    }
    passed = [f"passed over: {number} x {why}" for why, number in study.passed_over.items()]
    return Result(
        values, "\n".join([*answer_lines(answer, grader.num_training), *passed, *paths, NOTICE])
    )


def _sr_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY_DIR", help="folder or zip with one DICOM study")
    parser.add_argument("--output", required=True, type=OutputDir, metavar="DIR",
                        help="gets steatosis-sr-*.dcm and steatosis-key-*.dcm")  # fmt: skip
    add_model_argument(parser)


def node(args: Namespace) -> Result:
    """Answer every study that arrives at an Orthanc, until it is ended.

    Example:
        steatosis node --orthanc http://127.0.0.1:8042
    """
    from steatosis_tf.deploy.node import Orthanc, Worker
    from steatosis_tf.deploy.predict import open_model
    from steatosis_tf.deploy.sr import PacsAnswer, answer_study, is_answered
    from steatosis_tf.deploy.study import read_study

    orthanc, grader = Orthanc(args.orthanc), open_model(args.model)

    def answer(folder: Path) -> PacsAnswer | None:
        study = read_study(folder)
        if is_answered(study, grader):
            return None
        return answer_study(study, grader)[1]

    Worker(orthanc, args.state, answer).run()
    return Result({}, "")


def _node_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--orthanc", required=True, metavar="URL", help="its REST interface")
    parser.add_argument(
        "--state", default="steatosis-node", type=OutputDir, metavar="DIR",
        help="folder of this worker alone: its place, and what failed with its reason",
    )  # fmt: skip
    add_model_argument(parser)


VERBS = (
    ("train", train, _train_arguments),
    ("evaluate", evaluate, _evaluate_arguments),
    ("compare", compare, _compare_arguments),
    ("export", export, _export_arguments),
    ("predict", predict, _predict_arguments),
    ("page", page, _page_arguments),
    ("recalibrate", recalibrate, _recalibrate_arguments),
    ("sr", sr, _sr_arguments),
    ("node", node, _node_arguments),
)
