"""Several readers, one grade per patient, and no grade where they are too far apart.

A label table with the columns `reader_1 .. reader_n` becomes a label table with `grade`. What
the rule cannot settle goes to `adjudicate.csv` beside the output and stays without a grade until
the team has filled its column `adjudicated`; the next run takes it from there. A second reading by
the same reader, in `reader_1_repeat`, has no voice: it tells how far a reader agrees with
themselves."""

import re
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from steatosis_tf.cohort.labels import as_labels, read_grade_map, read_grades, with_our_names
from steatosis_tf.evaluation.metrics.weighted import kappas
from steatosis_tf.files import check_output
from steatosis_tf.grades import GRADES
from steatosis_tf.sources.tables import read_spreadsheet, write_spreadsheet

Rule = Literal["majority", "median", "unanimous"]
RULES = ("majority", "median", "unanimous")
UNREAD = -1  # label of a patient whom a reader has not graded
_REPEAT, _HOSPITALS_ID = "_repeat", "original_patient_id"
_MIN_PATIENTS = 10  # of a kappa whose interval is told


@dataclass(frozen=True)
class KappaInterval:
    """A kappa with its 95 % bootstrap interval; None where it is not defined."""

    estimate: float | None
    low: float | None
    high: float | None
    num_patients: int

    def __str__(self) -> str:
        if self.estimate is None:
            return f"not defined ({self.num_patients} patients, or one grade throughout)"
        if self.num_patients < _MIN_PATIENTS:
            return f"{self.estimate:.3f} ({self.num_patients} patients, too few for an interval)"
        return (
            f"{self.estimate:.3f} (95 % interval {self.low:.3f} to {self.high:.3f}, "
            f"{self.num_patients} patients)"
        )


@dataclass(frozen=True)
class ConsensusSummary:
    """How the readers agreed and what came of it; all counts are patients.

    `joined_by` is what the output names patients by where it has no `path`, else "".
    `pairwise_kappa` is between two readers, `repeat_kappa` of a reader with themselves.
    """

    rule: str
    readers: tuple[str, ...]
    num_patients: int
    num_by_rule: int
    num_adjudicated: int
    num_pending: int
    num_unread: int
    patients_per_grade: dict[str, int]
    fleiss_kappa: float | None
    fleiss_num_patients: int
    pairwise_kappa: dict[str, KappaInterval]
    repeat_kappa: dict[str, KappaInterval]
    adjudicate_path: str
    joined_by: str


def build_consensus(
    labels_path: str | Path,
    output_path: str | Path,
    rule: Rule = "majority",
    grade_map_path: str | Path | None = None,
) -> ConsensusSummary:
    """Turn readers' grades into one grade per patient.

    A reader's grade belongs to the patient: it may stand on one or on all of the patient's rows.

    Args:
        labels_path: label table with `path, patient_id, reader_1 .. reader_n`, grade names or
            empty cells; where patients were read twice also `reader_1_repeat` and so on. Without
            `path` it gives a table of grades to join, by `patient_id` or `original_patient_id`.
        output_path: table with `grade` to write, in the same folder where it has `path`, which is
            relative to it. `adjudicate.csv` is written beside it, and read if it is there.
        rule: "majority" the grade most readers gave; "median" the middle one; "unanimous" only
            where all agree. Ties, spreads over one grade, and patients whom one reader alone has
            graded, are left to adjudication under every rule.
        grade_map_path: what other words for grades mean, see `labels.read_grade_map`.

    Raises:
        ValueError: for an unknown rule, fewer than two reader columns, an unknown grade, or
            labels that have grades already. All faulty cells are listed; nothing is written.
    """
    labels_path, output_path = Path(labels_path), Path(output_path)
    if rule not in RULES:
        raise ValueError(f"Expected a rule out of {', '.join(RULES)}. Received: rule={rule!r}.")
    adjudicate_path = output_path.parent / "adjudicate.csv"
    table, own = _read_readers(labels_path)
    _check_places(labels_path, output_path, adjudicate_path, has_paths="path" in table.columns)
    readers = _readers(labels_path.name, table)
    grade_map = read_grade_map(grade_map_path) if grade_map_path else {}
    repeats = [reader + _REPEAT for reader in readers if reader + _REPEAT in table.columns]
    every, doubts = _readings(table, [*readers, *repeats], grade_map)
    readings = {patient: labels[: len(readers)] for patient, labels in every.items()}
    settled = read_settled(adjudicate_path, grade_map)

    outcomes: dict[str, tuple[str, str]] = {}
    contested: list[dict[str, str]] = []
    for patient, labels in readings.items():
        grade, reason = _by_rule(labels, rule, doubts.get(patient, ""))
        outcomes[patient] = grade, "by_rule" if grade else "unread"
        if reason:
            names = [GRADES[label] if label != UNREAD else "" for label in labels]
            read = dict(zip(readers, names, strict=True))
            contested.append(contested_row(patient, read, reason, settled.pop(patient, None)))
            grade = contested[-1]["adjudicated"]
            outcomes[patient] = grade, "adjudicated" if grade else "pending"
    # Settled once and gone from this table: a decision of the team is not thrown away.
    contested += [row for patient, row in settled.items() if patient not in readings]

    table["grade"] = table["patient_id"].map({p: grade for p, (grade, _) in outcomes.items()})
    joined_by = "" if "path" in table.columns else own
    _write_graded(table, joined_by, output_path)
    write_contested(adjudicate_path, readers, contested)
    columns = [*readers, *repeats]
    matrix = np.array(list(every.values()), dtype=int).reshape(len(every), len(columns))
    labels_of = pd.DataFrame(matrix, columns=columns)
    return _summary(rule, readers, list(outcomes.values()), labels_of, adjudicate_path, joined_by)


def _read_readers(labels_path: Path) -> tuple[pd.DataFrame, str]:
    """The table, and what it calls its `patient_id`."""
    table = with_our_names(labels_path)
    if "path" in table.columns or not {"patient_id", _HOSPITALS_ID} & set(table.columns):
        return as_labels(labels_path.name, table), "patient_id"
    if "patient_id" in table.columns:
        return table, "patient_id"
    return table.rename(columns={_HOSPITALS_ID: "patient_id"}), _HOSPITALS_ID


def _write_graded(table: pd.DataFrame, joined_by: str, output_path: Path) -> None:
    if joined_by:  # one answer for each patient
        graded = table[["patient_id", "grade"]].drop_duplicates()
        graded = graded.set_axis([joined_by, "grade"], axis=1)
    else:
        graded = table.drop(columns=["row", "fault", "fat_percent"])
    write_spreadsheet(graded, output_path)


def _check_places(
    labels_path: Path, output_path: Path, adjudicate_path: Path, *, has_paths: bool
) -> None:
    if has_paths and output_path.resolve().parent != labels_path.resolve().parent:
        raise ValueError(
            "Expected the output in the folder of the label table, because its paths are relative "
            f"to it. Received: {output_path.name} in another folder. Write it there: "
            f"--output {labels_path.parent / output_path.name}"
        )
    for written in (output_path, adjudicate_path):
        check_output(written, [labels_path])


def _readers(name: str, table: pd.DataFrame) -> list[str]:
    readers = [column for column in table.columns if re.fullmatch(r"reader_\d+", column)]
    if len(readers) < 2:
        raise ValueError(
            f"{name}: expected at least two columns reader_1, reader_2, ... Received: "
            f"{', '.join(readers) or 'none'}."
        )
    for column in {"grade", "fat_percent"} & set(table.columns):
        if (table[column] != "").any():
            raise ValueError(
                f"{name}: expected readers' grades to be the only ones. Received: a filled column "
                f"{column}. Rename it, for example to biopsy_{column}; it is carried along."
            )
    return sorted(readers, key=lambda column: int(column.removeprefix("reader_")))


def _readings(
    table: pd.DataFrame, readers: list[str], grade_map: dict[str, str]
) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Label of each patient by each reader, and who contradicted themselves."""
    faults = [f"row {row}: {fault}" for row, fault in zip(table["row"], table["fault"], strict=True)
              if fault]  # fmt: skip
    faults += [
        f"row {row}: empty patient_id" for row in table.loc[table["patient_id"] == "", "row"]
    ]
    known: dict[str, str | None] = {}
    for reader in readers:  # each by itself: one may count from 1 where the others count from 0
        if not reader.endswith(_REPEAT):
            own = [name for name in readers if name.removesuffix(_REPEAT) == reader]
            known |= read_grades(reader, pd.concat([table[name] for name in own]), grade_map)
    numbers = {cell: GRADES.index(grade) if grade else UNREAD for cell, grade in known.items()}
    for reader in readers:
        unknown = table.loc[table[reader].map(known.get).isna()]
        faults += [f"row {row}: {reader} has {cell!r}"
                   for row, cell in zip(unknown["row"], unknown[reader], strict=True)]  # fmt: skip
    if faults:
        raise ValueError(
            f"Expected grades out of {', '.join(GRADES)}, or empty cells. Received:\n"
            + "\n".join(f"  {fault}" for fault in faults)
        )
    readings: dict[str, list[int]] = {}
    doubts: dict[str, str] = {}
    for patient, group in table.groupby("patient_id", sort=False):
        found = [set(group[reader].map(numbers)) - {UNREAD} for reader in readers]
        twice = [reader for reader, labels in zip(readers, found, strict=True)
                 if len(labels) > 1 and not reader.endswith(_REPEAT)]  # fmt: skip
        readings[str(patient)] = [labels.pop() if len(labels) == 1 else UNREAD for labels in found]
        if twice:
            doubts[str(patient)] = f"{' and '.join(twice)} gave more than one grade"
    return readings, doubts


def _by_rule(labels: list[int], rule: str, doubt: str) -> tuple[str, str]:
    """The grade, or why there is none yet; both empty if nobody has read the patient."""
    given = sorted(label for label in labels if label != UNREAD)
    if doubt or not given:
        return "", doubt
    if len(given) == 1:
        return "", "one reader only"
    if given[-1] - given[0] > 1:
        return "", f"readers differ by {given[-1] - given[0]} grades"
    if rule == "unanimous":
        return (GRADES[given[0]], "") if given[0] == given[-1] else ("", "not unanimous")
    # Within a spread of one grade at most two grades occur, so majority and median are the same
    # choice, and both tie where half the readers stand on either side.
    low, high = given.count(given[0]), given.count(given[-1])
    if given[0] != given[-1] and low == high:
        return "", "tie"
    return GRADES[given[0] if low > high else given[-1]], ""


def _kappa(labels: pd.DataFrame, one: str, other: str) -> KappaInterval:
    """Of two columns, over the patients that both have read."""
    both = labels.loc[(labels[[one, other]] != UNREAD).all(axis=1)]
    return weighted_kappa(both[one].to_numpy(), both[other].to_numpy())


def _summary(
    rule: str,
    readers: list[str],
    outcomes: list[tuple[str, str]],
    labels: pd.DataFrame,
    adjudicate_path: Path,
    joined_by: str,
) -> ConsensusSummary:
    grades, ways = [grade for grade, _ in outcomes], [way for _, way in outcomes]
    of_readers = labels[readers].to_numpy()
    complete = of_readers[(of_readers != UNREAD).all(axis=1)]
    return ConsensusSummary(
        rule=rule,
        readers=tuple(readers),
        num_patients=len(outcomes),
        num_by_rule=ways.count("by_rule"),
        num_adjudicated=ways.count("adjudicated"),
        num_pending=ways.count("pending"),
        num_unread=ways.count("unread"),
        patients_per_grade={name: grades.count(name) for name in GRADES},
        fleiss_kappa=fleiss_kappa(complete),
        fleiss_num_patients=len(complete),
        pairwise_kappa={
            f"{one}-{other}": _kappa(labels, one, other) for one, other in combinations(readers, 2)
        },
        repeat_kappa={
            f"{reader}-{reader}{_REPEAT}": _kappa(labels, reader, reader + _REPEAT)
            for reader in readers
            if reader + _REPEAT in labels
        },
        adjudicate_path=str(adjudicate_path),
        joined_by=joined_by,
    )


def read_settled(adjudicate_path: Path, grade_map: dict[str, str]) -> dict[str, dict[str, str]]:
    """What the team has settled so far.

    Returns:
        patient_id -> row of `adjudicate.csv`, where `adjudicated` is filled.

    Raises:
        ValueError: if the file is no such table, holds an unknown grade, or two for one patient.
    """
    if not adjudicate_path.is_file():
        return {}
    table = read_spreadsheet(adjudicate_path)
    missing = {"patient_id", "adjudicated"} - set(table.columns)
    if missing:
        raise ValueError(
            f"{adjudicate_path.name}: expected the columns patient_id and adjudicated. "
            f"Received: {', '.join(table.columns.drop(['row', 'fault']))}."
        )
    names = read_grades(adjudicate_path.name, table["adjudicated"], grade_map)
    unknown = table.loc[table["adjudicated"].map(names).isna()]
    if len(unknown):
        raise ValueError(
            f"{adjudicate_path.name}: expected adjudicated empty or one of {', '.join(GRADES)}. "
            f"Received: {unknown['adjudicated'].iloc[0]!r} at row {unknown['row'].iloc[0]}."
        )
    table["adjudicated"] = table["adjudicated"].map(names)
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
    write_spreadsheet(pd.DataFrame(rows, columns=columns), adjudicate_path)


def fleiss_kappa(labels: np.ndarray) -> float | None:
    """Agreement of several readers beyond chance (Fleiss 1971, doi 10.1037/h0031619).

    Args:
        labels: `(num_patients, num_readers)` int, 0 to 3; every reader graded every patient.

    Returns:
        kappa, at most 1; None with no patients, one reader, or a single grade throughout.
    """
    num_patients, num_readers = labels.shape
    if not num_patients or num_readers < 2:
        return None
    counts = (labels[:, :, None] == np.arange(len(GRADES))).sum(axis=1)
    observed = ((counts**2).sum(axis=1) - num_readers) / (num_readers * (num_readers - 1))
    expected = float(((counts.sum(axis=0) / counts.sum()) ** 2).sum())
    return (float(observed.mean()) - expected) / (1 - expected) if expected < 1 else None


def weighted_kappa(one: np.ndarray, other: np.ndarray) -> KappaInterval:
    """Quadratic-weighted kappa of two readers (Cohen 1968, doi 10.1037/h0026256).

    Args:
        one, other: `(num_patients,)` int, 0 to 3; one grade per patient and reader.
    """
    num = len(one)
    if not num:
        return KappaInterval(None, None, None, 0)
    cells = len(GRADES) ** 2
    table = np.bincount(one * len(GRADES) + other, minlength=cells)
    # Drawing patients with replacement is drawing cells of their joint table.
    draws = np.random.default_rng(0).multinomial(num, table / num, size=2000)
    estimates = kappas(draws.reshape(-1, len(GRADES), len(GRADES)), 2)
    estimate = float(kappas(table.reshape(1, len(GRADES), len(GRADES)), 2)[0])
    if np.isnan(estimate):
        return KappaInterval(None, None, None, num)
    low, high = np.nanpercentile(estimates, [2.5, 97.5])
    return KappaInterval(estimate, float(low), float(high), num)
