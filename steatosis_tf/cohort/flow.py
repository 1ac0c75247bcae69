"""Who was found, who was left out and why, who trains and who tests, as counts.

The numbers of a CONSORT / STARD flow diagram; `flow_figure.py` draws them.
"""

import re
from dataclasses import dataclass

import pandas as pd

from steatosis_tf.cohort.splits import SPLITS, Partition
from steatosis_tf.grades import GRADES


@dataclass(frozen=True)
class Count:
    """Patients and frames of one box, or of one line in it."""

    name: str
    num_patients: int
    num_frames: int


@dataclass(frozen=True)
class Part:
    """One box at the foot of the diagram, with a line per grade."""

    total: Count
    per_grade: tuple[Count, ...]


@dataclass(frozen=True)
class Flow:
    """All boxes, from the top down. What enters a box leaves it: the counts add up in frames; a
    patient is counted wherever one of the patient's frames is."""

    found: Count
    rejected: tuple[Count, ...]
    in_manifest: Count
    left_aside: tuple[Count, ...]
    analysed: Count
    parts: tuple[Part, ...]
    simulated: bool


def count_flow(
    frame_table: pd.DataFrame, rejected: pd.DataFrame, partitions: list[Partition]
) -> Flow:
    """Count patients and frames on their way through a study.

    Args:
        frame_table: manifest; with ROI columns, frames without a ROI are left aside.
        rejected: `rejected.csv` beside the manifest: `patient_id, reason`, one row per frame, or
            per file that an ingest rejected whole.
        partitions: the split. With several, the foot says how often each patient is tested.

    Raises:
        ValueError: if `rejected` lacks a column, or there is no partition.
    """
    missing = {"patient_id", "reason"} - set(rejected.columns)
    if missing or not partitions:
        raise ValueError(
            "Expected rejected.csv with patient_id and reason, and at least one partition. "
            f"Received: columns {', '.join(rejected.columns)}; {len(partitions)} partitions."
        )
    everyone = pd.concat([frame_table[["patient_id"]], rejected[["patient_id"]]])
    reasons = rejected["reason"].map(short_reason)
    aside = _reasons_to_leave_aside(frame_table, partitions)
    analysed = frame_table.loc[aside == ""]
    return Flow(
        found=_count("Found", everyone),
        rejected=_counts(rejected, reasons),
        in_manifest=_count("In the manifest", frame_table),
        left_aside=_counts(frame_table.loc[aside != ""], aside[aside != ""]),
        analysed=_count("Analysed", analysed),
        parts=_parts(analysed, partitions),
        simulated="simulated" in frame_table.columns
        and bool((frame_table["simulated"].astype(str).str.lower() == "true").any()),
    )


def kinds_of(rejected: pd.DataFrame) -> pd.Series:
    """The kind of each rejection, so that rows can be counted."""
    return rejected["reason"].map(short_reason)


def short_reason(reason: str) -> str:
    """The kind of a fault without the particulars of its row, so that rows can be counted."""
    first = reason.split(";")[0]
    first = re.sub(r"'[^']*'", "", first)
    first = re.split(r"[,:(]|\. | which | at row | expected (?!8-bit)", first)[0]
    first = re.sub(rf"\b({'|'.join(GRADES)})\b|(?<!to )\b\d+(\.\d+)?\b(?!-bit)(?! to )", "", first)
    return re.sub(r"\s+", " ", first).strip(" .") or reason


def _reasons_to_leave_aside(frame_table: pd.DataFrame, partitions: list[Partition]) -> pd.Series:
    reasons = pd.Series("", index=frame_table.index)
    used = frozenset[str]().union(*(getattr(p, split) for p in partitions for split in SPLITS))
    reasons[~frame_table["patient_id"].isin(used)] = "in no part of the split"
    if "roi_height" in frame_table.columns:
        reasons[frame_table["roi_height"].isna()] = "no region of interest"
    reasons[frame_table["grade"] == ""] = "no grade"
    return reasons


def _parts(analysed: pd.DataFrame, partitions: list[Partition]) -> tuple[Part, ...]:
    if len(partitions) == 1:
        return tuple(
            _part(split.capitalize(), analysed, getattr(partitions[0], split)) for split in SPLITS
        )
    num_repeats = len({partition.repeat for partition in partitions})
    times = "once" if num_repeats == 1 else f"{num_repeats} times"
    tested = frozenset[str]().union(*(partition.test for partition in partitions))
    name = f"Tested {times} each, in {len(partitions) // num_repeats} folds"
    parts = [_part(name, analysed, tested)]
    never = frozenset(analysed["patient_id"]) - tested
    if never:
        parts.append(_part("Trained on only", analysed, never))
    return tuple(parts)


def _part(name: str, analysed: pd.DataFrame, patients: frozenset[str]) -> Part:
    inside = analysed.loc[analysed["patient_id"].isin(patients)]
    return Part(
        _count(name, inside),
        tuple(_count(grade, inside.loc[inside["grade"] == grade]) for grade in GRADES),
    )


def _counts(rows: pd.DataFrame, reasons: pd.Series) -> tuple[Count, ...]:
    counts = [_count(str(reason), group) for reason, group in rows.groupby(reasons)]
    return tuple(sorted(counts, key=lambda count: (-count.num_frames, count.name)))


def _count(name: str, rows: pd.DataFrame) -> Count:
    known = rows.loc[rows["patient_id"].fillna("") != "", "patient_id"]
    return Count(name, int(known.nunique()), len(rows))
