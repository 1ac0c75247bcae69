"""Weighted metrics against `compute_metrics` on the table written out row by row."""

import numpy as np
import pytest

from steatosis_tf.evaluation.metrics.registry import compute_metrics, weighted_metrics
from steatosis_tf.evaluation.metrics.weighted import prepare
from steatosis_tf.files import flat

COUNTS = ("n", "num_correct", "num_fat_known", "support", "num_predicted", "grades", "notes",
          "confusion_matrix")  # fmt: skip


def case(seed: int, ties: bool) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    grade = rng.permutation(np.r_[0:4, rng.integers(0, 4, 11)])
    patient = rng.integers(0, 15, 90)
    labels = grade[patient]
    probabilities = rng.dirichlet(np.ones(4), 90) + 0.3 * np.eye(4)[labels]
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    if ties:
        probabilities = np.stack([rng.multinomial(5, row) for row in probabilities]) / 5
    fat = np.where(patient == 3, np.nan, labels * 20.0 + patient % 3)
    return labels, probabilities, patient, fat


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_every_number_equals_the_expanded_sample(seed: int, ties: bool) -> None:
    labels, probabilities, patient, fat = case(seed, ties)
    weights = np.random.default_rng(seed + 100).multinomial(15, np.full(15, 1 / 15), size=70)
    weights[0] = 1
    weights[1] = np.where(np.isin(np.arange(15), patient[labels == 3]), 0, 1)  # Severe absent
    weights[2] = np.arange(15) == patient[0]  # one patient
    found = weighted_metrics(prepare(labels, probabilities, patient, 15, fat), weights)
    for sample in (0, 1, 2, 3, 4, 5, 63, 64, 69):  # both sides of a chunk border
        weight = weights[sample]
        rows = np.repeat(np.arange(len(labels)), weight[patient])
        metrics = compute_metrics(labels[rows], probabilities[rows], fat[rows])
        expected = {
            name: value
            for name, value in flat(metrics).items()
            if name.split("[")[0].split(".")[-1] not in COUNTS
            and name.split(".")[0] not in COUNTS
            and value is not None
        }
        assert set(expected) <= set(found)
        for name, values in found.items():
            if name in expected:
                assert values[sample] == pytest.approx(expected[name], abs=1e-11), name
            else:
                assert np.isnan(values[sample]), name


def test_patients_of_another_fold_do_not_matter() -> None:
    labels, probabilities, patient, fat = case(5, ties=False)
    inside = patient < 8
    some = prepare(labels[inside], probabilities[inside], patient[inside], 15, fat[inside])
    weights = np.ones((1, 15))
    changed = weights * np.where(np.arange(15) < 8, 1, 7)
    first, second = weighted_metrics(some, weights), weighted_metrics(some, changed)
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name])
