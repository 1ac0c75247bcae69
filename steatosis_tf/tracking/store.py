"""The SQLite file behind MLflow: where it is, whether it can be used, who may open it.

MLflow itself tries a store that it cannot open ten times, for 100 s, without a word.
"""

import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from shlex import quote

from filelock import FileLock, Timeout

#: How long a locked store is waited for; a message says so after the first second.
LONGEST_WAIT_S = 10.0

# Making the tables takes seconds of processor time, so on a busy machine half a minute.
_LONGEST_OPENING_S = 120.0


class StoreError(OSError):
    """The MLflow store cannot be used; the text says why and what to do."""


def store_dir() -> Path:
    """Folder of the MLflow store, absolute."""
    return Path(os.environ.get("STEATOSIS_MLRUNS", "mlruns")).absolute()


def store_uri() -> str:
    """SQLAlchemy address of the MLflow store."""
    return f"sqlite:///{store_dir() / 'mlflow.db'}"


def ui_command() -> str:
    """What opens MLflow's UI on this store."""
    if Path("Makefile").is_file() and store_dir() == Path("mlruns").absolute():
        return "make ui"
    return f"mlflow ui --backend-store-uri {quote(store_uri())}"


def wait_for_store() -> None:
    """Wait until nobody else writes to the store, for `LONGEST_WAIT_S` at most.

    Raises:
        StoreError: if it stays locked, is no SQLite file, or is cut short.
    """
    path = store_dir() / "mlflow.db"
    if not path.exists():
        return
    if not path.is_file():
        raise refusal("a folder, a device or a pipe")
    start, told = time.monotonic(), False
    while True:
        try:
            with closing(sqlite3.connect(path, timeout=1.0, isolation_level=None)) as store:
                store.execute("BEGIN IMMEDIATE")
                pages = store.execute("PRAGMA page_count").fetchone()[0]
                size = pages * store.execute("PRAGMA page_size").fetchone()[0]
                store.execute("ROLLBACK")
            if path.stat().st_size < size:
                raise refusal("a file that was cut short")
            return
        except sqlite3.DatabaseError as error:
            if "locked" not in str(error):
                raise refusal(str(error)) from error
        if not told:
            print("waiting for MLflow's store, which another program has locked", file=sys.stderr)
            told = True
        if time.monotonic() - start > LONGEST_WAIT_S:
            raise refusal(f"one that another program has locked for over {LONGEST_WAIT_S:.0f} s")


@contextmanager
def alone() -> Iterator[None]:
    """Hold the lock of what two runs must not do at the same moment."""
    lock = FileLock(store_dir() / ".mlflow.lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        print("waiting for another run that opens MLflow's store", file=sys.stderr)
        try:
            lock.acquire(timeout=_LONGEST_OPENING_S)
        except Timeout as error:
            why = f"one that another run has been opening for over {_LONGEST_OPENING_S:.0f} s"
            raise refusal(why) from error
    try:
        yield
    finally:
        lock.release()


def refusal(why: str) -> StoreError:
    """What is said of a store that cannot be used."""
    return StoreError(
        f"Expected a store of MLflow {version('mlflow')} at {store_dir().name}/mlflow.db. "
        f"Received: {why.rstrip('.')}. Move it away, or name another folder in STEATOSIS_MLRUNS."
    )
