"""The command line: exit codes, streams, and what it must not import."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from steatosis_tf import __version__, cli
from steatosis_tf.cohort.manifest import read_manifest
from steatosis_tf.files import write_sums


def test_info_names_versions_and_is_quick(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["steatosis_tf"] == __version__
    assert values["grades"] == ["Normal", "Mild", "Moderate", "Severe"]
    assert "not a medical device" in values["notice"]


@pytest.mark.parametrize("words", ["info", "--help", "predict --help"])
def test_cheap_calls_import_nothing_heavy(words: str) -> None:
    code = (
        "import sys\nfrom steatosis_tf import cli\n"
        "try:\n    cli.main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('tensorflow', 'mlflow', 'cv2', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words.split()], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "words", [["no-such-verb"], ["manifest"], ["predict", "--model", "m.onnx"]]
)
def test_bad_calls_exit_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 2
    assert capsys.readouterr().out == ""


def test_failure_exits_with_1_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    missing = tmp_path / "labels.csv"
    code = cli.main(
        ["manifest", str(missing), "--output", str(tmp_path / "m.csv"), "--report", str(report)]
    )
    captured = capsys.readouterr()
    assert code == 1
    assert captured.out == ""
    assert "error: " in captured.err
    assert "labels.csv" in captured.err
    assert json.loads(report.read_text())["exit_code"] == 1


def test_what_the_system_refuses_is_said_without_the_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "jane_doe"
    folder.write_text("a file where a folder is expected")
    labels = tmp_path / "labels.csv"
    labels.write_text("path,patient_id,grade\na.png,1,0\n")
    assert cli.main(["manifest", str(labels), "--output", str(folder / "study" / "m.csv")]) == 1
    said = capsys.readouterr().err
    assert "jane_doe" not in said
    assert said.startswith("error: Expected files that can be read and written. Received: ")


def test_check_tables_exits_with_1_on_the_source_paper(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = {
        "grades": ["Normal", "Mild", "Moderate", "Severe"],
        "confusion_matrix": [[272, 8, 0, 0], [7, 225, 18, 0], [0, 11, 244, 5], [0, 0, 3, 204]],
        "n": 1000,
        "accuracy": 0.945,
    }
    file = tmp_path / "paper.json"
    file.write_text(json.dumps(tables))
    assert cli.main(["check-tables", str(file), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["consistent"] is False
    assert any("997" in finding["recomputed"] for finding in found["findings"])
    tables |= {"n": 997, "accuracy": 945 / 997}
    file.write_text(json.dumps(tables))
    assert cli.main(["check-tables", str(file)]) == 0


def test_verify_names_the_frame_and_the_file_that_changed(tmp_path, phantom_manifest, capsys):
    study = tmp_path / "study"
    shutil.copytree(phantom_manifest.parent, study)
    write_sums(study)
    assert (
        cli.main(["verify", str(study)]) == cli.main(["verify", str(study / "manifest.csv")]) == 0
    )
    row = read_manifest(study / "manifest.csv").iloc[3]
    cv2.imwrite(str(study / row["path"]), np.zeros((400, 400), np.uint8))
    capsys.readouterr()
    assert cli.main(["verify", "--json", str(study)]) == 1
    assert json.loads(capsys.readouterr().out)["faults"] == {row["path"]: "changed"}
    assert cli.main(["verify", "--json", str(study / "manifest.csv")]) == 1
    assert json.loads(capsys.readouterr().out)["faults"] == {
        row["frame_id"]: "other pixels than when the manifest was made"
    }
    assert cli.main(["verify", str(tmp_path)]) == 1
    assert "Expected a folder with SHA256SUMS" in capsys.readouterr().err


def started(*words: str, **settings: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "steatosis_tf.cli", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **settings},
        # Jobs in the background of a shell ignore Ctrl+C, and hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    process = started("info")
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_an_answer_that_goes_to_a_full_disk_ends_in_one_line() -> None:
    words = [sys.executable, "-m", "steatosis_tf.cli", "info"]
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: Expected room on the disk.")
    assert done.stderr.count("\n") == 1


def test_a_terminal_of_ascii_gets_names_spelled_out(tmp_path: Path) -> None:
    output = str(tmp_path / "manifest.csv")
    process = started("manifest", "büro.csv", "--output", output, PYTHONIOENCODING="ascii")
    assert "b\\xfcro.csv" in process.communicate()[1]
    assert process.returncode == 1


def test_ctrl_c_ends_in_one_line(tmp_path: Path) -> None:
    process = started("phantom", str(tmp_path / "phantoms"), "--patients", "100000",
                      TQDM_DELAY="0")  # fmt: skip
    assert process.stderr.read(8).strip() == "phantom"  # its progress: it is at work
    process.send_signal(signal.SIGINT)
    complaints = process.communicate(timeout=60)[1]
    assert complaints.splitlines()[-1] == "error: interrupted"
    assert "Traceback" not in complaints
    assert process.returncode == 130


def test_no_verb_prints_the_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([])
    assert "manifest" in capsys.readouterr().out


def test_an_unknown_verb_suggests_the_nearest(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["manifst", "labels.csv"])
    assert "Did you mean manifest?" in capsys.readouterr().err
