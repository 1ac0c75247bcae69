"""Bootstrap intervals against published examples, scipy, and their own promises."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from steatosis_tf.evaluation.metrics.comparison import auc_covariance
from steatosis_tf.evaluation.metrics.intervals import (
    bca_acceleration,
    bca_interval,
    bootstrap_intervals,
    paired_bootstrap,
    percentile_interval,
    wilson_interval,
)
from steatosis_tf.evaluation.metrics.registry import METRICS, compute_metrics
from steatosis_tf.evaluation.metrics.resampling import (
    bootstrap_weights,
    code_patients,
    jackknife_weights,
)
from steatosis_tf.evaluation.metrics.scores import labels_and_probabilities, patient_scores
from steatosis_tf.files import flat
from steatosis_tf.grades import GRADES, SCORE_COLUMNS

# Spatial test scores A of 26 children: Efron and Tibshirani 1993, An Introduction to the Bootstrap,
# table 14.1 on page 180; the same numbers stand in the tests of the Python package pylogit.
SPATIAL = np.array(
    [48, 36, 20, 29, 42, 42, 20, 42, 22, 41, 45, 14, 6, 0, 33, 28, 34, 4, 32, 24, 47, 41, 24, 26,
     30, 41]
)  # fmt: skip


def study(
    per_grade: int = 8, num_frames: int = 5, seed: int = 0, skill: float = 1.0, num_folds: int = 1
) -> pd.DataFrame:
    """Frames of simulated patients: alike within a patient, better with more skill."""
    rng = np.random.default_rng(seed)
    grade = np.tile(np.arange(4), per_grade)
    patient = np.repeat(np.arange(len(grade)), num_frames)
    place = skill * grade[patient] + rng.normal(0, 0.8, len(grade))[patient]
    place = place + rng.normal(0, 0.3, len(patient))
    scores = np.exp(-((np.arange(4) - place[:, None]) ** 2))
    scores /= scores.sum(axis=1, keepdims=True)
    return pd.DataFrame(
        {
            "frame_id": [f"{row:06d}" for row in range(len(patient))],
            "patient_id": [f"P{p:03d}" for p in patient],
            "fold": patient // 4 % num_folds,
            "grade": np.asarray(GRADES)[grade[patient]],
            "fat_percent": grade[patient] * 25.0 + patient % 5,
            **dict(zip(SCORE_COLUMNS, scores.T, strict=True)),
        }
    )


def test_bca_of_efron_and_tibshirani_1993() -> None:
    """Variance 171.5, a = 0.061 (page 186), and from table 14.2 on page 183 the 90 % intervals:
    BCa (115.8, 259.6), percentile (100.8, 233.9).

    Their 2,000 replicates carry a Monte Carlo error: the ends have standard deviations 1.7 and
    1.9 (measured on 150 sets of 2,000), so the tolerance is three of them.
    """
    value = SPATIAL.var()
    assert value == pytest.approx(171.5, abs=0.05)
    left_out = np.array([np.delete(SPATIAL, i).var() for i in range(26)])
    acceleration = bca_acceleration(left_out, np.zeros(26))
    assert acceleration == pytest.approx(0.061, abs=5e-4)
    rng = np.random.default_rng(0)
    replicates = SPATIAL[rng.integers(0, 26, (20000, 26))].var(axis=1)
    assert percentile_interval(replicates, 0.90) == pytest.approx([100.8, 233.9], abs=5.7)
    assert bca_interval(value, replicates, acceleration, 0.90) == pytest.approx(
        [115.8, 259.6], abs=5.7
    )


def test_bca_equals_scipy_on_the_same_replicates() -> None:
    """Two samples (two strata), so that the several-sample acceleration is tested too."""
    rng = np.random.default_rng(3)
    first, second = rng.gamma(2, size=17), rng.gamma(1, size=29)

    def statistic(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.log(x.mean(axis=axis) / y.mean(axis=axis))

    theirs = stats.bootstrap(
        (first, second), statistic, n_resamples=1999, method="BCa", rng=np.random.default_rng(1)
    )
    left_out = [statistic(np.delete(first, i), second) for i in range(17)]
    left_out += [statistic(first, np.delete(second, i)) for i in range(29)]
    acceleration = bca_acceleration(np.array(left_out), np.repeat([0, 1], [17, 29]))
    found = bca_interval(
        float(statistic(first, second)), theirs.bootstrap_distribution, acceleration
    )
    assert found == pytest.approx(list(theirs.confidence_interval), abs=1e-12)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_of_newcombe_1998(successes: int, trials: int, low: float, high: float) -> None:
    """Table I of Newcombe, Statistics in Medicine 17, 857, method 3."""
    assert wilson_interval(successes, trials) == pytest.approx([low, high], abs=5e-5)


def test_values_equal_compute_metrics_and_bounds_surround_them() -> None:
    frames = study()
    found = bootstrap_intervals(frames, num_resamples=500)
    labels, scores = labels_and_probabilities(frames)
    expected = flat(compute_metrics(labels, scores, frames["fat_percent"]))
    for name, entry in found.items():
        assert entry["value"] == pytest.approx(expected[name], abs=1e-11), name
        assert entry["low"] <= entry["value"] <= entry["high"], name
        assert entry["low"] < entry["high"], name
        assert entry["num_patients"] == 32
    assert set(found) == set(METRICS)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("num_frames", [1, 5])
def test_standard_error_of_an_auc_agrees_with_delong_and_obuchowski(num_frames: int) -> None:
    """An analytic variance that shares no code with the resampling."""
    frames = study(per_grade=30, num_frames=num_frames, skill=0.5)
    labels, scores = labels_and_probabilities(frames)
    _, covariance = auc_covariance(labels == 3, scores[None, :, 3], frames["patient_id"].to_numpy())
    found = bootstrap_intervals(frames, num_resamples=4000)["ordinal.auc_severe"]
    # Drawing within all four grades leaves out what the mix of grades below Severe adds.
    assert found["standard_error"] == pytest.approx(np.sqrt(covariance[0, 0]), rel=0.1)


def test_same_seed_same_intervals_and_another_seed_close() -> None:
    frames = study()
    first = bootstrap_intervals(frames, num_resamples=400, seed=5)
    assert first == bootstrap_intervals(frames, num_resamples=400, seed=5)
    shuffled = frames.sample(frac=1, random_state=1)
    again = bootstrap_intervals(shuffled, num_resamples=400, seed=5)["auc_macro"]
    assert again["low"] == pytest.approx(first["auc_macro"]["low"], abs=1e-12)
    other = bootstrap_intervals(frames, num_resamples=400, seed=6)["auc_macro"]
    assert other["low"] != first["auc_macro"]["low"]
    assert other["low"] == pytest.approx(first["auc_macro"]["low"], abs=0.03)


def test_some_names_get_the_numbers_they_have_among_all() -> None:
    table, other = study(num_folds=2), study(seed=1, num_folds=2)
    names = ("macro.f1", "ordinal.auc_at_least_mild")
    every = bootstrap_intervals(table, num_resamples=200)
    some = bootstrap_intervals(table, num_resamples=200, names=names)
    assert some == {name: every[name] for name in names}
    differences = paired_bootstrap(table, other, num_resamples=200)
    paired = paired_bootstrap(table, other, num_resamples=200, names=names)
    assert paired == {name: differences[name] for name in names}


def test_frames_of_a_patient_stay_together() -> None:
    """Copying every frame ten times adds no information, so it must not narrow the interval."""
    frames = study(num_frames=1)
    copies = pd.concat(
        [frames.assign(frame_id=frames["frame_id"] + str(copy)) for copy in range(10)]
    )
    once, often = (bootstrap_intervals(table, num_resamples=300) for table in (frames, copies))
    for name in ("accuracy", "auc_macro", "ordinal.quadratic_kappa", "ordinal.auc_severe"):
        assert often[name]["low"] == pytest.approx(once[name]["low"], abs=1e-9)
        assert often[name]["high"] == pytest.approx(once[name]["high"], abs=1e-9)


def test_weights_keep_the_size_of_every_stratum_and_its_variance() -> None:
    stratum = np.repeat([0, 1, 2], [2, 5, 1])
    weights = bootstrap_weights(stratum, 40000, np.random.default_rng(0))
    for name, size in ((0, 2), (1, 5), (2, 1)):
        np.testing.assert_allclose(weights[:, stratum == name].sum(axis=1), size, rtol=1e-6)
    values = np.array([1.0, 3.0, 2.0, 4.0, 4.0, 7.0, 9.0, 5.0])
    means = (weights[:, stratum == 1] * values[stratum == 1]).mean(axis=1)
    unbiased = values[stratum == 1].var(ddof=1) / 5  # the textbook variance of a mean
    assert means.var() == pytest.approx(unbiased, rel=0.03)


def test_jackknife_leaves_each_patient_out_once_and_groups_large_studies() -> None:
    rng = np.random.default_rng(0)
    weights, names = jackknife_weights(np.array([0, 0, 0, 1, 1]), rng)
    assert sorted(weights.argmin(axis=1).tolist()) == [0, 1, 2, 3, 4]
    assert sorted(names.tolist()) == [0, 0, 0, 1, 1]
    weights, _ = jackknife_weights(np.repeat([0, 1], 1000), rng)
    assert len(weights) == 400
    assert ((weights == 0).sum(axis=0) == 1).all()


def test_out_of_fold_scores_give_both_aucs_and_count_a_patient_once() -> None:
    frames = study(num_folds=2)
    shifted = frames["fold"] == 1  # the second fold's model says Normal more often
    frames.loc[shifted, list(SCORE_COLUMNS)] *= 0.5
    frames.loc[shifted, "p_normal"] += 0.5
    found = bootstrap_intervals(frames, num_resamples=300)
    per_fold = []
    for _, fold in frames.groupby("fold"):
        labels, scores = labels_and_probabilities(fold)
        per_fold.append(compute_metrics(labels, scores)["auc_macro"])
    assert found["fold_mean.auc_macro"]["value"] == pytest.approx(np.mean(per_fold))
    assert found["auc_macro"]["value"] < np.mean(per_fold) - 0.02
    assert found["auc_macro"]["num_patients"] == 32
    assert found["fold_mean.auc_macro"]["low"] < np.mean(per_fold)


def test_a_fold_without_a_grade_is_left_out_and_named() -> None:
    frames = study(num_folds=4)
    frames = frames[~((frames["fold"] == 3) & (frames["grade"] == "Severe"))]
    found = bootstrap_intervals(frames, num_resamples=300)
    entry = found["fold_mean.per_class.Severe.auc"]
    assert "Mean over 3 of 4 folds" in entry["note"]
    assert entry["value"] is not None
    assert found["fold_mean.per_class.Normal.auc"]["note"] is None


def test_leave_one_patient_out_has_pooled_numbers_only() -> None:
    frames = study()
    frames["fold"] = frames["patient_id"].str[1:].astype(int)
    found = bootstrap_intervals(frames, num_resamples=300)
    assert not any(name.startswith("fold_mean") for name in found)
    same = bootstrap_intervals(study(), num_resamples=300)
    assert found["auc_macro"]["low"] == same["auc_macro"]["low"]


def test_repeats_average_and_do_not_narrow() -> None:
    frames = study(num_frames=1)
    once = bootstrap_intervals(frames, num_resamples=300)
    repeated = pd.concat([frames.assign(repeat=r) for r in range(5)])
    found = bootstrap_intervals(repeated, num_resamples=300)
    assert found["auc_macro"]["num_patients"] == 32
    for bound in ("value", "low", "high"):
        assert found["auc_macro"][bound] == pytest.approx(once["auc_macro"][bound], abs=1e-9)
    two = pd.concat([frames.assign(repeat=0), study(num_frames=1, seed=9).assign(repeat=1)])
    mean = bootstrap_intervals(two, num_resamples=300)["accuracy"]["value"]
    parts = [
        compute_metrics(*labels_and_probabilities(part))["accuracy"]
        for part in (frames, study(num_frames=1, seed=9))
    ]
    assert mean == pytest.approx(np.mean(parts))
    with pytest.raises(ValueError, match=r"every patient in every repeat.*31 of 32 patients"):
        bootstrap_intervals(two[1:])


def test_all_right_gets_wilson_or_nothing_but_never_a_point() -> None:
    frames = study()
    labels, _ = labels_and_probabilities(frames)
    for label, column in enumerate(SCORE_COLUMNS):
        frames[column] = 0.85 * (labels == label) + 0.15 * 0.25 + 0.0
    frames[list(SCORE_COLUMNS)] /= frames[list(SCORE_COLUMNS)].sum(axis=1).to_numpy()[:, None]
    found = bootstrap_intervals(frames, num_resamples=200)
    assert found["accuracy"]["method"] == "wilson"
    assert found["accuracy"]["low"] == pytest.approx(wilson_interval(32, 32)[0])
    assert found["per_class.Mild.recall"]["low"] == pytest.approx(wilson_interval(8, 8)[0])
    assert found["ordinal.error_over_one_grade_rate"]["high"] == pytest.approx(
        wilson_interval(0, 32)[1]
    )
    auc = found["auc_macro"]
    assert (auc["value"], auc["low"], auc["high"], auc["method"]) == (1, None, None, None)
    assert "Every resample gave this number" in auc["note"]


def test_absent_grade_one_patient_and_a_lone_patient() -> None:
    frames = study()
    found = bootstrap_intervals(frames[frames["grade"] != "Severe"], num_resamples=200)
    severe = found["per_class.Severe.auc"]
    assert (severe["value"], severe["low"]) == (None, None)
    assert severe["note"] == "The metric is undefined on these patients."
    json.dumps(found, allow_nan=False)
    one = bootstrap_intervals(frames[frames["patient_id"] == "P001"], num_resamples=200)
    assert one["accuracy"]["method"] in ("wilson", None)
    assert one["auc_macro"]["low"] is None
    json.dumps(one, allow_nan=False)
    lone = frames[(frames["grade"] != "Severe") | (frames["patient_id"] == "P003")]
    note = bootstrap_intervals(lone, num_resamples=200)["auc_macro"]["note"]
    assert "Few patients (1 Severe)" in note
    assert "A lone patient of a grade is in every resample" in note


def test_a_subgroup_of_three_patients_is_called_rough() -> None:
    frames = study()
    three = frames[frames["patient_id"].isin(["P000", "P001", "P004"])]
    found = bootstrap_intervals(three, num_resamples=200)
    json.dumps(found, allow_nan=False)
    for entry in found.values():
        assert entry["low"] is None or "Few patients (2 Normal, 1 Mild)" in entry["note"]
        assert entry["low"] is not None or entry["note"]


def test_often_undefined_means_no_interval() -> None:
    """A grade predicted for one patient only is lost in a third of the resamples."""
    frames = patient_scores(study(per_grade=4))
    frames = frames.drop(columns="predicted")
    frames[list(SCORE_COLUMNS)] = [0.5, 0.3, 0.1, 0.1]
    frames.loc[0, list(SCORE_COLUMNS)] = [0.3, 0.5, 0.1, 0.1]
    entry = bootstrap_intervals(frames, num_resamples=400)["per_class.Mild.precision"]
    assert entry["low"] is None
    assert entry["value"] is not None
    assert "% of the resamples: too few patients" in entry["note"]
    assert 50 < entry["num_undefined"] < 250


def test_too_few_resamples_are_refused() -> None:
    with pytest.raises(ValueError, match="num_resamples=20"):
        bootstrap_intervals(study(), num_resamples=20)


def test_a_bad_table_is_refused() -> None:
    frames = study()
    frames.loc[3, "grade"] = None
    with pytest.raises(ValueError, match="a grade out of Normal"):
        code_patients(frames)


def test_paired_difference_of_a_better_model() -> None:
    better, worse = study(skill=1.0), study(skill=0.4)
    found = paired_bootstrap(better, worse, num_resamples=500)["auc_macro"]
    values = [
        compute_metrics(*labels_and_probabilities(table))["auc_macro"] for table in (better, worse)
    ]
    assert found["model"] == pytest.approx(values[0])
    assert found["baseline"] == pytest.approx(values[1])
    assert found["value"] == pytest.approx(values[0] - values[1])
    assert 0 < found["low"] < found["value"] < found["high"]
    assert found["p_value"] == pytest.approx(2 / 501)
    opposite = paired_bootstrap(worse, better, num_resamples=500)["auc_macro"]
    assert opposite["value"] == pytest.approx(-found["value"])
    assert opposite["percentile"][0] == pytest.approx(-found["percentile"][1])


def test_pairing_is_narrower_than_two_intervals_and_equal_models_have_no_p_value() -> None:
    model = study()
    noise = np.random.default_rng(0).uniform(0.8, 1.25, (len(model), 4))
    other = model.copy()
    other[list(SCORE_COLUMNS)] *= noise
    other[list(SCORE_COLUMNS)] /= other[list(SCORE_COLUMNS)].sum(axis=1).to_numpy()[:, None]
    paired = paired_bootstrap(model, other, num_resamples=300)["auc_macro"]
    alone = bootstrap_intervals(model, num_resamples=300)["auc_macro"]
    assert paired["standard_error"] < alone["standard_error"] / 3
    same = paired_bootstrap(model, model, num_resamples=200)["accuracy"]
    assert (same["value"], same["low"], same["p_value"]) == (0, None, None)


def test_pairing_different_patients_is_refused() -> None:
    frames = study()
    with pytest.raises(ValueError, match=r"1 patients with scores of one model only.*\['P000'\]"):
        paired_bootstrap(frames, frames[frames["patient_id"] != "P000"])
