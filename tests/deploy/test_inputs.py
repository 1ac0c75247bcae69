"""Hospital files as predict finds them: studies, dates, a reason for all that is passed over."""

import json
from dataclasses import replace

import cv2
import numpy as np
import openpyxl
import pytest

from steatosis_tf.deploy.bundle import open_bundle
from steatosis_tf.deploy.inputs import CLIP_FRAMES, open_inputs
from steatosis_tf.deploy.predict import predict
from steatosis_tf.deploy.tables import Visits
from steatosis_tf.model.answer import PatientAnswer
from steatosis_tf.sources.phantom.study import simulate_patient

made_dicom = pytest.importorskip("tests.sources.dicom.made_dicom", reason="pydicom is missing")
made_dataset, region, UID_ROOT = made_dicom.made_dataset, made_dicom.region, made_dicom.UID_ROOT


@pytest.fixture(scope="module")
def clip():
    """Twelve frames of a phantom."""
    return simulate_patient(
        60.0, num_frames=12, generator=np.random.default_rng(4), size_px=(240, 320)
    )[0]


def _save(path, frames=None, **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    made_dataset(frames, **changes).save_as(path, enforce_file_format=True)
    return path


def _plain(study: int, **changes):
    """Header changes of a study whose file states no region."""
    return {
        "StudyInstanceUID": f"{UID_ROOT}.1.{study}",
        "SequenceOfUltrasoundRegions": None,
    } | changes


def test_a_patient_keeps_an_id_that_begins_as_anothers(tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("path,patient_id\na.png,P1 (left)\nb.png,P1\nc.png,P1 (left)\n")
    with open_inputs([table]) as inputs:
        assert [group.patient for group in inputs.groups] == ["P1 (left)", "P1"]


def test_a_study_is_a_patient_and_visits_come_by_date(tmp_path, clip, phantom_bundle):
    later, earlier = _plain(1, StudyDate="20240501"), _plain(2, StudyDate="20210131")
    _save(tmp_path / "in" / "a", clip[0], number=1, **later)
    _save(tmp_path / "in" / "b", clip[1], number=2, **later)
    _save(tmp_path / "in" / "c", clip[2], number=3, **earlier)
    _save(tmp_path / "in" / "d", clip[3], number=4, **_plain(3, PatientID="OTHER"))
    predict([tmp_path / "in"], model=phantom_bundle, output_dir=tmp_path / "out")
    text = (tmp_path / "out" / "predictions.json").read_text()
    patients = json.loads(text)["patients"]
    assert [(one["date"], one["num_frames"]) for one in patients[:2]] == [
        ("2021-01-31", 1), ("2024-05-01", 2),
    ]  # fmt: skip
    assert [one["patient"] for one in patients] == [f"{UID_ROOT}.1.{n}" for n in (2, 1, 3)]
    for personal in ("DOE", "JOHN", "OTHER", "Elsewhere"):
        assert personal not in text
    # One liver, seen twice; the third is another person's, whose first visit it is.
    changes = [one["change"] for one in patients]
    assert [bool(change) for change in changes] == [False, True, False]
    assert changes[1].startswith("No change shown since 2021-01-31 (fat ")


def test_a_change_is_said_beyond_the_limit_alone_and_drawn_by_date(tmp_path, phantom_bundle):
    for number, (date, fat) in enumerate((("20200301", 5.0), ("20210301", 80.0)), start=1):
        frames, _ = simulate_patient(
            fat, num_frames=2, generator=np.random.default_rng(number), size_px=(240, 320)
        )
        _save(tmp_path / "in" / f"{number}", frames, number=number,
              **_plain(number, StudyDate=date))  # fmt: skip
    found = predict(
        [tmp_path / "in"], model=phantom_bundle, output_dir=tmp_path / "out", figures=True
    )
    assert "Changed since 2020-03-01 (fat " in found.texts[1]
    assert "by more than measuring anew does" in found.texts[1]
    rows = (tmp_path / "out" / "patients.csv").read_text().splitlines()
    assert "Changed since 2020-03-01" in rows[2]
    drawn = cv2.imread(str(tmp_path / "out" / "figures" / "trend_0001.png"))
    # Two yellow points, the later one higher.
    points = (np.abs(drawn.astype(int) - (66, 228, 240)).max(axis=2) < 12).astype(np.uint8)
    count, _, _, middles = cv2.connectedComponentsWithStats(points)
    left, right = sorted(middles[1:].tolist())
    assert count == 3
    assert right[1] < left[1]
    assert not (tmp_path / "out" / "figures" / "trend_0002.png").exists()


def test_no_change_is_said_without_a_limit_or_of_a_visit_unlike_the_training_data(phantom_bundle):
    first = PatientAnswer("a", "graded", fat_percent=4.0, date="2020-01-01")
    later = PatientAnswer("b", "graded", fat_percent=81.0, date="2021-01-01")
    unlike = PatientAnswer("c", "score_only", fat_percent=81.0, date="2022-01-01")
    unable = PatientAnswer("d", "unable", date="2023-01-01")
    said = Visits(float("nan"))
    assert said.add("p", first) == ""
    assert "frames of one visit do not give it" in said.add("p", later)
    known = Visits(7.0)
    known.add("p", first)
    assert known.add("p", later).startswith("No change shown since 2020-01-01")  # 9 - 2 = 7
    assert known.add("p", unable) == ""
    assert "unlike the training data" in known.add("p", unlike)
    assert known.add("another", later) == ""
    bundle = open_bundle(phantom_bundle)
    assert bundle.change_limit == 1.5
    elsewhere = replace(bundle, about=bundle.about | {"recalibration": {"from": "phantoms 1"}})
    assert np.isnan(elsewhere.change_limit)
    assert np.isnan(open_bundle().change_limit)


def test_of_a_clip_frames_spread_over_it_are_answered(tmp_path, clip, phantom_bundle):
    path = _save(tmp_path / "clip.dcm", clip, **_plain(1))
    found = predict([path], model=phantom_bundle, output_dir=tmp_path / "out")
    assert found.counts["frames"] == CLIP_FRAMES
    assert found.passed_over == (
        ("clip.dcm", "2 of the clip's 12 frames; answered are 10, spread over it"),
    )
    first = (tmp_path / "out" / "frames.csv").read_text().splitlines()[1]
    assert first.split(",")[1] == "clip.dcm#1"


def test_pixels_outside_of_the_stated_region_are_not_seen(tmp_path, clip):
    written = clip[0].copy()
    cv2.putText(written, "SEVERE", (4, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.6, 255, 2)
    box = region((10, 30, 309, 229))
    path = _save(tmp_path / "one.dcm", written, SequenceOfUltrasoundRegions=[box])
    with open_inputs([path]) as inputs:
        (shot,) = inputs.groups[0].shots()
    assert not shot.frame[:30].any()
    assert shot.frame[30:230, 10:310].any()
    assert shot.display.px_per_cm == pytest.approx(1 / 0.03)


def test_what_is_no_frame_is_named_with_its_reason(tmp_path, clip):
    folder = tmp_path / "in"
    _save(folder / "good", clip[0], number=1, **_plain(1))
    _save(folder / "doppler", clip[0], number=2, SequenceOfUltrasoundRegions=[region(kind=2)])
    _save(folder / "m_mode", clip[0], number=3, SequenceOfUltrasoundRegions=[region(spatial=2)])
    _save(folder / "ct", clip[0], number=4, Modality="CT",
          SOPClassUID="1.2.840.10008.5.1.4.1.1.2")  # fmt: skip
    _save(folder / "report", clip[0], number=5, Rows=None, Columns=None,
          PhotometricInterpretation=None)  # fmt: skip
    (folder / "random").write_bytes(np.random.default_rng(0).bytes(8192))
    (folder / "notes.txt").write_text("no frame")
    (folder / ".hidden").write_text("")
    (folder / "clip.mp4").write_bytes(np.random.default_rng(0).bytes(8192))
    (folder / "saved.jfif").write_bytes(cv2.imencode(".jpg", clip[0])[1].tobytes())
    (folder / "loop").symlink_to(folder)
    with open_inputs([folder]) as inputs:
        assert [group.names for group in inputs.groups] == [["good"], ["saved.jfif"]]
        reasons = dict(inputs.passed_over)
    assert reasons["doppler"] == "colour Doppler region"
    assert reasons["m_mode"] == "M-mode region"
    assert reasons["ct"].startswith("not an ultrasound image")
    assert reasons["report"].startswith("ultrasound object without an image")
    assert "looks encrypted" in reasons["random"]
    assert reasons["clip.mp4"] == ".mp4 is not read; export as PNG, JPEG or DICOM"
    assert reasons["notes.txt"] == "no frame (.txt)"
    assert reasons[".hidden"] == "no frame (hidden)"
    assert reasons["loop"].startswith("a link to a folder")


def test_one_study_of_two_patients_is_not_answered(tmp_path, clip):
    for number, name in enumerate("abc", start=1):
        patient = {"PatientID": "SOMEBODY"} if name == "b" else {}
        _save(tmp_path / "in" / name, clip[number], number=number, **_plain(1, **patient))
    _save(tmp_path / "in" / "other", clip[0], number=4, **_plain(2))
    with open_inputs([tmp_path / "in"]) as inputs:
        (group,) = inputs.groups
        assert group.patient == f"{UID_ROOT}.1.2"
        assert [name for name, _ in inputs.passed_over] == ["a", "b", "c"]
        assert {why for _, why in inputs.passed_over} == {
            "one study with the files of two patients: nobody can tell whose answer it would be"
        }


@pytest.mark.parametrize(
    ("changes", "num_persons"),
    [
        ({}, 1),
        ({"IssuerOfPatientID": "HOSPITAL B"}, 2),
        ({"PatientBirthDate": "19610203"}, 2),
        ({"PatientName": "Roe^Jane"}, 2),
        ({"PatientBirthDate": None, "PatientName": "Married^John"}, 1),
    ],
    ids=["same", "issuer", "birth date", "name", "not stated"],
)
def test_one_patient_id_may_be_two_persons(tmp_path, clip, changes, num_persons):
    first = {"IssuerOfPatientID": "HOSPITAL A"} if "IssuerOfPatientID" in changes else {}
    _save(tmp_path / "in" / "a", clip[0], number=1, **_plain(1, **first))
    _save(tmp_path / "in" / "b", clip[1], number=2, **_plain(2, **changes))
    with open_inputs([tmp_path / "in"]) as inputs:
        assert len({group.person for group in inputs.groups}) == num_persons


def test_visits_of_one_day_come_by_time_and_undated_ones_are_not_compared(tmp_path, clip):
    for number, when in enumerate(
        [{"StudyTime": "141500.5"}, {"StudyTime": "0830"}, {"StudyDate": None, "ContentDate": None}]
    ):
        _save(tmp_path / "in" / str(number), clip[0], number=number, **_plain(number, **when))
    with open_inputs([tmp_path / "in"]) as inputs:
        assert [group.patient[-1] for group in inputs.groups] == ["2", "1", "0"]
    visits = Visits(1.0)
    visits.add("p", PatientAnswer("a", "graded", fat_percent=4.0))
    said = visits.add("p", PatientAnswer("b", "graded", fat_percent=81.0, date="2021-01-01"))
    assert said.endswith("is not known: a visit without a date has no order.")


@pytest.mark.parametrize(
    ("zones", "order"), [("+0100 -0500", "0 1"), ("+0100 ", "1 0"), ("+0100 west", "1 0")]
)
def test_visits_in_two_time_zones_come_in_their_order_where_both_are_stated(
    tmp_path, clip, zones, order
):
    """15:00 in Paris is 09:00 in New York, where the other study is of 11:00."""
    whens = zip(["150000", "110000"], zones.split(" "), strict=True)
    for number, (time, zone) in enumerate(whens):
        when = {"StudyTime": time, "TimezoneOffsetFromUTC": zone or None}
        _save(tmp_path / "in" / str(number), clip[0], number=number, **_plain(number, **when))
    with open_inputs([tmp_path / "in"]) as inputs:
        assert " ".join(group.patient[-1] for group in inputs.groups) == order


def test_what_is_given_twice_counts_once(tmp_path, clip):
    path = _save(tmp_path / "in" / "a", clip[0], **_plain(1))
    (tmp_path / "in" / "copy").write_bytes(path.read_bytes())
    cv2.imwrite(str(tmp_path / "b.png"), clip[0])
    (tmp_path / "table.csv").write_text("Path;Patient ID\nb.png;P\nb.png;P\n;P\n")
    paths = [tmp_path / "in", path, tmp_path / "b.png", tmp_path / "b.png", tmp_path / "table.csv"]
    with open_inputs(paths, by_folder=True) as inputs:
        assert [len(list(group.shots())) for group in inputs.groups] == [1, 1, 1]
        assert [name for name, _ in inputs.passed_over] == [
            "copy", "a", "b.png", "b.png", "table.csv, line 4",
        ]  # fmt: skip
    workbook = openpyxl.Workbook()
    for row in (("path", "patient_id"), ("b.png", 7)):
        workbook.active.append(row)
    workbook.save(tmp_path / "table.xlsx")
    with open_inputs([tmp_path / "table.xlsx"]) as inputs:
        assert [group.patient for group in inputs.groups] == ["7"]


def test_earlier_figures_are_no_frames_and_go_with_their_answers(tmp_path, clip, phantom_bundle):
    folder, out = tmp_path / "in", tmp_path / "in" / "out"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(folder / name), clip[0])
    predict([folder], model=phantom_bundle, output_dir=out, figures=True)
    assert len(list(out.glob("figures/*.png"))) == 2
    found = predict([folder], model=phantom_bundle, output_dir=out)
    assert found.counts["patients"] == 2
    reasons = dict(found.passed_over)
    assert reasons["out/figures/0001_01.png"] == "drawn by an earlier call; no frame"
    assert not list(out.glob("figures/*.png"))


def test_colour_doppler_without_a_region_is_not_graded(tmp_path, clip, phantom_bundle):
    coloured = np.repeat(clip[0][..., None], 3, axis=2)
    coloured[100:150, 130:190] = (0, 40, 200)  # blue, green, red
    cv2.imwrite(str(tmp_path / "flow.png"), coloured)
    _save(tmp_path / "flow", coloured[..., ::-1].copy(), **_plain(1))
    found = predict([tmp_path / "flow.png", tmp_path / "flow"], model=phantom_bundle)
    assert [one["reason_code"] for one in found.patients] == ["not_b_mode"] * 2


def test_a_name_cannot_write_on_the_screen(tmp_path, clip, phantom_bundle):
    name = "x\nother.png: Normal\x1b[2J.png"
    cv2.imwrite(str(tmp_path / "a.png"), clip[0])
    (tmp_path / "a.png").rename(tmp_path / name)
    (tmp_path / "y\n.txt").touch()
    found = predict([tmp_path], model=phantom_bundle)
    assert found.patients[0]["patient"] == name
    assert found.text().startswith("x other.png: Normal [2J.png: ")
    assert "  passed over: y .txt: no frame" in found.text()


def test_a_cut_file_is_a_frame_that_cannot_be_read(tmp_path, clip, phantom_bundle):
    path = _save(tmp_path / "cut.dcm", clip[0], **_plain(1))
    path.write_bytes(path.read_bytes()[:-30000])
    predict([path], model=phantom_bundle, output_dir=tmp_path / "out")
    (patient,) = json.loads((tmp_path / "out" / "predictions.json").read_text())["patients"]
    assert (patient["kind"], patient["reason_code"]) == ("unable", "unreadable")
    assert patient["frames"][0]["reason"].startswith("truncated")


def test_a_study_without_a_uid_is_not_named_after_its_patient(tmp_path, clip):
    path = _save(tmp_path / "one.dcm", clip[0], StudyInstanceUID=None)
    with open_inputs([path]) as inputs:
        assert inputs.groups[0].patient.startswith("study ")
        assert "DOE" not in inputs.groups[0].patient


def test_a_study_that_names_nobody_is_answered(tmp_path, clip):
    nobody = dict.fromkeys(("PatientID", "PatientName", "PatientBirthDate"))
    _save(tmp_path / "in" / "a", clip[0], number=1, **_plain(1, **nobody))
    _save(tmp_path / "in" / "b", clip[1], number=2, **_plain(1, **nobody))
    with open_inputs([tmp_path / "in"]) as inputs:
        (group,) = inputs.groups
        assert [shot.name for shot in group.shots()] == ["a", "b"]
        assert not inputs.passed_over


def test_nothing_to_answer_says_what_was_there(tmp_path):
    (tmp_path / "notes.txt").write_text("no frame")
    nothing = r"none, 1 files passed over; notes\.txt: no frame"
    with pytest.raises(ValueError, match=nothing), open_inputs([tmp_path]):
        pass
