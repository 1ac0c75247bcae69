"""Splits by what the manifest says about a patient: a scanner, a site, a date.

A patient on both sides of such a line belongs to neither: their frames would carry one side into
the other. They are left out of that partition, and named in it.
"""

import numpy as np
import pandas as pd

from steatosis_tf.config import SplitConfig
from steatosis_tf.grades import GRADES


def patients_by_group(
    graded: pd.DataFrame, column: str
) -> list[tuple[str, frozenset[str], frozenset[str]]]:
    """Patients of each value of a column.

    Args:
        graded: manifest rows with a grade.
        column: any manifest column, for example `scanner` or `site`.

    Returns:
        for each value, sorted: the value, patients with this value alone, patients with this
        and another one.

    Raises:
        ValueError: if there is no such column, a cell is empty, or there is only one value.
    """
    values = _full_column(graded, column)
    pairs = pd.DataFrame({"patient_id": graded["patient_id"], "value": values}).drop_duplicates()
    if values.nunique() < 2:
        raise ValueError(
            f"Expected at least two values in column {column} to leave one out. Received: "
            f"{', '.join(map(repr, values.unique()))}."
        )
    several = frozenset(pairs.loc[pairs["patient_id"].duplicated(), "patient_id"])
    groups = []
    for value, group in pairs.groupby("value", sort=True):
        ids = frozenset(group["patient_id"])
        groups.append((str(value), ids - several, ids & several))
    return groups


def temporal_parts(
    graded: pd.DataFrame, config: SplitConfig
) -> tuple[set[str], set[str], set[str], set[str]]:
    """Divide patients by time: the latest test, those before validate, the earliest train.

    Every frame of a part is strictly later than every frame of the part before it. Patients
    with the date of a cut stay together, so parts can be larger than asked for. Grades are not
    stratified: time alone decides.

    Returns:
        patients to train, validate, test, and those left out because their studies lie on both
        sides of a cut.

    Raises:
        ValueError: if the column is missing, is no date, counts days from each patient's own
            first study, or if a part comes out empty or training lacks a grade.
    """
    days = days_of(graded, config.column)
    span = days.groupby(graded["patient_id"]).agg(["min", "max"])
    if len(span) > 1 and (span["min"] == 0).all():
        raise ValueError(
            f"Expected {config.column} on one calendar for all patients. Received: 0 as the first "
            "value of every patient, so it counts from each patient's own first study. Give a "
            "column with study dates, or days since the start of the study."
        )
    first = span["min"].sort_values(kind="stable").to_numpy()
    num_test = max(1, round(len(span) * config.test_fraction))
    num_validation = max(1, round(len(span) * config.validation_fraction))
    test_from = first[max(0, len(first) - num_test)]
    validation_from = first[max(0, len(first) - num_test - num_validation)]
    train = set(span.index[span["max"] < validation_from])
    validation = set(span.index[(span["min"] >= validation_from) & (span["max"] < test_from)])
    test = set(span.index[span["min"] >= test_from])
    _check_parts(graded, config.column, train, validation, test)
    return train, validation, test, set(span.index) - train - validation - test


def days_of(frame_table: pd.DataFrame, column: str) -> pd.Series:
    """A date column as days (float), comparable between rows.

    Args:
        frame_table: manifest rows.
        column: cells all of one kind: ISO dates (2024-05-31, also with a time), DICOM dates
            (20240531), or numbers of days.

    Raises:
        ValueError: if the column is missing, or a cell is empty or of another kind.
    """
    text = _full_column(frame_table, column).astype(str)
    if text.str.fullmatch(r"(19|20)\d{6}").all():
        dates = pd.to_datetime(text, format="%Y%m%d", errors="coerce")
    else:
        numbers = pd.to_numeric(text, errors="coerce")
        if np.isfinite(numbers).all():
            return numbers.astype(float)
        dates = pd.to_datetime(text, format="ISO8601", errors="coerce", utc=True)
    if dates.isna().any():
        raise ValueError(
            f"Expected every cell of {column} as a date like 2024-05-31 or 20240531, or every one "
            f"as a number of days. Received: {int(dates.isna().sum())} others, first at frame_id="
            f"{frame_table['frame_id'][dates.isna()].iloc[0]}."
        )
    return (dates.dt.tz_localize(None) - pd.Timestamp(0)) / pd.Timedelta(days=1)


def _full_column(frame_table: pd.DataFrame, column: str) -> pd.Series:
    if column not in frame_table.columns:
        raise ValueError(
            f"Expected split.column among the manifest columns {', '.join(frame_table.columns)}. "
            f"Received: column={column!r}."
        )
    values = frame_table[column]
    empty = values.isna() | (values.astype(str) == "")
    if empty.any():
        raise ValueError(
            f"Expected a value of {column} for every graded frame. Received: {int(empty.sum())} "
            f"empty cells of {frame_table['patient_id'][empty].nunique()} patients, first at "
            f"frame_id={frame_table['frame_id'][empty].iloc[0]}. Fill them in; write 'unknown' if "
            "that is a group of its own."
        )
    return values


def _check_parts(
    graded: pd.DataFrame, column: str, train: set[str], validation: set[str], test: set[str]
) -> None:
    present = set(graded.loc[graded["patient_id"].isin(train), "grade"])
    missing = [grade for grade in GRADES if (graded["grade"] == grade).any()
               and grade not in present]  # fmt: skip
    if not (train and validation and test) or missing:
        raise ValueError(
            f"Expected patients in every part, and every grade in training, when split by {column}."
            f" Received: train={len(train)}, validation={len(validation)}, test={len(test)}, "
            f"grades not in training: {', '.join(missing) or 'none'}. Change split.test_fraction "
            "and split.validation_fraction, or use another kind of split."
        )
