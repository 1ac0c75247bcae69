"""A split made elsewhere: a challenge's official lists, a statistician's file, another run."""

from pathlib import Path

import pandas as pd

from steatosis_tf.cohort.manifest import frame_id_of
from steatosis_tf.cohort.splits import Partition
from steatosis_tf.cohort.spreadsheet import read_spreadsheet

#: What other tools call the parts.
WORDS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test",
    "left_out": "left_out", "": "left_out",
}  # fmt: skip


def import_split(frame_table: pd.DataFrame, path: str | Path) -> list[Partition]:
    """Read a split file and check it against a manifest.

    The result goes through the leak gate like a split of our own.

    Args:
        frame_table: manifest.
        path: CSV with `split` (train, validation or val, test; left_out or empty) and either
            `patient_id`, `frame_id` or `path` (as the label table has it). With a column `fold`
            there is one partition per fold. The `split.csv` of a run is such a file.

    Returns:
        one partition per fold, named `imported`, or `imported_fold_<fold>`.

    Raises:
        ValueError: if the file is no such table, or a patient is in two parts, unknown to the
            manifest, or in the manifest with a grade but not in the file. All faults are listed.
    """
    path = Path(path)
    table, _ = read_spreadsheet(path)
    table = _with_patients(path.name, frame_table, table)
    table["split"] = table["split"].str.lower()
    faults = _faults(frame_table, table)
    if faults:
        raise ValueError(
            f"{path.name}: expected each graded patient of the manifest in one part. Received:\n"
            + "\n".join(f"  {fault}" for fault in faults)
        )
    table["split"] = table["split"].map(WORDS)
    if "fold" not in table.columns:
        return [_partition("imported", table)]
    # Folds in order of the file, which is the order the authors gave them.
    return [
        _partition(f"imported_fold_{fold}", group)
        for fold, group in table.groupby("fold", sort=False)
    ]


def _with_patients(name: str, frame_table: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    key = next((key for key in ("patient_id", "frame_id", "path") if key in table.columns), "")
    if "split" not in table.columns or not key or table.empty:
        raise ValueError(
            f"{name}: expected rows with the columns split and patient_id, frame_id or path. "
            f"Received: columns {', '.join(table.columns.drop(['row', 'fault']))}; "
            f"{len(table)} rows."
        )
    if key == "patient_id":
        return table
    ids = table["frame_id"] if key == "frame_id" else table["path"].map(frame_id_of)
    owner = dict(zip(frame_table["frame_id"], frame_table["patient_id"], strict=True))
    return table.assign(patient_id=ids.map(owner).fillna(""))


def _faults(frame_table: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    known = set(frame_table["patient_id"])
    graded = set(frame_table.loc[frame_table["grade"] != "", "patient_id"])
    faults = []
    for row, fault, patient, split in table[["row", "fault", "patient_id", "split"]].itertuples(
        index=False
    ):
        if fault:
            faults.append(f"row {row}: {fault}")
        if split not in WORDS:
            faults.append(f"row {row}: split {split!r}; expected train, validation or test")
        if patient not in known:
            faults.append(f"row {row}: not in the manifest (patient_id={patient!r})")
    folds = table.groupby("fold", sort=False) if "fold" in table.columns else [("", table)]
    for fold, group in folds:
        where = f"fold {fold}: " if fold else ""
        sides = group.assign(split=group["split"].map(WORDS)).groupby("patient_id")["split"]
        faults += [
            f"{where}patient_id={patient} in two parts ({' and '.join(sorted(set(words)))})"
            for patient, words in sides
            if words.nunique() > 1
        ]
        absent = sorted(graded - set(group["patient_id"]))
        faults += [f"{where}graded patient_id={patient} is not in the file" for patient in absent]
        empty = {"train", "validation", "test"} - set(group["split"].map(WORDS))
        faults += [f"{where}nobody in {split}" for split in sorted(empty)]
    return faults


def _partition(name: str, group: pd.DataFrame) -> Partition:
    parts = {
        split: frozenset(group.loc[group["split"] == split, "patient_id"])
        for split in ("train", "validation", "test", "left_out")
    }
    return Partition(name, parts["train"], parts["validation"], parts["test"], parts["left_out"])
