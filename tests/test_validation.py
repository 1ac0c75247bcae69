"""A bundle meets labelled patients whom it never saw: same answers as `predict`, nobody dropped."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from steatosis_tf import cli
from steatosis_tf.cohort.manifest import build_manifest, read_manifest, write_manifest
from steatosis_tf.cohort.near_duplicates import training_hashes
from steatosis_tf.deploy.bundle import open_bundle
from steatosis_tf.deploy.bundle_write import seal_again
from steatosis_tf.deploy.predict import open_model, predict
from steatosis_tf.grades import GRADES, label_of
from steatosis_tf.model.joint import decide
from steatosis_tf.sources.phantom.study import simulate_patient
from steatosis_tf.validation import find_leakage, validate, validation_text

#: A scanner that the phantoms' bundle takes for a stranger's.
OTHER = {"gain_offset_db": 12.0, "tgc_offset_db_per_cm": 1.5, "dynamic_range_factor": 0.5}
FAT = [*np.linspace(0, 92, 12).round(1), 20.0, 70.0]
DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "evaluation.md"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Manifest: 12 patients like those learned from, 2 of another scanner, 1 without a label."""
    folder = tmp_path_factory.mktemp("elsewhere")
    rows = []
    for number, fat in enumerate([*FAT, 50.0]):
        frames, _ = simulate_patient(
            fat, num_frames=2, generator=np.random.default_rng(500 + number), size_px=(240, 320),
            **(OTHER if number in (12, 13) else {}),
        )  # fmt: skip
        for place, frame in enumerate(frames):
            name = f"E{number:02}_{place}.png"
            Image.fromarray(frame).save(folder / name)
            known = "" if number == len(FAT) else fat
            rows.append({"path": name, "patient_id": f"E{number:02}", "fat_percent": known})
    pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)
    build_manifest(folder / "labels.csv", folder / "manifest.csv")
    return folder / "manifest.csv"


@pytest.fixture(scope="module")
def validated(phantom_bundle, study, tmp_path_factory):
    """Folder of a validation, and what was found."""
    folder = tmp_path_factory.mktemp("validated") / "external"
    return folder, validate(study, folder, model=phantom_bundle, num_resamples=200)


def test_patients_are_answered_as_predict_answers_them(phantom_bundle, study, validated, tmp_path):
    predict([study], model=phantom_bundle, output_dir=tmp_path)
    expected, found = (
        pd.read_csv(folder / "patients.csv", keep_default_na=False)
        for folder in (tmp_path, validated[0])
    )
    labelled = expected["patient"] != "E14"
    pd.testing.assert_frame_equal(found, expected[labelled].reset_index(drop=True))
    scored = pd.read_csv(validated[0] / "patient_scores.csv")
    graded = found[found["kind"] == "graded"].set_index("patient")["grade"]
    assert dict(zip(scored["patient_id"], scored["predicted"], strict=True)) == graded.to_dict()


def test_answers_meet_the_labels_of_their_own_patients(phantom_bundle, study, tmp_path):
    """A patient's first row may be without a label, and another patient's rows between."""
    table = read_manifest(study)
    table = table[table["patient_id"].isin(["E01", "E10"])].sort_values("patient_id")
    table = table.iloc[[2, 0, 1, 3]].assign(path=[
        str((study.parent / name).resolve()) for name in table["path"].iloc[[2, 0, 1, 3]]
    ])  # fmt: skip
    table.loc[table.index[0], ["grade", "fat_percent"]] = ["", np.nan]
    write_manifest(table, tmp_path / "manifest.csv")
    folder = tmp_path / "external"
    validate(tmp_path / "manifest.csv", folder, model=phantom_bundle, num_resamples=100)
    scored = pd.read_csv(folder / "patient_scores.csv").set_index("patient_id")
    answers = pd.read_csv(folder / "patients.csv").set_index("patient")
    assert dict(scored["grade"]) == {"E01": "Mild", "E10": "Severe"}
    assert dict(scored["predicted"]) == dict(answers["grade"])


def test_nobody_is_dropped_in_silence(validated):
    folder, found = validated
    counts, told = found["counts"], found["not_graded"]
    assert counts["patients"] == 14 == counts["graded"] + len(told)
    assert "E12" in {one["patient_id"] for one in told}
    assert found["num_unlabelled"] == 1
    report = (folder / "report.md").read_text()
    said = validation_text(found)
    for one in told:
        assert f"not graded: {one['reason']}" in said
        assert f"| {one['patient_id']} | {one['grade']} |" in report


def test_grades_count_graded_patients_and_ranks_all_with_a_score(validated):
    folder, found = validated
    table = pd.read_csv(folder / "patients.csv")
    fat = dict(zip([f"E{number:02}" for number in range(14)], FAT, strict=True))
    label = np.array([np.searchsorted([5, 33 + 1e-9, 66 + 1e-9], fat[one], "right")
                      for one in table["patient"]])  # fmt: skip
    graded = (table["kind"] == "graded").to_numpy()
    named = np.array([label_of(grade) for grade in table.loc[graded, "grade"]])
    accuracy = found["graded"]["accuracy"]
    assert accuracy["value"] == pytest.approx((named == label[graded]).mean())
    assert (accuracy["num_patients"], accuracy["low"] < accuracy["high"]) == (graded.sum(), True)
    kappa = cohen_kappa_score(label[graded], named, weights="quadratic")
    assert found["graded"]["ordinal.quadratic_kappa"]["value"] == pytest.approx(kappa)
    scored = table["fat_percent"].notna().to_numpy()
    assert scored.sum() > graded.sum()
    score = table.loc[scored, "fat_percent"]
    area, order = found["ranks"]["ordinal.auc_at_least_moderate"], found["ranks"]
    assert area["num_patients"] == scored.sum()
    assert area["value"] == pytest.approx(roc_auc_score(label[scored] >= 2, score))
    expected = spearmanr(score, [fat[one] for one in table.loc[scored, "patient"]])[0]
    assert order["ordinal.spearman_fat"]["value"] == pytest.approx(expected)


def test_the_report_is_consistent_and_shows_locked_thresholds(phantom_bundle, validated):
    report = (validated[0] / "report.md").read_text()
    assert "## 1. External validation" in report
    assert "Consistent: all 3 self-checks hold." in report
    assert "No external, temporal" not in report
    assert "the model: chosen on left-out training patients" in report
    for point in open_bundle(phantom_bundle).joint.calibration.operating_points:
        assert f"| {point.threshold:.3f} |" in report
    assert "Leakage check: not possible." in report
    checklists = (validated[0] / "checklists.md").read_text()
    assert "Testing on external data | met" in checklists
    assert not (validated[0] / "model_card.md").exists()
    assert "Where the score comes from" in report
    assert cv2.imread(str(validated[0] / "figures" / "explanation.png")).shape[1] == 1280


def test_every_tested_patient_has_a_map_that_the_report_links(validated):
    folder = validated[0]
    scores = pd.read_csv(folder / "patient_scores.csv", dtype={"patient_id": str})
    owner = read_manifest(folder / "manifest.csv").set_index("frame_id")["patient_id"]
    maps = sorted((folder / "figures" / "maps").iterdir())
    assert sorted(owner[path.stem] for path in maps) == sorted(scores["patient_id"])
    report = (folder / "report.md").read_text()
    for path in maps:
        picture = cv2.imread(str(path))
        height, width = picture.shape[:2]
        # On the left the bare frame with its outlines, on the right the map's colours.
        left, right = (picture[:, half].astype(int) for half in (slice(640), slice(640, None)))
        assert (width, height) == (1280, 480 + 60)  # two lines of text below
        assert np.ptp(right, axis=2).mean() > np.ptp(left, axis=2).mean()
        assert f"| [map](<figures/maps/{path.name}>) |" in report


def test_a_patient_moved_to_another_grade_is_no_longer_consistent(validated, tmp_path):
    folder = shutil.copytree(validated[0], tmp_path / "edited")
    path = folder / "external.json"
    found = json.loads(path.read_text())
    found["not_graded"][0]["grade"] = "Severe" if FAT[12] < 66 else "Normal"
    path.write_text(json.dumps(found))
    assert cli.main(["report", str(folder), "--resamples", "100"]) == 0
    assert "Not consistent" in (folder / "report.md").read_text()


def test_training_frames_are_told_by_the_hashes_of_the_bundle(phantom_bundle, study, tmp_path):
    table = read_manifest(study)
    shared = table["patient_id"].isin(["E00", "E05"])
    hashes = training_hashes(table[shared], study)
    assert hashes["pixels_sha256"] == sorted(table.loc[shared, "pixels_sha256"])
    bundle = open_bundle(phantom_bundle)
    training = bundle.about["training"] | {"leak_hashes": hashes}
    again = seal_again(bundle, tmp_path / "model", training=training)
    changed = {name for name in bundle.files if bundle.files[name] != again.files[name]}
    assert "bundle.json" in changed
    assert not changed & {"model.onnx", "card.md", "instructions.md"}
    few = table[table["patient_id"].isin(["E00", "E01", "E05", "E09"])].copy()
    few["path"] = [str(study.parent / path) for path in few["path"]]
    # Saved again as JPEG, and a little brighter: other pixels, the same picture.
    for place, row in few[few["patient_id"] == "E05"].iterrows():
        picture = Image.open(row["path"]).point(lambda value: min(255, value + 12))
        few.loc[place, "path"] = str(tmp_path / f"{row['frame_id']}.jpg")
        picture.save(few.loc[place, "path"], quality=70)
    few[["path", "patient_id", "fat_percent"]].to_csv(tmp_path / "labels.csv", index=False)
    build_manifest(tmp_path / "labels.csv", tmp_path / "manifest.csv")
    found = validate(
        tmp_path / "manifest.csv", tmp_path / "out", model=tmp_path / "model", num_resamples=100
    )["leakage"]
    assert (found["passed"], len(found["same_pixels"]), len(found["near_duplicate"])) == (
        False,
        2,
        2,
    )
    assert "of 2 patients in all" in found["text"]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "**Attention.** Leak: 2 frames" in report
    before_numbers = report.index("Not consistent: 1 of 4 self-checks failed")
    assert before_numbers < report.index("| Per patient |")


def test_a_frame_that_is_gone_is_answered_for_or_refused_before_the_work(
    phantom_bundle, study, tmp_path
):
    table = read_manifest(study)
    few = table[table["patient_id"].isin(["E00", "E05"])].copy()
    few["path"] = [str(study.parent / path) for path in few["path"]]
    few.iloc[0, few.columns.get_loc("path")] = "gone.png"
    write_manifest(few, tmp_path / "manifest.csv")
    validate(tmp_path / "manifest.csv", tmp_path / "out", model=phantom_bundle, num_resamples=100)
    frames = pd.read_csv(tmp_path / "out" / "frames.csv", keep_default_na=False)
    assert frames["kind"].tolist()[0] == "unable"

    bundle = open_bundle(phantom_bundle)
    training = bundle.about["training"] | {"leak_hashes": training_hashes(table, study)}
    seal_again(bundle, tmp_path / "model", training=training)
    with pytest.raises(ValueError, match=f"frame_id={few.iloc[0]['frame_id']}: missing"):
        validate(tmp_path / "manifest.csv", tmp_path / "no", model=tmp_path / "model")
    assert not list((tmp_path / "no").glob("*.csv"))


def test_training_frames_are_told_by_the_manifest_of_the_run(phantom_bundle, study, tmp_path):
    """A bundle holds no hashes unless asked for, but beside a run's lies what it was made of."""
    run_dir = tmp_path / "run"
    shutil.copytree(phantom_bundle, run_dir / "bundle")
    table, grader = read_manifest(study), open_model(run_dir)
    learned = table["patient_id"].isin(["E00", "E05"])
    write_manifest(table[learned], run_dir / "manifest.csv")
    assert find_leakage(grader, table, study, run_dir)["passed"] is None  # somebody's manifest
    (run_dir / "config.json").write_text("{}")
    for model in (run_dir, run_dir / "bundle"):
        found = find_leakage(grader, table, study, model)
        assert not found["passed"]
        assert found["same_pixels"] == table.loc[learned, "frame_id"].tolist()
        assert "frames are training frames of the model, of 2 patients in all" in found["text"]
    visit = table[learned].assign(pixels_sha256="another")  # on another scanner, or years later
    assert "2 patients have the id of one in" in find_leakage(grader, visit, study, run_dir)["text"]
    for others, model in ((table[~learned], run_dir), (table, phantom_bundle), (table, None)):
        assert find_leakage(grader, others, study, model)["passed"] is None


def test_a_set_without_histology_is_read_as_the_document_says(
    phantom_bundle, study, tmp_path, monkeypatch
):
    table = read_manifest(study)
    table = table[table["patient_id"] < "E12"]
    noise = np.random.default_rng(0).normal(0, 5, 12).repeat(2)
    cap = (200 + 1.2 * table["fat_percent"] + noise).round()
    paths = [str(study.parent / path) for path in table["path"]]
    pd.DataFrame({"file": paths, "Patient ID": table["patient_id"], "CAP score": cap}).to_csv(
        tmp_path / "behsof.csv", index=False
    )
    monkeypatch.chdir(tmp_path)
    blocks = DOCUMENT.read_text().split("```python\n")[1:]
    (block,) = (one.split("```")[0] for one in blocks if "CAP score" in one)
    exec(compile(block, str(DOCUMENT), "exec"), {})
    assert cli.main(["manifest", "labels.csv", "--output", "manifest.csv"]) == 0
    labels = read_manifest("manifest.csv")
    expected = [GRADES[np.searchsorted([248, 268, 280], value, "right")] for value in cap]
    assert labels["grade"].tolist() == expected
    call = ["validate", "manifest.csv", "--model", str(phantom_bundle), "--output", "cap",
            "--reference", "cap_db_per_m", "--resamples", "100"]  # fmt: skip
    assert cli.main(call) == 0
    found = json.loads(Path("cap/external.json").read_text())
    assert found["ranks"]["ordinal.spearman_fat"]["value"] > 0.7
    assert found["fat_interval"] is None
    report = Path("cap/report.md").read_text()
    assert "Spearman with cap db per m" in report
    assert "not histology" in report


def test_text_says_where_patients_are_too_few_for_an_interval():
    entry = {"value": 1.0, "low": None, "high": None, "num_patients": 2}
    text = validation_text({
        "model": {"name": "m"}, "not_graded": [], "reference": "", "leakage": {"text": "none"},
        "counts": {"patients": 2, "graded": 2, "score_only": 0, "unable": 0}, "graded": {},
        "ranks": {"ordinal.auc_at_least_mild": entry},
    })  # fmt: skip
    assert "Mild or worse: 1.000 (too few patients for an interval), 2 with a score" in text


def test_refusals_are_one_line(study, tmp_path, capsys):
    def said(*call: str) -> str:
        assert cli.main(["validate", *call]) == 1
        return capsys.readouterr().err.splitlines()[-1]

    out = ["--output", str(tmp_path / "out")]
    assert "Expected a column 'cap'" in said(str(study), *out, "--reference", "cap")
    assert "Expected numbers in the column 'path'" in said(str(study), *out, "--reference", "path")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    assert "holds something else" in said(str(study), *out)
    assert "none of the inputs" in said(str(study), "--output", str(study.parent))
    table = read_manifest(study)
    table[table["grade"] == ""].to_csv(study.with_name("unlabelled.csv"), index=False)
    assert "Expected patients with a grade" in said(str(study.with_name("unlabelled.csv")), *out)


def test_the_named_grade_is_that_of_the_decision_rule(validated):
    """Not the most probable grade where the bundle names the median one."""
    scored = pd.read_csv(validated[0] / "patient_scores.csv")
    shares = scored[["p_normal", "p_mild", "p_moderate", "p_severe"]].to_numpy()
    rule = validated[1]["decision_rule"]
    assert set(scored["decision_rule"]) == {rule}
    assert [label_of(grade) for grade in scored["predicted"]] == decide(shares, rule).tolist()
