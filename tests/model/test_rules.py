"""Linear rules for the root of fat percent: known rules, directions, what is missing, refusals."""

import numpy as np
import pytest
from sklearn.cross_decomposition import PLSRegression
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from steatosis_tf.model.rules import PENALTIES, fit_linear_rule


def study(num_patients: int = 60, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Fat from 0 to 95; its root is the first number, the second is noise."""
    rng = np.random.default_rng(5)
    fat = rng.permutation(np.linspace(0, 95, num_patients))
    useful = np.sqrt(fat) + rng.normal(0, noise, num_patients)
    return np.stack([useful, rng.normal(size=num_patients)], axis=1), fat


def test_is_the_ridge_of_scikit_learn_on_standardised_numbers():
    features, fat = study()
    rule, _ = fit_linear_rule(features, np.sqrt(fat))
    scaled = StandardScaler().fit_transform(features)
    theirs = Ridge(rule.penalty).fit(scaled, np.sqrt(fat))
    assert rule.sqrt_fat(features) == pytest.approx(theirs.predict(scaled))
    assert rule.penalty in PENALTIES
    assert np.corrcoef(rule.sqrt_fat(features), np.sqrt(fat))[0, 1] > 0.98


def test_left_out_predictions_are_worse_than_fitted_ones_on_noise():
    _, fat = study()
    noise = np.random.default_rng(1).normal(size=(60, 20))
    rule, left_out = fit_linear_rule(noise, np.sqrt(fat))
    assert rule.penalty >= 100
    assert np.corrcoef(left_out, np.sqrt(fat))[0, 1] < 0.2
    assert np.corrcoef(rule.sqrt_fat(noise), np.sqrt(fat))[0, 1] > 0.4


def test_directed_numbers_are_one_component_of_partial_least_squares():
    features, fat = study()
    features[:, 1] += 0.4 * features[:, 0]
    rule, left_out = fit_linear_rule(features, np.sqrt(fat), signs=(1, 1))
    theirs = PLSRegression(1).fit(features, np.sqrt(fat))
    assert rule.sqrt_fat(features) == pytest.approx(theirs.predict(features).ravel())
    first = PLSRegression(1).fit(features[1:], np.sqrt(fat[1:]))
    assert left_out[0] == pytest.approx(float(first.predict(features[:1]).ravel()[0]))


def test_a_number_counts_in_its_own_direction_only():
    features, fat = study()
    right, _ = fit_linear_rule(features, np.sqrt(fat), signs=(1, 1))
    wrong, _ = fit_linear_rule(features, np.sqrt(fat), signs=(-1, 1))
    mirrored, _ = fit_linear_rule(-features, np.sqrt(fat), signs=(-1, -1))
    assert right.weights[0] > 2
    assert wrong.weights[0] == 0
    assert mirrored.sqrt_fat(-features) == pytest.approx(right.sqrt_fat(features))
    nothing, _ = fit_linear_rule(features[:, :1], np.sqrt(fat), signs=(-1,))
    assert nothing.sqrt_fat(features[:, :1]) == pytest.approx(np.full(60, np.sqrt(fat).mean()))


def test_what_was_not_measured_counts_as_the_median():
    features, fat = study()
    features[::7, 1] = np.nan
    rule, _ = fit_linear_rule(features, np.sqrt(fat))
    middle = np.array([[5.0, np.nanmedian(features[:, 1])]])
    assert rule.sqrt_fat([[5.0, np.nan]]) == pytest.approx(rule.sqrt_fat(middle))
    never = np.column_stack([features, np.full(60, np.nan)])
    assert np.isfinite(fit_linear_rule(never, np.sqrt(fat))[0].sqrt_fat(never)).all()


def test_missing_may_be_a_sign_of_its_own():
    _, fat = study()
    test_ordered = np.where(fat > 40, 1.0, np.nan) + np.random.default_rng(2).normal(0, 1, 60)
    plain, _ = fit_linear_rule(test_ordered[:, None], np.sqrt(fat))
    flagged, _ = fit_linear_rule(test_ordered[:, None], np.sqrt(fat), flag_missing=True)
    assert flagged.indicators == (0,)
    truth = np.sqrt(fat)
    correlations = [
        np.corrcoef(rule.sqrt_fat(test_ordered[:, None]), truth)[0, 1] for rule in (plain, flagged)
    ]
    assert correlations[1] > correlations[0] + 0.3


def test_shares_add_up_to_the_prediction():
    features, fat = study()
    rule, _ = fit_linear_rule(features, np.sqrt(fat))
    shares = rule.shares(features)
    assert shares.mean(axis=0) == pytest.approx([0, 0], abs=1e-9)
    assert rule.intercept + shares.sum(axis=1) == pytest.approx(rule.sqrt_fat(features))


def test_too_few_patients_are_refused():
    with pytest.raises(ValueError, match="10 patients or more"):
        fit_linear_rule(np.zeros((5, 2)), np.zeros(5))
