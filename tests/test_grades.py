"""The grades are clinical convention: the numbers below are the convention's, not the code's."""

import ast
from pathlib import Path

import pytest

from steatosis_tf import grades
from steatosis_tf.grades import GRADES, SCORE_COLUMNS, TASKS, grade_from_fat_percent, label_of


@pytest.mark.parametrize(
    ("fat_percent", "grade"),
    [
        (0, "Normal"), (4.99, "Normal"), (5, "Mild"), (33, "Mild"), (33.01, "Moderate"),
        (34, "Moderate"), (66, "Moderate"), (66.5, "Severe"), (67, "Severe"), (100, "Severe"),
    ],
)  # fmt: skip
def test_cuts_are_5_33_66(fat_percent, grade):
    assert grade_from_fat_percent(fat_percent) == grade


@pytest.mark.parametrize("fat_percent", [-0.1, 100.1, float("nan"), float("inf")])
def test_impossible_fat_is_refused(fat_percent):
    with pytest.raises(ValueError, match=r"fat_percent from 0 to 100. Received: fat_percent="):
        grade_from_fat_percent(fat_percent)


def test_labels_follow_the_order_of_severity():
    assert [label_of(name) for name in ("Normal", "Mild", "Moderate", "Severe")] == [0, 1, 2, 3]
    assert SCORE_COLUMNS == ("p_normal", "p_mild", "p_moderate", "p_severe")


@pytest.mark.parametrize("name", ["", "normal", "S1"])
def test_an_unknown_grade_is_refused(name):
    with pytest.raises(ValueError, match=f"out of Normal, Mild.*grade={name!r}"):
        label_of(name)


def test_every_task_maps_each_label_to_one_of_its_classes():
    for classes, class_of_label in TASKS.values():
        assert len(class_of_label) == len(GRADES)
        assert sorted(set(class_of_label)) == list(range(len(classes)))
        assert list(class_of_label) == sorted(class_of_label)


def test_the_notice_says_what_this_is_not():
    assert "Not a diagnosis" in grades.NOTICE
    assert "not a medical device" in grades.NOTICE


def test_the_source_of_truth_imports_nothing():
    tree = ast.parse(Path(grades.__file__).read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
