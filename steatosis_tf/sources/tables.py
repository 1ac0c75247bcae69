"""Tables as people write them, read and written: every cell a text, every row with its number.

Beside each manifest lies one of what was left out. Every reason is a text for the person who has to
mend it, and a code for what counts it: the flow of patients counts codes, never words.
"""

import csv
import datetime
import io
import re
import sys
import zipfile
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from steatosis_tf.files import (
    REJECTED_SUFFIX,
    as_cell,
    from_cell,
    open_regular,
    rejected_beside,
    write_csv,
)
from steatosis_tf.sources.images import quiet_readers
from steatosis_tf.sources.rejection import KINDS

if TYPE_CHECKING:
    from openpyxl.cell.cell import Cell
    from openpyxl.worksheet.worksheet import Worksheet

#: Columns that the reader adds, so that a message can name the row.
ADDED = ("row", "fault")


_ZIP, _OLE = b"PK\x03\x04", b"\xd0\xcf\x11\xe0"
# Of an Excel workbook: unpacked bytes, and cells of its largest sheet: 50,000 rows of ten columns.
_MAX_WORKBOOK_BYTES, _MAX_CELLS = 64 * 2**20, 500_000
# Excel keeps 15 digits of a number; a longer id has been rounded.
_ROUNDED_FROM = 1e15


def read_spreadsheet(path: str | Path) -> pd.DataFrame:
    """Read a CSV or an Excel workbook with every cell as stripped text; blank rows are left out.

    CSV: comma, semicolon and tab, or what a first line `sep=;` says; UTF-8 and (as Excel's
    "Unicode text") UTF-16, and any line end.
    Workbook (.xlsx): the one sheet that holds something, with values as it shows them: results of
    formulas, dates as 2024-05-31, percent as percent, zeros of the cell's format.

    Returns:
        the table with `row` (counted as a spreadsheet counts, header = 1) and `fault` ("" or
        what is wrong with the number of cells) in front.

    Raises:
        ValueError: if the file is missing, empty, of another encoding, has an open quote, or a
            column twice, without a name, or named `row` or `fault`; if a workbook is damaged, too
            large, or does not say plainly which cells are meant.
    """
    path = Path(path)
    data = _bytes_of(path)
    if data.startswith(_ZIP):
        records = _cells_of_workbook(path.name, data)
    else:
        records = _cells_of_text(path.name, _decoded(path.name, data))
    _check_header(path.name, [column for column in records[0] if column])
    table = _as_table(path.name, records)
    blank = (table.drop(columns=["row", "fault"]) == "").all(axis=1) & (table["fault"] == "")
    return table.loc[~blank].reset_index(drop=True)


def write_spreadsheet(table: pd.DataFrame, path: str | Path) -> None:
    """Write a CSV whole or not at all, of which no spreadsheet runs a cell as a formula."""
    texts = [name for name in table if not is_numeric_dtype(table[name])]
    cells = table.assign(**{name: table[name].map(as_cell) for name in texts})
    write_csv(cells.rename(columns=as_cell), path)


def plain_cells(table: pd.DataFrame) -> pd.DataFrame:
    """A table of texts as it was before `write_spreadsheet`."""
    for name in table.columns:
        quoted = table[name].str.startswith("'")
        if quoted.any():
            table.loc[quoted, name] = table.loc[quoted, name].map(from_cell)
    return table.rename(columns=from_cell)


def _bytes_of(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            data = file.read()
    except OSError as error:
        raise ValueError(
            f"Expected a table. Received: path={path.name!r} ({error.strerror})."
        ) from error
    if not data.strip():
        raise ValueError(f"{path.name}: expected a table with a header. Received: an empty file.")
    if data.startswith(_OLE):
        raise ValueError(
            f"{path.name}: expected a CSV or .xlsx. Received: an old Excel file, or one with a "
            "password. Save it as .xlsx without a password."
        )
    return data


def _decoded(name: str, data: bytes) -> str:
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name}: expected UTF-8 text. Received: byte {data[error.start]:#x} at offset "
            f"{error.start}. In a spreadsheet, save as 'CSV UTF-8' or as .xlsx."
        ) from error


def _cells_of_text(name: str, text: str) -> list[list[str]]:
    # Not pandas: its reader drops the cells that a row has too many of, and says so only in a
    # warning.
    if said := re.match(r'"?sep=(.)"?\n', text, re.IGNORECASE):  # of Excel, which does not show it
        separator, text = said[1], text[said.end() :]
    else:
        separator = max(",;\t", key=text.split("\n", 1)[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        return [[from_cell(cell.strip()) for cell in record] for record in reader]
    except csv.Error as error:
        raise ValueError(
            f"{name}: expected a CSV. Received: {error} near line {reader.line_num}. Close the "
            "quotes, and double a quote inside a quoted cell."
        ) from error


def _cells_of_workbook(name: str, data: bytes) -> list[list[str]]:
    """What the one sheet with cells shows. Whatever leaves open which cells are meant is refused:
    a guess would drop, double or exchange patients."""
    import openpyxl  # a machine that only answers has none

    too_large = f"{name}: expected a table of at most {_MAX_CELLS:,} cells. Received: a larger one."
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked <= _MAX_WORKBOOK_BYTES:
            with quiet_readers():  # of what openpyxl does not draw
                shown, written = (
                    openpyxl.load_workbook(io.BytesIO(data), data_only=shows, keep_links=False)
                    for shows in (True, False)
                )
    except Exception as error:  # a damaged workbook ends in whatever openpyxl stumbles over
        raise ValueError(
            f"{name}: expected an Excel workbook (.xlsx). Received: another file, or a damaged "
            "one. Save it again, or as 'CSV UTF-8'."
        ) from error
    if unpacked > _MAX_WORKBOOK_BYTES:
        raise ValueError(f"{too_large} Save it as 'CSV UTF-8'.")
    if any(sheet.max_row * sheet.max_column > _MAX_CELLS for sheet in shown.worksheets):
        raise ValueError(f"{too_large} Delete what stands far below or beside the table.")
    sheets = [sheet for sheet in shown.worksheets if {*chain(*sheet.values)} - {None}]
    if len(sheets) != 1:
        titles = ", ".join(repr(sheet.title) for sheet in sheets) or "none"
        raise ValueError(
            f"{name}: expected one sheet with cells. Received: {titles}. Save the one that is "
            "meant as a file of its own."
        )
    _check_plain(name, sheets[0], written[sheets[0].title])
    _warn_of_zeros(name, sheets[0])
    return [[_text_of(cell) for cell in row] for row in sheets[0].iter_rows()]


def _check_plain(name: str, sheet: "Worksheet", written: "Worksheet") -> None:
    """Refuse merged, hidden and unknown cells."""
    merged = [one.coord for one in sheet.merged_cells.ranges]
    hidden = [f"row {row}" for row, one in sheet.row_dimensions.items() if one.hidden and any(
        cell.value is not None for cell in sheet[row])]  # fmt: skip
    hidden += [f"column {letter}" for letter, one in sheet.column_dimensions.items()
               if one.hidden and one.min <= sheet.max_column]  # fmt: skip
    unknown = [
        cell.coordinate
        for row, sources in zip(sheet.iter_rows(), written.iter_rows(), strict=True)
        for cell, source in zip(row, sources, strict=True)
        if source.data_type == "f" and cell.value is None and cell.data_type != "str"
    ]
    for found, what, mend in (
        (merged, "merged cells", "Part them, and fill in every cell that is meant"),
        (hidden, "hidden cells", "Show them (take the filter away), or delete them"),
        (unknown, "formulas without a result", "Open and save the file in Excel"),
    ):
        if found:
            raise ValueError(
                f"{name}: expected plain cells. Received: {what} ({found[0]}, {len(found)} in "
                f"all). {mend}, or save the table as 'CSV UTF-8'."
            )


def _warn_of_zeros(name: str, sheet: "Worksheet") -> None:
    """Say where some ids are numbers, which have no zeros in front, and others text that has."""
    for head, *cells in sheet.iter_cols():
        numbers = [cell.coordinate for cell in cells if isinstance(cell.value, int)
                   and not _text_of(cell).startswith("0")]  # fmt: skip
        if numbers and any(re.fullmatch(r"0\d+", _text_of(cell)) for cell in cells):
            print(
                f"warning: {name}: column {_text_of(head)!r} has texts with zeros in front beside "
                f"numbers ({numbers[0]}, {len(numbers)} in all), which have lost theirs if they "
                "had any. Format it as text and correct these cells.",
                file=sys.stderr,
            )


def _text_of(cell: "Cell") -> str:
    """A cell as the sheet shows it, but with all its decimals."""
    value: Any = cell.value
    if value is None:
        return ""
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return from_cell(str(value).strip())
    if abs(value) >= _ROUNDED_FROM:
        return f"{value:.14e}"  # as a CSV has it, so that it is refused as an id
    number_format = re.sub(r'"[^"]*"|\\.', "", cell.number_format)
    if "%" in number_format:
        return f"{100 * value:.15g}%"
    text = f"{value:.15g}"
    return text.zfill(len(number_format)) if set(number_format) == {"0"} else text


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


_COLUMNS = ["path", "patient_id", "reason", "code"]


def kinds_of(rejected: pd.DataFrame) -> pd.Series:
    """What to count each row under: the words of its code, or the whole reason without one.

    Args:
        rejected: of `read_rejected`.
    """
    codes = rejected.get("code", pd.Series("", index=rejected.index))
    return codes.map(KINDS).fillna(rejected["reason"])


def read_rejected(path: str | Path) -> pd.DataFrame:
    """What was left out so far.

    Args:
        path: of the file.

    Returns:
        one row per frame, or per file that an ingest rejected whole; all text, "" for unknown,
        also in `code` of a file from before there were codes. No row if there is no such file.

    Raises:
        ValueError: if the file is not a CSV, or lacks `patient_id` or `reason`.
    """
    path = Path(path)
    if not path.is_file():
        return pd.DataFrame(columns=_COLUMNS)
    table = plain_cells(pd.read_csv(path, dtype=str, keep_default_na=False))
    missing = [name for name in ("patient_id", "reason") if name not in table.columns]
    if missing:
        raise ValueError(
            f"Expected patient_id and reason of what was left out. Received: {path.name} without "
            f"{', '.join(missing)}. Move that file elsewhere, and make the manifest again."
        )
    return table if "code" in table else table.assign(code="")


def add_rejected(rows: pd.DataFrame, manifest_path: str | Path) -> None:
    """Add rows `path, patient_id, reason, code` of what was taken out of a manifest later.

    Raises:
        ValueError: as `read_rejected`.
    """
    before = read_rejected(rejected_beside(manifest_path))
    write_spreadsheet(pd.concat([before, rows]), Path(manifest_path).with_suffix(REJECTED_SUFFIX))
