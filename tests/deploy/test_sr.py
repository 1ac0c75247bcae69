"""Structured report and key image: valid for every answer, of one study, the same each time."""

import json
import subprocess
import sysconfig
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

pytest.importorskip("highdicom", reason="needs the extra pacs")

from steatosis_tf import cli
from steatosis_tf.config import RoiConfig
from steatosis_tf.deploy.bare_network import BareNetwork
from steatosis_tf.deploy.predict import predict
from steatosis_tf.deploy.sr import (
    SEVERITIES,
    answer_bytes,
    is_answered,
    pacs_answer,
    write_answer,
)
from steatosis_tf.deploy.study import MANUFACTURER, NothingToGrade, read_study
from steatosis_tf.grades import GRADES, NOTICE
from steatosis_tf.model.answer import REASONS, FrameAnswer, PatientAnswer
from steatosis_tf.sources.phantom.study import simulate_patient
from tests.deploy.real_orthanc import unpacked_program
from tests.sources.dicom.made_dicom import UID_ROOT, made_frame, region, table, write_made

MODEL = BareNetwork("phantom 1", "ab" * 32, session=None, roi=RoiConfig())
VALIDATOR = Path(sysconfig.get_path("scripts")) / "dciodvfy"
CLIP, STILL = f"{UID_ROOT}.9.1", f"{UID_ROOT}.9.2"
SECTOR = np.array([[20.0, 24], [139, 24], [139, 111], [20, 111]])
LIVER = np.array([[40.0, 40], [100, 40], [100, 90], [40, 90]])


def frames(kind="graded") -> tuple[FrameAnswer, ...]:
    """Answers of frame 2 of the clip, of the still, and of a frame without a sector."""
    code = "unlike_training" if kind == "score_only" else ""
    features = {"hepatorenal_db": 1.5, "attenuation_db_per_cm": 0.75, "speckle_snr": float("nan")}
    first = FrameAnswer(f"{CLIP}#2", kind, code, REASONS.get(code, ""), 12.5, 3.5, 0.5, features,
                        SECTOR, LIVER, {"kidney": (60, 60, 10, 12)})  # fmt: skip
    second = replace(first, name=STILL, features={}, boxes={}, fat_score=14.0)
    return first, second, FrameAnswer(f"{CLIP}#1", "unable", "no_sector", REASONS["no_sector"])


def graded(grade="Mild") -> PatientAnswer:
    chances = dict.fromkeys(GRADES, 0.1) | {grade: 0.7}
    return PatientAnswer(
        "p", "graded", fat_percent=13.2, novelty=0.5, fat_interval=(2.0, 30.0), grade=grade,
        probabilities=chances, prediction_set=(grade,),
        operating_points={"at_least_mild, sensitivity 0.95": grade != "Normal"},
        features={"hepatorenal_db": 1.5}, num_frames=3, num_used=2, frames=frames(),
    )  # fmt: skip


def score_only() -> PatientAnswer:
    return PatientAnswer(
        "p", "score_only", "unlike_training", REASONS["unlike_training"], fat_percent=41.0,
        novelty=1.7, fat_interval=(20.0, 60.0), num_frames=3, num_used=2,
        frames=frames("score_only"),
    )  # fmt: skip


def unable(code="no_liver") -> PatientAnswer:
    looked_at = tuple(
        replace(frame, kind="unable", reason_code=code, reason=REASONS[code]) for frame in frames()
    )
    return PatientAnswer("p", "unable", code, REASONS[code], num_frames=3, frames=looked_at)


ANSWERS = {
    **{grade: graded(grade) for grade in GRADES},
    "score only": score_only(),
    **{code: unable(code) for code in REASONS},
    "unable without a sector": replace(
        unable("no_sector"), frames=(FrameAnswer(STILL, "unable", "no_sector"),)
    ),
}


def write_study(folder: Path, **changes) -> Path:
    """A clip of two frames and a still of one study."""
    write_made(folder / "clip.dcm", np.stack([made_frame(1), made_frame(2)]), number=1, **changes)
    write_made(folder / "still.dcm", number=2, **changes)
    return folder


def validate(path: Path) -> None:
    """No error of dciodvfy: it says Warning for what the standard leaves open."""
    if not VALIDATOR.is_file():
        pytest.skip("dciodvfy of dicom3tools is not installed")
    told = subprocess.run([VALIDATOR, path], capture_output=True, text=True, errors="replace")
    said = told.stderr + told.stdout
    assert "Comprehensive3DSR" in said or "SCImage" in said
    assert "Error" not in said, said


def items(dataset: Dataset, meaning: str) -> list[Dataset]:
    """Content items by the meaning of their name, from anywhere in the tree."""
    found = []
    for item in dataset.get("ContentSequence", ()):
        if item.ConceptNameCodeSequence[0].CodeMeaning == meaning:
            found.append(item)
        found += items(item, meaning)
    return found


def codes(dataset: Dataset, meaning: str) -> list[str]:
    return [item.ConceptCodeSequence[0].CodeValue for item in items(dataset, meaning)]


@pytest.fixture
def study_dir(tmp_path) -> Path:
    return write_study(tmp_path / "study")


@pytest.mark.parametrize("name", ANSWERS)
def test_every_answer_is_valid_dicom_that_opens(study_dir, tmp_path, name):
    key_path, report_path = write_answer(
        pacs_answer(read_study(study_dir), ANSWERS[name], MODEL), tmp_path / "out"
    )
    validate(key_path)
    validate(report_path)
    report = pydicom.dcmread(report_path)
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    dump = unpacked_program("dsrdump")
    if dump is not None:
        shown = subprocess.run([dump[0], report_path], capture_output=True, text=True, env=dump[1])
        assert shown.returncode == 0, shown.stderr
        assert ("Severity" in shown.stdout) == (name in GRADES)


@pytest.mark.parametrize("grade", GRADES)
def test_a_grade_is_coded_with_what_it_rests_on(study_dir, grade):
    report = pacs_answer(read_study(study_dir), graded(grade), MODEL).report
    assert codes(report, "Severity") == [SEVERITIES[grade].value]
    assert "197321007" in codes(report, "Finding")  # steatosis of liver, of that severity
    assert codes(report, "Threshold reached: at least mild, sensitivity 0.95")
    assert codes(report, "Quality Assessment") == ["RID12"]
    assert codes(report, "Grade that cannot be ruled out") == [SEVERITIES[grade].value]
    (chance,) = items(report, f"Probability of the grade {grade}")
    assert chance.MeasuredValueSequence[0].NumericValue == 0.7
    parameters = [item.TextValue for item in items(report, "Algorithm Parameters")]
    assert f"sha256 {MODEL.sha256}" in parameters
    assert NOTICE in [item.TextValue for item in items(report, "Comment")]
    assert report.VerificationFlag == "UNVERIFIED"
    assert report.PreliminaryFlag == "PRELIMINARY"


def test_features_have_the_names_and_units_that_a_person_reads(study_dir):
    features = {"hepatorenal_db": 1.5, "attenuation_db_per_depth": 19.2, "nakagami_m": 1.8}
    answer = replace(graded(), features=features)
    report = pacs_answer(read_study(study_dir), answer, MODEL).report
    units = {}
    for name in ("Hepatorenal index", "Attenuation", "Nakagami shape"):
        measured = items(report, f"{name}, from B-mode pixels, not calibrated")[0]
        (unit,) = measured.MeasuredValueSequence[0].MeasurementUnitsCodeSequence
        units[name] = (unit.CodeValue, unit.CodeMeaning)
    assert units == {
        "Hepatorenal index": ("dB", "decibel"),
        "Attenuation": ("dB", "dB over the sector's depth"),
        "Nakagami shape": ("1", "no units"),
    }


def test_score_only_has_a_score_and_no_severity(study_dir):
    report = pacs_answer(read_study(study_dir), score_only(), MODEL).report
    (score,) = items(report, "Fat score, percent of hepatocytes")
    assert score.MeasuredValueSequence[0].NumericValue == 41
    assert codes(report, "Quality Assessment") == ["RID13"]
    assert codes(report, "Reason for no grade") == ["unlike_training"]
    assert not items(report, "Severity")
    assert set(codes(report, "Finding")) == {"10200004"}  # the liver of each frame, no steatosis
    assert len(items(report, "Image Region")) == 2


def test_unable_is_coded_with_its_reason_and_has_no_number(study_dir):
    report = pacs_answer(read_study(study_dir), unable("no_liver"), MODEL).report
    assert codes(report, "Quality Assessment") == ["RID14"]
    assert codes(report, "Reason for no grade") == ["no_liver"]
    assert not items(report, "Severity")
    assert not items(report, "Finding")
    assert not items(report, "Fat score, percent of hepatocytes")
    assert not items(report, "Image Region")


def test_regions_stand_on_the_frames_used_within_the_picture(study_dir):
    wide = replace(frames()[0], liver=LIVER * 3)
    answer = replace(graded(), frames=(wide, *frames()[1:]))
    report = pacs_answer(read_study(study_dir), answer, MODEL).report
    clip, still = items(report, "Image Region")
    points = np.reshape(clip.GraphicData, (-1, 2))
    assert points[0].tolist() == points[-1].tolist()
    assert points.max(axis=0).tolist() == [160, 120]
    assert np.reshape(still.GraphicData, (-1, 2))[:-1].tolist() == LIVER.tolist()
    source = clip.ContentSequence[0].ReferencedSOPSequence[0]
    assert (source.ReferencedSOPInstanceUID, source.ReferencedFrameNumber) == (CLIP, 2)
    assert "ReferencedFrameNumber" not in still.ContentSequence[0].ReferencedSOPSequence[0]


def test_a_frame_has_the_number_of_its_image(tmp_path):
    study = read_study(write_study(tmp_path / "study", InstanceNumber=7))
    report = pacs_answer(study, graded(), MODEL).report
    names = [item.TextValue for item in items(report, "Tracking Identifier")]
    assert names == ["Fatty liver grading of the study", "Image 7, frame 2", "Image 7, frame 1"]


def test_a_long_outline_keeps_its_shape_in_few_points(study_dir):
    angles = np.linspace(0, 2 * np.pi, 5000)
    circle = np.stack([80 + 30 * np.cos(angles), 60 + 30 * np.sin(angles)], axis=1)
    answer = replace(graded(), frames=(replace(frames()[0], liver=circle),))
    (drawn,) = items(pacs_answer(read_study(study_dir), answer, MODEL).report, "Image Region")
    points = np.reshape(drawn.GraphicData, (-1, 2))
    assert len(points) <= 200
    assert np.abs(np.hypot(*(points - [80, 60]).T) - 30).max() < 1


def test_the_evidence_is_all_images_looked_at_and_nothing_else(study_dir):
    write_made(study_dir / "ct.dcm", number=3, Modality="CT",
               SOPClassUID="1.2.840.10008.5.1.4.1.1.2")  # fmt: skip
    write_made(study_dir / "doppler.dcm", number=4, SequenceOfUltrasoundRegions=[region(kind=2)])
    write_made(study_dir / "m_mode.dcm", number=5, SequenceOfUltrasoundRegions=[region(spatial=2)])
    write_made(study_dir / "copy.dcm", number=2)
    (study_dir / "notes.txt").write_text("no DICOM")
    study = read_study(study_dir)
    assert sorted(study.passed_over.values()) == [1, 1, 1, 1, 1]
    report = pacs_answer(study, graded(), MODEL).report
    (of_study,) = report.CurrentRequestedProcedureEvidenceSequence
    assert of_study.StudyInstanceUID == f"{UID_ROOT}.1.1"
    (of_series,) = of_study.ReferencedSeriesSequence
    assert {one.ReferencedSOPInstanceUID for one in of_series.ReferencedSOPSequence} == {
        CLIP,
        STILL,
    }
    assert "PertinentOtherEvidenceSequence" not in report


@pytest.mark.parametrize(
    "changes",
    [
        {"StudyInstanceUID": f"{UID_ROOT}.1.2"},
        {"PatientID": "MRN 999"},
        {"IssuerOfPatientID": "HOSPITAL B"},
        {"PatientBirthDate": "19610203"},
        {"PatientName": "Roe^Jane"},
    ],
    ids=["two studies", "two patients", "two issuers", "two birth dates", "two names"],
)
@pytest.mark.parametrize("modality", ["US", "CT"])
def test_two_patients_or_studies_in_one_folder_are_refused_without_naming_them(
    study_dir, changes, modality
):
    write_made(study_dir / "stated.dcm", number=4, IssuerOfPatientID="HOSPITAL A")
    read_study(study_dir)  # what the others do not state is not held against them
    write_made(study_dir / "other.dcm", number=3, Modality=modality, **changes)
    with pytest.raises(ValueError, match="Expected the files of one") as refusal:
        read_study(study_dir)
    assert "MRN" not in str(refusal.value)
    assert UID_ROOT not in str(refusal.value)


def test_one_uid_on_two_pictures_is_refused(study_dir):
    write_made(study_dir / "other.dcm", made_frame(9), number=2)
    with pytest.raises(ValueError, match="one UID on two different pictures"):
        read_study(study_dir)


@pytest.mark.parametrize(
    "content", ["no pixels", "encrypted", "codec", "nothing", "doppler", "capture"]
)
def test_a_study_without_an_image_says_what_is_there(tmp_path, content):
    folder = tmp_path / "study"
    folder.mkdir()
    expected = "0 files"
    if content == "no pixels":
        expected = "without an image|rows, columns"
        write_made(folder / "a.dcm", Rows=None, Columns=None, PhotometricInterpretation=None)
    elif content == "encrypted":
        expected = "looks encrypted"
        (folder / "a").write_bytes(np.random.default_rng(0).bytes(9000))
    elif content == "codec":
        expected = "compressed by a method"
        path = write_made(folder / "a.dcm")
        data = path.read_bytes()
        path.write_bytes(data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.77"))
    elif content == "capture":
        expected = "ultrasound of another class"
        write_made(folder / "a.dcm", SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    elif content == "doppler":
        expected = "Doppler"
        write_made(folder / "a.dcm", SequenceOfUltrasoundRegions=[region(kind=2)])
    with pytest.raises(NothingToGrade, match=expected):
        read_study(folder)


MISSING = ("StudyDate", "StudyTime", "AccessionNumber", "StudyID", "PatientBirthDate", "PatientSex",
           "PatientName", "PatientID", "ReferringPhysicianName", "ContentDate")  # fmt: skip


def test_missing_attributes_are_filled_up_empty(tmp_path):
    folder = write_study(tmp_path / "study", **dict.fromkeys(MISSING))
    paths = write_answer(pacs_answer(read_study(folder), graded(), MODEL), tmp_path / "out")
    for path in paths:
        validate(path)
        dataset = pydicom.dcmread(path)
        assert not dataset.PatientName
        assert not dataset.StudyDate


def test_impossible_values_are_left_empty(tmp_path):
    folder = write_study(tmp_path / "study", PatientBirthDate="1950-7-4", PatientSex="male",
                         StudyTime="25:00", StudyDate="20200231")  # fmt: skip
    for path in write_answer(pacs_answer(read_study(folder), graded(), MODEL), tmp_path / "out"):
        validate(path)


NAMES = {
    "Japanese": (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "Japanese half-width": (
        ["ISO 2022 IR 13", "ISO 2022 IR 87"],
        "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
    ),
    "accented": ("ISO_IR 100", "Müller^Zoë^Renée"),
    "Greek": ("ISO_IR 126", "Διονυσιος"),
    "Korean": (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    "Chinese": ("GB18030", "Wang^XiaoDong=王^小东"),
    "without a caret": ("ISO_IR 100", "MUELLER EVA"),
}


@pytest.mark.parametrize("kind", NAMES)
def test_names_in_other_letters_arrive_whole(tmp_path, kind):
    charset, name = NAMES[kind]
    folder = write_study(tmp_path / "study", SpecificCharacterSet=charset, PatientName=name)
    for path in write_answer(pacs_answer(read_study(folder), graded(), MODEL), tmp_path / "out"):
        validate(path)
        dataset = pydicom.dcmread(path)
        assert dataset.SpecificCharacterSet == "ISO_IR 192"
        assert str(dataset.PatientName) == name


def test_a_deidentified_study_gives_a_deidentified_answer(tmp_path):
    folder = write_study(
        tmp_path / "study", **dict.fromkeys(MISSING), PatientIdentityRemoved="YES",
        DeidentificationMethod="by hand", InstitutionName=None, OperatorsName=None,
        StationName=None, DeviceSerialNumber=None, PatientAddress=None, PatientAge=None,
    )  # fmt: skip
    answer = pacs_answer(read_study(folder), graded(), MODEL)
    for dataset in (answer.key_image, answer.report):
        assert (dataset.PatientIdentityRemoved, dataset.PatientName) == ("YES", "")
        assert str(dataset.ContentDate) == "19000101"


def test_nothing_of_the_original_header_but_the_identity_is_taken_over(study_dir):
    answer = pacs_answer(read_study(study_dir), graded(), MODEL)
    for dataset in (answer.key_image, answer.report):
        data = answer_bytes(dataset)
        for text in (b"Doe^John", b"MRN 0012345", b"Welby"):
            assert text in data
        for text in (b"Saint Elsewhere", b"Ratched", b"SN4433221", b"ROOM7EAST", b"Elm Street"):
            assert text not in data


def test_the_key_image_shows_the_sector_alone_with_the_warning_burned_in(study_dir):
    image = pacs_answer(read_study(study_dir), graded(), MODEL).key_image
    pixels = image.pixel_array
    banner = pixels[36 : 36 + 24, :]  # of the frame: DOE^JOHN 1950 stands there
    assert not banner.any()
    assert pixels[36 + 24 : 36 + 112].any()
    assert pixels[:36].any()
    assert (image.ConversionType, image.BodyPartExamined) == ("DI", "LIVER")


def test_a_marked_source_marks_the_key_image(tmp_path):
    folder = write_study(tmp_path / "study", BurnedInAnnotation="YES")
    assert pacs_answer(read_study(folder), graded(), MODEL).key_image.BurnedInAnnotation == "YES"


def test_the_same_content_is_the_same_file_and_other_content_another(study_dir, tmp_path):
    study = read_study(study_dir)
    first, again = (pacs_answer(study, graded(), MODEL) for _ in range(2))
    assert answer_bytes(first.report) == answer_bytes(again.report)
    assert answer_bytes(first.key_image) == answer_bytes(again.key_image)
    for other in (
        pacs_answer(study, graded("Severe"), MODEL),
        pacs_answer(study, graded(), replace(MODEL, sha256="cd" * 32)),
    ):
        assert other.report.SOPInstanceUID != first.report.SOPInstanceUID
        assert other.key_image.SOPInstanceUID != first.key_image.SOPInstanceUID
    paths = write_answer(first, study_dir)
    stamps = [path.stat().st_mtime_ns for path in paths]
    assert write_answer(again, study_dir) == paths
    assert [path.stat().st_mtime_ns for path in paths] == stamps


def test_late_images_give_a_new_report_that_names_the_one_before(study_dir, tmp_path):
    study = read_study(study_dir)
    assert not is_answered(study, MODEL)
    _, first = write_answer(pacs_answer(study, graded(), MODEL), study_dir)
    study = read_study(study_dir)
    assert is_answered(study, MODEL)
    assert not is_answered(study, replace(MODEL, sha256="cd" * 32))

    late = write_made(study_dir / "late.dcm", number=3)
    study = read_study(study_dir)
    assert not is_answered(study, MODEL)
    _, second = write_answer(pacs_answer(study, graded(), MODEL), study_dir)
    validate(second)
    one, other = pydicom.dcmread(first), pydicom.dcmread(second)
    (of_study,) = other.PredecessorDocumentsSequence
    (of_series,) = of_study.ReferencedSeriesSequence
    (link,) = of_series.ReferencedSOPSequence
    assert link.ReferencedSOPInstanceUID == one.SOPInstanceUID != other.SOPInstanceUID
    # Broken off and started again: the same second version, not a third.
    _, again = write_answer(pacs_answer(read_study(study_dir), graded(), MODEL), study_dir)
    assert again == second
    assert late.is_file()


def test_own_answers_are_never_graded(study_dir):
    write_answer(pacs_answer(read_study(study_dir), graded(), MODEL), study_dir)
    study = read_study(study_dir)
    assert {image.uid for image in study.images} == {CLIP, STILL}
    assert [report.Manufacturer for report in study.earlier] == [MANUFACTURER]


def test_an_answer_that_is_not_of_the_study_is_refused(study_dir):
    answer = replace(graded(), frames=(replace(frames()[0], name="1.2.3#1"),))
    with pytest.raises(ValueError, match="named by the SOPInstanceUID"):
        pacs_answer(read_study(study_dir), answer, MODEL)


@pytest.fixture(scope="module")
def phantom_study(tmp_path_factory) -> Path:
    """A simulated patient of 60 % fat as a clip of three frames and a still."""
    folder = tmp_path_factory.mktemp("phantom") / "study"
    shown, _ = simulate_patient(
        60.0, num_frames=4, generator=np.random.default_rng(5), size_px=(240, 320)
    )
    changes = {"SequenceOfUltrasoundRegions": None}
    write_made(folder / "clip.dcm", np.stack(shown[:3]), number=1, **changes)
    write_made(folder / "still.dcm", shown[3], number=2, **changes)
    return folder


def test_the_verb_writes_what_predict_answers(phantom_study, phantom_bundle, tmp_path, capsys):
    before = {path: path.read_bytes() for path in phantom_study.iterdir()}
    call = ["sr", str(phantom_study), "--output", str(tmp_path / "out")]
    call += ["--model", str(phantom_bundle), "--json"]
    assert cli.main(call) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["kind"] == "graded"
    assert said["notice"] == NOTICE
    assert "Doe" not in str(said)
    for path in said["files"]:
        validate(Path(path))
    report = pydicom.dcmread(said["files"][1])
    predict([phantom_study], model=phantom_bundle, output_dir=tmp_path / "predicted")
    (row,) = table(tmp_path / "predicted" / "patients.csv")
    assert codes(report, "Severity") == [SEVERITIES[row["grade"]].value]
    (score,) = items(report, "Fat score, percent of hepatocytes")
    told = float(score.MeasuredValueSequence[0].NumericValue)
    assert told == pytest.approx(float(row["fat_percent"]), abs=0.1)
    assert len(items(report, "Image Region")) >= 2
    assert {path: path.read_bytes() for path in phantom_study.iterdir()} == before

    assert cli.main(call) == 0  # the same files again, not a second answer
    assert json.loads(capsys.readouterr().out)["files"] == said["files"]
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_full_disk_leaves_no_half_of_an_answer(study_dir, tmp_path, monkeypatch):
    made = pacs_answer(read_study(study_dir), graded(), MODEL)

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_answer(made, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
