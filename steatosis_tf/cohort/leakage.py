"""Nothing is trained while a patient, or a copy of a frame, stands on two sides of a split.

Called before records are written, whichever verb or experiment asked for them. Every finding is
listed at once; a repair is only made when it is asked for (`leak_repair.py`).
"""

import sys
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from steatosis_tf.cohort.group_splits import days_of
from steatosis_tf.cohort.leak_findings import (
    Finding,
    gate_summary,
    leak_report,
    marks_warning,
)
from steatosis_tf.cohort.near_duplicates import hash_frames, near_pairs
from steatosis_tf.cohort.spelling import spelling_key
from steatosis_tf.cohort.splits import SPLITS, Partition

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions


def check_leaks(
    frame_table: pd.DataFrame,
    partitions: list[Partition],
    manifest_path: str | Path,
    *,
    time_column: str = "",
    cache_path: str | Path | None = None,
    options: "PipelineOptions | None" = None,
) -> list[Finding]:
    """Look for every way in which the test part could know the training part.

    Args:
        frame_table: manifest, with `pixels_sha256`.
        partitions: all partitions of the split.
        manifest_path: where the manifest lies, to find its frames.
        time_column: date column of a temporal split, whose order is then checked.
        cache_path: keeps perceptual hashes; see `hash_frames`.
        options: Beam runner whose workers hash; see `hash_frames`.

    Returns:
        findings in the order of `KINDS`; empty if there is no leak.

    Raises:
        ValueError: if frames are unreadable or changed, or `time_column` holds no dates.
    """
    sides = _Sides(partitions)
    hashes = hash_frames(frame_table, manifest_path, cache_path, options)
    return [
        *_patients_in_two_splits(frame_table, partitions),
        *_patients_under_two_spellings(frame_table, sides),
        *_same_pixels(frame_table, sides),
        *_near_duplicates(frame_table, hashes, sides),
        *_two_grades(frame_table),
        *(_date_order(frame_table, partitions, time_column) if time_column else []),
    ]


def refuse_leaks(
    frame_table: pd.DataFrame,
    partitions: list[Partition],
    manifest_path: str | Path,
    *,
    time_column: str = "",
    cache_path: str | Path | None = None,
    options: "PipelineOptions | None" = None,
) -> dict[str, Any]:
    """The hard gate: `check_leaks`, and an error if it finds anything.

    Marks inside the sector are no leak between splits: they are named on stderr.

    Returns:
        what was checked, for `leak_gate.json`.

    Raises:
        ValueError: that lists all findings and the ways to repair them.
    """
    findings = check_leaks(
        frame_table,
        partitions,
        manifest_path,
        time_column=time_column,
        cache_path=cache_path,
        options=options,
    )
    if findings:
        raise ValueError(leak_report(findings))
    if warning := marks_warning(frame_table):
        print(warning, file=sys.stderr)
    return gate_summary(frame_table, partitions, findings)


class _Sides:
    """On which side each patient stands in each partition."""

    def __init__(self, partitions: list[Partition]) -> None:
        self._partitions = partitions

    def apart(self, one: str, other: str) -> str:
        """Where two patients are in different splits, as text; "" if nowhere."""
        places = []
        for partition in self._partitions:
            first, second = _side(partition, one), _side(partition, other)
            if first and second and first != second:
                places.append(f"{first} and {second} ({partition.name}")
        if not places:
            return ""
        more = f" and {len(places) - 1} more partitions" if len(places) > 1 else ""
        return f"{places[0]}{more})"


def _side(partition: Partition, patient: str) -> str:
    return next((split for split in SPLITS if patient in getattr(partition, split)), "")


def _patients_in_two_splits(
    frame_table: pd.DataFrame, partitions: list[Partition]
) -> list[Finding]:
    places: dict[tuple[str, str, str], list[str]] = {}
    for partition in partitions:
        for one, other in combinations(SPLITS, 2):
            for patient in getattr(partition, one) & getattr(partition, other):
                places.setdefault((patient, one, other), []).append(partition.name)
    if "split" in frame_table.columns:
        used = frame_table.loc[frame_table["split"].isin(SPLITS), ["patient_id", "split"]]
        for patient, group in used.drop_duplicates().groupby("patient_id"):
            for one, other in combinations(sorted(group["split"], key=SPLITS.index), 2):
                places.setdefault((str(patient), one, other), []).append("split column")
    return [
        Finding(
            "patient_in_two_splits",
            f"patient_id={patient} in {one} and {other} ({', '.join(names[:3])}"
            + (f" and {len(names) - 3} more)" if len(names) > 3 else ")"),
            (patient,),
        )
        for (patient, one, other), names in sorted(places.items())
    ]


def _patients_under_two_spellings(frame_table: pd.DataFrame, sides: _Sides) -> list[Finding]:
    patients = pd.Series(sorted(frame_table["patient_id"].unique()), dtype=str)
    findings = []
    for _, group in patients.groupby(patients.map(spelling_key)):
        for one, other in combinations(group, 2):
            if where := sides.apart(one, other):
                text = f"patient_id={one!r} and {other!r} in {where}"
                findings.append(Finding("patient_under_two_spellings", text, (one, other)))
    return findings


def _same_pixels(frame_table: pd.DataFrame, sides: _Sides) -> list[Finding]:
    copies = frame_table.loc[frame_table["pixels_sha256"].duplicated(keep=False)]
    pairs: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for _, group in copies.groupby("pixels_sha256", sort=False):
        owners = group.sort_values(["patient_id", "frame_id"]).groupby("patient_id")["frame_id"]
        frames = {str(patient): list(ids) for patient, ids in owners}
        patients = list(frames)
        # With the first and with the next: enough to find any two apart, even if a splash screen
        # stands under every patient.
        for number, other in enumerate(patients[1:]):
            for one in {patients[0], patients[number]}:
                found = pairs.setdefault((one, other), [])
                found += [(frames[one][0], copy) for copy in frames[other]]
    return _between_patients("same_pixels", "frames with the same pixels", pairs, sides)


def _near_duplicates(frame_table: pd.DataFrame, hashes: np.ndarray, sides: _Sides) -> list[Finding]:
    patients = frame_table["patient_id"].to_numpy()
    frames = frame_table["frame_id"].to_numpy()
    digests = frame_table["pixels_sha256"].to_numpy()
    pairs: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for row, later, _ in near_pairs(hashes, patients):
        if digests[row] == digests[later]:
            continue  # reported as the same pixels
        one, other = sorted([(patients[row], frames[row]), (patients[later], frames[later])])
        pairs.setdefault((one[0], other[0]), []).append((one[1], other[1]))
    return _between_patients("near_duplicate", "pairs of frames that look alike", pairs, sides)


def _between_patients(
    kind: str,
    what: str,
    pairs: dict[tuple[str, str], list[tuple[str, str]]],
    sides: _Sides,
) -> list[Finding]:
    findings = []
    for (one, other), frames in sorted(pairs.items()):
        if where := sides.apart(one, other):
            text = (
                f"patient_id={one} and {other} in {where}; {what}: {len(frames)}, first "
                f"frame_id={frames[0][0]} and {frames[0][1]}"
            )
            findings.append(Finding(kind, text, (one, other), tuple(frames)))
    return findings


def _two_grades(frame_table: pd.DataFrame) -> list[Finding]:
    graded = frame_table.loc[frame_table["grade"] != ""]
    contested = graded.groupby("pixels_sha256")["grade"].transform("nunique") > 1
    findings = []
    for _, group in graded.loc[contested].groupby("pixels_sha256", sort=False):
        frames = group.drop_duplicates("grade")
        text = " and ".join(
            f"{row.grade} at frame_id={row.frame_id} of patient_id={row.patient_id}"
            for row in frames.itertuples()
        )
        ids = tuple(group["frame_id"])
        findings.append(
            Finding(
                "two_grades",
                text,
                tuple(sorted(group["patient_id"].unique())),
                tuple((ids[0], later) for later in ids[1:]),
            )
        )
    return findings


def _date_order(
    frame_table: pd.DataFrame, partitions: list[Partition], column: str
) -> list[Finding]:
    graded = frame_table.loc[frame_table["grade"] != ""]
    days = days_of(graded, column)
    findings = []
    for partition in partitions:
        inside = {
            split: days[graded["patient_id"].isin(getattr(partition, split))] for split in SPLITS
        }
        for early, late in combinations(SPLITS, 2):
            if inside[early].empty or inside[late].empty:
                continue
            wrong = graded.loc[inside[early].index[inside[early] >= inside[late].min()]]
            if len(wrong):
                text = (
                    f"{partition.name}: frames in {early} that are not older than all of {late} by "
                    f"{column}: {len(wrong)}, first frame_id={wrong['frame_id'].iloc[0]} of "
                    f"patient_id={wrong['patient_id'].iloc[0]}"
                )
                patients = tuple(sorted(wrong["patient_id"].unique()))
                findings.append(Finding("date_order", text, patients))
    return findings
