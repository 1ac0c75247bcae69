"""Dates and ages of DICOM headers (PS3.5 6.2, VR DA and AS)."""

import datetime
import re

_DATE = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})")  # 2001.12.31 is the ACR-NEMA form
_AGE = re.compile(r"(\d{3})([DWMY])")
_YEARS_PER_UNIT = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}
MAX_AGE_YEARS = 89


def day_of(text: str) -> datetime.date | None:
    """A DICOM date (`DA`) as a date; None if it is empty or impossible."""
    match = _DATE.fullmatch(text)
    if match is None:
        return None
    try:
        return datetime.date(*(int(part) for part in match.groups()))
    except ValueError:
        return None


def age_in_years(
    stated: str, birth: datetime.date | None, study: datetime.date | None
) -> int | None:
    """Age at the study in whole years, capped at 89.

    Ages over 89 are few enough to point at a person (45 CFR 164.514(b)(2)(i)(C)).

    Args:
        stated: PatientAge such as "045Y" or "018M", or "".
        birth: date of birth, used where no age is stated.
        study: date of the study.

    Returns:
        0 to 89, or None if neither source gives an age.
    """
    match = _AGE.fullmatch(stated)
    if match is not None:
        return min(MAX_AGE_YEARS, int(int(match.group(1)) * _YEARS_PER_UNIT[match.group(2)]))
    if birth is None or study is None or study < birth:
        return None
    had_birthday = (study.month, study.day) >= (birth.month, birth.day)
    return min(MAX_AGE_YEARS, study.year - birth.year - (not had_birthday))
