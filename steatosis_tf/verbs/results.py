"""Verbs on runs and models: evaluate, export, predict, compare."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from steatosis_tf.verbs.result import Result


def evaluate(args: Namespace) -> Result:
    """Compute patient scores, metrics and figures of a run from its frame scores."""
    from steatosis_tf.evaluation.evaluate import evaluate_run, metrics_text

    metrics = evaluate_run(args.run_dir)
    return Result(metrics, metrics_text([metrics]))


def export(args: Namespace) -> Result:
    """Write a run's model as ONNX, checked against Keras on the run's own frames."""
    from steatosis_tf.deploy.export import export_run

    difference = export_run(args.run_dir, args.output)
    values = {"model": args.output, "largest_difference": difference}
    return Result(values, f"{args.output}: largest difference from Keras {difference:.2g}")


def _export_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parser.add_argument("--output", required=True, metavar="MODEL_ONNX")


def predict(args: Namespace) -> Result:
    """Grade frames with an ONNX model; needs no TensorFlow."""
    from steatosis_tf.deploy.predict import predict_frames, write_predictions
    from steatosis_tf.grades import NOTICE

    predictions = predict_frames(args.model, args.paths)
    if args.output:
        write_predictions(predictions, args.output)
    refused = predictions.loc[predictions["grade"] == ""]
    counts = predictions.loc[predictions["grade"] != "", "grade"].value_counts()
    values = {
        "num_frames": len(predictions),
        "num_refused": len(refused),
        "grades": {str(k): int(v) for k, v in counts.items()},
        "output": args.output,
        "notice": NOTICE,
    }
    if len(refused) == len(predictions):
        raise ValueError(
            f"Expected at least one gradable frame. Received: {len(refused)} that are not, "
            f"first reason: {refused['reason'].iloc[0]}."
        )
    lines = [f"{count:6} {grade}" for grade, count in values["grades"].items()]
    if len(refused):
        lines.append(f"{len(refused):6} refused, see the column reason")
    return Result(values, "\n".join([*lines, NOTICE]))


def _predict_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL_ONNX")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="frames or folders of frames")
    parser.add_argument("--output", required=True, metavar="PREDICTIONS_CSV")


def compare(args: Namespace) -> Result:
    """Show the finished runs of an experiment side by side, from MLflow."""
    from steatosis_tf.tracking import runs_table

    runs = runs_table(args.experiment)
    columns = [name for name in _COMPARED if name in runs.columns]
    table = runs[["run_id", *columns]].rename(columns=_COMPARED)
    table["run_id"] = table["run_id"].str[:8]
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    text = table.to_string(index=False, float_format=lambda value: f"{value:.3f}", na_rep="-")
    return Result({"experiment": args.experiment, "runs": rows}, text)


#: MLflow column -> heading of the comparison.
_COMPARED = {
    "params.split.kind": "split",
    "params.split.split_seed": "split_seed",
    "params.model.weights": "weights",
    "params.train.learning_rate": "lr",
    "params.train.views": "views",
    "params.train.seed": "seed",
    "metrics.patient.n": "patients",
    "metrics.patient.accuracy": "accuracy",
    "metrics.patient.macro.f1": "macro_F1",
    "metrics.patient.ordinal.auc_at_least_mild": "AUC>=Mild",
    "metrics.patient.ordinal.quadratic_kappa": "kappa",
    "metrics.seconds": "seconds",
}


def _run_dir(parser: ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path)


VERBS = (
    ("evaluate", evaluate, _run_dir),
    ("export", export, _export_arguments),
    ("predict", predict, _predict_arguments),
    ("compare", compare, lambda parser: parser.add_argument("experiment", metavar="EXPERIMENT")),
)
