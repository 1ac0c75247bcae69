"""`adjudicate.csv`: what the readers could not agree on, and what the team then decided."""

from pathlib import Path
from typing import Any

import pandas as pd

from steatosis_tf.cohort.spreadsheet import read_spreadsheet
from steatosis_tf.files import replacing
from steatosis_tf.grades import GRADES


def read_settled(adjudicate_path: Path) -> dict[str, dict[str, str]]:
    """What the team has settled so far.

    Returns:
        patient_id -> row of `adjudicate.csv`, where `adjudicated` is filled.

    Raises:
        ValueError: if the file is no such table, holds an unknown grade, or two for one patient.
    """
    if not adjudicate_path.is_file():
        return {}
    table, _ = read_spreadsheet(adjudicate_path)
    missing = {"patient_id", "adjudicated"} - set(table.columns)
    if missing:
        raise ValueError(
            f"{adjudicate_path.name}: expected the columns patient_id and adjudicated. "
            f"Received: {', '.join(table.columns.drop(['row', 'fault']))}."
        )
    names = {grade.lower(): grade for grade in GRADES} | {"": ""}
    unknown = table.loc[~table["adjudicated"].str.lower().isin(list(names))]
    if len(unknown):
        raise ValueError(
            f"{adjudicate_path.name}: expected adjudicated empty or one of {', '.join(GRADES)}. "
            f"Received: {unknown['adjudicated'].iloc[0]!r} at row {unknown['row'].iloc[0]}."
        )
    table["adjudicated"] = table["adjudicated"].str.lower().map(names)
    decided = table.loc[table["adjudicated"] != ""].drop(columns=["row", "fault"])
    faulty = table.loc[table["fault"] != ""]
    sides = decided.groupby("patient_id")["adjudicated"].nunique()
    twice = sides.index[sides > 1]
    if len(faulty) or len(twice):
        what = (
            f"row {faulty['row'].iloc[0]}: {faulty['fault'].iloc[0]}"
            if len(faulty)
            else f"two decisions for patient_id={twice[0]}"
        )
        raise ValueError(
            f"{adjudicate_path.name}: expected one decision per patient. Received: {what}."
        )
    rows: list[dict[str, Any]] = decided.to_dict("records")
    return {row["patient_id"]: {str(k): str(v) for k, v in row.items()} for row in rows}


def contested_row(
    patient: str, read: dict[str, str], reason: str, before: dict[str, str] | None
) -> dict[str, str]:
    """One row of `adjudicate.csv`.

    Args:
        patient: `patient_id`.
        read: reader column -> grade name or "".
        reason: why the rule cannot settle it.
        before: this patient's settled row of the run before, if there is one. It counts only for
            the readings it was made about.
    """
    row = {"patient_id": patient, **read, "reason": reason, "adjudicated": ""}
    decision = before["adjudicated"] if before else ""
    if before and any(before.get(reader, "") != grade for reader, grade in read.items()):
        row["reason"] += f"; readings changed since it was settled as {decision}, settle again"
        return row
    return {**row, "adjudicated": decision}


def write_contested(adjudicate_path: Path, readers: list[str], rows: list[dict[str, str]]) -> None:
    """Write `adjudicate.csv`, an empty table if nothing is contested."""
    columns = ["patient_id", *readers, "reason", "adjudicated"]
    with replacing(adjudicate_path) as temporary:
        pd.DataFrame(rows, columns=columns).to_csv(temporary, index=False)
