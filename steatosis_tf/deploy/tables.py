"""Answers as tables, as text for a person, and as JSON."""

import contextlib
import csv
import io
import math
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import cv2
import numpy as np
import onnxruntime
from filelock import FileLock, Timeout

from steatosis_tf import __version__
from steatosis_tf.files import as_cell, check_output, sync_folder, write_json
from steatosis_tf.grades import GRADES, NOTICE, SCORE_COLUMNS, grade_from_fat_percent
from steatosis_tf.model.answer import FrameAnswer, Kind, PatientAnswer, plain_answer
from steatosis_tf.quantitative.measure import NAMES

if TYPE_CHECKING:
    from steatosis_tf.deploy.predict import Grader

#: Why nothing is called a change.
NO_LIMIT = (
    "the model holds no repeatability limit, which takes patients seen twice; frames of one visit "
    "do not give it."
)

TABLES = ("patients.csv", "frames.csv")
SUMMARY = "predictions.json"

_FIRST_COLUMN = "patient"


class AnswerTables:
    """Writes `patients.csv` and `frames.csv` row by row, `predictions.json` at the end.

    Boxes are name, top, left, height, width in px of the frame. What a killed call leaves is right
    as far as it goes, and `predictions.json` is not there.

    Args:
        folder: to write into.
        grader: what answers.
        inputs: paths that are read.

    Raises:
        ValueError: if a file there is an input, or a table of another making, or if another call
            writes there.
    """

    def __init__(self, folder: str | Path, grader: "Grader", inputs: Sequence[str | Path]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._grader = grader
        self._answers: list[dict[str, Any]] = []
        self._start = time.monotonic()
        for name in (*TABLES, SUMMARY):
            check_output(self.folder / name, inputs)
            _refuse_other_makers(self.folder / name)
        self._lock = FileLock(self.folder / ".lock", timeout=0)
        try:
            self._lock.acquire()  # before anything of the call before goes
        except Timeout as error:
            raise ValueError(
                "Expected an output folder for each call. Received: "
                f"{self.folder.name!r}, into which another call is writing. Wait for its end, or "
                "give --output another folder."
            ) from error
        if (self.folder / TABLES[0]).is_file():  # figures there are of the answers that go now
            for pattern in ("[0-9]*_[0-9]*.png", "trend_[0-9]*.png"):
                for old in (self.folder / "figures").glob(pattern):
                    old.unlink()
        (self.folder / SUMMARY).unlink(missing_ok=True)

    @contextlib.contextmanager
    def opened(self) -> Iterator["AnswerTables"]:
        """While it is open, `add` writes."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._lock.release)
            self._tables = [
                stack.enter_context((self.folder / name).open("wb", buffering=0)) for name in TABLES
            ]
            # The columns are those of any row.
            rows = (self._patient_row(PatientAnswer("", "unable")),
                    self._frame_row("", FrameAnswer("", "unable"), ""))  # fmt: skip
            for table, row in zip(self._tables, rows, strict=True):
                _append(table, [[*row]])
            yield self
        sync_folder(self.folder)

    def add(
        self, answer: PatientAnswer, figures: Sequence[str] = (), change: str = ""
    ) -> dict[str, Any]:
        """Write a patient and its frames.

        Args:
            answer: of the patient.
            figures: file name of each frame's figure, or "".
            change: of `Visits.add`.

        Returns:
            the patient as `predictions.json` will have it.
        """
        patients, frames = self._tables
        _append(patients, [[*self._patient_row(answer, change).values()]])
        drawn = list(figures) or [""] * len(answer.frames)
        pairs = zip(answer.frames, drawn, strict=True)
        _append(frames, [[*self._frame_row(answer.patient, *pair).values()] for pair in pairs])
        self._answers.append(values_of(answer, change))
        return self._answers[-1]

    def finish(self, passed_over: Sequence[tuple[str, str]], counts: dict[str, int]) -> None:
        """Write `predictions.json`."""
        summary = {
            "steatosis_tf": __version__,
            "notice": NOTICE,
            "model": {"name": self._grader.name, "sha256": self._grader.sha256},
            "versions": {
                "python": platform.python_version(),
                "numpy": np.__version__,
                "onnxruntime": onnxruntime.__version__,
                "opencv": cv2.__version__,
            },
            "counts": counts,
            "seconds": round(time.monotonic() - self._start, 3),
            "passed_over": [{"file": name, "reason": why} for name, why in passed_over],
            "patients": self._answers,
        }
        write_json(summary, self.folder / SUMMARY)

    def _patient_row(self, answer: PatientAnswer, change: str = "") -> dict[str, Any]:
        """Column -> value."""
        numbers = self._grader.columns
        points = {name: answer.operating_points.get(name) for name in self._grader.points}
        fat_low, fat_high = answer.fat_interval
        return {
            _FIRST_COLUMN: answer.patient, "date": answer.date, "kind": answer.kind,
            "grade": answer.grade, "fat_percent": answer.fat_percent,
            "fat_low": fat_low, "fat_high": fat_high,
            **{column: answer.probabilities.get(grade)
               for column, grade in zip(SCORE_COLUMNS, GRADES, strict=True)},
            "prediction_set": " or ".join(answer.prediction_set),
            **{name: "" if is_over is None else ("yes" if is_over else "no")
               for name, is_over in points.items()},
            **{f"adds {name}": answer.contributions.get(name) for name in numbers},
            **{f"measured {name}": answer.features.get(name) for name in numbers},
            "novelty": answer.novelty, "training_rank": answer.training_rank,
            "num_frames": answer.num_frames, "num_used": answer.num_used,
            "reason": answer.reason, "change": change, "notice": NOTICE,
        }  # fmt: skip

    def _frame_row(self, patient: str, frame: FrameAnswer, figure: str) -> dict[str, Any]:
        """Column -> value."""
        boxes = (f"{name} {' '.join(map(str, box))}" for name, box in frame.boxes.items())
        return {
            _FIRST_COLUMN: patient, "frame": frame.name, "kind": frame.kind,
            "reason_code": frame.reason_code, "reason": frame.reason,
            "fat_score": frame.fat_score, "novelty": frame.novelty,
            **{f"measured {name}": frame.features.get(name) for name in self._grader.columns},
            "boxes": "; ".join(boxes), "figure": figure, "notice": NOTICE,
        }  # fmt: skip


class Visits:
    """Studies of one person, one after the other: what is said of the step between two.

    Args:
        limit: of a bundle's `change_limit`.

    Attributes:
        by_person: key of the person -> answers in order of their dates.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self.by_person: dict[str, list[PatientAnswer]] = {}

    def add(self, person: str, answer: PatientAnswer) -> str:
        """One sentence on the step from the visit before; "" for the first with a fat score.

        Example:
            >>> visits = Visits(1.0)
            >>> visits.add("p", PatientAnswer("s1", "graded", fat_percent=4.0, date="2024-01-01"))
            ''
            >>> visits.add("p", PatientAnswer("s2", "graded", fat_percent=25.0, date="2024-07-01"))
            'Changed since 2024-01-01 (fat 4 % to 25 %), by more than measuring anew does.'
        """
        earlier = self.by_person.setdefault(person, [])
        if math.isnan(answer.fat_percent):
            return ""
        before = earlier[-1] if earlier else None
        earlier.append(answer)
        if before is None:
            return ""
        step = (f"since {before.date or 'the visit before'} (fat {before.fat_percent:.0f} % to "
                f"{answer.fat_percent:.0f} %)")  # fmt: skip
        if not (before.date and answer.date):
            return f"Whether it changed {step} is not known: a visit without a date has no order."
        if math.isnan(self._limit):
            return f"Whether it changed {step} is not known: {NO_LIMIT}"
        if before.kind != "graded" or answer.kind != "graded":
            return f"Whether it changed {step} is not known: a visit is unlike the training data."
        if abs(math.sqrt(answer.fat_percent) - math.sqrt(before.fat_percent)) > self._limit:
            return f"Changed {step}, by more than measuring anew does."
        return f"No change shown {step}, no more than measuring anew does."


def values_of(answer: PatientAnswer, change: str = "") -> dict[str, Any]:
    """A patient for programs, without outlines.

    Args:
        answer: of a patient.
        change: of `Visits.add`.
    """
    values = plain_answer(answer) | {"change": change}
    for frame in values["frames"]:
        del frame["sector"], frame["liver"]
    return values


def count_answers(patients: Iterable[tuple[Kind, int]]) -> dict[str, int]:
    """Patients, their frames, and patients by kind of answer.

    Args:
        patients: kind of answer and number of frames of each.

    Example:
        >>> count_answers([("graded", 3), ("unable", 1)])
        {'patients': 2, 'frames': 4, 'graded': 1, 'score_only': 0, 'unable': 1}
    """
    counts = {"patients": 0, "frames": 0, **dict.fromkeys(get_args(Kind), 0)}
    for kind, num_frames in patients:
        counts["patients"] += 1
        counts["frames"] += num_frames
        counts[kind] += 1
    return counts


def on_one_line(name: str) -> str:
    """A name as a screen may show it: a file's may hold line ends and orders to the terminal.

    Example:
        >>> on_one_line("a" + chr(10) + "b" + chr(27) + "[2J.png")
        'a b [2J.png'
    """
    return "".join(letter if letter.isprintable() else " " for letter in name)


def patient_text(answer: PatientAnswer, num_training: int, change: str = "") -> str:
    """Three lines for a person, and one on the change since the visit before.

    Args:
        answer: of a patient.
        num_training: patients that the model was trained on; 0 if it does not say.
        change: of `Visits.add`.
    """
    return "\n  ".join([_answer_text(answer, num_training), *filter(None, [change])])


def _answer_text(answer: PatientAnswer, num_training: int) -> str:
    name = on_one_line(f"{answer.patient}{f' ({answer.date})' if answer.date else ''}")
    used = f"{answer.num_used} of {answer.num_frames} frames used"
    num_placed = sum(frame.by_person for frame in answer.frames)
    if num_placed:
        used += f", the sector of {num_placed} placed by a person"
    if answer.kind == "unable":
        # Of one frame alone its own reason says more.
        reason = answer.frames[0].reason if len(answer.frames) == 1 else answer.reason
        return f"{name}: unable to assess\n  {reason}\n  {used}"
    fat = _fat_text(answer)
    if answer.kind == "score_only":
        rank = f", above {100 * answer.training_rank:.0f} % of the {num_training} training patients"
        return f"{name}: score only{fat}{rank}\n  {answer.reason}\n  {used}{_adds_text(answer)}"
    chances = ", ".join(f"{grade} {p:.2f}" for grade, p in answer.probabilities.items())
    kept = f"; not ruled out: {', '.join(answer.prediction_set)}" if answer.prediction_set else ""
    grade = f"{answer.grade}{_against_the_grade(answer)}"
    return f"{name}: {grade}{fat}\n  {chances}{kept}\n  {used}{_adds_text(answer)}"


def _against_the_grade(answer: PatientAnswer) -> str:
    """What else the answer holds that a reader may take for another grade; "" if nothing does."""
    most = max(answer.probabilities, key=answer.probabilities.__getitem__)
    if most != answer.grade:
        return f" (by the model's decision rule; the most probable one is {most})"
    if math.isnan(answer.fat_percent):
        return ""
    band = grade_from_fat_percent(answer.fat_percent)
    return "" if band == answer.grade else f" (by its probability; the score lies in {band})"


def _fat_text(answer: PatientAnswer) -> str:
    if math.isnan(answer.fat_percent):
        return ""
    low, high = answer.fat_interval
    return f", fat {answer.fat_percent:.0f} % ({low:.0f} to {high:.0f} %)"


def _adds_text(answer: PatientAnswer) -> str:
    largest = list(answer.contributions.items())[:3]
    if not largest:
        return ""
    parts = ", ".join(f"{NAMES.get(name, name).lower()} {add:+.1f}" for name, add in largest)
    # Without fat percent the model was trained on grades alone.
    return f"; adds to the {'grade' if math.isnan(answer.fat_percent) else 'root of fat'}: {parts}"


def _append(table: io.FileIO, rows: Sequence[Sequence[Any]]) -> None:
    """Write rows, or none of them where the disk is full."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)
    content, start = text.getvalue().encode(), table.tell()
    try:
        while content:
            content = content[table.write(content) :]
    except OSError:
        table.truncate(start)
        raise


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    # A patient or file may be called =1+1.
    return f"{value:.6g}" if isinstance(value, float) else as_cell(value)


def _refuse_other_makers(path: Path) -> None:
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        start = file.read(200)
    # Empty is what a call leaves that was killed at its start.
    if start and not start.startswith((f"{_FIRST_COLUMN},", '{\n  "steatosis_tf"')):
        raise ValueError(
            f"Expected to replace answers of an earlier call, or no file. Received: {path.name!r}, "
            "which is none. Give --output another folder."
        )
