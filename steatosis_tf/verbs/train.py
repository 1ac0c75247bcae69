"""The verb train, and the same command line for the scripts in `experiments/`."""

import argparse
import dataclasses
from collections.abc import Sequence

from steatosis_tf.config import Config, override
from steatosis_tf.environment import load_tensorflow
from steatosis_tf.grades import NOTICE
from steatosis_tf.recipes import RECIPES
from steatosis_tf.verbs.common import (
    Result,
    add_call_arguments,
    add_config_arguments,
    add_runner_arguments,
    given_settings,
    run_verb,
    runner_options,
)


def train(args: argparse.Namespace) -> Result:
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
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--manifest", required=True, metavar="MANIFEST_CSV", help="from `steatosis manifest`"
    )
    _add_run_arguments(parser)
    add_call_arguments(parser)
    args = parser.parse_args(argv)
    args.verb_name = experiment
    return run_verb(lambda given: _run(experiment, config, given), args)


def _run(experiment: str, config: Config, args: argparse.Namespace) -> Result:
    config = override(config, given_settings(args))  # refused before TensorFlow is imported
    options = runner_options(args)
    load_tensorflow()
    from steatosis_tf.evaluation.report.evaluate import metrics_text
    from steatosis_tf.pipeline import run_all
    from steatosis_tf.tracking import ui_address

    summaries = run_all(experiment, args.manifest, [config], args.runs_dir, options)
    lines = [metrics_text([summary.metrics for summary in summaries]), ""]
    for summary in summaries:
        lines += [summary.verdict, f"run: {summary.run_dir}"]
        lines.append(f"report: {summary.run_dir}/report.html")
    lines += [f"compare: steatosis compare {experiment}, or make ui: {ui_address(experiment)}"]
    values = {"runs": [dataclasses.asdict(summary) for summary in summaries], "notice": NOTICE}
    return Result(values, "\n".join(lines))


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--runs-dir", default="runs", metavar="DIR", help="folder of runs")
    add_runner_arguments(parser)


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manifest", metavar="MANIFEST_CSV", help="from `steatosis manifest`")
    told = "; ".join(f"{name}: {recipe.summary}" for name, recipe in RECIPES.items())
    parser.add_argument(
        "--recipe", choices=RECIPES, default=next(iter(RECIPES)),
        help=f"named config. {told}",
    )  # fmt: skip
    _add_run_arguments(parser)


VERBS = (("train", train, _train_arguments),)
