"""Blind readings: who sees which patient when, what they said, and `readings.csv` of it.

A case is a patient as one reader sees it, under a running number: neither number nor order tells
anything of the patient. Each reader has an order of their own, in which some patients come twice,
for the agreement of a reader with themselves. Answers are in one SQLite file beside the manifest,
the truth; `readings.csv` is a copy of it in the form that `build_consensus` takes.
"""

import hashlib
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from steatosis_tf.cohort.decision_store import connected
from steatosis_tf.cohort.labels import RESERVED, ROI_COLUMNS
from steatosis_tf.cohort.manifest import read_manifest
from steatosis_tf.grades import GRADES
from steatosis_tf.sources.tables import write_spreadsheet

#: Beside the manifest that is read.
STORE_NAME, TABLE_NAME = "readings.sqlite", "readings.csv"
CONFIDENCES = ("low", "medium", "high")
MAX_REASON_CHARACTERS = 200
DEFAULT_REPEATS = 0.1

_MAX_INITIALS = 8
_SCHEMA = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS readers (number INTEGER PRIMARY KEY, initials TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS cases (
    reader INTEGER NOT NULL, number INTEGER NOT NULL, patient_id TEXT NOT NULL,
    is_repeat INTEGER NOT NULL, PRIMARY KEY (reader, number));
CREATE TABLE IF NOT EXISTS answers (
    number INTEGER PRIMARY KEY AUTOINCREMENT, reader INTEGER NOT NULL, case_number INTEGER NOT NULL,
    at TEXT NOT NULL, grade TEXT NOT NULL, confidence TEXT NOT NULL, reason TEXT NOT NULL,
    is_taken_back INTEGER NOT NULL);
COMMIT;
"""


@dataclass(frozen=True)
class Reading:
    """What a reader says of a case.

    Attributes:
        grade: 0 to 3; None where the reader is unable to grade.
        confidence: one of `CONFIDENCES` with a grade, else "".
        reason: why the reader is unable; "" with a grade.
    """

    grade: int | None = None
    confidence: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Place:
    """Where a reader is.

    Attributes:
        case: number of the case to read, from 1; None when all are read.
        num_frames: of that case.
        num_read: cases that have an answer.
        num_cases: of this reader, those that come twice counted twice.
    """

    case: int | None
    num_frames: int
    num_read: int
    num_cases: int


@dataclass(frozen=True)
class _Case:
    number: int
    patient_id: str
    is_repeat: bool


class ReadingStudy:
    """The readings of a manifest's patients, shared by threads, processes and readers.

    Args:
        manifest_path: as `build_manifest` writes it; grades in it are not looked at.
        repeats: proportion of the patients, 0 to 1, that a new reader sees twice.

    Raises:
        ValueError: if the manifest or the store cannot be read, the proportion is none, or a
            `readings.csv` of other origin is in the way.
        OSError: if the store cannot be written.
    """

    def __init__(self, manifest_path: str | Path, repeats: float = DEFAULT_REPEATS) -> None:
        if not 0 <= repeats <= 1:
            raise ValueError(
                "Expected repeats as a proportion of patients, 0 to 1. "
                f"Received: repeats={repeats}."
            )
        self.path, self.repeats = Path(manifest_path), repeats
        self._manifest = read_manifest(self.path, for_review=True)
        self._store, self._table = (self.path.with_name(name) for name in (STORE_NAME, TABLE_NAME))
        if self._table.exists() and not self._store.exists():
            raise ValueError(
                f"Expected no {TABLE_NAME} beside {self.path.name}, or the store it was written "
                f"from, {STORE_NAME}. Received: one of other origin. Give it another name."
            )
        groups = self._manifest.groupby("patient_id", sort=False)["path"]
        self._frames = {str(patient): list(paths) for patient, paths in groups}
        with connected(self._store, create=True) as connection:
            connection.executescript(_SCHEMA)
        self.table_error = ""
        self._write_table()

    def is_known(self, initials: str) -> bool:
        """Whether this reader has begun.

        Raises:
            ValueError: if these are no initials.
        """
        name = checked_initials(initials)
        with connected(self._store) as connection:
            return _number_of(connection, name) is not None

    def log_on(self, initials: str) -> Place:
        """Begin, or go on; a reader's order is dealt once and kept.

        Patients that are new in the manifest come last.

        Raises:
            ValueError: if these are no initials.
        """
        name = checked_initials(initials)
        with self._writing() as connection:
            connection.execute("INSERT OR IGNORE INTO readers (initials) VALUES (?)", (name,))
            reader = _known(connection, name)
            before = _cases(connection, reader)
            dealt = {case.patient_id for case in before}
            new = [patient for patient in self._frames if patient not in dealt]
            order = reading_order(new, _seed_of(name), 0.0 if before else self.repeats)
            connection.executemany(
                "INSERT INTO cases VALUES (?, ?, ?, ?)",
                [
                    (reader, number, patient, is_repeat)
                    for number, (patient, is_repeat) in enumerate(order, start=len(before) + 1)
                ],
            )
        return self.place(name)

    def place(self, initials: str) -> Place:
        """Where a reader is.

        Raises:
            ValueError: if nobody has logged on with these initials.
        """
        with connected(self._store) as connection:
            reader = _known(connection, initials)
            cases = self._shown(_cases(connection, reader))
            read = _standing(connection, reader)
        open_cases = [case for case in cases if case.number not in read]
        first = open_cases[0] if open_cases else None
        return Place(
            case=first.number if first else None,
            num_frames=len(self._frames[first.patient_id]) if first else 0,
            num_read=len(cases) - len(open_cases),
            num_cases=len(cases),
        )

    def frame_paths(self, initials: str, case: int) -> list[Path]:
        """Files of a reader's case, in the order of the manifest.

        Raises:
            ValueError: if the reader has no such case.
        """
        with connected(self._store) as connection:
            cases = self._shown(_cases(connection, _known(connection, initials)))
        for one in cases:
            if one.number == case:
                return [self.path.parent / path for path in self._frames[one.patient_id]]
        raise ValueError(f"Expected a case of this reader. Received: case={case}.")

    def answer(self, initials: str, case: int, reading: Reading) -> bool:
        """Take in an answer; returns when the disk has it.

        Returns:
            False if it is not this case's turn, for example because another window answered it:
            then nothing is saved.

        Raises:
            ValueError: if the reading is none, or nobody has logged on with these initials.
            TimeoutError: if another process holds the store.
            OSError: if it cannot be written.
        """
        said = _checked(reading)
        with self._writing() as connection:
            reader = _known(connection, initials)
            read = _standing(connection, reader)
            turns = [one.number for one in self._shown(_cases(connection, reader))]
            if next((number for number in turns if number not in read), None) != case:
                return False
            _append(connection, reader, case, said)
        self._write_table()
        return True

    def undo(self, initials: str) -> tuple[int, Reading] | None:
        """Take a reader's last answer back; its case is the next to read.

        Returns:
            the case and what was said of it; None if there is nothing to take back.
        """
        with self._writing() as connection:
            reader = _known(connection, initials)
            standing = _standing(connection, reader)
            shown = {one.number for one in self._shown(_cases(connection, reader))}
            cases = [number for number in standing if number in shown]
            if not cases:
                return None
            last = cases[-1]
            _append(connection, reader, last, standing[last], is_taken_back=True)
        self._write_table()
        return last, standing[last]

    def num_elsewhere(self) -> int:
        """Patients who were read and are not in this manifest, so that the table lacks them."""
        with connected(self._store) as connection:
            read = connection.execute(
                "SELECT DISTINCT patient_id FROM answers JOIN cases "
                "ON cases.reader = answers.reader AND cases.number = answers.case_number"
            )
            return len({patient for (patient,) in read} - set(self._frames))

    def _shown(self, cases: Sequence[_Case]) -> list[_Case]:
        """Those whose patient the manifest still has."""
        return [case for case in cases if case.patient_id in self._frames]

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with connected(self._store) as connection, connection:  # commits at its end, or rolls back
            connection.execute("BEGIN IMMEDIATE")
            yield connection

    def _write_table(self) -> None:
        """Write `readings.csv`; answers are safe in the store where that fails."""
        try:
            # Under the lock, or a server that has read the store earlier could write it later.
            with self._writing() as connection:
                readers = connection.execute(
                    "SELECT number, initials FROM readers ORDER BY number"
                ).fetchall()
                columns = {
                    name: column
                    for number, initials in readers
                    for name, column in self._columns_of(connection, number, initials).items()
                }
                if readers:
                    write_spreadsheet(_plain_labels(self._manifest).assign(**columns), self._table)
            self.table_error = ""
        except OSError as error:
            self.table_error = f"{TABLE_NAME} cannot be written ({error.strerror or error})"

    def _columns_of(
        self, connection: sqlite3.Connection, reader: int, initials: str
    ) -> dict[str, pd.Series]:
        """Columns `reader_1`, `reader_1_confidence`, ... and the same of the repeats."""
        patients, read = self._manifest["patient_id"], _standing(connection, reader)
        cases = _cases(connection, reader)
        columns = {f"reader_{reader}_initials": pd.Series(initials, patients.index)}
        for is_repeat in sorted({case.is_repeat for case in cases}):
            prefix = f"reader_{reader}_repeat" if is_repeat else f"reader_{reader}"
            said = {
                case.patient_id: (case.number, read[case.number])
                for case in cases
                if case.is_repeat == is_repeat and case.number in read
            }
            cells = {
                prefix: {p: "" if r.grade is None else GRADES[r.grade]
                         for p, (_, r) in said.items()},
                f"{prefix}_confidence": {p: r.confidence for p, (_, r) in said.items()},
                f"{prefix}_unable": {p: r.reason for p, (_, r) in said.items()},
                f"{prefix}_case": {p: str(number) for p, (number, _) in said.items()},
            }  # fmt: skip
            columns |= {
                name: pd.Series([of.get(patient, "") for patient in patients], patients.index)
                for name, of in cells.items()
            }
        return columns


def reading_order(patients: Sequence[str], seed: int, repeats: float) -> list[tuple[str, bool]]:
    """The order in which a reader sees patients, each once and some twice.

    The first ones of the order come again in its second half, at random places but one after the
    other, so that at least half of the patients lie between the two times.

    Args:
        patients: ids.
        seed: of the order.
        repeats: proportion of the patients that come twice, 0 to 1.

    Returns:
        (patient, whether for the second time).

    Example:
        >>> order = reading_order(["a", "b", "c", "d"], 0, 0.25)
        >>> sorted(patient for patient, is_repeat in order if not is_repeat)
        ['a', 'b', 'c', 'd']
        >>> [patient for patient, is_repeat in order if is_repeat] == [order[0][0]]
        True
    """
    rng = np.random.default_rng(seed)
    order = [patients[at] for at in rng.permutation(len(patients))]
    num_repeats = round(repeats * len(order))
    start = max(num_repeats, (len(order) + 1) // 2)
    num_last = len(order) - start + num_repeats
    places = set(rng.permutation(num_last)[:num_repeats].tolist())
    once, twice = iter(order[start:]), iter(order[:num_repeats])
    last = [(next(twice), True) if at in places else (next(once), False) for at in range(num_last)]
    return [(patient, False) for patient in order[:start]] + last


def checked_initials(initials: str) -> str:
    """A reader's initials in capitals, so that "ab" and "AB" are one reader.

    Raises:
        ValueError: if they are not one to eight letters or digits.

    Example:
        >>> checked_initials(" ab ")
        'AB'
    """
    name = initials.strip().upper()
    if not name.isalnum() or len(name) > _MAX_INITIALS:
        raise ValueError(
            f"Expected initials of 1 to {_MAX_INITIALS} letters or digits. Received: others."
        )
    return name


def _seed_of(initials: str) -> int:
    return int.from_bytes(hashlib.sha256(initials.encode()).digest()[:8])


def _checked(reading: Reading) -> Reading:
    reason = " ".join(reading.reason.split())
    if reading.grade is None:
        if not reason or len(reason) > MAX_REASON_CHARACTERS or reading.confidence:
            raise ValueError(
                f"Expected a reason of 1 to {MAX_REASON_CHARACTERS} characters for a case that "
                f"cannot be graded, and no confidence. Received: {len(reason)} characters."
            )
    elif reading.grade not in range(len(GRADES)) or reading.confidence not in CONFIDENCES or reason:
        raise ValueError(
            f"Expected a grade 0 to {len(GRADES) - 1} with a confidence out of "
            f"{', '.join(CONFIDENCES)}. Received: grade={reading.grade} "
            f"confidence={reading.confidence!r}."
        )
    return Reading(reading.grade, reading.confidence, reason)


def _plain_labels(manifest: pd.DataFrame) -> pd.DataFrame:
    """Path, patient and covariates: what a label table may say beside readers' grades."""
    ours = {*RESERVED, *ROI_COLUMNS, "grade", "fat_percent"}
    names = [name for name in manifest if name not in ours and not re.match(r"reader_\d", name)]
    return manifest[names]


def _number_of(connection: sqlite3.Connection, initials: str) -> int | None:
    found = connection.execute("SELECT number FROM readers WHERE initials = ?", (initials,))
    return next((int(number) for (number,) in found), None)


def _known(connection: sqlite3.Connection, initials: str) -> int:
    number = _number_of(connection, initials)
    if number is None:
        raise ValueError("Expected a reader who has logged on. Received: other initials.")
    return number


def _cases(connection: sqlite3.Connection, reader: int) -> list[_Case]:
    found = connection.execute(
        "SELECT number, patient_id, is_repeat FROM cases WHERE reader = ? ORDER BY number",
        (reader,),
    )
    return [_Case(number, patient, bool(is_repeat)) for number, patient, is_repeat in found]


def _standing(connection: sqlite3.Connection, reader: int) -> dict[int, Reading]:
    """Answers by case, in the order in which they were given, without those taken back."""
    read: dict[int, Reading] = {}
    for case, grade, confidence, reason, is_taken_back in connection.execute(
        "SELECT case_number, grade, confidence, reason, is_taken_back FROM answers "
        "WHERE reader = ? ORDER BY number", (reader,)
    ):  # fmt: skip
        read.pop(case, None)
        if not is_taken_back:
            read[case] = Reading(GRADES.index(grade) if grade else None, confidence, reason)
    return read


def _append(
    connection: sqlite3.Connection,
    reader: int,
    case: int,
    said: Reading,
    *,
    is_taken_back: bool = False,
) -> None:
    """Add a line; none is ever changed, so that the file tells the whole session."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    grade = "" if said.grade is None else GRADES[said.grade]
    connection.execute(
        "INSERT INTO answers (reader, case_number, at, grade, confidence, reason, is_taken_back) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (reader, case, at, grade, said.confidence, said.reason, is_taken_back),
    )
