"""The numbers of a published table as they are printed: each is every value that rounds to it.

A printed 0.97 stands for everything from 0.965 to 0.975, both ends included, so that rounding half
up and half to even are both accepted. Arithmetic is in exact fractions: a value on the edge of
rounding must not be judged by a floating-point error.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from itertools import chain

from steatosis_tf.grades import GRADES

# Full-precision floats carry noise in the last digits; beyond 12 decimals nothing is printed.
_MAX_DECIMALS = 12
_MOST_PRINTED = 6
_PARTS = ("grades", "confusion_matrix", "per_class", "macro", "weighted", "n", "accuracy")
_FREE_TEXT = ("source", "note")


@dataclass(frozen=True)
class Printed:
    """One printed number between 0 and 1 (or 0 % and 100 %).

    Attributes:
        text: as it stands in the table.
        low: least value that rounds to it, as a fraction of 1.
        high: greatest value that rounds to it, as a fraction of 1.
        num_decimals: digits after the point, in the unit of the text.
        is_percent: whether the text is in percent.
    """

    text: str
    low: Fraction
    high: Fraction
    num_decimals: int
    is_percent: bool

    def fits(self, low: Fraction, high: Fraction | None = None) -> bool:
        """Whether a value, or any value from low to high, rounds to the printed text."""
        return self.low <= (low if high is None else high) and low <= self.high

    def show(self, value: Fraction) -> str:
        """A recomputed value in the unit of the text, two digits finer."""
        unit = 100 if self.is_percent else 1
        digits = min(self.num_decimals + 2, _MAX_DECIMALS)
        return f"{float(value * unit):.{digits}f}" + (" %" if self.is_percent else "")


def read_printed(values: Sequence[object], where: str) -> list[Printed | None]:
    """Read numbers that one part of a table prints in one style.

    A JSON number has lost its trailing zeros, so numbers of one part share the most decimals any
    of them shows (0.9 beside 0.97 is read as 0.90); a string keeps its own. If any value of the
    part is above 1, or is a string with %, the part is in percent.

    Args:
        values: numbers, strings such as "0.90" or "94.5 %", or None for a cell that is missing.
        where: name of the part, for error texts.

    Raises:
        ValueError: if a value is not a number from 0 to 1, or from 0 to 100 in percent.
    """
    numbers = [None if value is None else _decimal_of(value, where) for value in values]
    is_percent = any(number is not None and number > 1 for number in numbers) or any(
        isinstance(value, str) and "%" in value for value in values
    )
    unit = 100 if is_percent else 1
    lossy = [
        _num_decimals(number)
        for number, value in zip(numbers, values, strict=True)
        if number is not None and not isinstance(value, str)
    ]
    # A computed float (0.9199999999999999) says nothing about how its neighbours were printed.
    shared = max((digits for digits in lossy if digits <= _MOST_PRINTED), default=0)
    found: list[Printed | None] = []
    for number, value in zip(numbers, values, strict=True):
        if number is None:
            found.append(None)
            continue
        if not 0 <= number <= unit:
            raise ValueError(f"Expected {where} from 0 to {unit}. Received: {value!r}.")
        own = _num_decimals(number)
        num_decimals = own if isinstance(value, str) else max(own, shared)
        half = Fraction(1, 2 * 10**num_decimals)
        exact = Fraction(number)
        text = f"{number:.{num_decimals}f}" + (" %" if is_percent else "")
        found.append(
            Printed(text, (exact - half) / unit, (exact + half) / unit, num_decimals, is_percent)
        )
    return found


def _decimal_of(value: object, where: str) -> Decimal:
    if isinstance(value, str):
        text = value.replace("%", "").strip()
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        # A float shows a decimal that nobody printed: 97.0 for 97.
        text = repr(value) if value % 1 else str(int(value))
    else:
        raise ValueError(
            f"Expected a number, or null where a cell is missing, in {where}. Received: {value!r}."
        )
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite():
        raise ValueError(f"Expected a number in {where}. Received: {value!r}.")
    return number


def _num_decimals(number: Decimal) -> int:
    return min(max(0, -int(number.as_tuple().exponent)), _MAX_DECIMALS)


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
        accuracy: proportion of correct cases.
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
        table: as described at `published.check_tables`.

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
