"""Numbers as a table prints them: rounded, as fraction or percent, with their true width.

A printed 0.97 stands for everything from 0.965 to 0.975, both ends included, so that rounding half
up and half to even are both accepted. Arithmetic is in exact fractions: a value on the edge of
rounding must not be judged by a floating-point error.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction

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
