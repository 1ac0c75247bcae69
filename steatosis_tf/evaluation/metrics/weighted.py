"""The one arithmetic of all metrics: a score table under weights of its patients.

A bootstrap resample of patients is the table with an integer weight per patient, a jackknife
sample one with a weight 0, the table itself one with all weights 1. So nothing is copied: counts
are matrix products with per-patient totals, and rank metrics need one sort of the scores and a
running sum of weights. Here an undefined number is NaN; `registry.py` names the metrics.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from steatosis_tf.grades import GRADES, TASKS

#: Cumulative tasks: name of the task -> lowest label that counts as positive. The score of a
#: task is the sum of the probabilities of its positive grades.
CUMULATIVE_TASKS = {
    task: TASKS[task][1].index(1) for task in ("at_least_mild", "at_least_moderate", "severe")
}

#: Probabilities are cut at this value before a logarithm: a float32 softmax can give 0.
SMALLEST = 1e-12


def cumulative_scores(probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """Score `(N,)` of each cumulative task: the summed probabilities of its positive grades."""
    return {
        task: _without_rounding_noise(probabilities[:, first:].sum(axis=1))
        for task, first in CUMULATIVE_TASKS.items()
    }


def expected_grades(probabilities: np.ndarray) -> np.ndarray:
    """Expected grade `(N,)`, 0 to 3: the labels weighted by their probabilities."""
    return _without_rounding_noise(probabilities @ np.arange(len(GRADES)))


def _without_rounding_noise(sums: np.ndarray) -> np.ndarray:
    """Values cut to 40 bits, so that 0.1 + 0.2 and 0.3 tie: votes of few frames tie often."""
    mantissa, exponent = np.frexp(sums)
    return np.ldexp(np.round(mantissa * 2.0**40) / 2.0**40, exponent)


def proper_score_terms(labels: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
    """The terms `(N,)` whose means are three proper scores; 0 is perfect.

    Args:
        labels: `(N,)` int 0..3.
        scores: `(N, 4)` float64, rows sum to 1.

    Returns:
        `nll`: minus the logarithm of the true grade's probability, nats; below 1e-12 it counts
        as 1e-12, so one certain error does not make the mean infinite. `brier`: squared errors
        summed over the four grades, 0 to 2 (Brier 1950). `ordinal.ranked_probability_score`:
        squared errors of the three cumulative probabilities, their mean, 0 to 1 (Epstein 1969).
    """
    rows = np.arange(len(labels))
    one_hot = labels[:, None] == np.arange(len(GRADES))
    reached = labels[:, None] >= np.asarray(list(CUMULATIVE_TASKS.values()))
    cumulative = np.stack(list(cumulative_scores(scores).values()), axis=1)
    return {
        # `+ 0.0` turns the -0.0 of a perfect row into 0.0.
        "nll": -np.log(np.clip(scores[rows, labels], SMALLEST, 1)) + 0.0,
        "brier": ((scores - one_hot) ** 2).sum(axis=1),
        "ordinal.ranked_probability_score": ((cumulative - reached) ** 2).mean(axis=1),
    }


def kappas(counts: np.ndarray, power: int) -> np.ndarray:
    """Cohen's kappa `(b,)` of tables `(b, k, k)`, weights |difference| ** power; NaN for 0 / 0."""
    places = np.arange(counts.shape[-1])
    distance = np.abs(np.subtract.outer(places, places)) ** power
    by_chance = counts.sum(axis=2)[:, :, None] * counts.sum(axis=1)[:, None, :]
    expected = (by_chance * distance).sum(axis=(1, 2)) / counts.sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - (counts * distance).sum(axis=(1, 2)) / expected


@dataclass(frozen=True)
class _RankedTask:
    """One binary question, sorted once.

    `negatives` and `positives` hold the patient of each row, ascending by score; for each
    positive, `below`, `through` count the negatives with a smaller, a smaller or equal score, and
    `first_equal` the positives with a smaller score.
    """

    negatives: np.ndarray
    positives: np.ndarray
    below: np.ndarray
    through: np.ndarray
    first_equal: np.ndarray


# Values sorted once for weighted mid-ranks: what sorts them, and the two ends of each tie.
_RankedValues = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class WeightedTable:
    """Scores made ready for weighting; see `prepare`."""

    confusion: np.ndarray  # (P, 16) counts of each patient
    sums: dict[str, np.ndarray]  # name -> (P,) sum over each patient's rows of a mean's terms
    tasks: dict[str, _RankedTask]
    fat: tuple[np.ndarray, _RankedValues, _RankedValues] | None


def prepare(
    labels: np.ndarray,
    probabilities: np.ndarray,
    patient: np.ndarray,
    num_patients: int,
    fat_percent: np.ndarray | None = None,
    named: np.ndarray | None = None,
) -> WeightedTable:
    """Sort and total a score table so that any weighting of its patients is cheap.

    Args:
        labels: `(N,)` int 0..3.
        probabilities: `(N, 4)` float64, rows sum to 1.
        patient: `(N,)` int 0..num_patients - 1, the patient of each row.
        num_patients: patients in the weights, also those without a row here (another fold).
        fat_percent: `(N,)` float, percent, NaN where unknown.
        named: `(N,)` int 0..3, the grade that is named; the most probable one if None.
    """
    named = probabilities.argmax(axis=1) if named is None else named
    cell = labels * len(GRADES) + named
    confusion = np.zeros((num_patients, len(GRADES) ** 2))
    np.add.at(confusion, (patient, cell), 1.0)
    terms = proper_score_terms(labels, probabilities)
    tasks = {
        grade: _ranked(labels == label, probabilities[:, label], patient)
        for label, grade in enumerate(GRADES)
    }
    for task, score in cumulative_scores(probabilities).items():
        tasks[task] = _ranked(labels >= CUMULATIVE_TASKS[task], score, patient)
    one_hot = labels[:, None] == np.arange(len(GRADES))
    rows = np.repeat(patient, len(GRADES))
    tasks["micro"] = _ranked(one_hot.ravel(), probabilities.ravel(), rows)
    return WeightedTable(
        confusion=confusion,
        sums={
            name: np.bincount(patient, weights=term, minlength=num_patients)
            for name, term in terms.items()
        },
        tasks=tasks,
        fat=_ranked_fat(probabilities, fat_percent, patient),
    )


def _ranked(positive: np.ndarray, score: np.ndarray, patient: np.ndarray) -> _RankedTask:
    order = np.argsort(score, kind="stable")
    score, positive, patient = score[order], positive[order], patient[order]
    return _RankedTask(
        negatives=patient[~positive],
        positives=patient[positive],
        below=np.searchsorted(score[~positive], score[positive], "left"),
        through=np.searchsorted(score[~positive], score[positive], "right"),
        first_equal=np.searchsorted(score[positive], score[positive], "left"),
    )


def _ranked_fat(
    probabilities: np.ndarray, fat_percent: np.ndarray | None, patient: np.ndarray
) -> tuple[np.ndarray, _RankedValues, _RankedValues] | None:
    if fat_percent is None or np.isnan(fat_percent).all():
        return None
    known = ~np.isnan(fat_percent)
    expected = expected_grades(probabilities[known])
    return patient[known], _ranked_values(expected), _ranked_values(fat_percent[known])


def _ranked_values(values: np.ndarray) -> _RankedValues:
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    low = np.searchsorted(ascending, values, "left")
    return order, low, np.searchsorted(ascending, values, "right")


class Samples:
    """A table under weights `(P, b)`, one column per sample, so that row operations are long."""

    def __init__(self, table: WeightedTable, weights: np.ndarray) -> None:
        self._table, self._weights = table, weights
        self.counts = (table.confusion.T @ weights).T.reshape(-1, len(GRADES), len(GRADES))
        self.hits = np.diagonal(self.counts, axis1=1, axis2=2)
        self.support, self.predicted = self.counts.sum(axis=2), self.counts.sum(axis=1)
        self.total = self.counts.sum(axis=(1, 2))
        self._found: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    @cached_property
    def rates(self) -> dict[str, np.ndarray]:
        """Precision, recall and F1 of each grade `(b, 4)`."""
        return {
            "precision": self.hits / self.predicted,
            "recall": self.hits / self.support,
            "f1": 2 * self.hits / (self.support + self.predicted),
        }

    def rate(self, name: str, grade: str) -> np.ndarray:
        """Precision, recall or F1 `(b,)` of one grade."""
        return self.rates[name][:, GRADES.index(grade)]

    def macro(self, name: str) -> np.ndarray:
        """Mean `(b,)` of a rate over the grades."""
        return self.rates[name].mean(axis=1)

    def weighted(self, name: str) -> np.ndarray:
        """Mean `(b,)` of a rate over the grades, weighted by support."""
        return self.where_present(self.rates[name] * self.support).sum(axis=1) / self.total

    def where_present(self, values: np.ndarray) -> np.ndarray:
        """Values `(b, 4)`, 0 for grades that no row has."""
        return np.where(self.support > 0, values, 0.0)

    def mean_distance(self, of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Mean `(b,)` of a function of the distance between true and predicted grade."""
        distance = np.abs(np.subtract.outer(np.arange(len(GRADES)), np.arange(len(GRADES))))
        return (self.counts * of(distance)).sum(axis=(1, 2)) / self.total

    def mean(self, name: str) -> np.ndarray:
        """Mean `(b,)` over rows of a term of `proper_score_terms`."""
        return self._table.sums[name] @ self._weights / self.total

    def auc(self, task: str) -> np.ndarray:
        """Area under the ROC curve `(b,)`, ties half; NaN where one side has no weight."""
        return self._ranks(task)[0]

    def average_precision(self, grade: str) -> np.ndarray:
        """Average precision `(b,)` of a grade; NaN where one side has no weight."""
        return self._ranks(grade)[1]

    def mean_over_grades(self, name: str) -> np.ndarray:
        """Mean `(b,)` of "auc" or "average_precision" over the grades."""
        return np.mean([getattr(self, name)(grade) for grade in GRADES], axis=0)

    def spearman(self) -> np.ndarray:
        """Rank correlation `(b,)` of the expected grade with the fat, where it is known."""
        if self._table.fat is None:
            return np.full(len(self.total), np.nan)
        patient, *sides = self._table.fat
        own = self._weights[patient]
        total = own.sum(axis=0)
        centred = []
        for order, low, high in sides:
            running = self._running_total(patient[order])
            rank = (running[low] + running[high] + 1) / 2
            centred.append(rank - np.einsum("ib,ib->b", own, rank) / total)
        covariance = np.einsum("ib,ib,ib->b", own, *centred)
        spread = [np.einsum("ib,ib,ib->b", own, side, side) for side in centred]
        # Rounding leaves about 1e-20 of a constant side, whose correlation is undefined.
        constant = (spread[0] < 1e-9) | (spread[1] < 1e-9)
        return np.where(constant, np.nan, covariance / np.sqrt(spread[0] * spread[1]))

    def _ranks(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """AUC and, of a grade, average precision; the second is the first of another task."""
        if name not in self._found:
            self._found[name] = self._rank_metrics(self._table.tasks[name], name in GRADES)
        return self._found[name]

    def _rank_metrics(
        self, task: _RankedTask, with_average_precision: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        negatives = self._running_total(task.negatives)
        own = self._weights[task.positives]
        num_positive, num_negative = own.sum(axis=0), negatives[-1]
        below = negatives[task.below]
        wins = np.einsum("ib,ib->b", own, below)
        wins = wins + np.einsum("ib,ib->b", own, negatives[task.through])
        auc = wins / 2 / (num_positive * num_negative)
        if not with_average_precision:
            return auc, auc
        positives = self._running_total(task.positives)
        above = positives[-1] - positives[task.first_equal]
        called = above + (num_negative - below)
        # Where nothing is called the row itself has no weight, so its precision does not matter.
        precision = np.divide(above, called, out=np.zeros_like(above), where=called > 0)
        average_precision = np.einsum("ib,ib->b", own, precision) / num_positive
        return auc, np.where(num_negative > 0, average_precision, np.nan)

    def _running_total(self, patient: np.ndarray) -> np.ndarray:
        """Weight of the first 0, 1, 2 .. rows, `(rows + 1, b)`."""
        totals = np.zeros((len(patient) + 1, self._weights.shape[1]))
        np.cumsum(self._weights[patient], axis=0, out=totals[1:])
        return totals
