"""The arguments of commands whose work can be spread over a cluster."""

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions


def add_runner_arguments(parser: ArgumentParser) -> None:
    """`--runner` and `--beam-option`."""
    parser.add_argument("--runner", metavar="NAME", help="Apache Beam runner, for example "
                        "DirectRunner or FlinkRunner; this process if left out")  # fmt: skip
    parser.add_argument("--beam-option", nargs="+", action="extend", default=[],
                        metavar="NAME=VALUE", help="for example direct_num_workers=2")  # fmt: skip


def runner_options(args: Namespace) -> "PipelineOptions | None":
    """What `spread` takes.

    Raises:
        ValueError: if there are options without a runner, or Beam does not know one.
    """
    from steatosis_tf.spread import beam_options

    if args.runner:
        return beam_options(args.runner, args.beam_option)
    if args.beam_option:
        raise ValueError(
            f"Expected --runner with --beam-option. Received: {args.beam_option[0]} alone. "
            "Name the runner, for example --runner DirectRunner."
        )
    return None
