"""The proportional odds reading against statsmodels and by hand."""

import numpy as np
import pytest

from steatosis_tf.model.rules import CumulativeLink, fit_cumulative_link


def drawn(num_patients: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from the model itself: slope 2, cuts 4, 8, 12."""
    rng = np.random.default_rng(3)
    score = rng.uniform(0, 8, num_patients)
    latent = 2 * score + rng.logistic(size=num_patients)
    return score, np.digitize(latent, [4, 8, 12])


def test_agrees_with_statsmodels():
    ordinal = pytest.importorskip("statsmodels.miscmodels.ordinal_model")
    score, label = drawn(300)
    ours = fit_cumulative_link(score, label)
    model = ordinal.OrderedModel(label, score[:, None], distr="logit")
    theirs = model.fit(method="bfgs", disp=False)
    found = ours.probabilities(score)
    assert found == pytest.approx(np.asarray(theirs.predict()), abs=0.01)


def test_recovers_the_rule():
    link = fit_cumulative_link(*drawn(4000))
    assert link.slope == pytest.approx(2, rel=0.1)
    assert np.array(link.cuts) == pytest.approx([4, 8, 12], rel=0.1)


def test_probabilities_by_hand():
    # At a cut one half lies below it; log odds 2 below the next: 1 / (1 + e ** -2) = 0.881.
    link = CumulativeLink(1.0, (1.0, 3.0, 5.0))
    (found,) = link.probabilities(np.array([1.0]))
    assert found == pytest.approx([0.5, 0.3808, 0.1012, 0.0180], abs=1e-4)
    assert link.probabilities(np.array([-50.0, 50.0])).argmax(axis=1).tolist() == [0, 3]


def test_grades_that_the_score_parts_without_error_stay_finite():
    score = np.arange(12.0)
    link = fit_cumulative_link(score, np.repeat([0, 1, 2, 3], 3))
    found = link.probabilities(score)
    assert np.isfinite(found).all()
    assert found.sum(axis=1) == pytest.approx(np.ones(12))
    assert (found.argmax(axis=1) == np.repeat([0, 1, 2, 3], 3)).all()


def test_a_grade_that_nobody_has_gets_little():
    score = np.arange(20.0)
    found = fit_cumulative_link(score, np.repeat([0, 3], 10)).probabilities(score)
    assert found[:, 1:3].sum(axis=1).max() < 0.5


@pytest.mark.parametrize(
    ("score", "label"), [(np.ones(9), np.zeros(9)), (np.arange(9.0), np.zeros(8))]
)
def test_what_cannot_be_read_is_refused(score, label):
    with pytest.raises(ValueError, match="one score that varies and one label"):
        fit_cumulative_link(score, label)
