"""`ingest_dicom` from the outside: tables, identity, resuming, refusals."""

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import cv2
import filelock
import numpy as np
import pandas as pd
import pytest
from made_dicom import UID_ROOT, made_frame, region, table, write_made
from pydicom.data import get_testdata_file
from pydicom.sequence import Sequence

from steatosis_tf.cli import main
from steatosis_tf.cohort.manifest import build_manifest, read_manifest
from steatosis_tf.files import rejected_beside
from steatosis_tf.grades import GRADES
from steatosis_tf.sources.dicom.audit import audit_phi
from steatosis_tf.sources.dicom.ingest import ingest_dicom
from steatosis_tf.sources.pseudonym import create_key
from steatosis_tf.sources.tables import read_rejected


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_row_of_a_file(source, key, tmp_path):
    write_made(source / "DOE_JOHN.dcm")
    ingest_dicom(source, tmp_path / "out", key_path=key, keep_region=True)
    (row,) = table(tmp_path / "out" / "labels.csv")
    assert (tmp_path / "out" / row["path"]).is_file()
    assert row["frame_index"] == "0"
    assert row["manufacturer"] == "GE Healthcare"
    assert row["model"] == "LOGIQ E9"
    assert row["transducer_frequency_mhz"] == "3.5"
    assert row["pixel_width_mm"] == "0.2"
    assert row["pixel_height_mm"] == "0.3"
    assert row["sex"] == "M"
    assert row["age"] == "69"
    assert row["days_since_first_study"] == "0"
    (log,) = table(tmp_path / "out" / "deidentification.csv")
    assert log["source_id"] == row["source_id"]
    assert log["kept_by"] == "region"
    box = [log[name] for name in ("kept_top", "kept_left", "kept_height", "kept_width")]
    assert box == ["24", "20", "88", "120"]
    assert log["kept_percent"] == "55.0"  # 88 x 120 of 120 x 160 px
    assert log["fields_kept"].split() == [
        "manufacturer", "model", "transducer_frequency_mhz", "pixel_height_mm", "pixel_width_mm",
        "sex", "age",
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Invalid value for VR")  # pydicom, as the file is made
@pytest.mark.parametrize(
    ("age", "birth", "expected"),
    [
        ("092Y", "19280101", "89"),
        ("089Y", None, "89"),
        ("018M", None, "1"),
        (None, "19500311", "69"),  # the day before the 70th birthday
        (None, "19500310", "70"),
        (None, "18990101", "89"),
        (None, None, ""),
        ("old", "unknown", ""),
    ],
)
def test_age_is_in_years_and_capped_at_89(source, key, tmp_path, age, birth, expected):
    write_made(source / "a", PatientAge=age, PatientBirthDate=birth)
    ingest_dicom(source, tmp_path / "out", key_path=key)
    assert table(tmp_path / "out" / "labels.csv")[0]["age"] == expected


def test_days_count_from_the_first_study_even_if_its_picture_is_rejected(source, key, tmp_path):
    m_mode = Sequence([region(spatial=2)])
    write_made(source / "a", number=1, StudyDate="20191231", SequenceOfUltrasoundRegions=m_mode)
    write_made(source / "b", number=2, StudyDate="20200301", StudyInstanceUID=f"{UID_ROOT}.1.2")
    write_made(source / "c", number=3, StudyDate="20200302", PatientID="other")
    future = {"StudyDate": "29990101", "ContentDate": None}
    write_made(source / "d", number=4, **future, StudyInstanceUID=f"{UID_ROOT}.1.3")
    ingest_dicom(source, tmp_path / "out", key_path=key)
    days = sorted(row["days_since_first_study"] for row in table(tmp_path / "out" / "labels.csv"))
    assert days == ["", "0", "61"]  # 31 December to 1 March of a leap year


def test_two_spellings_are_one_patient(source, key, tmp_path):
    write_made(source / "a", number=1, PatientID="MRN 0012345", PatientName="DOE^JOHN")
    write_made(source / "b", number=2, PatientID="mrn0012345 ", PatientName="Doe^John ")
    summary = ingest_dicom(source, tmp_path / "out", key_path=key)
    assert summary.num_patients == 1
    (finding,) = table(tmp_path / "out" / "patient_findings.csv")
    assert finding["finding"] == "one id in several spellings"


@pytest.mark.parametrize(
    ("first", "second", "finding", "num_patients"),
    [
        ({}, {"PatientName": "Roe^John"}, "one id with several names", 1),
        ({}, {"PatientName": "Roe^Jane"}, "one id with several names", 0),
        ({}, {"PatientBirthDate": "19610203"}, "one id with several birth dates", 0),
        (
            {"IssuerOfPatientID": "HOSPITAL A"},
            {"IssuerOfPatientID": "HOSPITAL B"},
            "one id of several issuers",
            0,
        ),
        ({}, {"PatientID": "77"}, "one name and birth date under several ids", 2),
        (
            {"PatientID": "0077", "PatientName": "A^B"},
            {"PatientID": "77"},
            "ids that differ by leading zeros only",
            2,
        ),
        ({}, {"PatientID": "X1", "PatientName": "A^B"}, "one study under several patients", 2),
    ],
)
def test_doubtful_identities_are_reported(
    source, key, tmp_path, first, second, finding, num_patients
):
    write_made(source / "a", number=1, **first)
    write_made(source / "b", number=2, **second)
    summary = ingest_dicom(source, tmp_path / "out", key_path=key)
    findings = table(tmp_path / "out" / "patient_findings.csv")
    assert finding in [row["finding"] for row in findings]
    assert summary.num_findings == len(findings)
    assert summary.num_patients == num_patients
    assert sum("two people" in reason for reason in summary.reasons) == (num_patients == 0)


def test_without_an_id_name_and_birth_date_stand_in(source, key, tmp_path):
    write_made(source / "a", number=1, PatientID="", PatientName="DOE^JOHN")
    write_made(source / "b", number=2, PatientID=None, PatientName="Doe^John ")
    write_made(source / "c", number=3, PatientID="", PatientBirthDate="")
    summary = ingest_dicom(source, tmp_path / "out", key_path=key)
    assert (summary.num_files_used, summary.num_patients) == (2, 1)
    assert [reason for reason in summary.reasons if "patient unknown" in reason]


def test_the_table_beside_the_key_leads_back_to_the_files(source, key, tmp_path):
    write_made(source / "ward 3" / "Müller.dcm", number=1)
    (source / "notes.txt").write_text("x")
    summary = ingest_dicom(source, tmp_path / "out", key_path=key)
    assert summary.private_path.parent == key.parent
    assert summary.private_path.stat().st_mode & 0o777 == 0o600
    rows = {row["file"]: row for row in table(summary.private_path)}
    (label,) = table(tmp_path / "out" / "labels.csv")
    (rejected,) = table(tmp_path / "out" / "rejected.csv")
    assert rows["ward 3/Müller.dcm"]["source_id"] == label["source_id"]
    assert rows["ward 3/Müller.dcm"]["patient_id"] == label["patient_id"]
    assert rows["ward 3/Müller.dcm"]["original_patient_id"] == "MRN 0012345"
    assert rows["notes.txt"]["source_id"] == rejected["source_id"]
    other = tmp_path / "other"
    write_made(other / "z")
    ingest_dicom(other, tmp_path / "out2", key_path=key)
    assert {row["file"] for row in table(summary.private_path)} == {*rows, "z"}


def test_pseudonyms_need_the_key_and_stay_the_same_with_it(source, key, tmp_path):
    write_made(source / "a")
    other_key = create_key(tmp_path / "other.key")
    ids = []
    for number, path in enumerate((key, key, other_key)):
        ingest_dicom(source, tmp_path / f"out{number}", key_path=path)
        ids.append(table(tmp_path / f"out{number}" / "labels.csv")[0]["patient_id"])
    assert ids[0] == ids[1] != ids[2]


def test_a_zip_gives_the_same_as_its_folder(source, key, tmp_path):
    for number in (1, 2, 3):
        write_made(source / f"P{number}" / "IM1", number=number, PatientID=f"P{number}")
    with zipfile.ZipFile(tmp_path / "export.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(source.rglob("IM1")):
            archive.write(path, path.relative_to(source))
    ingest_dicom(source, tmp_path / "out1", key_path=key)
    ingest_dicom(tmp_path / "export.zip", tmp_path / "out2", key_path=key)
    first, second = contents(tmp_path / "out1"), contents(tmp_path / "out2")
    del first["ingest_journal.jsonl"], second["ingest_journal.jsonl"]  # stamps differ
    assert first == second


def test_running_twice_changes_no_byte(source, key, tmp_path):
    for number in range(4):
        write_made(source / f"{number}", number=number, PatientID=f"P{number % 2}")
    (source / "bad").write_bytes(b"")
    ingest_dicom(source, tmp_path / "out", key_path=key)
    first = contents(tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "images").iterdir()}
    ingest_dicom(source, tmp_path / "out", key_path=key)
    assert contents(tmp_path / "out") == first
    assert {path: path.stat().st_mtime_ns for path in before} == before  # nothing decoded again


def test_a_damaged_image_is_written_again(source, key, tmp_path):
    write_made(source / "a")
    ingest_dicom(source, tmp_path / "out", key_path=key)
    first = contents(tmp_path / "out")
    (image,) = (tmp_path / "out" / "images").iterdir()
    image.write_bytes(image.read_bytes()[:40])
    ingest_dicom(source, tmp_path / "out", key_path=key)
    assert contents(tmp_path / "out") == first


def test_other_frames_replace_the_earlier_ones(source, key, tmp_path):
    clip = np.stack([made_frame(seed) for seed in range(6)])
    write_made(source / "a", clip)
    ingest_dicom(source, tmp_path / "out", key_path=key)
    ingest_dicom(source, tmp_path / "out", key_path=key, frame_choice="every:3")
    rows = table(tmp_path / "out" / "labels.csv")
    assert [row["frame_index"] for row in rows] == ["0", "3"]
    images = {f"images/{path.name}" for path in (tmp_path / "out" / "images").iterdir()}
    assert images == {row["path"] for row in rows}


def test_a_killed_ingest_ends_like_an_undisturbed_one(source, key, tmp_path):
    """kill -9 at three different moments, then one run to the end."""
    clip = np.stack([np.tile(made_frame(seed), (4, 4)) for seed in range(8)])
    for number in range(10):
        write_made(source / f"IM{number}", clip, number=number, PatientID=f"P{number % 3}")
    ingest_dicom(source, tmp_path / "calm", key_path=key)
    script = (
        "import sys; from steatosis_tf.sources.dicom.ingest import ingest_dicom; "
        "ingest_dicom(sys.argv[1], sys.argv[2], key_path=sys.argv[3])"
    )
    images = tmp_path / "killed" / "images"
    endings = []
    for num_images in (3, 20, 45):
        run = subprocess.Popen(
            [sys.executable, "-c", script, str(source), str(tmp_path / "killed"), str(key)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        deadline = time.monotonic() + 60
        while run.poll() is None and time.monotonic() < deadline:
            if images.is_dir() and len(list(images.iterdir())) >= num_images:
                run.send_signal(signal.SIGKILL)
                break
            time.sleep(0.001)
        endings.append(run.wait())
    # On a machine that stalls, a later run may be done before it is looked at.
    assert endings[0] == -signal.SIGKILL
    assert set(endings) <= {-signal.SIGKILL, 0}
    with (tmp_path / "killed" / "ingest_journal.jsonl").open("a") as journal:
        journal.write('{"file": "half a li')  # a kill within the write itself
    ingest_dicom(source, tmp_path / "killed", key_path=key)
    calm, killed = contents(tmp_path / "calm"), contents(tmp_path / "killed")
    assert calm == killed
    assert len(calm) == 80 + 7


@pytest.mark.parametrize("choice", ["", "some", "every:0", "every:-1", "evenly:", "all:3"])
def test_an_unknown_frame_choice_is_refused(source, key, tmp_path, choice):
    with pytest.raises(ValueError, match="Expected frames as all, every:N"):
        ingest_dicom(source, tmp_path / "out", key_path=key, frame_choice=choice)
    assert not (tmp_path / "out").exists()


def test_a_missing_key_is_refused_before_anything_is_written(source, tmp_path):
    write_made(source / "a")
    with pytest.raises(ValueError, match="Expected a readable key file"):
        ingest_dicom(source, tmp_path / "out", key_path=tmp_path / "absent.key")
    assert not (tmp_path / "out").exists()


def test_another_key_is_refused_for_the_same_output(source, key, tmp_path):
    write_made(source / "a")
    ingest_dicom(source, tmp_path / "out", key_path=key)
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match="Expected the key that this output was begun with"):
        ingest_dicom(source, tmp_path / "out", key_path=create_key(tmp_path / "other.key"))
    assert contents(tmp_path / "out") == before


def test_an_output_folder_with_other_files_is_refused(source, key, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.doc").write_text("x")
    with pytest.raises(ValueError, match="Expected an output folder that is empty"):
        ingest_dicom(source, tmp_path / "out", key_path=key)


def test_two_ingests_do_not_write_one_output(source, key, tmp_path):
    write_made(source / "a")
    (tmp_path / "out").mkdir()
    with (
        filelock.FileLock(tmp_path / "out" / "ingest.lock"),
        pytest.raises(ValueError, match="no other ingest is writing"),
    ):
        ingest_dicom(source, tmp_path / "out", key_path=key)


@pytest.mark.parametrize("role", ["output", "source"])
def test_a_key_inside_a_data_folder_is_refused(source, tmp_path, role):
    folder = source if role == "source" else tmp_path / "out"
    folder.mkdir(exist_ok=True)
    key = create_key(folder / "study.key")
    with pytest.raises(ValueError, match=f"outside the {role}"):
        ingest_dicom(source, tmp_path / "out", key_path=key)


def test_output_inside_the_source_is_refused(source, key):
    with pytest.raises(ValueError, match="apart from each other"):
        ingest_dicom(source, source / "out", key_path=key)


def test_a_missing_source_is_refused(tmp_path, key):
    with pytest.raises(ValueError, match="Expected a folder or a zip archive"):
        ingest_dicom(tmp_path / "absent", tmp_path / "out", key_path=key)


def test_an_empty_folder_gives_empty_tables(source, key, tmp_path):
    summary = ingest_dicom(source, tmp_path / "out", key_path=key)
    assert (summary.num_files, summary.num_frames) == (0, 0)
    assert (tmp_path / "out" / "labels.csv").read_text().startswith("path,patient_id,study_id,")


def test_an_export_of_which_nothing_can_be_used_is_no_success(source, key, tmp_path, capsys):
    write_made(source / "a", BurnedInAnnotation="YES")
    verb = ["ingest", str(source), "--output", str(tmp_path / "out"), "--key", str(key)]
    assert main(verb) == 1
    shown = capsys.readouterr().out
    assert shown.startswith("0 of 1 files used")
    assert "now:" not in shown


def test_the_cine_loop_of_pydicom(source, key, tmp_path):
    """Its stated region reaches beyond the picture, so the sector is found instead."""
    name = "examples_ybr_color.dcm"
    (source / name).write_bytes(Path(get_testdata_file(name, download=False)).read_bytes())
    summary = ingest_dicom(source, tmp_path / "out", key_path=key, frame_choice="evenly:5")
    assert summary.num_frames == 5
    rows = table(tmp_path / "out" / "labels.csv")
    assert [row["frame_index"] for row in rows] == ["3", "9", "15", "21", "27"]
    assert {row["manufacturer"] for row in rows} == {"SonoSite, Inc."}
    (log,) = table(tmp_path / "out" / "deidentification.csv")
    assert log["kept_by"] == "sector"
    assert 15 < float(log["kept_percent"]) < 45


def test_the_labels_make_a_manifest_without_a_fault(source, key, tmp_path):
    """The table is what the next step of the line reads; grades are joined in between."""
    for number in range(6):
        write_made(source / f"{number}", number=number, PatientID=f"P{number // 2}")
    ingest_dicom(source, tmp_path / "cohort", key_path=key)
    labels = pd.read_csv(tmp_path / "cohort" / "labels.csv", dtype=str)
    grades = dict(zip(sorted(labels["patient_id"].unique()), GRADES, strict=False))
    labels.assign(grade=labels["patient_id"].map(grades)).to_csv(
        tmp_path / "cohort" / "labels.csv", index=False
    )
    manifest_path = tmp_path / "study" / "manifest.csv"
    manifest_path.parent.mkdir()
    build_manifest(tmp_path / "cohort" / "labels.csv", manifest_path, strict=True)
    manifest = read_manifest(manifest_path)
    assert len(manifest) == 6
    assert manifest["grade"].nunique() == 3
    assert set(manifest["model"]) == {"LOGIQ E9"}


def test_each_manifest_and_the_ingest_keep_their_own_rejected(source, key, tmp_path):
    """All write into one folder; none loses what the other found, and a flow begins with all."""
    cohort = tmp_path / "cohort"
    for number in range(3):
        write_made(source / f"{number}", number=number, PatientID=f"P{number}")
    (source / "bad").write_bytes(b"")
    ingest_dicom(source, cohort, key_path=key)
    by_ingest = table(cohort / "rejected.csv")
    assert [row["reason"] for row in by_ingest] == ["empty file (0 bytes); export it again"]
    labels = pd.read_csv(cohort / "labels.csv", dtype=str).assign(grade=["Mild", "Grave", "Mild"])
    labels.to_csv(cohort / "labels.csv", index=False)

    outputs = [cohort / "manifest.csv", tmp_path / "study" / "manifest.csv", cohort / "other.csv"]
    for output in outputs:
        summary = build_manifest(cohort / "labels.csv", output)
        assert (summary.num_rejected, summary.num_rejected_before) == (1, 1)
        labels.assign(grade="Mild").to_csv(cohort / "labels.csv", index=False)
        by_manifest, carried = table(rejected_beside(output))
        assert by_manifest["row"] == "3"
        assert "unknown grade 'Grave'" in by_manifest["reason"]
        assert {name: carried[name] for name in by_ingest[0]} == by_ingest[0]
        labels.to_csv(cohort / "labels.csv", index=False)
    assert len({rejected_beside(output) for output in outputs}) == 3

    before = contents(cohort)
    ingest_dicom(source, cohort, key_path=key)
    assert contents(cohort) == before
    assert table(cohort / "rejected.csv") == by_ingest


def test_the_one_table_of_an_earlier_version_is_still_read(source, key, tmp_path):
    """There `rejected.csv` of an ingest also held what the manifests beside it left out."""
    cohort = tmp_path / "cohort"
    write_made(source / "a", number=1)
    (source / "bad").write_bytes(b"")
    ingest_dicom(source, cohort, key_path=key)
    rejected = pd.read_csv(cohort / "rejected.csv", dtype=str, keep_default_na=False)
    by_manifest = {"patient_id": "P9", "reason": "unknown grade", "row": "3", "path": "gone.png"}
    both = pd.concat([pd.DataFrame([by_manifest]), rejected]).fillna("")
    both.to_csv(cohort / "rejected.csv", index=False)
    ingest_dicom(source, cohort, key_path=key)  # again: the row of the manifest stays
    assert len(read_rejected(rejected_beside(cohort / "manifest.csv"))) == 2
    assert build_manifest(cohort / "labels.csv", cohort / "manifest.csv").num_rejected_before == 1
    (carried,) = table(rejected_beside(cohort / "manifest.csv"))
    assert carried["code"] == "empty_file"


def test_the_sector_is_kept_of_a_stated_region_unless_told(source, key, tmp_path):
    frame = made_frame(1)
    cv2.putText(frame, "DOE", (22, 36), cv2.FONT_HERSHEY_SIMPLEX, 0.4, 255, 1)  # beside the fan
    write_made(source / "a", frame)
    ingest_dicom(source, tmp_path / "sector", key_path=key)
    ingest_dicom(source, tmp_path / "region", key_path=key, keep_region=True)
    beside = {}
    for name, kept_by in (("sector", "both"), ("region", "region")):
        (row,) = table(tmp_path / name / "deidentification.csv")
        assert row["kept_by"] == kept_by
        (path,) = (tmp_path / name / "images").iterdir()
        beside[name] = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)[26:38, 22:46].max()
    assert beside == {"sector": 0, "region": 255}


def test_frames_where_text_remains_are_named(source, key, tmp_path, capsys):
    frame = cv2.resize(made_frame(1), None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    clip = np.stack([frame, frame])
    wide = Sequence([region((80, 96, 559, 447))])
    cv2.putText(clip[1], "STEATOSIS", (250, 300), cv2.FONT_HERSHEY_SIMPLEX, 1.0, 255, 2)
    write_made(source / "a", clip, SequenceOfUltrasoundRegions=wide)
    summary = ingest_dicom(source, tmp_path / "out", key_path=key)
    paths = [row["path"] for row in table(tmp_path / "out" / "labels.csv")]
    assert summary.marked == (paths[1],)
    assert table(tmp_path / "out" / "deidentification.csv")[0]["frames_with_marks"] == "1"
    verb = ["ingest", source, "--output", tmp_path / "out", "--key", key, "--sheet"]
    assert main([str(word) for word in verb]) == 0
    shown = capsys.readouterr().out
    assert "warning: text or other marks remain in 1 frames; look at them" in shown
    assert paths[1] in shown
    (sheet,) = (tmp_path / "out" / "sheets").iterdir()
    picture = cv2.imread(str(sheet))
    first, second, third = (picture[:150, 204 * n : 204 * n + 200] for n in range(3))
    assert first.max() > 100 < second.max()
    assert third.max() == 0
    assert len(picture) == 166  # one row, as high as its frames and their names
    blue, _, red = picture[150:, 204:404].reshape(-1, 3).max(axis=0)
    assert red > blue  # MARKS in orange
    assert audit_phi(tmp_path / "out", source) == []
    ingest_dicom(source, tmp_path / "out", key_path=key, frame_choice="every:2")
    assert not list((tmp_path / "out" / "sheets").iterdir())  # they showed a frame that is gone


def test_a_truncated_copy_leaves_the_whole_file(source, key, tmp_path):
    clip = np.stack([made_frame(seed) for seed in range(3)])
    whole = write_made(source / "b", clip).read_bytes()
    (source / "a").write_bytes(whole[:-20_000])
    (source / "c").write_bytes(whole)
    summary = ingest_dicom(source, tmp_path / "out", key_path=key)
    assert summary.num_frames == 3
    codes = sorted(row["code"] for row in table(tmp_path / "out" / "rejected.csv"))
    assert codes == ["copy", "cut_copy"]


def test_one_file_is_a_source(source, key, tmp_path):
    path = write_made(source / "a.dcm")
    write_made(source / "b.dcm", number=2)
    assert ingest_dicom(path, tmp_path / "out", key_path=key).num_files == 1
    assert ingest_dicom(source, tmp_path / "all", key_path=key).num_files == 2
    one, both = (table(tmp_path / name / "labels.csv") for name in ("out", "all"))
    assert one[0] in both


def test_a_second_ingest_keeps_joined_grades(source, key, tmp_path):
    write_made(source / "a", number=1)
    write_made(source / "b", number=2, PatientID="other")
    out = tmp_path / "out"
    ingest_dicom(source, out, key_path=key)
    labels = pd.read_csv(out / "labels.csv", dtype=str)
    labels["grade"], labels["site"] = ["Mild", "Severe"], ["A", "B"]
    labels.to_csv(out / "labels.csv", index=False)
    before = {row["path"]: row for row in table(out / "labels.csv")}
    write_made(source / "c", np.stack([made_frame(7)] * 2), number=3)
    write_made(source / "later", made_frame(8), number=4, StudyInstanceUID="1.2.3.9")
    ingest_dicom(source, out, key_path=key)
    after = table(out / "labels.csv")
    later = [row for row in after if row["study_id"] not in set(labels["study_id"])]
    assert [row["grade"] for row in later] == [""]  # another visit, another grade
    grades = {row["patient_id"]: row["grade"] for row in before.values()}
    assert len(after) == 5
    known = [row for row in after if row not in later]
    assert [row["grade"] for row in known] == [grades[row["patient_id"]] for row in known]
    assert [row["site"] for row in after if row["path"] in before] == [
        before[row["path"]]["site"] for row in after if row["path"] in before
    ]
    write_made(source / "b", number=2, PatientID="other", BurnedInAnnotation="YES")
    with pytest.raises(ValueError, match=r"every graded patient of labels\.csv in the export"):
        ingest_dicom(source, out, key_path=key)
    assert table(out / "labels.csv") == after
    emptied = next(row["path"] for row in after if row["grade"] == "Mild")
    labels = pd.DataFrame(after)
    labels.loc[labels["path"] == emptied, "grade"] = ""
    labels.to_csv(out / "labels.csv", index=False)
    write_made(source / "b", number=2, PatientID="other")
    ingest_dicom(source, out, key_path=key)
    assert next(row["grade"] for row in table(out / "labels.csv") if row["path"] == emptied) == ""


def test_another_export_does_not_take_the_place_of_the_first(source, key, tmp_path):
    write_made(source / "a", number=1)
    write_made(source / "b", number=2, PatientID="other")
    out = tmp_path / "out"
    ingest_dicom(source, out, key_path=key)
    before = sorted(out.rglob("*.png"))
    with pytest.raises(ValueError, match=r"1 who are not.*One output holds one export"):
        ingest_dicom(write_made(tmp_path / "next", number=3), out, key_path=key)
    assert sorted(out.rglob("*.png")) == before
    write_made(source / "b", number=2, PatientID="other", BurnedInAnnotation="YES")
    assert ingest_dicom(source, out, key_path=key).num_patients == 1  # known, and left out


def test_labels_that_a_spreadsheet_has_saved_keep_their_grades(source, key, tmp_path):
    write_made(source / "a", number=1)
    labels = tmp_path / "out" / "labels.csv"
    ingest_dicom(source, tmp_path / "out", key_path=key)
    head, row = labels.read_text().splitlines()
    labels.write_text(f"\ufeff{head},grade\r\n{row},Mild\r\n".replace(",", ";"))
    ingest_dicom(source, tmp_path / "out", key_path=key)
    assert [row["grade"] for row in table(labels)] == ["Mild"]
    faulty = (
        (f"{head},grade\n{row},m\xe4\xdfig\n", "save as 'CSV UTF-8'"),
        (f"{head},grade\n{row},12,5\n", "a cell for each"),  # the rest would be shifted
    )
    for text, said in faulty:
        labels.write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=said):
            ingest_dicom(source, tmp_path / "out", key_path=key)


def test_cells_that_a_spreadsheet_would_run(source, key, tmp_path):
    write_made(source / "=cmd", PatientID="@SUM(1)")
    summary = ingest_dicom(source, tmp_path / "out", key_path=key)
    (row,) = table(summary.private_path)
    assert (row["file"], row["original_patient_id"]) == ("'=cmd", "'@SUM(1)")
