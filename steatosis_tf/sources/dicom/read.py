"""The header of one DICOM file, reduced to what an ingest needs."""

import contextlib
import datetime
import logging
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pydicom
from pydicom.dataset import FileDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import UID

from steatosis_tf.sources.dicom.dates import age_in_years, day_of
from steatosis_tf.sources.pseudonym import normal_name, normal_patient_id
from steatosis_tf.sources.rejection import Rejection

#: What pydicom and the decoders are known to raise on damaged input.
DICOM_ERRORS = (
    InvalidDicomError,
    BytesLengthException,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    LookupError,
    OverflowError,
    MemoryError,
    EOFError,
    OSError,
    struct.error,
    zlib.error,
    ArithmeticError,
)

# PS3.4 table B.5-1, with the retired classes that older scanners still send.
ULTRASOUND_CLASSES = frozenset(f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("3", "3.1", "6", "6.1"))
VOLUME_CLASS = "1.2.840.10008.5.1.4.1.1.6.2"
DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
DEFLATED_SYNTAX = b"1.2.840.10008.1.2.1.99"

_MARKER_AT = 128
_HEAD_BYTES = 65536
_ARCHIVE_MARKS = (b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!", b"BZh")
# Whatever else stands there counts as YES, and is not passed on: it could be a name.
_BURNED_IN = {"": "", "NO": "NO", "YES": "YES"}


@dataclass(frozen=True)
class Header:
    """Who, when and what: all of it stays in memory or beside the key.

    Attributes:
        patient: normalised identity the patient pseudonym is made from.
        patient_id, name, birth_date: as written, for the findings on spellings.
        study_uid: StudyInstanceUID, or a stand-in from the patient and date.
        instance_uid: SOPInstanceUID, or "".
        study_date: day of the study, or None.
        sex: "M", "F", "O" or "".
        age: whole years, at most 89, or None.
        burned_in: "YES", "NO" or "".
    """

    patient: tuple[str, ...]
    patient_id: str
    name: tuple[str, ...]
    birth_date: str
    study_uid: str
    instance_uid: str
    study_date: datetime.date | None
    sex: str
    age: int | None
    burned_in: str


@contextlib.contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Silences pydicom: its warnings and log lines quote the values they are about."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def read_dataset(stream: BinaryIO, *, with_pixels: bool) -> FileDataset:
    """Parse one file.

    Args:
        stream: the file, at its start, seekable.
        with_pixels: False stops before the pixel data.

    Raises:
        Rejection: if this is not a DICOM file that can be read.
    """
    head = stream.read(_HEAD_BYTES)
    if not head:
        raise Rejection("empty_file")
    if head[_MARKER_AT : _MARKER_AT + 4] != b"DICM":
        raise Rejection(_what_else(head))
    if DEFLATED_SYNTAX in head[:1024]:  # inflating is unbounded, and no scanner writes it
        raise Rejection("deflated")
    stream.seek(0)
    try:
        dataset = pydicom.dcmread(stream, stop_before_pixels=not with_pixels)
        syntax = dataset.file_meta.get("TransferSyntaxUID", "")
    except (*DICOM_ERRORS, RecursionError) as error:
        raise Rejection("damaged_header") from error
    if not syntax or not isinstance(syntax, str):  # damage can make a list of it
        raise Rejection("no_transfer_syntax")
    return dataset


def _what_else(data: bytes) -> str:
    if data.startswith(_ARCHIVE_MARKS):
        return "nested_archive"
    sample = np.frombuffer(data, np.uint8)
    share = np.bincount(sample, minlength=256) / sample.size
    share = share[share > 0]
    bits_per_byte = -float(np.sum(share * np.log2(share)))
    known_image = data.startswith((b"\xff\xd8", b"\x89PNG", b"%PDF", b"RIFF"))
    # 4 KiB of random bytes measure 7.95 bits per byte, plain pixels and text below 7.5.
    if len(data) >= 4096 and bits_per_byte > 7.9 and not known_image:
        return "looks_encrypted"
    return "no_marker"


def text_of(dataset: pydicom.Dataset, keyword: str) -> str:
    """One element as stripped text; "" if it is absent, empty or unreadable."""
    try:
        value = dataset.get(keyword, "")
        if value is None:
            return ""
        if not isinstance(value, str) and hasattr(value, "__iter__") and not _is_name(value):
            value = "\\".join(str(part) for part in value)
        return str(value).strip(" \0\t\r\n")
    except DICOM_ERRORS:
        return ""


def _is_name(value: object) -> bool:
    return isinstance(value, pydicom.valuerep.PersonName)


def number_of(dataset: pydicom.Dataset, keyword: str) -> float | None:
    """One element as a finite number; None if it is absent, multiple or unreadable."""
    try:
        number = float(text_of(dataset, keyword))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def read_header(dataset: pydicom.Dataset) -> Header:
    """Check that a data set is a 2-D ultrasound image of a known patient, and take its identity.

    Raises:
        Rejection: if it is not.
    """
    object_class = UID(text_of(dataset, "SOPClassUID"))
    media_class = text_of(getattr(dataset, "file_meta", dataset), "MediaStorageSOPClassUID")
    if DIRECTORY_CLASS in (object_class, media_class) or "DirectoryRecordSequence" in dataset:
        raise Rejection("directory")
    if VOLUME_CLASS in (object_class, media_class):
        raise Rejection("volume")
    if not object_class and "Modality" not in dataset:
        raise Rejection("damaged_header")
    if text_of(dataset, "Modality").upper() != "US" and object_class not in ULTRASOUND_CLASSES:
        raise Rejection("not_ultrasound")
    if "Rows" not in dataset and "PhotometricInterpretation" not in dataset:
        raise Rejection("no_image")

    patient = _patient_of(dataset)
    birth_date = text_of(dataset, "PatientBirthDate")
    dates = (
        day_of(text_of(dataset, keyword))
        for keyword in ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")
    )
    study_date = next((date for date in dates if date is not None), None)
    study_uid = text_of(dataset, "StudyInstanceUID")
    sex = text_of(dataset, "PatientSex").upper()
    return Header(
        patient=patient,
        patient_id=text_of(dataset, "PatientID"),
        name=normal_name(text_of(dataset, "PatientName")),
        birth_date=birth_date,
        study_uid=study_uid or "\0".join((*patient, str(study_date))),
        instance_uid=text_of(dataset, "SOPInstanceUID"),
        study_date=study_date,
        sex=sex if sex in ("M", "F", "O") else "",
        age=age_in_years(text_of(dataset, "PatientAge"), day_of(birth_date), study_date),
        burned_in=_BURNED_IN.get(text_of(dataset, "BurnedInAnnotation").upper(), "YES"),
    )


def _patient_of(dataset: pydicom.Dataset) -> tuple[str, ...]:
    """What the patient pseudonym is made from: the id, or name and birth date without one."""
    patient_id = normal_patient_id(text_of(dataset, "PatientID"))
    if patient_id:
        return "id", patient_id
    name = normal_name(text_of(dataset, "PatientName"))
    birth_date = text_of(dataset, "PatientBirthDate")
    if not name or not day_of(birth_date):
        raise Rejection("no_patient")
    return "name", *name, birth_date
