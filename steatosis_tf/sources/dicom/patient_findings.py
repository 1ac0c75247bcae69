"""Patients whose identity a person should look at before the cohort is split."""

from collections.abc import Callable, Hashable, Iterator, Sequence

from steatosis_tf.sources.dicom.scan import Scan
from steatosis_tf.sources.pseudonym import normal_patient_id

FINDING_COLUMNS = ("finding", "patient_ids", "num_files", "what_to_do")

_ACTIONS = {
    "one id in several spellings": "merged into one patient; nothing to do if that is right",
    "one id with several names or birth dates": (
        "kept as one patient; if these are two people, correct the id in the source"
    ),
    "one name and birth date under several ids": (
        "kept apart; if this is one person, give one id in the source, or the splits leak"
    ),
    "ids that differ by leading zeros only": (
        "kept apart; if this is one person, give one id in the source, or the splits leak"
    ),
    "one study under several patients": "kept apart; correct the patient id in the source",
}


def patient_findings(scans: Sequence[Scan]) -> list[dict[str, object]]:
    """Rows of `patient_findings.csv`: pseudonyms only, in a fixed order.

    Two spellings of a PatientID (case, blanks, full-width digits) are one patient already;
    everything less certain is reported and left to a person.
    """
    known = [scan for scan in scans if scan.header is not None]
    rows: list[dict[str, object]] = []
    for finding, group_by, differ_by in (
        ("one id in several spellings", _patient, _spelling),
        ("one id with several names or birth dates", _patient, _person),
        ("one name and birth date under several ids", _person, _patient),
        ("ids that differ by leading zeros only", _id_without_zeros, _patient),
        ("one study under several patients", _study, _patient),
    ):
        for group in _differing(known, group_by, differ_by):
            rows.append(
                {
                    "finding": finding,
                    "patient_ids": " ".join(sorted({scan.patient_id for scan in group})),
                    "num_files": len(group),
                    "what_to_do": _ACTIONS[finding],
                }
            )
    return sorted(rows, key=lambda row: (str(row["finding"]), str(row["patient_ids"])))


def _differing(
    scans: Sequence[Scan],
    group_by: Callable[[Scan], Hashable],
    differ_by: Callable[[Scan], Hashable],
) -> Iterator[list[Scan]]:
    """Groups of equal `group_by` in which `differ_by` has more than one value; "" is no value."""
    groups: dict[Hashable, list[Scan]] = {}
    for scan in scans:
        if group_by(scan) and differ_by(scan):
            groups.setdefault(group_by(scan), []).append(scan)
    for group in groups.values():
        if len({differ_by(scan) for scan in group}) > 1:
            yield group


def _patient(scan: Scan) -> Hashable:
    return scan.patient_id


def _study(scan: Scan) -> Hashable:
    return scan.study_id


def _spelling(scan: Scan) -> Hashable:
    return "" if scan.header is None else scan.header.patient_id


def _person(scan: Scan) -> Hashable:
    """Name words and birth date; "" unless both are known, since names alone repeat."""
    header = scan.header
    if header is None or not header.name or not header.birth_date:
        return ""
    return header.name, header.birth_date


def _id_without_zeros(scan: Scan) -> Hashable:
    return "" if scan.header is None else normal_patient_id(scan.header.patient_id).lstrip("0")
