"""The test frames again, disturbed at stated strengths: which metric gives way, and when."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from steatosis_tf.evaluation.intervals import bootstrap_intervals
from steatosis_tf.evaluation.perturbations import PERTURBATIONS, Perturbation
from steatosis_tf.evaluation.scores import patient_scores
from steatosis_tf.grades import GRADES, SCORE_COLUMNS

#: Frames disturbed and scored at once; 256 of 224 x 224 px are 13 MB.
_CHUNK = 256

#: Shown metrics: column name -> name in `intervals.bootstrap_intervals`.
METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced_accuracy",
    "quadratic_kappa": "ordinal.quadratic_kappa",
    "mean_absolute_error": "ordinal.mean_absolute_error",
    "auc_at_least_mild": "ordinal.auc_at_least_mild",
}

# Down and right, per px of strength.
_SHIFTS = {"roi_shift_depth": (1, 0), "roi_shift_lateral": (0, 1)}


def robustness_curves(
    predict: Callable[[np.ndarray], np.ndarray],
    rois: np.ndarray,
    labels: np.ndarray,
    patient_ids: np.ndarray,
    *,
    perturbations: Mapping[str, Perturbation] = PERTURBATIONS,
    shifted: Callable[[float, float], np.ndarray] | None = None,
    rule: str = "mean",
    num_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Patient-level metrics of a model against the strength of each perturbation.

    Args:
        predict: `(n, height, width, 1)` uint8 -> `(n, 4)` probabilities. Called on chunks of
            at most 256 frames, once per perturbation and strength and once undisturbed.
        rois: `(n, height, width, 1)` uint8 test frames, 0 outside the sector.
        labels: `(n,)` int 0 to 3.
        patient_ids: `(n,)`; the frames of a patient are joined by `rule`.
        perturbations: name -> `Perturbation`.
        shifted: ROI frames with their boxes moved by so many px of the ROI (down, right), cropped
            anew from the full frames. If None, `roi_shift_*` moves the stored ROI and mirrors what
            lies beyond its edge.
        rule: of `scores.patient_scores`.
        num_resamples: bootstrap resamples of each interval.
        seed: of the random perturbations and of the bootstrap.

    Returns:
        Long table `perturbation, strength, unit, metric, value, low, high, num_patients, reason`;
        each perturbation also has a row of strength 0. Beside the metrics of `METRICS`, with their
        95 % intervals over patients, there are two that need no reference: `mean_shift`, the mean
        change of a patient's expected grade (in grades, above 0 is towards severe), and
        `changed_share`, the share of patients whose grade changes. An undefined value or interval
        is None, and `reason` says why.

    Raises:
        ValueError: if lengths differ, a label is unknown, or `predict` gives a wrong shape.
    """
    _check(rois, labels, patient_ids)
    frames = pd.DataFrame({"patient_id": np.asarray(patient_ids).astype(str)})
    frames["frame_id"] = [f"{row:08d}" for row in range(len(frames))]
    frames["grade"] = [GRADES[int(label)] for label in labels]
    undisturbed = _patients(frames, _scores(predict, rois), rule)
    baseline = _measured(undisturbed, undisturbed, num_resamples, seed)
    rows: list[dict[str, Any]] = []
    for name, perturbation in perturbations.items():
        for strength in sorted({0.0, *map(float, perturbation.strengths)}):
            measured = baseline
            if strength:
                if shifted is not None and name in _SHIFTS:
                    down, right = _SHIFTS[name]
                    scores = _scores(predict, shifted(down * strength, right * strength))
                else:
                    scores = _scores(predict, rois, (perturbation, strength, seed))
                patients = _patients(frames, scores, rule)
                measured = _measured(patients, undisturbed, num_resamples, seed)
            place = {"perturbation": name, "strength": strength, "unit": perturbation.unit}
            rows.extend(place | row for row in measured)
    return pd.DataFrame(rows)


def _check(rois: np.ndarray, labels: np.ndarray, patient_ids: np.ndarray) -> None:
    if rois.ndim != 4 or rois.shape[3] != 1 or rois.dtype != np.uint8 or not len(rois):
        raise ValueError(
            "Expected ROI frames (n, height, width, 1) uint8, at least one. "
            f"Received: shape={rois.shape} dtype={rois.dtype}."
        )
    if len(labels) != len(rois) or len(patient_ids) != len(rois):
        raise ValueError(
            "Expected one label and one patient_id per frame. Received: "
            f"frames={len(rois)} labels={len(labels)} patient_ids={len(patient_ids)}."
        )
    unknown = ~np.isin(np.asarray(labels, np.float64), range(len(GRADES)))
    if unknown.any():
        raise ValueError(
            f"Expected labels 0 to 3. Received: {unknown.sum()} others, first at frame "
            f"{int(unknown.argmax())}. Leave frames of unknown grade out before."
        )


def _scores(
    predict: Callable[[np.ndarray], np.ndarray],
    rois: np.ndarray,
    disturb: tuple[Perturbation, float, int] | None = None,
) -> np.ndarray:
    parts = []
    for start in range(0, len(rois), _CHUNK):
        chunk = rois[start : start + _CHUNK]
        if disturb is not None:
            perturbation, strength, seed = disturb
            chunk = perturbation.apply(chunk, strength, seed)
        part = np.asarray(predict(chunk), np.float64)
        if part.shape != (len(chunk), len(GRADES)):
            raise ValueError(
                f"Expected predict to return ({len(chunk)}, {len(GRADES)}) probabilities. "
                f"Received: shape={part.shape}."
            )
        parts.append(part)
    return np.concatenate(parts)


def _patients(frames: pd.DataFrame, scores: np.ndarray, rule: str) -> pd.DataFrame:
    table = frames.copy()
    table[list(SCORE_COLUMNS)] = scores
    return patient_scores(table, rule)


def _measured(
    patients: pd.DataFrame, undisturbed: pd.DataFrame, num_resamples: int, seed: int
) -> list[dict[str, Any]]:
    places = np.arange(len(GRADES))
    shift = (patients[list(SCORE_COLUMNS)].to_numpy() @ places) - (
        undisturbed[list(SCORE_COLUMNS)].to_numpy() @ places
    )
    changed = (patients["predicted"] != undisturbed["predicted"]).mean()
    rows: list[dict[str, Any]] = [
        {"metric": metric, "value": float(value), "low": None, "high": None, "reason": ""}
        for metric, value in (("mean_shift", shift.mean()), ("changed_share", changed))
    ]
    found = bootstrap_intervals(patients, num_resamples=num_resamples, seed=seed)
    for metric, name in METRICS.items():
        entry = {key: found[name][key] for key in ("value", "low", "high")}
        rows.append({"metric": metric, **entry, "reason": found[name]["note"] or ""})
    return [row | {"num_patients": len(patients)} for row in rows]
