"""Checks of published tables that come without their confusion matrix.

Every printed number stands for a range, so each check asks whether any values inside the printed
ranges can agree. For shares of a known number of cases it also asks whether a whole number of cases
can give the printed share at all (the GRIM test, Brown and Heathers 2017,
doi 10.1177/1948550616673876).
"""

from fractions import Fraction
from math import ceil, floor

from steatosis_tf.evaluation.printed import Finding, Printed
from steatosis_tf.evaluation.printed_tables import VALUES, Tables


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
