"""Do 95 % intervals hold the truth 95 % of the time when frames of a patient are alike?

The simulated study: patients of four grades, each with a deviation of its own that all its frames
share, so ten frames say little more than one. The truth is the metric over 20,000 such patients.
The naive interval calls every frame a patient. `docs/evaluation_intervals.md` shows the table
that `python tests/evaluation/metrics/test_coverage.py` prints.
"""

import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pandas as pd
import pytest

from steatosis_tf.evaluation.metrics.intervals import bootstrap_intervals, percentile_interval
from steatosis_tf.evaluation.metrics.registry import weighted_metrics
from steatosis_tf.evaluation.metrics.resampling import bootstrap_weights
from steatosis_tf.evaluation.metrics.weighted import prepare
from steatosis_tf.grades import GRADES, SCORE_COLUMNS

NAMES = (
    "accuracy",
    "macro.f1",
    "per_class.Mild.recall",
    "per_class.Severe.auc",
    "auc_macro",
    "auc_micro",
    "ordinal.auc_at_least_mild",
    "ordinal.auc_at_least_moderate",
    "ordinal.quadratic_kappa",
    "ordinal.mean_absolute_error",
    "ordinal.ranked_probability_score",
)


def study(
    rng: np.random.Generator, per_grade: int, num_frames: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels `(N,)`, probabilities `(N, 4)` and patient `(N,)` of one simulated study."""
    grade = np.repeat(np.arange(4), per_grade)
    patient = np.repeat(np.arange(4 * per_grade), num_frames)
    place = grade[patient] + rng.normal(0, 0.8, len(grade))[patient]
    place = place + rng.normal(0, 0.25, len(patient))
    scores = np.exp(-((np.arange(4) - place[:, None]) ** 2))
    return grade[patient], scores / scores.sum(axis=1, keepdims=True), patient


def table(labels: np.ndarray, scores: np.ndarray, patient: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "frame_id": [f"{row:06d}" for row in range(len(labels))],
            "patient_id": [f"{one:06d}" for one in patient],
            "grade": np.asarray(GRADES)[labels],
            **dict(zip(SCORE_COLUMNS, scores.T, strict=True)),
        }
    )


def coverage(num_studies: int, per_grade: int, num_frames: int, seed: int) -> pd.DataFrame:
    """Proportion of studies whose interval holds the truth, for three kinds of interval."""
    rng = np.random.default_rng(seed)
    labels, scores, patient = study(rng, 5000, num_frames)
    population = prepare(labels, scores, patient, 20000)
    truth = weighted_metrics(population, np.ones((1, 20000)))
    held: dict[str, dict[str, list[bool]]] = {
        kind: {name: [] for name in NAMES} for kind in ("naive", "percentile", "bca")
    }
    for number in range(num_studies):
        labels, scores, patient = study(rng, per_grade, num_frames)
        by_patient = bootstrap_intervals(
            table(labels, scores, patient), num_resamples=1000, seed=number
        )
        frames = prepare(labels, scores, np.arange(len(labels)), len(labels))
        by_frame = weighted_metrics(frames, bootstrap_weights(labels, 300, rng))
        for name in NAMES:
            for kind, bounds in (
                ("naive", percentile_interval(by_frame[name])),
                ("percentile", by_patient[name]["percentile"]),
                ("bca", by_patient[name]["bca"]),
            ):
                held[kind][name].append(bounds[0] <= truth[name][0] <= bounds[1])
    return pd.DataFrame(
        {kind: {name: np.mean(hits) for name, hits in one.items()} for kind, one in held.items()}
    )


def pooled_coverage(num_studies: int, per_grade: int, num_frames: int) -> pd.DataFrame:
    """`coverage` of four lots with their own seeds, on two cores."""
    lots = [(num_studies // 4, per_grade, num_frames, seed) for seed in range(4)]
    with ProcessPoolExecutor(2) as pool:
        parts = list(pool.map(coverage, *zip(*lots, strict=True)))
    return sum(parts[1:], parts[0]) / len(parts)


def test_short_form_naive_fails_and_clusters_hold() -> None:
    """50 studies: in 1 of 1,000 such tests an honest 0.95 would fall below 0.84."""
    found = coverage(50, per_grade=12, num_frames=8, seed=1).loc[
        ["accuracy", "auc_macro", "ordinal.quadratic_kappa"]
    ]
    assert (found["bca"] >= 0.84).all(), found
    assert (found["naive"] <= 0.8).all(), found


@pytest.mark.slow
def test_clustered_intervals_hold_95_percent_give_or_take_2() -> None:
    """1,000 studies of 100 patients with 10 frames: Monte Carlo error of a share 0.7 points."""
    found = pooled_coverage(1000, per_grade=25, num_frames=10)
    assert found["bca"].between(0.93, 0.97).all(), found
    assert found["percentile"].mean() > 0.93, found
    assert (found["naive"] < 0.7).all(), found


if __name__ == "__main__":
    number, size, frames = (int(value) for value in sys.argv[1:4])
    print(pooled_coverage(number, size, frames).round(3).to_string())
