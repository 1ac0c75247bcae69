"""Who trains, who validates, who tests: always whole patients, stratified by grade.

The order of patients within a grade comes from a hash of `split_seed` and `patient_id`, so a
split does not depend on the order of rows, and is the same on every machine.
"""

import dataclasses
import hashlib
from dataclasses import dataclass

import pandas as pd

from steatosis_tf.cohort.group_splits import patients_by_group, temporal_parts
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

    A patient on two sides stays on both, for the leak gate to find with everything else.
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
    return Partition("holdout", sides["train"], sides["validation"], sides["test"])
