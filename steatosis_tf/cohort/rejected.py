"""`rejected.csv` beside a manifest: what was left out, and why.

Every reason is a text for the person who has to mend it, and a code for what counts it: the flow of
patients counts codes, never words.
"""

from pathlib import Path

import pandas as pd

from steatosis_tf.files import replacing

#: Code of a fault of a label table, a frame or a study -> what the flow of patients calls it.
#: An ingest's reasons are fixed texts of their own (`sources.rejection.REASONS`).
CODES = {
    "damaged_row": "damaged row of the label table",
    "empty_path": "empty path",
    "empty_patient": "empty patient_id",
    "unknown_grade": "unknown grade",
    "fat_percent": "fat_percent is not a number from 0 to 100",
    "grade_and_fat": "grade does not agree with fat_percent",
    "duplicate_path": "duplicate path",
    "contested_path": "duplicate path under several patients",
    "two_grades": "one patient with two grades",
    "unreadable": "frame missing, unreadable or damaged",
    "copy": "copy of another patient's frame",
    "contested_copy": "the same pixels with two grades",
    "no_roi": "no region of interest",
}

_COLUMNS = ["path", "patient_id", "reason", "code"]


class Fault(str):
    """A reason in words that carries its code.

    Args:
        code: key of `CODES`.
        text: the words, with the particulars of the row; those of `CODES` if left out.

    Example:
        >>> Fault("unknown_grade", "unknown grade 'Grave'").code
        'unknown_grade'
    """

    code: str

    def __new__(cls, code: str, text: str = "") -> "Fault":
        fault = super().__new__(cls, text or CODES[code])
        fault.code = code
        return fault


def kinds_of(rejected: pd.DataFrame) -> pd.Series:
    """What to count each row under: the words of its code, or the whole reason without one.

    Args:
        rejected: of `read_rejected`.
    """
    codes = rejected.get("code", pd.Series("", index=rejected.index))
    return codes.map(CODES).fillna(rejected["reason"])


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
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    missing = [name for name in ("patient_id", "reason") if name not in table.columns]
    if missing:
        raise ValueError(
            f"Expected patient_id and reason of what was left out. Received: {path.name} without "
            f"{', '.join(missing)}. Move that file elsewhere, and make the manifest again."
        )
    return table if "code" in table else table.assign(code="")


def add_rejected(rows: pd.DataFrame, path: str | Path) -> None:
    """Add rows `path, patient_id, reason, code` of what was left out later.

    Raises:
        ValueError: as `read_rejected`.
    """
    table = pd.concat([read_rejected(path), rows])
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False)
