"""What a verb writes, told from what it reads by the type of the argument.

Every file that a verb writes is declared as one of these types (`type=OutputCsv`). Before a verb
runs, `check_outputs` holds all of them against its other arguments, so that no verb can forget to.
"""

import json
import os
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steatosis_tf.files import check_output


class OutputFile(str):
    """A file to write. One that exists is replaced only if it has a suffix of its kind.

    So the frames that a manifest names and the files of a run are safe, which stand in no argument.
    """

    suffixes: tuple[str, ...] = ()


class OutputCsv(OutputFile):
    """A table to write."""

    suffixes = (".csv",)


class OutputJson(OutputFile):
    """A JSON file to write."""

    suffixes = (".json",)


class OutputBoxes(OutputFile):
    """Boxes for another tool, or a table of decisions, to write."""

    suffixes = (".json", ".csv")


class OutputReport(OutputJson):
    """The summary of a call. It replaces only its like: a run is made of other JSON files."""


class OutputOnnx(OutputFile):
    """A model to write."""

    suffixes = (".onnx",)


class OutputPicture(OutputFile):
    """A drawing to write."""

    suffixes = (".png", ".svg", ".pdf")


class OutputDir(str):
    """A folder to write into."""


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
        is_report = "exit_code" in json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        is_report = False
    if not is_report:
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
