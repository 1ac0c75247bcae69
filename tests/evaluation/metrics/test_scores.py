"""Score tables: joining frames into patients, refusals, and the files."""

import numpy as np
import pandas as pd
import pytest

from steatosis_tf.evaluation.metrics.registry import metrics_of
from steatosis_tf.evaluation.metrics.scores import (
    check_same_patients,
    labels_and_probabilities,
    patient_scores,
    read_scores,
    score_table,
    write_scores,
)
from steatosis_tf.grades import GRADES, SCORE_COLUMNS


def make_frames(num_patients: int = 6, num_frames: int = 5, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(4), num_patients * num_frames)
    patient = np.repeat(np.arange(num_patients), num_frames)
    return pd.DataFrame(
        {
            "frame_id": [f"{row:016x}" for row in range(len(patient))],
            "patient_id": [f"{p:03d}" for p in patient],
            "fold": patient % 3,
            "grade": np.asarray(GRADES)[patient % 4],
            "fat_percent": np.where(patient == 0, np.nan, patient * 7.3),
            **dict(zip(SCORE_COLUMNS, probabilities.T, strict=True)),
            "predicted": np.asarray(GRADES)[probabilities.argmax(axis=1)],
        }
    )


def one_patient(rows: list[list[float]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(SCORE_COLUMNS))
    return table.assign(frame_id=[str(i) for i in range(len(rows))], patient_id="A", grade="Mild")


THREE = [[0.7, 0.1, 0.1, 0.1], [0.1, 0.6, 0.2, 0.1], [0.4, 0.5, 0.05, 0.05]]


@pytest.mark.parametrize(
    ("rule", "expected", "predicted"),
    [
        ("mean", [1.2 / 3, 1.2 / 3, 0.35 / 3, 0.25 / 3], "Normal"),
        ("median", [0.4 / 1.1, 0.5 / 1.1, 0.1 / 1.1, 0.1 / 1.1], "Mild"),
        ("vote", [1 / 3, 2 / 3, 0, 0], "Mild"),
        ("trimmed_mean", [1.2 / 3, 1.2 / 3, 0.35 / 3, 0.25 / 3], "Normal"),  # 3 frames: none cut
    ],
)
def test_rules_by_hand(rule: str, expected: list[float], predicted: str) -> None:
    patients = patient_scores(one_patient(THREE), rule)
    found = patients[list(SCORE_COLUMNS)].to_numpy()[0]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found.sum() == pytest.approx(1, abs=1e-12)
    assert patients["num_frames"].tolist() == [3]
    if rule != "mean" and rule != "trimmed_mean":  # 1.2 / 3 against 1.2 / 3 is up to rounding
        assert patients["predicted"].tolist() == [predicted]


def test_trimmed_mean_leaves_out_one_frame_of_ten_at_each_end() -> None:
    normal = np.linspace(0.0, 0.9, 10)
    normal[9] = 1.0
    rows = [[p, 1 - p, 0, 0] for p in normal]
    patients = patient_scores(one_patient(rows), "trimmed_mean")
    assert patients["p_normal"][0] == pytest.approx(np.linspace(0.1, 0.8, 8).mean())


def test_a_tie_predicts_the_lower_grade() -> None:
    rows = [[0, 0, 0.1, 0.9], [0, 0.9, 0.1, 0]]
    assert patient_scores(one_patient(rows), "vote")["predicted"].tolist() == ["Mild"]


def test_equal_votes_stay_equal_and_full_columns() -> None:
    patients = patient_scores(make_frames(), "vote")
    assert list(patients) == [
        "patient_id", "fold", "grade", "fat_percent", "num_frames", *SCORE_COLUMNS, "predicted",
    ]  # fmt: skip
    assert set(np.round(patients["p_normal"] * 5, 12) % 1) == {0.0}
    assert patients["patient_id"].tolist() == [f"{p:03d}" for p in range(6)]
    assert np.isnan(patients["fat_percent"][0])
    assert patients["fat_percent"][2] == pytest.approx(14.6)


def test_row_order_does_not_matter() -> None:
    frames = make_frames()
    shuffled = frames.sample(frac=1, random_state=3)
    pd.testing.assert_frame_equal(patient_scores(frames, "vote"), patient_scores(shuffled, "vote"))
    pd.testing.assert_frame_equal(
        patient_scores(frames), patient_scores(shuffled), check_exact=True
    )


def test_repeats_keep_a_patient_once_per_repeat() -> None:
    frames = make_frames()
    repeated = pd.concat([frames.assign(repeat=0), frames.assign(repeat=1, fold=9)])
    patients = patient_scores(repeated)
    assert len(patients) == 12
    assert next(iter(patients)) == "repeat"


def edited(column: str, value: object, row: int = 1) -> pd.DataFrame:
    frames = make_frames()
    frames[column] = frames[column].astype(object)
    frames.loc[row, column] = value
    return frames


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (edited("p_mild", np.nan), r"finite probabilities.*1 of 30 rows.*frame_id=\['0{15}1'\]"),
        (edited("p_mild", np.inf), "finite probabilities"),
        (edited("p_mild", -0.1), "from 0 to 1"),
        (edited("p_mild", 0.99), "sum to 1"),
        (edited("grade", "Severe"), r"one grade per patient.*1 patients.*'000'.*graded once"),
        (edited("grade", None), "a grade out of Normal"),
        (edited("grade", "normal"), "a grade out of Normal"),
        (edited("fold", 5), r"one fold per patient.*split by patient"),
        (edited("frame_id", f"{0:016x}"), r"each frame_id once.*1 of 30 rows repeated"),
        (edited("patient_id", ""), "a patient_id in every row"),
        (edited("patient_id", None), "a patient_id in every row"),
        (edited("predicted", "Severe", 0), "contradict their scores"),
        (make_frames().drop(columns="p_severe"), r"missing \['p_severe'\]"),
        (make_frames().head(0), "at least one row"),
    ],
)
def test_refusals(frames: pd.DataFrame, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        patient_scores(frames)


def test_unknown_rule_and_empty_median() -> None:
    with pytest.raises(ValueError, match=r"mean, .*, vote\. Received: rule='max'"):
        patient_scores(make_frames(), "max")
    with pytest.raises(ValueError, match=r"joined probabilities are all 0\. Use rule='mean'"):
        patient_scores(one_patient(np.eye(4).tolist()), "median")


def test_files_come_back_bit_equal(tmp_path) -> None:
    frames = make_frames()
    frames["patient_id"] = frames["patient_id"].replace({"001": "NA", "002": "1e5"})
    single = frames.astype(dict.fromkeys(SCORE_COLUMNS, np.float32))
    write_scores(single, tmp_path / "frame_scores.csv")
    back = read_scores(tmp_path / "frame_scores.csv")
    assert back["patient_id"].tolist() == frames["patient_id"].tolist()
    for column in SCORE_COLUMNS:
        assert (back[column].to_numpy() == single[column].to_numpy(dtype=np.float64)).all()
    np.testing.assert_array_equal(back["fat_percent"], frames["fat_percent"])
    patients = patient_scores(back)
    write_scores(patients, tmp_path / "patient_scores.csv")
    again = read_scores(tmp_path / "patient_scores.csv")
    assert (again[list(SCORE_COLUMNS)].to_numpy() == patients[list(SCORE_COLUMNS)].to_numpy()).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["frame_scores.csv", "patient_scores.csv"]


def test_bad_files_say_which_and_why(tmp_path) -> None:
    path = tmp_path / "frame_scores.csv"
    with pytest.raises(ValueError, match=r"Expected a score CSV.*frame_scores\.csv"):
        read_scores(path)
    path.write_text("")
    with pytest.raises(ValueError, match="Expected a score CSV"):
        read_scores(path)
    write_scores(make_frames(), path)
    text = path.read_text()
    path.write_text(text.replace("0" * 15 + "3,000,0", "0" * 15 + "3,000,x"))
    with pytest.raises(ValueError, match=r"numbers in column fold of frame_scores\.csv"):
        read_scores(path)
    lines = text.splitlines()
    path.write_text("\n".join([*lines, lines[-1]]))
    with pytest.raises(ValueError, match=r"frame_scores\.csv: Expected each frame_id once"):
        read_scores(path)


def test_a_failed_write_keeps_the_old_file(tmp_path) -> None:
    path = tmp_path / "frame_scores.csv"
    write_scores(make_frames(), path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="finite probabilities"):
        write_scores(edited("p_mild", np.nan), path)
    assert path.read_bytes() == before


def test_same_patients() -> None:
    frames = make_frames()
    patients = patient_scores(frames)
    check_same_patients(frames, patients)
    with pytest.raises(ValueError, match=r"1 .*missing from patient_scores, first \['003'\]"):
        check_same_patients(frames, patients[patients["patient_id"] != "003"])
    with pytest.raises(ValueError, match=r"1 .*missing from frame_scores, first \['002'\]"):
        check_same_patients(frames[frames["patient_id"] != "002"], patients)
    with pytest.raises(ValueError, match=r"same num_frames.*first \['000'\]"):
        check_same_patients(frames.iloc[1:], patients)
    with pytest.raises(ValueError, match=r"same grade.*first \['001'\]"):
        check_same_patients(
            frames,
            patients.assign(
                grade=patients["grade"].where(patients["patient_id"] != "001", "Severe")
            ),
        )


def test_labels_follow_the_order_of_the_grades() -> None:
    labels, probabilities = labels_and_probabilities(make_frames())
    assert labels[::5].tolist() == [0, 1, 2, 3, 0, 1]
    assert probabilities.shape == (30, 4)
    assert probabilities.dtype == np.float64


def test_validation_parts_of_several_folds_may_share_patients(tmp_path) -> None:
    frames = make_frames().drop(columns="fold")
    validation = pd.concat([frames.assign(fold=0), frames.assign(fold=1)])
    with pytest.raises(ValueError, match="each frame_id once"):
        patient_scores(validation)
    patients = patient_scores(validation, validation=True)
    assert len(patients) == 12
    assert patients["fold"].tolist() == [0] * 6 + [1] * 6
    path = tmp_path / "validation_scores.csv"
    write_scores(validation, path, validation=True)
    assert len(read_scores(path, validation=True)) == 60
    with pytest.raises(ValueError, match=r"validation_scores\.csv: Expected each frame_id once"):
        read_scores(path)


def test_a_models_decision_rule_names_the_grade_of_frames_and_patients() -> None:
    """Half of (0.4, 0.3, 0.2, 0.1) is reached at Mild, the most probable grade is Normal."""
    index = pd.DataFrame(
        {"frame_id": ["a", "b"], "patient_id": "P", "label": [1, 1], "fat_percent": 20.0}
    )
    chances = np.array([[0.4, 0.3, 0.2, 0.1]] * 2)
    plain = score_table(index, chances, 0)
    ruled = score_table(index, chances, 0, "median")
    assert set(plain["predicted"]) == {"Normal"}
    assert set(ruled["predicted"]) == {"Mild"}
    patients = patient_scores(ruled)
    assert patients.loc[0, ["decision_rule", "predicted"]].tolist() == ["median", "Mild"]
    assert metrics_of(patients)["accuracy"] == 1
    assert metrics_of(patient_scores(plain))["accuracy"] == 0
