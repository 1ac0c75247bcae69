"""An append-only file of lines that survive a killed process and a power cut.

Why a journal and not a rewrite of the table at every decision: a manifest of two million rows is
a few hundred megabytes, so rewriting it takes seconds, while appending one line and waiting for
the disk takes milliseconds whatever the number of rows. The journal is never shortened. It says
who decided what and when, and it holds the box that every decision replaced, so that any of them
can be undone after a restart.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

# A writer holds this lock for one append; waiting longer means that a process hangs.
_PATIENCE_SECONDS = 15


class Journal:
    """Lines of JSON beside the table they belong to. Several processes may append.

    Args:
        path: the file; it appears with the first line.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock_path = self.path.with_name(f"{self.path.name}.lock")

    def lock(self) -> FileLock:
        """The lock that every append needs; nothing slow may be done under it.

        Entering it raises TimeoutError after 15 seconds.
        """
        return FileLock(self._lock_path, timeout=_PATIENCE_SECONDS)

    def size(self) -> int:
        """Length in bytes; 0 where there is no journal."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def read(self, offset: int) -> tuple[list[tuple[int, dict[str, Any]]], int]:
        """Entries from a byte offset on.

        Args:
            offset: byte at which to begin; 0, or an offset that an earlier call returned.

        Returns:
            `(first byte of the line, entry)` for every whole line, and the offset after the last
            one. A last line without its line feed was never acknowledged to anybody: it is left.

        Raises:
            ValueError: if a whole line is not JSON, with its byte offset.
        """
        try:
            with self.path.open("rb") as stream:
                stream.seek(offset)
                data = stream.read()
        except FileNotFoundError:
            return [], 0
        entries = []
        for line in data[: data.rfind(b"\n") + 1].split(b"\n")[:-1]:
            entries.append((offset, self._parsed(line, offset)))
            offset += len(line) + 1
        return entries, offset

    def last(self) -> tuple[int, dict[str, Any]] | None:
        """First byte of the last whole line and its entry, without reading the rest."""
        if self.size() == 0:
            return None
        with self.path.open("rb") as stream:
            end = _end_of_whole_lines(stream, self.size())
            if end == 0:
                return None
            start = _end_of_whole_lines(stream, end - 1)
            stream.seek(start)
            return start, self._parsed(stream.read(end - 1 - start), start)

    def append(self, entries: Iterable[dict[str, Any]]) -> None:
        """Add entries and return when the disk has them. The caller holds `lock()`.

        Raises:
            OSError: if the disk is full or the folder cannot be written; then nothing is added.
        """
        lines = b"".join(
            json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
            for entry in entries
        )
        is_new = not self.path.exists()
        # Unbuffered, so that a failed write leaves nothing behind that closing would write again.
        with self.path.open("ab+", buffering=0) as stream:
            # A writer killed in the middle of a line left a stump that nobody was told of.
            start = _end_of_whole_lines(stream, stream.seek(0, os.SEEK_END))
            stream.truncate(start)
            try:
                written = stream.write(lines)
                if written != len(lines):
                    raise OSError(f"only {written} of {len(lines)} bytes fit on the disk")
                os.fsync(stream.fileno())
            except OSError:
                stream.truncate(start)
                raise
        if is_new:
            _sync_folder(self.path.parent)

    def _parsed(self, line: bytes, offset: int) -> dict[str, Any]:
        try:
            return json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"Expected one JSON object a line. Received: {self.path.name} with a broken line "
                f"at byte {offset}. Restore the file from a backup, or remove that line."
            ) from error


def _end_of_whole_lines(stream: IO[bytes], end: int) -> int:
    """Byte after the last line feed before `end`; 0 if there is none."""
    while end > 0:
        begin = max(0, end - 4096)
        stream.seek(begin)
        at = stream.read(end - begin).rfind(b"\n")
        if at >= 0:
            return begin + at + 1
        end = begin
    return 0


def _sync_folder(folder: Path) -> None:
    """Make a new file's name last, too; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
