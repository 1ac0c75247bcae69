"""How much the score of one patient differs from frame to frame.

The number is the expected grade, the sum of grade (0 to 3) times probability. Terms after Bland and
Altman 1999 (doi 10.1177/096228029900800204) and the QIBA guidance on repeatability (Raunig et al.
2015, doi 10.1177/0962280214537344). Frames of one cine loop are nearly the same picture: what they
show is the least the score can vary, not how it varies between visits or operators.
"""

from typing import Any

import numpy as np
import pandas as pd

from steatosis_tf.evaluation.intervals import DEFAULT_RESAMPLES, bca_acceleration, make_entry
from steatosis_tf.evaluation.resampling import bootstrap_weights, jackknife_weights
from steatosis_tf.grades import GRADES, SCORE_COLUMNS


def repeatability(frame_scores: pd.DataFrame) -> dict[str, Any]:
    """Within-patient variation of the expected grade over the frames of each patient.

    Args:
        frame_scores: one row per frame: `patient_id, p_normal .. p_severe`; a reference grade is
            not needed.

    Returns:
        `num_patients` (with two frames or more), `num_frames` (of those), `num_single` (patients
        with one frame, left out); `within_sd` (grades; root of the mean within-patient variance,
        each variance weighted by its degrees of freedom) and `within_sd_interval` [low, high], its
        95 % BCa bootstrap interval over patients, or None; `limits_of_agreement` [low, high] in
        grades, within which 95 % of differences between two frames of a patient are expected
        (+- 1.96 sqrt(2) within_sd, bias 0 because frames have no order); `coefficient`, the upper
        limit; `between_sd` (grades) and `icc`, the one-way intraclass correlation ICC(1,1);
        `mixed_share`, the share of patients whose frames are not all given one grade; `notes`,
        one sentence per number that is None.

    Raises:
        ValueError: if a column is missing or a probability is not finite.
    """
    missing = [name for name in ("patient_id", *SCORE_COLUMNS) if name not in frame_scores.columns]
    if missing:
        raise ValueError(
            f"Expected frame scores with patient_id and probabilities. Received: no "
            f"{', '.join(missing)}."
        )
    scores = frame_scores[list(SCORE_COLUMNS)].to_numpy(np.float64)
    if not np.isfinite(scores).all():
        raise ValueError("Expected finite probabilities. Received: some are not.")
    rows = pd.DataFrame(
        {
            "patient_id": frame_scores["patient_id"].to_numpy(),
            "expected": scores @ np.arange(len(GRADES)),
            "predicted": scores.argmax(axis=1),
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
    entry = make_entry(value, replicates, acceleration, 0.95, "bca")
    return None if entry["low"] is None else [entry["low"], entry["high"]]
