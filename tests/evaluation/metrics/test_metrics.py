"""Every metric against an implementation that shares no code with it."""

import json

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from steatosis_tf.evaluation.metrics.registry import compute_metrics
from steatosis_tf.grades import GRADES

PAPER = [[272, 8, 0, 0], [7, 225, 18, 0], [0, 11, 244, 5], [0, 0, 3, 204]]


def metrics_of_matrix(matrix: list[list[int]]) -> dict:
    """The metrics of one row for each count, its predicted grade certain."""
    truth, predicted = np.indices((4, 4)).reshape(2, 16).repeat(np.ravel(matrix), axis=1)
    return compute_metrics(truth, np.eye(4)[predicted])


def random_case(seed: int, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.r_[0:4, 0:4, rng.integers(0, 4, 80)])
    scores = rng.dirichlet(np.ones(4), len(labels)) + 0.6 * np.eye(4)[labels]
    scores /= scores.sum(axis=1, keepdims=True)
    if ties:  # tenths of a vote: many equal scores
        votes = np.stack([rng.multinomial(10, row) for row in scores])
        scores = votes / 10
    return labels, scores


def pairwise_auc(positive: np.ndarray, score: np.ndarray) -> float:
    """Proportion of positive-negative pairs ranked rightly, ties half: the definition, by hand."""
    difference = score[positive][:, None] - score[~positive][None, :]
    return float(((difference > 1e-9) + 0.5 * (np.abs(difference) <= 1e-9)).mean())


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_random_cases_equal_the_definitions(seed: int, ties: bool) -> None:
    labels, scores = random_case(seed, ties)
    fat = np.where(np.arange(len(labels)) % 7, labels * 20 + np.arange(len(labels)) / 10, np.nan)
    found = compute_metrics(labels, scores, fat)
    predicted = scores.argmax(axis=1)
    matrix = np.zeros((4, 4), int)
    np.add.at(matrix, (labels, predicted), 1)
    assert found["confusion_matrix"] == matrix.tolist()
    assert list(found["support"].values()) == matrix.sum(axis=1).tolist()
    assert list(found["num_predicted"].values()) == matrix.sum(axis=0).tolist()
    assert found["accuracy"] == pytest.approx((labels == predicted).mean())
    assert found["balanced_accuracy"] == pytest.approx(
        np.mean([(predicted[labels == g] == g).mean() for g in range(4)])
    )
    precision = np.diag(matrix) / matrix.sum(axis=0)
    recall = np.diag(matrix) / matrix.sum(axis=1)
    f1 = 2 * precision * recall / (precision + recall)
    for label, grade in enumerate(GRADES):
        row = found["per_class"][grade]
        assert row["precision"] == pytest.approx(precision[label])
        assert row["recall"] == pytest.approx(recall[label])
        assert row["f1"] == pytest.approx(f1[label])
        assert row["support"] == (labels == label).sum()
        assert row["auc"] == pytest.approx(pairwise_auc(labels == label, scores[:, label]))
    assert found["macro"]["f1"] == pytest.approx(f1.mean())
    assert found["weighted"]["precision"] == pytest.approx(precision[labels].mean())
    aucs = [pairwise_auc(labels == g, scores[:, g]) for g in range(4)]
    assert found["auc_macro"] == pytest.approx(np.mean(aucs))
    one_hot = np.eye(4, dtype=bool)[labels]
    assert found["auc_micro"] == pytest.approx(pairwise_auc(one_hot.ravel(), scores.ravel()))
    assert found["nll"] == pytest.approx(-np.log(np.maximum(scores[one_hot], 1e-12)).mean())
    assert found["brier"] == pytest.approx(
        sum(sk.brier_score_loss(one_hot[:, g], scores[:, g]) for g in range(4))
    )
    check_ordinal(found["ordinal"], labels, scores, fat)
    assert found["notes"] == []


def check_ordinal(found: dict, labels: np.ndarray, scores: np.ndarray, fat: np.ndarray) -> None:
    predicted = scores.argmax(axis=1)
    for power, name in ((2, "quadratic_kappa"), (1, "linear_kappa")):
        observed = (np.abs(labels - predicted) ** power).mean()
        by_chance = (np.abs(labels[:, None] - predicted[None, :]) ** power).mean()
        assert found[name] == pytest.approx(1 - observed / by_chance)
    assert found["mean_absolute_error"] == pytest.approx(np.abs(labels - predicted).mean())
    assert found["error_over_one_grade_rate"] == pytest.approx(
        (np.abs(labels - predicted) >= 2).mean()
    )
    # Ranked probability score as a mean of Brier scores of the three cut points.
    cuts = [
        sk.brier_score_loss(labels >= k, np.clip(scores[:, k:].sum(axis=1), 0, 1))
        for k in (1, 2, 3)
    ]
    assert found["ranked_probability_score"] == pytest.approx(np.mean(cuts))
    for k, task in ((1, "at_least_mild"), (2, "at_least_moderate"), (3, "severe")):
        expected = pairwise_auc(labels >= k, scores[:, k:].sum(axis=1))
        assert found[f"auc_{task}"] == pytest.approx(expected)
    known = ~np.isnan(fat)
    ranks = [
        stats.rankdata(np.round(scores[known] @ [0, 1, 2, 3], 9)),
        stats.rankdata(fat[known]),
    ]
    assert found["spearman_fat"] == pytest.approx(np.corrcoef(ranks)[0, 1])
    assert found["num_fat_known"] == known.sum()


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_by_hand_on_every_threshold(ties: bool) -> None:
    labels, scores = random_case(11, ties)
    found = compute_metrics(labels, scores)
    for label, grade in enumerate(GRADES):
        positive, score = labels == label, scores[:, label]
        expected, recall_before = 0.0, 0.0
        for cut in sorted(set(score), reverse=True):
            precision = positive[score >= cut].mean()
            recall = (positive & (score >= cut)).sum() / positive.sum()
            expected += (recall - recall_before) * precision
            recall_before = recall
        assert found["per_class"][grade]["average_precision"] == pytest.approx(expected)


def test_kappa_of_the_two_by_two_textbook_case() -> None:
    """20, 5 / 10, 15: agreement 0.7, by chance 0.5, so kappa 0.4 (the worked example of the
    Wikipedia article on Cohen's kappa). No error exceeds one grade, so every weighting agrees.
    """
    found = metrics_of_matrix([[20, 5, 0, 0], [10, 15, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert found["ordinal"]["quadratic_kappa"] == pytest.approx(0.4)
    assert found["ordinal"]["linear_kappa"] == pytest.approx(0.4)


def test_weighted_kappa_of_the_r_example() -> None:
    """`Kappa(SexualFun)` of R package vcd prints 0.2374 with equal spacing (linear weights).

    With Fleiss-Cohen (quadratic) weights statsmodels `cohens_kappa(table, wt="fc")` gives 0.3320.
    """
    found = metrics_of_matrix([[7, 7, 2, 3], [2, 8, 3, 7], [1, 5, 4, 9], [2, 8, 9, 14]])
    assert found["ordinal"]["linear_kappa"] == pytest.approx(0.2374, abs=5e-5)
    assert found["ordinal"]["quadratic_kappa"] == pytest.approx(0.3320, abs=5e-5)


def test_the_source_papers_matrix_gives_997_and_not_1000() -> None:
    found = metrics_of_matrix(PAPER)
    assert found["n"] == 997
    assert found["num_correct"] == 945
    assert found["accuracy"] == pytest.approx(945 / 997)
    assert found["support"] == {"Normal": 280, "Mild": 250, "Moderate": 260, "Severe": 207}
    assert found["per_class"]["Normal"]["precision"] == pytest.approx(272 / 279)
    assert found["per_class"]["Severe"]["recall"] == pytest.approx(204 / 207)
    assert found["macro"]["precision"] == pytest.approx(
        (272 / 279 + 225 / 244 + 244 / 265 + 204 / 209) / 4
    )
    assert found["ordinal"]["mean_absolute_error"] == pytest.approx(52 / 997)
    assert found["ordinal"]["error_over_one_grade_rate"] == 0
    assert found["notes"] == []


def nothing_is_nan(value: object) -> bool:
    json.dumps(value, allow_nan=False)  # raises on NaN and on numpy types
    return True


def test_absent_grade_is_none_with_a_reason() -> None:
    labels, scores = random_case(1)
    keep = labels != 3
    found = compute_metrics(labels[keep], scores[keep])
    assert nothing_is_nan(found)
    severe = found["per_class"]["Severe"]
    assert (severe["recall"], severe["auc"], severe["average_precision"]) == (None, None, None)
    assert found["auc_macro"] is None
    assert found["macro"]["recall"] is None
    assert found["weighted"]["recall"] == pytest.approx(found["accuracy"])
    assert found["ordinal"]["auc_severe"] is None
    assert found["balanced_accuracy"] == pytest.approx(
        np.mean([found["per_class"][g]["recall"] for g in GRADES[:3]])
    )
    assert "Recall of Severe is undefined: no row has this grade." in found["notes"]
    assert "AUC, Severe is undefined: all rows are on one side of this question." in found["notes"]


def test_one_patient_has_an_accuracy_and_little_else() -> None:
    found = compute_metrics([2], [[0.1, 0.2, 0.6, 0.1]], [50.0])
    assert nothing_is_nan(found)
    assert found["accuracy"] == 1
    assert found["auc_macro"] is None
    assert found["ordinal"]["quadratic_kappa"] is None
    assert found["ordinal"]["spearman_fat"] is None
    assert found["auc_micro"] == 1
    assert found["per_class"]["Moderate"]["auc"] is None
    assert len(found["notes"]) > 10


def test_all_wrong_by_the_same_grade() -> None:
    labels = np.array([0, 1, 2, 0, 1, 2])
    found = compute_metrics(labels, np.eye(4)[labels + 1])
    assert nothing_is_nan(found)
    assert found["accuracy"] == 0
    assert found["ordinal"]["mean_absolute_error"] == 1
    assert found["per_class"]["Mild"]["f1"] == 0
    assert found["per_class"]["Normal"]["precision"] is None
    assert found["per_class"]["Normal"]["f1"] == 0
    assert found["ordinal"]["auc_at_least_moderate"] == 0.75  # pairs: 1 right, 1 tied


def test_all_scores_tied() -> None:
    found = compute_metrics([0, 1, 2, 3], np.full((4, 4), 0.25), [1, 20, 50, 80])
    assert nothing_is_nan(found)
    assert found["auc_macro"] == 0.5
    assert found["auc_micro"] == 0.5
    assert found["ordinal"]["quadratic_kappa"] == 0
    assert found["ordinal"]["spearman_fat"] is None
    assert any("all alike" in note for note in found["notes"])


def test_sums_that_differ_by_rounding_only_are_ties() -> None:
    """0.1 + 0.2 against 0.3: a Normal and a Mild patient with the same proportion of votes."""
    scores = [[0.7, 0.1, 0.2, 0.0], [0.7, 0.3, 0.0, 0.0]]
    assert compute_metrics([0, 1], scores)["ordinal"]["auc_at_least_mild"] == 0.5
