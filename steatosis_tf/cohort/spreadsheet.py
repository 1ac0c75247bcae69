"""CSV as it comes out of any spreadsheet, without losing a cell."""

import csv
import io
from pathlib import Path

import numpy as np
import pandas as pd

from steatosis_tf.files import open_regular

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
