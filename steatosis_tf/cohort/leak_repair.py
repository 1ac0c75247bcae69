"""Repairs of a manifest that a person asked for, each with a list of what was done."""

import pandas as pd

from steatosis_tf.cohort.leak_findings import Finding
from steatosis_tf.cohort.rejected import Fault

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
    if len(contested):
        raise ValueError(
            "Expected one grade for patients that are to be merged. Received:\n"
            + "\n".join(
                f"  {_and([patient, *_joined(renamed, patient)])}: {_and(found)}"
                for patient, found in contested.items()
            )
            + "\nSettle the grade in the label table, or drop the copies instead."
        )
    done = [
        f"merged patient_id={_and(_joined(renamed, patient))} into {patient}"
        for patient in sorted(set(renamed.values()))
    ]
    return table, done


def drop_copies(
    frame_table: pd.DataFrame, findings: list[Finding]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Take out frames that are copies of another patient's frames.

    Of each pair the frame of the first patient by name stays. Where the same pixels carry two
    grades none stays, because nobody can tell which is right. A patient whose frames were all
    copies is gone.

    Returns:
        the repaired manifest without its `split` column; the dropped rows, `path, patient_id,
        reason, code`, for rejected.csv.
    """
    reasons: dict[str, Fault] = {}
    for finding in findings:
        if finding.kind == "two_grades":
            for frame in (frame for pair in finding.frame_pairs for frame in pair):
                reasons[frame] = Fault("contested_copy")
    for finding in findings:
        if finding.kind in COPIES:
            for kept, copy in finding.frame_pairs:
                # A frame that is gone itself cannot be the reason to drop its copies.
                if kept not in reasons:
                    reasons.setdefault(copy, Fault("copy", f"copy of frame_id={kept}"))
    is_dropped = frame_table["frame_id"].isin(list(reasons))
    dropped = frame_table.loc[is_dropped, ["path", "patient_id"]].assign(
        reason=frame_table["frame_id"].map(reasons),
        code=frame_table["frame_id"].map({frame: why.code for frame, why in reasons.items()}),
    )
    table = frame_table.loc[~is_dropped].drop(columns="split", errors="ignore")
    return table.reset_index(drop=True), dropped


def _joined(renamed: dict[str, str], patient: str) -> list[str]:
    return sorted(old for old, new in renamed.items() if new == patient)


def _and(words: list[str]) -> str:
    return " and ".join(words)
