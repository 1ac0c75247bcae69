"""Nothing is trained while a patient, or a copy of a frame, stands on two sides of a split.

Called before records are written, whichever verb or experiment asked for them. Every finding is
listed at once; a repair is only made when it is asked for (`merge_patients`, `drop_copies`)."""

import sys
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from steatosis_tf.cohort.manifest import MARKS_COLUMN
from steatosis_tf.cohort.near_duplicates import HASH_NAME, NEAR_DISTANCE, hash_frames, near_pairs
from steatosis_tf.cohort.partition import SPLITS, Partition
from steatosis_tf.cohort.splits import days_of
from steatosis_tf.sources.pseudonym import spelled_alike
from steatosis_tf.sources.rejection import Rejection

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

#: What is looked for, in the order it is reported.
KINDS = {
    "patient_in_two_splits": "one patient in two splits",
    "patient_under_two_spellings": "one patient under two spellings, in different splits",
    "same_pixels": "the same pixels under two patients in different splits",
    "near_duplicate": "a near-duplicate under two patients in different splits",
    "two_grades": "the same pixels with two grades",
    "date_order": "a frame to train on that is not older than those to test on",
}


_NUM_NAMED = 10


@dataclass(frozen=True)
class Finding:
    """One leak. `frame_pairs` are the frame_ids that give it away, if frames do."""

    kind: str
    text: str
    patients: tuple[str, ...]
    frame_pairs: tuple[tuple[str, str], ...] = ()


def leak_report(findings: list[Finding]) -> str:
    """All findings as text, grouped by kind, with what can be done."""
    lines = [f"Expected no leak between splits. Received: findings={len(findings)}."]
    for kind, title in KINDS.items():
        texts = [finding.text for finding in findings if finding.kind == kind]
        if texts:
            lines += [f"{title}: {len(texts)}", *(f"  {text}" for text in texts)]
    lines.append(
        "Correct the label table; or repair the manifest: merge patients that are one, or drop "
        "copies (--merge-patients, --drop-copies), and split again."
    )
    return "\n".join(lines)


def marked_frames(frame_table: pd.DataFrame) -> list[str]:
    """`frame_id` of the frames that have text or other marks inside the sector.

    They are painted out of every ROI, but a finder misses some, and a reader's grade may be among
    them. So the check warns, and a person looks.
    """
    if MARKS_COLUMN not in frame_table.columns:
        return []
    return frame_table.loc[frame_table[MARKS_COLUMN] > 0, "frame_id"].tolist()


def frame_warnings(frame_table: pd.DataFrame) -> str:
    """The warnings about `marked_frames`, frames not looked at, and graded ones without ROI; ""."""
    marked = marked_frames(frame_table)
    texts = []
    graded = frame_table.loc[frame_table["grade"] != ""]
    if "roi_height" in graded.columns and (without := graded["roi_height"].isna()).any():
        lost = sorted(set(graded["patient_id"]) - set(graded.loc[~without, "patient_id"]))
        named = f", patient_id={', '.join(lost[:_NUM_NAMED])}" * bool(lost)
        texts.append(
            f"warning: left out, since there is no ROI: frames={without.sum()}, and with them all "
            f"of patients={len(lost)}{named}. The column roi_reason says why"
        )
    if marked:
        more = f" and {len(marked) - _NUM_NAMED} more" if len(marked) > _NUM_NAMED else ""
        texts.append(
            f"warning: text or other marks inside the sector: frames={len(marked)}, frame_id="
            f"{', '.join(marked[:_NUM_NAMED])}{more}. They are painted out of the ROI. Look at "
            "these frames: a grade typed in that was missed would be learned"
        )
    num_unknown = len(frame_table)
    if MARKS_COLUMN in frame_table.columns:
        num_unknown = int(frame_table[MARKS_COLUMN].isna().sum())
    if num_unknown:
        texts.append(
            f"warning: not looked for marks inside the sector: frames={num_unknown}. "
            "`steatosis roi MANIFEST_CSV --again` looks where the ROI is no person's"
        )
    return "\n".join(texts)


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


def pass_check(
    frame_table: pd.DataFrame, partitions: list[Partition], findings: list[Finding]
) -> dict[str, Any]:
    """Refuse a study with leaks; marks inside the sector are none and are named on stderr.

    Args:
        frame_table, partitions: as of `check_leaks`.
        findings: of `check_leaks`.

    Returns:
        what was checked, for `leak_gate.json`.

    Raises:
        ValueError: that lists all findings and the ways to repair them.
    """
    if findings:
        raise ValueError(leak_report(findings))
    if warning := frame_warnings(frame_table):
        print(warning, file=sys.stderr)
    return {
        "passed": True,
        "num_frames": len(frame_table),
        "num_patients": int(frame_table["patient_id"].nunique()),
        "num_partitions": len(partitions),
        "perceptual_hash": HASH_NAME,
        "near_distance_bits": NEAR_DISTANCE,
        "frames_with_marks": marked_frames(frame_table),
        "num_findings": dict.fromkeys(KINDS, 0),
        "findings": [],
    }


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
    findings = []
    for group in spelled_alike(frame_table["patient_id"]):
        for one, other in combinations(group, 2):
            if where := sides.apart(one, other):
                text = f"patient_id={one!a} and {other!a} in {where}"
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
    found = near_pairs(hashes, patients)
    frames = frame_table["frame_id"].to_numpy()
    digests = frame_table["pixels_sha256"].to_numpy()
    pairs: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for row, later, _ in found:
        if digests[row] == digests[later]:
            continue  # reported as the same pixels
        one, other = sorted([(patients[row], frames[row]), (patients[later], frames[later])])
        pairs.setdefault((one[0], other[0]), []).append((one[1], other[1]))
    return _between_patients("near_duplicate", "pairs of frames that look alike", pairs, sides)


def _between_patients(
    kind: str, what: str, pairs: dict[tuple[str, str], list[tuple[str, str]]], sides: _Sides
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


#: Findings that say two patients are one person.
ONE_PERSON = ("patient_under_two_spellings", "same_pixels", "near_duplicate")

#: Findings whose frames are copies of each other.
COPIES = ("same_pixels", "near_duplicate")


def merge_patients(
    frame_table: pd.DataFrame, findings: list[Finding]
) -> tuple[pd.DataFrame, list[str]]:
    """Give all frames of patients that are one person one `patient_id`, the first by name.

    Patients with the same pixels under two grades are merged with `drop_copies`, not here: the
    grade has to be settled first.

    Returns:
        the repaired manifest without its `split` column, which no longer holds; one line per
        merger.

    Raises:
        ValueError: if patients to merge have different grades. The text lists all of them.
    """
    leader: dict[str, str] = {}

    def find(patient: str) -> str:
        while leader.get(patient, patient) != patient:
            patient = leader[patient]
        return patient

    for finding in findings:
        if finding.kind in ONE_PERSON:
            for other in finding.patients[1:]:
                first, second = sorted((find(finding.patients[0]), find(other)))
                leader[second] = first
    renamed = {patient: find(patient) for patient in leader if find(patient) != patient}
    table = frame_table.drop(columns="split", errors="ignore").copy()
    table["patient_id"] = table["patient_id"].replace(renamed)

    merged = table.loc[table["patient_id"].isin(renamed.values()) & (table["grade"] != "")]
    grades = merged.groupby("patient_id")["grade"].unique()
    contested = grades[grades.map(len) > 1]
    joined = {
        patient: sorted(old for old, new in renamed.items() if new == patient)
        for patient in sorted(set(renamed.values()))
    }
    if len(contested):
        raise ValueError(
            "Expected one grade for patients that are to be merged. Received:\n"
            + "\n".join(
                f"  {' and '.join([str(patient), *joined[str(patient)]])}: {' and '.join(found)}"
                for patient, found in contested.items()
            )
            + "\nSettle the grade in the label table, or drop the copies instead."
        )
    return table, [
        f"merged patient_id={' and '.join(names)} into {patient}"
        for patient, names in joined.items()
    ]


def drop_copies(
    frame_table: pd.DataFrame, findings: list[Finding]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Take out frames that are copies of another patient's frames.

    Of each pair the frame of the first patient by name stays. Where the same pixels carry two
    grades none stays, because nobody can tell which is right. A patient whose frames were all
    copies is gone.

    Returns:
        the repaired manifest without its `split` column; the dropped rows, `path, patient_id,
        reason, code`, for what is rejected.
    """
    reasons: dict[str, Rejection] = {}
    for finding in findings:
        if finding.kind == "two_grades":
            for frame in (frame for pair in finding.frame_pairs for frame in pair):
                reasons[frame] = Rejection("contested_copy")
    for finding in findings:
        if finding.kind in COPIES:
            for kept, copy in finding.frame_pairs:
                # A frame that is gone itself cannot be the reason to drop its copies.
                if kept not in reasons:
                    reasons.setdefault(copy, Rejection("copied_frame", kept=kept))
    is_dropped = frame_table["frame_id"].isin(list(reasons))
    dropped = frame_table.loc[is_dropped, ["path", "patient_id"]].assign(
        reason=frame_table["frame_id"].map({frame: str(why) for frame, why in reasons.items()}),
        code=frame_table["frame_id"].map({frame: why.code for frame, why in reasons.items()}),
    )
    table = frame_table.loc[~is_dropped].drop(columns="split", errors="ignore")
    return table.reset_index(drop=True), dropped
