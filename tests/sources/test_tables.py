"""Excel workbooks as hospitals have them: what is shown is read, what is open is asked back."""

import datetime
import zipfile

import openpyxl
import pandas as pd
import pytest

from steatosis_tf.sources.tables import plain_cells, read_spreadsheet, write_spreadsheet


@pytest.fixture
def workbook(tmp_path):
    """`make(rows, change)` writes rows, lets `change(sheet)` at them, and gives the path."""

    def make(rows, change=lambda sheet: None):
        book = openpyxl.Workbook()
        for row in rows:
            book.active.append(row)
        change(book.active)
        path = tmp_path / "labels.xlsx"
        book.save(path)
        return path

    return make


def test_cells_are_read_as_the_sheet_shows_them(workbook):
    day = datetime.datetime(2024, 5, 31)
    rows = [
        ["Patient ID", "fat_percent", "study_date", "note"],
        ["007", 12.5, day, " a\u00a0"],
        [7, 0.125, day.replace(hour=9), None],
        [],
        [123456789012345678, 5.0, "31.05.2024", True],
        [45, 0.1 + 0.2, None, "'=2"],
        [None, None, None, " "],
    ]

    def with_formats(sheet):
        sheet["A3"].number_format, sheet["B3"].number_format = "000", "0.0%"
        sheet["B2"].number_format = '0.0" %"'  # a sign only, nothing is multiplied

    table = read_spreadsheet(workbook(rows, with_formats))
    assert list(table["row"]) == [2, 3, 5, 6]
    assert list(table["Patient ID"]) == ["007", "007", "1.23456789012346e+17", "45"]
    assert list(table["fat_percent"]) == ["12.5", "12.5%", "5", "0.3"]
    assert list(table["study_date"]) == ["2024-05-31", "2024-05-31 09:00:00", "31.05.2024", ""]
    assert list(table["note"]) == ["a", "", "True", "=2"]


def _hide(kind):
    def change(sheet):
        (sheet.row_dimensions[3] if kind == "row" else sheet.column_dimensions["B"]).hidden = True

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda sheet: sheet.merge_cells("A2:A3"), r"merged cells \(A2:A3, 1 in all\)"),
        (_hide("row"), r"hidden cells \(row 3, 1 in all\)"),
        (_hide("column"), r"hidden cells \(column B, 1 in all\)"),
        (lambda sheet: sheet.__setitem__("B3", "=B2+1"), r"without a result \(B3, 1 in all\)"),
        (lambda sheet: sheet.__setitem__("A900000", "x"), "far below"),
        (lambda sheet: sheet.parent.create_sheet("old").append(["x"]), "'Sheet', 'old'"),
        (lambda sheet: sheet.delete_rows(1, 9), "Received: none"),
    ],
    ids=["merged", "row", "column", "formula", "far", "sheets", "empty"],
)
def test_what_leaves_open_which_cells_are_meant_is_refused(workbook, change, said):
    path = workbook([["path", "patient_id"], ["a.png", 1], ["b.png", 2]], change)
    with pytest.raises(ValueError, match=said):
        read_spreadsheet(path)


def test_empty_sheets_and_results_of_formulas_are_read(workbook, tmp_path):
    path = workbook([["path", "grade"], ["a.png", "=1+2"], ["b.png", "=A9"]])
    book = openpyxl.load_workbook(path)
    book.create_sheet("Sheet2", 0)
    book.save(path)
    results = {b"<f>1+2</f><v />": b"<f>1+2</f><v>3</v>",
               b'"B3"><f>A9</f><v />': b'"B3" t="str"><f>A9</f><v></v>'}  # fmt: skip
    calculated = tmp_path / "calculated.xlsx"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(calculated, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            for before, after in results.items():
                data = data.replace(before, after)
            target.writestr(name, data)
    assert list(read_spreadsheet(calculated)["grade"]) == ["3", ""]


def test_zeros_that_some_ids_have_and_others_may_have_lost_are_told(workbook, capsys):
    read_spreadsheet(workbook([["patient_id", "n"], ["0012", 1], [345, 2], ["P0", 0]]))
    said = capsys.readouterr().err
    assert "column 'patient_id' has texts with zeros in front beside numbers (A3, 1 in all)" in said
    assert said.count("warning") == 1


def test_a_workbook_that_is_none_ends_in_one_line(tmp_path):
    path, page = tmp_path / "labels.xlsx", b"<worksheet/>" * 10
    contents = {"a password": b"\xd0\xcf\x11\xe0rest", "damaged": b"PK\x03\x04rest"}
    for said, data in contents.items():
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"labels.xlsx: expected .*{said}"):
            read_spreadsheet(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/workbook.xml", page)
    with pytest.raises(ValueError, match="damaged"):
        read_spreadsheet(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/workbook.xml", bytes(65 * 2**20))
    with pytest.raises(ValueError, match=r"at most 500,000 cells"):
        read_spreadsheet(path)


@pytest.mark.parametrize("dtype", ["object", "string", "category"])
def test_no_text_is_written_as_a_formula_whatever_type_holds_it(tmp_path, dtype):
    path = tmp_path / "table.csv"
    texts = pd.Series(["=1+1", "x"], dtype=dtype)
    write_spreadsheet(pd.DataFrame({"=said": texts, "change": [-2, 1]}), path)
    assert path.read_text() == "'=said,change\n'=1+1,-2\nx,1\n"
    back = plain_cells(pd.read_csv(path, dtype=str))
    assert [*back.columns, *back["=said"]] == ["=said", "change", "=1+1", "x"]
