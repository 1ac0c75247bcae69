"""Where files are written and opened: whole or not at all, and nothing is read that is no file."""

import errno
import glob
import hashlib
import io
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

#: An unfinished file that nobody wrote to for so long was left by a writer that is dead.
ABANDONED_AFTER_S = 24 * 3600

#: Hashes of all files of a folder; the last file that a run writes.
SUMS_NAME = "SHA256SUMS"

#: Stands in the folder of a run that has not come to its end.
UNFINISHED_NAME = "UNFINISHED.json"

#: Begins the name of a file or folder that is being written.
BEING_WRITTEN = ".unfinished-"

#: Ends the name of the table of what is not in a manifest, which lies beside it.
REJECTED_SUFFIX = ".rejected.csv"


@contextmanager
def replacing(path: str | Path, *, private: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it into place when the block ends well.

    A killed or failing writer leaves the old file, or none, never half of a new one. The
    temporary name keeps the suffix, because OpenCV, Keras and pandas choose formats by it. What a
    killed writer of the same file left behind is cleared after a day: until then the writer may
    be alive, on another machine that shares the folder. A `private` file is readable by its owner
    alone.

    Raises:
        ValueError: if something other than a regular file stands at the path.
        OSError: if the folder cannot be made, nothing was written or the move fails, for example
            on a full disk.
    """
    path = Path(path)
    check_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f"{BEING_WRITTEN}{path.stem[:40]}-"  # a name may hold 255 bytes
    clear_abandoned(path.parent, prefix, path.suffix)
    handle, name = tempfile.mkstemp(prefix=prefix, suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if not private:  # mkstemp makes it so
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
    with unfinished.open("r+b") as file:  # Windows syncs only what can be written
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


def write_bytes(data: bytes | memoryview, path: str | Path) -> None:
    """Write bytes whole or not at all; raises as `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_csv(table: "pd.DataFrame", path: str | Path) -> None:
    """Write a table without its index, whole or not at all; raises as `replacing`."""
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def write_json(content: Any, path: str | Path, *, indent: int | None = 2) -> None:
    """Write JSON whole or not at all.

    Args:
        content: what `json.dumps` takes.
        path: file to write or replace.
        indent: spaces a level; None for one line, for what only programs read.

    Raises:
        OSError: as `replacing`.
    """
    write_bytes((json.dumps(content, indent=indent) + "\n").encode(), path)


def reason_of(error: BaseException) -> str:
    """What an error says, without the folders of a path: one can be named after a patient.

    Example:
        >>> reason_of(FileNotFoundError(2, "No such file or directory", "/jane_doe/a.png"))
        'No such file or directory: a.png'
    """
    if not (isinstance(error, OSError) and error.strerror):
        return str(error)
    is_path = isinstance(error.filename, str | bytes | os.PathLike)
    return (
        f"{error.strerror}: {Path(os.fsdecode(error.filename)).name}" if is_path else error.strerror
    )


def check_output(
    path: str | Path, inputs: Iterable[str | Path] = (), *, suffixes: tuple[str, ...] = ()
) -> None:
    """Refuse an output that would destroy something. Call it before the work.

    Moving a finished file into place replaces whatever has the name: as root a device too.

    Args:
        path: file to write.
        inputs: files that are read; some may be missing.
        suffixes: what the name must end with; anything if empty.

    Raises:
        ValueError: if the path ends with another suffix; if it is there and no regular file (a link
            counts as what it leads to), or is one of the inputs.

    Example:
        >>> check_output("a_file_that_is_not_there.csv", ["labels.csv"])
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(
            f"Expected a regular file to replace, or none. Received: {path.name!r}, which is a "
            "folder, a device or a pipe. Give the output another name."
        )
    if path.exists() and any(os.path.exists(one) and path.samefile(one) for one in inputs):
        raise ValueError(
            "Expected an output that is none of the inputs, to keep them whole. "
            f"Received: {path.name!r}, which is read. Give the output another name."
        )
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(
            f"Expected a file to write that ends with {' or '.join(suffixes)}. "
            f"Received: {path.name!r}, a name for something else. Give the output another name."
        )


def rejected_beside(manifest_path: str | Path) -> Path:
    """The table of what is not in a manifest; it may be missing.

    A folder of an earlier version has one `rejected.csv` for all its manifests.

    Example:
        >>> rejected_beside("study/manifest.csv").name
        'manifest.rejected.csv'
    """
    own = Path(manifest_path).with_suffix(REJECTED_SUFFIX)
    earlier = own.with_name("rejected.csv")
    return earlier if earlier.is_file() and not own.exists() else own


def clear_killed(folder: str | Path) -> None:
    """Remove what killed writers left in a folder and below it. Only while nobody else writes."""
    for left in Path(folder).rglob(f"{BEING_WRITTEN}*"):
        left.unlink()


def clear_abandoned(folder: Path, prefix: str, suffix: str = "") -> None:
    """Remove files and folders of such names in `folder` that nobody has touched for a day."""
    before = time.time() - ABANDONED_AFTER_S
    for left in folder.glob(f"{glob.escape(prefix)}*{glob.escape(suffix)}"):
        try:
            if left.stat().st_mtime < before:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        except FileNotFoundError:  # another writer has cleared it
            continue


def _give_usual_mode(path: Path) -> None:
    # mkstemp makes files private to one user; a shared study folder expects the usual rights.
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def file_sha256(path: str | Path) -> str:
    """Hex digest of the bytes of a file; it is not held in memory."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: str | Path, names: Iterable[str] | None = None) -> None:
    """Write `SHA256SUMS` of a folder, as `sha256sum --check` reads it.

    Args:
        folder: all files in it and below are hashed, but hidden ones and the mark of a run that is
            not finished.
        names: paths inside whose lines are renewed; the others stay. All are if None.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_json([1], Path(folder) / "one.json")
        ...     write_sums(folder)
        ...     find_changed(folder)
        {}
    """
    folder = Path(folder)
    sums = {} if names is None else _read_sums(folder)
    for name in _names_in(folder) if names is None else names:
        sums[name] = file_sha256(folder / name)
    lines = (f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    write_bytes("".join(lines).encode(), folder / SUMS_NAME)


@contextmanager
def renewing_sums(folder: str | Path) -> Iterator[None]:
    """Renew the lines of `SHA256SUMS` for files that the block writes, if there is such a file.

    The lines of all others stay, so that a file that was damaged before is still found out.
    """
    folder = Path(folder)
    if not (folder / SUMS_NAME).is_file():
        yield
        return
    before = _stamps(folder)
    yield
    after = _stamps(folder)
    write_sums(folder, [name for name, stamp in after.items() if before.get(name) != stamp])


def find_changed(folder: str | Path) -> dict[str, str]:
    """Compare a folder with its `SHA256SUMS`.

    Returns:
        `missing`, `changed` or `unreadable` by path inside; empty if all is whole. Files that are
        not listed, as those a person added to a run, are not looked at.

    Raises:
        ValueError: if there is no `SHA256SUMS`, or it is not such a list.
    """
    folder = Path(folder)
    sums, found = _read_sums(folder), {}
    for name, digest in sums.items():
        try:
            if file_sha256(folder / name) != digest:
                found[name] = "changed"
        except FileNotFoundError:
            found[name] = "missing"
        except OSError:
            found[name] = "unreadable"
    return found


def _read_sums(folder: Path) -> dict[str, str]:
    try:
        with open_regular(folder / SUMS_NAME) as file:
            lines = file.read().decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"Expected a folder with {SUMS_NAME}. Received: {folder.name!r} without a readable "
            "one. A run of an earlier version has none, and one that was killed neither."
        ) from error
    sums: dict[str, str] = {}
    for line in lines:
        parts = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        # A list from elsewhere must not make us read outside of its folder.
        if parts is None or Path(parts[2]).is_absolute() or ".." in Path(parts[2]).parts:
            raise ValueError(
                f"Expected lines of a SHA-256 and a path inside the folder in {SUMS_NAME}. "
                f"Received: line {len(sums) + 1} of another form. Copy the folder again."
            )
        sums[parts[2]] = parts[1]
    return sums


def _names_in(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    names = (path.relative_to(folder) for path in paths)
    return sorted(
        name.as_posix()
        for name in names
        if name.name not in (SUMS_NAME, UNFINISHED_NAME)
        and not any(part.startswith(".") for part in name.parts)
    )


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    found = {name: (folder / name).stat() for name in _names_in(folder)}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in found.items()}


def open_regular(path: str | Path) -> io.BufferedReader:
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
    # Without O_NONBLOCK the call itself waits for somebody who writes to the pipe. Windows has no
    # such pipes, and changes the ends of lines without O_BINARY.
    flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, os.O_RDONLY | flags)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), Path(path).name)
    raise OSError(errno.EINVAL, "not a regular file", Path(path).name)


def flat(nested: Any, prefix: str = "") -> dict[str, Any]:
    """Nested JSON under dotted names, `per_class.Mild.f1` or `confusion_matrix[0][1]`.

    Example:
        >>> flat({"macro": {"f1": 0.5}, "row": [1, 2]})
        {'macro.f1': 0.5, 'row[0]': 1, 'row[1]': 2}
    """
    if isinstance(nested, dict):
        parts = {f"{prefix}.{key}" if prefix else str(key): part for key, part in nested.items()}
    elif isinstance(nested, list):
        parts = {f"{prefix}[{place}]": part for place, part in enumerate(nested)}
    else:
        return {prefix: nested}
    return {name: value for key, part in parts.items() for name, value in flat(part, key).items()}


_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def as_cell(value: Any) -> Any:
    """A cell of a table as no spreadsheet runs it: what begins like a formula gets a quote.

    Example:
        >>> as_cell("=2+3"), as_cell("-3.5"), from_cell(as_cell("'@x"))
        ("'=2+3", '-3.5', "'@x")
    """
    is_formula = isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value)
    return f"'{value}" if is_formula else value


def from_cell(text: str) -> str:
    """What a cell said before `as_cell`."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text
