"""Runs that have not come to their end: marked on disk, found again, and gone on with.

A run has `UNFINISHED.json` in its folder from its start to its end. What a later call needs to go
on lies beside it in `.work/`, each part whole or not at all. Both are gone when it is finished.
"""

import hashlib
import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from steatosis_tf.config import Config, flatten
from steatosis_tf.environment import code_sha256, package_versions
from steatosis_tf.files import (
    SUMS_NAME,
    UNFINISHED_NAME,
    clear_killed,
    file_sha256,
    find_changed,
    reason_of,
    rejected_beside,
    write_json,
    write_sums,
)

_WORK = ".work"


def run_key(experiment: str, manifest_path: Path, config: Config, repeat: int) -> str:
    """What makes two calls the same run, as a hash.

    Args:
        experiment: name of the experiment.
        manifest_path: its content counts, and what it says was rejected, not its place.
        config: of the run; of a weights file the content counts too.
        repeat: round of a repeated k-fold.

    The program's own code and the packages count as well.

    Returns:
        64 hexadecimal digits.

    Raises:
        OSError: if the manifest cannot be read.
    """
    optional = [rejected_beside(manifest_path), Path(config.model.weights)]
    contents = [file_sha256(path) if path.is_file() else "" for path in optional]
    made_of = [experiment, repeat, flatten(config), file_sha256(manifest_path), *contents,
               package_versions(), code_sha256()]  # fmt: skip
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()


@contextmanager
def only_one(folder: Path, key: str) -> Iterator[None]:
    """Be the only process that computes a run; the system frees the lock of one that was killed.

    Args:
        folder: of the experiment.
        key: of the run.

    Raises:
        RuntimeError: if another process computes it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(_lock_path(folder, key))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RuntimeError(
            "Expected one process to compute a run. Received: another one that computes the same "
            f"run of {folder.name}. Wait for its end, or change a seed to have a second run."
        ) from error
    try:
        yield
    finally:
        # In this order: who waits sees that the file is gone, and makes another.
        with suppress(PermissionError):  # Windows keeps open files
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def is_computed(folder: Path, key: str) -> bool:
    """Whether a process computes the run just now."""
    if not folder.is_dir():  # the lock would make it
        return False
    try:
        with only_one(folder, key):
            return False
    except RuntimeError:
        return True


def find_unfinished(folder: Path, key: str) -> str | None:
    """Name of the folder of a run of an experiment that was begun and has not come to its end."""
    found = (path.parent.name for path in sorted(folder.glob(f"*/{UNFINISHED_NAME}"))
             if _read(path).get("key") == key)  # fmt: skip
    return next(found, None)


@contextmanager
def marked(run_dir: Path, key: str) -> Iterator[None]:
    """Mark a run as not finished while the block runs; where it raises, the mark stays and says
    why. A block that ends well leaves the mark too, see `finish`."""
    clear_killed(run_dir)  # there is no other writer than this
    path = run_dir / UNFINISHED_NAME
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    words[0] = "steatosis" if words[0] in ("cli.py", "__main__.py") else words[0]
    about = {"key": key, "run_id": run_dir.name, "command": shlex.join(words), "reason": None}
    write_json(about, path)
    try:
        yield
    except BaseException as error:  # Ctrl+C too; it is raised again
        reason = f"{type(error).__name__}: {reason_of(error) or 'interrupted'}"
        write_json(about | {"reason": reason}, path)
        raise


def finish(run_dir: Path, key: str) -> None:
    """Take the mark off, and what was kept to go on with.

    A note beside the run says that it is done until `forget`: the command may have further runs,
    and must not begin this one anew if it is killed in one of them.
    """
    write_json({"run_id": run_dir.name}, _note_path(run_dir.parent, key))
    (run_dir / UNFINISHED_NAME).unlink()
    shutil.rmtree(run_dir / _WORK, ignore_errors=True)


def finished_before(folder: Path, key: str) -> Path | None:
    """Folder of a run that a command has finished which was killed later, in another run."""
    run_id = _read(_note_path(folder, key)).get("run_id")
    run_dir = folder / str(run_id)
    is_whole = (run_dir / SUMS_NAME).is_file() and not (run_dir / UNFINISHED_NAME).exists()
    if not run_id or not is_whole:
        return None
    shutil.rmtree(run_dir / _WORK, ignore_errors=True)  # the kill may have come before this
    return run_dir


def forget(folder: Path, key: str) -> None:
    """The command of a finished run is done: started again it is a new run."""
    _note_path(folder, key).unlink(missing_ok=True)


@contextmanager
def keeping(run_dir: Path, part: str) -> Iterator[Path]:
    """A folder to keep a part of an unfinished run in; the part is whole when the block has ended.

    Args:
        run_dir: of the run.
        part: name of the part, for example of a fold.
    """
    folder = run_dir / _WORK / part
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    yield folder
    write_sums(folder)


def kept(run_dir: Path, part: str) -> Path | None:
    """The folder that `keeping` filled, its hashes compared; None if it is not whole."""
    folder = run_dir / _WORK / part
    if not (folder / SUMS_NAME).is_file() or find_changed(folder):
        return None
    return folder


def refuse_unfinished(run_dir: str | Path) -> None:
    """Refuse a run that has not come to its end.

    Raises:
        ValueError: if it is one; the line says why it stopped, and how to go on.

    Example:
        >>> refuse_unfinished("a_folder_that_is_not_there")
    """
    path = Path(run_dir) / UNFINISHED_NAME
    if not path.is_file():
        return
    about = _read(path)
    reason = about.get("reason") or "it is being computed, or was killed"
    raise ValueError(
        f"Expected a finished run. Received: {path.parent.name!r}, which is not: "
        f"{str(reason).splitlines()[0].rstrip('.')}. The same command of the same version goes on "
        f"with it: {about.get('command')}"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _lock_path(folder: Path, key: str) -> Path:
    return folder / f".{key[:16]}.lock"


def _note_path(folder: Path, key: str) -> Path:
    return folder / f".{key[:16]}.json"
