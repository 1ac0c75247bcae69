"""Personal values of DICOM headers, in a form in which they can be looked for.

Deliberately not the allow-list of the de-identification: everything a header says in words, ids
or dates counts as personal unless it is a technical term, so that the audit can catch an
allow-list that is too wide.
"""

import datetime
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import pydicom

from steatosis_tf.sources.dicom.dates import day_of
from steatosis_tf.sources.dicom.read import DICOM_ERRORS, text_of

# Free text by value representation (PS3.5 6.2); codes (CS) and numbers cannot name a person.
_TEXT_VRS = frozenset(("LO", "SH", "ST", "LT", "UT", "UC", "UR", "AE"))
_PERSONAL_VRS = _TEXT_VRS | {"PN", "UI", "DA", "DT"}
_STANDARD_UID = "1.2.840.10008."
_TECHNICAL = frozenset(
    (
        "Manufacturer", "ManufacturerModelName", "SoftwareVersions", "TransducerData",
        "TransducerIdentificationSequence", "ProcessingFunction", "CodeValue", "CodeMeaning",
        "CodingSchemeDesignator", "CodingSchemeVersion", "DerivationDescription",
        "WindowCenterWidthExplanation", "LUTExplanation", "TimezoneOffsetFromUTC",
        "LossyImageCompressionMethod",
    )
)  # fmt: skip

_MODEL = "ManufacturerModelName"
_OFTEN_THE_SCANNER = frozenset(
    (
        "StationName", "InstitutionName", "InstitutionalDepartmentName", "DeviceDescription",
        "PerformedStationName", "ScheduledStationName", "SourceApplicationEntityTitle",
        "PrivateTag",
    )
)  # fmt: skip

_RUNS = re.compile(r"[^\W\d_]+|\d+")


@dataclass(frozen=True)
class PersonalValue:
    """One value to look for.

    Attributes:
        tag: keyword of the DICOM element it comes from; never the value itself in a report.
        kind: "name", "id", "date" or "text".
        runs: the value as runs of letters and runs of digits, in lower case, without accents.
    """

    tag: str
    kind: str
    runs: tuple[str, ...]


def runs_of(text: str) -> tuple[str, ...]:
    """Runs of letters and of digits: "John-Doe 1950" gives ("john", "doe", "1950")."""
    return _short_runs(text) if len(text) < 200 else _runs(text)


def _runs(text: str) -> tuple[str, ...]:
    if not text.isascii():
        decomposed = unicodedata.normalize("NFKD", text)
        text = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return tuple(_RUNS.findall(text.casefold()))


_short_runs = lru_cache(maxsize=1 << 16)(_runs)  # cells of a table repeat


def personal_values(dataset: pydicom.Dataset) -> set[PersonalValue]:
    """All names, ids, dates and free texts of a header, in sequences and private tags too.

    A station or institution called like the scanner (`LOGIQ E9`) is not personal.
    """
    scanner = runs_of(f"{text_of(dataset, 'Manufacturer')} {text_of(dataset, _MODEL)}")
    values: set[PersonalValue] = set()
    for element in _elements(dataset):
        tag = element.keyword or ("PrivateTag" if element.tag.is_private else "UnknownTag")
        try:
            parts = element.value if element.VM > 1 else [element.value]
            texts = [str(part).strip(" \0\t\r\n") for part in parts if part is not None]
        except DICOM_ERRORS:
            continue
        for text in filter(None, texts):
            if tag not in _OFTEN_THE_SCANNER or not _is_part(runs_of(text), scanner):
                values.update(_forms(tag, element.VR, text))
    return values


def _is_part(runs: tuple[str, ...], whole: tuple[str, ...]) -> bool:
    return any(whole[start : start + len(runs)] == runs for start in range(len(whole)))


def _elements(dataset: pydicom.Dataset) -> Iterator[pydicom.DataElement]:
    """Elements at every depth; one that cannot be parsed is passed over."""
    for tag in list(dataset.keys()):
        try:
            element = dataset[tag]
        except DICOM_ERRORS:
            continue
        if element.VR == "SQ":
            for item in element.value or ():
                yield from _elements(item)
        elif (
            element.VR in _PERSONAL_VRS
            and element.keyword not in _TECHNICAL
            and not element.tag.is_private_creator
        ):
            yield element


def _forms(tag: str, vr: str, text: str) -> Iterator[PersonalValue]:
    if vr == "PN":
        yield from _name_forms(tag, text)
    elif vr in ("DA", "DT"):
        day = day_of(text[:10] if "." in text[:5] else text[:8])
        if day is not None:
            yield from (PersonalValue(tag, "date", runs) for runs in _date_forms(day))
    elif vr == "UI":
        runs = runs_of(text)
        if not text.startswith(_STANDARD_UID) and len(runs) >= 4:
            yield PersonalValue(tag, "id", runs)
    elif runs := runs_of(text):
        kind = "id" if len(text.split()) == 1 and any(run.isdigit() for run in runs) else "text"
        yield PersonalValue(tag, kind, runs)


def _name_forms(tag: str, text: str) -> Iterator[PersonalValue]:
    for group in text.split("="):
        words = tuple(run for run in runs_of(group) if not run.isdigit())
        yield from (PersonalValue(tag, "name", (word,)) for word in words)
        if len(words) > 1:
            for order in (words, words[::-1]):
                yield PersonalValue(tag, "name", order)
                yield PersonalValue(tag, "name", ("".join(order),))
        with_digits = runs_of(group)
        if with_digits and with_digits != words:
            yield PersonalValue(tag, "id", with_digits)


def _date_forms(day: datetime.date) -> set[tuple[str, ...]]:
    year = str(day.year)
    forms: set[tuple[str, ...]] = {(day.strftime(form),) for form in ("%Y%m%d", "%d%m%Y", "%m%d%Y")}
    for month, number in ((f"{day.month:02}", f"{day.day:02}"), (f"{day.month}", f"{day.day}")):
        forms |= {(year, month, number), (number, month, year), (month, number, year)}
        for name in (day.strftime("%B").casefold(), day.strftime("%b").casefold()):
            forms |= {(number, name, year), (name, number, year)}
    return forms
