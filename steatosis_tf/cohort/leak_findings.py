"""What the leak gate can find, and how it is told to a person and to a program."""

from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from steatosis_tf.cohort.manifest import MARKS_COLUMN
from steatosis_tf.cohort.near_duplicates import HASH_NAME, NEAR_DISTANCE
from steatosis_tf.cohort.splits import Partition

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
    them. So the gate warns, and a person looks.
    """
    if MARKS_COLUMN not in frame_table.columns:
        return []
    return frame_table.loc[frame_table[MARKS_COLUMN] > 0, "frame_id"].tolist()


def marks_warning(frame_table: pd.DataFrame) -> str:
    """The warning about `marked_frames`; "" if there are none and all frames were looked at."""
    marked = marked_frames(frame_table)
    texts = []
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


def gate_summary(
    frame_table: pd.DataFrame, partitions: list[Partition], findings: list[Finding]
) -> dict[str, Any]:
    """What was checked and found, for `leak_gate.json`."""
    return {
        "passed": not findings,
        "num_frames": len(frame_table),
        "num_patients": int(frame_table["patient_id"].nunique()),
        "num_partitions": len(partitions),
        "perceptual_hash": HASH_NAME,
        "near_distance_bits": NEAR_DISTANCE,
        "frames_with_marks": marked_frames(frame_table),
        "num_findings": {kind: sum(f.kind == kind for f in findings) for kind in KINDS},
        "findings": [asdict(finding) for finding in findings],
    }
