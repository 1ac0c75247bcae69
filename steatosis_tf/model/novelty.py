"""How unlike the training data a frame is, and whether it is ultrasound of a liver at all.

Two questions to the network's features. The distance from training patients tells another scanner
or setting: no grade there. It is nearly blind to another dynamic range, so the spread of grey
levels has limits as well. But one scanner's patients cannot tell another scanner from a photograph
by distance, so a model may bring a logistic rule that was fitted to livers of many scanners and to
pictures that are none (`experiments/liver_views.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

_MIN_PATIENTS = 10
# Main directions of the features, and parts into which patients are split to calibrate distance.
_NUM_DIRECTIONS, _NOVELTY_FOLDS = 8, 10
# Scores end at this many times the distance at which grades end, where nobody set another limit.
_UNABLE = 2.0
_TINY_SCALE = 1e-9
# Beyond the training frames' spreads of grey by this much of their range, and at least one level.
_SPREAD_MARGIN, _MIN_MARGIN = 0.1, 0.5


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
        spread_low, spread_high: least and largest `grey_spread` at which a grade is given.
        liver_weights: `(width,)` of the rule that knows livers; `(0,)` where there is none.
        liver_intercept: log odds of a liver are this and the weighted sum of the features.
    """

    centre: np.ndarray
    scale: np.ndarray
    basis: np.ndarray
    rest: float
    score_limit: float
    unable_limit: float
    spread_low: float = 0.0
    spread_high: float = 255.0
    liver_weights: np.ndarray = field(default_factory=lambda: np.zeros(0))
    liver_intercept: float = 0.0

    def distance(self, features: np.ndarray) -> np.ndarray:
        """Distance `(n,)` of features `(n, width)`."""
        values = (np.asarray(features, float) - self.centre) / self.scale
        over = np.square(values).sum(axis=1) - np.square(values @ self.basis).sum(axis=1)
        return np.asarray(np.sqrt(np.maximum(over, 0.0) / values.shape[1]) / self.rest)

    def relative(self, features: np.ndarray, spreads: np.ndarray) -> np.ndarray:
        """How unlike the training data `(n,)`, 1 where grades end: by distance or by spread.

        Args:
            features: `(n, width)`.
            spreads: `(n,)` of `grey_spread`, NaN where unknown.
        """
        middle, half = (self.spread_low + self.spread_high) / 2, self.spread_high - self.spread_low
        off = 2 * np.abs(np.asarray(spreads, float) - middle) / half
        return np.asarray(np.fmax(self.distance(features) / self.score_limit, off))

    def shows_liver(self, features: np.ndarray) -> np.ndarray:
        """Whether features `(n, width)` may be scored, `(n,)` bool: of a liver, and not too far."""
        near = self.distance(features) <= self.unable_limit
        return np.asarray(near & (self.log_odds(features) >= 0))

    def log_odds(self, features: np.ndarray) -> np.ndarray:
        """Log odds of a liver `(n,)` of features `(n, width)`; infinite without a rule."""
        if not len(self.liver_weights):
            return np.full(len(features), np.inf)
        return np.asarray(np.asarray(features, float) @ self.liver_weights + self.liver_intercept)


def grey_spread(picture: np.ndarray) -> float:
    """Standard deviation of the grey levels that are not black: contrast, whatever the gain.

    Args:
        picture: what the network sees, uint8.

    Example:
        >>> grey_spread(np.array([[0, 10], [30, 0]], np.uint8))
        10.0
    """
    echo = picture[picture > 0]
    return float(echo.std()) if echo.size else 0.0


def fit_novelty(
    features: np.ndarray, patient_ids: Sequence[str], spreads: np.ndarray | None = None
) -> Novelty:
    """Fit the distance of network features from those of training patients, with its limits.

    Grades end at the largest distance of a frame whose patient the fit had not seen; scores end at
    twice that. No picture of anything else is needed.

    Args:
        features: `(num_frames, width)`.
        patient_ids: of each frame.
        spreads: `grey_spread` of each frame, `(num_frames,)`; grades end a tenth of their range
            outside it. None sets no limits.

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
    fitted = Novelty(*_directions(patient_means(features, ids)), unit, limit, _UNABLE * limit)
    if spreads is None:
        return fitted
    margin = max(_SPREAD_MARGIN * float(np.ptp(spreads)), _MIN_MARGIN)
    low, high = float(np.min(spreads)) - margin, float(np.max(spreads)) + margin
    return replace(fitted, spread_low=low, spread_high=high)


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
