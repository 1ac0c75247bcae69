"""Who reads which patient when, and the table that consensus takes."""

import multiprocessing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from steatosis_tf.cohort.consensus import build_consensus
from steatosis_tf.cohort.manifest import build_manifest
from steatosis_tf.server.readings import Reading, ReadingStudy, checked_initials, reading_order
from tests.cohort.conftest import write_frame

SURE = {"confidence": "high"}


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Five patients with one frame each, the second of them with two."""
    rows = ["path,patient_id,grade,scanner", "0.png,P0,Mild,=E9", "1.png,P1,,E9", "1b.png,P1,,E9"]
    rows += [f"{at}.png,P{at},,E9" for at in (2, 3, 4)]
    for seed, name in enumerate(("0.png", "1.png", "1b.png", "2.png", "3.png", "4.png")):
        write_frame(tmp_path / name, seed)
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    build_manifest(tmp_path / "labels.csv", tmp_path / "manifest.csv")
    return tmp_path / "manifest.csv"


def table_of(manifest: Path) -> pd.DataFrame:
    return pd.read_csv(manifest.with_name("readings.csv"), dtype=str, keep_default_na=False)


@pytest.mark.parametrize(("num", "repeats"), [(1, 1.0), (5, 0.2), (44, 0.1), (9, 0.0), (10, 1.0)])
def test_everybody_once_and_the_share_twice_far_apart(num: int, repeats: float) -> None:
    patients = [f"P{at}" for at in range(num)]
    order = reading_order(patients, 7, repeats)
    first = {patient: at for at, (patient, again) in enumerate(order) if not again}
    second = {patient: at for at, (patient, again) in enumerate(order) if again}
    assert sorted(first) == sorted(patients)
    assert len(second) == round(num * repeats)
    assert len(order) == len(first) + len(second)
    assert all(second[one] - first[one] >= num / 2 for one in second)


def test_the_order_is_random_another_for_every_seed_and_the_same_again() -> None:
    patients = [f"P{at:02}" for at in range(44)]  # sorted by grade, for example
    orders = [[patient for patient, _ in reading_order(patients, seed, 0)] for seed in range(20)]
    assert orders[3] == [patient for patient, _ in reading_order(patients, 3, 0)]
    places = np.array([[order.index(patient) for patient in patients] for order in orders])
    correlations = [np.corrcoef(row, np.arange(44))[0, 1] for row in places]
    assert abs(np.mean(correlations)) < 0.1
    assert len({tuple(order) for order in orders}) == 20


def test_a_reading_becomes_a_table_that_consensus_takes(manifest: Path) -> None:
    study = ReadingStudy(manifest, repeats=0.4)
    for initials, shift in (("ab", 0), ("CD", 0), ("EF", 1)):
        place = study.log_on(initials)
        assert (place.case, place.num_cases) == (1, 7)
        name = checked_initials(initials)
        for case in range(1, 8):
            (path, *_) = study.frame_paths(name, case)
            grade = min(int(path.stem[0]) + shift, 3)
            assert study.answer(name, case, Reading(grade, **SURE))
        assert study.place(name).case is None
    table = table_of(manifest)
    assert table["path"].tolist() == ["0.png", "1.png", "1b.png", "2.png", "3.png", "4.png"]
    assert table["scanner"].tolist()[0] == "'=E9"
    assert table["reader_1"].tolist()[:4] == ["Normal", "Mild", "Mild", "Moderate"]
    assert table["reader_3"].tolist()[:4] == ["Mild", "Moderate", "Moderate", "Severe"]
    summary = build_consensus(manifest.with_name("readings.csv"), manifest.with_name("agreed.csv"))
    assert summary.num_by_rule == 5
    assert summary.pairwise_kappa["reader_1-reader_2"].estimate == 1
    assert summary.repeat_kappa["reader_1-reader_1_repeat"].num_patients == 2
    build_manifest(manifest.with_name("agreed.csv"), manifest.with_name("again.csv"))


def test_undo_takes_back_one_answer_after_the_other(manifest: Path) -> None:
    study = ReadingStudy(manifest, repeats=0)
    study.log_on("AB")
    assert study.undo("AB") is None
    study.answer("AB", 1, Reading(1, "low"))
    study.answer("AB", 2, Reading(reason=" No   liver in view "))
    assert study.undo("AB") == (2, Reading(reason="No liver in view"))
    assert study.undo("AB") == (1, Reading(1, "low"))
    assert study.place("AB").case == 1
    assert set(table_of(manifest)["reader_1"]) == {""}
    study.answer("AB", 1, Reading(2, "medium"))
    assert sorted(set(table_of(manifest)["reader_1"])) == ["", "Moderate"]


def test_only_the_case_whose_turn_it_is_can_be_answered(manifest: Path) -> None:
    one, other = ReadingStudy(manifest), ReadingStudy(manifest)
    one.log_on("AB")
    assert not one.answer("AB", 2, Reading(1, "low"))
    assert one.answer("AB", 1, Reading(1, "low"))
    assert not other.answer("AB", 1, Reading(3, "low"))
    assert other.place("AB").num_read == 1


def _read(manifest: str, initials: str) -> None:
    study = ReadingStudy(manifest, repeats=0)
    study.log_on(initials)
    for case in range(1, 6):
        assert study.answer(initials, case, Reading(case % 4, **SURE))


def test_readers_with_a_server_each_lose_nothing(manifest: Path) -> None:
    context = multiprocessing.get_context("spawn")
    readers = [context.Process(target=_read, args=(str(manifest), name)) for name in ("AB", "CD")]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert [reader.exitcode for reader in readers] == [0, 0]
    table = table_of(manifest)
    assert (table[["reader_1", "reader_2"]] != "").all(axis=None)
    assert set(table["reader_1_initials"] + table["reader_2_initials"]) in ({"ABCD"}, {"CDAB"})


def test_a_patient_added_later_comes_last_and_one_taken_away_is_passed_over(
    manifest: Path,
) -> None:
    whole = manifest.read_text().splitlines()
    manifest.write_text("\n".join(line for line in whole if ",P4," not in line) + "\n")
    study = ReadingStudy(manifest, repeats=0)
    assert study.log_on("AB").num_cases == 4
    study.answer("AB", 1, Reading(0, **SURE))
    manifest.write_text("\n".join(whole) + "\n")
    again = ReadingStudy(manifest, repeats=0)
    place = again.log_on("AB")
    assert (place.case, place.num_cases) == (2, 5)
    assert again.frame_paths("AB", 5) == [manifest.parent / "4.png"]
    first = again.frame_paths("AB", 1)[0].name
    manifest.write_text("\n".join(line for line in whole if f",{first}," not in line) + "\n")
    left = ReadingStudy(manifest, repeats=0)
    is_there = first == "1.png"  # the patient has another frame
    assert left.log_on("AB").num_cases == (5 if is_there else 4)
    assert (again.num_elsewhere(), left.num_elsewhere()) == (0, 0 if is_there else 1)


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        (Reading(4, "low"), "a grade 0 to 3"),
        (Reading(1), "a confidence out of low, medium, high"),
        (Reading(1, "low", "why"), "a grade 0 to 3"),
        (Reading(), "a reason of 1 to 200"),
        (Reading(reason="x" * 201), "201 characters"),
        (Reading(confidence="low", reason="why"), "no confidence"),
    ],
    ids=["grade", "no-confidence", "grade-and-reason", "nothing", "long-reason", "unable-sure"],
)
def test_what_is_no_reading_is_refused(manifest: Path, reading: Reading, message: str) -> None:
    study = ReadingStudy(manifest)
    study.log_on("AB")
    with pytest.raises(ValueError, match=message):
        study.answer("AB", 1, reading)
    assert study.place("AB").num_read == 0


@pytest.mark.parametrize("initials", ["", " ", "A B", "=A", "ABCDEFGHI", "../A"])
def test_what_are_no_initials(initials: str) -> None:
    with pytest.raises(ValueError, match="Expected initials"):
        checked_initials(initials)


def test_a_table_of_other_origin_is_not_overwritten(manifest: Path) -> None:
    manifest.with_name("readings.csv").write_text("path,patient_id,reader_1,reader_2\n")
    with pytest.raises(ValueError, match="one of other origin"):
        ReadingStudy(manifest)
    assert not manifest.with_name("readings.sqlite").exists()


def test_a_share_that_is_none_and_a_damaged_store_are_named(manifest: Path) -> None:
    with pytest.raises(ValueError, match=r"repeats=1\.5"):
        ReadingStudy(manifest, 1.5)
    manifest.with_name("readings.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(ValueError, match=r"readings\.sqlite, which is damaged"):
        ReadingStudy(manifest)
