"""What verbs and experiment scripts share: their results and common arguments."""

import typing
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any, NamedTuple

from steatosis_tf.config import ModelConfig

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions


class Result(NamedTuple):
    """`values` for programs (`--json`, `--report`), `text` for people.

    `exit_code` is 1 where the verb did its work and the answer is no, as a failed check.
    """

    values: dict[str, Any]
    text: str
    exit_code: int = 0


def add_config_arguments(parser: ArgumentParser) -> None:
    """What every command that runs the backbone takes: `--weights`, `--engine`, `--set`."""
    engines = typing.get_args(typing.get_type_hints(ModelConfig)["engine"])
    parser.add_argument(
        "--weights",
        help='of the backbone: "imagenet", "random" or a path',
    )
    parser.add_argument(
        "--engine", choices=engines, help="inference backend of the backbone (auto if left out)"
    )
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="STAGE.NAME=VALUE",
        dest="settings", help="change single values of the config",
    )  # fmt: skip


def given_settings(args: Namespace) -> list[str]:
    """The arguments of `add_config_arguments` as settings for `config.override`."""
    named = {"model.weights": args.weights, "model.engine": args.engine}
    return args.settings + [f"{name}={value}" for name, value in named.items() if value]


def add_runner_arguments(parser: ArgumentParser) -> None:
    """`--runner` and `--beam-option`, of commands whose work can be spread over a cluster."""
    parser.add_argument(
        "--runner", metavar="NAME",
        help="Apache Beam runner, as DirectRunner or FlinkRunner; this process if left out",
    )  # fmt: skip
    parser.add_argument(
        "--beam-option", nargs="+", action="extend", default=[], metavar="NAME=VALUE",
        help="of the runner, for example direct_num_workers=2",
    )  # fmt: skip


def runner_options(args: Namespace) -> "PipelineOptions | None":
    """What `parallel.run_parts` takes.

    Raises:
        ValueError: if there are options without a runner, or Beam does not know one.
    """
    from steatosis_tf.parallel import beam_options

    if args.runner:
        return beam_options(args.runner, args.beam_option)
    if args.beam_option:
        raise ValueError(
            f"Expected --runner with --beam-option. Received: {args.beam_option[0]} alone. "
            "Name the runner, for example --runner DirectRunner."
        )
    return None
