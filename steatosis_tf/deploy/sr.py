"""An answer as the PACS reads it: a structured report (TID 1500) and a key image.

Both are made from the original header, stay inside the house, and stand beside the study, never
over it. They are the same bytes for the same study, model and version: every UID is a hash, and
the content is dated by the images, so a repeated or broken-off run doubles nothing.
"""

import hashlib
import io
import math
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import highdicom
import numpy as np
from highdicom import sr as hd
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from steatosis_tf import __version__
from steatosis_tf.deploy.figures import answer_lines, draw_key_image, key_frame, used_frames
from steatosis_tf.deploy.predict import Grader
from steatosis_tf.deploy.study import MANUFACTURER, Study, StudyImage, grade_study
from steatosis_tf.files import write_bytes
from steatosis_tf.grades import GRADES, NOTICE
from steatosis_tf.model.answer import FrameAnswer, PatientAnswer
from steatosis_tf.quantitative.measure import NAMES, UNITS
from steatosis_tf.sources.dicom.read import text_of
from steatosis_tf.sources.images import quiet_readers
from steatosis_tf.sources.rejection import Rejection

#: Private coding scheme, for what no standard has a code for.
SCHEME = "99STEATOSIS"

_SERIES_NUMBERS = {"sr": 9001, "key": 9002}
# Units that UCUM has; the meaning beside it says of what they are.
_UCUM = ("%", "dB", "dB/cm")
_UNITS_IN_WORDS = {"": "no units", "dB": "decibel", "%": "percent"}
_MAX_POINTS = 200

_LIVER = Code("10200004", "SCT", "Liver")
_STEATOSIS = Code("197321007", "SCT", "Steatosis of liver")
_SEVERITY = Code("246112005", "SCT", "Severity")
#: CID 3716, in the order of `GRADES`.
SEVERITIES = dict(
    zip(
        GRADES,
        (
            Code("260413007", "SCT", "None"),
            Code("255604002", "SCT", "Mild"),
            Code("6736007", "SCT", "Moderate"),
            Code("24484000", "SCT", "Severe"),
        ),
        strict=True,
    )
)
_QUALITY = Code("111050", "DCM", "Quality Assessment")
#: Kind of answer -> its quality; the last is the coded "unable to assess".
QUALITIES = {
    "graded": Code("RID12", "RADLEX", "Diagnostic quality"),
    "score_only": Code("RID13", "RADLEX", "Limited quality"),
    "unable": Code("RID14", "RADLEX", "Non-diagnostic quality"),
}
_YES_NO = {True: Code("373066001", "SCT", "Yes"), False: Code("373067005", "SCT", "No")}
_REASON = Code("reason", SCHEME, "Reason for no grade")
_IN_SET = Code("prediction_set", SCHEME, "Grade that cannot be ruled out")
_COMMENT = Code("121106", "DCM", "Comment")
_ATTENUATION = Code("112031", "DCM", "Attenuation Coefficient")
_PROCEDURE = Code("28614-6", "LN", "US Liver")
_ARTIFICIAL = Code("123110", "DCM", "Artificial Intelligence")


@dataclass(frozen=True)
class PacsAnswer:
    """What goes back to the PACS; store the key image first, so that a report stands for both.

    Attributes:
        key_image: secondary capture.
        report: Comprehensive 3D SR.
    """

    key_image: Dataset
    report: Dataset


def answer_study(study: Study, grader: Grader) -> tuple[PatientAnswer, PacsAnswer]:
    """Grade a study as `predict` does, and build what goes back."""
    answer = grade_study(study, grader)
    return answer, pacs_answer(study, answer, grader)


def pacs_answer(study: Study, answer: PatientAnswer, model: Grader) -> PacsAnswer:
    """Build report and key image.

    Args:
        study: as `read_study` read it.
        answer: of its images; each frame is named by SOPInstanceUID, with `#3` for frame 3.
        model: that gave it.

    Raises:
        ValueError: if a frame of the answer is of no image of the study.
    """
    with quiet_readers():
        report = _report(study, answer, model)  # first: it checks the names of the frames
        return PacsAnswer(_key_image(study, answer, model), report)


def write_answer(answer: PacsAnswer, folder: str | Path) -> list[Path]:
    """Write key image and report, each whole or not at all, under names that hold no patient.

    Returns:
        their paths. A file with the same content is left alone.

    Raises:
        ValueError: if a file of that name holds something else.
        OSError: if the disk is full or the folder cannot be written.
    """
    paths = []
    for name, data in answer_files(answer).items():
        path = Path(folder) / name
        paths.append(path)
        if not path.is_file() or path.read_bytes() != data:
            write_bytes(data, path)
    return paths


def answer_files(answer: PacsAnswer) -> dict[str, bytes]:
    """Key image and report by their file names."""
    return {
        f"steatosis-{kind}-{hashlib.sha256(dataset.SOPInstanceUID.encode()).hexdigest()[:16]}.dcm":
        answer_bytes(dataset)
        for kind, dataset in (("key", answer.key_image), ("sr", answer.report))
    }  # fmt: skip


def answer_bytes(dataset: Dataset) -> bytes:
    """A data set as the bytes of its file."""
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def is_answered(study: Study, model: Grader) -> bool:
    """Whether a report of this model and version on exactly these images is among the earlier."""
    images = {image.uid for image in study.images}
    series = _uid("sr", study.uid, __version__, model.sha256)
    return any(
        text_of(report, "SeriesInstanceUID") == series and _evidence_uids(report) == images
        for report in study.earlier
    )


def _report(study: Study, answer: PatientAnswer, model: Grader) -> Dataset:
    images = {image.uid: image for image in study.images}
    content = hd.MeasurementReport(
        observation_context=hd.ObservationContext(
            observer_device_context=hd.ObserverContext(
                observer_type=hd.CodedConcept("121007", "DCM", "Device"),
                observer_identifying_attributes=hd.DeviceObserverIdentifyingAttributes(
                    uid=_uid("device", __version__, model.sha256),
                    name=MANUFACTURER,
                    manufacturer_name=MANUFACTURER,
                    model_name=model.name,
                ),
            )
        ),
        procedure_reported=_PROCEDURE,
        imaging_measurements=[
            _exam(study, answer, model),
            *(_region(frame, images) for frame in used_frames(answer) if len(frame.sector) > 2),
        ],
        language_of_content_item_and_descendants=hd.LanguageOfContentItemAndDescendants(
            hd.CodedConcept("en", "RFC5646", "English")
        ),
    )
    report = _document(study, content, model, [])
    uid = report.SOPInstanceUID
    heads = _heads(study.earlier, uid)
    if heads:  # the link is no part of the content that names the report
        report = _document(study, content, model, heads)
        report.SOPInstanceUID = report.file_meta.MediaStorageSOPInstanceUID = uid
    return report


def _document(
    study: Study, content: hd.MeasurementReport, model: Grader, previous: list[Dataset]
) -> Dataset:
    report = hd.Comprehensive3DSR(
        evidence=[_evidence(study, image) for image in study.images],
        content=content,
        is_complete=True,
        is_final=False,
        is_verified=False,
        previous_versions=previous or None,
        coding_schemes=[_SCHEME_ITEM],
        **_series_of("sr", study, model),
    )
    _date(report, study)
    _name_by_content(report)
    return report


def _exam(
    study: Study, answer: PatientAnswer, model: Grader
) -> hd.MeasurementsAndQualitativeEvaluations:
    """What is said of the whole study."""
    sources = [
        hd.SourceImageForMeasurementGroup(image.header.SOPClassUID, image.uid)
        for image in study.images
    ]
    group = hd.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.TrackingIdentifier(
            uid=_uid("exam", study.uid), identifier="Fatty liver grading of the study"
        ),
        # Without a grade nothing was found: who reads codes alone must not see a fatty liver.
        finding_type=_STEATOSIS if answer.kind == "graded" else None,
        finding_sites=[hd.FindingSite(_LIVER)],
        algorithm_id=hd.AlgorithmIdentification(
            name=MANUFACTURER,
            version=__version__,
            parameters=[f"model {model.name}", f"sha256 {model.sha256}"],
            family=_ARTIFICIAL,
            manufacturer=MANUFACTURER,
        ),
        measurements=_exam_numbers(answer),
        qualitative_evaluations=_evaluations(answer),
        source_images=sources,
    )
    for text in (*answer_lines(answer, model.num_training), NOTICE):
        group[0].ContentSequence.append(
            hd.TextContentItem(_COMMENT, text, hd.RelationshipTypeValues.CONTAINS)
        )
    return group


def _evaluations(answer: PatientAnswer) -> list[hd.QualitativeEvaluation]:
    said = [(_QUALITY, QUALITIES[answer.kind])]
    if answer.reason_code:
        said.append((_REASON, _private(answer.reason_code, answer.reason)))
    if answer.kind == "graded":
        said.append((_SEVERITY, SEVERITIES[answer.grade]))
        said += [(_IN_SET, SEVERITIES[grade]) for grade in answer.prediction_set]
        for number, (name, reached) in enumerate(answer.operating_points.items(), start=1):
            asked = f"Threshold reached: {name.replace('_', ' ')}"
            said.append((_private(f"operating_point_{number}", asked), _YES_NO[reached]))
    return [hd.QualitativeEvaluation(name, value) for name, value in said]


def _exam_numbers(answer: PatientAnswer) -> list[hd.Measurement]:
    if answer.kind == "unable":
        return []
    low, high = answer.fat_interval
    numbers = [
        ("fat_percent", "Fat score, percent of hepatocytes", answer.fat_percent, "%"),
        ("fat_percent_low", "Fat score, lower end of the 90 % interval", low, "%"),
        ("fat_percent_high", "Fat score, upper end of the 90 % interval", high, "%"),
        ("novelty", "Distance from the training data, grades end at 1", answer.novelty, ""),
    ]
    for grade, value in answer.probabilities.items():
        numbers.append((f"p_{grade.lower()}", f"Probability of the grade {grade}", value, ""))
    said = [_number(_private(code, text), value, unit) for code, text, value, unit in numbers]
    return [one for one in (*said, *_features(answer.features)) if one is not None]


def _features(features: dict[str, float]) -> list[hd.Measurement | None]:
    """Measured features; of B-mode pixels, so none of them is calibrated."""
    said = []
    for name, value in features.items():
        code = _private(name, f"{NAMES[name]}, from B-mode pixels, not calibrated")
        if UNITS[name] == "dB/cm":
            code = _ATTENUATION
        said.append(_number(code, value, UNITS[name]))
    return said


def _region(
    frame: FrameAnswer, images: dict[str, StudyImage]
) -> hd.PlanarROIMeasurementsAndQualitativeEvaluations:
    """What is said of one frame: where the liver was seen, and what was measured there."""
    uid, _, number = frame.name.partition("#")
    if uid not in images:
        raise ValueError(
            "Expected the frames of an answer to be named by the SOPInstanceUID of an image of "
            "the study. Received: a name that is none."
        )
    image = images[uid]
    # As viewers number images: the frames of five stills would all be called the first.
    of_image = text_of(image.header, "InstanceNumber")
    label = f"Image {of_image}, frame {number or 1}" if of_image else f"Frame {number or 1}"
    outline = frame.liver if len(frame.liver) > 2 else frame.sector
    source = hd.SourceImageForRegion(
        image.header.SOPClassUID, uid, [int(number)] if number else None
    )
    score = _number(_private("fat_percent", "Fat score of the frame"), frame.fat_score, "%")
    return hd.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.TrackingIdentifier(uid=_uid("frame", frame.name), identifier=label),
        referenced_region=hd.ImageRegion(
            hd.GraphicTypeValues.POLYLINE, _polyline(outline, image), source
        ),
        finding_type=_LIVER,
        measurements=[one for one in (score, *_features(frame.features)) if one is not None],
    )


def _polyline(outline: np.ndarray, image: StudyImage) -> np.ndarray:
    """A closed line of at most `_MAX_POINTS`, `(n, 2)` columns and rows within the frame."""
    points: np.ndarray = outline.astype(np.float32)
    tolerance_px = 0.5
    while len(points) >= _MAX_POINTS:
        points = cv2.approxPolyDP(outline.astype(np.float32), tolerance_px, True)[:, 0]
        tolerance_px *= 2
    limit = (image.layout.columns, image.layout.rows)
    return np.clip(np.concatenate([points, points[:1]]), 0, limit)


def _key_image(study: Study, answer: PatientAnswer, model: Grader) -> Dataset:
    shown = key_frame(answer)
    frame = None
    if shown is not None:
        try:
            frame = study.frame(shown.name)
        except Rejection:  # words alone then
            shown = None
    lines = answer_lines(answer, model.num_training)
    pixels = draw_key_image([*lines, f"Model {model.name}, {model.sha256[:12]}"], shown, frame)
    identity = study.identity
    image = highdicom.sc.SCImage(
        pixel_array=pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),
        study_instance_uid=study.uid,
        patient_id=identity.PatientID,
        patient_name=identity.PatientName,
        patient_birth_date=identity.PatientBirthDate,
        patient_sex=identity.PatientSex,
        accession_number=identity.AccessionNumber,
        study_id=identity.StudyID,
        study_date=identity.StudyDate or None,
        study_time=identity.StudyTime or None,
        referring_physician_name=identity.ReferringPhysicianName,
        specific_character_set=identity.SpecificCharacterSet,
        **_series_of("key", study, model),
    )
    for element in identity:
        if element.keyword not in image:
            image.add(element)
    image["PatientOrientation"].value = None  # of an oblique section nobody states it
    image.BodyPartExamined = "LIVER"
    image.BurnedInAnnotation = _burned_in(study)
    image.ImageComments = "Research, not for diagnosis"
    for keyword in ("DateOfSecondaryCapture", "TimeOfSecondaryCapture"):
        image.pop(keyword, None)
    _date(image, study)
    _name_by_content(image)
    return image


def _burned_in(study: Study) -> str:
    """Only the sector is shown; what stands inside it nobody blanks."""
    marked = any(text_of(image.header, "BurnedInAnnotation") == "YES" for image in study.images)
    return "YES" if marked else "NO"


def _series_of(kind: str, study: Study, model: Grader) -> dict[str, Any]:
    """What both files say of the series and the program that made them."""
    return {
        "series_instance_uid": _uid(kind, study.uid, __version__, model.sha256),
        "series_number": _SERIES_NUMBERS[kind],
        "sop_instance_uid": _uid(kind, study.uid),  # until the content is known
        "instance_number": 1,
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": MANUFACTURER,
        "software_versions": __version__,
        "device_serial_number": model.sha256,
        "series_description": "Fatty liver, research, not for diagnosis",
        "content_date": study.date,
        "content_time": study.time,
    }


_SCHEME_ITEM = CodingSchemeIdentificationItem(
    designator=SCHEME,
    name="Private codes of steatosis_tf",
    version="1",
    responsible_organization="steatosis_tf",
)


def _evidence(study: Study, image: StudyImage) -> Dataset:
    """An image as highdicom asks for it, with the identity that could be made valid."""
    evidence = Dataset()
    evidence.update(study.identity)
    evidence.SOPClassUID, evidence.SOPInstanceUID = image.header.SOPClassUID, image.uid
    evidence.SeriesInstanceUID = image.header.SeriesInstanceUID
    evidence.Modality = "US"
    return evidence


def _date(dataset: Dataset, study: Study) -> None:
    """By the newest image: the hour of grading would make two files of one content."""
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = study.date, study.time
    for item in dataset.get("ContributingEquipmentSequence") or ():
        item.pop("ContributionDateTime", None)


def _name_by_content(dataset: Dataset) -> None:
    dataset.SOPInstanceUID = _uid("content", hashlib.sha256(answer_bytes(dataset)).hexdigest())
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID


def _heads(earlier: Sequence[Dataset], uid: str) -> list[Dataset]:
    """The newest of the earlier reports: those that no other one follows."""
    others = [report for report in earlier if text_of(report, "SOPInstanceUID") != uid]
    followed = {
        item.ReferencedSOPInstanceUID
        for report in others
        for item in _references(report, "PredecessorDocumentsSequence")
    }
    return [report for report in others if report.SOPInstanceUID not in followed]


def _evidence_uids(report: Dataset) -> set[str]:
    return {
        str(item.ReferencedSOPInstanceUID)
        for item in _references(report, "CurrentRequestedProcedureEvidenceSequence")
    }


def _references(report: Dataset, keyword: str) -> Iterable[Dataset]:
    for study in report.get(keyword) or ():
        for series in study.ReferencedSeriesSequence:
            yield from series.ReferencedSOPSequence


def _number(code: Code, value: float, unit: str) -> hd.Measurement | None:
    """A measurement of four digits; None for what was not measured."""
    if not math.isfinite(value):
        return None
    symbol = unit.partition(" ")[0]  # "% of the liver" is %
    coded = Code(symbol if symbol in _UCUM else "1", "UCUM", _UNITS_IN_WORDS.get(unit, unit))
    return hd.Measurement(code, float(f"{value:.4g}"), coded)


def _private(code: str, meaning: str) -> Code:
    """A code of ours; DICOM allows 64 letters of meaning."""
    return Code(code, SCHEME, meaning if len(meaning) <= 64 else f"{meaning[:61]}...")


def _uid(*parts: str) -> str:
    """A UID by name (PS3.5 B.2): the same parts always give the same one."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, chr(0).join((MANUFACTURER, *parts))).int}"
