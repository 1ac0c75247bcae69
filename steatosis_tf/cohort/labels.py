"""Reading and checking labels as teams have them: any spreadsheet's CSV, or folders by grade."""

import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from steatosis_tf.cohort.decision_store import DECISION_COLUMNS
from steatosis_tf.grades import GRADES, grade_from_fat_percent
from steatosis_tf.sources.pseudonym import normal_patient_id, pseudonym, read_key
from steatosis_tf.sources.rejection import Rejection
from steatosis_tf.sources.tables import ADDED, read_spreadsheet

ROI_COLUMNS = ("roi_top", "roi_left", "roi_height", "roi_width")
#: Names that the manifest gives, and what only our own steps and a person's review may say.
RESERVED = (
    "frame_id", "pixels_sha256", "row", "fault", "split",
    "roi_quality", "roi_code", "roi_marks", "roi_px_per_cm", *DECISION_COLUMNS[len(ROI_COLUMNS) :],
)  # fmt: skip

_WORDS = {
    "normal": 0, "none": 0, "no steatosis": 0, "no fatty liver": 0, "absent": 0,
    "mild": 1, "moderate": 2, "severe": 3,
}  # fmt: skip
_NUMBERED = re.compile(r"(grade |stage |g ?|s ?)?(\d)(?:[.,]0+)?")
_PERCENT = re.compile(r"(\d+(?:[.,]\d+)?(?:e[+-]?\d+)?)\s*%?", re.IGNORECASE | re.ASCII)
#: What spreadsheets and R write into a cell that holds nothing.
_MISSING = ("na", "n/a", "n.a.", "#n/a", "nan", "null")
#: A long number as a spreadsheet shortens it, so that different patients read alike.
SHORTENED = re.compile(r"\d([.,]\d+)?e\+\d+", re.IGNORECASE)
#: Columns by which a table of grades can name a frame, a study or a patient.
_JOINS = ("path", "study_id", "patient_id", "original_study_uid", "original_patient_id")
_NAMES = (*_JOINS, "grade", "fat_percent")
#: Columns that later steps read as numbers.
_NUMBERS = ("age", "bmi", "pixel_height_mm", "pixel_width_mm")
#: Headings of what names a person, as hospitals write them; every later output would hold it.
_PERSONAL = re.compile(
    r"((patients?|last|first|family|given|middle|sur|full)_?)*names?|vorname|nachname|nombres?"
    r"|apellidos?|(date_of_birth|birth_?(date|day)|dob|geburts_?(datum|tag)|fecha_de_nacimiento)"
    r"|add?ress?e?|direcci[oó]n|phone|telephone|telefon|e_?mail|mrn|ssn"
)
_ID_OF = {"original_study_uid": "study_id", "original_patient_id": "patient_id"}


def parse_grade(text: str) -> str:
    """The grade that a person has written, or "" if it cannot be told.

    Example:
        >>> [parse_grade(text) for text in ("S2", "grade 1", "Moderate steatosis", "3,0", "bad")]
        ['Moderate', 'Mild', 'Moderate', 'Severe', '']
    """
    plain = _plain(text)
    if (found := _NUMBERED.fullmatch(plain)) and int(found[2]) < len(GRADES):
        return GRADES[int(found[2])]
    short = re.sub(r" (hepatic )?(steatosis|fatty liver)$", "", plain)
    label = _WORDS.get(plain, _WORDS.get(short))
    return "" if label is None else GRADES[label]


def _plain(text: str) -> str:
    """Lower case, words one space apart; a hyphen joins words, else it is a minus and stays."""
    return " ".join(re.split(r"[\s_]+|(?<=\w)-(?=\w)", text.casefold())).strip()


def read_grade_map(path: str | Path) -> dict[str, str]:
    """What a team's own words for grades mean.

    Args:
        path: CSV with the columns `value` and `grade`; an empty grade says that there is none.

    Returns:
        value, in lower case -> grade or "".

    Raises:
        ValueError: if it is no such table, has a value twice, or a grade that is none of ours.
    """
    path = Path(path)
    table = read_spreadsheet(path)
    if not {"value", "grade"} <= set(table.columns) or table.empty:
        raise ValueError(
            f"{path.name}: expected rows with the columns value and grade. Received: columns "
            f"{', '.join(table.columns.drop([*ADDED]))}; {len(table)} rows."
        )
    values = table["value"].str.casefold()
    wrong = (table["fault"] != "") | values.duplicated() | ~table["grade"].isin(("", *GRADES))
    if wrong.any():
        row = table.loc[wrong].iloc[0]
        raise ValueError(
            f"{path.name}: expected each value once, with a grade out of {', '.join(GRADES)} or "
            f"none. Received: value={row['value']!r} grade={row['grade']!r} at row {row['row']}."
        )
    return dict(zip(values, table["grade"], strict=True))


def read_table(path: str | Path) -> pd.DataFrame:
    """Read labels with every cell as stripped text and its line number in column `row`.

    Args:
        path: CSV (comma, semicolon or tab, byte order mark, any line end) or .xlsx, or a
            folder of frames, laid out as `<grade>/<patient_id>/<frame>`.

    Returns:
        the table, `row` counted as a spreadsheet counts (header = 1), `fault` "" or what is wrong
        with the cells of the row, "" for an empty cell (in our columns also for NA, n/a, NaN),
        with the columns `grade` (str) and `fat_percent` (str) added where absent.

    Raises:
        ValueError: if `read_spreadsheet` cannot read it, if it lacks `path` or `patient_id`, has
            one of the reserved names or two headings for the same, or if a folder is laid out in
            another way.
    """
    path = Path(path)
    return as_labels(path.name, _table_of_folder(path) if path.is_dir() else with_our_names(path))


def as_labels(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """`read_table` of a table that `with_our_names` has read already."""
    _check_columns(name, list(table.columns.drop([*ADDED])))
    if table.empty:
        raise ValueError(f"{name}: expected one row per frame. Received: a header only.")
    for column in ("grade", "fat_percent"):
        if column not in table.columns:
            table[column] = ""
    # A table written on Windows names its frames with backslashes, others begin with "./": one
    # spelling per file, or a copy of a row would pass as another frame.
    table["path"] = [
        posixpath.normpath(name) if name else "" for name in table["path"].str.replace("\\", "/")
    ]
    return table


def with_our_names(path: Path) -> pd.DataFrame:
    """A table whose column "Patient ID" is `patient_id`, and whose cells of ours are "" for NA."""
    table = read_spreadsheet(path)
    names = {column: re.sub(r"[\s-]+", "_", column.casefold()) for column in table.columns}
    names = {column: plain for column, plain in names.items() if plain in _NAMES}
    twice = [column for column, plain in names.items() if [*names.values()].count(plain) > 1]
    if twice:
        raise ValueError(
            f"{path.name}: expected one column for each of {', '.join(_NAMES)}. Received: "
            f"{', '.join(twice)}. Rename what is not meant."
        )
    table = table.rename(columns=names)
    for name in names.values():
        table[name] = table[name].mask(table[name].str.casefold().isin(_MISSING), "")
    for name in set(_NUMBERS) & set(table.columns):
        table[name] = table[name].str.replace(r"^(\d+),(\d+)$", r"\1.\2", regex=True)
    return table


def _table_of_folder(folder: Path) -> pd.DataFrame:
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    rows = sorted(
        path.as_posix() for path in files if not any(part.startswith(".") for part in path.parts)
    )
    other = [path for path in rows if path.count("/") < 2]
    if other or not rows:
        raise ValueError(
            f"{folder.name}: expected frames as <grade>/<patient_id>/<frame>. Received: "
            f"{len(other)} of {len(rows)} files elsewhere. Without a patient a split could leak: "
            "make a folder for each patient, or write a label table."
        )
    table = pd.DataFrame({"path": rows, "fault": ""}, dtype=str)
    table["grade"], table["patient_id"] = (table["path"].str.split("/").str[i] for i in (0, 1))
    table.insert(0, "row", np.arange(1, len(rows) + 1))
    return table


def join_grades(
    table: pd.DataFrame, grades_path: str | Path, key_path: str | Path | None = None
) -> tuple[int, str]:
    """Put the columns of a table of grades into a label table, in place.

    Args:
        table: of `read_table`, such as the `labels.csv` of an ingest.
        grades_path: CSV with `grade` or `fat_percent`, any other columns, and one to join by:
            `path`, `study_id` or `patient_id`; or the hospital's own `original_study_uid` or
            `original_patient_id`, whose pseudonyms are made with the key.
        key_path: the key of the ingest, for the hospital's own ids.

    Returns:
        number of rows of the table of grades that fit no frame; and a text on what was joined.

    Raises:
        ValueError: if there is nothing to join by, no row fits, a row has a fault, two rows for
            the same say different things, or the label table has such a column with other cells.
    """
    name = Path(grades_path).name
    found = with_our_names(Path(grades_path))
    by = next((column for column in _JOINS if column in found.columns), "")
    brought = [column for column in found.columns if column not in (*ADDED, *_JOINS)]
    if not by or not {"grade", "fat_percent"} & set(brought) or set(brought) & set(RESERVED):
        raise ValueError(
            f"{name}: expected a column out of {', '.join(_JOINS)}, and grade or fat_percent, but "
            f"none out of {', '.join(RESERVED)}. "
            f"Received: {', '.join(found.columns.drop([*ADDED]))}."
        )
    _refuse_personal(name, brought)
    ids, own = found[by], by
    if by in _ID_OF:
        by = _ID_OF[by]
        found[by] = _pseudonyms(name, ids, own, key_path)
    if by in table.columns:
        _check_same_rows(name, table, found, by, key_path)
    cells = found.groupby(by)[brought].transform("nunique").gt(1).any(axis=1)
    wrong = found.loc[(found["fault"] != "") | (found[by] == "") | cells, "row"]
    if len(wrong):
        raise ValueError(
            f"{name}: expected one answer for each {by}. Received: {len(wrong)} rows that are "
            f"empty, broken or at odds with another, first row {wrong.iloc[0]}."
        )
    known = set(table[by]) if by in table.columns else set()
    fits = found[by].isin(known)
    hint = _zeros_hint(name, ids[~fits], own, key_path, known)
    if not fits.any():
        if key_path and own == "patient_id":
            hint += " Name the column original_patient_id where they are the hospital's own."
        raise ValueError(
            f"{name}: expected the {own} of some frame. Received: none that is in the label table."
            f"{hint}"
        )
    _put_in(name, table, found.drop_duplicates(by).set_index(by)[brought])
    said, without = f"joined by {own}: {', '.join(brought)}", found["row"][~fits]
    if len(without):
        said += f"\n{len(without)} rows of {name} fit no frame, first row {without.iloc[0]}.{hint}"
    return len(without), said


def _put_in(name: str, table: pd.DataFrame, answers: pd.DataFrame) -> None:
    """Fill the columns of answers into a label table, in place, by the column of their index."""
    for column in answers.columns:
        values = table[str(answers.index.name)].map(answers[column]).fillna("")
        before = table[column] if column in table.columns else pd.Series("", table.index)
        if ((before != "") & (values != "") & (before != values)).any():
            raise ValueError(
                f"{name}: expected no {column} where the label table has another. Remove one."
            )
        table[column] = before.where(before != "", values)


def _check_same_rows(
    name: str, table: pd.DataFrame, found: pd.DataFrame, by: str, key_path: str | Path | None
) -> None:
    """Refuse rows that name a frame, study or patient, and beside it another study or patient."""
    for column in {*_JOINS[1:]} & set(found.columns):
        other = _ID_OF.get(column, column)
        if other == by or other not in table.columns or (other != column and key_path is None):
            continue
        ids = found[column]
        if other != column:
            ids = pd.Series(_pseudonyms(name, ids, column, key_path), ids.index)
        is_known = found[by].isin(table[by]) & (ids != "")
        pairs = set(zip(table[by], table[other], strict=True))
        is_same = [pair in pairs for pair in zip(found[by], ids, strict=True)]
        wrong = found.loc[is_known & ~np.array(is_same, bool), "row"]
        if len(wrong):
            raise ValueError(
                f"{name}: expected rows whose {column} is that of the label table. Received: "
                f"{len(wrong)} with another, first row {wrong.iloc[0]}. Correct them, or take out "
                "the column that is not meant."
            )


def _zeros_hint(
    name: str, ids: pd.Series, by: str, key_path: str | Path | None, known: set[str]
) -> str:
    """What to do where ids of digits would fit with fewer or more zeros in front; or ""."""
    numbers = [(id_.lstrip("0"), width) for id_ in ids if id_.isdigit() for width in range(1, 17)]
    near = [plain.zfill(width) for plain, width in numbers]
    if by in _ID_OF:
        near = _pseudonyms(name, pd.Series(near, dtype=str), by, key_path)
    return "" if known.isdisjoint(near) else (
        " Some would fit with another number of zeros in front, which spreadsheets take away: "
        "keep that column as text."
    )  # fmt: skip


def _pseudonyms(name: str, ids: pd.Series, by: str, key_path: str | Path | None) -> list[str]:
    if key_path is None:
        raise ValueError(
            f"{name}: expected the key of the ingest to make pseudonyms of {by}. Give --key FILE."
        )
    key = read_key(key_path)
    if by == "original_study_uid":
        return [pseudonym(key, "study", uid) if uid else "" for uid in ids]
    return [pseudonym(key, "patient", "id", normal_patient_id(id_)) if id_ else "" for id_ in ids]


def check_labels(
    table: pd.DataFrame, labels_path: str | Path, grade_map: Mapping[str, str] | None = None
) -> tuple[dict[int, list[Rejection]], str]:
    """Check all rows, and fill `grade` and `fat_percent` (float) in place where they are valid;
    the fat of a patient goes into each of the graded rows.

    Args:
        table: as `read_table` returns it.
        labels_path: where the table lies; paths are relative to it.
        grade_map: as `read_grade_map` returns it.

    Returns:
        row number -> reasons, for the rows at fault; and a text on grades that are not known, ""
        if all are.

    Raises:
        ValueError: if grades are numbers without a 0, which may count from 1, or fat percentages
            may be fractions.
    """
    grade_map, labels_path = grade_map or {}, Path(labels_path)
    name = labels_path.name
    reasons: dict[int, list[Rejection]] = {}

    def fault(row: int, code: str, **inserts: object) -> None:
        reasons.setdefault(row, []).append(Rejection(code, **inserts))

    for row in table.loc[table["fault"] != "", "row"]:
        fault(row, "damaged_row")
    known = read_grades(name, table["grade"], grade_map)
    unknown: Counter[str] = Counter()
    grades, fats = [], []
    for row, path, patient_id, grade, fat in table[
        ["row", "path", "patient_id", "grade", "fat_percent"]
    ].itertuples(index=False):
        if not path:
            fault(row, "empty_path")
        if not patient_id:
            fault(row, "empty_patient")
        if SHORTENED.fullmatch(patient_id):
            fault(row, "shortened_patient", patient_id=patient_id)
        if grade and known[grade] is None:
            fault(row, "unknown_grade", grade=grade)
            unknown[grade] += 1
        known_grade, known_fat = _with_fat(known[grade] or "", fat, partial(fault, row))
        grades.append(known_grade)
        fats.append(known_fat)
    _refuse_fractions(name, np.array(fats), table["grade"])
    table["grade"], table["fat_percent"] = grades, np.array(fats, dtype=float)
    _check_boxes(table, fault)
    _check_duplicates(table, labels_path if labels_path.is_dir() else labels_path.parent, fault)
    _check_one_per_patient(table, fault)
    # As a grade, fat is the patient's: a table may have it in one of the rows alone.
    fats = table.groupby("patient_id")["fat_percent"]
    is_one = (fats.transform("nunique") == 1) & (table["grade"] != "")
    table["fat_percent"] = table["fat_percent"].fillna(fats.transform("first").where(is_one))
    return reasons, _map_to_write(unknown) if unknown else ""


def _refuse_fractions(name: str, fats: np.ndarray, given_grades: pd.Series) -> None:
    """Fat from 0 to 1 that no grade stands beside would make everybody Normal."""
    fats = fats[~np.isnan(fats) & (given_grades == "").to_numpy()]
    if len(set(fats)) > 1 and max(fats) <= 1 and set(fats) - {0, 1}:
        raise ValueError(
            f"{name}: expected fat_percent from 0 to 100. Received: {len(fats)} cells from "
            f"{min(fats):g} to {max(fats):g}, which may be fractions. Write 5 % as 5; where they "
            "are percent, put a column grade beside them."
        )


def read_grades(
    name: str, cells: Iterable[str], grade_map: Mapping[str, str] | None = None
) -> dict[str, str | None]:
    """What each different cell of a column of grades means.

    Returns:
        cell -> grade, "" where there is none, None where it is not known.

    Raises:
        ValueError: if bare numbers, or numbers to 4, come without a 0: who counts from 1 would
            have every grade shifted.
    """
    grade_map, counts = grade_map or {}, Counter(cells)
    known: dict[str, str | None] = {"": ""}
    numbers: dict[str, str] = {}
    for cell in counts:
        if cell.casefold() in grade_map:
            known[cell] = grade_map[cell.casefold()]
            continue
        known.setdefault(cell, parse_grade(cell) or None)
        if found := _NUMBERED.fullmatch(_plain(cell)):
            numbers[cell] = (found[1] or "") + found[2]
    digits = {number[-1] for number in numbers.values()}
    is_bare = any(map(str.isdigit, numbers.values()))
    if "0" not in digits and digits <= set("1234") and (is_bare or "4" in digits) and digits:
        seen = Counter({cell: counts[cell] for cell in numbers})
        raise ValueError(
            f"{name}: expected grades from 0 (Normal) to 3 (Severe). Received: numbers without a "
            f"0, which may count from 1. {_map_to_write(seen)}"
        )
    return known


def _map_to_write(seen: Counter[str]) -> str:
    """The values seen, and the file that says what they mean."""
    counts = ", ".join(f"{value!r} in {count} rows" for value, count in seen.most_common())
    lines = "\n".join(f"{value}," for value in sorted(seen))
    return (
        f"Say what these grades mean: {counts}. Write a file such as grades_map.csv, with "
        f"{', '.join(GRADES)} or nothing behind each comma, and give it as --grade-map:\n"
        f"value,grade\n{lines}"
    )


def _check_columns(name: str, columns: list[str]) -> None:
    if missing := [column for column in ("path", "patient_id") if column not in columns]:
        raise ValueError(
            f"{name}: expected the columns path, patient_id and grade or fat_percent. Received: "
            f"{', '.join(columns) or 'an empty first line'}; missing: {', '.join(missing)}. Rename "
            "what holds them; the first line must be the headings."
        )
    if original := [column for column in columns if column in _ID_OF]:
        raise ValueError(
            f"{name}: expected pseudonyms alone. Received: {', '.join(original)}, which every "
            "later output would hold. Take it out; --grades CSV with --key FILE joins by it."
        )
    _refuse_personal(name, columns)
    if taken := [column for column in columns if column in RESERVED]:
        way = f" Its split: `steatosis split MANIFEST_CSV --import {name}`." * ("split" in taken)
        raise ValueError(f"{name}: expected no column named {', '.join(RESERVED)}. Received: "
                         f"{', '.join(taken)}. Rename them in a copy.{way}")  # fmt: skip


def _refuse_personal(name: str, columns: list[str]) -> None:
    personal = [
        column for column in columns
        if _PERSONAL.fullmatch(re.sub(r"[\s.-]+", "_", column.casefold()).strip("_"))
    ]  # fmt: skip
    if personal:
        raise ValueError(
            f"{name}: expected nothing that names a person, since every later output would hold "
            f"it. Received: {', '.join(personal)}. Take it out in a copy, or rename what is not "
            "meant."
        )


def _with_fat(known: str, fat: str, fault: Callable[..., None]) -> tuple[str, float]:
    if not fat:
        return known, np.nan
    found = _PERCENT.fullmatch(fat)
    percent = float(found[1].replace(",", ".")) if found else np.nan
    if not 0 <= percent <= 100:
        fault("fat_percent", fat=fat)
        return known, np.nan
    from_fat = grade_from_fat_percent(percent)
    if known and known != from_fat:
        fault("grade_and_fat", grade=known, fat=fat, other=from_fat)
    return known or from_fat, percent


def _check_boxes(table: pd.DataFrame, fault: Callable[..., None]) -> None:
    """A box of a label table is a person's, so it must be one."""
    if not set(ROI_COLUMNS) & set(table.columns):
        return
    for row, *box in table.reindex(columns=["row", *ROI_COLUMNS], fill_value="").itertuples(
        index=False
    ):
        is_whole = all(re.fullmatch(r"[0-9]{1,5}", side) for side in box)
        if any(box) and not (is_whole and int(box[2]) and int(box[3])):
            fault(row, "bad_box", box=", ".join(side or "nothing" for side in box))


def _check_duplicates(table: pd.DataFrame, folder: Path, fault: Callable[..., None]) -> None:
    # One file may be named from the root in one row, and from the table in another.
    root = os.path.abspath(folder)
    places = pd.Series(
        [os.path.normpath(os.path.join(root, path)) for path in table["path"]], table.index
    )
    copies = table.loc[(table["path"] != "") & places.duplicated(keep=False)]
    for _, group in copies.groupby(places, sort=False):
        first, count = group["row"].iloc[0], group["patient_id"].nunique()
        # Under two patients nobody can tell which row is right, so none is used.
        code = "contested_path" if count > 1 else "duplicate_path"
        for row in group["row"] if count > 1 else group["row"].iloc[1:]:
            fault(row, code, count=count, first=first)


def _check_one_per_patient(table: pd.DataFrame, fault: Callable[..., None]) -> None:
    for column, code in (("grade", "two_grades"), ("fat_percent", "two_fats")):
        known = table.loc[table[column].replace("", np.nan).notna() & (table["patient_id"] != "")]
        contested = known.groupby("patient_id")[column].transform("nunique") > 1
        for _, group in known.loc[contested].groupby("patient_id", sort=False):
            found = group[column].unique()
            names = sorted(found, key=GRADES.index) if column == "grade" else sorted(found)
            for row in group["row"]:
                fault(row, code, both=" and ".join(map(str, names)))
