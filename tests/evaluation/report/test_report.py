"""The report of a run from the outside: whole runs, damaged runs, nearly empty runs."""

import json
import re
import shutil
import subprocess
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest

from steatosis_tf import cli
from steatosis_tf.config import load_config, save_config
from steatosis_tf.evaluation.clinical.thresholds import choose_operating_points
from steatosis_tf.evaluation.metrics.scores import patient_scores, read_scores
from steatosis_tf.evaluation.report.analysis import analyse_run
from steatosis_tf.evaluation.report.content import (
    flow_rows,
    interval,
    method,
    protocol,
    settings_read,
    what_was_random,
)
from steatosis_tf.evaluation.report.evaluate import evaluate_run
from steatosis_tf.evaluation.report.report import write_report
from steatosis_tf.evaluation.report.run import read_run
from steatosis_tf.grades import GRADES, NOTICE, SCORE_COLUMNS

RESAMPLES = 100


def make_scores(labels, frames_each, seed, prefix):
    """Frames of an over-confident model (logits 3 times too large) that is right in most cases."""
    rng = np.random.default_rng(seed)
    rows = []
    for patient, label in enumerate(labels):
        logits = rng.normal(size=4) + 1.5 * np.eye(4)[label]
        for frame in range(frames_each):
            scores = np.exp(3 * (logits + rng.normal(scale=0.3, size=4)))
            rows.append((f"{prefix}{patient:03d}{frame}", f"{prefix}{patient:03d}", 0,
                         GRADES[label], label * 25.0, *(scores / scores.sum())))  # fmt: skip
    columns = ["frame_id", "patient_id", "fold", "grade", "fat_percent", *SCORE_COLUMNS]
    scores = pd.DataFrame(rows, columns=columns)
    scores["predicted"] = [GRADES[k] for k in scores[list(SCORE_COLUMNS)].to_numpy().argmax(1)]
    return scores


def make_run(folder, num_patients=48, frames_each=3, labels=None):
    """A run directory as the line leaves it: 48 test and 40 validation patients."""
    run_dir = folder / "experiment" / "run"
    run_dir.mkdir(parents=True)
    labels = np.arange(num_patients) % 4 if labels is None else np.asarray(labels)
    scores = make_scores(labels, frames_each, 4, "P")
    scores.to_csv(run_dir / "frame_scores.csv", index=False)
    validation = make_scores(np.arange(40) % 4, 1, 5, "V")
    validation.to_csv(run_dir / "validation_scores.csv", index=False)
    manifest = scores[["frame_id", "patient_id", "grade", "fat_percent"]].assign(
        path="f.png", pixels_sha256="0", sex="F", age="50", scanner="A", split="test",
        roi_top=1, roi_left=1, roi_height=9, roi_width=9, roi_source="auto",
    )  # fmt: skip
    manifest.loc[manifest["patient_id"].isin(["P000", "P001", "P002"]), "scanner"] = "rare"
    manifest.to_csv(run_dir / "manifest.csv", index=False)
    split = manifest.drop_duplicates("patient_id").assign(fold=0)[["fold", "patient_id", "split"]]
    others = [(0, "T1", "train"), *((0, f"V{k:03d}", "validation") for k in range(40))]
    split = pd.concat([split, pd.DataFrame(others, columns=split.columns)])
    split.to_csv(run_dir / "split.csv", index=False)
    (run_dir / "rejected.csv").write_text("frame_id,patient_id,reason\nx1,T1,no sector\n")
    config = {"split": {"kind": "holdout", "split_seed": 0}, "train": {"learning_rate": 1e-4},
              "evaluation": {"aggregation": "mean"}}  # fmt: skip
    (run_dir / "config.json").write_text(json.dumps(config))
    (run_dir / "environment.json").write_text(json.dumps({"python": "3.11", "seconds": 9.5}))
    evaluate_run(run_dir)
    return run_dir


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    run_dir = make_run(tmp_path_factory.mktemp("whole"))
    write_report(run_dir, num_resamples=RESAMPLES)
    return run_dir


@pytest.fixture
def run_dir(whole_run, tmp_path):
    """A copy to damage."""
    copy = tmp_path / "experiment" / "run"
    shutil.copytree(whole_run, copy)
    return copy


def report_text(run_dir):
    """Text of the page without style and pictures."""
    path = write_report(run_dir, num_resamples=RESAMPLES)
    page = path.read_text(encoding="utf-8")
    page = re.sub(r"<style>.*?</style>|data:image/png;base64,[^\"]*", "", page, flags=re.S)
    for name in ("report.html", "report.md", "model_card.md", "checklists.md"):
        text = re.sub(r"base64,[^\"]*", "", (run_dir / name).read_text(encoding="utf-8"))
        assert NOTICE in text
        assert not re.search(r"\b(nan|NaN|inf|None)\b", text), f"a bare nan in {name}"
    return page


def test_whole_run_is_consistent_and_says_what_is_missing(whole_run):
    page = (whole_run / "report.html").read_text(encoding="utf-8")
    assert "Consistent: all 8 self-checks hold." in page
    assert "Simulated frames" not in page
    metrics = json.loads((whole_run / "metrics.json").read_text())
    assert f"{metrics['patient']['accuracy']:.3f} (" in page
    assert "0.0001" in page, "a learning rate of 1e-4 must not be rounded to 0.000"
    assert "Data-leakage check (patient, exact copy, near copy, label conflict): not done" in page
    assert "No external, temporal or leave-one-scanner-out validation is part of this run" in page
    assert "no sector" in page
    text = (whole_run / "report.md").read_text(encoding="utf-8")
    assert "> - Intended use: what the grade is used for" in text
    titles = re.findall(r"^## (\d+)\. (.*)$", text, re.M)
    assert [int(number) for number, _ in titles] == list(range(1, len(titles) + 1))
    assert "Self-check" in dict(titles).values()
    assert "External validation" not in dict(titles).values(), "no verb has filled it"
    assert "## Intended use" in (whole_run / "model_card.md").read_text(encoding="utf-8")


def test_validation_fixes_temperature_cut_offs_and_grade_sets(whole_run):
    text = (whole_run / "report.md").read_text(encoding="utf-8")
    temperature = float(re.search(r"Temperature ([\d.]+), fitted on 40 validation", text)[1])
    assert 1.5 < temperature < 4  # logits were blown up by 3
    before, after = (float(x) for x in re.search(
        r"\(nats\) \| ([\d.]+) \([\d. to]+\) \| ([\d.]+) \(", text).groups())  # fmt: skip
    assert after < before
    assert re.search(
        r"\| ECE, Severe, equal mass bins \| [\d.]+ \([\d.]+ to [\d.]+\), chance 0", text
    )
    assert re.search(r"\| Mild or worse: Youden \| 0\.\d+ \| 0\.\d+ \(", text)
    assert "| Mild or worse: least cost | 25 % |" in text
    assert "promise to hold the true grade of 90 % of patients" in text
    assert "Decision curve, Moderate or worse" in text
    assert "Against the hepatorenal index: not done, no hepatorenal.csv" in text


def test_patients_seen_twice_give_a_repeatability_limit(run_dir):
    """Visit A is the first frame of each patient, B the other two; the score rises by 1 in B."""
    for name in ("frame_scores.csv", "manifest.csv"):
        table = pd.read_csv(run_dir / name, dtype={"pixels_sha256": str})
        is_first = table["frame_id"].str.endswith("0")
        if name == "manifest.csv":
            table["study_id"] = table["patient_id"] + np.where(is_first, "A", "B")
            table["days_since_first_study"] = np.where(is_first, 0, 1100)
        else:
            table["sqrt_fat"] = np.where(is_first, 3.0, 4.0)
        table.to_csv(run_dir / name, index=False)
    limit = evaluate_run(run_dir)["repeatability"]
    assert limit["coefficient"] == pytest.approx(1.96)
    assert (limit["scale"], limit["num_patients"], limit["num_visits"]) == ("sqrt_fat", 48, 96)
    text = report_text(run_dir)
    assert "repeatability limit 1.960 (square root of fat percent)" in text
    assert "visits lie up to 1,100 days apart: what changed in between is in the limit" in text


def test_locked_cut_offs_of_the_run_are_used_and_damaged_ones_refused(run_dir):
    validation = read_scores(run_dir / "validation_scores.csv", validation=True)
    points = choose_operating_points(patient_scores(validation, validation=True))
    points["folds"]["0"]["severe"]["youden"]["threshold"] = 0.123456
    (run_dir / "operating_points.json").write_text(json.dumps(points))
    page = report_text(run_dir)
    assert "Thresholds from operating_points.json" in page
    assert "<td>0.123</td>" in page
    (run_dir / "operating_points.json").write_text("{}")
    assert "operating_points.json cannot be used" in report_text(run_dir)


def test_decision_curve_is_of_the_probabilities_that_the_model_gives(whole_run):
    found = analyse_run(read_run(whole_run), num_resamples=RESAMPLES).thresholds
    assert found.temperatures["0"]["temperature"] != pytest.approx(
        1, abs=0.1
    )  # others would differ
    curve = found.decisions["severe"]
    patients = pd.read_csv(whole_run / "patient_scores.csv")
    is_severe = patients["grade"] == "Severe"
    for threshold, benefit in zip(
        curve["thresholds"], curve["net_benefit"]["model"]["value"], strict=True
    ):
        flagged = patients["p_severe"] >= threshold
        false = (flagged & ~is_severe).sum() * threshold / (1 - threshold)
        assert benefit == pytest.approx(((flagged & is_severe).sum() - false) / len(patients))


@pytest.mark.parametrize("head", ["softmax", "joint"])
def test_settings_that_nothing_read_are_not_in_the_report(run_dir, head):
    solved = {"evaluation": {"aggregation": "log_odds"}, "roi": {"method": "beamspace"}}
    solved = solved if head == "joint" else {}
    model = {"head": head, "backbone": "efficientnet_lite0", "pooling": "depth"}
    config = {"model": model, "train": {"views": 0}, **solved}
    (run_dir / "config.json").write_text(json.dumps(config))
    save_config(load_config(run_dir / "config.json"), run_dir / "config.json")
    names = {name for row in settings_read(read_run(run_dir)) for name in row[::2]}
    assert ({"train.epochs", "augment.flip", "model.dropout"} <= names) == (head == "softmax")
    assert "model.backbone" in names
    run = read_run(run_dir)
    assert run.is_joint == (head == "joint")
    assert "painted out" not in method(run)[0]  # a manifest of before they were
    now = replace(run, manifest=run.manifest.assign(roi_view=""))
    assert "text and calipers inside it are painted out" in method(now)[0]
    for fat, words in ((run.manifest["fat_percent"], "of fat;"), (np.nan, "of the grade, since")):
        told = method(replace(now, manifest=now.manifest.assign(fat_percent=fat)))[-1]
        assert (f"into one score {words}" in told) == (head == "joint")
    for sets, is_bundle in ((None, False), ({"coverage": 0.9}, True)):  # of `validate`
        assert replace(run, external={"prediction_sets": sets}).is_joint == is_bundle
    for kind, given in (("holdout", {}), ("kfold", {"split": "as the manifest's column says"})):
        split = {"split": {"kind": kind, "split_seed": 3}}
        dealt = replace(run, config=split, environment=given)
        assert ("split.split_seed=3" in what_was_random(dealt)) == (not given)
        assert ("the manifest's split column" in protocol(dealt)) == bool(given)
    drawn = what_was_random(run)
    assert ("train.seed" in drawn) == (head == "softmax")
    assert "augment.seed" not in drawn  # online, from train.seed


def test_a_joint_run_without_decision_rules_says_that_its_bundle_grades_otherwise(run_dir):
    config = json.loads((run_dir / "config.json").read_text())
    config["model"] = {"head": "joint", "backbone": "efficientnet_lite0", "pooling": "depth"}
    (run_dir / "config.json").write_text(json.dumps(config))
    assert "Scored by an earlier version: the grades here are the most" in report_text(run_dir)


def test_decision_curve_against_the_hepatorenal_index(run_dir):
    manifest = pd.read_csv(run_dir / "manifest.csv", dtype=str)
    validation = pd.read_csv(run_dir / "validation_scores.csv", dtype={"frame_id": str})
    untested = validation[["frame_id", "patient_id", "grade"]].assign(
        fat_percent="", path="v.png", pixels_sha256="0"
    )
    pd.concat([manifest, untested]).to_csv(run_dir / "manifest.csv", index=False)
    everybody = pd.concat([manifest, untested])[["patient_id", "grade"]].drop_duplicates()
    index = everybody["grade"].map(GRADES.index) * 0.3 + 1 + np.arange(len(everybody)) % 7 * 0.1
    table = everybody.assign(hepatorenal_index=index)[["patient_id", "hepatorenal_index"]]
    table.to_csv(run_dir / "hepatorenal.csv", index=False)
    before = (run_dir / "figures" / "decision_severe.png").read_bytes()
    page = report_text(run_dir)
    assert "not done, no hepatorenal.csv" not in page
    assert "became a probability by a logistic curve" in page
    assert (run_dir / "figures" / "decision_severe.png").read_bytes() != before
    table.iloc[1:].to_csv(run_dir / "hepatorenal.csv", index=False)
    assert "For 1 of 48 test patients it could not be measured" in report_text(run_dir)
    table.iloc[25:].to_csv(run_dir / "hepatorenal.csv", index=False)
    assert "not done, 25 of 48 test patients lack it" in report_text(run_dir)


def test_without_validation_scores_nothing_is_chosen_on_the_test_part(run_dir):
    (run_dir / "validation_scores.csv").unlink()
    page = report_text(run_dir)
    assert page.count("no validation scores (validation_scores.csv)") == 3


def test_page_is_one_file_without_network_or_script(whole_run):
    page = (whole_run / "report.html").read_text(encoding="utf-8")
    assert len(page.encode()) < 5_000_000
    assert "<script" in page, "the sorting of tables"
    assert not re.search(r'src="(?!data:)', page)
    assert not re.search(r'href="(?!data:|#|f\.png)', page), "frames are linked, nothing else"
    assert "@import" not in page
    assert "url(" not in page
    anchors = set(re.findall(r'href="#([^"]+)"', page))
    assert anchors <= set(re.findall(r'id="([^"]+)"', page))


def test_same_run_gives_the_same_bytes(run_dir):
    names = ("report.html", "report.md", "model_card.md", "checklists.md")
    before = [(run_dir / name).read_bytes() for name in names]
    write_report(run_dir, num_resamples=RESAMPLES)
    assert [(run_dir / name).read_bytes() for name in names] == before
    assert not list(run_dir.glob(".unfinished*"))


def test_edited_metrics_are_recognised_and_not_printed(run_dir):
    path = run_dir / "metrics.json"
    metrics = json.loads(path.read_text())
    true = metrics["patient"]["accuracy"]
    metrics["patient"]["accuracy"] = 0.987
    path.write_text(json.dumps(metrics))
    page = report_text(run_dir)
    assert "Not consistent: 2 of 8 self-checks failed." in page
    assert f"accuracy: written 0.987, recomputed {true}" in page
    assert "Run `steatosis evaluate` on this run again" in page
    assert "Consistent: all" not in page
    assert not re.search(r"Accuracy</td>\s*<td>0\.987", page)
    assert "**Not consistent" in (run_dir / "model_card.md").read_text(encoding="utf-8")


def test_the_report_opens_on_the_screen_as_on_the_page(run_dir, capsys):
    path = run_dir / "metrics.json"
    path.write_text(path.read_text().replace('"accuracy": 0.', '"accuracy": 0.0', 1))
    assert cli.main(["report", str(run_dir), "--resamples", str(RESAMPLES)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Not consistent: 2 of 8 self-checks failed.\nreport: ")


def test_a_whole_set_of_edited_tables_is_recognised(run_dir):
    """Tables that agree with each other but not with the scores."""
    path = run_dir / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["patient"] = metrics["frame"]
    path.write_text(json.dumps(metrics))
    page = report_text(run_dir)
    assert "Not consistent: 1 of 8 self-checks failed." in page
    assert "n: written 144, recomputed 48" in page


def test_scored_patient_missing(run_dir):
    scores = pd.read_csv(run_dir / "frame_scores.csv", dtype={"frame_id": str})
    scores[scores["patient_id"] != "P007"].to_csv(run_dir / "frame_scores.csv", index=False)
    page = report_text(run_dir)
    assert "Not consistent" in page
    assert "1 not scored, first patient_id=P007 of fold 0" in page
    assert "1 patients missing from frame_scores, first ['P007']" in page


def test_evaluate_refuses_scores_that_lack_a_patient(run_dir, capsys):
    scores = pd.read_csv(run_dir / "frame_scores.csv", dtype={"frame_id": str})
    scores[scores["patient_id"] != "P007"].to_csv(run_dir / "frame_scores.csv", index=False)
    before = (run_dir / "metrics.json").read_bytes()
    assert cli.main(["evaluate", str(run_dir)]) == 1
    error = capsys.readouterr().err
    assert "Expected scores of the test patients of split.csv and of nobody else" in error
    assert "1 not scored, first patient_id=P007 of fold 0" in error
    assert (run_dir / "metrics.json").read_bytes() == before


def test_a_test_patient_without_any_region_is_excused_and_counted(run_dir):
    manifest = pd.read_csv(run_dir / "manifest.csv", dtype=str)
    manifest.loc[manifest["patient_id"] == "P007", "roi_height"] = ""
    manifest.to_csv(run_dir / "manifest.csv", index=False)
    scores = pd.read_csv(run_dir / "frame_scores.csv", dtype={"frame_id": str})
    scores[scores["patient_id"] != "P007"].to_csv(run_dir / "frame_scores.csv", index=False)
    evaluate_run(run_dir)
    page = report_text(run_dir)
    assert "Consistent: all 8 self-checks hold" in page
    assert "47 test patients, all scored, nobody else. 1 more have no region of interest" in page


def test_patient_table_that_lost_a_row(run_dir):
    patients = pd.read_csv(run_dir / "patient_scores.csv")
    patients.iloc[1:].to_csv(run_dir / "patient_scores.csv", index=False)
    assert "1 patients missing from patient_scores" in report_text(run_dir)


def test_patient_on_both_sides(run_dir):
    with open(run_dir / "split.csv", "a", encoding="utf-8") as file:
        file.write("0,P003,train\n")
    assert "1 are, first patient_id=P003 of fold 0" in report_text(run_dir)


def test_nobody_with_steatosis_in_the_test_part(tmp_path, capsys):
    page = report_text(make_run(tmp_path, num_patients=12, labels=[0] * 12))
    assert "nobody in the test part has steatosis" in page
    assert "accuracy here is specificity" in page
    assert "undefined" in page
    assert "Consistent: all 8" in page
    assert cli.main(["evaluate", str(tmp_path / "experiment" / "run")]) == 0
    text = capsys.readouterr().out
    assert "- is undefined on these patients: AUC of Normal is undefined: no row has this" in text
    assert "nan" not in text.lower()


def test_one_patient_and_one_frame(tmp_path):
    page = report_text(make_run(tmp_path, num_patients=1, frames_each=1))
    assert "Only 1 patients were tested" in page
    assert "Repeatability: No patient has two frames" in page


def test_subgroup_of_three_patients_is_suppressed(whole_run):
    text = (whole_run / "report.md").read_text(encoding="utf-8")
    assert re.search(r"\| rare \| 3 \| 1 / 1 / 1 / 0 \| suppressed", text)
    assert "Groups under 10 patients are suppressed" in text


def test_any_column_of_the_manifest_can_be_looked_at(run_dir):
    manifest = pd.read_csv(run_dir / "manifest.csv", dtype=str)
    even = manifest["patient_id"].str[-1].astype(int) % 2 == 0
    manifest.assign(sonographer=np.where(even, "Ann", "Bea"), simulated="True").to_csv(
        run_dir / "manifest.csv", index=False
    )
    page = report_text(run_dir)
    assert "By sonographer" not in page
    assert "Simulated frames: these figures" in page
    write_report(run_dir, num_resamples=RESAMPLES, covariates=["sonographer", "ward"])
    page = (run_dir / "report.md").read_text(encoding="utf-8")
    assert "By sonographer: 2 groups shown." in page
    assert "site, ward: not in the manifest" in page


def test_the_flow_begins_with_what_never_reached_the_manifest(run_dir):
    (run_dir / "rejected.csv").write_text(
        "frame_id,patient_id,reason,code\n,Q1,\"unknown grade 'Grave', one of\",unknown_grade\n"
        ",,empty file (0 bytes),\n,Q2,unknown grade 'Bad',unknown_grade\nx1,P001,no sector,no_roi\n"
    )
    manifest = pd.read_csv(run_dir / "manifest.csv", dtype={"pixels_sha256": str})
    manifest.loc[3, "roi_height"] = np.nan  # one of the three frames of P001
    manifest.loc[9, ["scanner", "age"]] = ["B", 80]  # of P003: seen twice
    manifest.to_csv(run_dir / "manifest.csv", index=False)
    write_report(run_dir, num_resamples=RESAMPLES)
    lines = (run_dir / "report.md").read_text(encoding="utf-8").splitlines()
    names = ("| Test", "| Frames", "| scanner", "| age")
    parts = [line for line in lines if line.startswith(names)]
    assert parts[:6] == [
        "| Test | 48 | 143 |",
        "| Frames | 143 | 0 | 0 |",
        "| age | 50 (50 to 60) | unknown | unknown |",
        "| scanner: A | 44 (92 %) | 0 | 0 |",
        "| scanner: rare | 3 (6 %) | 0 | 0 |",
        "| scanner: several values | 1 (2 %) | 0 | 0 |",
    ]
    flow = [line for line in lines if line.startswith(("| Rejected", "| In the manifest"))]
    assert flow == [
        "| Rejected before the manifest: empty file (0 bytes) | 0 | 1 |",
        "| Rejected before the manifest: unknown grade | 2 | 2 |",
        "| In the manifest | 48 | 144 |",
        "| Rejected: no region of interest | 1 | 1 |",
    ]


def test_whom_every_fold_left_out_stands_in_the_flow(run_dir):
    record = read_run(run_dir)
    split = pd.concat([record.split.assign(fold=fold) for fold in ("0", "1")])
    split.loc[split["patient_id"] == "P003", "split"] = "left_out"
    flow = flow_rows(replace(record, split=split), record.manifest)
    assert flow[-2:] == [
        ("Tested out of fold, once each, in 2 folds", "47", "141"), ("Left out", "1", "3"),
    ]  # fmt: skip


def test_nan_in_metrics_is_a_fault(run_dir):
    path = run_dir / "metrics.json"
    path.write_text(path.read_text().replace('"accuracy": ', '"accuracy": NaN, "was": ', 1))
    page = report_text(run_dir)
    assert "metrics.json can be read" in page
    assert "holds a value that is not a number" in page


@pytest.mark.parametrize("changed", ["frame_scores.csv", "manifest.csv"])
@pytest.mark.parametrize(("column", "value"), [("grade", "Severe"), ("fat_percent", "4.5")])
def test_another_truth_than_the_manifest_has_is_refused(run_dir, capsys, changed, column, value):
    table = pd.read_csv(run_dir / changed, dtype=str, keep_default_na=False)
    assert table.loc[0, "frame_id"] == "P0000"
    before, metrics = table.loc[0, column], (run_dir / "metrics.json").read_bytes()
    rows = table["patient_id"] == "P000"  # one patient has one grade
    table.loc[rows, column] = value
    table.to_csv(run_dir / changed, index=False)
    assert cli.main(["evaluate", str(run_dir)]) == 1
    said = {"frame_scores.csv": value, "manifest.csv": before}[changed]
    expected = f"3 frames have another {column}, first frame_id=P0000: {said} in the scores"
    if (changed, column) == ("manifest.csv", "grade"):
        expected = "expected grade to be that of fat_percent. Received: 'Severe' at row 2"
    assert expected in capsys.readouterr().err
    assert (run_dir / "metrics.json").read_bytes() == metrics


def test_damaged_score_file_is_named_not_a_traceback(run_dir):
    (run_dir / "frame_scores.csv").write_text("frame_id,patient_id\n1,2\n")
    page = report_text(run_dir)
    assert "Not consistent" in page
    assert "frame_scores.csv can be read" in page


def test_scores_alone_give_a_report_that_says_what_was_not_done(whole_run, tmp_path):
    shutil.copy(whole_run / "frame_scores.csv", tmp_path)
    page = report_text(tmp_path)
    assert "Not shown to be consistent: 8 self-checks could not be made" in page
    assert "Code, versions and hardware not known" in page
    assert "Patients: not done, patient_scores.csv is absent or damaged" in page


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a run directory with config\.json.*none of them"):
        write_report(tmp_path)


def test_text_from_outside_stays_text(run_dir):
    manifest = pd.read_csv(run_dir / "manifest.csv", dtype=str)
    manifest["site"] = "<script>alert(1)</script> | *x*"
    manifest.to_csv(run_dir / "manifest.csv", index=False)
    page = report_text(run_dir)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<em>x</em>" not in page
    text = (run_dir / "report.md").read_text(encoding="utf-8")
    assert "\\<script>alert(1)\\</script> \\| \\*x\\*" in text


def test_author_statements_are_printed_and_checked(run_dir):
    before = (run_dir / "checklists.md").read_text(encoding="utf-8")
    study = {"title": "Fat in B-mode", "intended_use": "triage", "funding": "none"}
    (run_dir / "study.json").write_text(json.dumps(study))
    page = report_text(run_dir)
    assert "<h1>Fat in B-mode</h1>" in page
    assert "Intended use: triage" in page
    after = (run_dir / "checklists.md").read_text(encoding="utf-8")
    assert "| 44 | Funding and the funders' role | needs the author |" in before
    assert "| 44 | Funding and the funders' role | met | report, section 18 |" in after
    (run_dir / "study.json").write_text(json.dumps({"use": "x"}))
    with pytest.raises(ValueError, match=r"study\.json\. Received: unknown=\['use'\]"):
        write_report(run_dir, num_resamples=RESAMPLES)


def test_the_form_of_study_json_is_written_once_and_read(run_dir, capsys):
    assert cli.main(["report", str(run_dir), "--init-study"]) == 0
    assert "intended_use: what the grade is used for" in capsys.readouterr().out
    form = json.loads((run_dir / "study.json").read_text())
    assert report_text(run_dir).count("Needs the author") > 3, "an empty form states nothing"
    form["intended_use"] = "triage"
    (run_dir / "study.json").write_text(json.dumps(form))
    assert "Intended use: triage" in report_text(run_dir)
    assert cli.main(["report", str(run_dir), "--init-study"]) == 1
    assert json.loads((run_dir / "study.json").read_text()) == form


def test_the_verdict_compares_with_answers_that_need_no_model(whole_run, run_dir):
    text = (whole_run / "report.md").read_text(encoding="utf-8")
    assert re.search(r"\*\*Better than always saying Normal: accuracy 0\.\d+ against 0\.250", text)
    assert "| Accuracy | 0." in text
    assert "48 patients of the test part, 144 frames; 12 Normal, 12 Mild, 12 Mod" in text
    assert "the split (split.split_seed=0)" in text
    for name in ("frame_scores.csv", "patient_scores.csv"):  # a model that always says Severe
        table = pd.read_csv(run_dir / name, dtype={"frame_id": str})
        table[list(SCORE_COLUMNS)] = [0.1, 0.1, 0.2, 0.6]
        table.assign(predicted="Severe").to_csv(run_dir / name, index=False)
    evaluate_run(run_dir)
    assert (
        "Not shown to be better than always saying Normal: accuracy 0.250 against 0.250"
        in report_text(run_dir)
    )


def test_errors_of_the_decision_rule_are_counted_alike_everywhere(run_dir):
    path = run_dir / "frame_scores.csv"
    frames = pd.read_csv(path, dtype={"frame_id": str}).drop(columns="predicted")
    frames.assign(decision_rule="rounded_mean").to_csv(path, index=False)
    patients = evaluate_run(run_dir)["patient"]
    probable = read_scores(run_dir / "patient_scores.csv")[list(SCORE_COLUMNS)].to_numpy()
    assert patients["num_predicted"]["Mild"] != (probable.argmax(axis=1) == 1).sum()
    text = report_text(run_dir)
    assert f"Error rate {1 - patients['accuracy']:.3f} when every patient is graded" in text


def test_the_model_is_described_as_configured(run_dir):
    config = json.loads((run_dir / "config.json").read_text())
    config["model"] = {"backbone": "vgg16", "weights": "imagenet", "head": "ordinal",
                       "hidden_units": 64}  # fmt: skip
    config["train"]["fine_tune_epochs"] = 3
    (run_dir / "config.json").write_text(json.dumps(config))
    page = report_text(run_dir)
    assert "Backbone vgg16 (weights: imagenet), of which the last stage is trained too" in page
    assert "a head of 64 units on its features gives one score and ordered cuts" in page
    assert "ResNet" not in page


def test_intervals_whose_ends_print_alike_are_withheld():
    assert interval({"value": 0.5, "low": 0.5001, "high": 0.4999}) == "0.500 (no interval)"
    assert interval({"value": 0.5, "low": 0.4, "high": 0.6}, 2) == "0.50 (0.40 to 0.60)"
    assert interval({"value": None}) == "undefined"


def test_cross_validated_run_by_scanner(run_dir):
    """Leave one scanner out: two folds, temperature and cut-offs of each, external validation."""
    rare = ["P000", "P001", "P002"]
    for name in ("frame_scores.csv", "split.csv"):
        table = pd.read_csv(run_dir / name, dtype={"frame_id": str})
        table.loc[table["patient_id"].isin(rare), "fold"] = 1
        table.to_csv(run_dir / name, index=False)
    validation = pd.read_csv(run_dir / "validation_scores.csv", dtype={"frame_id": str})
    pd.concat([validation, validation.assign(fold=1)]).to_csv(
        run_dir / "validation_scores.csv", index=False
    )
    config = json.loads((run_dir / "config.json").read_text())
    config["split"] |= {"kind": "logo", "column": "scanner"}
    (run_dir / "config.json").write_text(json.dumps(config))
    evaluate_run(run_dir)
    page = report_text(run_dir)
    assert "Consistent: all 8" in page
    assert "Temperature fitted for each of 2 folds on its own validation patients" in page
    assert "Leave one scanner out: each group was graded by a model that never saw it." in page
    assert "The 2 folds are not independent repetitions" in page
    assert "AUC, Severe, mean of folds" in page


def test_parts_of_later_steps_are_shown(run_dir):
    (run_dir / "leak_gate.json").write_text(
        json.dumps({"passed": False, "findings": [{"text": "P001 and P002 share pixels"}]})
    )
    pd.DataFrame(
        {
            "perturbation": "gain", "strength": [0.0, 6.0], "unit": "dB",
            "metric": "quadratic_kappa", "value": [0.7, 0.5], "num_patients": 48,
        }
    ).to_csv(run_dir / "robustness.csv", index=False)  # fmt: skip
    page = report_text(run_dir)
    assert "The data-leakage check did not pass: results are not to be believed." in page
    assert "P001 and P002 share pixels" in page
    assert (run_dir / "figures" / "robustness_quadratic_kappa.png").is_file()


def test_heavy_figures_are_made_smaller(run_dir):
    rng = np.random.default_rng(0)
    for name in ("gallery", "flow"):
        noise = rng.integers(0, 256, (1000, 1000, 3)).astype(np.uint8)  # 3 MB as PNG
        cv2.imwrite(str(run_dir / "figures" / f"{name}.png"), noise)
    path = write_report(run_dir, num_resamples=RESAMPLES)
    assert path.stat().st_size < 5_000_000
    assert "Worst errors, one frame per patient" in path.read_text(encoding="utf-8")


def test_page_opens_in_a_browser_without_console_error(whole_run, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium or google-chrome on this machine")
    shot = tmp_path / "page.png"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--screenshot={shot}",
               "--disable-background-networking", "--enable-logging=stderr", "--log-level=0",
               f"--user-data-dir={tmp_path}", f"file://{whole_run / 'report.html'}"]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "CONSOLE" not in result.stderr
    assert cv2.imread(str(shot)).std() > 10
