"""`steatosis <verb>`: parse, call, print.

Results go to stdout (text, or JSON with --json), progress and errors to stderr. Exit codes: 0 done,
1 failed with a reason, 2 bad call. Heavy imports happen inside the verbs, so that `info` and
`--help` answer at once and `predict` never loads TensorFlow.
"""

import argparse
import difflib
import inspect
import io
import sys
from collections.abc import Sequence

from steatosis_tf import __version__
from steatosis_tf.grades import NOTICE
from steatosis_tf.verbs import VERBS
from steatosis_tf.verbs.common import add_call_arguments, run_verb

# Old name of a verb -> its name.
_RENAMED = {"physics": "measure"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: arguments without the program's name; those of the process if None.

    Returns:
        0, 1 if the verb failed or its check found fault, 130 if Ctrl+C ended it. argparse exits
        with 2 on a bad call.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal cannot show is spelled out
            stream.reconfigure(errors="backslashreplace")
    args = parse(argv)
    try:
        return run_verb(args.verb, args)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments of one call; argparse exits with 2 if they are not those of any verb."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if not words:
        words = ["--help"]
    if words[0] in _RENAMED:
        parser.error(
            f"{words[0]} is called {_RENAMED[words[0]]} now: steatosis {_RENAMED[words[0]]}"
        )
    if not words[0].startswith("-") and words[0] not in (names := [name for name, *_ in VERBS]):
        near = difflib.get_close_matches(words[0], names, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        parser.error(f"there is no verb {words[0]}. {hint}`steatosis --help` lists all.")
    return parser.parse_args(words)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help that states every default which says something, and keeps the example as it is."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        is_silent = action.default in (None, False, argparse.SUPPRESS) or action.default == []
        return text if is_silent else f"{text} (default: %(default)s)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="steatosis", description=f"Grade fatty liver. {NOTICE}")
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(required=True, metavar="VERB")
    for name, verb, add_arguments in VERBS:
        summary, _, example = inspect.cleandoc(verb.__doc__ or "").partition("\n\nExample:\n")
        summary = summary.split("\n")[0]
        sub = subparsers.add_parser(
            name, help=summary, description=summary, formatter_class=_Help,
            epilog=f"example:\n{example}" if example else None,
        )  # fmt: skip
        add_arguments(sub)
        add_call_arguments(sub)
        sub.set_defaults(verb=verb, verb_name=name)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
