"""Parts, shares and leave-one-patient-out on made-up numbers."""

import numpy as np
import pandas as pd
import pytest

from experiments.fat_rules.clinical import CLINICAL_COLUMNS, clinical_numbers
from experiments.fat_rules.leave_one_out import (
    by_predicted_fat,
    leave_one_out,
    left_out_scores,
    read_as,
)
from steatosis_tf.cohort.splits import make_partitions
from steatosis_tf.config import SplitConfig
from steatosis_tf.evaluation.metrics.scores import patient_scores
from steatosis_tf.grades import SCORE_COLUMNS, grade_from_fat_percent
from steatosis_tf.model.joint import JointModel
from steatosis_tf.model.joint_fit import Part, fit_joint

GOOD = Part("good", ("index", "slope"), (1, -1))
NOISE = Part("noise", tuple(f"noise_{i}" for i in range(15)))


def study(num_patients: int = 40) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(8)
    fat = rng.permutation(np.linspace(0, 95, num_patients))
    table = pd.DataFrame(rng.normal(size=(num_patients, 15)), columns=list(NOISE.columns))
    table["index"] = np.sqrt(fat) + rng.normal(0, 0.8, num_patients)
    table["slope"] = -np.sqrt(fat) + rng.normal(0, 0.8, num_patients)
    return table, fat


def fitted(features: pd.DataFrame, fat: np.ndarray, parts: tuple[Part, ...]) -> JointModel:
    inputs = {part.name: features[list(part.columns)].to_numpy() for part in parts}
    return fit_joint(parts, inputs, [f"P{place:02d}" for place in range(len(fat))], fat_percent=fat)


def test_the_part_that_knows_gets_the_share():
    features, fat = study()
    model = fitted(features, fat, (NOISE, GOOD))
    assert sum(part.share for part in model.parts) == pytest.approx(1, abs=1e-6)
    assert model.parts[1].share > 0.9
    score = model.score(
        {part.name: features[list(part.columns)].to_numpy() for part in (NOISE, GOOD)}
    )
    assert np.corrcoef(score, np.sqrt(fat))[0, 1] > 0.95


def test_a_table_that_lacks_a_column_is_refused():
    frames, features = frames_of(*study(14))
    with pytest.raises(ValueError, match=r"parts=\['good'\], missing=\['slope'\]"):
        left_out_scores(frames, features.drop(columns="slope"), (GOOD,), leave_one_out(frames))


def frames_of(features: pd.DataFrame, fat: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two frames per patient."""
    names = [f"P{i:02d}" for i in range(len(fat)) for _ in range(2)]
    frames = pd.DataFrame({"patient_id": names, "fat_percent": np.repeat(fat, 2)})
    frames["frame_id"] = [f"{name}-{i}" for i, name in enumerate(names)]
    frames["grade"] = [grade_from_fat_percent(percent) for percent in frames["fat_percent"]]
    return frames, features.loc[features.index.repeat(2)].reset_index(drop=True)


def test_a_patients_own_fat_does_not_reach_its_score():
    frames, features = frames_of(*study(14))
    scores, models = left_out_scores(frames, features, (GOOD,), leave_one_out(frames))
    assert len(models) == 14
    changed = frames.copy()
    mine = changed["patient_id"] == "P03"
    changed.loc[mine, "fat_percent"], changed.loc[mine, "grade"] = 50.0, "Moderate"
    again, _ = left_out_scores(changed, features, (GOOD,), leave_one_out(changed))
    wanted = [*SCORE_COLUMNS, "sqrt_fat"]
    one, two = (table.loc[table["patient_id"] == "P03", wanted] for table in (scores, again))
    assert np.array_equal(one.to_numpy(), two.to_numpy())
    others = scores["patient_id"] != "P03"
    assert not np.array_equal(scores.loc[others, wanted], again.loc[others, wanted])


def test_every_round_of_repeated_folds_tests_everyone_once():
    frames, features = frames_of(*study(60))
    folds = make_partitions(frames, SplitConfig(kind="kfold", folds=2, repeats=2))
    scores, models = left_out_scores(frames, features, (GOOD,), folds)
    assert len(models) == 4
    assert scores.groupby("repeat")["frame_id"].nunique().tolist() == [120, 120]
    assert not scores.duplicated(["repeat", "frame_id"]).any()
    patients = patient_scores(scores.drop(columns="sqrt_fat"))
    assert len(patients) == 120
    # The model of a fold saw none of its test patients: their fat may be anything.
    changed = frames.copy()
    tested = changed["patient_id"].isin(folds[0].test)
    changed.loc[tested, "fat_percent"], changed.loc[tested, "grade"] = 50.0, "Moderate"
    again, _ = left_out_scores(changed, features, (GOOD,), folds[:1])
    first = (scores["fold"] == 0).to_numpy()
    assert np.array_equal(scores.loc[first, "sqrt_fat"], again["sqrt_fat"])


def test_readings_of_a_patient_table():
    rows = [[0.4, 0.3, 0.2, 0.1], [0.1, 0.3, 0.25, 0.35], [0.45, 0.0, 0.0, 0.55]]
    table = pd.DataFrame(rows, columns=list(SCORE_COLUMNS)).assign(
        frame_id=list("abc"), patient_id=list("abc"), grade="Mild", fat_percent=10.0
    )
    table["predicted"] = ["Normal", "Severe", "Severe"]
    table["sqrt_fat"] = [1.0, 7.0, 3.0]
    patients = patient_scores(table)
    assert read_as(patients, "middle")["predicted"].tolist() == ["Mild", "Moderate", "Severe"]
    assert read_as(patients, "expected")["predicted"].tolist() == ["Mild", "Moderate", "Moderate"]
    ranked = by_predicted_fat(table, patients)
    assert ranked["p_severe"].rank().tolist() == [1, 3, 2]
    with pytest.raises(ValueError, match="rule middle or expected"):
        read_as(patients, "best")


def test_covariates_are_read_and_help_where_they_know_something():
    features, fat = study(60)
    rng = np.random.default_rng(4)
    clinic = pd.DataFrame({"bmi": (22 + fat / 8 + rng.normal(0, 1, 60)).round(1).astype(str)})
    clinic["sex"] = rng.choice(["M", "f", ""], 60)
    clinic.loc[::4, "bmi"] = ""
    numbers = clinical_numbers(clinic)
    assert list(numbers) == list(CLINICAL_COLUMNS)
    assert numbers["bmi"].isna().sum() == 15
    assert numbers["age"].isna().all()
    assert set(numbers["sex_male"].dropna()) == {0.0, 1.0}
    part = Part("clinic", CLINICAL_COLUMNS, flag_missing=True)
    assert fitted(features.join(numbers), fat, (NOISE, part)).parts[1].share > 0.7


@pytest.mark.parametrize(
    ("column", "cell"), [("bmi", "obese"), ("alt", "-3"), ("sex", "2"), ("diabetes", "maybe")]
)
def test_a_cell_that_means_nothing_is_refused(column, cell):
    with pytest.raises(ValueError, match=f"Expected {column} in .*'{cell}' at row 3"):
        clinical_numbers(pd.DataFrame({column: ["", cell]}))
