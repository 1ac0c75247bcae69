"""The one grading rule: scores, missing numbers, three answers, places, and its file."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from experiments.explanation import explain_places
from steatosis_tf.grades import GRADES
from steatosis_tf.model.answer import FrameAnswer
from steatosis_tf.model.joint import JointModel, decide, grade_patient
from steatosis_tf.model.joint_fit import Part, choose_shares, fit_joint
from steatosis_tf.model.rules import Novelty, fit_novelty, pool_maps

PARTS = (Part("network"), Part("measured", ("index", "slope"), (1, -1)))
WIDTH = 640


def study(num_patients: int = 30) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Inputs, ids and fat of two frames per patient."""
    rng = np.random.default_rng(3)
    fat = np.repeat(rng.permutation(np.linspace(0, 95, num_patients)), 2)
    root = np.sqrt(fat)[:, None]
    network = root * rng.normal(size=(1, WIDTH)) + rng.normal(0, 3, (len(fat), WIDTH))
    measured = root * [1, -1] + rng.normal(0, 0.5, (len(fat), 2))
    measured[::6, 0] = np.nan
    ids = np.array([f"P{place // 2:02d}" for place in range(len(fat))])
    return {"network": network, "measured": measured}, ids, fat


@pytest.fixture(scope="module")
def model() -> JointModel:
    inputs, ids, fat = study()
    return fit_joint(PARTS, inputs, ids, fat_percent=fat, notes={"study": "made up"})


def frames_of(rows: np.ndarray) -> list[FrameAnswer]:
    return [
        FrameAnswer(f"{place}.png", "graded", features={"index": row[0], "slope": row[1]})
        for place, row in enumerate(rows)
    ]


def answer_of(model: JointModel, patient: str = "P00"):
    inputs, ids, _ = study()
    mine = ids == patient
    return grade_patient(
        model, patient, frames_of(inputs["measured"][mine]), inputs["network"][mine]
    )


def test_everyone_gets_the_grade_that_fat_says_or_its_neighbour(model):
    _, ids, fat = study()
    for patient in np.unique(ids):
        truth = fat[ids == patient][0]
        answer = answer_of(model, patient)
        assert answer.kind == "graded"
        assert answer.fat_percent == pytest.approx(truth, abs=20)
        assert abs(GRADES.index(answer.grade) - np.searchsorted([4.999, 33, 66], truth)) <= 1
        assert sum(answer.probabilities.values()) == pytest.approx(1)
        assert answer.fat_interval[0] <= answer.fat_percent <= answer.fat_interval[1]
        assert answer.grade in answer.prediction_set
        assert answer.num_used == answer.num_frames == 2


def test_contributions_add_up_to_the_score_and_the_largest_stands_first(model):
    answer = answer_of(model)
    share = {part.name: part.share for part in model.parts}
    base = sum(part.share * part.rule.intercept for part in model.parts)
    assert set(answer.contributions) == {"network", "index", "slope"}
    assert (base + sum(answer.contributions.values())) ** 2 == pytest.approx(answer.fat_percent)
    sizes = [abs(add) for add in answer.contributions.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(share.values()) == pytest.approx(1)


def test_the_patient_is_the_mean_of_its_frames(model):
    inputs, ids, _ = study()
    mine = ids == "P01"
    answer = answer_of(model, "P01")
    one = {name: np.nanmean(rows[mine], axis=0, keepdims=True) for name, rows in inputs.items()}
    assert answer.fat_percent == pytest.approx(model.score(one)[0] ** 2)
    roots = np.sqrt([frame.fat_score for frame in answer.frames])
    assert roots.mean() == pytest.approx(np.sqrt(answer.fat_percent))


def test_a_part_that_was_not_measured_leaves_the_grade_to_the_other(model):
    inputs, _, _ = study()
    rows = inputs["network"][:2]
    answer = grade_patient(
        model, "P", [FrameAnswer("a", "graded"), FrameAnswer("b", "graded")], rows
    )
    assert answer.fat_percent == pytest.approx(model.parts[0].rule.sqrt_fat(rows).mean() ** 2)
    with pytest.raises(ValueError, match=r"at least one part in every row\. Received: 1 rows"):
        model.score({"network": np.full((1, WIDTH), np.nan), "measured": np.full((1, 2), np.nan)})


def test_the_file_gives_the_same_answers_and_says_so_if_it_is_none(model):
    text = model.to_json()
    again = JointModel.from_json(text)
    assert repr(answer_of(again)) == repr(answer_of(model))
    assert again.to_json() == text
    assert json.loads(text)["notes"] == {"study": "made up"}
    for other in ("{}", "no json", text.replace('"format": 1', '"format": 9'), "[]"):
        with pytest.raises(ValueError, match="Expected a joint model in JSON"):
            JointModel.from_json(other)


def with_novelty(model: JointModel) -> JointModel:
    """Distance is the length of the features but the last; grades to 2e3, scores to 2e4."""
    basis = np.zeros((WIDTH, 1))
    basis[-1] = 1
    novelty = Novelty(np.zeros(WIDTH), np.ones(WIDTH), basis, WIDTH**-0.5, 2e3, 2e4)
    return dataclasses.replace(model, novelty=novelty)


@pytest.mark.parametrize(
    ("places", "kind", "used", "code"),
    [
        ([0, 0, 0], "graded", 3, ""),
        ([0, 0, 1], "graded", 2, ""),
        ([0, 1, 1], "score_only", 3, "unlike_training"),
        ([0, 1, 2], "graded", 1, ""),
        ([2, 2, 2], "unable", 0, "not_liver_ultrasound"),
    ],
)
def test_three_answers_by_distance(model, places, kind, used, code):
    inputs, _, _ = study()
    rows = np.repeat(inputs["network"][:1], 3, axis=0)
    rows[:, 0] = np.array([0.0, 1e4, 1e5])[places]
    frames = frames_of(np.repeat(inputs["measured"][1:2], 3, axis=0))
    answer = grade_patient(with_novelty(model), "P", frames, rows)
    assert (answer.kind, answer.num_used, answer.reason_code) == (kind, used, code)
    assert bool(answer.grade) == bool(answer.probabilities) == (kind == "graded")
    assert np.isnan(answer.fat_percent) == (kind == "unable")
    wanted = np.array(["graded", "score_only", "unable"])[places].tolist()
    assert [frame.kind for frame in answer.frames] == wanted
    assert [np.isnan(frame.fat_score) for frame in answer.frames] == [p == 2 for p in places]


def test_a_rule_refuses_what_is_near_but_no_liver(model):
    """The rule: the second feature is at least 5."""
    inputs, _, _ = study()
    rows = np.repeat(inputs["network"][:1], 2, axis=0)
    rows[:, 1] = 4.0, 6.0
    frames = frames_of(np.repeat(inputs["measured"][1:2], 2, axis=0))
    weights = np.eye(WIDTH)[1]
    near = with_novelty(model)
    assert near.novelty.log_odds(rows).tolist() == [np.inf, np.inf]  # without a rule
    novelty = dataclasses.replace(near.novelty, liver_weights=weights, liver_intercept=-5.0)
    assert novelty.log_odds(rows).tolist() == [-1.0, 1.0]
    ruled = JointModel.from_json(dataclasses.replace(model, novelty=novelty).to_json())
    answer = grade_patient(ruled, "P", frames, rows)
    assert [frame.kind for frame in answer.frames] == ["unable", "graded"]
    assert answer.frames[0].reason_code == "not_liver_ultrasound"
    far = np.where(np.arange(WIDTH) == 0, 1e5, rows[1:])
    assert not novelty.shows_liver(far)[0]  # however sure the rule is


def test_what_is_far_from_livers_of_many_scanners_gets_no_score(model):
    """Near the training patients' features, but farther from the livers, which are around 1000."""
    inputs, _, _ = study()
    rows = np.repeat(inputs["network"][:1], 2, axis=0)
    rows[:, 0] = 0.0, 1e3
    frames = frames_of(np.repeat(inputs["measured"][1:2], 2, axis=0))
    near = with_novelty(model).novelty
    livers = dataclasses.replace(near, centre=1e3 * np.eye(WIDTH)[0], score_limit=500.0)
    assert near.shows_liver(rows).tolist() == [True, True]
    known = dataclasses.replace(model, novelty=dataclasses.replace(near, livers=livers))
    for ruled in (known, JointModel.from_json(known.to_json())):
        answer = grade_patient(ruled, "P", frames, rows)
        assert [frame.kind for frame in answer.frames] == ["unable", "graded"]
        assert answer.frames[0].reason_code == "not_liver_ultrasound"


def test_a_rule_of_an_earlier_version_has_no_distance_from_livers(model):
    text = with_novelty(model).to_json()
    content = json.loads(text)
    del content["novelty"]["livers"]
    assert JointModel.from_json(json.dumps(content)).to_json() == text
    del content["novelty"]["liver_weights"], content["novelty"]["liver_intercept"]
    assert JointModel.from_json(json.dumps(content)).to_json() == text


def test_distance_is_calibrated_on_patients_the_fit_had_not_seen():
    rng = np.random.default_rng(1)
    ids = np.repeat([f"P{place:02d}" for place in range(40)], 2)
    directions = rng.normal(size=(3, 50))

    def seen(num: int, noise: float) -> np.ndarray:
        return rng.normal(size=(num, 3)) @ directions + rng.normal(0, noise, (num, 50))

    rows = np.repeat(seen(40, 0.2), 2, axis=0)
    novelty = fit_novelty(rows, ids)
    assert fit_novelty(rows, ids, quantile=0.5).score_limit < novelty.score_limit
    assert (novelty.distance(seen(200, 0.2)) <= novelty.score_limit).mean() > 0.9
    assert (novelty.distance(seen(200, 2.0)) > novelty.unable_limit).all()
    # Far along a direction of the training patients is more or less of the same: not novel.
    assert novelty.distance(10 * directions[:1])[0] < 2 * novelty.score_limit


def test_frames_without_a_liver_are_left_out_and_their_reason_is_kept(model):
    inputs, _, _ = study()
    good = frames_of(inputs["measured"][:1])
    bad = FrameAnswer("bad.png", "unable", "no_liver", "No liver is in view.")
    rows = np.vstack([np.full((1, WIDTH), np.nan), inputs["network"][:1]])
    answer = grade_patient(model, "P", [bad, *good], rows)
    assert (answer.kind, answer.num_used, answer.num_frames) == ("graded", 1, 2)
    assert answer.frames[0] == bad
    none = grade_patient(model, "P", [bad], rows[:1])
    assert (none.kind, none.reason_code, none.grade) == ("unable", "no_liver", "")
    assert grade_patient(model, "P", [], np.empty((0, WIDTH))).reason_code == "no_frames"


def test_places_add_up_to_what_the_network_predicts(model):
    rng = np.random.default_rng(0)
    near, far = rng.normal(size=(24, 20, 112)), rng.normal(size=(12, 10, 192))
    places = explain_places(model, near, far)
    rule = model.parts[0].rule
    predicted = rule.sqrt_fat(pool_maps(near[None], far[None]))[0]
    assert places.shape == (24, 20)
    assert places.sum() + rule.intercept == pytest.approx(predicted, abs=1e-4)
    near[3, 4] += 1.0
    changed = explain_places(model, near, far) != places
    assert np.argwhere(changed).tolist() == [[3, 4]]
    with pytest.raises(ValueError, match=r"the two maps of one frame.*near.shape=\(24, 20, 112\)"):
        explain_places(model, near, far[:5])


def test_decision_rules():
    chances = np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.3, 0.25, 0.35], [0.45, 0.0, 0.0, 0.55]])
    assert decide(chances, "argmax").tolist() == [0, 3, 3]
    assert decide(chances, "median").tolist() == [1, 2, 3]
    assert decide(chances, "rounded_mean").tolist() == [1, 2, 2]
    with pytest.raises(ValueError, match="rule out of argmax, median, rounded_mean"):
        decide(chances, "best")


def test_network_features_of_another_shape_are_refused(model):
    with pytest.raises(ValueError, match="features of 1 frames, 640 numbers each"):
        grade_patient(model, "P", [FrameAnswer("a", "graded")], np.zeros((1, 3)))
    with pytest.raises(ValueError, match="features of 1 frames, 640 numbers each"):
        grade_patient(model, "P", [FrameAnswer("a", "graded")])


def test_shares_are_alike_unless_the_patients_say_otherwise():
    rng = np.random.default_rng(5)
    target = rng.uniform(0, 9, 40)
    good = target + rng.normal(0, 0.3, 40)
    assert choose_shares(np.array([good, rng.permutation(good)]), target)[0] > 0.9
    twins = np.array([target + rng.normal(0, 1, 40), target + rng.normal(0, 1, 40)])
    assert choose_shares(twins, target) == pytest.approx([0.5, 0.5], abs=0.2)
    assert choose_shares(twins[:1], target).tolist() == [1.0]


def test_no_patients_own_fat_reaches_its_left_out_score():
    inputs, ids, fat = study()
    changed = fat.copy()
    changed[ids == "P05"] = 50.0
    scores = []
    for percent in (fat, changed):
        others = ids != "P05"
        seen = {name: rows[others] for name, rows in inputs.items()}
        fitted = fit_joint(PARTS, seen, ids[others], fat_percent=percent[others])
        scores.append(fitted.score({name: rows[~others] for name, rows in inputs.items()}))
    np.testing.assert_array_equal(*scores)


def test_grades_alone_give_grades_and_no_fat():
    inputs, ids, fat = study()
    grades = np.array(GRADES)[np.searchsorted([4.999, 33, 66], fat)]
    fitted = fit_joint(PARTS, inputs, ids, grades=grades)
    answer = answer_of(fitted, ids[fat.argmax()])
    assert answer.grade == "Severe"
    assert np.isnan(answer.fat_percent)
    assert answer.training_rank > 0.8


def test_fat_beyond_the_scale_is_refused():
    inputs, ids, fat = study()
    with pytest.raises(ValueError, match="fat_percent from 0 to 100"):
        fit_joint(PARTS, inputs, ids, fat_percent=fat + 50)


def test_answering_needs_numpy_alone():
    code = (
        "import sys, steatosis_tf.model.joint; slow = 'tensorflow keras pandas scipy sklearn'; "
        "print([name for name in slow.split() if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
