"""`rejected.csv` beside a manifest: what was left out, and why."""

from pathlib import Path

import pandas as pd

from steatosis_tf.files import replacing

_COLUMNS = ["path", "patient_id", "reason"]


def read_rejected(path: str | Path) -> pd.DataFrame:
    """What was left out so far.

    Args:
        path: of the file.

    Returns:
        one row per frame, or per file that an ingest rejected whole; all text, "" for unknown. No
        row if there is no such file.

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
    return table


def add_rejected(rows: pd.DataFrame, path: str | Path) -> None:
    """Add rows `path, patient_id, reason` of what was left out later.

    Raises:
        ValueError: as `read_rejected`.
    """
    table = pd.concat([read_rejected(path), rows])
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False)
