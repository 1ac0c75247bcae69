"""Patients in parts, and how that is written: the manifest's column, `split.csv`, others' files."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from steatosis_tf.cohort.manifest import frame_id_of
from steatosis_tf.sources.tables import read_spreadsheet

SPLITS = ("train", "validation", "test")

#: What other tools call the parts.
WORDS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test",
    "left_out": "left_out", "": "left_out",
}  # fmt: skip


@dataclass(frozen=True)
class Partition:
    """One assignment of patients to the three parts; cross-validation has one per fold.

    `left_out` are graded patients that fit no part, for example one scanned both before and
    after the cut of a temporal split. `repeat` counts the rounds of a repeated k-fold: there a
    patient is tested once per repeat, so metrics are taken within a repeat, then averaged.
    """

    name: str
    train: frozenset[str]
    validation: frozenset[str]
    test: frozenset[str]
    left_out: frozenset[str] = frozenset()
    repeat: int = 0


def split_column(frame_table: pd.DataFrame, partition: Partition) -> pd.Series:
    """The `split` of each manifest row: train, validation, test, or "" for ungraded frames and
    patients left out."""
    side = {patient: split for split in SPLITS for patient in getattr(partition, split)}
    return frame_table["patient_id"].map(side).fillna("").where(frame_table["grade"] != "", "")


def test_column(frame_table: pd.DataFrame, partitions: list[Partition]) -> pd.Series:
    """The `split` of each row for records: train, validation, test of a single partition, or the
    name of the partition that tests the patient when there are several."""
    if len(partitions) == 1:
        return split_column(frame_table, partitions[0])
    tested = {patient: partition.name for partition in partitions for patient in partition.test}
    return frame_table["patient_id"].map(tested).fillna("").where(frame_table["grade"] != "", "")


def partitions_of_column(frame_table: pd.DataFrame) -> list[Partition]:
    """The partitions that the `split` column of a manifest stands for: one for train, validation
    and test, or one per fold, each fold tested by models that know all others.

    A patient on two sides stays on both, for the data-leakage check to find with everything else.
    """
    graded = frame_table.loc[(frame_table["grade"] != "") & (frame_table["split"] != "")]
    names = sorted(set(graded["split"]))
    if set(names) & set(SPLITS):
        train, validation, test = (
            frozenset(graded.loc[graded["split"] == side, "patient_id"]) for side in SPLITS
        )
        return [Partition("holdout", train, validation, test)]
    return [
        Partition(
            name,
            train=frozenset(graded.loc[graded["split"] != name, "patient_id"]),
            validation=frozenset(),
            test=frozenset(graded.loc[graded["split"] == name, "patient_id"]),
        )
        for name in names
    ]


def split_table(partitions: list[Partition]) -> pd.DataFrame:
    """One row per partition and patient: `fold, patient_id, split, partition`, sorted by fold and
    split. `fold` counts all partitions from 0, `split` can be `left_out`."""
    rows = [
        (fold, patient, split, partition.name)
        for fold, partition in enumerate(partitions)
        for split in (*SPLITS, "left_out")
        for patient in sorted(getattr(partition, split))
    ]
    return pd.DataFrame(rows, columns=["fold", "patient_id", "split", "partition"])


def import_split(frame_table: pd.DataFrame, path: str | Path) -> list[Partition]:
    """Read a split file and check it against a manifest.

    The result goes through the data-leakage check like a split of our own.

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
    table = read_spreadsheet(path)
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
