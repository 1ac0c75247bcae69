"""A linear rule from a patient's numbers to the square root of fat percent.

The square root evens out the spread of biopsy readings, which grows with fat.

Where the literature says which way each number goes with fat, a number counts in proportion to its
own covariance with fat, and never against its direction: the first component of partial least
squares (Wold 1975). Numbers that show the same fat are correlated; fitted jointly to a few dozen
patients, one is set against the other. Such "improper" weights predict new cases better (Dawes
1979, doi 10.1037/0003-066X.34.7.571). Numbers without a known direction, hundreds of them, get
ridge regression.
"""

from dataclasses import dataclass

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
        ValueError: if shapes disagree, or there are fewer than 10 patients.
    """
    features, target = np.asarray(features, float), np.asarray(target, float)
    _check(features, target, signs)
    if signs is not None and flag_missing:
        raise ValueError("Expected either signs or flag_missing: a flag has no known direction.")
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


def _check(features: np.ndarray, target: np.ndarray, signs: tuple[int, ...] | None) -> None:
    if features.ndim != 2 or target.shape != features.shape[:1]:
        raise ValueError(
            f"Expected features (num_patients, k) and a target (num_patients,). Received: "
            f"features.shape={features.shape} target.shape={target.shape}."
        )
    check_patients(len(target))
    if signs is not None and (len(signs) != features.shape[1] or set(signs) - {-1, 1}):
        raise ValueError(
            f"Expected a sign of -1 or 1 for each of {features.shape[1]} numbers. "
            f"Received: signs={signs}."
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
