"""Figures of results: the data on their axes, what is written beside them, and refusals."""

import cv2
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from sklearn import metrics as sk

from steatosis_tf.evaluation.figures.curves import (
    COLOURS,
    FAINT,
    INK,
    add_legend,
    new_sheet,
    style_axes,
)
from steatosis_tf.evaluation.figures.results import (
    comparison_figure,
    confusion_figure,
    roc_figure,
    training_curves,
)
from steatosis_tf.grades import GRADES, NOTICE
from tests.evaluation.figures.conftest import legend, texts

PAPER_MATRIX = [[272, 8, 0, 0], [7, 225, 18, 0], [0, 11, 244, 5], [0, 0, 3, 204]]


def _scores(num_patients=60, seed=3):
    rng = np.random.default_rng(seed)
    labels = np.arange(num_patients) % 4
    logits = rng.normal(size=(num_patients, 4)) + 1.5 * np.eye(4)[labels]
    return labels, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_a_sheet_has_its_words_in_fixed_places():
    figure = new_sheet("What", "who", 6.0, 4.0)
    assert (*figure.get_size_inches(), figure.dpi) == (6.0, 4.0, 150)
    assert texts(figure) == ["What", "who", NOTICE]
    inches = [tuple(np.multiply(text.get_position(), (6, 4))) for text in figure.texts]
    np.testing.assert_allclose(inches, [(0.12, 3.86), (0.12, 3.56), (0.12, 0.10)])
    assert [text.get_va() for text in figure.texts] == ["top", "top", "bottom"]
    assert [text.get_size() for text in figure.texts] == [12, 9, 6.5]
    assert [text.get_color() for text in figure.texts] == [INK, FAINT, FAINT]
    assert figure.texts[0].get_weight() == "bold"
    rect = figure.get_layout_engine().get()["rect"]
    np.testing.assert_allclose(rect, (0.01, 0.34 / 4, 0.98, (4 - 0.80 - 0.34) / 4))


def test_axes_are_quiet_and_a_legend_may_stand_below():
    figure = new_sheet("What", "who", 6.0, 4.0)
    first, second = figure.subplots(1, 2)
    for axes in (first, second):
        axes.plot([0, 1], label="curve")
        axes.plot([1, 0], label="another")
        axes.plot([1, 1], label="a third")
        style_axes(axes, "across (mm)", "up (dB)")
    assert (first.xaxis.label.get_size(), first.yaxis.label.get_size()) == (9, 9)
    assert (first.xaxis.label.get_color(), first.yaxis.label.get_color()) == (INK, INK)
    assert {label.get_size() for label in first.get_xticklabels()} == {8}
    assert first.xaxis.get_gridlines()[0].get_visible()
    assert first.xaxis.get_gridlines()[0].get_color() == "#e4e4e4"
    assert [first.spines[side].get_visible() for side in ("top", "right", "left", "bottom")] == [
        False, False, True, True,
    ]  # fmt: skip
    add_legend(first, "upper left")
    add_legend(second, "upper center", below=True)
    inside, below = first.get_legend(), second.get_legend()
    assert inside.get_frame().get_alpha() == below.get_frame().get_alpha() == 0.92
    assert {text.get_size() for text in (*inside.get_texts(), *below.get_texts())} == {8}
    figure.canvas.draw()
    heights = [[text.get_window_extent().y0 for text in one.get_texts()] for one in (inside, below)]
    assert len(set(heights[0])) == 3
    assert len(set(heights[1])) == 2, "two columns"
    assert below.get_window_extent().y1 < second.get_window_extent().y0
    assert inside.get_window_extent().y0 > first.get_window_extent().y0


def test_confusion_figure_holds_counts_shares_and_margins(tmp_path, sheets):
    path = confusion_figure(PAPER_MATRIX, tmp_path / "new" / "confusion.png", unit="frames")
    assert cv2.imread(str(path)).shape == (885, 825, 3)  # 5.5 x 5.9 in at 150 dpi
    figure = sheets[0]
    assert texts(figure) == [
        "Confusion matrix: 945 of 997 correct (94.8 %)",
        "n = 997 frames",
        NOTICE,
    ]
    (axes,) = figure.axes
    matrix = np.array(PAPER_MATRIX)
    share = matrix / matrix.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(axes.images[0].get_array(), share)
    assert axes.images[0].get_clim() == (0, 1)
    written = {(text.get_position()[0], round(text.get_position()[1])): [] for text in axes.texts}
    for text in axes.texts:
        written[text.get_position()[0], round(text.get_position()[1])].append(text)
    for row, column in np.ndindex(4, 4):
        count, percent = written[column, row]
        assert count.get_text() == str(matrix[row, column])
        assert percent.get_text() == f"{100 * share[row, column]:.1f} %"
        assert count.get_position()[1] < row < percent.get_position()[1]
        dark = share[row, column] > 0.5
        assert (count.get_color() == "white") == (percent.get_color() == "white") == dark
    names = [[label.get_text() for label in labels]
             for labels in (axes.get_xticklabels(), axes.get_yticklabels())]  # fmt: skip
    assert names[0] == [f"{g}\nn = {n}" for g, n in zip(GRADES, matrix.sum(0), strict=True)]
    assert names[1] == [f"{g}\nn = {n}" for g, n in zip(GRADES, matrix.sum(1), strict=True)]
    assert axes.get_xlabel() == "Predicted grade"
    assert axes.get_ylabel().startswith("Reference grade")
    np.testing.assert_allclose(axes.get_xticks(minor=True), [0.5, 1.5, 2.5])
    np.testing.assert_allclose(axes.get_yticks(minor=True), [0.5, 1.5, 2.5])
    line = axes.xaxis.get_minor_ticks()[0].gridline
    assert line.get_visible(), "cells are told apart"
    assert (line.get_color(), line.get_linewidth()) == ("white", 2)
    lengths = {tick.tick1line.get_markersize() for axis in (axes.xaxis, axes.yaxis)
               for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())}  # fmt: skip
    assert lengths == {0}
    assert {spine.get_edgecolor() for spine in axes.spines.values()} == {to_rgba("#bbbbbb")}
    assert {text.get_ha() for text in axes.texts} == {text.get_va() for text in axes.texts}
    assert {text.get_size() for text in axes.texts} == {14, 8}
    title, cohort, notice = (text.get_window_extent() for text in figure.texts)
    picture = axes.get_tightbbox()
    assert notice.y1 < picture.y0 < picture.y1 < cohort.y0 < cohort.y1 < title.y0
    assert 0 < title.x0 < title.x1 < 825
    again = confusion_figure(PAPER_MATRIX, tmp_path / "again.png", unit="frames")
    assert path.read_bytes() == again.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.png", "new"]


def test_a_grade_nobody_has_gets_counts_without_percent(tmp_path, sheets):
    confusion_figure(np.diag([5, 0, 0, 3]), tmp_path / "c.png")
    assert texts(sheets[0])[1] == "n = 8 patients"
    assert len(sheets[0].axes[0].texts) == 16 + 8


def test_roc_figure_draws_the_curve_of_every_grade_and_their_mean(tmp_path, sheets):
    labels, scores = _scores()
    roc_figure(labels, scores, tmp_path / "roc.png", unit="frames", patient_ids=labels // 2)
    (axes,) = sheets[0].axes
    assert texts(sheets[0])[1] == "n = 2 patients, 60 frames"
    assert sheets[0].get_size_inches().tolist() == pytest.approx([5.3, 6.5])
    chance, *curves, mean = axes.get_lines()
    np.testing.assert_array_equal(chance.get_xydata(), [[0, 0], [1, 1]])
    areas, heights = [], []
    grid = np.linspace(0, 1, 501)
    for grade, curve in enumerate(curves):
        false_rate, true_rate, _ = sk.roc_curve(labels == grade, scores[:, grade],
                                                drop_intermediate=False)  # fmt: skip
        np.testing.assert_allclose(curve.get_xydata(), np.c_[false_rate, true_rate])
        areas.append(sk.roc_auc_score(labels == grade, scores[:, grade]))
        heights.append(np.interp(grid, false_rate, true_rate))
    np.testing.assert_allclose(mean.get_xdata(), [0, *grid])
    np.testing.assert_allclose(mean.get_ydata(), [0, *np.mean(heights, axis=0)])
    assert legend(axes) == [
        *(f"{grade} (n = 15): AUC {area:.3f}" for grade, area in zip(GRADES, areas, strict=True)),
        f"macro average: AUC {np.mean(areas):.3f}",
    ]
    assert [line.get_color() for line in curves] == list(COLOURS[:4])
    assert {line.get_linewidth() for line in curves} == {1.8}
    assert (mean.get_color(), chance.get_color()) == ("black", "#bbbbbb")
    assert len({str(line.get_linestyle()) for line in curves}) == 4
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("1 - specificity", "Sensitivity")
    assert axes.get_xlim() == axes.get_ylim() == (-0.02, 1.02)
    assert axes.get_aspect() == 1
    assert axes.get_axisbelow() is True
    assert not axes.spines["top"].get_visible()
    assert not axes.spines["right"].get_visible()


def test_roc_figure_says_which_grade_has_no_curve(tmp_path, sheets):
    labels, scores = _scores()
    keep = labels < 3
    roc_figure(labels[keep], scores[keep], tmp_path / "part.png")
    assert legend(sheets[0].axes[0])[3:] == [
        "Severe: no curve (no patients)", "no macro average: a grade has no curve",
    ]  # fmt: skip
    assert texts(sheets[0])[1] == "n = 45 patients"
    roc_figure(np.zeros(5, int), scores[:5], tmp_path / "one.png", unit="frames")
    assert legend(sheets[1].axes[0])[:2] == [
        "Normal: no curve (everybody is)", "Mild: no curve (no frames)",
    ]  # fmt: skip


def test_training_curves_from_file_and_table(tmp_path, sheets):
    epochs = np.arange(30)
    table = pd.DataFrame(
        {
            "epoch": epochs,
            "loss": np.exp(-epochs / 10),
            "accuracy": 1 - 0.7 * np.exp(-epochs / 10),
            "val_loss": 0.3 + (epochs - 18.0) ** 2 / 800,
            "val_accuracy": 0.8 - 0.5 * np.exp(-epochs / 8),
            "learning_rate": np.where(epochs < 20, 1e-4, 1e-5),
        }
    )
    first = training_curves(table, tmp_path / "first.png")
    second = training_curves(table, tmp_path / "second.png")
    assert first.read_bytes() == second.read_bytes()
    assert texts(sheets[0])[:2] == ["Training curves", "n = 30 epochs"]
    loss, accuracy, rate = sheets[0].axes
    train, validation, best, mark = loss.get_lines()
    np.testing.assert_allclose(train.get_xydata(), np.c_[epochs + 1, table["loss"]])
    np.testing.assert_allclose(validation.get_xydata(), np.c_[epochs + 1, table["val_loss"]])
    assert (train.get_linestyle(), validation.get_linestyle()) == ("-", "--")
    assert best.get_xdata()[0] == 19
    np.testing.assert_allclose(mark.get_xydata(), [[19, 0.3]])
    assert train.get_color() != validation.get_color() == mark.get_color()
    assert (mark.get_marker(), mark.get_linestyle(), train.get_marker()) == ("D", "None", "None")
    assert [line.get_drawstyle() for line in (train, validation)] == ["default", "default"]
    assert all(tick == round(tick) for tick in loss.get_xticks())
    assert (loss.get_xlabel(), len(rate.get_lines())) == ("Epoch", 1)
    assert rate.get_lines()[0].get_color() == COLOURS[6]
    assert sheets[0].get_size_inches().tolist() == pytest.approx([10.8, 4.0])
    assert legend(loss) == ["training", "validation", "lowest, epoch 19"]
    assert [len(axes.get_lines()) for axes in (accuracy, rate)] == [2, 1]
    assert [axes.get_yscale() for axes in (loss, accuracy, rate)] == ["linear", "linear", "log"]
    assert legend(rate) == ["as scheduled"]
    assert [axes.get_ylabel() for axes in (loss, accuracy, rate)] == [
        "loss", "accuracy", "learning rate",
    ]  # fmt: skip
    assert rate.get_lines()[0].get_drawstyle() == "steps-mid"


def test_training_curves_of_one_epoch_and_of_a_lost_validation(tmp_path, sheets):
    one = pd.DataFrame({"loss": [0.5], "accuracy": [0.2], "seconds": [3.0], "val_loss": [np.nan]})
    training_curves(one, tmp_path / "one.png")
    assert texts(sheets[0])[1] == "n = 1 epochs"
    assert len(sheets[0].axes) == 2, "seconds are no metric"
    train, validation = sheets[0].axes[0].get_lines()
    np.testing.assert_allclose(train.get_xydata(), [[1, 0.5]])
    assert train.get_marker() == "o", "one point draws no line"
    training_curves(pd.DataFrame({"loss": [3.0, 2.0, 1.0]}), tmp_path / "three.png")
    ticks = sheets[1].axes[0].get_xticks()
    assert list(ticks) == [round(tick) for tick in ticks], "there is no half epoch"
    assert np.isnan(validation.get_ydata()).all()


def test_comparison_figure_draws_every_value_and_interval(tmp_path, sheets):
    cell = {"value": 0.5, "low": 0.4, "high": 0.7}
    difference = {"value": 0.2, "low": 0.1, "high": 0.3}
    rows = [{"name": "base", "m": cell, "k": {"value": None}},
            {"name": "new", "m": cell | {"value": 0.7, "difference": difference},
             "k": {"value": 0.3, "low": None}}]  # fmt: skip
    comparison_figure(rows, tmp_path / "c.png", compared={"m": "M", "k": "K"}, reference=0)
    assert texts(sheets[0])[0] == "Runs side by side"
    assert texts(sheets[0])[1].startswith("2 runs; 95 % intervals over patients; above each dot")
    first, second = sheets[0].axes
    lines = [line.get_xydata().tolist() for line in first.get_lines()]
    assert lines[0][0][0] == 0.5  # the reference
    assert lines[1:] == [[[0.4, 0], [0.7, 0]], [[0.5, 0]], [[0.4, 1], [0.7, 1]], [[0.7, 1]]]
    assert [line.get_xydata().tolist() for line in second.get_lines()] == [[[0.3, 1]]]
    assert first.get_lines()[0].get_linestyle() == "--"
    assert [line.get_color() for line in first.get_lines()[1:]] == [COLOURS[0], INK] * 2
    assert {line.get_marker() for line in first.get_lines()[2::2]} == {"o"}
    (note,) = first.texts
    assert (note.xy, note.get_position(), note.get_ha()) == ((0.7, 1), (0, 5), "center")
    assert [text.get_text() for text in first.texts] == ["+0.200*"]
    assert [text.get_text() for text in first.get_yticklabels()] == ["base", "new"]
    assert first.get_ylim() == second.get_ylim() == (1.5, -0.5)
    assert sheets[0].get_size_inches().tolist() == pytest.approx([12.0, 3.0])
    assert (first.get_xlabel(), second.get_xlabel()) == ("M", "K")
