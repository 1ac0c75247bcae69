"""Personal values of DICOM headers, in a form in which they can be looked for.

Deliberately not the allow-list of the de-identification: everything a header says in words, ids
or dates counts as personal unless it is a technical term, so that the audit can catch an
allow-list that is too wide."""

import base64
import datetime
import html
import re
import unicodedata
import urllib.parse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import pydicom

from steatosis_tf import grades
from steatosis_tf.sources.dicom.read import DICOM_ERRORS, day_of, text_of
from steatosis_tf.sources.rejection import REASONS

# Free text by value representation (PS3.5 6.2); codes (CS) and numbers cannot name a person.
_TEXT_VRS = frozenset(("LO", "SH", "ST", "LT", "UT", "UC", "UR", "AE"))
_PERSONAL_VRS = _TEXT_VRS | {"PN", "UI", "DA", "DT"}
_BYTE_VRS = frozenset(("UN", "OB"))
_MAX_PRIVATE_BYTES, _MAX_PRIVATE_TEXTS = 1 << 16, 500
_WORDS_IN_BYTES = re.compile(r"[^\W\d_][\w^ .,-]{5,63}")
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
        text = "".join(  # neither accents nor what is not seen, as a soft hyphen
            letter for letter in decomposed if unicodedata.category(letter) not in ("Mn", "Cf")
        )
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
            if element.VR in _BYTE_VRS:
                parts = _byte_texts(element.value)
            texts = [str(part).strip(" \0\t\r\n") for part in parts if part is not None]
        except DICOM_ERRORS:
            continue
        for text in filter(None, texts):
            if tag not in _OFTEN_THE_SCANNER or not is_part(runs_of(text), scanner):
                values.update(_forms(tag, element.VR, text))
    return values


def _byte_texts(value: bytes) -> list[str]:
    """The words in a private value of unknown kind; a scanner may put any text there."""
    if not isinstance(value, bytes):
        return []
    text = value[:_MAX_PRIVATE_BYTES].decode("utf-8", "replace").replace("\0", "\n")
    if sum(letter.isprintable() for letter in text) > 0.9 * len(text):
        return text.split("\\") if text.isprintable() else text.splitlines()
    return _WORDS_IN_BYTES.findall(text)[:_MAX_PRIVATE_TEXTS]


def is_part(runs: tuple[str, ...], whole: tuple[str, ...]) -> bool:
    """Whether runs stand in a longer text one after the other."""
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
            (element.VR in _PERSONAL_VRS or (element.VR in _BYTE_VRS and element.tag.is_private))
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
        if len(text) <= _MAX_ID:
            yield from _id_forms(tag, text, runs)


def _id_forms(tag: str, text: str, runs: tuple[str, ...]) -> Iterator[PersonalValue]:
    """123-45-6789 is written 123456789, KL 55 210 KL55210, and MRN 0012345 0012345 or 12345."""
    joined = runs_of(re.sub(r"[\s./_-]+", "", text))
    if joined != runs and sum(map(str.isdigit, "".join(joined))) >= 4:
        yield PersonalValue(tag, "id", joined)
    for number in filter(str.isdigit, {*runs, *joined}):
        for form in {number, number.lstrip("0")}:
            if len(form) >= _MIN_DIGITS:
                yield PersonalValue(tag, "id", (form,))


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


_HASH = re.compile(r"(?<![0-9a-zA-Z])[0-9a-f]{16,64}(?![0-9a-zA-Z])")
_OWN_NAME = re.compile(
    r"(?<![0-9a-zA-Z])[0-9a-f]{16}_\d{5}(?=\.(?:png|part)(?![0-9a-zA-Z]))|-\d{5}-of-\d{5}(?!\d)"
)
_STRETCH = re.compile(r"[^\x00-\x1f\x7f-\x9f\ufffd]{6,}")
_NUMBER = re.compile(r"[+-]?(\d+)(?:\.(\d+))?(?:[eE][+-]?\d+)?")
_JSON_CODE = re.compile(r"\\u([0-9a-fA-F]{4})")
_BASE64, _URL_SAFE = re.compile(r"[A-Za-z0-9+/_-]{7,}"), str.maketrans("+/", "-_")
_SVG, _TAGS = re.compile(r"<svg\b.*?(?:</svg>|\Z)", re.DOTALL), re.compile(r"\s*<[^>]*>\s*")
_MIN_WORD, _MIN_PART_OF_WORD, _MIN_DIGITS = 3, 4, 5
_MAX_WORD = 40
_MAX_ID = 24

#: Words of our own fixed texts: a patient called Frame cannot be told from the word.
VOCABULARY = frozenset(
    run
    for text in (
        *REASONS.values(), *grades.GRADES, *grades.TASKS, grades.NOTICE,
        "path patient_id study_id source_id frame_index manufacturer model sex age days_since",
        "first transducer_frequency_mhz pixel_height_width_mm file_number reason num_frames_chosen",
        "written fields_kept num_elements_dropped kept_by_top_left_percent_box burned_in",
        "annotation finding patient_ids num_files what_to_do format key_id choice allow code keep",
        "frames_with_marks both sheets sheet",
        "train validation test images labels rejected deidentification patient findings manifest "
        "split auto person region sector yes no male female other nan none true false steatosis",
    )
    for run in re.findall(r"[a-z]+", text.casefold())
)  # fmt: skip


def source_name_value(name: bytes) -> set[PersonalValue]:
    """The name of a source file itself: exports are often named after patients.

    Args:
        name: path relative to the source.
    """
    runs = runs_of(name.decode("utf-8", "replace").rsplit("/", 1)[-1].rsplit(".", 1)[0])
    # IM000001 or 0001 is a counter, and would be found in any list of frames.
    words = [run for run in runs if not run.isdigit() and run not in VOCABULARY]
    return {PersonalValue("source file name", "text", runs)} if len(words) > 1 else set()


def own_names_removed(text: str) -> str:
    """A text without the names this package gives to frames and shards, which hold counters."""
    return _OWN_NAME.sub(" ", text)


class Finder:
    """Looks for personal values in texts.

    Args:
        values: what to look for; values too short to be told from chance are left out.
    """

    def __init__(self, values: Iterable[PersonalValue]):
        self._single: dict[str, PersonalValue] = {}
        self._sequences: dict[str, dict[tuple[str, ...], PersonalValue]] = {}
        self._longest_word = 0
        for value in sorted(values, key=lambda value: (value.kind, value.tag, value.runs)):
            if len(value.runs) > 1:
                found = self._sequences.setdefault(value.runs[0], {})
                found.setdefault(value.runs, value)
            elif not _ordinary(value.runs[0]):
                self._single.setdefault(value.runs[0], value)
                self._longest_word = max(self._longest_word, len(value.runs[0]))
        self._parts: dict[str, frozenset[PersonalValue]] = {}

    def in_text(
        self, text: str, *, known_words: frozenset[str] = frozenset()
    ) -> set[PersonalValue]:
        """Values that occur in a text.

        Args:
            text: any text; 16 to 64 hexadecimal digits on their own count as one of our hashes.
            known_words: words that are no finding here.
        """
        readings = {text, _unescaped(text), _svg_texts(text), _from_base64(text)} - {""}
        return set().union(*(self._in_text(reading, known_words) for reading in readings))

    def _in_text(self, text: str, known_words: frozenset[str]) -> set[PersonalValue]:
        whole = runs_of(text)
        rest = runs_of(_HASH.sub(" ", text))
        found = {value for run in rest for value in self._in_run(run, known_words)}
        for position, run in enumerate(rest):
            for runs, value in self._sequences.get(run, {}).items():
                if rest[position : position + len(runs)] == runs and _distinct(runs, whole):
                    found.add(value)
        # As the whole text even short ids count, and ids that look like one of our hashes.
        if len(whole) == 1 and whole[0] in self._single:
            found.add(self._single[whole[0]])
        elif whole and whole in self._sequences.get(whole[0], {}):
            found.add(self._sequences[whole[0]][whole])
        return found - {value for value in found if known_words.issuperset(value.runs)}

    def in_number(self, text: str, *, is_measure: bool) -> set[PersonalValue]:
        """Values that a number equals as a whole.

        Args:
            text: a numeric cell such as "20160503" or "204.0".
            is_measure: the column holds counts or measurements, where a short id can occur by
                chance; ids and dates of five digits and more are still looked for.
        """
        match = _NUMBER.fullmatch(text.strip())
        if match is None or (match.group(2) or "0").strip("0"):
            return set()
        digits = match.group(1)
        if is_measure and len(digits) < _MIN_DIGITS:
            return set()
        return set(filter(None, [self._of_digits(digits)]))

    def _of_digits(self, digits: str) -> PersonalValue | None:
        """The id or date that digits are; a date may stand as seconds or milliseconds of 1970."""
        value = self._single.get(digits)
        if value is None and len(digits) in (9, 10, 12, 13) and digits.isdecimal():
            seconds = int(digits if len(digits) < 12 else digits[:-3])
            day = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
            value = self._single.get(f"{day:%Y%m%d}")
        return value

    def _in_run(self, run: str, known_words: frozenset[str]) -> frozenset[PersonalValue]:
        if run.isdigit():
            value = self._of_digits(run) if len(run) >= _MIN_DIGITS else None
            return frozenset((value,)) if value else frozenset()
        if run in VOCABULARY or run in known_words:
            return frozenset()
        if run not in self._parts:
            shortest = _MIN_PART_OF_WORD if run.isascii() else 2
            pieces = {run} | {
                run[start : start + size]
                for start in range(len(run))
                for size in range(shortest, min(self._longest_word, len(run) - start) + 1)
            }
            self._parts[run] = frozenset(
                self._single[piece] for piece in pieces if piece in self._single
            )
        return self._parts[run]


def _unescaped(text: str) -> str:
    """A text with the letters that JSON, HTML and URLs write as codes."""
    if "\\u" in text:
        units = _JSON_CODE.sub(lambda code: chr(int(code[1], 16)), text)
        text = units.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if "&" in text:
        text = html.unescape(text)
    return urllib.parse.unquote(text) if "%" in text else text


def _svg_texts(text: str) -> str:
    """What pictures in SVG write, with words that are spread over elements in one piece."""
    return "\n".join(_TAGS.sub("", drawing) for drawing in _SVG.findall(text))


def _from_base64(text: str) -> str:
    """The texts that stand in a text as Base64, one a line."""
    decoded = (data.replace(b"\0", b"").decode("utf-8", "replace") for data in base64_parts(text))
    return "\n".join(one for one in decoded if "".join(one.split()).isprintable())


def base64_parts(text: str, min_letters: int = 7) -> Iterator[bytes]:
    """What every stretch of Base64 letters in a text stands for; of a word, random bytes.

    Args:
        text: any text.
        min_letters: shorter stretches are passed over.
    """
    for part in _BASE64.findall(text):
        if len(part) >= min_letters:
            whole = part[: len(part) - (len(part) % 4 == 1)].translate(_URL_SAFE)
            yield base64.urlsafe_b64decode(whole + "=" * (-len(whole) % 4))


def is_number(text: str) -> bool:
    """Whether a cell is a plain decimal number."""
    return _NUMBER.fullmatch(text.strip()) is not None


def printable_stretches(content: bytes) -> str:
    """The stretches of six or more printable characters in binary data, one a line.

    Read as UTF-8, and once more without its zero bytes, which is how UTF-16 stores plain letters.
    """
    readings = (content, content.replace(b"\0", b"")) if b"\0" in content else (content,)
    return "\n".join(
        stretch
        for reading in readings
        for stretch in _STRETCH.findall(reading.decode("utf-8", "replace"))
    )


def _ordinary(run: str) -> bool:
    """Whether a single run is too short, too common or too long to be looked for."""
    if run.isdigit():
        return len(run) < 3
    too_short = len(run) < _MIN_WORD if run.isascii() else len(run) < 2
    return too_short or len(run) > _MAX_WORD or run in VOCABULARY


def _distinct(runs: tuple[str, ...], whole: tuple[str, ...]) -> bool:
    """A sequence such as ("a", "1") is a finding only where it is the whole text."""
    return runs == whole or sum(map(len, runs)) >= 4
