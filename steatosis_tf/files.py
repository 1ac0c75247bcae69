"""The one door for files: they appear whole or not at all, and nothing else than files is read."""

import errno
import glob
import json
import os
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

#: An unfinished file that nobody wrote to for so long was left by a writer that is dead.
ABANDONED_AFTER_S = 24 * 3600


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it into place when the block ends well.

    A killed or failing writer leaves the old file, or none, never half of a new one. The
    temporary name keeps the suffix, because OpenCV, Keras and pandas choose formats by it. What a
    killed writer of the same file left behind is cleared after a day: until then the writer may
    be alive, on another machine that shares the folder.

    Raises:
        ValueError: if something other than a regular file stands at the path.
        OSError: if the folder cannot be made, nothing was written or the move fails, for example
            on a full disk.
    """
    path = Path(path)
    check_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".unfinished-{path.stem[:40]}-"  # a name may hold 255 bytes
    _clear_abandoned(path.parent, prefix, path.suffix)
    handle, name = tempfile.mkstemp(prefix=prefix, suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _give_usual_mode(temporary)
        move_into_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def move_into_place(unfinished: Path, path: Path) -> None:
    """Give a written file its final name, once the disk has all of it.

    Args:
        unfinished: the file, closed, on the disk of `path`.
        path: its name; a file there is replaced.

    Raises:
        OSError: if the file is empty, as a writer that does not look at errors leaves it on a
            full disk, or if the disk does not take it.
    """
    with unfinished.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise OSError(errno.EIO, "nothing was written; is the disk full?", path.name)
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a new file's name last, too; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(content: Any, path: str | Path, *, indent: int | None = 2) -> None:
    """Write JSON whole or not at all.

    Args:
        content: what `json.dumps` takes.
        path: file to write or replace.
        indent: spaces a level; None for one line, for what only programs read.

    Raises:
        OSError: as `replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")


def check_output(
    path: str | Path, inputs: Iterable[str | Path] = (), *, suffixes: tuple[str, ...] = ()
) -> None:
    """Refuse an output that would destroy something. Call it before the work.

    Moving a finished file into place replaces whatever has the name: as root a device too.

    Args:
        path: file to write.
        inputs: files that are read; some may be missing.
        suffixes: what an existing file must end with to be replaced; all may be if empty.

    Raises:
        ValueError: if the path is there and no regular file (a link counts as what it leads to),
            is one of the inputs, or ends with another suffix.

    Example:
        >>> check_output("a_file_that_is_not_there.csv", ["labels.csv"])
    """
    path = Path(path)
    if not path.exists():
        return
    if not path.is_file():
        raise ValueError(
            f"Expected a regular file to replace, or none. Received: {path.name!r}, which is a "
            "folder, a device or a pipe. Give the output another name."
        )
    if any(os.path.exists(given) and path.samefile(given) for given in inputs):
        raise ValueError(
            "Expected an output that is none of the inputs, to keep them whole. "
            f"Received: {path.name!r}, which is read. Give the output another name."
        )
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(
            f"Expected to replace a file that ends with {' or '.join(suffixes)}. "
            f"Received: {path.name!r}, a file of another kind. Give the output another name."
        )


def _clear_abandoned(folder: Path, prefix: str, suffix: str) -> None:
    before = time.time() - ABANDONED_AFTER_S
    for left in folder.glob(f"{glob.escape(prefix)}*{glob.escape(suffix)}"):
        try:
            if left.stat().st_mtime < before:
                left.unlink()
        except FileNotFoundError:  # another writer has cleared it
            continue


def _give_usual_mode(path: Path) -> None:
    # mkstemp makes files private to one user; a shared study folder expects the usual rights.
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file for reading, and refuse at once what is none.

    Reading a named pipe that nobody writes to waits for ever, and a device has no end.

    Args:
        path: of a regular file, or a link to one.

    Returns:
        binary stream; the caller closes it.

    Raises:
        OSError: if it is missing, a folder, a named pipe, a socket or a device.

    Example:
        >>> open_regular("/dev/null")
        Traceback (most recent call last):
        OSError: [Errno 22] not a regular file: 'null'
    """
    # Without O_NONBLOCK the call itself waits for somebody who writes to the pipe.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), Path(path).name)
    raise OSError(errno.EINVAL, "not a regular file", Path(path).name)
