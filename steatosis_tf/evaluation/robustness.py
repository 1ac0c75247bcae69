"""The test frames again, disturbed at stated strengths: which metric gives way, and when."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from steatosis_tf.evaluation.metrics import compute_metrics
from steatosis_tf.evaluation.perturbations import PERTURBATIONS, Perturbation
from steatosis_tf.evaluation.scores import patient_scores
from steatosis_tf.grades import GRADES, SCORE_COLUMNS

#: Frames disturbed and scored at once; 256 of 224 x 224 px are 13 MB.
_CHUNK = 256

#: Shown metrics: column name -> where `compute_metrics` puts it.
METRICS = {
    "accuracy": ("accuracy",),
    "balanced_accuracy": ("balanced_accuracy",),
    "quadratic_kappa": ("ordinal", "quadratic_kappa"),
    "mean_absolute_error": ("ordinal", "mean_absolute_error"),
    "auc_at_least_mild": ("ordinal", "auc_at_least_mild"),
}


def robustness_curves(
    predict: Callable[[np.ndarray], np.ndarray],
    rois: np.ndarray,
    labels: np.ndarray,
    patient_ids: np.ndarray,
    *,
    perturbations: Mapping[str, Perturbation] = PERTURBATIONS,
    rule: str = "mean",
    seed: int = 0,
) -> pd.DataFrame:
    """Patient-level metrics of a model against the strength of each perturbation.

    Args:
        predict: `(n, 224, 224, 1)` uint8 -> `(n, 4)` probabilities. Called on chunks of at most
            256 frames, once per perturbation and strength and once undisturbed.
        rois: `(n, height, width, 1)` uint8 test frames, 0 outside the sector.
        labels: `(n,)` int 0 to 3.
        patient_ids: `(n,)`; the frames of a patient are joined by `rule`.
        perturbations: name -> `Perturbation`.
        rule: of `scores.patient_scores`.
        seed: of the random perturbations.

    Returns:
        Long table `perturbation, strength, unit, metric, value, num_patients, reason`; each
        perturbation also has a row of strength 0. Beside the metrics of `METRICS` there are two
        that need no reference: `mean_shift`, the mean change of a patient's expected grade (in
        grades, above 0 is towards severe), and `changed_share`, the share of patients whose grade
        changes. An undefined value is None, and `reason` says why.

    Raises:
        ValueError: if lengths differ, a label is unknown, or `predict` gives a wrong shape.
    """
    _check(rois, labels, patient_ids)
    frames = pd.DataFrame({"patient_id": np.asarray(patient_ids).astype(str)})
    frames["frame_id"] = [f"{row:08d}" for row in range(len(frames))]
    frames["grade"] = [GRADES[int(label)] for label in labels]
    undisturbed = _patients(frames, _scores(predict, rois), rule)
    rows: list[dict[str, Any]] = []
    for name, perturbation in perturbations.items():
        for strength in sorted({0.0, *map(float, perturbation.strengths)}):
            patients = undisturbed
            if strength:
                scores = _scores(predict, rois, (perturbation, strength, seed))
                patients = _patients(frames, scores, rule)
            place = {"perturbation": name, "strength": strength, "unit": perturbation.unit}
            rows.extend(place | row for row in _measured(patients, undisturbed))
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


def _measured(patients: pd.DataFrame, undisturbed: pd.DataFrame) -> list[dict[str, Any]]:
    scores = patients[list(SCORE_COLUMNS)].to_numpy()
    found = compute_metrics(patients["grade"].map(GRADES.index).to_numpy(), scores)
    places = np.arange(len(GRADES))
    before = undisturbed[list(SCORE_COLUMNS)].to_numpy() @ places
    values: dict[str, float | None] = {
        "mean_shift": float((scores @ places - before).mean()),
        "changed_share": float((patients["predicted"] != undisturbed["predicted"]).mean()),
    }
    for metric, path in METRICS.items():
        value: Any = found
        for key in path:
            value = value[key]
        values[metric] = value
    return [
        {
            "metric": metric,
            "value": value,
            "num_patients": len(patients),
            "reason": "" if value is not None else "; ".join(found["notes"]),
        }
        for metric, value in values.items()
    ]
