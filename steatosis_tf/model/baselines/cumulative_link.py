"""One score read as probabilities of the four ordered grades: the proportional odds model.

McCullagh 1980 (doi 10.1111/j.2517-6161.1980.tb01109.x): the log odds of being at most grade k are
`cut_k - slope * score`. Four parameters, fitted to scores that the patients' own rules never saw,
so that they carry the honest error of the score.
"""

from dataclasses import dataclass

import numpy as np

# Keeps parameters finite where the score parts two grades without error.
_PENALTY = 0.02
_MIN_PROBABILITY = 1e-9


@dataclass(frozen=True)
class CumulativeLink:
    """A fitted reading.

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
