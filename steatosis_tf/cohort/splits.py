"""Who trains, who validates, who tests: always whole patients, stratified by grade.

The order of patients within a grade comes from a hash of `split_seed` and `patient_id`, so a
split does not depend on the order of rows, and is the same on every machine."""

import dataclasses
import hashlib
import re
from typing import Literal

import numpy as np
import pandas as pd

from steatosis_tf.cohort.partition import SPLITS, WORDS, Partition, test_column
from steatosis_tf.config import SplitConfig
from steatosis_tf.grades import GRADES
from steatosis_tf.sources.pseudonym import spelled_alike

#: From so many graded patients on, one part is large enough to be judged by.
HOLDOUT_FROM = 200

# To train, to validate and to be tested by.
_MIN_OF_A_GRADE = 3


def make_partitions(frame_table: pd.DataFrame, config: SplitConfig) -> list[Partition]:
    """Divide the graded patients of a manifest.

    Args:
        frame_table: manifest; rows without a grade are left aside. A `split` column is taken as
            it is: train, validation and test, or the name of the fold that tests the patient.
        config: `kind` "holdout" gives one partition, "kfold" one per repeat and fold, "lopo"
            one per patient, "logo" one per value of `column`, "temporal" one; "auto" is resolved
            by `resolve_split`. In kfold (per repeat) and lopo each patient is tested exactly
            once; in kfold, lopo and logo a share `validation_fraction` of the others validates.

    Raises:
        ValueError: if a grade is unknown or has too few patients, a patient has two grades, the
            `split` column has an unknown value, puts a patient on two sides or is not what
            `config` would deal, or `column` is missing, has empty cells, or does not divide the
            patients as asked.
    """
    graded = frame_table.loc[frame_table["grade"] != ""]
    config, _ = resolve_split(frame_table, config)
    if is_split(graded):
        if config.kind == "holdout":
            _patients_by_grade(graded, "")
            return [_partition_from_column(graded)]
        if config.kind == "kfold" and config.repeats == 1:
            return _folds_from_column(graded, config)
    return _deal(graded, config)


def resolve_split(frame_table: pd.DataFrame, config: SplitConfig) -> tuple[SplitConfig, str]:
    """What `kind` "auto" stands for with this manifest: a `split` column as it says; else k-fold
    under `HOLDOUT_FROM` graded patients, with no more folds than the rarest grade has patients;
    hold-out from there on.

    Args:
        frame_table: manifest.
        config: as set; any other kind than "auto" is given back as it is.

    Returns:
        the config with its kind, and the sentence that says which and why.

    Raises:
        ValueError: if `config` asks for other parts than the `split` column has, or for something
            that the kind does not read.
    """
    graded = frame_table.loc[frame_table["grade"] != ""]
    count = graded["patient_id"].nunique()
    if is_split(graded):
        written = _as_written(graded, config)
        return written, f"split: {written.words}, as the manifest's split column says"
    if config.kind != "auto":
        return config, f"split: {config.words} of {count} patients"
    few = count < HOLDOUT_FROM
    kind: Literal["kfold", "holdout"] = "kfold" if few else "holdout"
    resolved, idle = dataclasses.replace(config, kind=kind), "test_fraction" if few else "folds"
    if getattr(config, idle) != getattr(SplitConfig(), idle):
        raise ValueError(
            f"Expected split.{idle} with the kind that reads it. Received: split.{idle}="
            f"{getattr(config, idle)} and {count} patients, who are divided by split.kind={kind}. "
            "Leave it out, or set split.kind too."
        )
    why = f"{'under' if few else 'from'} {HOLDOUT_FROM} patients"
    least = graded.groupby("grade")["patient_id"].nunique().reindex(GRADES, fill_value=0).min()
    if few and config.folds == SplitConfig().folds and _MIN_OF_A_GRADE <= least < config.folds:
        resolved = dataclasses.replace(resolved, folds=int(least))
        why += f", {least} of the rarest grade"
    why += "; split.kind sets another"
    return resolved, f"split: {resolved.words} of {count} patients ({why})"


def is_split(graded: pd.DataFrame) -> bool:
    """Whether a `split` column says who trains and who is tested."""
    return "split" in graded.columns and bool((graded["split"] != "").any())


def _as_written(graded: pd.DataFrame, config: SplitConfig) -> SplitConfig:
    """The config of what the `split` column says, if `config` does not ask for something else."""
    folds = _fold_names(graded)
    kind: Literal["kfold", "holdout"] = "kfold" if folds else "holdout"
    # One fold alone is refused where the column is read, with what stands in it.
    num_folds = len(folds) if len(folds) > 1 else config.folds
    default = SplitConfig()
    is_asked = config.kind in ("auto", kind) and (
        config.folds == num_folds or (config.kind == "auto" and config.folds == default.folds)
    )
    deals = ["split_seed", "test_fraction", "repeats", *([] if folds else ["validation_fraction"])]
    if is_asked and all(getattr(config, name) == getattr(default, name) for name in deals):
        return dataclasses.replace(config, kind=kind, folds=num_folds)
    asked = dataclasses.replace(config, kind=kind) if config.kind == "auto" else config
    # The same settings that wrote the column are no new deal.
    if (test_column(graded, _deal(graded, asked)) == graded["split"]).all():
        return asked
    has = f"{len(folds)} folds" if folds else "hold-out"
    raise ValueError(
        f"Expected the split that the manifest's split column has ({has}), or no settings of "
        f"another. Received: settings for {asked.words}, which would deal the patients anew. Leave "
        "them out (split.kind=auto takes the column), or take the column out of the manifest; "
        "`steatosis split MANIFEST_CSV --replace` deals anew on purpose."
    )


def _fold_names(graded: pd.DataFrame) -> list[str]:
    """Names of the folds in a `split` column, fold_2 before fold_10; none if it holds parts."""
    names = set(graded["split"]) - {""}
    if {name.strip().casefold() for name in names} & set(WORDS):
        return []
    return sorted(names, key=lambda name: [int(part) if part.isdigit() else part
                                           for part in re.split(r"(\d+)", name)])  # fmt: skip


def _deal(graded: pd.DataFrame, config: SplitConfig) -> list[Partition]:
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
    return [_holdout(patients, config)]


def _patients_by_grade(graded: pd.DataFrame, salt: str) -> dict[str, list[str]]:
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
        helps = min(short.values()) >= _MIN_OF_A_GRADE
        raise ValueError(
            f"Expected at least {minimum} patients of every grade for {what}. Received: "
            + ", ".join(f"{grade}={count}" for grade, count in short.items())
            + ". Add patients"
            + (", or ask for fewer folds (split.folds)." if helps else "; no split does with less.")
        )


def _holdout(patients: dict[str, list[str]], config: SplitConfig) -> Partition:
    _need(patients, _MIN_OF_A_GRADE, "a split into train, validation and test")
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
        _need(patients, max(config.folds, _MIN_OF_A_GRADE), f"{config.folds} folds")
        # Dealing goes on where the grade before stopped, so that fold sizes differ by one at most.
        dealt = [patient for ids in patients.values() for patient in ids]
        for fold in range(config.folds):
            name = f"fold_{fold}" if config.repeats == 1 else f"repeat_{repeat}_fold_{fold}"
            test = set(dealt[fold :: config.folds])
            partition = _leave_out(patients, test, fold, name, config)
            partitions.append(dataclasses.replace(partition, repeat=repeat))
    return partitions


def _leave_one_patient_out(patients: dict[str, list[str]], config: SplitConfig) -> list[Partition]:
    _need(patients, _MIN_OF_A_GRADE, "leave-one-patient-out")
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
        name = f"{config.column}_" + re.sub(r"[^\w.-]|_", "-", value)
        gone = [grade for grade, ids in rest.items() if patients[grade] and not set(ids) - inside]
        if gone or not inside:
            also = f" ({len(straddling)} more have other values, too)" if straddling else ""
            raise ValueError(
                f"Expected patients to test and patients of every grade to train on when "
                f"{config.column}={value!r} is left out. Received: {len(inside)} patients to test"
                f"{also}, none left of grade {', '.join(gone) or '-'}. Leave out another column, "
                "or merge small groups in the label table."
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
            f"Received: {', '.join(map(repr, unknown))}. Run `steatosis split` again; where it "
            "left patients out, name the split.kind that did."
        )
    sides = {split: frozenset(graded.loc[graded["split"] == split, "patient_id"])
             for split in SPLITS}  # fmt: skip
    empty = [split for split in SPLITS if not sides[split]]
    if empty:
        raise ValueError(
            f"Expected patients in each of {', '.join(SPLITS)}. Received: none in "
            f"{', '.join(empty)}. Run `steatosis split` again."
        )
    _need_one_part(graded)
    return Partition("holdout", sides["train"], sides["validation"], sides["test"])


def _folds_from_column(graded: pd.DataFrame, config: SplitConfig) -> list[Partition]:
    names = _fold_names(graded)
    patients = _patients_by_grade(graded, str(config.split_seed))
    if len(names) < 2 or (graded["split"] == "").any():
        raise ValueError(
            f"Expected the split column to say {', '.join(SPLITS)}, or one of several folds, on "
            f"every graded row. Received: {', '.join(map(repr, sorted(set(graded['split']))))}. "
            "Run `steatosis split` again; where it left patients out, name the split.kind that did."
        )
    _need_one_part(graded)
    tested = [set(graded.loc[graded["split"] == name, "patient_id"]) for name in names]
    for name, test in zip(names, tested, strict=True):
        gone = [grade for grade, ids in patients.items() if ids and not set(ids) - test]
        if gone:
            raise ValueError(
                "Expected patients of every grade to train on in each fold of the split column. "
                f"Received: {name} tests all of {', '.join(gone)}. Run `steatosis split` again."
            )
    return [_leave_out(patients, test, number, name, config)
            for number, (name, test) in enumerate(zip(names, tested, strict=True))]  # fmt: skip


def _need_one_part(graded: pd.DataFrame) -> None:
    pairs = graded[["patient_id", "split"]].drop_duplicates()
    both = sorted(set(pairs.loc[pairs["patient_id"].duplicated(), "patient_id"]))
    if both:
        raise ValueError(
            f"Expected every patient in one split. Received: {len(both)} in two, first "
            f"patient_id={both[0]}. Split by patient with `steatosis split`."
        )


def patients_by_group(
    graded: pd.DataFrame, column: str
) -> list[tuple[str, frozenset[str], frozenset[str]]]:
    """Patients of each value of a column.

    Args:
        graded: manifest rows with a grade.
        column: any manifest column, for example `scanner` or `site`.

    Returns:
        for each value, sorted: the value, patients with this value alone, and all patients with
        more than one, this or others: nobody tests them, so no records hold their frames.

    Raises:
        ValueError: if there is no such column, a cell is empty, there is only one value, or one in
            two spellings.
    """
    values = _full_column(graded, column)
    pairs = pd.DataFrame({"patient_id": graded["patient_id"], "value": values}).drop_duplicates()
    if values.nunique() < 2:
        raise ValueError(
            f"Expected at least two values in column {column} to leave one out. Received: "
            f"{', '.join(map(repr, values.unique()))}."
        )
    if twice := [value for group in spelled_alike(values) for value in group]:
        raise ValueError(
            f"Expected one spelling of each value in column {column}: what is left out would stay "
            f"in training under the other. Received: {', '.join(map(repr, twice))}. Write them "
            "alike in the label table, and build the manifest again."
        )
    several = frozenset(pairs.loc[pairs["patient_id"].duplicated(), "patient_id"])
    groups = []
    for value, group in pairs.groupby("value", sort=True):
        ids = frozenset(group["patient_id"])
        groups.append((str(value), ids - several, several))
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
