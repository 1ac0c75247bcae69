"""The page on DICOM exports says what the code does."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
from made_dicom import write_made

from steatosis_tf.sources.dicom.ingest import ingest_dicom
from steatosis_tf.sources.dicom.scan import LABEL_COLUMNS, REJECTED_COLUMNS
from steatosis_tf.sources.pseudonym import create_key

PAGE = (Path(__file__).parents[3] / "docs" / "data_dicom.md").read_text("utf-8")


def test_the_page_names_every_column():
    missing = [name for name in (*LABEL_COLUMNS, *REJECTED_COLUMNS) if f"`{name}`" not in PAGE]
    assert missing == []


def test_the_join_of_grades_runs_as_printed(tmp_path):
    write_made(tmp_path / "export" / "a", number=1, PatientID="77 A")
    write_made(tmp_path / "export" / "b", number=2, PatientID="77a")
    write_made(tmp_path / "export" / "c", number=3, PatientID="78")
    key = create_key(tmp_path / "study.key")
    ingest_dicom(tmp_path / "export", tmp_path / "cohort", key_path=key)
    (tmp_path / "grades.csv").write_text("original_patient_id,grade\n77 A,Mild\n")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    labels = pd.read_csv(tmp_path / "cohort" / "labels.csv", dtype=str)
    assert len(labels) == 3
    assert labels.groupby("patient_id")["grade"].first().dropna().tolist() == ["Mild"]
    assert labels["grade"].notna().sum() == 2
