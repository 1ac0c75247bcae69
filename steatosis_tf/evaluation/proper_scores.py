"""Scores of the probabilities themselves, row by row: lowest on average for an honest model."""

import numpy as np

from steatosis_tf.evaluation.ordinal import CUMULATIVE_TASKS, cumulative_scores
from steatosis_tf.grades import GRADES

#: Probabilities are cut at this value before a logarithm: a float32 softmax can give 0.
SMALLEST = 1e-12


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
