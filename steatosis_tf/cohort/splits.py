"""Who trains, who validates, who tests: always whole patients, stratified by grade.

The order of patients within a grade comes from a hash of `split_seed` and `patient_id`, so a
split does not depend on the order of rows, and is the same on every machine."""

import dataclasses
import hashlib
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from steatosis_tf.cohort.labels import read_spreadsheet
from steatosis_tf.cohort.manifest import frame_id_of
from steatosis_tf.config import SplitConfig
from steatosis_tf.grades import GRADES

SPLITS = ("train", "validation", "test")


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


def make_partitions(frame_table: pd.DataFrame, config: SplitConfig) -> list[Partition]:
    """Divide the graded patients of a manifest.

    Args:
        frame_table: manifest; rows without a grade are left aside. With `config.kind`
            "holdout" an existing `split` column is taken as it is.
        config: `kind` "holdout" gives one partition, "kfold" one per repeat and fold, "lopo"
            one per patient, "logo" one per value of `column`, "temporal" one. In kfold (per
            repeat) and lopo each patient is tested exactly once; in kfold, lopo and logo a share
            `validation_fraction` of the others validates.

    Raises:
        ValueError: if a grade is unknown or has too few patients, a patient has two grades, the
            `split` column has an unknown value or puts a patient on two sides, or `column` is
            missing, has empty cells, or does not divide the patients as asked.
    """
    graded = frame_table.loc[frame_table["grade"] != ""]
    patients = _patients_by_grade(graded, str(config.split_seed))
    if config.kind == "kfold":
        return _repeated_kfold(graded, config)
    if config.kind == "lopo":
        return _leave_one_patient_out(patients, config)
    if config.kind == "logo":
        return _leave_one_group_out(graded, patients, config)
    if config.kind == "temporal":
        train, validation, test, left_out = map(frozenset, temporal_parts(graded, config))
        return [Partition("temporal", train, validation, test, left_out)]
    if "split" in graded.columns:
        return [_partition_from_column(graded)]
    return [_holdout(patients, config)]


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


def _patients_by_grade(graded: pd.DataFrame, salt: str) -> dict[str, list[str]]:
    unknown = sorted(set(graded["grade"]) - set(GRADES))
    if unknown:
        raise ValueError(
            f"Expected a grade out of {', '.join(GRADES)}. Received: grade={unknown[0]!r}."
        )
    pairs = graded[["patient_id", "grade"]].drop_duplicates()
    twice = pairs.loc[pairs["patient_id"].duplicated(), "patient_id"]
    if len(twice):
        raise ValueError(
            f"Expected one grade per patient. Received: {len(twice)} patients with two, first "
            f"patient_id={twice.iloc[0]}. Settle the grade and build the manifest again."
        )

    def order(patient: str) -> str:
        return hashlib.sha256(f"{salt}:{patient}".encode()).hexdigest()

    return {
        grade: sorted(pairs.loc[pairs["grade"] == grade, "patient_id"], key=order)
        for grade in GRADES
    }


def _need(patients: dict[str, list[str]], minimum: int, what: str) -> None:
    short = {grade: len(ids) for grade, ids in patients.items() if len(ids) < minimum}
    if short:
        raise ValueError(
            f"Expected at least {minimum} patients of every grade for {what}. Received: "
            + ", ".join(f"{grade}={count}" for grade, count in short.items())
            + ". Add patients, or ask for fewer folds (split.folds)."
        )


def _holdout(patients: dict[str, list[str]], config: SplitConfig) -> Partition:
    _need(patients, 3, "a split into train, validation and test")
    parts: dict[str, set[str]] = {split: set() for split in SPLITS}
    for ids in patients.values():
        num_test = _share(len(ids), config.test_fraction)
        num_validation = _share(len(ids), config.validation_fraction)
        num_validation = min(num_validation, len(ids) - num_test - 1)
        parts["test"].update(ids[:num_test])
        parts["validation"].update(ids[num_test : num_test + num_validation])
        parts["train"].update(ids[num_test + num_validation :])
    train, validation, test = (frozenset(parts[split]) for split in SPLITS)
    return Partition("holdout", train, validation, test)


def _share(count: int, fraction: float) -> int:
    return max(1, round(count * fraction))


def _repeated_kfold(graded: pd.DataFrame, config: SplitConfig) -> list[Partition]:
    partitions = []
    for repeat in range(config.repeats):
        # The first repeat is the plain k-fold of the same seed.
        salt = f"{config.split_seed}.{repeat}" if repeat else str(config.split_seed)
        patients = _patients_by_grade(graded, salt)
        _need(patients, max(config.folds, 3), f"{config.folds} folds")
        # Dealing goes on where the grade before stopped, so that fold sizes differ by one at most.
        dealt = [patient for ids in patients.values() for patient in ids]
        for fold in range(config.folds):
            name = f"fold_{fold}" if config.repeats == 1 else f"repeat_{repeat}_fold_{fold}"
            test = set(dealt[fold :: config.folds])
            partition = _leave_out(patients, test, fold, name, config)
            partitions.append(dataclasses.replace(partition, repeat=repeat))
    return partitions


def _leave_one_patient_out(patients: dict[str, list[str]], config: SplitConfig) -> list[Partition]:
    _need(patients, 3, "leave-one-patient-out")
    everyone = sorted(patient for ids in patients.values() for patient in ids)
    return [
        _leave_out(patients, {patient}, number, f"patient_{number}", config)
        for number, patient in enumerate(everyone)
    ]


def _leave_one_group_out(
    graded: pd.DataFrame, patients: dict[str, list[str]], config: SplitConfig
) -> list[Partition]:
    partitions = []
    for number, (value, inside, straddling) in enumerate(patients_by_group(graded, config.column)):
        rest = {
            grade: [patient for patient in ids if patient not in straddling]
            for grade, ids in patients.items()
        }
        name = f"{config.column}_{_slug(value)}"
        gone = [grade for grade, ids in rest.items() if patients[grade] and not set(ids) - inside]
        if gone or not inside:
            raise ValueError(
                f"Expected patients to test and patients of every grade to train on when "
                f"{config.column}={value!r} is left out. Received: {len(inside)} patients to test"
                f", none left of grade {', '.join(gone) or '-'}. Leave out another column, or "
                "merge small groups in the label table."
            )
        partition = _leave_out(rest, set(inside), number, name, config)
        partitions.append(dataclasses.replace(partition, left_out=straddling))
    names = [partition.name for partition in partitions]
    return [
        dataclasses.replace(partition, name=f"{partition.name}_{number}")
        if names.count(partition.name) > 1
        else partition
        for number, partition in enumerate(partitions)
    ]


def _slug(value: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "-" for c in value)


def _leave_out(
    patients: dict[str, list[str]], test: set[str], number: int, name: str, config: SplitConfig
) -> Partition:
    train: set[str] = set()
    validation: set[str] = set()
    for ids in patients.values():
        rest = [patient for patient in ids if patient not in test]
        count = max(0, min(_share(len(rest), config.validation_fraction), len(rest) - 1))
        # Validating patients move on with the fold number, so that no patient always validates.
        chosen = {rest[(number * count + i) % len(rest)] for i in range(count)}
        validation |= chosen
        train |= set(rest) - chosen
    return Partition(name, frozenset(train), frozenset(validation), frozenset(test))


def _partition_from_column(graded: pd.DataFrame) -> Partition:
    unknown = sorted(set(graded["split"]) - set(SPLITS))
    if unknown:
        raise ValueError(
            f"Expected the split column to say {', '.join(SPLITS)} on every graded row. "
            f"Received: {', '.join(map(repr, unknown))}. Run `steatosis split` again."
        )
    sides = {split: frozenset(graded.loc[graded["split"] == split, "patient_id"])
             for split in SPLITS}  # fmt: skip
    empty = [split for split in SPLITS if not sides[split]]
    if empty:
        raise ValueError(
            f"Expected patients in each of {', '.join(SPLITS)}. Received: none in "
            f"{', '.join(empty)}. Run `steatosis split` again."
        )
    both = sorted(set().union(*(sides[a] & sides[b] for a, b in combinations(SPLITS, 2))))
    if both:
        raise ValueError(
            f"Expected every patient in one split. Received: {len(both)} in two, first "
            f"patient_id={both[0]}. Split by patient with `steatosis split`."
        )
    return Partition("holdout", sides["train"], sides["validation"], sides["test"])


def patients_by_group(
    graded: pd.DataFrame, column: str
) -> list[tuple[str, frozenset[str], frozenset[str]]]:
    """Patients of each value of a column.

    Args:
        graded: manifest rows with a grade.
        column: any manifest column, for example `scanner` or `site`.

    Returns:
        for each value, sorted: the value, patients with this value alone, patients with this
        and another one.

    Raises:
        ValueError: if there is no such column, a cell is empty, or there is only one value.
    """
    values = _full_column(graded, column)
    pairs = pd.DataFrame({"patient_id": graded["patient_id"], "value": values}).drop_duplicates()
    if values.nunique() < 2:
        raise ValueError(
            f"Expected at least two values in column {column} to leave one out. Received: "
            f"{', '.join(map(repr, values.unique()))}."
        )
    several = frozenset(pairs.loc[pairs["patient_id"].duplicated(), "patient_id"])
    groups = []
    for value, group in pairs.groupby("value", sort=True):
        ids = frozenset(group["patient_id"])
        groups.append((str(value), ids - several, ids & several))
    return groups


def temporal_parts(
    graded: pd.DataFrame, config: SplitConfig
) -> tuple[set[str], set[str], set[str], set[str]]:
    """Divide patients by time: the latest test, those before validate, the earliest train.

    Every frame of a part is strictly later than every frame of the part before it. Patients
    with the date of a cut stay together, so parts can be larger than asked for. Grades are not
    stratified: time alone decides.

    Returns:
        patients to train, validate, test, and those left out because their studies lie on both
        sides of a cut.

    Raises:
        ValueError: if the column is missing, is no date, counts days from each patient's own
            first study, or if a part comes out empty or training lacks a grade.
    """
    days = days_of(graded, config.column)
    span = days.groupby(graded["patient_id"]).agg(["min", "max"])
    if len(span) > 1 and (span["min"] == 0).all():
        raise ValueError(
            f"Expected {config.column} on one calendar for all patients. Received: 0 as the first "
            "value of every patient, so it counts from each patient's own first study. Give a "
            "column with study dates, or days since the start of the study."
        )
    first = span["min"].sort_values(kind="stable").to_numpy()
    num_test = max(1, round(len(span) * config.test_fraction))
    num_validation = max(1, round(len(span) * config.validation_fraction))
    test_from = first[max(0, len(first) - num_test)]
    validation_from = first[max(0, len(first) - num_test - num_validation)]
    train = set(span.index[span["max"] < validation_from])
    validation = set(span.index[(span["min"] >= validation_from) & (span["max"] < test_from)])
    test = set(span.index[span["min"] >= test_from])
    _check_parts(graded, config.column, train, validation, test)
    return train, validation, test, set(span.index) - train - validation - test


def days_of(frame_table: pd.DataFrame, column: str) -> pd.Series:
    """A date column as days (float), comparable between rows.

    Args:
        frame_table: manifest rows.
        column: cells all of one kind: ISO dates (2024-05-31, also with a time), DICOM dates
            (20240531), or numbers of days.

    Raises:
        ValueError: if the column is missing, or a cell is empty or of another kind.
    """
    text = _full_column(frame_table, column).astype(str)
    if text.str.fullmatch(r"(19|20)\d{6}").all():
        dates = pd.to_datetime(text, format="%Y%m%d", errors="coerce")
    else:
        numbers = pd.to_numeric(text, errors="coerce")
        if np.isfinite(numbers).all():
            return numbers.astype(float)
        dates = pd.to_datetime(text, format="ISO8601", errors="coerce", utc=True)
    if dates.isna().any():
        raise ValueError(
            f"Expected every cell of {column} as a date like 2024-05-31 or 20240531, or every one "
            f"as a number of days. Received: {int(dates.isna().sum())} others, first at frame_id="
            f"{frame_table['frame_id'][dates.isna()].iloc[0]}."
        )
    return (dates.dt.tz_localize(None) - pd.Timestamp(0)) / pd.Timedelta(days=1)


def _full_column(frame_table: pd.DataFrame, column: str) -> pd.Series:
    if column not in frame_table.columns:
        raise ValueError(
            f"Expected split.column among the manifest columns {', '.join(frame_table.columns)}. "
            f"Received: column={column!r}."
        )
    values = frame_table[column]
    empty = values.isna() | (values.astype(str) == "")
    if empty.any():
        raise ValueError(
            f"Expected a value of {column} for every graded frame. Received: {int(empty.sum())} "
            f"empty cells of {frame_table['patient_id'][empty].nunique()} patients, first at "
            f"frame_id={frame_table['frame_id'][empty].iloc[0]}. Fill them in; write 'unknown' if "
            "that is a group of its own."
        )
    return values


def _check_parts(
    graded: pd.DataFrame, column: str, train: set[str], validation: set[str], test: set[str]
) -> None:
    present = set(graded.loc[graded["patient_id"].isin(train), "grade"])
    missing = [grade for grade in GRADES if (graded["grade"] == grade).any()
               and grade not in present]  # fmt: skip
    if not (train and validation and test) or missing:
        raise ValueError(
            f"Expected patients in every part, and every grade in training, when split by {column}."
            f" Received: train={len(train)}, validation={len(validation)}, test={len(test)}, "
            f"grades not in training: {', '.join(missing) or 'none'}. Change split.test_fraction "
            "and split.validation_fraction, or use another kind of split."
        )


#: What other tools call the parts.
WORDS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test",
    "left_out": "left_out", "": "left_out",
}  # fmt: skip


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
