"""Readers' columns in, one grade per patient out; disagreement waits for a person."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from steatosis_tf import cli
from steatosis_tf.cohort.consensus import build_consensus, fleiss_kappa, weighted_kappa
from steatosis_tf.cohort.manifest import build_manifest, read_manifest
from steatosis_tf.sources.pseudonym import create_key, pseudonym, read_key

N, M, D, S, NIL = "Normal", "Mild", "Moderate", "Severe", ""


@pytest.fixture
def consensus(tmp_path):
    """`consensus([("P1", N, M), ...], rule)` writes labels, runs, gives (grades, summary)."""

    def run(rows, rule="majority"):
        readers = [f"reader_{n + 1}" for n in range(len(rows[0]) - 1)]
        table = pd.DataFrame(rows, columns=["patient_id", *readers])
        table.insert(0, "path", [f"{n}.png" for n in range(len(rows))])
        table.to_csv(tmp_path / "readings.csv", index=False)
        summary = build_consensus(tmp_path / "readings.csv", tmp_path / "labels.csv", rule)
        written = pd.read_csv(tmp_path / "labels.csv", dtype=str, keep_default_na=False)
        return dict(zip(written["patient_id"], written["grade"], strict=True)), summary

    return run


def adjudicate(tmp_path):
    return pd.read_csv(tmp_path / "adjudicate.csv", dtype=str, keep_default_na=False)


@pytest.mark.parametrize(
    ("readings", "majority", "median", "unanimous"),
    [
        ((M, M, M), M, M, M),
        ((M, M, D), M, M, NIL),
        ((D, M, D), D, D, NIL),
        ((M, M, NIL), M, M, M),
        ((M, D, NIL), NIL, NIL, NIL),  # tie
        ((N, M, D), NIL, NIL, NIL),  # spread over one grade
        ((N, N, D), NIL, NIL, NIL),  # a majority, but the third is two grades away
        ((M, NIL, NIL), NIL, NIL, NIL),  # one reader is no consensus
        ((NIL, NIL, NIL), NIL, NIL, NIL),  # nobody has read it
        (("mild", "MILD", M), M, M, M),
    ],
)
def test_rules(consensus, readings, majority, median, unanimous):
    for rule, expected in (("majority", majority), ("median", median), ("unanimous", unanimous)):
        grades, summary = consensus([("P1", *readings)], rule)
        assert grades == {"P1": expected}
        assert summary.num_by_rule == bool(expected)


def test_what_is_contested_waits_with_its_reason(consensus, tmp_path):
    grades, summary = consensus(
        [
            ("P1", M, M, M),
            ("P2", N, N, D),
            ("P3", M, D, NIL),
            ("P4", S, NIL, NIL),
            ("P5", NIL, NIL, NIL),
        ]
    )
    assert grades == {"P1": M, "P2": "", "P3": "", "P4": "", "P5": ""}
    table = adjudicate(tmp_path)
    assert list(table["patient_id"]) == ["P2", "P3", "P4"]
    assert list(table["reason"]) == ["readers differ by 2 grades", "tie", "one reader only"]
    assert list(table["reader_1"]) == [N, M, S]
    counts = (summary.num_patients, summary.num_by_rule, summary.num_pending, summary.num_unread)
    assert counts == (5, 1, 3, 1)
    assert summary.patients_per_grade == {N: 0, M: 1, D: 0, S: 0}


def test_the_teams_decision_is_honoured_in_every_later_run(consensus, tmp_path):
    rows = [("P1", M, M, M), ("P2", N, N, D), ("P3", M, D, NIL)]
    consensus(rows)
    table = adjudicate(tmp_path)
    table.loc[0, "adjudicated"] = "mild"
    table.to_csv(tmp_path / "adjudicate.csv", index=False, sep=";", encoding="utf-8-sig")
    for _round in range(2):
        grades, summary = consensus(rows)
        assert grades == {"P1": M, "P2": M, "P3": ""}
        assert (summary.num_by_rule, summary.num_adjudicated, summary.num_pending) == (1, 1, 1)
        assert list(adjudicate(tmp_path)["adjudicated"]) == [M, ""]


def test_a_decision_about_other_readings_is_asked_again(consensus, tmp_path):
    consensus([("P1", N, N, D), ("P2", M, M, M)])
    table = adjudicate(tmp_path)
    table["adjudicated"] = M
    table.to_csv(tmp_path / "adjudicate.csv", index=False)
    grades, _ = consensus([("P1", N, S, D), ("P2", M, M, M)])
    assert grades["P1"] == ""
    assert "settled as Mild, settle again" in adjudicate(tmp_path)["reason"][0]


def test_a_decision_outlives_a_table_without_its_patient(consensus, tmp_path):
    consensus([("P1", N, N, D), ("P2", M, M, M)])
    table = adjudicate(tmp_path)
    table["adjudicated"] = M
    table.to_csv(tmp_path / "adjudicate.csv", index=False)
    consensus([("P2", M, M, M)])
    grades, _ = consensus([("P1", N, N, D)])
    assert grades == {"P1": M}


def test_a_reader_grades_the_patient_not_the_frame(consensus, tmp_path):
    grades, summary = consensus(
        [("P1", M, NIL), ("P1", NIL, M), ("P2", M, M), ("P2", N, M), ("P2", NIL, NIL)]
    )
    assert grades == {"P1": M, "P2": ""}
    assert summary.num_patients == 2
    assert adjudicate(tmp_path)["reason"][0] == "reader_1 gave more than one grade"


def test_the_result_is_a_label_table_for_the_manifest(study, tmp_path):
    text = (
        "path;patient_id;reader_1;reader_2;scanner\r\na.png;P1;Mild;mild;E9\r\nb.png;P2;;Mild;\r\n"
    )
    labels = study(text, ["a.png", "b.png"])
    build_consensus(labels, labels.with_name("graded.csv"))
    summary = build_manifest(labels.with_name("graded.csv"), tmp_path / "manifest.csv")
    assert summary.num_rejected == 0
    table = read_manifest(tmp_path / "manifest.csv")
    assert list(table["grade"]) == ["Mild", ""]
    assert list(table["reader_2"]) == ["mild", "Mild"]
    assert list(table["scanner"]) == ["E9", ""]


def test_readings_by_the_hospitals_id_give_a_table_of_grades_to_join(study, tmp_path, capsys):
    """Without paths, as a reading room keeps them, saved by Excel; the output may lie elsewhere."""
    key = read_key(create_key(tmp_path / "study.key"))
    one, two = (pseudonym(key, "patient", "id", name) for name in ("mrn1", "mrn2"))
    labels = study(f"path,patient_id\na.png,{one}\nb.png,{two}\n", ["a.png", "b.png"])
    readings = tmp_path / "readings.csv"
    rows = ("MRN 1;Mild;Mild", "MRN 2;Severe;", "MRN 2;;Severe")
    readings.write_text("sep=;\noriginal_patient_id;reader_1;reader_2\n" + "\n".join(rows))
    graded = str(tmp_path / "graded.csv")
    assert cli.main(["consensus", str(readings), "--output", graded]) == 0
    said = f"manifest LABELS_CSV --grades {graded} --key KEY --output manifest.csv"
    assert said in capsys.readouterr().out
    words = ["manifest", str(labels), "--grades", graded, "--key", str(tmp_path / "study.key")]
    assert cli.main([*words, "--output", str(tmp_path / "manifest.csv")]) == 0
    assert list(read_manifest(tmp_path / "manifest.csv")["grade"]) == ["Mild", "Severe"]


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("path,patient_id,reader_1", "a.png,P1,Mild", "at least two columns reader_1.*reader_1"),
        ("path,patient_id,reader_1,reader_2", "a.png,P1,Mild,X2", r"row 2: reader_2 has 'X2'"),
        ("path,patient_id,reader_1,reader_2", "a.png,,Mild,Mild", r"row 2: empty patient_id"),
        ("path,patient_id,reader_1,reader_2,grade", "a.png,P1,Mild,Mild,Mild",
         "filled column grade. Rename it, for example to biopsy_grade"),
        ("path,patient_id,reader_1,reader_2,fat_percent", "a.png,P1,Mild,Mild,8",
         "biopsy_fat_percent"),
        ("path,patient_id,reader_1,reader_2", "a.png,P1,Mild,Mild,x", "row 2: more cells"),
    ],
)  # fmt: skip
def test_unusable_readings_are_refused_and_nothing_is_written(tmp_path, header, row, message):
    (tmp_path / "readings.csv").write_text(f"{header}\n{row}\n")
    with pytest.raises(ValueError, match=message):
        build_consensus(tmp_path / "readings.csv", tmp_path / "labels.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["readings.csv"]


def test_one_reader_who_counts_from_1_is_asked_back(tmp_path):
    """The 0 of the others would hide that every grade of this one is shifted."""
    rows = "\n".join(f"{n}.png,P{n},{n},{n + 1}" for n in range(3))
    labels = tmp_path / "readings.csv"
    labels.write_text(f"path,patient_id,reader_1,reader_2\n{rows}\n")
    with pytest.raises(ValueError, match=r"^reader_2: .* numbers without a 0"):
        build_consensus(labels, tmp_path / "labels.csv")
    repeats = rows.replace("0,1", "0,0,").replace("1,2", "1,1,1").replace("2,3", "2,2,")
    labels.write_text(f"path,patient_id,reader_1,reader_2,reader_2_repeat\n{repeats}\n")
    assert build_consensus(labels, tmp_path / "labels.csv").num_by_rule == 3


def test_bad_calls_are_refused(consensus, tmp_path):
    with pytest.raises(ValueError, match=r"majority, median, unanimous.*rule='mean'"):
        consensus([("P1", M, M)], "mean")
    with pytest.raises(ValueError, match="to keep them whole"):
        build_consensus(tmp_path / "readings.csv", tmp_path / "readings.csv")
    with pytest.raises(ValueError, match=r"folder of the label table.*--output .*labels\.csv"):
        build_consensus(tmp_path / "readings.csv", tmp_path / "other" / "labels.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patient_id,adjudicated\nP1,X2\n", "adjudicated empty or one of.*'X2' at row 2"),
        ("patient,decision\nP1,Mild\n", "columns patient_id and adjudicated"),
        ("patient_id,adjudicated\nP1,Mild\nP1,Normal\n", "two decisions for patient_id=P1"),
        ("patient_id,adjudicated\nP1,Mild,x\n", "row 2: more cells"),
    ],
)
def test_a_spoilt_adjudication_is_refused(consensus, tmp_path, text, message):
    (tmp_path / "adjudicate.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        consensus([("P1", N, D)])
    assert (tmp_path / "adjudicate.csv").read_text() == text


def readings(num: int, readers: int) -> np.ndarray:
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 4, num)
    noise = rng.choice([-1, 0, 0, 0, 1], (num, readers))
    return np.clip(truth[:, None] + noise, 0, 3)


def test_fleiss_kappa_is_that_of_statsmodels():
    statsmodels = pytest.importorskip("statsmodels.stats.inter_rater")
    labels = readings(80, 4)
    counts, _ = statsmodels.aggregate_raters(labels, n_cat=4)
    assert fleiss_kappa(labels) == pytest.approx(statsmodels.fleiss_kappa(counts), abs=1e-12)


def test_fleiss_kappa_by_hand():
    # Two readers, two patients, one agreement: P = 1/2, shares 3/4 and 1/4, Pe = 10/16.
    assert fleiss_kappa(np.array([[0, 0], [0, 1]])) == pytest.approx((0.5 - 0.625) / 0.375)
    assert fleiss_kappa(np.array([[1, 1], [1, 1]])) is None
    assert fleiss_kappa(np.empty((0, 3), int)) is None


def test_weighted_kappa_is_that_of_scikit_learn():
    one, other = readings(60, 2).T
    kappa = weighted_kappa(one, other)
    expected = cohen_kappa_score(one, other, labels=range(4), weights="quadratic")
    assert kappa.estimate == pytest.approx(expected, abs=1e-12)
    # The same bootstrap the long way round.
    rng = np.random.default_rng(1)
    draws = [rng.integers(0, 60, 60) for NIL in range(1000)]
    scores = [cohen_kappa_score(one[i], other[i], labels=range(4), weights="quadratic")
              for i in draws]  # fmt: skip
    low, high = np.percentile(scores, [2.5, 97.5])
    assert (kappa.low, kappa.high) == pytest.approx((low, high), abs=0.02)


def test_the_summary_reports_agreement_as_numbers(consensus):
    labels = readings(50, 3)
    names = np.array([N, M, D, S])
    _, summary = consensus(
        [(f"P{i}", *names[row]) for i, row in enumerate(labels)] + [("Q", M, M, NIL)]
    )
    assert summary.fleiss_num_patients == 50
    assert summary.fleiss_kappa == pytest.approx(fleiss_kappa(labels))
    pair = summary.pairwise_kappa["reader_1-reader_2"]
    assert pair.num_patients == 51
    assert pair.low < pair.estimate < pair.high
    assert re.fullmatch(
        r"0\.\d{3} \(95 % interval 0\.\d{3} to [01]\.\d{3}, 51 patients\)", str(pair)
    )
    assert summary.pairwise_kappa["reader_1-reader_3"].num_patients == 50


def test_the_verb_prints_agreement(consensus, tmp_path, capsys):
    rows = [("P1", N, N), ("P2", M, M), ("P3", D, M), ("P4", S, S), ("P5", N, S)]
    consensus(rows)
    paths = [str(tmp_path / name) for name in ("readings.csv", "labels.csv")]
    assert cli.main(["consensus", paths[0], "--output", paths[1], "--rule", "majority"]) == 0
    assert "quadratic kappa reader_1" in capsys.readouterr().out


def test_agreement_that_is_not_defined_is_said_and_never_nan(tmp_path, monkeypatch, capsys):
    """Nobody is read by both readers."""
    monkeypatch.setenv("STEATOSIS_MLRUNS", str(tmp_path / "mlruns"))
    (tmp_path / "readings.csv").write_text(
        "path,patient_id,reader_1,reader_2\na.png,P1,Mild,\nb.png,P2,,Severe\n"
    )
    words = ["consensus", str(tmp_path / "readings.csv"), "--output", str(tmp_path / "labels.csv")]
    assert cli.main(words) == 0
    text = capsys.readouterr().out
    assert "Fleiss' kappa not defined over 0 patients" in text
    assert "reader_1-reader_2: not defined (0 patients" in text
    assert cli.main([*words, "--json"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed)["fleiss_kappa"] is None
    assert "nan" not in (text + printed).lower()
