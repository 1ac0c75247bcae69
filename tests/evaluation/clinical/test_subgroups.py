"""Groups, suppression, gaps and the refusals."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, cohen_kappa_score

from steatosis_tf.evaluation.clinical.subgroups import subgroup_metrics
from steatosis_tf.grades import GRADES, SCORE_COLUMNS


def _patients(num_patients=80, seed=2, wrong_from=None):
    """Scores that are right but for a random tenth; from row `wrong_from` on all are wrong."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num_patients) % 4
    called = np.where(rng.random(num_patients) < 0.1, (labels + 1) % 4, labels)
    if wrong_from is not None:
        called[wrong_from:] = (labels[wrong_from:] + 2) % 4
    scores = np.eye(4)[called] * 0.6 + 0.1
    table = pd.DataFrame(scores, columns=SCORE_COLUMNS)
    table.insert(0, "patient_id", [f"P{k:03d}" for k in range(num_patients)])
    return table.assign(fold=0, grade=[GRADES[k] for k in labels], num_frames=1)


def _covariates(patients, **columns):
    return pd.DataFrame({"patient_id": patients["patient_id"], **columns})


def test_values_equal_scikit_learn_and_json_holds_no_nan():
    patients = _patients()
    sex = np.where(np.arange(80) < 30, "F", "M")
    found = subgroup_metrics(patients, _covariates(patients, sex=sex), "sex", num_resamples=200)
    assert [group["value"] for group in found["groups"]] == ["F", "M"]
    for group in found["groups"]:
        rows = patients[sex == group["value"]]
        truth = rows["grade"].map(GRADES.index)
        called = rows[list(SCORE_COLUMNS)].to_numpy().argmax(axis=1)
        metrics = group["metrics"]
        assert group["num_patients"] == len(rows)
        assert metrics["accuracy"]["value"] == pytest.approx(accuracy_score(truth, called))
        assert metrics["ordinal.quadratic_kappa"]["value"] == pytest.approx(
            cohen_kappa_score(truth, called, weights="quadratic")
        )
        assert metrics["accuracy"]["low"] < metrics["accuracy"]["value"]
    assert "NaN" not in json.dumps(found)


def test_three_patients_are_counted_but_not_judged():
    patients = _patients()
    scanner = ["new"] * 3 + ["old"] * 77
    found = subgroup_metrics(patients, _covariates(patients, scanner=scanner), "scanner",
                             num_resamples=200)  # fmt: skip
    few, many = found["groups"]
    assert (few["value"], few["num_patients"], few["metrics"]) == ("new", 3, {})
    assert few["suppressed"] == "3 patients, fewer than 10: too few to state a result"
    assert many["suppressed"] is None
    assert found["gaps"] == []
    assert "1 with too few patients suppressed" in found["statement"]
    assert "No two groups are large enough" in found["statement"]


def test_a_real_gap_is_found_and_no_gap_is_not():
    patients = _patients(wrong_from=40)
    site = ["A"] * 40 + ["B"] * 40
    found = subgroup_metrics(patients, _covariates(patients, site=site), "site", num_resamples=500)
    gap = next(gap for gap in found["gaps"] if gap["metric"] == "accuracy")
    assert (gap["higher"], gap["lower"]) == ("A", "B")
    assert gap["low"] > 0.5
    assert found["num_compared"] == 5  # one pair, five metrics
    assert "widened to 99.00 % each" in found["statement"]
    assert "accuracy (A over B)" in found["statement"]
    assert "Without patients of every grade" not in found["statement"]
    same = subgroup_metrics(
        _patients(), _covariates(patients, site=["A", "B"] * 40), "site", num_resamples=500
    )
    assert "No gap excludes 0" in same["statement"]


def test_bands_of_age_with_unknown_and_several_values():
    patients = _patients()
    age = [str(20 + k) for k in range(80)]  # 20 .. 99
    age[0], age[1] = "", None
    covariates = pd.concat(
        [_covariates(patients, age=age), pd.DataFrame({"patient_id": ["P002"], "age": ["95"]})]
    )
    found = subgroup_metrics(patients, covariates, "age", num_resamples=100)
    counts = {group["value"]: group["num_patients"] for group in found["groups"]}
    assert list(counts.items()) == [
        ("under 40", 17),
        ("40 to under 50", 10),
        ("50 to under 60", 10),
        ("60 to under 70", 10),
        ("70 and over", 30),
        ("several values", 1),
        ("unknown", 2),
    ]


def test_group_without_a_positive_patient_says_why():
    patients = _patients()
    normal = patients["grade"] == "Normal"
    found = subgroup_metrics(
        patients, _covariates(patients, site=np.where(normal, "A", "B")), "site", num_resamples=100
    )
    auc = found["groups"][0]["metrics"]["ordinal.auc_at_least_mild"]
    assert auc["value"] is None
    assert "undefined" in auc["note"]
    assert "Without patients of every grade: A, B; a gap to others may be" in found["statement"]
    assert "NaN" not in json.dumps(found)


def test_refusals():
    patients = _patients(20)
    covariates = _covariates(patients, sex="F", weight=np.arange(20))
    with pytest.raises(ValueError, match=r"2 missing, first patient_id=P000. Use the manifest"):
        subgroup_metrics(patients, covariates.iloc[2:], "sex")
    with pytest.raises(ValueError, match=r"weight to have at most 12 values. Received: 20"):
        subgroup_metrics(patients, covariates, "weight")
    with pytest.raises(ValueError, match=r"Expected numbers in age. Received: 20 cells.*'F'"):
        subgroup_metrics(patients, covariates.assign(age="F"), "age")
