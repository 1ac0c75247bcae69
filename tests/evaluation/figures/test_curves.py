"""Curves as files, and their refusals."""

import cv2
import numpy as np
import pandas as pd
import pytest

from steatosis_tf.evaluation.figures.curves import (
    coverage_risk_figure,
    decision_curve_figure,
    reliability_figure,
    robustness_figure,
)


def _picture(path):
    picture = cv2.imread(str(path))
    assert picture is not None
    assert picture.std() > 5, "the sheet is blank"
    return picture


def test_reliability_figure_of_two_sets_and_of_one_patient(tmp_path):
    rng = np.random.default_rng(0)
    scores = rng.dirichlet(np.ones(4), 80)
    labels = scores.argmax(axis=1)
    both = {
        "before temperature": scores,
        "after": np.sqrt(scores) / np.sqrt(scores).sum(1)[:, None],
    }
    _picture(reliability_figure(labels, both, tmp_path / "two.png"))
    _picture(reliability_figure([0], {"model": [[1, 0, 0, 0]]}, tmp_path / "one.png"))
    with pytest.raises(ValueError, match="at least one set of probabilities"):
        reliability_figure(labels, {}, tmp_path / "none.png")
    with pytest.raises(ValueError, match="probabilities from 0 to 1"):
        reliability_figure(labels, {"model": scores * np.nan}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_decision_and_coverage_curves(tmp_path):
    thresholds = np.linspace(0.01, 0.9, 50)
    benefits = {
        "treat all": 0.25 - 0.75 * thresholds / (1 - thresholds),
        "treat none": np.zeros(50),
        "model": 0.25 - 0.1 * thresholds,
    }
    path = tmp_path / "decision.png"
    _picture(decision_curve_figure(thresholds, benefits, path, subtitle="n = 9", task="Severe"))
    _picture(coverage_risk_figure([0.5, 1.0], {"model": [0.0, 0.0]}, path, subtitle="n = 2"))
    for bad, message in (
        ({"model": [0.1]}, r"model with as many values as thresholds, 50. Received: shape=\(1,\)"),
        ({"model": np.full(50, np.nan)}, "finite numbers in model"),
        ({}, "at least one curve"),
    ):
        with pytest.raises(ValueError, match=message):
            decision_curve_figure(thresholds, bad, path, subtitle="", task="")


def test_robustness_figure_leaves_rows_without_value_out(tmp_path):
    table = pd.DataFrame(
        {
            "perturbation": ["gain", "gain", "gain", "blur"],
            "strength": [-6, 0, 6, 1],
            "unit": ["dB", "dB", "dB", "px"],
            "value": [0.5, 0.7, None, None],
        }
    )
    path = tmp_path / "robustness.png"
    _picture(robustness_figure(table, path, metric_label="Accuracy", subtitle="n = 4 patients"))
    with pytest.raises(ValueError, match="at least one row with a value"):
        robustness_figure(table.iloc[2:], path, metric_label="Accuracy", subtitle="")
