"""Curves: the data on their axes, what is written beside them, and refusals."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from statsmodels.stats.proportion import proportion_confint

from steatosis_tf.evaluation.figures.curves import (
    COLOURS,
    MARKERS,
    coverage_risk_figure,
    decision_curve_figure,
    reliability_figure,
    robustness_figure,
)
from tests.evaluation.figures.conftest import legend, texts


def test_reliability_figure_holds_bins_intervals_and_counts(tmp_path, sheets):
    stated = np.repeat([0.45, 0.95], [4, 6])
    scores = np.c_[stated, 1 - stated, np.zeros((10, 2))]
    scores[:4] = [0.45, 0.35, 0.1, 0.1]
    labels = np.array([0, 1, 1, 1, 0, 0, 0, 0, 0, 1])
    reliability_figure(labels, {"as scored": scores, "again": scores}, tmp_path / "r.png")
    figure = sheets[0]
    assert texts(figure)[:2] == ["Reliability of the most probable grade", "n = 10 patients"]
    upper, lower = figure.axes
    np.testing.assert_array_equal(upper.get_lines()[0].get_xydata(), [[0, 0], [1, 1]])
    right = np.array([1 / 4, 5 / 6])
    low, high = np.array([proportion_confint(k, n, method="wilson") for k, n in ((1, 4), (5, 6))]).T
    for place, container in enumerate(upper.containers):
        line, _, (bars,) = container
        np.testing.assert_allclose(line.get_ydata(), right)
        np.testing.assert_allclose(line.get_xdata(), np.array([0.45, 0.95]) + 0.004 * place)
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        np.testing.assert_allclose(ends, np.c_[low, high])
    error = (4 * abs(0.45 - 1 / 4) + 6 * abs(0.95 - 5 / 6)) / 10
    assert legend(upper) == [f"as scored: ECE {error:.3f}", f"again: ECE {error:.3f}"]
    heights = [bar.get_height() for bar in lower.patches]
    assert heights == [0, 0, 0, 0, 4, 0, 0, 0, 0, 6] * 2
    centres = [bar.get_x() + bar.get_width() / 2 for bar in lower.patches]
    np.testing.assert_allclose(
        centres, [*(np.arange(10) / 10 + 0.03), *(np.arange(10) / 10 + 0.07)]
    )
    assert upper.get_ylim() == pytest.approx((-0.02, 1.22))
    assert upper.get_xlim() == pytest.approx((-0.02, 1.02))
    np.testing.assert_allclose(upper.get_yticks(), [0, 0.2, 0.4, 0.6, 0.8, 1])
    assert figure.get_size_inches().tolist() == pytest.approx([5.2, 6.4])
    assert upper.get_gridspec().get_height_ratios() == (4, 1)
    points = [container[0] for container in upper.containers]
    assert [line.get_color() for line in points] == [COLOURS[0], COLOURS[3]]
    assert [line.get_marker() for line in points] == list(MARKERS[:2])
    assert [line.get_linestyle() for line in points] == ["-", "--"]
    faces = [bar.get_facecolor() for bar in lower.patches]
    assert faces == [to_rgba(COLOURS[0])] * 10 + [to_rgba(COLOURS[3])] * 10
    np.testing.assert_allclose([bar.get_width() for bar in lower.patches], 0.04)
    assert (lower.get_xlabel(), lower.get_ylabel()) == (
        "Probability stated for the most probable grade", "Patients",
    )  # fmt: skip


def test_reliability_of_one_certain_patient(tmp_path, sheets):
    scores = {"model": np.array([[1.0, 0, 0, 0]])}
    reliability_figure(np.array([0]), scores, tmp_path / "one.png")
    assert [bar.get_height() for bar in sheets[0].axes[1].patches] == [0] * 9 + [1]
    assert legend(sheets[0].axes[0]) == ["model: ECE 0.000"]


def test_decision_and_coverage_curves(tmp_path, sheets):
    thresholds = np.linspace(0.01, 0.9, 50)
    benefits = {
        "treat all": 0.25 - 0.75 * thresholds / (1 - thresholds),
        "treat none": np.zeros(50),
        "model": 0.25 - 0.1 * thresholds,
    }
    path = tmp_path / "decision.png"
    bands = {"model": (benefits["model"] - 0.1, benefits["model"] + 0.1)}
    decision_curve_figure(thresholds, benefits, path, subtitle="n = 9", task="Severe", bands=bands)
    assert texts(sheets[0])[:2] == ["Decision curve: Severe", "n = 9"]
    (axes,) = sheets[0].axes
    for line, values in zip(axes.get_lines(), benefits.values(), strict=True):
        np.testing.assert_allclose(line.get_xydata(), np.c_[thresholds, values])
    assert legend(axes) == list(benefits)
    assert [(line.get_color(), line.get_linestyle()) for line in axes.get_lines()] == [
        ("#8a8a8a", "--"), ("#000000", "-"), (COLOURS[0], "-"),
    ]  # fmt: skip
    widths = [line.get_linewidth() for line in axes.get_lines()]
    assert widths[0] == widths[1] < widths[2]
    assert sheets[0].get_size_inches().tolist() == pytest.approx([6.2, 4.8])
    (band,) = axes.collections
    assert tuple(band.get_facecolor()[0]) == pytest.approx((*to_rgba(COLOURS[0])[:3], 0.15))
    edges = band.get_paths()[0].vertices
    assert edges[:, 1].min() == pytest.approx(bands["model"][0].min())
    assert edges[:, 1].max() == pytest.approx(bands["model"][1].max())
    top = benefits["model"].max()
    assert axes.get_ylim() == pytest.approx((-0.25 * top, 1.15 * top))
    assert (axes.get_xlabel(), axes.get_ylabel()) == (
        "Threshold probability", "Net benefit per patient",
    )  # fmt: skip

    coverage_risk_figure([0.5, 1.0], {"model": [0.1, 0.4]}, path, subtitle="n = 2")
    assert texts(sheets[1])[1] == "n = 2"
    assert sheets[1].get_size_inches().tolist() == pytest.approx([6.2, 4.6])
    (axes,) = sheets[1].axes
    np.testing.assert_allclose(axes.get_lines()[0].get_xydata(), [[0.5, 0.1], [1.0, 0.4]])
    assert axes.get_xlim() == (0, 1.01)
    assert axes.get_xlabel() == "Coverage: proportion of patients graded"
    assert axes.get_ylabel() == "Error rate among them"
    assert axes.get_ylim() == pytest.approx((-0.008, 0.46))
    assert legend(axes) == ["model"]
    coverage_risk_figure([1.0], {"a": [0.0], "b": [0.01]}, path, subtitle="")
    lines = sheets[2].axes[0].get_lines()
    assert [(line.get_color(), line.get_linestyle()) for line in lines] == [
        (COLOURS[0], "-"), (COLOURS[1], "--"),
    ]  # fmt: skip
    assert sheets[2].axes[0].get_ylim()[1] == 0.05, "a small risk does not fill the panel"
    coverage_risk_figure([1.0], {str(k): [0.1] for k in range(7)}, path, subtitle="")
    colours = [line.get_color() for line in sheets[3].axes[0].get_lines()]
    assert colours == [*COLOURS[:6], COLOURS[0]], "the seventh begins again"


def test_robustness_figure_leaves_rows_without_value_out(tmp_path, sheets):
    table = pd.DataFrame(
        {
            "perturbation": ["gain", "gain", "gain", "gain", "roi_shift_depth"],
            "strength": [6, -6, 0, 12, 1],
            "unit": ["dB", "dB", "dB", "dB", "px"],
            "value": [0.6, 0.5, 0.7, None, None],
            "low": [0.5, 0.4, 0.6, None, None],
            "high": [0.7, 0.6, 0.8, None, None],
        }
    )
    path = tmp_path / "robustness.png"
    robustness_figure(table, path, metric_label="Accuracy", subtitle="n = 4 patients")
    assert texts(sheets[0])[:2] == ["Robustness: accuracy under disturbed frames", "n = 4 patients"]
    gain, shift = sheets[0].axes
    assert gain.get_shared_y_axes().joined(gain, shift)
    assert sheets[0].get_size_inches().tolist() == pytest.approx([5.6, 3.65])
    undisturbed, curve = gain.get_lines()
    assert undisturbed.get_ydata()[0] == 0.7
    assert (undisturbed.get_linestyle(), curve.get_linestyle()) == ("--", "-")
    assert (curve.get_marker(), curve.get_color()) == ("o", COLOURS[0])
    assert gain.collections[0].get_alpha() == 0.3
    np.testing.assert_allclose(curve.get_xydata(), [[-6, 0.5], [0, 0.7], [6, 0.6]])
    edges = gain.collections[0].get_paths()[0].vertices
    assert (edges[:, 1].min(), edges[:, 1].max()) == (0.4, 0.8)
    assert (gain.get_xlabel(), gain.get_ylabel()) == ("gain (dB)", "Accuracy")
    assert shift.get_xlabel() == "ROI shift depth"
    assert [text.get_text() for text in shift.texts] == ["no value"]
    assert not shift.get_lines()


def test_empty_panels_are_hidden(tmp_path, sheets):
    names = ["gain", "blur", "jpeg", "speckle", "contrast"]
    table = pd.DataFrame({"perturbation": names, "strength": 0, "unit": "", "value": 0.5})
    robustness_figure(table, tmp_path / "r.png", metric_label="Kappa", subtitle="")
    assert [axes.get_visible() for axes in sheets[0].axes] == [True] * 5 + [False] * 3
    assert sheets[0].axes[2].get_xlabel() == "JPEG"
    assert sheets[0].get_size_inches().tolist() == pytest.approx([10.8, 6.15])
    assert [axes.get_ylabel() for axes in sheets[0].axes[:5]] == ["Kappa", "", "", "", "Kappa"]
