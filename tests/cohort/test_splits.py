"""Splits from the outside: a manifest and a config in, whole patients on one side each out."""

import hashlib
from itertools import combinations

import pandas as pd
import pytest

from steatosis_tf.cohort.partition import SPLITS, import_split, split_column, split_table
from steatosis_tf.cohort.partition import test_column as column_of
from steatosis_tf.cohort.splits import make_partitions, resolve_split
from steatosis_tf.config import SplitConfig
from steatosis_tf.grades import GRADES


def manifest(per_grade: int | dict[str, int] = 10, frames: int = 2, **columns) -> pd.DataFrame:
    """Patients A0.. of Normal, B0.. of Mild and so on, `frames` rows each."""
    counts = per_grade if isinstance(per_grade, dict) else dict.fromkeys(GRADES, per_grade)
    rows = [
        {"frame_id": f"{letter}{patient}-{frame}", "path": f"{letter}{patient}_{frame}.png",
         "patient_id": f"{letter}{patient}", "grade": grade}
        for letter, grade in zip("ABCD", GRADES, strict=True)
        for patient in range(counts.get(grade, 0))
        for frame in range(frames)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    return table.assign(**{name: [make(row) for row in rows] for name, make in columns.items()})


def number(row: dict[str, str]) -> int:
    return int(row["patient_id"][1:])


def sides(partition) -> list[frozenset[str]]:
    return [getattr(partition, split) for split in SPLITS]


def assert_whole_patients(partition, table: pd.DataFrame) -> None:
    for one, other in combinations([*sides(partition), partition.left_out], 2):
        assert not one & other
    everyone = frozenset().union(*sides(partition), partition.left_out)
    assert everyone == set(table.loc[table["grade"] != "", "patient_id"])


def test_holdout_is_80_10_10_of_every_grade():
    table = manifest(10)
    [partition] = make_partitions(table, SplitConfig(kind="holdout"))
    assert_whole_patients(partition, table)
    for letter in "ABCD":
        counts = [sum(p.startswith(letter) for p in side) for side in sides(partition)]
        assert counts == [8, 1, 1]
    assert partition.name == "holdout"


def test_a_split_does_not_depend_on_row_order_or_on_the_machine():
    table = manifest(10)
    shuffled = table.sample(frac=1, random_state=3)
    for kind in ("holdout", "kfold", "lopo"):
        config = SplitConfig(kind=kind)
        assert make_partitions(table, config) == make_partitions(shuffled, config)
    # Frozen: whoever changes this changes every published split. By hand: for each grade the
    # smallest `printf 0:A$i | sha256sum`.
    [partition] = make_partitions(table, SplitConfig(kind="holdout", split_seed=0))
    assert partition.test == {"A8", "B4", "C2", "D9"}


def test_another_split_seed_gives_another_split():
    table = manifest(10)
    tests = {
        make_partitions(table, SplitConfig(kind="holdout", split_seed=seed))[0].test
        for seed in range(5)
    }
    assert len(tests) == 5


def test_ungraded_rows_are_in_no_split():
    table = manifest(10)
    table.loc[table["patient_id"] == "A3", "grade"] = ""
    [partition] = make_partitions(table, SplitConfig(kind="holdout"))
    assert_whole_patients(partition, table)
    column = split_column(table, partition)
    assert set(column[table["patient_id"] == "A3"]) == {""}
    assert set(column[table["patient_id"] != "A3"]) == set(SPLITS)


def test_an_existing_split_column_is_taken_as_it_is():
    table = manifest(3, split=lambda row: SPLITS[number(row)])
    [partition] = make_partitions(table, SplitConfig(kind="holdout"))
    assert partition.test == {"A2", "B2", "C2", "D2"}
    assert list(split_column(table, partition)) == list(table["split"])


def test_auto_takes_folds_under_200_patients_and_a_holdout_from_there_on():
    for per_grade, kind in ((49, "kfold"), (50, "holdout")):
        table = manifest(per_grade, frames=1)
        config, said = resolve_split(table, SplitConfig())
        assert config == SplitConfig(kind=kind)
        assert f"of {4 * per_grade} patients" in said
        assert "200 patients" in said
        assert make_partitions(table, SplitConfig()) == make_partitions(table, config)
    with pytest.raises(ValueError, match=r"split\.folds=10 and 200 patients.*split\.kind=holdout"):
        resolve_split(table, SplitConfig(folds=10))
    stated = SplitConfig(kind="kfold")
    assert resolve_split(table, stated) == (stated, "split: 5-fold of 200 patients")
    rare = manifest({grade: 4 if grade == "Severe" else 9 for grade in GRADES})
    config, said = resolve_split(rare, SplitConfig())
    assert (config.folds, len(make_partitions(rare, SplitConfig()))) == (4, 4)
    assert "4-fold of 31 patients (under 200 patients, 4 of the rarest grade;" in said


def test_auto_takes_the_split_column_as_it_is():
    table = manifest(3, split=lambda row: SPLITS[number(row)])
    config, said = resolve_split(table, SplitConfig())
    assert (config.kind, said) == (
        "holdout",
        "split: hold-out, as the manifest's split column says",
    )
    [partition] = make_partitions(table, SplitConfig())
    assert partition.test == {"A2", "B2", "C2", "D2"}


@pytest.mark.parametrize(
    "dealt",
    [SplitConfig(kind="kfold", folds=11), SplitConfig(kind="lopo"),
     SplitConfig(kind="logo", column="site")],
    ids=lambda config: config.kind,
)  # fmt: skip
def test_folds_in_the_split_column_are_the_same_folds(dealt):
    table = manifest(12, site=lambda row: f"S{number(row) % 3}")
    partitions = make_partitions(table, dealt)
    table["split"] = column_of(table, partitions)
    config, _ = resolve_split(table, SplitConfig())
    assert (config.kind, config.folds) == ("kfold", len(partitions))
    assert make_partitions(table, SplitConfig()) == partitions  # those who validate, too
    assert make_partitions(table, config) == partitions
    assert make_partitions(table, dealt) == partitions  # the same settings are no new deal


@pytest.mark.parametrize(
    ("settings", "has"),
    [
        ({"kind": "kfold"}, "hold-out"),
        ({"kind": "lopo"}, "hold-out"),
        ({"split_seed": 1}, "hold-out"),
        ({"kind": "holdout", "test_fraction": 0.2}, "hold-out"),
        ({"kind": "holdout"}, "3 folds"),
        ({"kind": "kfold"}, "3 folds"),
        ({"kind": "kfold", "folds": 3, "repeats": 2}, "3 folds"),
        ({"split_seed": 1}, "3 folds"),
        ({"folds": 4}, "3 folds"),
    ],
)
def test_nothing_is_dealt_anew_beside_a_split_column(settings, has):
    table = manifest(10)
    written = SplitConfig(kind="holdout") if has == "hold-out" else SplitConfig("kfold", folds=3)
    table["split"] = column_of(table, make_partitions(table, written))
    message = rf"column has \({has}\).*deal the patients anew.*take the column out"
    with pytest.raises(ValueError, match=message):
        make_partitions(table, SplitConfig(**settings))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["fold_0", "fold_0", "fold_0"], "one of several folds"),
        (["fold_0", "fold_1", ""], "one of several folds"),
        (["training", "val", "test"], "'training', 'val'"),
    ],
)
def test_a_column_that_is_neither_parts_nor_folds_is_refused(values, message):
    table = manifest(3, split=lambda row: values[number(row)])
    with pytest.raises(ValueError, match=message):
        make_partitions(table, SplitConfig())


def test_folds_that_take_a_grade_out_of_training_are_refused():
    table = manifest(4, split=lambda row: f"fold_{number(row) % 2}")
    table.loc[table["grade"] == "Severe", "split"] = "fold_1"
    with pytest.raises(ValueError, match=r"every grade to train on.*fold_1 tests all of Severe"):
        make_partitions(table, SplitConfig())


def test_a_patient_in_two_folds_is_refused():
    table = manifest(4, split=lambda row: f"fold_{number(row) % 2}")
    table.loc[0, "split"] = "fold_1"
    with pytest.raises(ValueError, match="1 in two, first patient_id=A0"):
        make_partitions(table, SplitConfig())


def test_parts_in_capitals_are_no_folds():
    table = manifest(4, split=lambda row: ("Train", "Test ")[number(row) % 2])
    with pytest.raises(ValueError, match=r"say train, validation, test on every.*'Test ', 'Train'"):
        make_partitions(table, SplitConfig())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "tset"}, "split column to say train, validation, test.*'tset'"),
        ({"split": ""}, "on every graded row"),
        ({"split": "test"}, "one split. Received: 1 in two, first patient_id=A0"),
        ({"grade": "Mild"}, "one grade per patient. Received: 1 patients with two.*A0"),
    ],
)
def test_a_spoilt_manifest_is_refused(change, message):
    table = manifest(3, split=lambda row: SPLITS[number(row)])
    for column, value in change.items():
        table.loc[0, column] = value
    with pytest.raises(ValueError, match=message):
        make_partitions(table, SplitConfig(kind="holdout"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SplitConfig(kind="holdout"), "at least 3 patients of every grade for a split.*Severe=2"),
        (SplitConfig(kind="kfold", folds=5), "at least 5 patients.*5 folds.*Severe=2"),
        (SplitConfig(kind="lopo"), "at least 3 patients.*leave-one-patient-out.*Severe=2"),
    ],
)
def test_a_grade_with_too_few_patients_is_named(config, message):
    table = manifest({"Normal": 10, "Mild": 10, "Moderate": 10, "Severe": 2})
    with pytest.raises(ValueError, match=rf"{message}\. Add patients; no split does with less"):
        make_partitions(table, config)


def test_fewer_folds_are_advised_only_where_they_help():
    table = manifest({"Normal": 10, "Mild": 10, "Moderate": 10, "Severe": 4})
    with pytest.raises(ValueError, match=r"Severe=4\. Add patients, or ask for fewer folds"):
        make_partitions(table, SplitConfig(kind="kfold", folds=5))


def test_kfold_tests_every_patient_once_with_even_grades():
    table = manifest({"Normal": 14, "Mild": 16, "Moderate": 6, "Severe": 8})
    partitions = make_partitions(table, SplitConfig(kind="kfold", folds=5))
    assert [partition.name for partition in partitions] == [f"fold_{i}" for i in range(5)]
    tested = [patient for partition in partitions for patient in partition.test]
    assert sorted(tested) == sorted(table["patient_id"].unique())
    for partition in partitions:
        assert_whole_patients(partition, table)
        assert len(partition.test) in (8, 9)  # 44 patients over 5 folds
        for letter, count in zip("ABCD", (14, 16, 6, 8), strict=True):
            share = sum(patient.startswith(letter) for patient in partition.test)
            assert share in (count // 5, count // 5 + 1)
            assert any(patient.startswith(letter) for patient in partition.validation)


def test_repeated_kfold_tests_every_patient_once_per_repeat():
    table = manifest(6)
    partitions = make_partitions(table, SplitConfig(kind="kfold", folds=3, repeats=4))
    assert [p.name for p in partitions[:4]] == [
        "repeat_0_fold_0", "repeat_0_fold_1", "repeat_0_fold_2", "repeat_1_fold_0",
    ]  # fmt: skip
    for repeat in range(4):
        tested = [patient for p in partitions if p.repeat == repeat for patient in p.test]
        assert sorted(tested) == sorted(table["patient_id"].unique())
    assert len({p.test for p in partitions}) == 12
    once = make_partitions(table, SplitConfig(kind="kfold", folds=3))
    assert [p.test for p in once] == [p.test for p in partitions[:3]]


def test_leave_one_patient_out_tests_each_alone():
    table = manifest(4)
    partitions = make_partitions(table, SplitConfig(kind="lopo"))
    assert sorted(next(iter(p.test)) for p in partitions) == sorted(table["patient_id"].unique())
    for partition in partitions:
        assert len(partition.test) == 1
        assert_whole_patients(partition, table)


def test_leave_one_scanner_out_tests_whole_scanners():
    table = manifest(6, scanner=lambda row: ["GE E9", "Aplio/i800", "Resona"][number(row) % 3])
    partitions = make_partitions(table, SplitConfig(kind="logo", column="scanner"))
    assert [p.name for p in partitions] == ["scanner_Aplio-i800", "scanner_GE-E9", "scanner_Resona"]
    for partition, rest in zip(partitions, (1, 0, 2), strict=True):
        assert partition.test == {f"{letter}{i}" for letter in "ABCD" for i in (rest, rest + 3)}
        assert not partition.left_out
        assert_whole_patients(partition, table)


def test_a_patient_on_two_scanners_trains_for_none():
    """Nobody tests the patient, so no records have the frames: a fold of a third scanner, too."""
    table = manifest(9, scanner=lambda row: ["one", "two", "three"][number(row) // 3])
    table.loc[(table["patient_id"] == "A0") & table["frame_id"].str.endswith("1"), "scanner"] = (
        "two"
    )
    partitions = make_partitions(table, SplitConfig(kind="logo", column="scanner"))
    for partition in partitions:
        assert partition.left_out == {"A0"}
        assert_whole_patients(partition, table)
    written = split_table(partitions)
    assert written.loc[written["split"] == "left_out", "patient_id"].tolist() == ["A0"] * 3
    assert set(split_column(table, partitions[0])[table["patient_id"] == "A0"]) == {""}


def test_groups_whose_names_clash_keep_their_own_partition():
    table = manifest(6, site=lambda row: ["x y", "x/y", "z"][number(row) % 3])
    partitions = make_partitions(table, SplitConfig(kind="logo", column="site"))
    assert len({partition.name for partition in partitions}) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda row: "E9", "at least two values in column scanner"),
        (lambda row: "" if row["patient_id"] == "B1" else "E9",
         "value of scanner for every graded frame. Received: 2 empty cells of 1 patients.*B1-0"),
        (lambda row: "E9" if row["patient_id"] < "C" else "e-9", "Received: 'E9', 'e-9'"),
        (lambda row: row["grade"], "patients of every grade.*'Mild'.*none left of grade Mild"),
        (lambda row: "X" if row["frame_id"] == "B1-0" else "E9",
         r"patients to test \(1 more have other values, too\), none"),
    ],
)  # fmt: skip
def test_leave_one_group_out_says_why_it_cannot(make, message):
    with pytest.raises(ValueError, match=message):
        make_partitions(manifest(4, scanner=make), SplitConfig(kind="logo", column="scanner"))


def test_an_unknown_column_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match=r"patient_id, grade.*column='scaner'"):
        make_partitions(manifest(4), SplitConfig(kind="logo", column="scaner"))


@pytest.mark.parametrize(
    "date",
    [
        lambda row: f"2024-{number(row) + 1:02d}-15",
        lambda row: f"2024{number(row) + 1:02d}15",
        lambda row: str(100 + 3.5 * number(row)),
        lambda row: f"2024-{number(row) + 1:02d}-15T08:30:00",
    ],
    ids=["iso", "dicom", "days", "time"],
)
def test_temporal_trains_on_the_past_and_tests_on_the_future(date):
    table = manifest(10, study_date=date)
    config = SplitConfig(kind="temporal", column="study_date")
    [partition] = make_partitions(table, config)
    assert {p[1:] for p in partition.train} == set("01234567")
    assert {p[1:] for p in partition.validation} == {"8"}
    assert {p[1:] for p in partition.test} == {"9"}
    assert_whole_patients(partition, table)


def test_a_patient_seen_before_and_after_the_cut_is_left_out():
    table = manifest(10, day=lambda row: str(number(row)))
    table.loc[table["frame_id"] == "A2-1", "day"] = "9"
    table.loc[table["frame_id"] == "B8-1", "day"] = "9.5"
    table.loc[table["frame_id"] == "C2-1", "day"] = "7.9"
    [partition] = make_partitions(table, SplitConfig(kind="temporal", column="day"))
    assert partition.left_out == {"A2", "B8"}
    assert "C2" in partition.train
    assert_whole_patients(partition, table)


@pytest.mark.parametrize(
    ("date", "message"),
    [
        (lambda row: "0", "counts from each patient's own first study"),
        (lambda row: "May 1st", "as a date like 2024-05-31.*80 others, first at frame_id=A0-0"),
        (lambda row: "20241399", "as a date like 2024-05-31"),
        (lambda row: "2024-01-01", "Received: train=0"),
        (lambda row: str(3 - GRADES.index(row["grade"])), "grades not in training: Normal"),
    ],
)
def test_temporal_says_why_it_cannot(date, message):
    with pytest.raises(ValueError, match=message):
        make_partitions(manifest(10, day=date), SplitConfig(kind="temporal", column="day"))


def test_split_table_lists_fold_patient_and_side():
    table = manifest(3)
    written = split_table(make_partitions(table, SplitConfig(kind="kfold", folds=3)))
    assert list(written.columns) == ["fold", "patient_id", "split", "partition"]
    assert len(written) == 3 * 12
    assert not written.duplicated(["fold", "patient_id"]).any()
    assert sorted(written.loc[written["split"] == "test", "patient_id"]) == sorted(
        table["patient_id"].unique()
    )


def test_a_written_split_can_be_imported_again(tmp_path):
    table = manifest(6, scanner=lambda row: "one" if number(row) < 3 else "two")
    table.loc[0, "scanner"] = "two"
    partitions = make_partitions(table, SplitConfig(kind="logo", column="scanner"))
    split_table(partitions).to_csv(tmp_path / "split.csv", index=False)
    imported = import_split(table, tmp_path / "split.csv")
    assert [(*sides(p), p.left_out) for p in imported] == [
        (*sides(p), p.left_out) for p in partitions
    ]
    assert [p.name for p in imported] == ["imported_fold_0", "imported_fold_1"]


@pytest.mark.parametrize("key", ["patient_id", "frame_id", "path"])
def test_a_split_from_elsewhere_is_read_by_patient_or_frame(tmp_path, key):
    table = manifest(3)
    table["frame_id"] = [_digest(path) for path in table["path"]]
    words = ["Training", "val", "TEST"]
    lines = [f"{row[key]};{words[number(row)]}" for row in table.to_dict("records")]
    text = f"\ufeff{key};split\r\n" + "\r\n".join(dict.fromkeys(lines))
    (tmp_path / "official.csv").write_text(text)
    [partition] = import_split(table, tmp_path / "official.csv")
    assert partition.name == "imported"
    assert [{p[1:] for p in side} for side in sides(partition)] == [{"0"}, {"1"}, {"2"}]


def test_all_faults_of_a_foreign_split_are_listed(tmp_path):
    table = manifest(3)
    rows = {f"{letter}{i}": SPLITS[i] for letter in "ABCD" for i in range(3)}
    del rows["D2"]
    rows |= {"Z9": "train", "C1": "hold"}
    text = "patient_id,split\n" + "".join(f"{k},{v}\n" for k, v in rows.items()) + "A0,test\n"
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(ValueError, match=r"split\.csv: expected each graded patient") as caught:
        import_split(table, tmp_path / "split.csv")
    for fault in (
        "row 13: not in the manifest (patient_id='Z9')",
        "row 9: split 'hold'; expected train, validation or test",
        "patient_id=A0 in two parts (test and train)",
        "graded patient_id=D2 is not in the file",
    ):
        assert fault in str(caught.value)


@pytest.mark.parametrize("text", ["patient_id,part\nA0,train\n", "split\ntrain\n", "split,path\n"])
def test_a_file_that_is_no_split_is_refused(tmp_path, text):
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(ValueError, match="columns split and patient_id, frame_id or path"):
        import_split(manifest(3), tmp_path / "split.csv")


def _digest(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()[:16]
