"""Temperature, calibration errors, conformal sets, abstention, decision curve."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, special
from sklearn.metrics import brier_score_loss, log_loss

from steatosis_tf.evaluation.calibration import (
    apply_temperature,
    calibration_metrics,
    fit_temperature,
    reliability_table,
)
from steatosis_tf.evaluation.selective import coverage_risk_curve


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
    after = calibration_metrics(labels, apply_temperature(scores, found["temperature"]))
    assert after["confidence"]["ece_equal_mass"] < 0.02


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


def loop_ece(happened: np.ndarray, probability: np.ndarray, edges: np.ndarray) -> float:
    total = 0.0
    for position in range(len(edges) - 1):
        last = position == len(edges) - 2
        inside = (probability >= edges[position]) & (
            (probability <= edges[position + 1]) if last else (probability < edges[position + 1])
        )
        if inside.any():
            gap = abs(happened[inside].mean() - probability[inside].mean())
            total += inside.mean() * gap
    return total


@pytest.mark.parametrize("seed", range(3))
def test_calibration_numbers_equal_scikit_learn_and_loops(seed: int) -> None:
    labels, scores = sample(seed, sharpness=2.0)
    found = calibration_metrics(labels, scores, num_bins=8)
    assert found["nll"] == pytest.approx(log_loss(labels, scores))
    one_hot = np.eye(4)[labels]
    assert found["brier"] == pytest.approx(
        sum(brier_score_loss(one_hot[:, k], scores[:, k]) for k in range(4))
    )
    confidence, right = scores.max(axis=1), labels == scores.argmax(axis=1)
    width, mass = np.linspace(0, 1, 9), np.quantile(confidence, np.linspace(0, 1, 9))
    assert found["confidence"]["ece_equal_width"] == pytest.approx(
        loop_ece(right, confidence, width)
    )
    assert found["confidence"]["ece_equal_mass"] == pytest.approx(loop_ece(right, confidence, mass))
    moderate = scores[:, 2:].sum(axis=1)
    assert found["at_least_moderate"]["brier"] == pytest.approx(
        brier_score_loss(labels >= 2, np.clip(moderate, 0, 1))
    )
    json.dumps(found, allow_nan=False)


def test_reliability_by_hand() -> None:
    table = reliability_table([0, 0, 1, 1], [0.1, 0.2, 0.6, 1.0], 2, "equal_width")
    assert [row["num_rows"] for row in table] == [2, 2]
    assert table[0]["mean_probability"] == pytest.approx(0.15)
    assert [row["observed"] for row in table] == [0, 1]
    assert table[1]["high"] == 1
    assert table[0]["observed_low"] == 0


def test_equal_probabilities_stay_in_one_bin_whatever_their_order() -> None:
    probability = np.array([0.5] * 6 + [0.9] * 2)
    happened = np.array([1, 0, 1, 0, 0, 0, 1, 1])
    order = np.random.default_rng(0).permutation(8)
    first = reliability_table(happened, probability, 4)
    assert first == reliability_table(happened[order], probability[order], 4)
    assert sum(row["num_rows"] for row in first) == 8
    constant = reliability_table(happened, np.full(8, 0.5), 4)
    assert [row["num_rows"] for row in constant] == [8]


def test_degenerate_and_refused_input() -> None:
    json.dumps(calibration_metrics([1], [[0, 1, 0, 0]]), allow_nan=False)
    assert calibration_metrics([1], [[0, 1, 0, 0]])["nll"] == 0
    wrong = calibration_metrics([0, 0], [[0, 1, 0, 0]] * 2)
    assert wrong["nll"] == pytest.approx(-np.log(1e-12))
    assert wrong["brier"] == 2
    with pytest.raises(ValueError, match="labels 0 to 3"):
        calibration_metrics([np.nan], [[0, 1, 0, 0]])
    with pytest.raises(ValueError, match="labels=2, probabilities=1"):
        fit_temperature([0, 1], [[0, 1, 0, 0]])
    with pytest.raises(ValueError, match="temperature=0"):
        apply_temperature([[0, 1, 0, 0]], 0)
    with pytest.raises(ValueError, match="binning='quantile'"):
        reliability_table([1], [0.5], 2, "quantile")


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


def test_coverage_risk_with_another_confidence_and_refusals() -> None:
    labels, scores = sample(0)
    wrong = labels != scores.argmax(axis=1)
    oracle = coverage_risk_curve(labels, scores, confidence=-wrong.astype(float))
    assert oracle["risk"][0] == 0
    assert oracle["area"] < coverage_risk_curve(labels, scores)["area"]
    useless = coverage_risk_curve(labels, scores, confidence=np.zeros(len(labels)))
    assert useless["area"] == pytest.approx(wrong.mean())
    with pytest.raises(ValueError, match="finite confidence"):
        coverage_risk_curve([0], [[1, 0, 0, 0]], confidence=[np.nan])
    with pytest.raises(ValueError, match=r"confidence=\(2,\)"):
        coverage_risk_curve([0], [[1, 0, 0, 0]], confidence=pd.Series([1.0, 2.0]))


def test_calibration_slope_and_intercept() -> None:
    """Logits doubled and shifted by 1 need slope 0.5 and intercept -0.5; and the likelihood."""
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 1.2, 30000)
    happened = rng.random(30000) < special.expit(truth)
    claimed = special.expit(2 * truth + 1)
    scores = np.stack([1 - claimed, claimed, 0 * claimed, 0 * claimed], axis=1)
    found = calibration_metrics(happened.astype(int), scores)["at_least_mild"]
    assert found["slope"] == pytest.approx(0.5, abs=0.02)
    assert found["intercept"] == pytest.approx(-0.5, abs=0.04)
    assert found["observed"] == pytest.approx(happened.mean())
    assert found["mean_probability"] == pytest.approx(claimed.mean())

    def loss(line: np.ndarray) -> float:
        return log_loss(happened, special.expit(line[0] + line[1] * special.logit(claimed)))

    best = optimize.minimize(loss, [0.0, 1.0]).x
    assert [found["intercept"], found["slope"]] == pytest.approx(list(best), abs=1e-4)


def test_no_calibration_slope_where_none_exists() -> None:
    eye = 0.6 * np.eye(4) + 0.1
    found = calibration_metrics([0, 1, 2, 3], eye)
    assert found["severe"]["slope"] is None
    assert "separate the outcomes" in found["severe"]["note"]
    assert "all outcomes are alike" in calibration_metrics([0, 0], eye[:2])["severe"]["note"]
