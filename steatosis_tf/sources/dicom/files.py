"""The files of a DICOM export: a folder, a zip archive (never unpacked), one file, or bytes."""

import contextlib
import io
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from steatosis_tf.sources.rejection import Rejection

#: A clip is decoded from memory; a file beyond this is no ultrasound clip a PACS exports.
MAX_FILE_BYTES = 2 << 30
MAX_MEMBERS = 100_000
#: Central directory bytes an archive of `MAX_MEMBERS` can need; beyond, it is not even opened.
MAX_DIRECTORY_BYTES = MAX_MEMBERS * 640
#: An archive may claim this many times its own size: ultrasound shrinks 2- to 50-fold.
MAX_EXPANSION = 200

_END_RECORD_BYTES = 22
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError)


@dataclass(frozen=True)
class SourceFile:
    """One file or archive member.

    Attributes:
        name: path relative to the source, as bytes of the file system (may not be Unicode). It
            may hold a patient's name: hash it before it goes anywhere.
        number: 1 for the first file in sorted order.
        stamp: changes when the file's content is likely to have changed.
        refusal: key of `REASONS` why the file cannot be read at all, or "".
    """

    name: bytes
    number: int
    stamp: str
    refusal: str = ""
    path: Path | None = None
    member: zipfile.ZipInfo | None = None
    content: bytes | None = None


class Source:
    """An opened folder, archive or file; close it, or use it as a context manager.

    Args:
        source: folder, zip archive, or one DICOM file; or files in memory by their names.

    Raises:
        ValueError: if there is nothing there, it is none of these, or the archive is larger than a
            PACS export can be.
    """

    def __init__(self, source: str | Path | Mapping[str, bytes]):
        self.archive: zipfile.ZipFile | None = None
        self.root = Path() if isinstance(source, Mapping) else Path(source)
        if isinstance(source, Mapping):
            self.files = [
                SourceFile(name.encode("utf-8", "surrogatepass"), number, "", content=content)
                for number, (name, content) in enumerate(sorted(source.items()), start=1)
            ]
        elif self.root.is_dir():
            names = sorted(_walk(os.fsencode(self.root)))
            self.files = [_folder_file(self.root, one, at) for at, one in enumerate(names, start=1)]
        elif self.root.is_file() and is_dicom(self.root):
            name = os.fsencode(self.root.name)
            self.files = [_folder_file(self.root.parent, name, 1)]
        elif self.root.is_file():
            self.archive = _open_archive(self.root)
            self.files = _archive_files(self.archive)
        else:
            raise ValueError(
                "Expected a folder or a zip archive of DICOM files, or one DICOM file. Received: a "
                "path where none is. Check the path."
            )

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_: object) -> None:
        if self.archive is not None:
            self.archive.close()

    @contextlib.contextmanager
    def open(self, file: SourceFile) -> Iterator[BinaryIO]:
        """A stream of one file, read on demand.

        Raises:
            Rejection: if the file is refused, unreadable or empty; also while the caller reads,
                where an archive member turns out to be damaged.
        """
        if file.refusal:
            raise Rejection(file.refusal)
        code = "unreadable_file" if self.archive is None else "bad_member"
        try:
            with self._stream(file) as stream:
                yield stream
        except _ZIP_ERRORS as error:
            raise Rejection(code) from error

    def read(self, file: SourceFile) -> bytes:
        """All bytes of one file.

        Raises:
            Rejection: if the file is refused, unreadable, too large or damaged.
        """
        with self.open(file) as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise Rejection("too_large")
        return data

    def _stream(self, file: SourceFile) -> BinaryIO:
        if file.content is not None:
            return io.BytesIO(file.content)
        if self.archive is None or file.member is None:
            return (self.root if file.path is None else file.path).open("rb")
        # zipfile stops at the size the directory states, whatever the compressed stream holds,
        # and checks the CRC there.
        return cast(BinaryIO, self.archive.open(file.member))


def is_dicom(path: Path) -> bool:
    """Whether a file has the mark of DICOM; False if it cannot be read."""
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _folder_file(root: Path, name: bytes, number: int) -> SourceFile:
    path = root / os.fsdecode(name)
    stamp, refusal = "", ""
    try:
        status = path.stat()
    except OSError:
        refusal = "unreadable_file"
    else:
        stamp = f"{status.st_size} {status.st_mtime_ns}"
        if stat.S_ISDIR(status.st_mode):
            refusal = "link_to_folder"
        elif not stat.S_ISREG(status.st_mode):
            refusal = "not_a_regular_file"
        elif status.st_size > MAX_FILE_BYTES:
            refusal = "too_large"
    return SourceFile(name, number, stamp, refusal, path=path)


def _walk(root: bytes) -> Iterator[bytes]:
    for folder, subfolders, names in os.walk(root, onerror=_refuse_folder):
        links = [name for name in subfolders if os.path.islink(os.path.join(folder, name))]
        for name in (*names, *links):
            yield os.path.relpath(os.path.join(folder, name), root).replace(os.sep.encode(), b"/")


def _refuse_folder(error: OSError) -> None:
    raise ValueError(
        f"Expected every folder of the source to be readable ({error.strerror}). Its files would "
        "be missing from the cohort without a trace. Grant read permission, or leave it out."
    )


def _open_archive(path: Path) -> zipfile.ZipFile:
    directory_bytes = _directory_bytes(path)
    if directory_bytes > MAX_DIRECTORY_BYTES:
        raise ValueError(_too_many(f"central_directory_bytes={directory_bytes}"))
    try:
        archive = zipfile.ZipFile(path)
    except (*_ZIP_ERRORS, ValueError) as error:
        raise ValueError(
            "Expected a folder, a zip archive or a DICOM file. Received: a file that is none, or a "
            "truncated one. Copy it again, or give the folder that holds the files."
        ) from error
    members = archive.infolist()
    claimed = sum(member.file_size for member in members)
    if len(members) > MAX_MEMBERS:
        archive.close()
        raise ValueError(_too_many(f"members={len(members)}"))
    if claimed > MAX_EXPANSION * path.stat().st_size + (1 << 30):
        archive.close()
        raise ValueError(
            f"Expected an archive of at most {MAX_EXPANSION} times its own size once unpacked. "
            f"Received: unpacked_bytes={claimed}. This looks like a zip bomb; unpack it yourself "
            "and give the folder if it is not."
        )
    return archive


def _too_many(received: str) -> str:
    return (
        f"Expected a zip archive of at most {MAX_MEMBERS} members. Received: {received}. "
        "Unpack it to a folder and give that, or export in parts."
    )


def _directory_bytes(path: Path) -> int:
    """Size of the central directory by the end record, before zipfile reads it into memory."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        stream.seek(max(0, size - _END_RECORD_BYTES - 20 - 0xFFFF))
        tail = stream.read()
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or at + _END_RECORD_BYTES > len(tail):
            return 0  # zipfile will say that this is no archive
        stated = int.from_bytes(tail[at + 12 : at + 16], "little")
        locator = tail[at - 20 : at] if at >= 20 else b""
        if locator.startswith(b"PK\x06\x07"):  # zip64: the true size lies in its own record
            stream.seek(min(size, int.from_bytes(locator[8:16], "little")))
            record = stream.read(56)
            if record.startswith(b"PK\x06\x06"):
                stated = int.from_bytes(record[40:48], "little")
    return stated


def _archive_files(archive: zipfile.ZipFile) -> list[SourceFile]:
    members = [member for member in archive.infolist() if not member.is_dir()]
    members.sort(key=lambda member: (member.filename, member.header_offset))
    seen: dict[str, int] = {}
    files = []
    for number, member in enumerate(members, start=1):
        repeat = seen.get(member.filename, 0)
        seen[member.filename] = repeat + 1
        # An archive may hold one name twice; the count keeps both apart.
        name = member.filename + (f"\0{repeat}" if repeat else "")
        stamp = f"{member.file_size} {member.CRC}"
        files.append(
            SourceFile(
                name.encode("utf-8", "surrogatepass"),
                number,
                stamp,
                _member_refusal(member),
                member=member,
            )
        )
    return files


def _member_refusal(member: zipfile.ZipInfo) -> str:
    # orig_filename: zipfile itself cuts at a NUL and turns the separators of the host around.
    name = member.orig_filename.replace("\\", "/")
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in name.split("/"):
        return "path_traversal"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "link_in_archive"
    if member.flag_bits & 0x1:
        return "encrypted_member"
    if member.file_size > MAX_FILE_BYTES:
        return "too_large"
    return ""
