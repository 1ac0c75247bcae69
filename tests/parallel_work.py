"""Work on parts for the tests of `spread`; a module, because worker processes import it."""

import os
import signal
import time
from pathlib import Path


def write_number(part: str) -> None:
    """Write the part's number and the process that did it."""
    if not Path(part).exists():
        time.sleep(0.2)  # so that no worker is done before the next one is up
        Path(part).write_text(f"{Path(part).name} {os.getpid()}")


def die_at_three(part: str) -> None:
    """As `write_number`, but the first worker that comes to part 3 is ended by the system."""
    grave = Path(part).parent / "grave"
    if Path(part).name == "3" and not grave.exists():
        grave.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    write_number(part)


def refuse_three(part: str) -> None:
    """As `write_number`, but part 3 has a fault."""
    if Path(part).name == "3":
        raise ValueError("part 3 is faulty")
    write_number(part)


def half_of(asked_dir: str, number: int) -> float:
    """Half of a number; fails if it is asked twice."""
    (Path(asked_dir) / str(number)).touch(exist_ok=False)
    return number / 2


def number_and_process(seconds: float, number: int) -> tuple[int, int]:
    """The number and the process, after so much processor time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    return number, os.getpid()


def die_at_seven(parent: int, number: int) -> int:
    """The number; the process that comes to 7 is ended by the system, unless it is the parent."""
    if number == 7 and os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def note_process(folder: str, number: int) -> None:
    """Leave a file named by this process; 0 is done at once, all others take a while."""
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(0.5 if number else 0.01)
