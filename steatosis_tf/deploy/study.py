"""One DICOM study as the answer to a PACS needs it: its ultrasound images, and our earlier answers.

Everything stays in memory and inside the house: the header goes back to where it came from. What
may leave is made by `steatosis ingest`.
"""

import collections
import datetime
import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import UID

from steatosis_tf.deploy.inputs import Group
from steatosis_tf.deploy.predict import Grader, answer_group
from steatosis_tf.model.answer import PatientAnswer
from steatosis_tf.sources.dicom.files import Source, SourceFile
from steatosis_tf.sources.dicom.pixels import FrameReader, Layout, pixel_bytes, read_layout
from steatosis_tf.sources.dicom.read import (
    DICOM_ERRORS,
    ULTRASOUND_CLASSES,
    Region,
    day_of,
    find_region,
    person_of,
    read_dataset,
    text_of,
)
from steatosis_tf.sources.images import quiet_readers
from steatosis_tf.sources.pseudonym import normal_patient_id
from steatosis_tf.sources.rejection import Rejection

#: Manufacturer of every answer; by it an answer is told from an image of the study.
MANUFACTURER = "steatosis_tf"
#: Content date of an answer to a study that has no date at all, as after de-identification.
NO_DATE = "19000101"

_UIDS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
# Type 2: must be there, may be empty (PS3.3 C.7.1.1, C.7.2.1). The rest is copied where it stands.
_IDENTITY = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex",
             "StudyInstanceUID", "StudyDate", "StudyTime", "AccessionNumber", "StudyID",
             "ReferringPhysicianName")  # fmt: skip
_ALSO_KEPT = ("IssuerOfPatientID", "StudyDescription", "PatientIdentityRemoved",
              "DeidentificationMethod", "LongitudinalTemporalInformationModified")  # fmt: skip
_ONE_OF = {"StudyInstanceUID": "study", "PatientID": "patient"}
_TIME = re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?")
_SEXES = ("M", "F", "O")


class NothingToGrade(ValueError):
    """A study without an image of a liver's kind: passed over, not failed."""


@dataclass(frozen=True)
class StudyImage:
    """One ultrasound still or clip.

    Attributes:
        uid: SOPInstanceUID; with `#` and the frame's number behind it, the name of a frame.
        header: without pixel data.
        layout: shape of its frames.
        region: its 2-D tissue region, or None where the file states none.
        file: where its pixels are.
    """

    uid: str
    header: FileDataset
    layout: Layout
    region: Region | None
    file: SourceFile


@dataclass(frozen=True)
class Study:
    """The images of one study of one patient.

    Attributes:
        source: folder or zip archive that was read, or files in memory by their names.
        images: in the order of their UIDs.
        earlier: structured reports of ours on this study.
        passed_over: reason -> number of files that are no image to be graded.
        identity: patient and study in UTF-8, what type 2 asks for filled up.
        date, time: newest moment that the images tell, `YYYYMMDD` and `HHMMSS`.
    """

    source: str | Path | Mapping[str, bytes]
    images: tuple[StudyImage, ...]
    earlier: tuple[Dataset, ...]
    passed_over: dict[str, int]
    identity: Dataset
    date: str
    time: str

    @property
    def uid(self) -> str:
        """StudyInstanceUID."""
        return str(self.identity.StudyInstanceUID)

    def frame(self, name: str) -> np.ndarray:
        """One frame as `(height, width)` or `(height, width, 3)` uint8.

        Args:
            name: SOPInstanceUID, `#` and number of the frame, 1 for the first.

        Raises:
            Rejection: if it cannot be decoded.
        """
        uid, _, number = name.partition("#")
        image = next(image for image in self.images if image.uid == uid)
        with quiet_readers(), Source(self.source) as source:
            dataset = read_dataset(io.BytesIO(source.read(image.file)), with_pixels=True)
            return FrameReader(dataset, image.layout).read(int(number or 1) - 1)


def read_study(
    source: str | Path | Mapping[str, bytes], answers: Iterable[str | Path] = ()
) -> Study:
    """Read the headers of a study.

    Args:
        source: folder or zip archive with the files of one study, or the files by their names.
            Whatever is no ultrasound image in it is passed over and counted.
        answers: more files, among which earlier answers of ours to this study may be.

    Raises:
        NothingToGrade: if there is no 2-D ultrasound image.
        ValueError: if the files are of two patients or studies.
    """
    images: dict[str, StudyImage] = {}
    reasons: collections.Counter[str] = collections.Counter()
    headers: list[FileDataset] = []
    own: list[Dataset] = []
    with quiet_readers(), Source(source) as opened:
        for file in opened.files:
            try:
                with opened.open(file) as stream:
                    header = read_dataset(stream, with_pixels=False)
                if text_of(header, "Manufacturer") == MANUFACTURER:
                    own.append(header)
                    raise Rejection("own_answer")
                headers.append(header)
                image = _image(header, file)
                if image.uid in images:
                    _refuse_conflict(opened, images[image.uid], image)
                images[image.uid] = image
            except Rejection as rejection:
                reasons[str(rejection)] += 1
        own += _opened(answers)
    _check_one(headers)
    found = tuple(images[uid] for uid in sorted(images))
    if not found:
        seen = ", ".join(f"{number} x {reason}" for reason, number in reasons.most_common(3))
        raise NothingToGrade(
            "Expected a DICOM study with a 2-D ultrasound image. "
            f"Received: {sum(reasons.values())} files ({seen or 'none'})."
        )
    with quiet_readers():
        identity = _identity(found[0].header)
    earlier = {
        text_of(answer, "SOPInstanceUID"): answer
        for answer in own
        if text_of(answer, "Modality") == "SR"
        and text_of(answer, "StudyInstanceUID") == identity.StudyInstanceUID
    }
    date, time = max(_moment(image.header) for image in found)
    return Study(source, found, tuple(earlier.values()), dict(reasons), identity, date, time)


def grade_study(study: Study, grader: Grader) -> PatientAnswer:
    """Grade a study as `predict` does; each frame is named by its image's UID.

    Args:
        study: as `read_study` read it.
        grader: as `predict.open_model` opened it.
    """
    day = day_of(str(study.identity.StudyDate))
    with Source(study.source) as source:
        group = Group(study.uid, day.isoformat() if day else "")
        for image in study.images:
            load = partial(source.read, image.file)
            group.add_dicom(image.uid, load, image.layout, image.region, [])
        return answer_group(grader, group)[0]


def _image(header: FileDataset, file: SourceFile) -> StudyImage:
    if text_of(header, "SOPClassUID") not in ULTRASOUND_CLASSES:
        is_us = text_of(header, "Modality").upper() == "US"
        raise Rejection("other_class" if is_us else "not_ultrasound")
    if not all(UID(text_of(header, keyword)).is_valid for keyword in _UIDS):
        raise Rejection("no_uid")
    layout = read_layout(header)
    region = find_region(header, layout.rows, layout.columns)
    return StudyImage(text_of(header, "SOPInstanceUID"), header, layout, region, file)


def _refuse_conflict(source: Source, first: StudyImage, second: StudyImage) -> None:
    """A copy is passed over; one UID on two pictures leaves open which of them the answer is on."""
    one, other = (
        hashlib.sha256(
            pixel_bytes(read_dataset(io.BytesIO(source.read(image.file)), with_pixels=True))
        ).digest()
        for image in (first, second)
    )
    if one == other:
        raise Rejection("copy")
    raise ValueError(
        "Expected one picture for each SOPInstanceUID. Received: one UID on two different "
        "pictures. Export the study again."
    )


def _check_one(headers: Sequence[Dataset]) -> None:
    """A report on two patients would show one the other's liver."""
    for keyword, what in _ONE_OF.items():
        values = {normal_patient_id(text_of(header, keyword)) for header in headers}
        if len(values) > 1:
            raise ValueError(
                f"Expected the files of one {what}. Received: {len(values)} different values of "
                f"{keyword} in one folder. Give each {what} a folder of its own."
            )
    if not all(one.may_be(other) for one, other in combinations(set(map(person_of, headers)), 2)):
        raise ValueError(
            "Expected the files of one patient. Received: one PatientID with two issuers, birth "
            "dates or names without a common word. Give each patient a folder of its own."
        )


def _opened(paths: Iterable[str | Path]) -> list[Dataset]:
    found: list[Dataset] = []
    for path in paths:
        try:
            with Path(path).open("rb") as stream:
                header = read_dataset(stream, with_pixels=False)
        except (Rejection, OSError):
            continue
        if text_of(header, "Manufacturer") == MANUFACTURER:
            found.append(header)
    return found


def _identity(header: FileDataset) -> Dataset:
    """Patient and study, recoded to UTF-8; what cannot be valid is left empty."""
    try:
        header.decode()
    except (*DICOM_ERRORS, UnicodeError):  # the values stay as far as they could be read
        pass
    identity = Dataset()
    identity.SpecificCharacterSet = "ISO_IR 192"
    for keyword in (*_IDENTITY, *_ALSO_KEPT):
        text = text_of(header, keyword)
        if text or keyword in _IDENTITY:
            setattr(identity, keyword, text)
    for keyword in ("PatientBirthDate", "StudyDate"):
        day = day_of(str(identity.get(keyword)))
        setattr(identity, keyword, _stamp(day))
    if _TIME.fullmatch(str(identity.StudyTime)) is None:
        identity.StudyTime = ""
    if identity.PatientSex not in _SEXES:
        identity.PatientSex = ""
    if text_of(identity, "PatientIdentityRemoved") == "YES" and not text_of(
        identity, "DeidentificationMethod"
    ):  # asked for where identity was removed
        identity.DeidentificationMethod = "as stated in the images"
    return identity


def _moment(header: Dataset) -> tuple[str, str]:
    """When an image was made, as far as its header tells."""
    for of in ("Content", "Acquisition", "Series", "Study"):
        day = day_of(text_of(header, f"{of}Date"))
        if day is not None:
            time = text_of(header, f"{of}Time")
            return _stamp(day), time[:6].ljust(6, "0") if _TIME.fullmatch(time) else "000000"
    return NO_DATE, "000000"


def _stamp(day: datetime.date | None) -> str:
    return "" if day is None else f"{day:%Y%m%d}"
