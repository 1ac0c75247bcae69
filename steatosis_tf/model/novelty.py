"""How unlike the training data a frame is, by its network features."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_MIN_PATIENTS = 10
# Main directions of the features, and parts into which patients are split to calibrate distance.
_NUM_DIRECTIONS, _NOVELTY_FOLDS = 8, 10
# Scores end at this many times the distance at which grades end.
_UNABLE = 2.0
_TINY_SCALE = 1e-9


@dataclass(frozen=True)
class Novelty:
    """How far a frame's network features lie from those of the training patients.

    The distance is what the main directions of the training patients leave of the standardised
    features, root mean square, in units of a left-out training patient.

    Attributes:
        centre, scale: `(width,)` of the features.
        basis: `(width, k)`, orthonormal columns: the main directions.
        rest: root mean square of what they leave of left-out training patients.
        score_limit: largest distance at which a grade is given.
        unable_limit: largest distance at which a score is given.
    """

    centre: np.ndarray
    scale: np.ndarray
    basis: np.ndarray
    rest: float
    score_limit: float
    unable_limit: float

    def distance(self, features: np.ndarray) -> np.ndarray:
        """Distance `(n,)` of features `(n, width)`."""
        values = (np.asarray(features, float) - self.centre) / self.scale
        over = np.square(values).sum(axis=1) - np.square(values @ self.basis).sum(axis=1)
        return np.asarray(np.sqrt(np.maximum(over, 0.0) / values.shape[1]) / self.rest)


def fit_novelty(features: np.ndarray, patient_ids: Sequence[str]) -> Novelty:
    """Fit the distance of network features from those of training patients, with its limits.

    Grades end at the largest distance of a frame whose patient the fit had not seen; scores end at
    twice that. No picture of anything else is needed.

    Args:
        features: `(num_frames, width)`.
        patient_ids: of each frame.

    Raises:
        ValueError: if there are fewer than 10 patients.
    """
    ids, features = np.asarray(patient_ids), np.asarray(features, float)
    patients = np.unique(ids)
    if len(patients) < _MIN_PATIENTS:
        raise ValueError(
            f"Expected frames of at least {_MIN_PATIENTS} patients. Received: {len(patients)}."
        )
    rest = np.empty(len(ids))
    for fold in range(_NOVELTY_FOLDS):
        seen = ~np.isin(ids, patients[fold::_NOVELTY_FOLDS])
        fitted = Novelty(*_directions(patient_means(features[seen], ids[seen])), 1.0, 1.0, 1.0)
        rest[~seen] = fitted.distance(features[~seen])
    unit = float(np.sqrt(np.square(rest).mean()))
    limit = float(rest.max()) / unit
    centre, scale, basis = _directions(patient_means(features, ids))
    return Novelty(centre, scale, basis, unit, limit, _UNABLE * limit)


def _directions(means: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    centre, scale = means.mean(axis=0), means.std(axis=0)
    scale = np.where(scale > _TINY_SCALE, scale, 1.0)
    _, _, right = np.linalg.svd((means - centre) / scale, full_matrices=False)
    return centre, scale, np.ascontiguousarray(right[:_NUM_DIRECTIONS].T)


def patient_means(numbers: np.ndarray, patient_ids: np.ndarray) -> np.ndarray:
    """Mean over each patient's frames that show a number, patients sorted; NaN where none does."""
    import pandas as pd  # answering needs NumPy alone

    table = pd.DataFrame(np.asarray(numbers, float))
    return np.asarray(table.groupby(np.asarray(patient_ids)).mean())
