"""Who needs no model: the reader who always says one grade."""

import pandas as pd
import pytest

from steatosis_tf.evaluation.clinical.baselines import majority_scores, untested_grades
from steatosis_tf.grades import GRADES, SCORE_COLUMNS


def _tested(grades: list[str], folds: list[int]) -> pd.DataFrame:
    table = pd.DataFrame({"patient_id": [f"P{n}" for n in range(len(grades))], "grade": grades})
    return table.assign(fold=folds, num_frames=1, **dict.fromkeys(SCORE_COLUMNS, 0.25))


def test_one_grade_is_said_in_all_folds_of_an_even_study():
    """Leaving one of two out, the other grade is the commonest: such a reader is never right."""
    tested = _tested(["Normal", "Mild"] * 3 + ["Mild"], list(range(7)))
    grades = tested.set_index("patient_id")["grade"]
    untested = {str(fold): grades.drop(f"P{fold}") for fold in range(7)}
    found = majority_scores(tested, untested)
    assert set(found["predicted"]) == {"Mild"}
    assert (found["predicted"] == tested["grade"]).mean() == pytest.approx(4 / 7)


def test_of_one_part_the_tested_grades_are_not_looked_at():
    tested = _tested(["Severe"] * 3, [0] * 3)
    untested = {"0": pd.Series(["Mild", "Mild", "Severe"])}
    assert set(majority_scores(tested, untested)["predicted"]) == {"Mild"}
    assert set(majority_scores(tested, {})["predicted"]) == {GRADES[3]}


def test_a_first_row_without_a_grade_hides_no_patient():
    manifest = pd.DataFrame({"patient_id": ["A", "A", "B", "C"],
                             "grade": ["", "Mild", "Severe", ""]})  # fmt: skip
    split = pd.DataFrame({"fold": "0", "patient_id": ["A", "B", "C"], "split": "train"})
    assert untested_grades(split, manifest, [0])["0"].to_dict() == {"A": "Mild", "B": "Severe"}
