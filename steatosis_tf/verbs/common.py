"""What verbs and experiment scripts share: results, common arguments, and the types of outputs.

Every file that a verb writes is declared as one of the `Output` types (`type=OutputCsv`). Before a
verb runs, `check_outputs` holds all of them against its other arguments, so that no verb can forget
to.
"""

import dataclasses
import errno
import importlib.metadata
import json
import os
import re
import sys
import time
import typing
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from steatosis_tf import __version__
from steatosis_tf.config import ModelConfig
from steatosis_tf.files import check_output, reason_of, write_json
from steatosis_tf.grades import NOTICE

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions


class Result(NamedTuple):
    """`values` for programs (`--json`, `--report`), `text` for people.

    `exit_code` is 1 where the verb did its work and the answer is no, as a failed check.
    """

    values: dict[str, Any]
    text: str
    exit_code: int = 0


def run_verb(verb: Callable[[Namespace], Result], args: Namespace) -> int:
    """Call a verb and print what it gives back.

    Args:
        verb: takes the arguments.
        args: with `verb_name`, `json` and `report` among them.

    Returns:
        exit code, as of `cli.main`.
    """
    start = time.monotonic()
    try:
        check_outputs(args)
        result = verb(args)
    except (ValueError, RuntimeError, OSError, ModuleNotFoundError) as error:
        text = str(error)
        if isinstance(error, OSError) and error.strerror:
            text = _of_system(error)
        if isinstance(error, ModuleNotFoundError):
            package = (error.name or "").split(".")[0].replace("_", "-")
            text = (
                f"Expected the package {package} for `steatosis {args.verb_name}`. Received: none. "
                f"Install it: {_installing(package)}"
            )
        print(f"error: {text}", file=sys.stderr)
        _write_report(args, {"error": text}, 1, start)
        return 1
    try:
        print(json.dumps(result.values, indent=2) if args.json else result.text, flush=True)
    except OSError as error:  # Python must not try again when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # `| head` has seen enough, a full disk has not
            print(f"error: {_of_system(error)}", file=sys.stderr)
            result = result._replace(exit_code=1)
    _write_report(args, result.values, result.exit_code, start)
    return result.exit_code


def _of_system(error: OSError) -> str:
    """What the system refused, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"Expected room on the disk. Received: {reason_of(error)}. Free space and make the "
            "same call again; what is there is whole."
        )
    return f"Expected files that can be read and written. Received: {reason_of(error)}."


def _installing(package: str) -> str:
    """The command that brings a package as `setup.cfg` lists it: the extra's, or the whole one's.

    A machine that only answers has neither, and pip then installs what is missing there.
    """
    try:
        listed = importlib.metadata.requires("steatosis_tf") or []
    except importlib.metadata.PackageNotFoundError:  # run from its source
        listed = []
    for line in listed:
        found = re.fullmatch(rf"{re.escape(package)}\b.*; extra == .(\w+).", line, re.IGNORECASE)
        if found:
            return f"pip install 'steatosis_tf[{found[1]}]'"
    return "pip install steatosis_tf"


def _write_report(args: Namespace, values: dict[str, Any], exit_code: int, start: float) -> None:
    if not args.report:
        return
    summary = {
        "steatosis_tf": __version__,
        "verb": args.verb_name,
        "exit_code": exit_code,
        "seconds": round(time.monotonic() - start, 3),
        "notice": NOTICE,
        "result": values,
    }
    write_json(summary, args.report)


def add_config_arguments(parser: ArgumentParser) -> None:
    """What every command that runs the backbone takes: `--weights`, `--engine`, `--set`."""
    add = parser.add_argument
    engines = typing.get_args(typing.get_type_hints(ModelConfig)["engine"])
    add("--weights", help='of the backbone: "imagenet", "random" or a path')
    add("--engine", choices=engines, help="inference backend of the backbone (auto if left out)")
    add_settings_argument(parser, "STAGE.NAME=VALUE", "change single values of the config")


def add_settings_argument(parser: ArgumentParser, metavar: str, told: str) -> None:
    """`--set`, whose values are `args.settings`."""
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar=metavar, dest="settings", help=told
    )


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


def add_model_argument(parser: ArgumentParser, metavar: str = "BUNDLE|MODEL_ONNX|RUN_DIR") -> None:
    """`--model`, of commands that answer patients."""
    parser.add_argument(
        "--model", metavar=metavar,
        help="what grades; the model that comes with the package if left out",
    )  # fmt: skip


def add_resamples_argument(parser: ArgumentParser) -> None:
    """`--resamples`, of commands that give intervals."""
    parser.add_argument(
        "--resamples", type=int, default=2000, metavar="N", help="of patients, for the intervals"
    )


def add_server_arguments(parser: ArgumentParser, port: int) -> None:
    """`--port` and `--no-browser`, of commands that serve a page."""
    parser.add_argument(
        "--port", type=int, default=port, metavar="N",
        help="of this machine; 0 takes any that is free",
    )  # fmt: skip
    parser.add_argument("--no-browser", action="store_true", help="only serve the page")


def add_call_arguments(parser: ArgumentParser) -> None:
    """`--json` and `--report`, which every command takes."""
    add = parser.add_argument
    add("--json", action="store_true", help="print JSON instead of text")
    add("--report", type=OutputJson, metavar="JSON", help="also write a summary of the call")


def plain(value: Any) -> Any:
    """A dataclass as JSON can hold it: paths as text."""
    return json.loads(json.dumps(dataclasses.asdict(value), default=str))


class OutputFile(str):
    """A file to write, whose name ends with a suffix of its kind.

    So no program takes it for something else, and the frames that a manifest names and the files
    of a run are safe, which stand in no argument.
    """

    suffixes: tuple[str, ...] = ()


class OutputCsv(OutputFile):
    suffixes = (".csv",)


class OutputJson(OutputFile):
    suffixes = (".json",)


class OutputBoxes(OutputFile):
    suffixes = (".json", ".csv")


class OutputOnnx(OutputFile):
    suffixes = (".onnx",)


class OutputPicture(OutputFile):
    suffixes = (".png",)


class OutputDir(str):
    """A folder to write into."""


class OutputModel(OutputDir):
    """The folder of a bundle to write; a name that ends with .onnx is a file."""

    def __new__(cls, text: str) -> "OutputModel | OutputOnnx":  # type: ignore[misc]
        return OutputOnnx(text) if text.lower().endswith(".onnx") else super().__new__(cls, text)


def check_outputs(args: Namespace) -> None:
    """Refuse a call whose outputs would destroy something.

    Args:
        args: of one call; `report` is taken out of it if it is at fault, so that the refusal is
            not written there either.

    Raises:
        ValueError: if an output is no regular file, is one of the inputs or has another kind.
    """
    texts = list(_texts(args))
    inputs = [text for text in texts if not isinstance(text, OutputFile | OutputDir)]
    report, args.report = args.report, None
    if report:
        check_output(report, inputs, suffixes=report.suffixes)
        _check_report(Path(report))
    args.report = report
    for output in texts:
        if isinstance(output, OutputFile):
            check_output(output, inputs, suffixes=output.suffixes)
        elif isinstance(output, OutputDir) and os.path.exists(output) and not os.path.isdir(output):
            raise ValueError(
                "Expected a folder to write into, or none yet. "
                f"Received: {os.path.basename(output)!r}, which is a file or a device."
            )


def _check_report(path: Path) -> None:
    if not path.exists():
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict) or "exit_code" not in content:
        raise ValueError(
            "Expected to replace the report of an earlier call, or no file. "
            f"Received: {path.name!r}, which is none. Give --report another name."
        )


def _texts(args: Namespace) -> Iterator[str]:
    """All texts of a call, also those of arguments that take several."""
    values: list[Any] = list(vars(args).values())
    for value in values:
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, str | os.PathLike):
                yield part if isinstance(part, str) else os.fspath(part)
