"""Temperature, the line of calibration, coverage against risk."""

import json

import numpy as np
import pytest
from scipy import optimize, special
from sklearn.metrics import log_loss

from steatosis_tf.evaluation.clinical.calibration import (
    apply_temperature,
    calibration_line,
    coverage_risk_curve,
    ece_interval,
    fit_temperature,
)


def sample(seed: int, num: int = 400, sharpness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from softmax(logits); probabilities claim softmax(sharpness * logits)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (num, 4))
    truth = special.softmax(logits, axis=1)
    labels = (truth.cumsum(axis=1) < rng.random((num, 1))).sum(axis=1)
    return np.minimum(labels, 3), special.softmax(sharpness * logits, axis=1)


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.5])
def test_temperature_finds_the_sharpness(sharpness: float) -> None:
    labels, scores = sample(0, 20000, sharpness)
    found = fit_temperature(labels, scores)
    assert found["temperature"] == pytest.approx(sharpness, rel=0.03)
    assert found["nll_after"] <= found["nll_before"]
    assert found["note"] is None
    after = apply_temperature(scores, found["temperature"])
    assert ece_interval(after.argmax(axis=1) == labels, after.max(axis=1))["value"] < 0.02


def test_temperature_equals_another_optimiser() -> None:
    labels, scores = sample(1, 60, 3.0)

    def loss(temperature: np.ndarray) -> float:
        return log_loss(
            labels, special.softmax(np.log(scores) / temperature[0], axis=1), labels=range(4)
        )

    expected = optimize.minimize(loss, [1.0], method="Nelder-Mead", options={"xatol": 1e-8})
    assert fit_temperature(labels, scores)["temperature"] == pytest.approx(expected.x[0], rel=1e-4)


def test_temperature_keeps_the_predicted_grade_and_survives_a_zero() -> None:
    labels, scores = sample(2)
    scores[0] = [1, 0, 0, 0]
    warm = apply_temperature(scores, 2.0)
    assert (warm.argmax(axis=1) == scores.argmax(axis=1)).all()
    np.testing.assert_allclose(warm.sum(axis=1), 1)
    np.testing.assert_allclose(apply_temperature(scores[1:], 1.0), scores[1:])
    assert np.isfinite(fit_temperature(labels, scores)["nll_before"])


def test_temperature_of_a_perfect_model_is_noted() -> None:
    labels = np.array([0, 1, 2, 3])
    found = fit_temperature(labels, 0.6 * np.eye(4) + 0.1)
    assert "4 validation rows do not determine it" in found["note"]
    json.dumps(found, allow_nan=False)


def test_degenerate_input() -> None:
    assert fit_temperature([1], [[0, 1, 0, 0]])["nll_before"] == 0
    wrong = fit_temperature([0, 0], [[0, 1, 0, 0]] * 2)
    assert wrong["nll_before"] == pytest.approx(-np.log(1e-12))


def test_coverage_risk_by_hand() -> None:
    scores = np.array(
        [[0.9, 0.1, 0, 0], [0.8, 0.2, 0, 0], [0.8, 0.2, 0, 0], [0.6, 0.4, 0, 0], [0.5, 0.4, 0.1, 0]]
    )
    found = coverage_risk_curve([0, 1, 0, 0, 3], scores)
    assert found["coverage"] == pytest.approx([0.2, 0.6, 0.8, 1.0])
    assert found["risk"] == pytest.approx([0, 1 / 3, 1 / 4, 2 / 5])
    assert found["mean_absolute_error"] == pytest.approx([0, 1 / 3, 1 / 4, 4 / 5])
    assert found["threshold"] == pytest.approx([0.9, 0.8, 0.6, 0.5])
    assert found["area"] == pytest.approx((0 + 1 / 3 + 1 / 3 + 1 / 4 + 2 / 5) / 5)
    assert found["full_risk"] == pytest.approx(0.4)


def test_coverage_risk_counts_the_grades_that_are_named() -> None:
    scores = np.array([[0.6, 0.4, 0, 0], [0.4, 0.3, 0.2, 0.1]])
    found = coverage_risk_curve([0, 1], scores, named=np.array([0, 1]))
    assert found["risk"] == pytest.approx([0, 0])
    assert coverage_risk_curve([0, 1], scores)["risk"] == pytest.approx([0, 1 / 2])


def test_calibration_slope_and_intercept() -> None:
    """Logits doubled and shifted by 1 need slope 0.5 and intercept -0.5; and the likelihood."""
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 1.2, 30000)
    happened = rng.random(30000) < special.expit(truth)
    claimed = special.expit(2 * truth + 1)
    found = calibration_line(happened, claimed)
    assert found["slope"] == pytest.approx(0.5, abs=0.02)
    assert found["intercept"] == pytest.approx(-0.5, abs=0.04)

    def loss(line: np.ndarray) -> float:
        return log_loss(happened, special.expit(line[0] + line[1] * special.logit(claimed)))

    best = optimize.minimize(loss, [0.0, 1.0]).x
    assert [found["intercept"], found["slope"]] == pytest.approx(list(best), abs=1e-4)


def test_no_calibration_slope_where_none_exists() -> None:
    apart = calibration_line(np.array([True, False]), np.array([0.7, 0.1]))
    assert apart["slope"] is None
    assert "separate the outcomes" in apart["note"]
    alike = calibration_line(np.array([False, False]), np.array([0.7, 0.1]))
    assert "all outcomes are alike" in alike["note"]
