"""Hand-worked tables, and the source paper's matrix.

The paper's printed per-class table could not be obtained. `SOURCE_PAPER` is therefore a
RECONSTRUCTION: the confusion matrix, n, the supports and the accuracy are the paper's; the
two-decimal per-class values and averages are made up so that exactly the cells fail that are known
to fail (Normal P and F1, Mild P, Moderate P, Severe R; macro P, weighted P, weighted F1).
"""

import copy
import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from steatosis_tf.evaluation.published import check_tables, exact_tables

PAPER_MATRIX = [[272, 8, 0, 0], [7, 225, 18, 0], [0, 11, 244, 5], [0, 0, 3, 204]]

SOURCE_PAPER = {
    "source": "reconstruction: matrix, n, supports, accuracy as published; the rest made to fail",
    "grades": ["Normal", "Mild", "Moderate", "Severe"],
    "confusion_matrix": PAPER_MATRIX,
    "per_class": {
        "Normal": [0.98, 0.97, 0.98, 280],
        "Mild": [0.93, 0.90, 0.91, 250],
        "Moderate": [0.93, 0.94, 0.93, 260],
        "Severe": [0.98, 0.97, 0.98, 210],
    },
    "macro": [0.96, 0.95, 0.95],
    "weighted": [0.96, 0.95, 0.94],
    "n": 1000,
    "accuracy": 0.945,
}

# By hand from the matrix: rows 280 250 260 207, columns 279 244 265 209, hits 272 225 244 204.
ROUNDED = {
    "per_class": {
        "Normal": [0.97, 0.97, 0.97, 280],
        "Mild": [0.92, 0.90, 0.91, 250],
        "Moderate": [0.92, 0.94, 0.93, 260],
        "Severe": [0.98, 0.99, 0.98, 207],
    },
    "macro": [0.95, 0.95, 0.95],
    "weighted": [0.95, 0.95, 0.95],
    "n": 997,
    "accuracy": 0.948,
}


def _places(table):
    return [finding.where for finding in check_tables(table)]


def test_source_paper_has_exactly_the_known_eleven_faults():
    findings = {finding.where: finding for finding in check_tables(SOURCE_PAPER)}
    assert list(findings) == [
        "n",
        "Severe support",
        "accuracy",
        "Normal precision",
        "Normal F1",
        "Mild precision",
        "Moderate precision",
        "Severe recall",
        "macro precision",
        "weighted precision",
        "weighted F1",
    ]
    assert (findings["n"].printed, findings["n"].recomputed) == ("1000", "997")
    assert findings["Severe support"].recomputed == "207"
    assert "94.78 %" in findings["accuracy"].reason
    assert "0.945 only if the missing 3 count as wrong (945 of 1000)" in str(findings["accuracy"])
    assert "0.97 only over the printed support, 204 of 210" in findings["Severe recall"].reason
    assert findings["Normal precision"].recomputed == "0.9749"  # 272 / 279


def test_the_example_of_the_documents_agrees_and_a_slip_in_it_is_found():
    text = Path("docs/evaluation.md").read_text(encoding="utf-8")
    table = json.loads(text.split("```json")[1].split("```")[0])
    assert check_tables(table) == []
    table["per_class"]["Fatty"][1] = 0.9
    assert len(check_tables(table)) > 0


def test_corrected_tables_agree():
    assert check_tables({"confusion_matrix": PAPER_MATRIX, **ROUNDED}) == []


def test_percent_and_fraction_read_alike():
    table = {
        "confusion_matrix": PAPER_MATRIX,
        "per_class": {
            "Normal": [97.49, 97.14, 97.32, 280],
            "Mild": [92.21, 90, 91.09, 250],
            "Moderate": [92.08, 93.85, 92.95, 260],
            "Severe": [97.61, 98.55, 98.08, 207],
        },
        "macro": ["94.8 %", "94.9 %", "94.9 %"],  # 94.8468, 94.8854, 94.8598
        "accuracy": "94.78%",
    }
    assert check_tables(table) == []
    table["per_class"]["Mild"][1] = 90.01
    (finding,) = check_tables(table)
    assert (finding.printed, finding.recomputed) == ("90.01 %", "90.0000 %")


@pytest.mark.parametrize("accuracy", [0.62, 0.63, "0.62", "0.63", 62.5])
def test_half_is_accepted_rounded_up_and_to_even(accuracy):
    assert check_tables({"confusion_matrix": [[3, 1], [2, 2]], "accuracy": accuracy}) == []  # 5/8


def test_trailing_zero_of_a_string_counts():
    matrix = [[86, 14], [0, 0]]  # accuracy 0.86
    assert check_tables({"confusion_matrix": matrix, "accuracy": 0.9}) == []
    assert _places({"confusion_matrix": matrix, "accuracy": "0.90"}) == ["accuracy"]


def test_whole_numbers_show_no_decimals_unless_written():
    matrix = [[97, 3], [0, 0]]
    assert check_tables({"confusion_matrix": matrix, "accuracy": 97.0}) == []
    assert check_tables({"confusion_matrix": [[996, 4], [0, 0]], "accuracy": 1.0}) == []  # 0.996
    assert _places({"confusion_matrix": [[996, 4], [0, 0]], "accuracy": "1.00"}) == []
    assert _places({"confusion_matrix": [[994, 6], [0, 0]], "accuracy": "1.00"}) == ["accuracy"]


def test_every_single_edit_of_an_agreeing_table_is_found():
    whole = {"confusion_matrix": PAPER_MATRIX, **ROUNDED}
    edits = 0
    for grade, row in ROUNDED["per_class"].items():
        for place, value in enumerate(row):
            table = copy.deepcopy(whole)
            table["per_class"][grade][place] = value - (0.02 if place < 3 else 1)
            assert len(check_tables(table)) == 1, (grade, place)
            edits += 1
    for name in ("macro", "weighted"):
        for place in range(3):
            table = copy.deepcopy(whole)
            table[name][place] -= 0.01
            assert len(check_tables(table)) == 1, (name, place)
            edits += 1
    assert edits == 22


def test_exact_tables_equal_scikit_learn_on_random_matrices():
    rng = np.random.default_rng(1)
    for _ in range(50):
        matrix = rng.integers(0, 6, (4, 4)) * (rng.random((4, 4)) < 0.6)
        matrix[0, 0] += 1
        truth = np.repeat(np.arange(4), matrix.sum(axis=1))
        guess = np.concatenate([np.repeat(np.arange(4), row) for row in matrix])
        exact = exact_tables(matrix.tolist())
        for average, ours in (("macro", exact.macro), ("weighted", exact.weighted)):
            theirs = precision_recall_fscore_support(
                truth, guess, labels=range(4), average=average, zero_division=0
            )
            np.testing.assert_allclose([float(x) for x in ours], theirs[:3], atol=1e-12)
        rows = precision_recall_fscore_support(truth, guess, labels=range(4), zero_division=0)
        ours = [[float(x or 0) for x in row] for row in exact.per_class]
        np.testing.assert_allclose(ours, np.stack(rows[:3], axis=1), atol=1e-12)
        assert exact.accuracy == Fraction(int(np.trace(matrix)), int(matrix.sum()))


def test_full_precision_floats_agree_with_their_own_matrix():
    exact = exact_tables(PAPER_MATRIX)
    table = {
        "confusion_matrix": PAPER_MATRIX,
        "accuracy": float(exact.accuracy),
        "macro": [float(x) for x in exact.macro],
        "weighted": [float(x) for x in exact.weighted],
    }
    assert check_tables(table) == []
    table["accuracy"] += 1e-9
    assert _places(table) == ["accuracy"]


def test_grade_never_predicted_has_no_precision():
    matrix = [[5, 0], [5, 0]]
    rows = {"a": [0.5, 1.0, 0.67, 5], "b": [0.0, 0.0, 0.0, 5]}
    assert check_tables({"confusion_matrix": matrix, "per_class": rows}) == []
    rows["b"][0] = 0.8
    (finding,) = check_tables({"confusion_matrix": matrix, "per_class": rows})
    assert str(finding) == (
        "b precision: printed 0.80, recomputed undefined. "
        "No case of b is predicted, so there is no precision."
    )
    rows["b"][0] = None
    assert check_tables({"confusion_matrix": matrix, "per_class": rows}) == []
    # Averages may leave the missing value out or count it as 0.
    for macro in ([0.25, 0.5, 0.33], [0.5, 0.5, 0.33]):
        assert check_tables({"confusion_matrix": matrix, "macro": macro}) == []


def test_transposed_matrix_is_named():
    matrix = [[5, 3], [1, 4]]
    findings = check_tables(
        {
            "confusion_matrix": matrix,
            "per_class": {"a": [0.62, 0.83, 0.71, 6], "b": [None] * 3 + [7]},
        }
    )
    assert "are the rows the predicted grades?" in findings[0].reason


def test_without_a_matrix_the_rows_are_held_against_each_other():
    assert check_tables(ROUNDED) == []
    table = copy.deepcopy(ROUNDED)
    table["per_class"]["Mild"][2] = 0.85  # harmonic mean of 0.92 and 0.90 is 0.91
    table["macro"][0] = 0.99
    table["n"] = 1000
    assert _places(table) == ["n", "Mild F1", "macro precision", "macro F1", "weighted F1"]


def test_grim_no_whole_number_of_cases_gives_the_recall():
    # 0.55 of 10 cases would be 5.5 cases; 0.5 and 0.6 are the neighbours.
    (finding,) = check_tables({"per_class": {"a": [None, "0.55", None, 10], "b": [None] * 4}})
    assert finding.where == "a recall"
    assert finding.recomputed == "0.5000 or 0.6000"
    assert _places({"n": 7, "accuracy": 0.6}) == []  # 4 of 7 is 0.571
    assert _places({"n": 7, "accuracy": "0.60"}) == ["accuracy"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], r"Received: other JSON: .*\(\[\]\)"),
        ({}, "at least two parts.*Received: an empty table"),
        ({"accuracy": 0.9}, "at least two parts.*Received: accuracy"),
        ({"confusion_matrix": PAPER_MATRIX}, "at least two parts.*Received: confusion_matrix"),
        ({"acuracy": 0.9}, "Expected .* parts .*grades, .*Received: acuracy"),
        ({"confusion_matrix": [[1, 2], [3]]}, "Received: 2 rows of 2, 1"),
        ({"confusion_matrix": [[1, 2, 3]]}, "Received: 1 rows of 3"),
        ({"confusion_matrix": "x"}, "confusion_matrix: .*list.*'x'"),
        ({"confusion_matrix": [[0, 0], [0, 0]]}, "at least one case"),
        ({"confusion_matrix": [[1, 0.5], [0, 1]]}, "confusion_matrix 0 1: .*integer.*0.5"),
        ({"confusion_matrix": [[1, -1], [0, 1]]}, "confusion_matrix 0 1: .*or equal to 0.*-1"),
        ({"confusion_matrix": [[1, float("nan")], [0, 1]]}, "finite number"),
        ({"confusion_matrix": [[1, 0], [0, 1]], "grades": ["a", "b", "c"]}, "3 x 3 confusion_ma"),
        ({"grades": ["a", "a"]}, "different grades"),
        ({"grades": "ab"}, "grades: .*list.*'ab'"),
        ({"per_class": [[1, 1, 1, 1]]}, "per_class: .*dictionary"),
        ({"per_class": {"a": [1, 1]}}, "per_class a 3: .*required"),
        ({"grades": ["a", "b"], "per_class": {"c": [1, 1, 1]}}, r"per_class=\['c'\]"),
        ({"per_class": {"a": [1, 1, 1, 2.5]}}, "per_class a 3: .*integer.*2.5"),
        ({"macro": [0.9, 0.9]}, "macro: .*3 items"),
        ({"accuracy": float("nan")}, "Expected a number.*in accuracy. Received: nan"),
        ({"accuracy": "good"}, "Expected a number in accuracy. Received: 'good'"),
        ({"accuracy": True}, "Expected a number.*Received: True"),
        ({"accuracy": 945}, "accuracy from 0 to 100. Received: 945"),
        ({"accuracy": -0.1}, "accuracy from 0 to 1. Received: -0.1"),
        ({"n": 0}, "n: .*or equal to 1"),
        ({"n": "many"}, "n: .*integer.*'many'"),
    ],
)
def test_wrong_shapes_are_refused_by_name(table, message):
    with pytest.raises(ValueError, match=message):
        check_tables(table)


@pytest.mark.parametrize("rounding", ["ROUND_HALF_UP", "ROUND_HALF_EVEN"])
@pytest.mark.parametrize("num_decimals", [1, 2, 3, 4])
@pytest.mark.parametrize("unit", [1, 100])
def test_honest_tables_of_scikit_learn_raise_no_finding(rounding, num_decimals, unit):
    """Rounded either way, in fraction or percent, with every grade present and predicted."""
    rng = np.random.default_rng(num_decimals)

    def printed(value):
        step = Decimal(1).scaleb(-num_decimals)
        text = str((Decimal(float(value)) * unit).quantize(step, rounding))
        return text + " %" if unit == 100 else text

    for _ in range(15):
        matrix = rng.integers(0, 9, (4, 4)) + 3 * np.eye(4, dtype=int)
        truth = np.repeat(np.arange(4), matrix.sum(axis=1))
        guess = np.concatenate([np.repeat(np.arange(4), row) for row in matrix])
        rows = np.stack(precision_recall_fscore_support(truth, guess), axis=1)
        table = {
            "grades": list("abcd"),
            "per_class": {
                name: [*map(printed, row[:3]), int(row[3])]
                for name, row in zip("abcd", rows, strict=True)
            },
            "n": int(matrix.sum()),
            "accuracy": printed(np.trace(matrix) / matrix.sum()),
        }
        for average in ("macro", "weighted"):
            found = precision_recall_fscore_support(truth, guess, average=average)[:3]
            table[average] = [printed(value) for value in found]
        assert check_tables(table | {"confusion_matrix": matrix.tolist()}) == []
        assert check_tables(table) == [], "without its matrix"
