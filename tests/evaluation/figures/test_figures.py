"""Figures are checked as files (size, notice, repeatability) and by their refusals."""

import cv2
import numpy as np
import pandas as pd
import pytest

from steatosis_tf.evaluation.figures.results import confusion_figure, roc_figure, training_curves

PAPER_MATRIX = [[272, 8, 0, 0], [7, 225, 18, 0], [0, 11, 244, 5], [0, 0, 3, 204]]


def _scores(num_patients=60, seed=3):
    rng = np.random.default_rng(seed)
    labels = np.arange(num_patients) % 4
    logits = rng.normal(size=(num_patients, 4)) + 1.5 * np.eye(4)[labels]
    return labels, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def _picture(path):
    picture = cv2.imread(str(path))
    assert picture is not None
    assert picture.std() > 5, "the sheet is blank"
    return picture


def test_confusion_figure_is_150_dpi_png_and_repeatable(tmp_path):
    path = confusion_figure(PAPER_MATRIX, tmp_path / "new" / "confusion.png", unit="frames")
    assert _picture(path).shape == (885, 825, 3)  # 5.5 x 5.9 in at 150 dpi
    again = confusion_figure(PAPER_MATRIX, tmp_path / "again.png", unit="frames")
    assert path.read_bytes() == again.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.png", "new"]


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros((3, 4)), r"4 x 4 confusion matrix. Received: shape=\(3, 4\)"),
        (np.zeros((4, 4)), "at least one count"),
        (np.full((4, 4), np.nan), "whole counts"),
        (np.eye(4) * 0.5, "whole counts"),
        (-np.eye(4), "whole counts"),
    ],
)
def test_confusion_figure_refuses(tmp_path, matrix, message):
    with pytest.raises(ValueError, match=message):
        confusion_figure(matrix, tmp_path / "confusion.png")
    assert list(tmp_path.iterdir()) == []


def test_figure_name_must_be_png(tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.png. Received: path=a.jpg"):
        confusion_figure(np.eye(4), tmp_path / "a.jpg")


def test_roc_figure_draws_even_when_a_grade_is_absent(tmp_path):
    labels, scores = _scores()
    whole = _picture(roc_figure(labels, scores, tmp_path / "roc.png"))
    keep = labels < 3
    ids = np.arange(keep.sum()).astype(str)
    part = _picture(roc_figure(labels[keep], scores[keep], tmp_path / "part.png", patient_ids=ids))
    assert whole.shape == part.shape
    assert (whole != part).any()
    _picture(roc_figure(np.zeros(5, int), scores[:5], tmp_path / "one.png"))


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([], np.zeros((0, 4)), "at least one scored"),
        ([0, 1], np.full((3, 4), 0.25), r"Expected labels \(n,\) and probabilities \(n, 4\)"),
        ([0, np.nan], np.full((2, 4), 0.25), r"label in 0..3. Received: \[nan\]. Leave rows"),
        ([0, 4], np.full((2, 4), 0.25), r"label in 0..3. Received: \[4.0\]"),
        ([0, 1], np.full((2, 4), np.nan), "probabilities from 0 to 1"),
    ],
)
def test_roc_figure_refuses(tmp_path, labels, scores, message):
    with pytest.raises(ValueError, match=message):
        roc_figure(labels, scores, tmp_path / "roc.png")


def test_training_curves_from_file_and_table(tmp_path):
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
    table.to_csv(tmp_path / "history.csv", index=False)
    from_file = training_curves(tmp_path / "history.csv", tmp_path / "file.png")
    from_table = training_curves(table, tmp_path / "table.png")
    assert from_file.read_bytes() == from_table.read_bytes()
    _picture(training_curves(table.iloc[:1], tmp_path / "one.png"))
    _picture(training_curves(table.assign(val_loss=np.nan), tmp_path / "lost.png"))


def test_training_curves_refuse_an_empty_history(tmp_path):
    with pytest.raises(ValueError, match=r"at least one epoch and a column loss. Received: 0 rows"):
        training_curves(pd.DataFrame({"loss": []}), tmp_path / "t.png")
