"""Reading and checking a label table as teams have it: any spreadsheet's CSV."""

import csv
import io
import posixpath
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from steatosis_tf.cohort.rejected import Fault
from steatosis_tf.files import open_regular
from steatosis_tf.grades import GRADES, grade_from_fat_percent

#: Names the manifest gives; a label table that brings them would be overwritten unseen.
RESERVED = ("frame_id", "pixels_sha256", "row", "fault", "split")


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a CSV with every cell as stripped text and its line number in column `row`.

    Comma, semicolon and tab, byte order mark, Windows and Unix line ends are all accepted; with
    semicolons also the decimal comma that comes with them.

    Returns:
        the table, `row` counted as a spreadsheet counts (header = 1), `fault` "" or what is wrong
        with the cells of the row, "" for an empty cell, with the columns `grade` (str) and
        `fat_percent` (str) added where absent.

    Raises:
        ValueError: if `read_spreadsheet` cannot read it, or if it lacks `path` or `patient_id`
            or has one of the reserved names.
    """
    path = Path(path)
    table, separator = read_spreadsheet(path)
    _check_columns(path.name, list(table.columns.drop(["row", "fault"])))
    if table.empty:
        raise ValueError(f"{path.name}: expected one row per frame. Received: a header only.")
    for name in ("grade", "fat_percent"):
        if name not in table.columns:
            table[name] = ""
    if separator == ";":
        table["fat_percent"] = table["fat_percent"].str.replace(",", ".")
    # A table written on Windows names its frames with backslashes, others begin with "./": one
    # spelling per file, or a copy of a row would pass as another frame.
    table["path"] = [
        posixpath.normpath(name) if name else "" for name in table["path"].str.replace("\\", "/")
    ]
    return table


def check_labels(table: pd.DataFrame) -> dict[int, list[Fault]]:
    """Check all rows, and fill `grade` and `fat_percent` (float) in place where they are valid.

    Args:
        table: as `read_table` returns it.

    Returns:
        row number -> reasons, for the rows at fault.
    """
    reasons = {
        row: [Fault("damaged_row", fault)]
        for row, fault in zip(table["row"], table["fault"], strict=True)
        if fault
    }

    def fault(row: int, reason: Fault) -> None:
        reasons.setdefault(row, []).append(reason)

    grades, fats = [], []
    for row, path, patient_id, grade, fat in table[
        ["row", "path", "patient_id", "grade", "fat_percent"]
    ].itertuples(index=False):
        if not path:
            fault(row, Fault("empty_path"))
        if not patient_id:
            fault(row, Fault("empty_patient"))
        known_grade, known_fat, why = _grade_and_fat(grade, fat)
        for reason in why:
            fault(row, reason)
        grades.append(known_grade)
        fats.append(known_fat)
    table["grade"], table["fat_percent"] = grades, np.array(fats, dtype=float)
    _check_duplicates(table, fault)
    _check_one_grade_per_patient(table, fault)
    return reasons


def _check_columns(name: str, columns: list[str]) -> None:
    missing = [column for column in ("path", "patient_id") if column not in columns]
    if missing:
        raise ValueError(
            f"{name}: expected the columns path, patient_id and grade or fat_percent. "
            f"Received: {', '.join(columns)}; missing: {', '.join(missing)}."
        )
    taken = [column for column in columns if column in RESERVED]
    if taken:
        raise ValueError(
            f"{name}: expected no column named {', '.join(RESERVED)}. "
            f"Received: {', '.join(taken)}. Rename them."
        )


def _grade_and_fat(grade: str, fat: str) -> tuple[str, float, list[Fault]]:
    known = {name.lower(): name for name in GRADES}.get(grade.lower(), "")
    why: list[Fault] = []
    if grade and not known:
        text = f"unknown grade {grade!r}, expected one of {', '.join(GRADES)}"
        why.append(Fault("unknown_grade", text))
    if not fat:
        return known, np.nan, why
    try:
        percent = float(fat)
        from_fat = grade_from_fat_percent(percent)
    except ValueError:
        text = f"fat_percent {fat!r} is not a number from 0 to 100"
        return known, np.nan, [*why, Fault("fat_percent", text)]
    if known and known != from_fat:
        text = f"grade {known} does not agree with fat_percent {fat}, which is {from_fat}"
        why.append(Fault("grade_and_fat", text))
    return known or from_fat, percent, why


def _check_duplicates(table: pd.DataFrame, fault: Callable[[int, Fault], None]) -> None:
    copies = table.loc[(table["path"] != "") & table["path"].duplicated(keep=False)]
    for _, group in copies.groupby("path", sort=False):
        first = int(group["row"].iloc[0])
        # Under two patients nobody can tell which row is right, so none is used.
        contested = group["patient_id"].nunique() > 1
        for row in group["row"] if contested else group["row"].iloc[1:]:
            under = f"duplicate path under {group['patient_id'].nunique()} patients"
            once = f"duplicate path, first at row {first}"
            fault(
                row,
                Fault("contested_path", under) if contested else Fault("duplicate_path", once),
            )


def _check_one_grade_per_patient(table: pd.DataFrame, fault: Callable[[int, Fault], None]) -> None:
    graded = table.loc[(table["grade"] != "") & (table["patient_id"] != "")]
    contested = graded.groupby("patient_id")["grade"].transform("nunique") > 1
    for _, group in graded.loc[contested].groupby("patient_id", sort=False):
        found = [grade for grade in GRADES if (group["grade"] == grade).any()]
        for row in group["row"]:
            fault(row, Fault("two_grades", f"one patient with two grades: {' and '.join(found)}"))


#: Columns that the reader adds, so that a message can name the row.
ADDED = ("row", "fault")


def read_spreadsheet(path: str | Path) -> tuple[pd.DataFrame, str]:
    """Read a CSV with every cell as stripped text.

    Comma, semicolon and tab, byte order mark, Windows and Unix line ends are all accepted.
    Blank rows are left out.

    Returns:
        the table with `row` (counted as a spreadsheet counts, header = 1) and `fault` ("" or
        what is wrong with the number of cells) in front, and the separator found.

    Raises:
        ValueError: if the file is missing, empty, not UTF-8, has a quote that is never closed,
            or has a column twice, without a name, or named `row` or `fault`.
    """
    path = Path(path)
    text = _decoded(path)
    separator = max(",;\t", key=text.split("\n", 1)[0].count)
    records = _records(path.name, text, separator)
    _check_header(path.name, [column for column in records[0] if column])
    table = _as_table(path.name, records)
    blank = (table.drop(columns=["row", "fault"]) == "").all(axis=1) & (table["fault"] == "")
    return table.loc[~blank].reset_index(drop=True), separator


def _decoded(path: Path) -> str:
    try:
        with open_regular(path) as file:
            data = file.read()
    except OSError as error:
        raise ValueError(
            f"Expected a CSV table. Received: path={path.name!r} ({error.strerror})."
        ) from error
    if not data.strip():
        raise ValueError(f"{path.name}: expected a CSV with a header. Received: an empty file.")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path.name}: expected UTF-8 text. Received: byte {data[error.start]:#x} at offset "
            f"{error.start}. In a spreadsheet, save as 'CSV UTF-8'."
        ) from error


def _records(name: str, text: str, separator: str) -> list[list[str]]:
    # Not pandas: its reader drops the cells that a row has too many of, and says so only in a
    # warning.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        return [[cell.strip() for cell in record] for record in reader]
    except csv.Error as error:
        raise ValueError(
            f"{name}: expected a CSV. Received: {error} near line {reader.line_num}. Close the "
            "quotes, and double a quote inside a quoted cell."
        ) from error


def _as_table(name: str, records: list[list[str]]) -> pd.DataFrame:
    columns, rows = records[0], records[1:]
    width = max(len(columns), max(map(len, rows), default=0))
    cells = [record + [""] * (width - len(record)) for record in rows]
    named = [index for index, column in enumerate(columns) if column]
    nameless = [index for index, column in enumerate(columns) if not column]
    if any(record[index] for record in cells for index in nameless):
        raise ValueError(
            f"{name}: expected a name over every column. Received: column {nameless[0] + 1} with "
            "cells but no name. Name it, or delete it."
        )
    table = pd.DataFrame({columns[i]: [record[i] for record in cells] for i in named}, dtype=str)
    faults = [
        "more cells than the header has; put quotes around cells that hold the separator"
        if any(record[len(columns) :])
        else ""
        for record in cells
    ]
    table.insert(0, "row", np.arange(2, len(rows) + 2))
    table.insert(1, "fault", faults)
    return table


def _check_header(name: str, columns: list[str]) -> None:
    wrong = sorted({column for column in columns if columns.count(column) > 1 or column in ADDED})
    if wrong:
        raise ValueError(
            f"{name}: expected every column once and none named {' or '.join(ADDED)}. "
            f"Received: {', '.join(wrong)}. Rename them."
        )
