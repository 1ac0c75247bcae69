"""The parts of a published result, read from JSON and checked for shape, not yet for agreement."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

from steatosis_tf.evaluation.printed import Printed, read_printed
from steatosis_tf.grades import GRADES

VALUES = ("precision", "recall", "F1")

_PARTS = ("grades", "confusion_matrix", "per_class", "macro", "weighted", "n", "accuracy")
_FREE_TEXT = ("source", "note")


@dataclass(frozen=True)
class Tables:
    """A published result; an absent part is empty or None.

    Attributes:
        grades: k names.
        matrix: k rows of k counts, rows reference, columns predicted.
        per_class: k rows of precision, recall, F1; None where a cell is missing.
        supports: k counts; None where missing.
        macro: precision, recall, F1.
        weighted: precision, recall, F1, weighted by support.
        n: number of cases.
        accuracy: share of correct cases.
    """

    grades: list[str]
    matrix: list[list[int]]
    per_class: list[list[Printed | None]]
    supports: list[int | None]
    macro: list[Printed | None]
    weighted: list[Printed | None]
    n: int | None
    accuracy: Printed | None


def read_tables(table: Mapping[str, object]) -> Tables:
    """Check shapes and read every number.

    Args:
        table: as described at `consistency.check_tables`.

    Raises:
        ValueError: with the part that is wrong and what was expected there.
    """
    if not isinstance(table, Mapping):
        raise ValueError(f"Expected a JSON object of tables. Received: {type(table).__name__}.")
    unknown = [name for name in table if name not in _PARTS + _FREE_TEXT]
    if unknown:
        raise ValueError(
            f"Expected parts out of {', '.join(_PARTS + _FREE_TEXT)}. "
            f"Received: {', '.join(map(repr, unknown))}."
        )
    matrix = _matrix(table.get("confusion_matrix"))
    grades = _grades(table, len(matrix))
    if matrix and len(matrix) != len(grades):
        raise ValueError(
            f"Expected a {len(grades)} x {len(grades)} confusion_matrix for the grades "
            f"{', '.join(grades)}. Received: {len(matrix)} x {len(matrix)}."
        )
    per_class, supports = _per_class(table.get("per_class"), grades)
    accuracy = table.get("accuracy")
    n = table.get("n")
    return Tables(
        grades,
        matrix,
        per_class,
        supports,
        _average(table.get("macro"), "macro"),
        _average(table.get("weighted"), "weighted"),
        None if n is None else _count(n, "n", least=1),
        None if accuracy is None else read_printed([accuracy], "accuracy")[0],
    )


def _count(value: object, where: str, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise ValueError(f"Expected a whole number in {where}. Received: {value!r}.")
    if value < least:
        raise ValueError(f"Expected {where} of {least} or more. Received: {value!r}.")
    return int(value)


def _matrix(value: object) -> list[list[int]]:
    if value is None:
        return []
    if not isinstance(value, list) or not value or not all(isinstance(r, list) for r in value):
        raise ValueError(f"Expected confusion_matrix as a list of rows. Received: {value!r}.")
    if any(len(row) != len(value) for row in value):
        raise ValueError(
            f"Expected a square confusion_matrix: {len(value)} rows of {len(value)} counts. "
            f"Received: rows of {', '.join(str(len(row)) for row in value)}."
        )
    matrix = [[_count(cell, "confusion_matrix") for cell in row] for row in value]
    if sum(map(sum, matrix)) == 0:
        raise ValueError("Expected at least one case in confusion_matrix. Received: all zero.")
    return matrix


def _grades(table: Mapping[str, object], num_rows: int) -> list[str]:
    grades = table.get("grades")
    if grades is None:
        per_class = table.get("per_class")
        if isinstance(per_class, Mapping) and per_class:
            return [str(name) for name in per_class]
        if num_rows in (0, len(GRADES)):
            return list(GRADES)
        return [f"class {k + 1}" for k in range(num_rows)]
    if not isinstance(grades, list) or not all(isinstance(name, str) for name in grades):
        raise ValueError(f"Expected grades as a list of names. Received: {grades!r}.")
    if len(set(grades)) != len(grades) or len(grades) < 2:
        raise ValueError(f"Expected two or more different grades. Received: {grades!r}.")
    return grades


def _per_class(
    value: object, grades: list[str]
) -> tuple[list[list[Printed | None]], list[int | None]]:
    if value is None:
        return [], []
    if not isinstance(value, Mapping):
        raise ValueError(
            "Expected per_class as an object: grade -> [precision, recall, f1, support]. "
            f"Received: {type(value).__name__}."
        )
    unknown = [name for name in value if name not in grades]
    if unknown:
        raise ValueError(
            f"Expected per_class grades out of {', '.join(grades)}. Received: {unknown!r}."
        )
    rows = [value.get(grade, [None] * 4) for grade in grades]
    for grade, row in zip(grades, rows, strict=True):
        if not isinstance(row, list) or len(row) not in (3, 4):
            raise ValueError(
                f"Expected [precision, recall, f1, support] in per_class, row {grade}. "
                f"Received: {row!r}."
            )
    cells = read_printed(list(chain.from_iterable(row[:3] for row in rows)), "per_class")
    supports = [
        None if len(row) == 3 or row[3] is None else _count(row[3], f"support of {grade}")
        for grade, row in zip(grades, rows, strict=True)
    ]
    return [cells[3 * k : 3 * k + 3] for k in range(len(grades))], supports


def _average(value: object, where: str) -> list[Printed | None]:
    if value is None:
        return []
    if not isinstance(value, list) or len(value) != 3:
        raise ValueError(f"Expected {where} as [precision, recall, f1]. Received: {value!r}.")
    return read_printed(value, where)
