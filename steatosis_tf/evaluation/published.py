"""Do the tables of a published result agree with each other? Ours before a report, anybody's.

A confusion matrix fixes every count, precision, recall, F1, average and the accuracy; whatever is
printed beside it has to round to what the matrix gives. Without a matrix weaker checks remain:
whether any values inside the printed ranges can agree, and whether a whole number of cases can give
a printed proportion at all (the GRIM test, Brown and Heathers 2017, doi 10.1177/1948550616673876).

A printed 0.97 stands for everything from 0.965 to 0.975, both ends included, so that rounding half
up and half to even are both accepted. Arithmetic is in exact fractions: a value on the edge of
rounding must not be judged by a floating-point error.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from itertools import chain
from typing import Annotated, Any

from pydantic import BaseModel, Field, StrictStr, ValidationError

from steatosis_tf.grades import GRADES

# Full-precision floats carry noise in the last digits; beyond 12 decimals nothing is printed.
_MAX_DECIMALS = 12
_MOST_PRINTED = 6


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


_Count = Annotated[int, Field(ge=0)]
_Average = Annotated[list[Any], Field(min_length=3, max_length=3)]


class _Given(BaseModel, extra="forbid"):
    """Shapes of the parts of a published result."""

    source: Any = None
    note: Any = None
    grades: Annotated[list[StrictStr], Field(min_length=2)] | None = None
    confusion_matrix: Annotated[list[list[_Count]], Field(min_length=1)] | None = None
    per_class: dict[str, tuple[Any, Any, Any] | tuple[Any, Any, Any, _Count | None]] | None = None
    macro: _Average | None = None
    weighted: _Average | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    accuracy: Any = None


def read_tables(table: Mapping[str, object]) -> Tables:
    """Check shapes and read every number of a table as `check_tables` takes it; raises as that."""
    try:
        given = _Given.model_validate(table)
    except ValidationError as error:
        fault = error.errors()[-1]
        place = " ".join(str(part) for part in fault["loc"] if "tuple" not in str(part))
        raise ValueError(
            f"Expected an object with the parts {', '.join(_Given.model_fields)}. Received: "
            f"{place or 'other JSON'}: {fault['msg']} ({fault['input']!r})."
        ) from error
    matrix = given.confusion_matrix or []
    grades = given.grades or list(given.per_class or ()) or list(GRADES)
    if not given.grades and not given.per_class and len(matrix) not in (0, len(GRADES)):
        grades = [f"class {k + 1}" for k in range(len(matrix))]
    if matrix and {len(matrix), *map(len, matrix)} != {len(grades)}:
        raise ValueError(
            f"Expected a {len(grades)} x {len(grades)} confusion_matrix for the grades "
            f"{', '.join(grades)}. Received: {len(matrix)} rows of "
            f"{', '.join(str(len(row)) for row in matrix)}."
        )
    if matrix and not sum(map(sum, matrix)):
        raise ValueError("Expected at least one case in confusion_matrix. Received: all zero.")
    per_class = given.per_class or {}
    if len(set(grades)) != len(grades) or not per_class.keys() <= set(grades):
        raise ValueError(
            "Expected different grades, and per_class of these. Received: "
            f"grades={grades} per_class={list(per_class)}."
        )
    rows = [per_class.get(grade, (None,) * 4) for grade in grades] if per_class else []
    cells = read_printed(list(chain.from_iterable(row[:3] for row in rows)), "per_class")
    return Tables(
        grades,
        matrix,
        [cells[3 * k : 3 * k + 3] for k in range(len(rows))],
        [row[3] if len(row) == 4 else None for row in rows],
        read_printed(given.macro or (), "macro"),
        read_printed(given.weighted or (), "weighted"),
        given.n,
        None if given.accuracy is None else read_printed([given.accuracy], "accuracy")[0],
    )


VALUES = ("precision", "recall", "F1")


@dataclass(frozen=True)
class Finding:
    """One place where tables do not agree.

    Attributes:
        where: the cell, for example "Severe recall" or "macro precision".
        printed: as it stands in the table.
        recomputed: what the other numbers give.
        reason: the arithmetic, for the reader.
    """

    where: str
    printed: str
    recomputed: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: printed {self.printed}, recomputed {self.recomputed}. {self.reason}"


@dataclass(frozen=True)
class ExactTables:
    """Everything a confusion matrix fixes, as exact fractions.

    Attributes:
        n: number of cases.
        accuracy: proportion of correct cases.
        per_class: k rows of precision, recall, F1; None where there is no denominator.
        supports: k row sums.
        macro: precision, recall, F1; a missing value counts as 0, as in scikit-learn.
        macro_defined: the same over the grades that have a value.
        weighted: precision, recall, F1, weighted by support.
    """

    n: int
    accuracy: Fraction
    per_class: list[list[Fraction | None]]
    supports: list[int]
    macro: list[Fraction]
    macro_defined: list[Fraction]
    weighted: list[Fraction]


# Whether a check that was made agrees, and what is to be said if it does not.
_Check = tuple[bool, Finding]


def check_tables(table: Mapping[str, object]) -> list[Finding]:
    """Hold the parts of a published result against each other.

    Args:
        table: every part optional: `grades` (names), `confusion_matrix` (rows reference, columns
            predicted), `per_class` (grade -> [precision, recall, f1, support]), `macro` and
            `weighted` ([precision, recall, f1]), `n`, `accuracy`; also `source` and `note`, free
            text. A missing cell is null. Numbers may be fractions or percent; a string such as
            "0.90" keeps the trailing zero that a JSON number loses.

    Returns:
        One finding per cell that does not follow, in reading order; empty if all agree.

    Raises:
        ValueError: if a part has the wrong shape or an impossible value, or if no two parts can be
            held against each other (that would be silence, not agreement).
    """
    tables = read_tables(table)
    checks = [*(_against_matrix if tables.matrix else _without_matrix)(tables)]
    if not checks:
        raise ValueError(
            "Expected at least two parts that can be held against each other, such as "
            f"confusion_matrix and per_class. Received: {', '.join(table) or 'an empty table'}."
        )
    found: dict[str, Finding] = {}  # a second reason for the same cell adds nothing
    for agrees, finding in checks:
        if not agrees:
            found.setdefault(finding.where, finding)
    return [*found.values()]


def exact_tables(matrix: Sequence[Sequence[int]]) -> ExactTables:
    """What k rows (reference) of k counts (predicted), at least one of them above 0, fix."""
    places, total = range(len(matrix)), sum(map(sum, matrix))
    rows = [sum(row) for row in matrix]
    columns = [sum(row[k] for row in matrix) for k in places]
    hits = [matrix[k][k] for k in places]
    per_class = [
        [
            Fraction(hits[k], columns[k]) if columns[k] else None,
            Fraction(hits[k], rows[k]) if rows[k] else None,
            Fraction(2 * hits[k], rows[k] + columns[k]) if rows[k] + columns[k] else None,
        ]
        for k in places
    ]
    by_value = [[row[v] for row in per_class] for v in range(3)]
    defined = [[value for value in values if value is not None] for values in by_value]
    return ExactTables(
        n=total,
        accuracy=Fraction(sum(hits), total),
        per_class=per_class,
        supports=rows,
        macro=[sum(values, Fraction(0)) / len(matrix) for values in defined],
        macro_defined=[sum(values, Fraction(0)) / len(values) for values in defined],
        weighted=[
            sum(((p or Fraction(0)) * n for p, n in zip(values, rows, strict=True)), Fraction(0))
            / total
            for values in by_value
        ],
    )


def _against_matrix(tables: Tables) -> Iterator[_Check]:
    exact = exact_tables(tables.matrix)
    yield from _count_checks(tables, exact)
    if tables.accuracy is not None:
        yield _accuracy_check(tables, tables.accuracy, exact)
    for k, cells in enumerate(tables.per_class):
        for v, cell in enumerate(cells):
            if cell is not None:
                yield _cell_check(tables, k, v, cell, exact.per_class[k][v])
    reason = "Recomputed from the confusion matrix."
    for name, printed, candidates in (
        ("macro", tables.macro, [exact.macro, exact.macro_defined]),
        ("weighted", tables.weighted, [exact.weighted]),
    ):
        for v, cell in enumerate(printed):
            if cell is not None:
                known = [values[v] for values in candidates]
                where = f"{name} {VALUES[v]}"
                yield (
                    any(map(cell.fits, known)),
                    Finding(where, cell.text, cell.show(known[0]), reason),
                )


def _count_checks(tables: Tables, exact: ExactTables) -> Iterator[_Check]:
    if tables.n is not None:
        reason = f"The confusion matrix sums to {exact.n}."
        if tables.n > exact.n:
            reason += f" {tables.n - exact.n} cases are missing from it."
        yield tables.n == exact.n, Finding("n", str(tables.n), str(exact.n), reason)
    columns = [sum(column) for column in zip(*tables.matrix, strict=True)]
    hint = ""
    if tables.supports == columns and columns != exact.supports:
        hint = " The supports are the column sums: are the rows the predicted grades?"
    for grade, printed, row_sum in zip(
        tables.grades, tables.supports or [None] * len(columns), exact.supports, strict=True
    ):
        if printed is not None:
            reason = f"The row of {grade} sums to {row_sum}.{hint}"
            finding = Finding(f"{grade} support", str(printed), str(row_sum), reason)
            yield printed == row_sum, finding


def _accuracy_check(tables: Tables, printed: Printed, exact: ExactTables) -> _Check:
    num_correct = exact.accuracy * exact.n
    reason = f"{num_correct} correct of {exact.n} is {float(100 * exact.accuracy):.2f} %."
    if tables.n and tables.n > exact.n and printed.fits(num_correct / tables.n):
        reason += (
            f" {printed.text} only if the missing {tables.n - exact.n} count as wrong "
            f"({num_correct} of {tables.n})."
        )
    finding = Finding("accuracy", printed.text, printed.show(exact.accuracy), reason)
    return printed.fits(exact.accuracy), finding


def _cell_check(tables: Tables, k: int, v: int, printed: Printed, exact: Fraction | None) -> _Check:
    where = f"{tables.grades[k]} {VALUES[v]}"
    if exact is None:
        nobody = "predicted" if v == 0 else "present"
        reason = f"No case of {tables.grades[k]} is {nobody}, so there is no {VALUES[v]}."
        # scikit-learn prints 0 where there is no denominator; anything else is invented.
        return printed.fits(Fraction(0)), Finding(where, printed.text, "undefined", reason)
    hits, row_sum = tables.matrix[k][k], sum(tables.matrix[k])
    column_sum = sum(row[k] for row in tables.matrix)
    reason = (
        f"{hits} of {column_sum} predicted {tables.grades[k]} are right.",
        f"{hits} of {row_sum} with {tables.grades[k]} are found.",
        f"2 x {hits} / ({row_sum} + {column_sum}).",
    )[v]
    support = tables.supports[k] if tables.supports else None
    if v == 1 and support and support > row_sum and printed.fits(Fraction(hits, support)):
        reason += f" {printed.text} only over the printed support, {hits} of {support}."
    return printed.fits(exact), Finding(where, printed.text, printed.show(exact), reason)


def _without_matrix(tables: Tables) -> Iterator[_Check]:
    supports = [support for support in tables.supports if support is not None]
    complete = len(supports) == len(tables.grades)
    total = sum(supports) if complete else tables.n
    if complete and tables.n is not None:
        reason = "The printed supports sum to that."
        yield total == tables.n, Finding("n", str(tables.n), str(total), reason)
    if tables.accuracy is not None and total:
        yield _whole_cases("accuracy", tables.accuracy, total)
    for k, cells in enumerate(tables.per_class):
        yield from _row_checks(tables, k, cells)
    for v in range(3):
        column = [cells[v] for cells in tables.per_class]
        if tables.macro:
            ones = [1] * len(column)
            yield from _mean_check(f"macro {VALUES[v]}", tables.macro[v], column, ones)
        if tables.weighted and complete:
            yield from _mean_check(f"weighted {VALUES[v]}", tables.weighted[v], column, supports)
    if complete:
        recalls = [cells[1] for cells in tables.per_class]
        yield from _mean_check("accuracy", tables.accuracy, recalls, supports)


def _row_checks(tables: Tables, k: int, cells: list[Printed | None]) -> Iterator[_Check]:
    precision, recall, f1 = cells
    support = tables.supports[k] if tables.supports else None
    if recall is not None and support:
        yield _whole_cases(f"{tables.grades[k]} recall", recall, support)
    if precision is not None and recall is not None and f1 is not None:
        low = _f1(max(precision.low, Fraction(0)), max(recall.low, Fraction(0)))
        high = _f1(precision.high, recall.high)
        reason = "F1 is the harmonic mean of the printed precision and recall."
        finding = Finding(f"{tables.grades[k]} F1", f1.text, _range(f1, low, high), reason)
        yield f1.fits(low, high), finding


def _f1(precision: Fraction, recall: Fraction) -> Fraction:
    total = precision + recall
    return 2 * precision * recall / total if total else Fraction(0)


def _whole_cases(where: str, printed: Printed, num_cases: int) -> _Check:
    least, most = math.ceil(printed.low * num_cases), math.floor(printed.high * num_cases)
    near = [Fraction(most, num_cases), Fraction(least, num_cases)]
    shown = " or ".join(printed.show(value) for value in near)
    reason = f"No whole number of {num_cases} cases gives it."
    return least <= most, Finding(where, printed.text, shown, reason)


def _mean_check(
    where: str, printed: Printed | None, column: list[Printed | None], weights: list[int]
) -> Iterator[_Check]:
    """The check, if no number is missing for it."""
    cells = [cell for cell in column if cell is not None]
    if printed is None or not column or len(cells) != len(column) or not sum(weights):
        return
    total = sum(weights)
    low = sum((c.low * w for c, w in zip(cells, weights, strict=True)), Fraction(0)) / total
    high = sum((c.high * w for c, w in zip(cells, weights, strict=True)), Fraction(0)) / total
    reason = "Recomputed from the printed rows."
    if where == "accuracy":
        reason = "Accuracy is the mean recall weighted by support."
    yield printed.fits(low, high), Finding(where, printed.text, _range(printed, low, high), reason)


def _range(printed: Printed, low: Fraction, high: Fraction) -> str:
    return f"{printed.show(low)} to {printed.show(high)}"
