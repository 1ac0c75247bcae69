"""Net benefit by hand, against treat all and none, and with an index as comparator."""

import json

import numpy as np
import pandas as pd
import pytest

from steatosis_tf.evaluation.clinical.baselines import fit_index_probability, index_probability
from steatosis_tf.evaluation.clinical.thresholds import decision_curve
from steatosis_tf.grades import SCORE_COLUMNS


def patients(scores: list[float], positive: list[bool]) -> pd.DataFrame:
    score = np.asarray(scores, dtype=float)
    return pd.DataFrame(
        {
            "patient_id": [f"{row:03d}" for row in range(len(score))],
            "grade": np.where(positive, "Mild", "Normal"),
            **dict(zip(SCORE_COLUMNS, [1 - score, score, 0 * score, 0 * score], strict=True)),
        }
    )


TABLE = patients([0.9, 0.8, 0.3, 0.6, 0.2, 0.1, 0.1, 0.05], [True] * 3 + [False] * 5)


def test_net_benefit_by_hand() -> None:
    found = decision_curve(TABLE, thresholds=[0.2, 0.5], num_resamples=200)
    # 0.2: 3 found, 2 false alarms (0.6 and 0.2 itself) at odds 1/4; 0.5: 2 found, 1 alarm at 1.
    assert found["net_benefit"]["model"]["value"] == pytest.approx(
        [3 / 8 - 2 / 8 / 4, 2 / 8 - 1 / 8]
    )
    assert found["net_benefit"]["treat_all"]["value"] == pytest.approx(
        [3 / 8 - 5 / 8 / 4, 3 / 8 - 5 / 8]
    )
    assert found["net_benefit"]["treat_none"]["value"] == [0, 0]
    assert found["prevalence"] == 3 / 8
    assert found["num_patients"] == 8
    json.dumps(found, allow_nan=False)


def test_bands_surround_the_model_and_hold_the_prevalence() -> None:
    rng = np.random.default_rng(0)
    positive = rng.random(120) < 0.4
    score = np.clip(0.4 + 0.2 * positive + rng.normal(0, 0.15, 120), 0.01, 0.99)
    found = decision_curve(patients(list(score), list(positive)), num_resamples=400)
    model, everyone = (found["net_benefit"][name] for name in ("model", "treat_all"))
    assert len(model["value"]) == len(found["thresholds"]) == 60
    assert (np.array(model["low"]) <= np.array(model["value"]) + 1e-6).all()
    assert (np.array(model["high"]) >= np.array(model["value"]) - 1e-6).all()
    np.testing.assert_allclose(everyone["low"], everyone["high"], atol=1e-6)


def test_an_index_becomes_a_comparator() -> None:
    index = np.array([1.9, 1.7, 1.6, 1.5, 1.2, 1.1, 1.0, 0.9])
    curve = fit_index_probability(index, TABLE["grade"] == "Mild")
    probability = index_probability(curve, index)
    assert ((probability > 0) & (probability < 1)).all()
    assert (np.diff(probability) < 0).all()
    found = decision_curve(
        TABLE, comparators={"hepatorenal_index": probability}, thresholds=[0.5], num_resamples=200
    )
    best = 3 / 8  # it separates the patients
    assert found["net_benefit"]["hepatorenal_index"]["value"] == pytest.approx([best], abs=0.13)


def test_index_curve_recovers_a_logistic_model() -> None:
    rng = np.random.default_rng(0)
    index = rng.normal(1.2, 0.3, 20000)
    positive = rng.random(20000) < 1 / (1 + np.exp(-(-6 + 5 * index)))
    curve = fit_index_probability(index, positive)
    assert curve["intercept"] == pytest.approx(-6, rel=0.05)
    assert curve["slope"] == pytest.approx(5, rel=0.05)
