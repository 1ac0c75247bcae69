"""Tables as people write them, read and written: every cell a text, every row with its number."""

import csv
import io
from pathlib import Path

import numpy as np
import pandas as pd

from steatosis_tf.files import as_cell, from_cell, open_regular, replacing

#: Columns that the reader adds, so that a message can name the row.
ADDED = ("row", "fault")


def read_spreadsheet(path: str | Path) -> tuple[pd.DataFrame, str]:
    """Read a CSV with every cell as stripped text; blank rows are left out.

    Comma, semicolon and tab, UTF-8 and (as Excel's "Unicode text") UTF-16, and any line end.

    Returns:
        the table with `row` (counted as a spreadsheet counts, header = 1) and `fault` ("" or
        what is wrong with the number of cells) in front, and the separator found.

    Raises:
        ValueError: if the file is missing, empty, of another encoding, has an open quote, or a
            column twice, without a name, or named `row` or `fault`.
    """
    path = Path(path)
    text = _decoded(path)
    separator = max(",;\t", key=text.split("\n", 1)[0].count)
    records = _records(path.name, text, separator)
    _check_header(path.name, [column for column in records[0] if column])
    table = _as_table(path.name, records)
    blank = (table.drop(columns=["row", "fault"]) == "").all(axis=1) & (table["fault"] == "")
    return table.loc[~blank].reset_index(drop=True), separator


def write_spreadsheet(table: pd.DataFrame, path: str | Path) -> None:
    """Write a CSV whole or not at all, of which no spreadsheet runs a cell as a formula."""
    texts = table.select_dtypes("object").columns
    cells = table.assign(**{name: table[name].map(as_cell) for name in texts})
    with replacing(path) as temporary:
        cells.to_csv(temporary, index=False, lineterminator="\n")


def plain_cells(table: pd.DataFrame) -> pd.DataFrame:
    """A table of texts as it was before `write_spreadsheet`."""
    for name in table.columns:
        quoted = table[name].str.startswith("'")
        if quoted.any():
            table.loc[quoted, name] = table.loc[quoted, name].map(from_cell)
    return table


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
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
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
        return [[from_cell(cell.strip()) for cell in record] for record in reader]
    except csv.Error as error:
        raise ValueError(
            f"{name}: expected a CSV. Received: {error} near line {reader.line_num}. Close the "
            "quotes, and double a quote inside a quoted cell."
        ) from error


def _as_table(name: str, records: list[list[str]]) -> pd.DataFrame:
    columns, rows = records[0], records[1:]
    width = max(map(len, records))
    cells = [record + [""] * (width - len(record)) for record in rows]
    named = [index for index, column in enumerate(columns) if column]
    nameless = [index for index, column in enumerate(columns) if not column]
    if any(record[index] for record in cells for index in nameless):
        raise ValueError(
            f"{name}: expected a name over every column. Received: column {nameless[0] + 1} with "
            "cells but no name. Name it, or delete it; the first line must be the headings."
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
    if wrong := sorted({name for name in columns if columns.count(name) > 1 or name in ADDED}):
        raise ValueError(
            f"{name}: expected every column once and none named {' or '.join(ADDED)}. "
            f"Received: {', '.join(wrong)}. Rename them."
        )
