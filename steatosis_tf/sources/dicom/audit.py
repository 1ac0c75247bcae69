"""Search a folder for personal values of the DICOM export it was made from."""

import bz2
import codecs
import collections
import csv
import gzip
import io
import lzma
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

from tqdm import tqdm

from steatosis_tf.environment import load_tensorflow
from steatosis_tf.files import open_regular
from steatosis_tf.sources.dicom.files import Source
from steatosis_tf.sources.dicom.personal import (
    Finder,
    PersonalValue,
    base64_parts,
    is_number,
    is_part,
    own_names_removed,
    personal_values,
    printable_stretches,
    runs_of,
    source_name_value,
)
from steatosis_tf.sources.dicom.read import MAX_AGE_YEARS, read_dataset, text_of
from steatosis_tf.sources.images import quiet_readers
from steatosis_tf.sources.pseudonym import KEY_PREFIX
from steatosis_tf.sources.rejection import Rejection

_TECHNICAL_COLUMNS = {"manufacturer": "Manufacturer", "model": "ManufacturerModelName"}

#: Kind of what could not be searched, so that nobody takes it for clean.
UNREAD = "not looked into"


@dataclass(frozen=True)
class Finding:
    """A personal value of the source in the output; holds none itself.

    Attributes:
        file: path in the output, its name replaced by its place in the folder where the name
            itself is the finding.
        place: where in the file: "file name", "row 3, column site", "PNG chunk tEXt", ...
        tag: DICOM keyword the value comes from, such as PatientName; "" if not looked into.
        kind: "name", "id", "date", "text", "age" or "key"; or `UNREAD`: this was not looked into.
    """

    file: str
    place: str
    tag: str
    kind: str


def audit_phi(output_dir: str | Path, source_dir: str | Path) -> list[Finding]:
    """Look for every name, id, date and free text of a DICOM export in a folder made from it.

    Searched are file and folder names, CSV cells, all metadata of PNG files, every feature of
    TFRecords, and the text of any other file. Dates are looked for in the usual ways of writing
    them, names word by word and joined; also as JSON, HTML and URLs write letters, in UTF-16, and
    inside of packed files. Not searched: pixels; codes, times and numbers of the header; words
    under three letters, ids under three characters. It finds; it never proves.

    Args:
        output_dir: output of `ingest_dicom`, or of any later step.
        source_dir: the export: a folder or zip archive.

    Returns:
        The findings in the order of the files. What was not looked into (unknown or broken
        archives, links to folders, unreadable files) is among them.

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
    paths = sorted(output_dir.rglob("*"))
    for number, path in enumerate(tqdm(paths, "audit", disable=None), start=1):
        name = path.relative_to(output_dir).as_posix()
        hidden = f"file {number} of {len(paths)} in sorted order ({path.suffix[:8]})"
        if in_name := search_name(finder, path.relative_to(output_dir), hidden):
            name = hidden
            findings += in_name
        if path.is_symlink() or not path.is_dir():
            findings += _Search(finder, name, technical).file(path)
    return list(dict.fromkeys(findings))


def _source_values(source_dir: str | Path) -> tuple[set[PersonalValue], dict[str, frozenset[str]]]:
    """All personal values, and the words of each technical field that several patients share."""
    values: set[PersonalValue] = set()
    patients: dict[tuple[str, str], set[str]] = collections.defaultdict(set)
    scanners: set[tuple[str, ...]] = set()
    num_read = 0
    with quiet_readers(), Source(source_dir) as source:
        for file in tqdm(source.files, "source", disable=None):
            try:
                with source.open(file) as stream:
                    dataset = read_dataset(stream, with_pixels=False)
            except Rejection:
                continue  # ingest rejects it too, so nothing of it can have left
            num_read += 1
            values |= personal_values(dataset) | source_name_value(file.name)
            scanners.add(
                runs_of(" ".join(text_of(dataset, k) for k in _TECHNICAL_COLUMNS.values()))
            )
            for column, keyword in _TECHNICAL_COLUMNS.items():
                for word in runs_of(text_of(dataset, keyword)):
                    patients[column, word].add(text_of(dataset, "PatientID"))
    if not num_read:
        raise ValueError(
            "Expected the DICOM export that the output was made from. Received: a source without "
            "a readable DICOM file, against which nothing can be proved."
        )
    # A header that is damaged may hold the name of its scanner where nobody can tell what it is.
    values = {
        value
        for value in values
        if value.tag != "PrivateTag" or not any(is_part(value.runs, whole) for whole in scanners)
    }
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
_PACKED: dict[bytes, Callable[[BinaryIO], object]] = {
    b"\x1f\x8b": lambda stream: gzip.GzipFile(fileobj=stream), b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}  # fmt: skip
# 7z, rar, zstd, PDF, Parquet, LZ4: their text is packed in a way that is not read here.
_UNKNOWN_PACKED = (
    b"7z\xbc\xaf", b"Rar!", b"\x28\xb5\x2f\xfd", b"%PDF", b"PAR1", b"\x04\x22\x4d\x18",
)  # fmt: skip
_UNPACK_ERRORS = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, RuntimeError,
    NotImplementedError, EOFError, OSError, ValueError,
)  # fmt: skip
_MAX_UNPACKED_BYTES, _MAX_DEPTH = 1 << 30, 5
_BLOCK_BYTES = 4 << 20
_OVERLAP_BYTES = 4096
_MIN_IN_BINARY = 6
# Letters of alphabets that names are written in: UTF-16 makes a Chinese sign of any two bytes.
_WIDE_STRETCH = re.compile(r"[ -~\u00a0-\u024f\u0370-\u052f\u3040-\u30ff]{6,}")

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


class _Search:
    """Searches the content of one file, and of what is packed into it.

    Args:
        finder: of the source's values.
        name: what the findings call the file.
        technical: table column -> words that are no finding in it.
    """

    def __init__(self, finder: Finder, name: str, technical: dict[str, frozenset[str]]):
        self._finder, self._name, self._technical = finder, name, technical
        self._left = _MAX_UNPACKED_BYTES

    def file(self, path: Path) -> Iterator[Finding]:
        """Search a file; what cannot be read is a finding, too."""
        if path.is_dir():  # a link, or its own files would be here
            yield self._unread("link to a folder")
            return
        try:
            with open_regular(path) as stream:
                yield from self._content(stream, "", path.name)
        except OSError as error:
            yield self._unread(f"content ({error.strerror or 'damaged'})")

    def _unread(self, place: str) -> Finding:
        return Finding(self._name, place, "", UNREAD)

    def _content(self, stream: BinaryIO, place: str, file_name: str, depth: int = 0) -> Iterator:
        """Search a stream by what its first bytes and its name say it is."""
        head = stream.read(512)
        stream.seek(0)
        prefix = f"{place}, " if place else ""
        if depth > _MAX_DEPTH:
            yield self._unread(f"{prefix}packed more than {_MAX_DEPTH} times")
        elif head.startswith(_PNG_MARK):
            yield from _in_chunks(self._finder, stream.read(), self._name, prefix)
        elif ".tfrecord" in file_name:
            yield from self._records(stream, prefix)
        elif head.startswith(_ZIP_MARK) or head[257:262] == b"ustar":
            yield from self._archive(stream, head, prefix, depth)
        elif opener := next((_PACKED[mark] for mark in _PACKED if head.startswith(mark)), None):
            try:
                inside = io.BytesIO(self._unpacked(cast(BinaryIO, opener(stream))))
                yield from self._content(
                    inside, f"{prefix}unpacked", Path(file_name).stem, depth + 1
                )
            except _UNPACK_ERRORS:
                yield self._unread(f"{prefix}content")
        elif file_name.lower().endswith(".csv"):
            yield from self._table(stream, prefix)
        else:
            if head.startswith(_UNKNOWN_PACKED):
                yield self._unread(f"{prefix}content")
            yield from self._raw(stream, place or "content")

    def _raw(self, stream: BinaryIO, place: str) -> Iterator[Finding]:
        """Search block by block; a value across two blocks lies whole in their overlap."""
        end = b""
        while block := stream.read(_BLOCK_BYTES):
            yield from _in_bytes(self._finder, end + block, self._name, place)
            end = block[-_OVERLAP_BYTES:]

    def _unpacked(self, stream: BinaryIO) -> bytes:
        """All bytes of a packed stream, as far as one file may grow."""
        content = stream.read(self._left + 1)
        self._left -= len(content)
        if self._left < 0:
            raise ValueError("larger than is unpacked")
        return content

    def _archive(self, stream: BinaryIO, head: bytes, prefix: str, depth: int) -> Iterator[Finding]:
        """Search the members of a zip archive, as which .keras and .npz are stored, or of a tar."""
        number = 0
        try:
            for number, (member_name, opened) in enumerate(_members(stream, head), start=1):
                place = f"{prefix}archive member {number}"
                hits = self._finder.in_text(own_names_removed(member_name))
                yield from _findings(self._name, f"{place} name", hits)
                try:
                    inside = io.BytesIO(self._unpacked(opened()))
                except _UNPACK_ERRORS:
                    yield self._unread(place)
                    continue
                yield from self._content(inside, place, member_name, depth + 1)
        except _UNPACK_ERRORS:
            yield self._unread(f"{prefix}archive after member {number}")
            stream.seek(0)
            yield from self._raw(stream, f"{prefix}content")

    def _records(self, stream: BinaryIO, prefix: str) -> Iterator[Finding]:
        for place, content in record_texts(stream):
            if isinstance(content, bytes):
                yield from _in_bytes(self._finder, content, self._name, f"{prefix}{place}")
            else:  # a label or a counter, where a short id can occur by chance
                hits = self._finder.in_number(str(content), is_measure=True)
                yield from _findings(self._name, f"{prefix}{place}", hits)

    def _table(self, stream: BinaryIO, prefix: str) -> Iterator[Finding]:
        encoding = _encoding_of(stream.read(_OVERLAP_BYTES))
        stream.seek(0)
        text = io.TextIOWrapper(stream, encoding, "replace", newline="")
        delimiter = max(",;\t", key=text.readline().count)
        text.seek(0)
        try:
            for row_number, row in enumerate(csv.reader(text, delimiter=delimiter)):
                if row_number == 0:
                    header = row
                for column_number, cell in enumerate(row):
                    column = header[column_number] if column_number < len(header) else ""
                    place = f"{prefix}row {row_number}, column {column_number + 1}"
                    known = self._technical.get(column, frozenset()) if row_number else frozenset()
                    yield from _in_cell(self._finder, cell, self._name, place, column, known)
        except csv.Error:
            stream.seek(0)
            yield from self._raw(stream, f"{prefix}content")
        finally:
            text.detach()


def _members(stream: BinaryIO, head: bytes) -> Iterator[tuple[str, Callable[[], BinaryIO]]]:
    """Name and opener of each member of an archive."""
    if head.startswith(_ZIP_MARK):
        with zipfile.ZipFile(stream) as archive:
            for info in archive.infolist():
                yield info.filename, cast(Callable[[], BinaryIO], partial(archive.open, info))
    else:
        with tarfile.open(fileobj=stream) as tar:
            for member in tar:
                # A link has no content, but a name and a target.
                opened = partial(tar.extractfile, member) if member.isreg() else io.BytesIO
                yield f"{member.name} {member.linkname}", cast(Callable[[], BinaryIO], opened)


def _encoding_of(sample: bytes) -> str:
    """The encoding of a table, told from its first bytes."""
    if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" in sample:
        return "utf-16-le" if sample[1:2] == b"\0" else "utf-16-be"
    try:
        sample[:-4].decode("utf-8")
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8-sig"


def _in_bytes(finder: Finder, content: bytes, name: str, place: str) -> Iterator[Finding]:
    """Search text, a PNG, or the printable stretches of anything else."""
    if content.startswith(_PNG_MARK):
        yield from _in_chunks(finder, content, name, f"{place}, ")
        return
    for part in base64_parts(content.decode("latin-1"), min_letters=64):
        if part.startswith(_PNG_MARK):
            yield from _in_chunks(finder, part, name, f"{place}, Base64, ")
        elif part.startswith((*_PACKED, *_UNKNOWN_PACKED, _ZIP_MARK)):
            yield Finding(name, f"{place}, Base64", "", UNREAD)
    if KEY_PREFIX.encode() in content:
        yield Finding(name, place, "key file", "key")
    try:
        hits = finder.in_text(own_names_removed(content.decode("utf-8")))
    except UnicodeDecodeError:
        # In binary data a short word occurs by chance.
        found = finder.in_text(printable_stretches(content))
        hits = {value for value in found if sum(map(len, value.runs)) >= _MIN_IN_BINARY}
        if _is_plain(content):
            hits |= finder.in_text(own_names_removed(content.decode("cp1252", "replace")))
    if b"\0" in content:
        for encoding in ("utf-16-le", "utf-16-be"):
            text = content[: len(content) // 2 * 2].decode(encoding, "replace")
            found = finder.in_text("\n".join(_WIDE_STRETCH.findall(text)))
            hits |= {value for value in found if sum(map(len, value.runs)) >= _MIN_IN_BINARY}
    yield from _findings(name, place, hits)


def _is_plain(content: bytes) -> bool:
    """Whether bytes are text of some 8-bit encoding: hardly any control characters."""
    controls = sum(content.count(code) for code in (*range(9), *range(14, 32), 127))
    return controls * 500 < len(content)


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


def record_texts(stream: BinaryIO) -> Iterator[tuple[str, bytes | float]]:
    """Every feature value of every `tf.train.Example` in a TFRecord file.

    A record that is no Example is given as a whole, a damaged file as its raw bytes: what cannot
    be parsed is still searched.

    Args:
        stream: TFRecord file, plain or gzip.

    Yields:
        `("record 0, feature patient_id", value)`; bytes, integers or floats.
    """
    from google.protobuf.message import DecodeError

    load_tensorflow()  # slow to import, needed here only
    from tensorflow.core.example import example_pb2

    number = -1
    try:
        for number, record in enumerate(_records(stream)):
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
        stream.seek(0)
        yield f"after record {number}", stream.read()


def _records(packed: BinaryIO) -> Iterator[bytes]:
    """Payloads by the TFRecord framing: length, its checksum, payload, its checksum.

    Not `tf.data.TFRecordDataset`: of three records of which the second has a wrong checksum it
    gives one, by `ignore_errors` too, and a personal value in the third would be let out. Nor does
    an audit wait for TensorFlow to load.
    """
    is_packed = packed.read(2) == _GZIP_MARK
    packed.seek(0)
    stream = cast(BinaryIO, gzip.GzipFile(fileobj=packed)) if is_packed else packed
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
