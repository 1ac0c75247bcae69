"""How far a score varies where nothing has changed: over a patient's frames, and over visits.

Terms after Bland and Altman 1999 (doi 10.1177/096228029900800204) and the QIBA guidance (Raunig et
al. 2015, doi 10.1177/0962280214537344). Frames of one cine loop are nearly the same picture: what
they show is the least the score can vary, not how it varies between visits or operators. Only
patients seen twice, with one grade, give a limit beyond which a difference is a change.
"""

from typing import Any

import numpy as np
import pandas as pd

from steatosis_tf.evaluation.metrics.intervals import (
    DEFAULT_RESAMPLES,
    bca_acceleration,
    make_entry,
)
from steatosis_tf.evaluation.metrics.resampling import bootstrap_weights, jackknife_weights
from steatosis_tf.evaluation.metrics.scores import named_labels
from steatosis_tf.evaluation.metrics.weighted import expected_grades
from steatosis_tf.grades import SCORE_COLUMNS

#: Fewer patients seen twice give no limit.
MIN_REPEATED = 10


def repeatability(frame_scores: pd.DataFrame) -> dict[str, Any]:
    """Within-patient variation of the expected grade over the frames of each patient.

    Args:
        frame_scores: one row per frame: `patient_id, p_normal .. p_severe`, and `decision_rule`
            where there is one; a reference grade is not needed.

    Returns:
        `num_patients` (with two frames or more), `num_frames` (of those), `num_single` (patients
        with one frame, left out); `within_sd` (grades; root of the mean within-patient variance,
        each variance weighted by its degrees of freedom) and `within_sd_interval` [low, high], its
        95 % BCa bootstrap interval over patients, or None; `limits_of_agreement` [low, high] in
        grades, within which 95 % of differences between two frames of a patient are expected
        (+- 1.96 sqrt(2) within_sd, bias 0 because frames have no order); `coefficient`, the upper
        limit; `between_sd` (grades) and `icc`, the one-way intraclass correlation ICC(1,1);
        `mixed_share`, the proportion of patients whose frames are not all given one grade; `notes`,
        one sentence per number that is None.
    """
    scores = frame_scores[list(SCORE_COLUMNS)].to_numpy(np.float64)
    rows = pd.DataFrame(
        {
            "patient_id": frame_scores["patient_id"].to_numpy(),
            "expected": expected_grades(scores),
            "predicted": named_labels(frame_scores),
        }
    )
    groups = rows.groupby("patient_id")
    sizes = groups.size()
    repeated = sizes.index[sizes >= 2]
    kept = rows[rows["patient_id"].isin(repeated)].groupby("patient_id")
    result: dict[str, Any] = {
        "num_patients": len(repeated),
        "num_frames": int(sizes[repeated].sum()),
        "num_single": int((sizes == 1).sum()),
        "notes": [],
    }
    if not len(repeated):
        result["notes"].append("No patient has two frames, so nothing can be said.")
        empty = (
            "within_sd",
            "within_sd_interval",
            "limits_of_agreement",
            "coefficient",
            "between_sd",
            "icc",
        )
        return result | dict.fromkeys((*empty, "mixed_share"))
    return result | _variation(kept, result["notes"])


def visit_repeatability(
    patient_ids: pd.Series, study_ids: pd.Series, values: np.ndarray
) -> dict[str, Any]:
    """Limit beyond which two visits of a patient differ by more than measuring anew does.

    Each visit counts by the mean of its frames. Nothing is known to have changed between visits,
    since a patient has one grade; what did change all the same makes the limit wider.

    Args:
        patient_ids: `(num_frames,)`.
        study_ids: `(num_frames,)`, the visit of each frame; "" where it is not known.
        values: `(num_frames,)` score of each frame by a model that had not seen the patient.

    Returns:
        `num_patients` (with two visits or more), `num_visits` (of those), `within_sd` and its
        interval [low, high], `coefficient`: 1.96 sqrt(2) within_sd, the repeatability limit, in
        units of the values; and `note`. None where there are fewer than `MIN_REPEATED` patients.

    Example:
        >>> patients = pd.Series([f"P{k}" for k in range(10) for _ in range(2)])
        >>> visits = pd.Series([f"V{k}" for k in range(20)])
        >>> found = visit_repeatability(patients, visits, np.tile([1.0, 3.0], 10))
        >>> round(found["within_sd"] ** 2, 6), round(found["coefficient"], 2)
        (2.0, 3.92)
    """
    rows = pd.DataFrame({"patient": patient_ids.to_numpy(), "study": study_ids.to_numpy(),
                         "value": values})  # fmt: skip
    means = rows[rows["study"] != ""].groupby(["patient", "study"])["value"].mean()
    groups = means.groupby("patient")
    counts = groups.size()
    counts = counts[counts >= 2]
    found: dict[str, Any] = {"num_patients": len(counts), "num_visits": int(counts.sum())}
    if len(counts) < MIN_REPEATED:
        note = f"{len(counts)} patients were seen twice; a limit needs {MIN_REPEATED}."
        return found | {"within_sd": None, "within_sd_interval": None, "coefficient": None,
                        "note": note}  # fmt: skip
    freedom = counts.to_numpy(np.float64) - 1
    squares = groups.var(ddof=1)[counts.index].to_numpy() * freedom
    within = float(np.sqrt(squares.sum() / freedom.sum()))
    return found | {
        "within_sd": within,
        "within_sd_interval": _within_sd_interval(squares, freedom),
        "coefficient": float(1.96 * np.sqrt(2) * within),
        "note": None,
    }


def _variation(groups: Any, notes: list[str]) -> dict[str, Any]:
    """One-way analysis of variance over patients with two frames or more."""
    counts = groups.size().to_numpy(np.float64)
    means = groups["expected"].mean().to_numpy()
    squares = groups["expected"].var(ddof=1).to_numpy() * (counts - 1)
    within = float(squares.sum() / (counts - 1).sum())
    spread = 1.96 * np.sqrt(2 * within)
    found: dict[str, Any] = {
        "within_sd": float(np.sqrt(within)),
        "within_sd_interval": _within_sd_interval(squares, counts - 1),
        "limits_of_agreement": [float(-spread), float(spread)],
        "coefficient": float(spread),
        "mixed_share": float((groups["predicted"].nunique() > 1).mean()),
        "between_sd": None,
        "icc": None,
    }
    if len(counts) < 2:
        notes.append("Variation between patients and ICC need two patients with two frames.")
        return found
    total = counts.sum()
    grand = (counts * means).sum() / total
    between_squares = float((counts * (means - grand) ** 2).sum() / (len(counts) - 1))
    # Mean group size for unequal groups (Searle 1971, one-way random effects).
    size = float((total - (counts**2).sum() / total) / (len(counts) - 1))
    between = max((between_squares - within) / size, 0.0)
    found["between_sd"] = float(np.sqrt(between))
    if between + within > 0:
        found["icc"] = float(between / (between + within))
    else:
        notes.append("ICC is undefined: all frames have the same expected grade.")
    return found


def _within_sd_interval(squares: np.ndarray, freedom: np.ndarray) -> list[float] | None:
    """Interval over patients, from each one's sum of squares and degrees of freedom."""

    def within_sd(weights: np.ndarray) -> np.ndarray:
        return np.sqrt((weights @ squares) / (weights @ freedom))

    rng = np.random.default_rng(0)
    stratum = np.zeros(len(squares), dtype=int)
    value = float(within_sd(np.ones((1, len(squares))))[0])
    left_out, names = jackknife_weights(stratum, rng)
    acceleration = bca_acceleration(within_sd(left_out), names) if len(names) else 0.0
    replicates = within_sd(bootstrap_weights(stratum, DEFAULT_RESAMPLES, rng))
    entry = make_entry(value, replicates, acceleration)
    return None if entry["low"] is None else [entry["low"], entry["high"]]
