"""The ordinal ridge on numbers with a known rule."""

import numpy as np
import pytest

from steatosis_tf.model.baselines.ordinal_ridge import PENALTIES, fit_ordinal_ridge


def study(num_patients: int = 60, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Fat from 0 to 95; its root is the first feature, the second is noise."""
    rng = np.random.default_rng(5)
    fat = rng.permutation(np.linspace(0, 95, num_patients))
    useful = np.sqrt(fat) + rng.normal(0, noise, num_patients)
    return np.stack([useful, rng.normal(size=num_patients)], axis=1), fat


def test_recovers_the_rule():
    features, fat = study()
    model = fit_ordinal_ridge(features, fat)
    assert np.corrcoef(model.sqrt_fat(features), np.sqrt(fat))[0, 1] > 0.98
    useful, useless = np.abs(model.weights())
    assert useful > 10 * useless
    assert model.penalty in PENALTIES
    assert model.spread == pytest.approx(0.3, rel=0.4)


def test_probabilities_are_the_normal_shares_between_the_cuts():
    features, fat = study()
    model = fit_ordinal_ridge(features, fat)
    found = model.probabilities(features)
    assert found.shape == (60, 4)
    assert found.min() >= 0
    assert found.sum(axis=1) == pytest.approx(np.ones(60))
    # Root of 4 % and of 80 % lie far from the cuts at 2.24, 5.74 and 8.12.
    assert found[np.argmin(fat)].argmax() == 0
    assert found[np.argmax(fat)].argmax() == 3
    # Predicted exactly at the cut of 5 %, both sides are as likely.
    slope = model.pipeline.predict(features[:1]) - np.sqrt(5)
    edge = features[:1].copy()
    scale = model.pipeline[1].scale_[0] / model.weights()[0]
    edge[0, 0] -= slope[0] * scale
    assert model.probabilities(edge)[0, 0] == pytest.approx(0.5, abs=1e-6)


def test_what_was_not_measured_is_imputed():
    features, fat = study()
    features[::7, 1] = np.nan
    model = fit_ordinal_ridge(features, fat)
    assert np.isfinite(model.probabilities(features)).all()
    assert np.isfinite(model.probabilities(np.full((1, 2), np.nan))).all()


def test_noise_gets_a_strong_penalty_and_honest_width():
    _, fat = study()
    features = np.random.default_rng(1).normal(size=(60, 20))
    model = fit_ordinal_ridge(features, fat)
    assert model.penalty >= 100
    assert model.spread == pytest.approx(np.sqrt(fat).std(), rel=0.15)


def test_same_seed_same_model():
    features, fat = study()
    first, second = fit_ordinal_ridge(features, fat), fit_ordinal_ridge(features, fat)
    assert np.array_equal(first.weights(), second.weights())


@pytest.mark.parametrize(
    ("features", "fat", "match"),
    [
        (np.zeros((5, 2)), np.zeros(5), "at least 10 patients"),
        (np.zeros((20, 2)), np.zeros(19), "fat_percent.shape"),
        (np.zeros(20), np.zeros(20), "features.shape"),
        (np.zeros((20, 2)), np.full(20, np.nan), "fat_percent from 0 to 100"),
        (np.zeros((20, 2)), np.full(20, 101.0), "fat_percent from 0 to 100"),
        (np.full((20, 1), np.nan), np.zeros(20), r"columns=\[0\] all NaN"),
    ],
)
def test_what_cannot_be_fitted_is_refused(features, fat, match):
    with pytest.raises(ValueError, match=match):
        fit_ordinal_ridge(features, fat)
