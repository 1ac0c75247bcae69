"""What was left out, and why: one table beside each manifest.

Every reason is a text for the person who has to mend it, and a code for what counts it: the flow of
patients counts codes, never words.
"""

from pathlib import Path

import pandas as pd

from steatosis_tf.files import REJECTED_SUFFIX, rejected_beside
from steatosis_tf.sources.rejection import KINDS
from steatosis_tf.sources.tables import plain_cells, write_spreadsheet

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
