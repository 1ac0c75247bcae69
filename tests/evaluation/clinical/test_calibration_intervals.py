"""The interval of a calibration error: its own value, its edges, and its promise."""

import numpy as np
import pytest
from scipy import special

from steatosis_tf.evaluation.clinical.calibration import ece_interval

#: Kinds of miscalibration: name -> probability that a model states where the truth is `truth`.
MODELS = {
    "perfect": lambda truth: truth,
    "over-confident": lambda truth: special.expit(2 * special.logit(truth)),
    "shifted": lambda truth: special.expit(special.logit(truth) + 1),
    "wavy": lambda truth: np.clip(truth + 0.1 * np.sin(6 * truth), 0.01, 0.99),
}


def draw(model: str, num: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Outcomes, stated probabilities and true probabilities of `num` patients, a third negative."""
    ill = np.arange(num) >= num // 3
    truth = special.expit(1.2 * rng.normal(1.2 * ill - 0.3, 1.0))
    return rng.random(num) < truth, MODELS[model](truth), truth


def coverage(model: str, binning: str, num_patients: int, num_studies: int) -> float:
    rng = np.random.default_rng(0)
    _, stated, truth = draw(model, 300_000, rng)
    if binning == "equal_width":
        edges = np.linspace(0, 1, 11)
    else:
        edges = np.quantile(stated, np.linspace(0, 1, 11))
    place = np.clip(np.searchsorted(edges, stated, "right") - 1, 0, 9)
    error = np.abs(np.bincount(place, truth - stated, minlength=10)).sum() / len(stated)
    held = 0
    for study in range(num_studies):
        happened, stated, _ = draw(model, num_patients, rng)
        found = ece_interval(happened, stated, binning=binning, seed=study)
        held += found["low"] <= error <= found["high"]
    return held / num_studies


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
@pytest.mark.parametrize("digits", [1, 9])  # rounded: many ties, also at 0 and 1
def test_the_value_is_that_of_a_loop_over_bins(seed, digits):
    rng = np.random.default_rng(seed)
    probability = rng.beta(0.5, 0.5, 60).round(digits)
    happened = rng.random(60) < probability**2
    edges = {
        "equal_width": np.linspace(0, 1, 9),
        "equal_mass": np.unique(np.quantile(probability, np.linspace(0, 1, 9))),
    }
    for binning, expected in edges.items():
        found = ece_interval(happened, probability, 8, binning)
        assert found["value"] == pytest.approx(loop_ece(happened, probability, expected), abs=1e-12)
        assert found["low"] <= found["value"] <= found["high"]


def test_equal_probabilities_stay_in_one_bin_whatever_their_order():
    probability = np.array([0.5] * 6 + [0.9] * 2)
    happened = np.array([1, 0, 1, 0, 0, 0, 1, 1])
    order = np.random.default_rng(0).permutation(8)
    # 2 of 6 at 0.5, and both at 0.9
    expected = (6 * abs(2 / 6 - 0.5) + 2 * abs(1 - 0.9)) / 8
    for rows in (slice(None), order):
        found = ece_interval(happened[rows], probability[rows], 4)
        assert found["value"] == pytest.approx(expected)
    assert ece_interval(happened, np.full(8, 0.5), 4)["value"] == pytest.approx(0)


def test_by_hand():
    """Two bins of two: gaps |1 - 0.1 - 0.3| / 4 below and |1 - 0.7 - 0.9| / 4 above."""
    found = ece_interval([0, 1, 0, 1], [0.1, 0.3, 0.7, 0.9], num_bins=2, binning="equal_width")
    assert found["value"] == pytest.approx((0.6 + 0.6) / 4)


def test_certain_and_right_is_an_error_of_zero():
    found = ece_interval([0, 0, 1, 1], [0.0, 0.0, 1.0, 1.0])
    assert (found["value"], found["low"], found["chance"]) == (0.0, 0.0, 0.0)


def test_a_large_sample_tells_a_shifted_model_from_a_perfect_one():
    rng = np.random.default_rng(1)
    for model, is_off in (("perfect", False), ("shifted", True)):
        happened, stated, _ = draw(model, 2000, rng)
        assert (ece_interval(happened, stated)["low"] > 0) == is_off


def test_same_seed_same_interval():
    happened, stated, _ = draw("wavy", 44, np.random.default_rng(2))
    assert ece_interval(happened, stated, seed=3) == ece_interval(happened, stated, seed=3)


def test_the_truth_is_held_in_a_short_run():
    assert coverage("over-confident", "equal_mass", 44, 40) >= 0.85


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("binning", ["equal_mass", "equal_width"])
@pytest.mark.parametrize("num_patients", [44, 200])
def test_the_truth_is_held(model, binning, num_patients):
    # 93 % less two standard errors of 200 studies.
    assert coverage(model, binning, num_patients, 200) >= 0.895
