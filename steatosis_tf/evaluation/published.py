"""Do the tables of a published result agree with each other? Ours before a report, anybody's.

A confusion matrix fixes every count, precision, recall, F1, average and the accuracy; whatever is
printed beside it has to round to what the matrix gives. Without a matrix weaker checks remain:
whether any values inside the printed ranges can agree, and whether a whole number of cases can give
a printed proportion at all (the GRIM test, Brown and Heathers 2017, doi 10.1177/1948550616673876).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

from steatosis_tf.evaluation.printed import Printed, Tables, read_tables

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
    checks = _against_matrix(tables) if tables.matrix else check_without_matrix(tables)
    if not checks:
        raise ValueError(
            "Expected at least two parts that can be held against each other, such as "
            f"confusion_matrix and per_class. Received: {', '.join(table) or 'an empty table'}."
        )
    return [finding for finding in checks if finding is not None]


def exact_tables(matrix: Sequence[Sequence[int]]) -> ExactTables:
    """Recompute everything a confusion matrix fixes.

    Args:
        matrix: k rows (reference) of k whole counts (predicted), at least one above 0.
    """
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


def _against_matrix(tables: Tables) -> list[Finding | None]:
    """One entry per check that was made; None where it agrees."""
    exact = exact_tables(tables.matrix)
    checks = _count_checks(tables, exact)
    if tables.accuracy is not None:
        checks.append(_accuracy_check(tables, tables.accuracy, exact))
    for k, cells in enumerate(tables.per_class):
        for v, cell in enumerate(cells):
            if cell is not None:
                checks.append(_cell_check(tables, k, v, cell, exact.per_class[k][v]))
    for v, cell in enumerate(tables.macro):
        if cell is not None:
            candidates = [exact.macro[v], exact.macro_defined[v]]
            checks.append(_average_check(f"macro {VALUES[v]}", cell, candidates))
    for v, cell in enumerate(tables.weighted):
        if cell is not None:
            checks.append(_average_check(f"weighted {VALUES[v]}", cell, [exact.weighted[v]]))
    return checks


def _count_checks(tables: Tables, exact: ExactTables) -> list[Finding | None]:
    checks: list[Finding | None] = []
    if tables.n is not None:
        reason = f"The confusion matrix sums to {exact.n}."
        if tables.n > exact.n:
            reason += f" {tables.n - exact.n} cases are missing from it."
        same = tables.n == exact.n
        checks.append(None if same else Finding("n", str(tables.n), str(exact.n), reason))
    columns = [sum(column) for column in zip(*tables.matrix, strict=True)]
    hint = ""
    if tables.supports == columns and columns != exact.supports:
        hint = " The supports are the column sums: are the rows the predicted grades?"
    for grade, printed, row_sum in zip(
        tables.grades, tables.supports or [None] * len(columns), exact.supports, strict=True
    ):
        if printed is None:
            continue
        reason = f"The row of {grade} sums to {row_sum}.{hint}"
        finding = Finding(f"{grade} support", str(printed), str(row_sum), reason)
        checks.append(None if printed == row_sum else finding)
    return checks


def _accuracy_check(tables: Tables, printed: Printed, exact: ExactTables) -> Finding | None:
    if printed.fits(exact.accuracy):
        return None
    num_correct = exact.accuracy * exact.n
    reason = f"{num_correct} correct of {exact.n} is {float(100 * exact.accuracy):.2f} %."
    if tables.n and tables.n > exact.n and printed.fits(num_correct / tables.n):
        reason += (
            f" {printed.text} only if the missing {tables.n - exact.n} count as wrong "
            f"({num_correct} of {tables.n})."
        )
    return Finding("accuracy", printed.text, printed.show(exact.accuracy), reason)


def _cell_check(
    tables: Tables, k: int, v: int, printed: Printed, exact: Fraction | None
) -> Finding | None:
    where = f"{tables.grades[k]} {VALUES[v]}"
    if exact is None:
        # scikit-learn prints 0 where there is no denominator; anything else is invented.
        if printed.fits(Fraction(0)):
            return None
        nobody = "predicted" if v == 0 else "present"
        reason = f"No case of {tables.grades[k]} is {nobody}, so there is no {VALUES[v]}."
        return Finding(where, printed.text, "undefined", reason)
    if printed.fits(exact):
        return None
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
    return Finding(where, printed.text, printed.show(exact), reason)


def _average_check(where: str, printed: Printed, candidates: list[Fraction]) -> Finding | None:
    if any(printed.fits(candidate) for candidate in candidates):
        return None
    reason = "Recomputed from the confusion matrix."
    return Finding(where, printed.text, printed.show(candidates[0]), reason)


def check_without_matrix(tables: Tables) -> list[Finding | None]:
    """One entry per check that could be made, in reading order; None where it agrees."""
    checks: list[Finding | None] = []
    supports = [support for support in tables.supports if support is not None]
    complete = len(supports) == len(tables.grades)
    total = sum(supports) if complete else tables.n
    if complete and tables.n is not None:
        reason = "The printed supports sum to that."
        finding = Finding("n", str(tables.n), str(total), reason)
        checks.append(None if total == tables.n else finding)
    if tables.accuracy is not None and total:
        checks.append(_whole_cases("accuracy", tables.accuracy, total))
    for k, cells in enumerate(tables.per_class):
        checks.extend(_row_checks(tables, k, cells))
    for v in range(3):
        column = [cells[v] for cells in tables.per_class]
        if tables.macro:
            weights = [1] * len(column)
            checks.append(_mean_check(f"macro {VALUES[v]}", tables.macro[v], column, weights))
        if tables.weighted and complete:
            where = f"weighted {VALUES[v]}"
            checks.append(_mean_check(where, tables.weighted[v], column, supports))
    recalls = [cells[1] for cells in tables.per_class]
    if complete:
        checks.append(_mean_check("accuracy", tables.accuracy, recalls, supports))
    made = [check for check in checks if check is not _NOT_MADE]
    return _first_of_each(made)


# Stands for a check that lacks one of its numbers; told from None, a check that agreed.
_NOT_MADE = Finding("", "", "", "")


def _first_of_each(checks: list[Finding | None]) -> list[Finding | None]:
    """One finding per cell: a second reason for the same cell adds nothing."""
    seen: set[str] = set()
    kept: list[Finding | None] = []
    for check in checks:
        if check is None or check.where not in seen:
            kept.append(check)
        if check is not None:
            seen.add(check.where)
    return kept


def _row_checks(tables: Tables, k: int, cells: list[Printed | None]) -> list[Finding | None]:
    precision, recall, f1 = cells
    support = tables.supports[k] if tables.supports else None
    checks: list[Finding | None] = []
    if recall is not None and support:
        checks.append(_whole_cases(f"{tables.grades[k]} recall", recall, support))
    if precision is not None and recall is not None and f1 is not None:
        low = _f1(max(precision.low, Fraction(0)), max(recall.low, Fraction(0)))
        high = _f1(precision.high, recall.high)
        reason = "F1 is the harmonic mean of the printed precision and recall."
        finding = Finding(f"{tables.grades[k]} F1", f1.text, _range(f1, low, high), reason)
        checks.append(None if f1.fits(low, high) else finding)
    return checks


def _f1(precision: Fraction, recall: Fraction) -> Fraction:
    total = precision + recall
    return 2 * precision * recall / total if total else Fraction(0)


def _whole_cases(where: str, printed: Printed, num_cases: int) -> Finding | None:
    least, most = ceil(printed.low * num_cases), floor(printed.high * num_cases)
    if least <= most:
        return None
    near = [Fraction(most, num_cases), Fraction(least, num_cases)]
    shown = " or ".join(printed.show(value) for value in near)
    return Finding(where, printed.text, shown, f"No whole number of {num_cases} cases gives it.")


def _mean_check(
    where: str, printed: Printed | None, column: list[Printed | None], weights: list[int]
) -> Finding | None:
    cells = [cell for cell in column if cell is not None]
    if printed is None or not column or len(cells) != len(column) or not sum(weights):
        return _NOT_MADE
    total = sum(weights)
    low = sum((c.low * w for c, w in zip(cells, weights, strict=True)), Fraction(0)) / total
    high = sum((c.high * w for c, w in zip(cells, weights, strict=True)), Fraction(0)) / total
    if printed.fits(low, high):
        return None
    reason = "Recomputed from the printed rows."
    if where == "accuracy":
        reason = "Accuracy is the mean recall weighted by support."
    return Finding(where, printed.text, _range(printed, low, high), reason)


def _range(printed: Printed, low: Fraction, high: Fraction) -> str:
    return f"{printed.show(low)} to {printed.show(high)}"
