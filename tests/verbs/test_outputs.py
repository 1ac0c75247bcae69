"""No verb's output replaces an input, a device or a file of another kind: all verbs are walked.

The device is made here, in the test's own folder.
"""

import argparse
import os
import stat

import cv2
import numpy as np
import pytest

from steatosis_tf import cli
from steatosis_tf.files import check_output, replacing
from steatosis_tf.verbs import VERBS
from steatosis_tf.verbs.common import OutputDir, OutputFile

#: What verbs write: an option of one of these names has to be declared as an output.
_NAMES_OF_OUTPUTS = ("--output", "--report", "--figure", "--sheet")


def _options(verb: str) -> list[argparse.Action]:
    parser = argparse.ArgumentParser()
    dict((name, add) for name, _, add in VERBS)[verb](parser)
    parser.add_argument("--report")
    return [action for action in parser._actions if action.dest != "help"]


def _is_output(action: argparse.Action) -> bool:
    kind = action.type if isinstance(action.type, type) else str
    return "--report" in action.option_strings or issubclass(kind, OutputFile | OutputDir)


def _calls() -> list[tuple[str, str]]:
    """Every verb with every output that it has: option or name of the positional."""
    return [
        (verb, (action.option_strings or [action.dest])[0])
        for verb, _, _ in VERBS
        for action in _options(verb)
        if _is_output(action)
    ]


def _words(verb: str, output: str, output_path, given) -> list[str]:
    """A call of the verb that writes to `output_path`; everything that it needs is `given`."""
    words = [verb]
    for action in _options(verb):
        name = (action.option_strings or [action.dest])[0]
        value = str(output_path) if name == output else str(given)
        if name != output and action.choices:
            value = next(iter(action.choices))
        if name != output and _is_output(action):
            value = str(given.parent / "new")
        if not action.option_strings:
            words.append(value)
        elif action.required or name == output:
            words += [name, value]
    return words


@pytest.fixture
def given(tmp_path):
    """A file to read that no verb can work with: what is refused is refused before the work."""
    path = tmp_path / "given.dat"
    path.write_bytes(b"\x00no table, no model, no frame\xff")
    return path


@pytest.fixture
def device(tmp_path):
    path = tmp_path / "device.csv"
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root may make a device")
    return path


def _refused(words, capsys) -> str:
    assert cli.main(words) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_every_output_is_declared_as_one():
    undeclared = [
        (verb, name)
        for verb, _, _ in VERBS
        for action in _options(verb)
        for name in action.option_strings
        if name in _NAMES_OF_OUTPUTS and action.nargs != 0 and not _is_output(action)
    ]
    assert undeclared == []
    assert {verb for verb, output in _calls() if output == "--report"} == {v for v, *_ in VERBS}


@pytest.mark.parametrize(("verb", "output"), _calls())
def test_a_device_is_never_replaced(verb, output, given, device, capsys):
    error = _refused(_words(verb, output, device, given), capsys)
    assert "error: Expected a" in error
    assert "'device.csv', which is" in error
    assert stat.S_ISCHR(device.stat().st_mode)


@pytest.mark.parametrize(("verb", "output"), _calls())
def test_a_pipe_behind_a_link_is_never_replaced(verb, output, given, tmp_path, capsys):
    pipe, link = tmp_path / "pipe", tmp_path / "link.json"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    error = _refused(_words(verb, output, link, given), capsys)
    assert "'link.json', which is" in error
    assert link.is_symlink()
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize(("verb", "output"), _calls())
def test_an_input_is_never_replaced(verb, output, given, tmp_path, capsys):
    before = given.read_bytes()
    error = _refused(_words(verb, output, given, given), capsys)
    # A key is no input of the verb that makes it: that one replaces no file at all.
    assert "'given.dat', " in error or verb == "key"
    assert given.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"given.dat"}


def test_a_model_a_frame_of_a_folder_and_a_file_of_a_run_stay(tmp_path, capsys):
    frames, run = tmp_path / "frames", tmp_path / "run"
    for folder in (frames, run):
        folder.mkdir()
    cv2.imwrite(str(frames / "a.png"), np.zeros((64, 64), np.uint8))
    model = tmp_path / "model.onnx"
    for path in (model, run / "model.keras", run / "config.json"):
        path.write_text("{}")
    (run / "seconds.json").write_text("5")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for words in (
        ["predict", frames, "--model", model, "--output", model],
        ["predict", frames, "--model", model, "--output", frames / "a.png"],
        ["predict", frames, "--model", model, "--report", frames / "a.png"],
        ["export", run, "--output", run / "model.keras"],
        ["evaluate", run, "--report", run / "config.json"],
        ["evaluate", run, "--report", run / "seconds.json"],
    ):
        assert "Expected" in _refused([str(word) for word in words], capsys)
        after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert after == before


def test_a_sheet_is_not_drawn_over_a_frame(phantom_manifest, capsys):
    frame = next((phantom_manifest.parent / "phantoms" / "images").iterdir())
    before = frame.read_bytes(), phantom_manifest.read_bytes()
    error = _refused(["roi", str(phantom_manifest), "--sheet", str(frame)], capsys)
    assert "none of the inputs" in error
    assert (frame.read_bytes(), phantom_manifest.read_bytes()) == before


def test_a_report_replaces_an_earlier_one(tmp_path, capsys):
    report = tmp_path / "report.json"
    for _ in range(2):
        assert cli.main(["info", "--report", str(report)]) == 0
    capsys.readouterr()
    # a refused output is reported like any failure
    words = ["manifest", str(report), "--output", str(report), "--report", str(tmp_path / "r.json")]
    assert "is read" in _refused(words, capsys)
    assert "is read" in (tmp_path / "r.json").read_text()


def test_every_writer_leaves_a_device_alone(device):
    with pytest.raises(ValueError, match=r"regular file.*'device\.csv'"), replacing(device):
        pass
    assert stat.S_ISCHR(device.stat().st_mode)
    assert [path.name for path in device.parent.iterdir()] == ["device.csv"]


def test_a_new_file_and_one_of_its_kind_may_be_written(tmp_path):
    table = tmp_path / "Table.CSV"
    check_output(table, [table], suffixes=(".csv",))  # not there: nothing can be lost
    for name in ("table.xlsx", "table"):
        with pytest.raises(ValueError, match=rf"ends with \.csv\. Received: '{name}',"):
            check_output(tmp_path / name, suffixes=(".csv",))
    table.write_text("")
    check_output(table, [tmp_path / "gone.csv"], suffixes=(".csv",))
    with pytest.raises(ValueError, match=r"ends with \.onnx or \.json.*'Table\.CSV'"):
        check_output(table, suffixes=(".onnx", ".json"))
    hard = tmp_path / "other_name.csv"
    hard.hardlink_to(table)
    with pytest.raises(ValueError, match=r"none of the inputs.*'other_name\.csv'"):
        check_output(hard, [table])
