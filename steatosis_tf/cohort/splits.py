"""Who trains, who validates, who tests: always whole patients, stratified by grade.

The order of patients within a grade comes from a hash of `split_seed` and `patient_id`, so a
split does not depend on the order of rows, and is the same on every machine.
"""

import hashlib
from dataclasses import dataclass

import pandas as pd

from steatosis_tf.config import SplitConfig
from steatosis_tf.grades import GRADES

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Partition:
    """One assignment of patients to the three parts; cross-validation has one per fold."""

    name: str
    train: frozenset[str]
    validation: frozenset[str]
    test: frozenset[str]


def make_partitions(frame_table: pd.DataFrame, config: SplitConfig) -> list[Partition]:
    """Divide the graded patients of a manifest.

    Args:
        frame_table: manifest; rows without a grade are left aside. With `config.kind`
            "holdout" an existing `split` column is taken as it is.
        config: `kind` "holdout" gives one partition, "kfold" one per fold, "lopo" one per
            patient. In the last two each patient is tested exactly once, and a share
            `validation_fraction` of the others validates.

    Raises:
        ValueError: if a grade has too few patients, a patient has two grades, or the `split`
            column has an unknown value or puts a patient on two sides.
    """
    graded = frame_table.loc[frame_table["grade"] != ""]
    patients = _patients_by_grade(graded, config.split_seed)
    if config.kind == "holdout":
        if "split" in graded.columns:
            return [_partition_from_column(graded)]
        return [_holdout(patients, config)]
    if config.kind == "kfold":
        return _kfold(patients, config)
    return _leave_one_patient_out(patients, config)


def split_column(frame_table: pd.DataFrame, partition: Partition) -> pd.Series:
    """The `split` of each manifest row: train, validation, test, or "" for ungraded patients."""
    side = {patient: split for split in SPLITS for patient in getattr(partition, split)}
    return frame_table["patient_id"].map(side).fillna("").where(frame_table["grade"] != "", "")


def test_column(frame_table: pd.DataFrame, partitions: list[Partition]) -> pd.Series:
    """The `split` of each row for records: train, validation, test of a single partition, or the
    name of the partition that tests the patient when there are several."""
    if len(partitions) == 1:
        return split_column(frame_table, partitions[0])
    tested = {patient: partition.name for partition in partitions for patient in partition.test}
    return frame_table["patient_id"].map(tested).fillna("").where(frame_table["grade"] != "", "")


def split_table(partitions: list[Partition]) -> pd.DataFrame:
    """One row per partition and patient: `fold, patient_id, split`, sorted."""
    rows = [
        (fold, patient, split)
        for fold, partition in enumerate(partitions)
        for split in SPLITS
        for patient in sorted(getattr(partition, split))
    ]
    return pd.DataFrame(rows, columns=["fold", "patient_id", "split"])


def _patients_by_grade(graded: pd.DataFrame, split_seed: int) -> dict[str, list[str]]:
    pairs = graded[["patient_id", "grade"]].drop_duplicates()
    twice = pairs.loc[pairs["patient_id"].duplicated(), "patient_id"]
    if len(twice):
        raise ValueError(
            f"Expected one grade per patient. Received: {len(twice)} patients with two, first "
            f"patient_id={twice.iloc[0]}. Settle the grade and build the manifest again."
        )

    def order(patient: str) -> str:
        return hashlib.sha256(f"{split_seed}:{patient}".encode()).hexdigest()

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
    return Partition("holdout", *(frozenset(parts[split]) for split in SPLITS))


def _share(count: int, fraction: float) -> int:
    return max(1, round(count * fraction))


def _kfold(patients: dict[str, list[str]], config: SplitConfig) -> list[Partition]:
    _need(patients, max(config.folds, 3), f"{config.folds} folds")
    # Dealing goes on where the grade before stopped, so that fold sizes differ by one at most.
    dealt = [patient for ids in patients.values() for patient in ids]
    folds = [set(dealt[fold :: config.folds]) for fold in range(config.folds)]
    return [_leave_out(patients, test, number, "fold", config) for number, test in enumerate(folds)]


def _leave_one_patient_out(patients: dict[str, list[str]], config: SplitConfig) -> list[Partition]:
    _need(patients, 3, "leave-one-patient-out")
    everyone = sorted(patient for ids in patients.values() for patient in ids)
    return [
        _leave_out(patients, {patient}, number, "patient", config)
        for number, patient in enumerate(everyone)
    ]


def _leave_out(
    patients: dict[str, list[str]], test: set[str], number: int, name: str, config: SplitConfig
) -> Partition:
    train: set[str] = set()
    validation: set[str] = set()
    for ids in patients.values():
        rest = [patient for patient in ids if patient not in test]
        count = min(_share(len(rest), config.validation_fraction), len(rest) - 1)
        # Validating patients move on with the fold number, so that no patient always validates.
        chosen = {rest[(number * count + i) % len(rest)] for i in range(count)}
        validation |= chosen
        train |= set(rest) - chosen
    return Partition(f"{name}_{number}", frozenset(train), frozenset(validation), frozenset(test))


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
    both = sorted(
        (sides["train"] & sides["validation"])
        | (sides["train"] & sides["test"])
        | (sides["validation"] & sides["test"])
    )
    if both:
        raise ValueError(
            f"Expected every patient in one split. Received: {len(both)} in two, first "
            f"patient_id={both[0]}. Split by patient with `steatosis split`."
        )
    return Partition("holdout", **sides)
