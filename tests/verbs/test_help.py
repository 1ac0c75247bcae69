"""Every verb's help: what each argument is, its default, and one example that parses."""

import argparse
import re
import shlex
import sys

import pytest

from steatosis_tf import cli
from steatosis_tf.verbs import VERBS


def help_of(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit, match="0"):
        cli.parse([name, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name, *_ in VERBS])
def test_every_help_ends_with_one_example_that_parses(name, capsys):
    text = help_of(name, capsys)
    example = text.split("example:\n")[1].strip()
    assert "\n" not in example
    words = shlex.split(example)
    assert words[:2] == ["steatosis", name]
    assert cli.parse(words[1:]).verb_name == name


@pytest.mark.parametrize(("name", "add_arguments"), [(name, add) for name, _, add in VERBS])
def test_every_argument_says_what_it_is_and_its_default(name, add_arguments, capsys):
    text = re.sub(r"\s+", " ", help_of(name, capsys))
    for action in arguments(add_arguments):
        assert action.help, action.dest
        told = action.default not in (None, False) and action.default != []
        if told and action.option_strings:
            assert f"(default: {action.default})" in text, action.dest


def arguments(add_arguments) -> list[argparse.Action]:
    """What a verb adds to a parser, as it adds it."""
    added: list[argparse.Action] = []

    class Recorder(argparse.ArgumentParser):
        def add_argument(self, *args, **kwargs):
            added.append(super().add_argument(*args, **kwargs))
            return added[-1]

    add_arguments(Recorder(add_help=False))
    return added


def test_the_verbs_stand_in_the_order_of_the_pipeline():
    names = [name for name, *_ in VERBS]
    line = ["ingest", "manifest", "split", "roi", "records", "train", "evaluate", "predict"]
    assert [name for name in names if name in line] == line


@pytest.mark.parametrize(
    ("words", "package", "command"),
    [
        (["audit-phi", ".", "--source", "."], "pydicom", "pip install steatosis_tf"),
        (["sr", ".", "--output", "o"], "highdicom", "pip install 'steatosis_tf[pacs]'"),
    ],
)
def test_a_package_that_is_not_there_is_one_line_with_its_command(
    words, package, command, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, package, None)
    for name in [n for n in sys.modules if re.match(r"steatosis_tf\.(sources\.dicom|deploy)", n)]:
        monkeypatch.delitem(sys.modules, name)
    assert cli.main(words) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"error: Expected the package {package} for `steatosis {words[0]}`. Received: none. "
        f"Install it: {command}"
    ]
