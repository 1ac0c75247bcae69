"""Files appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it into place when the block ends well.

    A killed or failing writer leaves the old file, or none, never half of a new one. The
    temporary name keeps the suffix, because OpenCV, Keras and pandas choose formats by it.

    Raises:
        OSError: if the folder cannot be made or the move fails, for example on a full disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".unfinished-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _give_usual_mode(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _give_usual_mode(path: Path) -> None:
    # mkstemp makes files private to one user; a shared study folder expects the usual rights.
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)
