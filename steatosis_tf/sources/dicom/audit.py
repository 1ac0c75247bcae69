"""Search a folder for personal values of the DICOM export it was made from."""

import collections
import csv
import gzip
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from tqdm import tqdm

from steatosis_tf.sources.dicom.files import Source
from steatosis_tf.sources.dicom.personal import (
    Finder,
    PersonalValue,
    is_number,
    own_names_removed,
    personal_values,
    runs_of,
    source_name_value,
)
from steatosis_tf.sources.dicom.read import MAX_AGE_YEARS, quiet_pydicom, read_dataset, text_of
from steatosis_tf.sources.pseudonym import KEY_PREFIX
from steatosis_tf.sources.rejection import Rejection

_TECHNICAL_COLUMNS = {"manufacturer": "Manufacturer", "model": "ManufacturerModelName"}


@dataclass(frozen=True)
class Finding:
    """A personal value of the source in the output; holds none itself.

    Attributes:
        file: path in the output, its name replaced by its place in the folder where the name
            itself is the finding.
        place: where in the file: "file name", "row 3, column site", "PNG chunk tEXt", ...
        tag: DICOM keyword the value comes from, such as PatientName.
        kind: "name", "id", "date", "text", "age" or "key".
    """

    file: str
    place: str
    tag: str
    kind: str


def audit_phi(output_dir: str | Path, source_dir: str | Path) -> list[Finding]:
    """Look for every name, id, date and free text of a DICOM export in a folder made from it.

    Searched are file and folder names, CSV cells, all metadata of PNG files, every feature of
    TFRecords, and the text of any other file. Dates are looked for in the usual ways of writing
    them, names word by word and joined. Not searched: pixels; codes, times and numbers of the
    header; words under three letters, ids under three characters.

    Args:
        output_dir: output of `ingest_dicom`, or of any later step.
        source_dir: the export: a folder or zip archive.

    Returns:
        The findings in the order of the files; an empty list is a clean output.

    Raises:
        ValueError: if either is missing, or the source holds no readable DICOM file, so that an
            empty list would prove nothing.
    """
    output_dir = Path(output_dir)
    if not output_dir.is_dir():
        raise ValueError("Expected the folder of an output. Received: no such folder.")
    values, technical = _source_values(source_dir)
    finder = Finder(values)
    findings: list[Finding] = []
    paths = sorted(path for path in output_dir.rglob("*") if not path.is_dir())
    for number, path in enumerate(tqdm(paths, "audit", disable=None), start=1):
        name = path.relative_to(output_dir).as_posix()
        hidden = f"file {number} of {len(paths)} in sorted order ({path.suffix[:8]})"
        if in_name := search_name(finder, path.relative_to(output_dir), hidden):
            name = hidden
            findings += in_name
        if path.is_file():
            findings += search_file(finder, path, name, technical)
    return list(dict.fromkeys(findings))


def _source_values(
    source_dir: str | Path,
) -> tuple[set[PersonalValue], dict[str, frozenset[str]]]:
    """All personal values, and the words of each technical field that several patients share."""
    values: set[PersonalValue] = set()
    patients: dict[tuple[str, str], set[str]] = collections.defaultdict(set)
    num_read = 0
    with quiet_pydicom(), Source(source_dir) as source:
        for file in tqdm(source.files, "source", disable=None):
            try:
                with source.open(file) as stream:
                    dataset = read_dataset(stream, with_pixels=False)
            except Rejection:
                continue  # ingest rejects it too, so nothing of it can have left
            num_read += 1
            values |= personal_values(dataset) | source_name_value(file.name)
            for column, keyword in _TECHNICAL_COLUMNS.items():
                for word in runs_of(text_of(dataset, keyword)):
                    patients[column, word].add(text_of(dataset, "PatientID"))
    if not num_read:
        raise ValueError(
            "Expected the DICOM export that the output was made from. Received: a source without "
            "a readable DICOM file, against which nothing can be proved."
        )
    technical = {
        column: frozenset(
            word for (of, word), ids in patients.items() if of == column and len(ids) > 1
        )
        for column in _TECHNICAL_COLUMNS
    }
    return values, technical


_PNG_MARK = b"\x89PNG\r\n\x1a\n"
# The chunks a picture needs; what else a PNG holds is text, dates or unknown, and gets searched.
_PICTURE_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"pHYs")
_ZIP_MARK = b"PK\x03\x04"
_BLOCK_BYTES = 4 << 20
_OVERLAP_BYTES = 4096
_MIN_IN_BINARY = 6
_STRETCH = re.compile(r"[^\x00-\x1f\x7f-\x9f\ufffd]{6,}")

# Columns of counts and measurements (our own tables and the manifest), where a short id can occur
# by chance. Every other column is searched for short ids too.
_MEASURES = frozenset(
    (
        "frame_index", "file_number", "transducer_frequency_mhz", "pixel_height_mm",
        "pixel_width_mm", "age", "bmi", "days_since_first_study", "fat_percent", "num_frames",
        "num_chosen", "num_written", "num_elements_dropped", "kept_top", "kept_left",
        "kept_height", "kept_width", "kept_percent", "num_files", "roi_top", "roi_left",
        "roi_height", "roi_width", "roi_quality", "roi_marks", "roi_view", "roi_sector", "fold",
        "p_normal", "p_mild", "p_moderate", "p_severe",
    )
)  # fmt: skip


def search_name(finder: Finder, relative: Path, shown_as: str) -> list[Finding]:
    """Search the name of a file and of the folders above it.

    Args:
        finder: of the source's values.
        relative: path in the output.
        shown_as: what the findings call the file, since its name may be what is found.
    """
    texts = [own_names_removed(part) for part in (*relative.parent.parts, relative.name)]
    texts.append(own_names_removed(relative.stem))  # a short id may be the whole name
    hits = {value for text in texts for value in finder.in_text(text)}
    return _findings(shown_as, "file name", hits)


def _findings(file: str, place: str, hits: Iterable[PersonalValue]) -> list[Finding]:
    found = {Finding(file, place, value.tag, value.kind) for value in hits}
    return sorted(found, key=lambda finding: (finding.kind, finding.tag))


def search_file(
    finder: Finder, path: Path, name: str, technical: dict[str, frozenset[str]]
) -> Iterator[Finding]:
    """Search the content of a file by its kind.

    Args:
        finder: of the source's values.
        path: the file.
        name: what the findings call it.
        technical: table column -> words that are no finding in it.
    """
    with path.open("rb") as stream:
        head = stream.read(8)
    if head == _PNG_MARK:
        yield from _in_chunks(finder, path.read_bytes(), name)
    elif path.suffix.lower() == ".csv":
        yield from _in_table(finder, path, name, technical)
    elif head.startswith(_ZIP_MARK):
        yield from _in_archive(finder, path, name)
    elif ".tfrecord" in path.name:
        for place, content in record_texts(path):
            if isinstance(content, bytes):
                yield from _in_bytes(finder, content, name, place)
            else:  # a label or a counter, where a short id can occur by chance
                hits = finder.in_number(str(content), is_measure=True)
                yield from _findings(name, place, hits)
    else:
        with path.open("rb") as stream:
            yield from _in_stream(finder, stream, name, "content")


def _in_stream(finder: Finder, stream: BinaryIO, name: str, place: str) -> Iterator[Finding]:
    """Search a file block by block; a value across two blocks lies whole in their overlap."""
    end = b""
    while block := stream.read(_BLOCK_BYTES):
        yield from _in_bytes(finder, end + block, name, place)
        end = block[-_OVERLAP_BYTES:]


def _in_archive(finder: Finder, path: Path, name: str) -> Iterator[Finding]:
    """Search the members of a zip archive, as which .keras and .npz files are stored."""
    try:
        with zipfile.ZipFile(path) as archive:
            for number, member in enumerate(archive.infolist(), start=1):
                place = f"archive member {number}"
                hits = finder.in_text(own_names_removed(member.filename))
                yield from _findings(name, f"{place} name", hits)
                with archive.open(member) as stream:
                    yield from _in_stream(finder, cast(BinaryIO, stream), name, place)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError):
        with path.open("rb") as raw:
            yield from _in_stream(finder, raw, name, "content")


def _in_bytes(finder: Finder, content: bytes, name: str, place: str) -> Iterator[Finding]:
    """Search text, a PNG, or the printable stretches of anything else."""
    if content.startswith(_PNG_MARK):
        yield from _in_chunks(finder, content, name, f"{place}, ")
        return
    if KEY_PREFIX.encode() in content:
        yield Finding(name, place, "key file", "key")
    try:
        hits = finder.in_text(own_names_removed(content.decode("utf-8")))
    except UnicodeDecodeError:
        # In binary data a short word occurs by chance.
        found = finder.in_text(printable_stretches(content))
        hits = {value for value in found if sum(map(len, value.runs)) >= _MIN_IN_BINARY}
    yield from _findings(name, place, hits)


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


def _in_table(
    finder: Finder, path: Path, name: str, technical: dict[str, frozenset[str]]
) -> Iterator[Finding]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
        first_line = stream.readline()
        delimiter = max(",;\t", key=first_line.count)
        stream.seek(0)
        try:
            for row_number, row in enumerate(csv.reader(stream, delimiter=delimiter)):
                if row_number == 0:
                    header = row
                for column_number, cell in enumerate(row):
                    column = header[column_number] if column_number < len(header) else ""
                    place = f"row {row_number}, column {column_number + 1}"
                    known = technical.get(column, frozenset()) if row_number else frozenset()
                    yield from _in_cell(finder, cell, name, place, column, known)
        except csv.Error:
            yield from _in_bytes(finder, path.read_bytes(), name, "content")


def _in_cell(
    finder: Finder, cell: str, name: str, place: str, column: str, known: frozenset[str]
) -> list[Finding]:
    if not cell:
        return []
    if is_number(cell):
        hits = finder.in_number(cell, is_measure=column in _MEASURES)
    else:
        hits = finder.in_text(own_names_removed(cell), known_words=known)
    findings = _findings(name, place, hits)
    if column == "age" and is_number(cell) and float(cell) > MAX_AGE_YEARS:
        findings.append(Finding(name, place, "PatientAge", "age"))
    return findings


def _in_chunks(finder: Finder, data: bytes, name: str, prefix: str = "") -> Iterator[Finding]:
    position = len(_PNG_MARK)
    while position + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        body = data[position + 8 : position + 8 + length]
        position += 12 + length
        if kind not in _PICTURE_CHUNKS:
            place = f"{prefix}PNG chunk {kind.decode('ascii', 'replace')}"
            for text in _chunk_texts(kind, body):
                yield from _findings(name, place, finder.in_text(text))
        if kind == b"IEND":
            break
    if data[position:]:
        yield from _in_bytes(finder, data[position:], name, f"{prefix}after the PNG")


def _chunk_texts(kind: bytes, body: bytes) -> Iterator[str]:
    """All readings of an ancillary chunk: Latin-1, UTF-8, unpacked, and tIME as a date."""
    if kind == b"tIME" and len(body) == 7:
        yield "{:04}-{:02}-{:02}".format(*struct.unpack(">HBB", body[:4]))
        return
    yield body.decode("latin-1")
    yield body.decode("utf-8", "replace")
    yield printable_stretches(body)
    for start in range(min(len(body), 256)):  # zTXt, iTXt, iCCP: packed after a short keyword
        if body[start : start + 1] == b"\x78":
            unpacker = zlib.decompressobj()
            try:
                packed = unpacker.decompress(body[start:], _BLOCK_BYTES)
            except zlib.error:
                continue
            yield packed.decode("latin-1")
            yield packed.decode("utf-8", "replace")


_GZIP_MARK = b"\x1f\x8b"
_MAX_RECORD_BYTES = 1 << 30


def record_texts(path: Path) -> Iterator[tuple[str, bytes | float]]:
    """Every feature value of every `tf.train.Example` in a TFRecord file.

    A record that is no Example is given as a whole, a damaged file as its raw bytes: what cannot
    be parsed is still searched.

    Args:
        path: TFRecord file, plain or gzip.

    Yields:
        `("record 0, feature patient_id", value)`; bytes, integers or floats.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.example import example_pb2  # slow to import, needed here only

    number = -1
    try:
        for number, record in enumerate(_records(path)):
            example = example_pb2.Example()
            try:
                example.ParseFromString(record)
            except DecodeError:
                yield f"record {number}", record
                continue
            if not example.features.feature:
                yield f"record {number}", record
            for feature_number, (name, feature) in enumerate(
                sorted(example.features.feature.items())
            ):
                place = f"record {number}, feature {feature_number + 1}"
                yield f"{place} name", name.encode()
                for value in feature.bytes_list.value:
                    yield place, value
                for figure in (*feature.int64_list.value, *feature.float_list.value):
                    yield place, figure
    except (OSError, EOFError, ValueError):
        yield f"after record {number}", path.read_bytes()


def _records(path: Path) -> Iterator[bytes]:
    """Payloads by the TFRecord framing: length, its checksum, payload, its checksum.

    Own code, because `tf.data.TFRecordDataset` stops at the first wrong checksum: what follows it
    would not be searched.
    """
    with path.open("rb") as stream:
        is_packed = stream.read(2) == _GZIP_MARK
    with cast(BinaryIO, gzip.open(path)) if is_packed else path.open("rb") as stream:
        while head := stream.read(12):
            if len(head) < 12:
                raise ValueError("truncated record head")
            (length,) = struct.unpack("<Q", head[:8])
            if length > _MAX_RECORD_BYTES:
                raise ValueError("impossible record length")
            payload = stream.read(length)
            if len(payload) < length or len(stream.read(4)) < 4:
                raise ValueError("truncated record")
            yield payload
