"""Runs side by side: values, paired differences, DeLong, and what cannot be paired."""

import dataclasses

import cv2
import numpy as np
import pandas as pd
import pytest

from steatosis_tf.evaluation.figures.results import comparison_figure
from steatosis_tf.evaluation.metrics.comparison import (
    COMPARED,
    ComparedRun,
    compare_runs,
    comparison_text,
    delong_test,
    what_differs,
)
from steatosis_tf.grades import GRADES, SCORE_COLUMNS

COST = {"train_minutes": 1.25, "file_mb": 96.0, "ms_per_frame": None}


def table(skill: float, num_patients: int = 40, prefix: str = "P") -> pd.DataFrame:
    rng = np.random.default_rng(0)
    grade = np.arange(num_patients) % 4
    place = skill * grade + rng.normal(0, 1, num_patients)
    scores = np.exp(-((np.arange(4) - place[:, None]) ** 2))
    scores /= scores.sum(axis=1, keepdims=True)
    return pd.DataFrame(
        {
            "patient_id": [f"{prefix}{n:02d}" for n in range(num_patients)],
            "fold": 0,
            "grade": np.asarray(GRADES)[grade],
            **dict(zip(SCORE_COLUMNS, scores.T, strict=True)),
        }
    )


@pytest.fixture(scope="module")
def runs() -> list[ComparedRun]:
    tables = {"b" * 32: table(0.2), "a" * 32: table(1.0), "c" * 32: table(1.0, prefix="Q")}
    return [ComparedRun(run_id, f"run {run_id[0]}", t, COST) for run_id, t in tables.items()]


def accuracy(run: ComparedRun) -> float:
    predicted = run.patient_scores[list(SCORE_COLUMNS)].to_numpy().argmax(axis=1)
    return float((np.asarray(GRADES)[predicted] == run.patient_scores["grade"]).mean())


def test_values_and_differences_are_those_of_the_tables(runs):
    poor, good, other = rows = compare_runs(runs, "b", num_resamples=200)
    assert [row["accuracy"]["value"] for row in rows] == pytest.approx([accuracy(r) for r in runs])
    assert poor["accuracy"]["difference"] is None
    assert poor["delong"] is None
    difference = good["accuracy"]["difference"]
    assert difference["value"] == pytest.approx(accuracy(runs[1]) - accuracy(runs[0]))
    assert difference["low"] < difference["value"] < difference["high"]
    assert good["delong"] == delong_test(runs[1].patient_scores, runs[0].patient_scores)
    assert good["delong"]["p_value"] < 0.05
    assert "scores of one model only" in other["accuracy"]["difference"]
    assert other["delong"] is None
    assert other["accuracy"]["low"] is not None  # its own interval it has all the same
    assert (poor["train_minutes"], poor["ms_per_frame"]) == (1.25, None)


def test_the_text_shows_interval_difference_test_and_cost(runs):
    rows = compare_runs(runs, "b", num_resamples=200)
    text = comparison_text(rows)
    poor, good, other = text.splitlines()[1:4]
    assert "*" in good
    assert "+" in good
    assert "+" not in poor + other
    assert " 1.2 " in poor
    assert poor.rstrip().endswith("-")
    assert "DeLong, AUC for Mild or worse, run a against the baseline: +0." in text
    assert "p = 0.0" in text
    assert "1 run tested other patients than the baseline: not paired" in text
    rows[1]["delong"]["p_value"] = 1e-5
    assert comparison_text(rows).count("p < 0.001") == text.count("p < 0.001") + 1
    assert "nan" not in text.lower()
    assert "\nbaseline: run b (--baseline RUN_ID takes another)\n" in text
    assert "baseline" not in comparison_text(compare_runs(runs[:1], runs[0].run_id))


def test_the_text_has_a_column_of_what_differs_the_model_first(runs):
    settings = [
        {"train.seed": "0", "model.head": head, "train.epochs": "9", **more}
        for head, more in (("joint", {}), ("softmax", {"roi.method": "sector"}), ("joint", {}))
    ]
    differing = what_differs(settings)
    assert differing[1] == {"model.head": "softmax", "roi.method": "sector"}
    told = [dataclasses.replace(run, differs=differs)
            for run, differs in zip(runs, differing, strict=True)]  # fmt: skip
    text = comparison_text(compare_runs(told, "b", num_resamples=200))
    assert text.splitlines()[0].endswith("what differs")
    assert text.splitlines()[2].endswith(" model.head=softmax, roi.method=sector")
    five = dict.fromkeys("abcde", "1")
    told = [dataclasses.replace(runs[0], differs=five)]
    assert "a=1, b=1, c=1, d=1 and 1 more" in comparison_text(compare_runs(told, "b"))


def test_the_figure_has_a_panel_for_every_metric(runs, tmp_path):
    path = comparison_figure(compare_runs(runs, "b", num_resamples=200), tmp_path / "runs.png")
    picture = cv2.imread(str(path))
    ink = (picture < 60).all(axis=2)
    assert picture.shape[1] == 1800
    # The row with the most ink holds the lower axes: one long line per panel.
    axes = cv2.connectedComponentsWithStats(ink[[ink.sum(axis=1).argmax()]].astype(np.uint8))[2]
    assert (axes[1:, cv2.CC_STAT_WIDTH] > 100).sum() == len(COMPARED) == 4
    # A dot is as wide as high, and fills more than the pi / 4 of its square that a circle would.
    _, _, shapes, _ = cv2.connectedComponentsWithStats(ink.astype(np.uint8), connectivity=4)
    _, _, width, height, area = shapes[1:].T
    round_ones = (width == height) & (width > 10) & (area > 0.78 * width * height)
    assert round_ones.sum() == 3 * len(COMPARED)


@pytest.mark.parametrize("baseline", ["x", ""])
def test_a_baseline_that_is_none_or_all_is_refused(runs, baseline):
    with pytest.raises(ValueError, match="Expected the run_id of one of bbbbbbbb, aaaaaaaa"):
        compare_runs(runs, baseline, num_resamples=200)
