"""The page on DICOM exports says what the code does."""

import re
import shlex
from pathlib import Path

from made_dicom import write_made

from steatosis_tf.cli import main
from steatosis_tf.cohort.manifest import read_manifest
from steatosis_tf.sources.dicom.ingest import ingest_dicom
from steatosis_tf.sources.dicom.scan import LABEL_COLUMNS, REJECTED_COLUMNS
from steatosis_tf.sources.pseudonym import create_key

PAGE = (Path(__file__).parents[3] / "docs" / "data_dicom.md").read_text("utf-8")


def test_the_page_names_every_column():
    missing = [name for name in (*LABEL_COLUMNS, *REJECTED_COLUMNS) if f"`{name}`" not in PAGE]
    assert missing == []


def test_the_join_of_grades_runs_as_printed(tmp_path, monkeypatch):
    write_made(tmp_path / "export" / "a", number=1, PatientID="77 A")
    write_made(tmp_path / "export" / "b", number=2, PatientID="77a")
    write_made(tmp_path / "export" / "c", number=3, PatientID="78")
    key = create_key(tmp_path / "study.key")
    ingest_dicom(tmp_path / "export", tmp_path / "cohort", key_path=key)
    (tmp_path / "grades.csv").write_text("original_patient_id,grade\n77 A,Mild\n")
    monkeypatch.chdir(tmp_path)
    (line,) = re.findall(r"^steatosis (manifest .*--grades.*)$", PAGE, re.MULTILINE)
    assert main(shlex.split(line)) == 0
    table = read_manifest(tmp_path / "cohort" / "manifest.csv")
    assert sorted(table["grade"]) == ["", "Mild", "Mild"]
    assert table.loc[table["grade"] != "", "patient_id"].nunique() == 1
