"""The header of one DICOM file, reduced to what an ingest needs, and the region it states."""

import datetime
import io
import math
import re
import struct
import zlib
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.uid import UID

from steatosis_tf.sources.images import MIN_SIDE_PX
from steatosis_tf.sources.pseudonym import normal_name, normal_patient_id
from steatosis_tf.sources.rejection import Rejection

#: What pydicom and the decoders are known to raise on damaged input.
DICOM_ERRORS = (
    InvalidDicomError, BytesLengthException, ValueError, TypeError, LookupError, AttributeError,
    RuntimeError, ArithmeticError, MemoryError, EOFError, OSError, struct.error, zlib.error,
)  # fmt: skip

# PS3.4 table B.5-1, with the retired classes that older scanners still send.
ULTRASOUND_CLASSES = frozenset(f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("3", "3.1", "6", "6.1"))
VOLUME_CLASS = "1.2.840.10008.5.1.4.1.1.6.2"
DIRECTORY_CLASS = "1.2.840.10008.1.3.10"

_DEFLATED_SYNTAX, _INFLATED_SYNTAX = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1\0\0\0"
#: A deflated file may hold so much; a bomb of a megabyte unpacks to a gigabyte.
MAX_INFLATED_BYTES = 128 * 2**20

_PIXEL_TAGS = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))
_MARKER_AT = 128
_HEAD_BYTES = 65536
_ARCHIVE_MARKS = (b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!", b"BZh")
# Whatever else stands there counts as YES, and is not passed on: it could be a name.
_BURNED_IN = {"": "", "NO": "NO", "YES": "YES"}


class Person(NamedTuple):
    """Who a file says it shows, beside the id.

    Attributes:
        issuer: of the id, normalised, or "".
        birth_date: YYYY-MM-DD, or "".
        name: of `normal_name`, or ().
    """

    issuer: str
    birth_date: str
    name: tuple[str, ...]

    def may_be(self, other: "Person") -> bool:
        """Whether two files of one id may show one person; what is not stated agrees with all.

        Two hospitals give one id to two people. Names agree if they share a word: people marry.
        """
        return (
            (not self.issuer or not other.issuer or self.issuer == other.issuer)
            and (not self.birth_date or not other.birth_date or self.birth_date == other.birth_date)
            and (not self.name or not other.name or bool({*self.name} & {*other.name}))
        )


@dataclass(frozen=True)
class Header:
    """Who, when and what: all of it stays in memory or beside the key.

    Attributes:
        patient: normalised identity the patient pseudonym is made from.
        patient_id: as written, for the findings on spellings.
        person: who has that id.
        study_uid: StudyInstanceUID, or a stand-in from the patient and date.
        instance_uid: SOPInstanceUID, or "".
        study_date: day of the study, or None; a day that is still to come is none.
        sex: "M", "F", "O" or "".
        age: whole years, at most 89, or None.
        burned_in: "YES", "NO" or "".
    """

    patient: tuple[str, ...]
    patient_id: str
    person: Person
    study_uid: str
    instance_uid: str
    study_date: datetime.date | None
    sex: str
    age: int | None
    burned_in: str


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
    end = _end_of_meta(head)
    if _DEFLATED_SYNTAX in head[:end]:
        stream = _inflated(stream, head[:end])
        head = stream.read(_HEAD_BYTES)
    if not end or head[end : end + 2] == b"\0\0":  # pydicom would read all the zeros
        raise Rejection("damaged_header")
    stream.seek(0)
    try:
        dataset = read_partial(stream, _stop_at(_PIXEL_TAGS if not with_pixels else ()))
        syntax = dataset.file_meta.get("TransferSyntaxUID", "")
    except (*DICOM_ERRORS, RecursionError) as error:
        raise Rejection("damaged_header") from error
    if not syntax or not isinstance(syntax, str):  # damage can make a list of it
        raise Rejection("no_transfer_syntax")
    return dataset


def _end_of_meta(head: bytes) -> int:
    """Where group 2 ends, which a file begins with; 0 if it does not."""
    start = at = _MARKER_AT + 4
    while head[at : at + 2] == b"\x02\0" and at + 12 <= len(head):
        if head[at + 4 : at + 6] in (b"OB", b"OW", b"UN", b"SQ", b"UT"):
            at += 12 + int.from_bytes(head[at + 8 : at + 12], "little")
        else:
            at += 8 + int.from_bytes(head[at + 6 : at + 8], "little")
    return at if at > start else 0


def _inflated(stream: BinaryIO, meta: bytes) -> BinaryIO:
    """A deflated file as it is before deflating, of which pydicom would unpack any amount."""
    stream.seek(len(meta))
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = unpacker.decompress(stream.read(), MAX_INFLATED_BYTES + 1)
    except zlib.error as error:
        raise Rejection("damaged_header") from error
    if len(data) > MAX_INFLATED_BYTES:
        raise Rejection("deflated", limit=MAX_INFLATED_BYTES // 2**20)
    return io.BytesIO(meta.replace(_DEFLATED_SYNTAX, _INFLATED_SYNTAX) + data)


def _stop_at(tags: Container[int]) -> Callable[[int, str | None, int], bool]:
    """Says where to stop reading; an element that repeats is no header but endless zeros."""
    seen: set[int] = set()

    def stops(tag: int, _vr: str | None, _length: int) -> bool:
        if tag in seen:
            raise ValueError("an element stands twice")
        seen.add(tag)
        return tag in tags

    return stops


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


def text_of(dataset: Dataset, keyword: str) -> str:
    """One element as stripped text; "" if it is absent, empty or unreadable."""
    try:
        value = dataset.get(keyword, "")
        if value is None:
            return ""
        if (
            not isinstance(value, str)
            and hasattr(value, "__iter__")
            and not isinstance(value, pydicom.valuerep.PersonName)
        ):
            value = "\\".join(str(part) for part in value)
        return str(value).strip(" \0\t\r\n")
    except DICOM_ERRORS:
        return ""


def number_of(dataset: Dataset, keyword: str) -> float | None:
    """One element as a finite number; None if it is absent, multiple or unreadable."""
    text = text_of(dataset, keyword)
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None


def read_header(dataset: Dataset) -> Header:
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
    dates = (
        day_of(text_of(dataset, keyword))
        for keyword in ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")
    )
    latest = datetime.date.today() + datetime.timedelta(days=1)  # of clocks further east
    study_date = next((date for date in dates if date is not None and date <= latest), None)
    study_uid = text_of(dataset, "StudyInstanceUID")
    sex = text_of(dataset, "PatientSex").upper()
    return Header(
        patient=patient,
        patient_id=text_of(dataset, "PatientID"),
        person=person_of(dataset),
        study_uid=study_uid or "\0".join((*patient, str(study_date))),
        instance_uid=text_of(dataset, "SOPInstanceUID"),
        study_date=study_date,
        sex=sex if sex in ("M", "F", "O") else "",
        age=age_in_years(
            text_of(dataset, "PatientAge"), day_of(text_of(dataset, "PatientBirthDate")), study_date
        ),
        burned_in=_BURNED_IN.get(text_of(dataset, "BurnedInAnnotation").upper(), "YES"),
    )


def person_of(dataset: Dataset) -> Person:
    """Who a header says it is of."""
    birth = day_of(text_of(dataset, "PatientBirthDate"))
    return Person(
        issuer=normal_patient_id(text_of(dataset, "IssuerOfPatientID")),
        birth_date=birth.isoformat() if birth else "",
        name=normal_name(text_of(dataset, "PatientName")),
    )


def _patient_of(dataset: Dataset) -> tuple[str, ...]:
    """What the patient pseudonym is made from: the id, or name and birth date without one."""
    patient_id = normal_patient_id(text_of(dataset, "PatientID"))
    if patient_id:
        return "id", patient_id
    name = normal_name(text_of(dataset, "PatientName"))
    birth_date = text_of(dataset, "PatientBirthDate")
    if not name or not day_of(birth_date):
        raise Rejection("no_patient")
    return "name", *name, birth_date


_DATE = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})")  # 2001.12.31 is the ACR-NEMA form
_AGE = re.compile(r"(\d{3})([DWMY])")
_YEARS_PER_UNIT = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}
MAX_AGE_YEARS = 89


def day_of(text: str) -> datetime.date | None:
    """A DICOM date (`DA`) as a date; None if it is empty or impossible."""
    match = _DATE.fullmatch(text)
    if match is None:
        return None
    try:
        return datetime.date(*(int(part) for part in match.groups()))
    except ValueError:
        return None


def age_in_years(
    stated: str, birth: datetime.date | None, study: datetime.date | None
) -> int | None:
    """Age at the study in whole years, capped at 89.

    Ages over 89 are few enough to point at a person (45 CFR 164.514(b)(2)(i)(C)).

    Args:
        stated: PatientAge such as "045Y" or "018M", or "".
        birth: date of birth, used where no age is stated.
        study: date of the study.

    Returns:
        0 to 89, or None if neither source gives an age.
    """
    match = _AGE.fullmatch(stated)
    if match is not None:
        return min(MAX_AGE_YEARS, int(int(match.group(1)) * _YEARS_PER_UNIT[match.group(2)]))
    if birth is None or study is None or study < birth:
        return None
    had_birthday = (study.month, study.day) >= (birth.month, birth.day)
    return min(MAX_AGE_YEARS, study.year - birth.year - (not had_birthday))


_FORMAT_2D, _FORMAT_M_MODE, _FORMAT_SPECTRAL = 1, 2, 3
_TYPE_NONE, _TYPE_TISSUE, _TYPE_COLOUR_FLOW = 0, 1, 2
_SPECTRAL_TYPES = (3, 4, 5, 6, 7)  # pulsed and continuous wave, and their traces
_UNIT_CM = 3

# Image Type value 4: M-mode, CW, PW, colour Doppler, colour M-mode, 3-D, colour power, tissue
# characterisation. 0001 is 2-D imaging, 0400 only says that frames are spatially related.
_OTHER_MODES = 0x0002 | 0x0004 | 0x0008 | 0x0010 | 0x0020 | 0x0040 | 0x0100 | 0x0200

# Vendors write the last column as `columns` or `columns - 1`; further out the picture was rescaled
# after the regions were written, and neither place nor spacing can be believed.
_OVERHANG_PX = 2


@dataclass(frozen=True)
class Region:
    """The 2-D tissue region of a frame.

    Attributes:
        top, left, height, width: px of the full frame.
        pixel_height_mm, pixel_width_mm: size of one pixel, or None if not stated in cm.
        transducer_frequency_mhz: or None.
    """

    top: int
    left: int
    height: int
    width: int
    pixel_height_mm: float | None
    pixel_width_mm: float | None
    transducer_frequency_mhz: float | None


def find_region(dataset: Dataset, rows: int, columns: int) -> Region | None:
    """The one 2-D tissue region of a file.

    Args:
        dataset: header of an ultrasound image.
        rows: height of its frames, px.
        columns: width of its frames, px.

    Returns:
        The region, or None if the file states none that fits its own picture.

    Raises:
        Rejection: if the file holds Doppler, M-mode, or more than one 2-D picture.
    """
    _refuse_other_modes(dataset)
    try:
        items = list(dataset.get("SequenceOfUltrasoundRegions") or ())
    except DICOM_ERRORS:
        items = []
    tissue: dict[tuple[int, int, int, int], Dataset] = {}
    num_regions = 0
    for item in items:
        place = _place(item)
        if place is None:
            continue
        num_regions += 1
        if _is_tissue(item):
            tissue.setdefault(place, item)
    if not num_regions:
        return None
    if not tissue:
        raise Rejection("no_tissue_region")
    if len(tissue) > 1:
        raise Rejection("split_screen", count=len(tissue))
    (place, item), *_ = tissue.items()
    return _fitted(place, item, rows, columns)


def _refuse_other_modes(dataset: Dataset) -> None:
    values = text_of(dataset, "ImageType").split("\\")
    modes = values[3].strip() if len(values) > 3 else ""
    if re.fullmatch(r"[0-9A-Fa-f]{4}", modes) and int(modes, 16) & _OTHER_MODES:
        raise Rejection("image_type_doppler")


def _is_tissue(item: Dataset) -> bool:
    """Whether a region is a 2-D tissue picture; a Doppler or M-mode region is refused."""
    spatial = number_of(item, "RegionSpatialFormat")
    kind = number_of(item, "RegionDataType")
    if kind == _TYPE_COLOUR_FLOW:
        raise Rejection("colour_doppler")
    if spatial == _FORMAT_M_MODE:
        raise Rejection("m_mode")
    if spatial == _FORMAT_SPECTRAL or kind in _SPECTRAL_TYPES:
        raise Rejection("spectral_doppler")
    return spatial == _FORMAT_2D and kind in (_TYPE_TISSUE, _TYPE_NONE)


def _place(item: Dataset) -> tuple[int, int, int, int] | None:
    """`(x0, y0, x1, y1)` px, inclusive; None for a region without extent."""
    corners = [
        number_of(item, f"RegionLocation{name}") for name in ("MinX0", "MinY0", "MaxX1", "MaxY1")
    ]
    if any(corner is None for corner in corners):
        return None
    x0, y0, x1, y1 = (int(corner) for corner in corners if corner is not None)
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def _fitted(
    place: tuple[int, int, int, int], item: Dataset, rows: int, columns: int
) -> Region | None:
    x0, y0, x1, y1 = place
    if x1 >= columns + _OVERHANG_PX or y1 >= rows + _OVERHANG_PX or x0 < 0 or y0 < 0:
        return None
    x1, y1 = min(x1, columns - 1), min(y1, rows - 1)
    height, width = y1 - y0 + 1, x1 - x0 + 1
    if min(height, width) < MIN_SIDE_PX:
        raise Rejection("small_region", low=MIN_SIDE_PX)
    frequency_khz = number_of(item, "TransducerFrequency")
    return Region(
        top=y0,
        left=x0,
        height=height,
        width=width,
        pixel_height_mm=_spacing_mm(item, "Y"),
        pixel_width_mm=_spacing_mm(item, "X"),
        transducer_frequency_mhz=(
            frequency_khz / 1000
            if frequency_khz is not None and 500 <= frequency_khz <= 50_000
            else None
        ),
    )


def _spacing_mm(item: Dataset, axis: str) -> float | None:
    """Millimetres per pixel along one axis; some scanners count y upwards, hence the sign."""
    delta_cm = number_of(item, f"PhysicalDelta{axis}")
    if delta_cm is None or number_of(item, f"PhysicalUnits{axis}Direction") != _UNIT_CM:
        return None
    spacing_mm = abs(delta_cm) * 10
    # 0.001 mm is under any wavelength used on a liver, 10 mm would make a frame metres wide.
    return spacing_mm if math.isfinite(spacing_mm) and 0.001 < spacing_mm < 10 else None
