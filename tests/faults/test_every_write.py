"""Every write of every stage fails once: disk full, a broken disk, a kill, half-way too.

Afterwards every file is the old one or the right one, nothing is half-written, the reason is said
in one line, and the same call made again ends with the files of a call that nothing disturbed.
`every_write.py` does it; in CI each short call fails at its first and at its last write.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from steatosis_tf import cli
from tests.sources.dicom.made_dicom import write_made

#: name: state of the study before the call, words of the call.
SHORT = {
    "manifest": ("raw", "manifest phantoms/labels.csv --output manifest.csv"),
    "split": ("manifest", "split manifest.csv --set split.kind=kfold split.folds=2"),
    "key": ("raw", "key project.key"),
}
LONG = {
    "consensus": ("raw", "consensus readings.csv --output labels.csv"),
    "roi": ("few", "roi manifest.csv --set roi.method=sector --masks masks"),
    "phantom": ("raw", "phantom more --patients 4 --frames 1 --seed 4"),
    "leaks": ("roi", "leaks manifest.csv --drop-copies"),
    "sheet": ("manifest", "roi manifest.csv --set roi.method=sector --sheet all.png"),
    "export-boxes": ("roi", "export-boxes manifest.csv --output boxes.json"),
    "predict": ("raw", "predict one_patient --patient folder --output answers --figures"),
    "ingest": ("dicom", "ingest export --output study --key project.key"),
    "sr": ("dicom", "sr export --output answers"),
    "records": ("roi", "records manifest.csv --output records"),
    "evaluate": ("run", "evaluate runs/linear/run"),
    "report": ("run", "report runs/linear/run --resamples 100"),
    "export": ("run", "export runs/linear/run --output model.onnx"),
}


def _call(folder: Path, words: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "steatosis_tf.cli", *words.split()],
        cwd=folder, check=True, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of the study in the state that a call needs; made once each."""
    root = tmp_path_factory.mktemp("states")

    def at(state: str) -> Path:
        folder = root / state
        if not folder.is_dir():
            _make(folder, state, at)
        return folder

    return at


def _make(folder: Path, state: str, at) -> None:
    if state == "raw":
        folder.mkdir()
        phantoms = folder / "phantoms"
        cli.main(["phantom", str(phantoms), "--patients", "16", "--frames", "1", "--seed", "3"])
        rows = [
            f"{case}.png,p{case},{case % 4},{case % 4},{min(case // 2, 3)}" for case in range(8)
        ]
        header = "path,patient_id,reader_1,reader_2,reader_3\n"
        (folder / "readings.csv").write_text(header + "\n".join(rows) + "\n")
        (folder / "one_patient").mkdir()
        for path in sorted(phantoms.rglob("*.png"))[:2]:
            shutil.copy(path, folder / "one_patient" / path.name)
    elif state == "dicom":
        folder.mkdir()
        (folder / "export").mkdir()
        for number in (1, 2):
            write_made(folder / "export" / f"{number}.dcm", number=number)
        _call(folder, SHORT["key"][1])
    elif state == "few":  # each frame is several writes, and each write several walks
        folder.mkdir()
        _call(folder, "phantom phantoms --patients 4 --frames 1 --seed 3")
        _call(folder, SHORT["manifest"][1])
    elif state == "run":  # of more patients: a rule is fitted to ten at least
        folder.mkdir()
        _call(folder, "phantom phantoms --patients 24 --frames 1 --seed 3")
        _call(folder, SHORT["manifest"][1])
        _call(folder, "train manifest.csv --recipe linear --set split.folds=4 train.seed=1")
        run = next(path.parent for path in folder.glob("runs/linear/*/config.json"))
        run.rename(run.with_name("run"))  # as deep as it was: frames lie beside its manifest's path
    else:
        before = {"manifest": "raw", "roi": "manifest"}[state]
        shutil.copytree(at(before), folder)
        if state == "manifest":
            _call(folder, SHORT["manifest"][1])
        else:
            _call(folder, "split manifest.csv --set split.kind=kfold split.folds=2")
            _call(folder, "roi manifest.csv --set roi.method=sector")


def _walk(study: Path, words: str, *options: str) -> dict:
    answer = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("every_write.py")), str(study),
         json.dumps(words.split()), *options],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return json.loads(answer.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", SHORT)
def test_the_first_and_the_last_write_of_a_short_call_fail(studies, name):
    state, words = SHORT[name]
    found = _walk(studies(state), words, "--ends", "--kinds", "ENOSPC,KILL,CUT")
    assert found.get("error") is None
    assert found["events"] >= 1
    assert found["found"] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SHORT, *LONG])
def test_every_write_of_every_call_fails_once(studies, name):
    state, words = (SHORT | LONG)[name]
    found = _walk(studies(state), words)
    assert found.get("error") is None
    assert found["events"] >= 1
    assert found["found"] == []
