"""Cut-offs from validation, applied to test, against brute force and hand-worked numbers."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_curve

from steatosis_tf.evaluation.clinical.thresholds import (
    apply_operating_points,
    choose_operating_points,
)
from steatosis_tf.evaluation.metrics.intervals import predictive_value_intervals, wilson_interval
from steatosis_tf.grades import SCORE_COLUMNS


def patients(scores: list[float], positive: list[bool], **columns: object) -> pd.DataFrame:
    """Patient table whose score for every cumulative task is the given one."""
    score = np.asarray(scores, dtype=float)
    return pd.DataFrame(
        {
            "patient_id": [f"{row:03d}" for row in range(len(score))],
            "grade": np.where(positive, "Severe", "Normal"),
            **dict(zip(SCORE_COLUMNS, [1 - score, 0 * score, 0 * score, score], strict=True)),
            **columns,
        }
    )


def random_patients(seed: int, num: int = 200) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    positive = rng.random(num) < 0.4
    score = np.round(1 / (1 + np.exp(-rng.normal(1.5 * positive - 0.7, 1))), 2)
    return patients(list(score), list(positive))


HAND = patients([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], [False, False, True, False] + [True] * 4)


def test_hand_worked_rules() -> None:
    """Normal 0.1 0.2 0.4, Severe 0.3 0.5 0.6 0.7 0.8."""
    found = choose_operating_points(HAND, sensitivity=0.95, specificity=0.6, cost_ratio=10)
    assert found["unit"] == "patient"
    rules = found["folds"]["0"]["at_least_mild"]
    assert rules["youden"]["threshold"] == pytest.approx(0.45)  # 0.8 + 1 beats 1 + 2 / 3
    assert rules["sensitivity"]["threshold"] == pytest.approx(0.25)
    assert rules["sensitivity"]["specificity"] == pytest.approx(2 / 3)
    assert rules["specificity"]["threshold"] == pytest.approx(0.25)
    assert rules["cost"]["threshold"] == pytest.approx(0.25)  # 0.25 < 10 * 0.25 * 0.2
    assert (rules["youden"]["num_positive"], rules["youden"]["num_negative"]) == (5, 3)
    assert rules["sensitivity"]["note"] == (
        "5 validation rows cannot tell a sensitivity of 0.95 from 1."
    )
    assert rules["youden"]["note"] is None
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("seed", range(3))
def test_rules_equal_a_search_over_the_roc_curve_of_scikit_learn(seed: int) -> None:
    table = random_patients(seed)
    positive, score = table["grade"] == "Severe", table["p_severe"]
    fpr, tpr, _ = roc_curve(positive, score, drop_intermediate=False)
    found = choose_operating_points(table, sensitivity=0.9, specificity=0.8, cost_ratio=4)
    rules = found["folds"]["0"]["severe"]
    for rule, entry in rules.items():
        called = score >= entry["threshold"]
        assert entry["sensitivity"] == pytest.approx(called[positive].mean()), rule
        assert entry["specificity"] == pytest.approx((~called[~positive]).mean()), rule
    youden = rules["youden"]["sensitivity"] + rules["youden"]["specificity"]
    assert youden == pytest.approx((tpr + 1 - fpr).max())
    assert rules["sensitivity"]["specificity"] == pytest.approx(1 - fpr[tpr >= 0.9].min())
    assert rules["specificity"]["sensitivity"] == pytest.approx(tpr[1 - fpr >= 0.8].max())
    cost = 4 * 0.25 * (1 - tpr) + 0.75 * fpr
    reached = 4 * 0.25 * (1 - rules["cost"]["sensitivity"])
    reached += 0.75 * (1 - rules["cost"]["specificity"])
    assert reached == pytest.approx(cost.min())


def test_thresholds_do_not_depend_on_the_test_part() -> None:
    points = choose_operating_points(random_patients(0))
    before = json.dumps(points)
    apply_operating_points(points, random_patients(1))
    assert json.dumps(points) == before


def test_application_by_hand() -> None:
    points = choose_operating_points(HAND)
    test = patients([0.4, 0.46, 0.44, 0.9, 0.9], [False, False, True, True, True])
    entry = apply_operating_points(points, test)["at_least_mild"]["youden"]  # cut 0.45
    assert [entry[f"{kind}"] for kind in ("true_positive", "false_negative")] == [2, 1]
    assert [entry[f"{kind}"] for kind in ("true_negative", "false_positive")] == [1, 1]
    assert entry["sensitivity"]["value"] == pytest.approx(2 / 3)
    assert entry["ppv"]["value"] == pytest.approx(2 / 3)
    assert entry["npv"]["value"] == pytest.approx(1 / 2)
    assert entry["sensitivity"]["low"] == pytest.approx(wilson_interval(2, 3)[0])
    assert entry["sensitivity"]["method"] == "wilson"
    quarter = entry["at_prevalence"][0]
    assert quarter["prevalence"] == 0.25
    # 0.25 * 2/3 against 0.75 * 1/2 false alarms
    assert quarter["ppv"]["value"] == pytest.approx((1 / 6) / (1 / 6 + 3 / 8))
    assert [row["prevalence"] for row in entry["at_prevalence"]] == [0.25, 0.09, 0.32]


def test_predictive_values_at_a_prevalence_by_hand() -> None:
    """Sensitivity 0.9, specificity 0.8, prevalence 0.25: 22.5 of 37.5 called, 60 of 62.5 spared."""
    found = predictive_value_intervals((90, 100), (80, 100), 0.25)
    assert found["ppv"]["value"] == pytest.approx(0.6)
    assert found["npv"]["value"] == pytest.approx(0.96)
    assert found["ppv"]["low"] < 0.6 < found["ppv"]["high"]


def test_predictive_value_intervals_cover_in_a_simulation() -> None:
    """Sensitivity 0.97 of 40, specificity 0.75 of 60, prevalence 0.09, 3,000 studies."""
    rng = np.random.default_rng(0)
    truth = {
        "ppv": 0.09 * 0.97 / (0.09 * 0.97 + 0.91 * 0.25),
        "npv": 0.91 * 0.75 / (0.91 * 0.75 + 0.09 * 0.03),
    }
    cache: dict = {}
    held = {"ppv": 0, "npv": 0}
    for hits, spared in zip(
        rng.binomial(40, 0.97, 3000), rng.binomial(60, 0.75, 3000), strict=True
    ):
        if (hits, spared) not in cache:
            cache[hits, spared] = predictive_value_intervals((hits, 40), (spared, 60), 0.09)
        for name, value in truth.items():
            held[name] += (
                cache[hits, spared][name]["low"] <= value <= cache[hits, spared][name]["high"]
            )
    assert 0.93 < held["ppv"] / 3000 < 0.98
    assert 0.93 < held["npv"] / 3000 < 0.98


def test_perfect_rates_keep_an_interval_and_nothing_called_has_no_ppv() -> None:
    found = predictive_value_intervals((20, 20), (30, 30), 0.09)
    assert found["ppv"]["value"] == 1
    assert 0.2 < found["ppv"]["low"] < 0.9
    assert found["npv"]["high"] == 1
    nothing = predictive_value_intervals((0, 20), (30, 30), 0.09)
    assert nothing["ppv"]["value"] is None


def test_no_positive_test_patient() -> None:
    points = choose_operating_points(HAND)
    test = patients([0.1, 0.9], [False, False])
    entry = apply_operating_points(points, test)["severe"]["youden"]
    assert entry["sensitivity"]["value"] is None
    assert entry["specificity"]["value"] == 0.5
    assert entry["at_prevalence"][0]["ppv"]["value"] is None
    json.dumps(entry, allow_nan=False)


def test_validation_without_positives_chooses_nothing_and_says_so() -> None:
    points = choose_operating_points(patients([0.1, 0.9], [False, False]))
    point = points["folds"]["0"]["severe"]["cost"]
    assert point["threshold"] is None
    assert "no row on one side" in point["note"]
    entry = apply_operating_points(points, HAND)["severe"]["cost"]
    assert entry == {"thresholds": {"0": None}, "note": point["note"]}


def test_each_fold_is_called_by_its_own_threshold() -> None:
    first, second = [0.1, 0.2, 0.3, 0.4], [0.6, 0.7, 0.8, 0.9]
    sides = [False, False, True, True]
    # The same patients stand in the validation part of both folds.
    validation = pd.concat([patients(first, sides, fold=0), patients(second, sides, fold=1)])
    points = choose_operating_points(validation)
    test = patients([0.24, 0.26, 0.74, 0.76], sides, fold=[0, 0, 1, 1])
    test["grade"] = ["Normal", "Severe", "Normal", "Severe"]
    entry = apply_operating_points(points, test)["severe"]["youden"]
    assert entry["thresholds"] == {"0": pytest.approx(0.25), "1": pytest.approx(0.75)}
    assert (entry["true_positive"], entry["true_negative"]) == (2, 2)
    with pytest.raises(ValueError, match=r"Expected folds 0, 1.*Received: fold=2"):
        apply_operating_points(points, test.assign(fold=2))
    lacking = pd.concat([patients(first, sides, fold=0), patients(second, [False] * 4, fold=1)])
    lacking["patient_id"] = [f"{row}" for row in range(8)]
    entry = apply_operating_points(choose_operating_points(lacking), test)["severe"]["youden"]
    assert entry["note"] == "Rows of fold 1 left out: no threshold could be chosen."
    assert entry["true_positive"] + entry["false_negative"] == 1


def test_wilson_interval_equals_its_formula() -> None:
    """Wilson 1927, written out."""
    z = stats.norm.ppf(0.975)
    centre = (7 + z**2 / 2) / (20 + z**2)
    reach = z / (20 + z**2) * np.sqrt(7 * 13 / 20 + z**2 / 4)
    assert wilson_interval(7, 20) == pytest.approx([centre - reach, centre + reach])
