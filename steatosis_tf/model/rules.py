"""What is read from maps and a patient's numbers: features, fat by a linear rule, novelty.

Maps become features as means over places, by bands of depth or over all. A mean is additive over
places, so what a linear head makes of a feature vector can be drawn back onto the places it came
from without an approximation. NumPy only: the pipeline's graph
(`steatosis_tf.model.efficientnet_lite0`) and predict pool by the same bands.

A linear rule goes from a patient's numbers to the square root of fat percent, which evens out the
spread of biopsy readings: it grows with fat. Where the literature says which way each number goes
with fat, a number counts in proportion to its own covariance with fat, and never against its
direction: the first component of partial least squares (Wold 1975). Numbers that show the same fat
are correlated; fitted jointly to a few dozen patients, one is set against the other. Such
"improper" weights predict new cases better (Dawes 1979, doi 10.1037/0003-066X.34.7.571). Numbers
without a known direction, hundreds of them, get ridge regression.

Novelty: how unlike the training data a frame is, and whether it is ultrasound of a liver at all.
The distance from training patients tells another scanner or setting: no grade there. It is nearly
blind to another dynamic range, so the spread of grey levels has limits as well. But one scanner's
patients cannot tell another scanner from a photograph by distance, so a model may bring the
distance from livers of many scanners, and a logistic rule that was fitted to them and to pictures
that are none (`experiments/liver_views.py`).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

#: Ridge penalties among which the training patients choose, for standardised numbers. Close
#: together: a step from 100 to 300 shrinks predictions so much that patients of two folds, scored
#: by rules on either side of it, no longer rank as they should.
PENALTIES = tuple(np.logspace(1, 5, 25).tolist())

_MIN_PATIENTS = 10


@dataclass(frozen=True)
class FatRule:
    """A fitted linear rule.

    Attributes:
        fill: `(k,)` float64, stands in for what was not measured: median of the training patients.
        centre, scale, weights: `(k + m,)` float64, over the k numbers and, for `m` of them, whether
            they are missing; weights are per standard deviation, square root of percent.
        indicators: which of the k numbers have such a flag.
        intercept: square root of percent.
        penalty: of the ridge, the chosen one; 0 for numbers with a direction.
    """

    fill: np.ndarray
    centre: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    indicators: tuple[int, ...]
    intercept: float
    penalty: float

    def sqrt_fat(self, features: np.ndarray) -> np.ndarray:
        """Predicted square root of fat percent `(n,)`; may fall below 0.

        Args:
            features: `(n, k)`, NaN for what was not measured.
        """
        return self.intercept + self.shares(features).sum(axis=1)

    def shares(self, features: np.ndarray) -> np.ndarray:
        """What each number adds to the prediction `(n, k + m)`; 0 for the average patient."""
        values = _expanded(np.asarray(features, float), self.fill, self.indicators)
        return np.asarray((values - self.centre) / self.scale * self.weights)


def fit_linear_rule(
    features: np.ndarray,
    target: np.ndarray,
    *,
    signs: tuple[int, ...] | None = None,
    flag_missing: bool = False,
) -> tuple[FatRule, np.ndarray]:
    """Fit; a ridge penalty is chosen by leaving each of the patients out in turn.

    Args:
        features: `(num_patients, k)`, one row per patient, so that folds of rows are folds of
            patients; NaN where something was not measured.
        target: `(num_patients,)`, more for more fat: the square root of fat percent, or the grade
            where no biopsy is known.
        signs: +1 or -1 for each number: the only direction in which it may count; None for ridge.
        flag_missing: also learn from whether a number is missing.

    Returns:
        the rule, and for each patient `(num_patients,)` the target predicted by the same kind of
        rule fitted to all the others.

    Raises:
        ValueError: if there are fewer than 10 patients.
    """
    features, target = np.asarray(features, float), np.asarray(target, float)
    check_patients(len(target))
    penalties = PENALTIES if signs is None else (0.0,)
    left_out = np.empty((len(penalties), len(target)))
    for patient in range(len(target)):
        others = np.arange(len(target)) != patient
        rules = _rules(features[others], target[others], penalties, signs, flag_missing)
        left_out[:, patient] = [rule.sqrt_fat(features[[patient]])[0] for rule in rules]
    best = int(np.square(left_out - target).mean(axis=1).argmin())
    (rule,) = _rules(features, target, penalties[best : best + 1], signs, flag_missing)
    return rule, left_out[best]


def _rules(
    features: np.ndarray,
    target: np.ndarray,
    penalties: tuple[float, ...],
    signs: tuple[int, ...] | None,
    flag_missing: bool,
) -> list[FatRule]:
    """One rule per penalty; what they share is computed once."""
    missing = np.isnan(features)
    known = ~missing.all(axis=0)
    fill = np.zeros(features.shape[1])
    fill[known] = np.nanmedian(features[:, known], axis=0)
    indicators = tuple(np.flatnonzero(missing.any(axis=0) & known).tolist()) if flag_missing else ()
    values = _expanded(features, fill, indicators)
    centre, scale = values.mean(axis=0), values.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    intercept = float(target.mean())
    standard, rest = (values - centre) / scale, target - intercept
    if signs is None:
        weights = _ridge(standard, rest, penalties)
    else:
        weights = [_one_component(standard, rest, np.asarray(signs))]
    return [
        FatRule(fill, centre, scale, row, indicators, intercept, penalty)
        for row, penalty in zip(weights, penalties, strict=True)
    ]


def _ridge(values: np.ndarray, target: np.ndarray, penalties: tuple[float, ...]) -> list:
    """Ridge weights `(k,)` for each penalty, from one decomposition of the smaller Gram matrix."""
    if values.shape[1] <= values.shape[0]:
        size, vectors = np.linalg.eigh(values.T @ values)
        return [vectors / (size + penalty) @ (vectors.T @ (values.T @ target))
                for penalty in penalties]  # fmt: skip
    size, vectors = np.linalg.eigh(values @ values.T)
    return [values.T @ (vectors / (size + penalty) @ (vectors.T @ target)) for penalty in penalties]


def _one_component(values: np.ndarray, target: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Weights `(k,)`: covariances in their allowed direction, scaled by one regression."""
    covariance = values.T @ target
    direction = np.where(np.sign(covariance) == signs, covariance, 0.0)
    score = values @ direction
    power = float(score @ score)
    return direction * (float(score @ target) / power) if power > 0 else direction


def _expanded(features: np.ndarray, fill: np.ndarray, indicators: tuple[int, ...]) -> np.ndarray:
    missing = np.isnan(features)
    return np.hstack([np.where(missing, fill, features), missing[:, list(indicators)]])


def check_patients(num_patients: int) -> None:
    """Refuse to fit a rule to fewer than ten patients.

    Raises:
        ValueError: with what to do.
    """
    if num_patients < _MIN_PATIENTS:
        raise ValueError(
            f"Expected {_MIN_PATIENTS} patients or more to fit a rule to. Received: {num_patients}"
            ". Add patients, or leave more for training: more folds by --set split.folds=10."
        )


# Keeps parameters finite where the score parts two grades without error.
_PENALTY = 0.02
_MIN_PROBABILITY = 1e-9


@dataclass(frozen=True)
class CumulativeLink:
    """Reads a score as grades.

    Attributes:
        slope: of the log odds, per unit of the score; above 0.
        cuts: three, ascending.
    """

    slope: float
    cuts: tuple[float, float, float]

    def probabilities(self, score: np.ndarray) -> np.ndarray:
        """Probabilities of the four grades `(n, 4)` of scores `(n,)`; rows sum to 1."""
        return _shares(np.asarray(score, float), self.slope, np.array(self.cuts))


def fit_cumulative_link(score: np.ndarray, label: np.ndarray) -> CumulativeLink:
    """Fit by maximum likelihood with a weak penalty.

    Args:
        score: `(n,)` float, higher for more fat, each from a rule that never saw its patient.
        label: `(n,)` int, 0 to 3.

    Raises:
        ValueError: if the scores do not vary, or shapes disagree.
    """
    score, label = np.asarray(score, float), np.asarray(label, int)
    if score.ndim != 1 or score.shape != label.shape or not np.ptp(score) > 0:
        raise ValueError(
            "Expected one score that varies and one label for each patient. Received: "
            f"score.shape={score.shape} label.shape={label.shape}, "
            f"{len(np.unique(score))} different scores."
        )
    from scipy import optimize  # a fitted link answers without SciPy

    centre, spread = score.mean(), score.std()
    place = (score - centre) / spread
    rows = np.arange(len(label))

    def loss(free: np.ndarray) -> tuple[float, np.ndarray]:
        slope, cuts = _parameters(free)
        at_most = _at_most(place, slope, cuts)
        shares = np.maximum(np.diff(at_most)[rows, label], _MIN_PROBABILITY)
        # How the log likelihood moves with the upper and the lower edge of each patient's grade.
        density = at_most * (1 - at_most)
        pull = np.zeros_like(at_most)
        pull[rows, label + 1] += density[rows, label + 1] / shares
        pull[rows, label] -= density[rows, label] / shares
        by_slope = -(pull.sum(axis=1) * place).sum() * slope
        by_cut = pull[:, 1:-1].sum(axis=0)
        by_gap = by_cut[::-1].cumsum()[::-1][1:] * np.exp(free[2:])
        gradient = -np.concatenate([[by_slope, by_cut.sum()], by_gap])
        value = float(-np.log(shares).sum() + _PENALTY * free @ free)
        return value, gradient + 2 * _PENALTY * free

    start = np.array([0.5, -1.0, 0.0, 0.0])
    slope, cuts = _parameters(optimize.minimize(loss, start, jac=True).x)
    first, second, third = (float(cut) for cut in cuts + slope * centre / spread)
    return CumulativeLink(float(slope / spread), (first, second, third))


def _parameters(free: np.ndarray) -> tuple[float, np.ndarray]:
    """Slope above 0 and ascending cuts from four numbers without bounds."""
    return float(np.exp(free[0])), free[1] + np.cumsum([0.0, *np.exp(free[2:])])


def _shares(score: np.ndarray, slope: float, cuts: np.ndarray) -> np.ndarray:
    return np.diff(_at_most(score, slope, cuts), axis=1)


def _at_most(score: np.ndarray, slope: float, cuts: np.ndarray) -> np.ndarray:
    """Probability of at most each grade `(n, 5)`: 0 before the first, 1 at the last."""
    edges = np.zeros((len(score), 1)), np.ones((len(score), 1))
    # The logistic function; tanh cannot overflow.
    below = 0.5 * (1 + np.tanh(0.5 * (cuts - slope * score[:, None])))
    return np.hstack([edges[0], below, edges[1]])


#: Bands of depth into which the first tap is pooled, nearest first.
NUM_BANDS = 4


def band_rows(num_rows: int, num_bands: int = NUM_BANDS) -> list[tuple[int, int]]:
    """First row and row after the last of each band of a map, nearest first.

    Args:
        num_rows: height of the map.
        num_bands: 1 for the mean over all.

    Raises:
        ValueError: if a band would be empty.

    Example:
        >>> band_rows(24)
        [(0, 6), (6, 12), (12, 18), (18, 24)]
    """
    if not 1 <= num_bands <= num_rows:
        raise ValueError(
            f"Expected a map of at least {num_bands} rows, one for each band of depth. Received: "
            f"num_rows={num_rows}. Give the network a larger picture."
        )
    edges = np.linspace(0, num_rows, num_bands + 1).round().astype(int).tolist()
    return list(itertools.pairwise(edges))


def pool_maps(near: np.ndarray, far: np.ndarray, num_bands: int = NUM_BANDS) -> np.ndarray:
    """Feature vectors of two tapped maps.

    Args:
        near: `(batch, rows, columns, channels)` float32, pooled by bands of depth.
        far: the same of another size, pooled over all places.
        num_bands: of the first.

    Returns:
        `(batch, num_bands * channels of near + channels of far)` float32: band after band.

    Example:
        >>> pool_maps(np.ones((1, 24, 20, 112)), np.ones((1, 12, 10, 192))).shape
        (1, 640)
    """
    bands = [
        near[:, first:end].mean(axis=(1, 2)) for first, end in band_rows(near.shape[1], num_bands)
    ]
    return np.concatenate([*bands, far.mean(axis=(1, 2))], axis=1).astype(np.float32)


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
        livers: the same distance from livers of many scanners; scores end at its `score_limit`.
            None where it is not known.
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
    livers: "Novelty | None" = None

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
        if self.livers:
            near &= self.livers.distance(features) <= self.livers.score_limit
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
    features: np.ndarray,
    patient_ids: Sequence[str],
    spreads: np.ndarray | None = None,
    quantile: float = 1.0,
) -> Novelty:
    """Fit the distance of network features from those of training patients, with its limits.

    Grades end at the largest distance of a frame whose patient the fit had not seen, or a quantile
    of these; scores end at twice that. No picture of anything else is needed.

    Args:
        features: `(num_frames, width)`.
        patient_ids: of each frame.
        spreads: `grey_spread` of each frame, `(num_frames,)`; grades end a tenth of their range
            outside it. None sets no limits.
        quantile: proportion of left-out frames that would get a grade.
    """
    ids, features = np.asarray(patient_ids), np.asarray(features, float)
    patients = np.unique(ids)
    rest = np.empty(len(ids))
    for fold in range(_NOVELTY_FOLDS):
        seen = ~np.isin(ids, patients[fold::_NOVELTY_FOLDS])
        fitted = Novelty(*_directions(patient_means(features[seen], ids[seen])), 1.0, 1.0, 1.0)
        rest[~seen] = fitted.distance(features[~seen])
    unit = float(np.sqrt(np.square(rest).mean()))
    limit = float(np.quantile(rest, quantile)) / unit
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
