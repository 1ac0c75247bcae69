"""A bundle meets another scanner: refused before, fitted by 20 local patients, right afterwards."""

import json
import shutil

import numpy as np
import onnx
import pandas as pd
import pytest
from PIL import Image

from steatosis_tf import cli
from steatosis_tf.cohort.manifest import build_manifest, read_manifest
from steatosis_tf.cohort.near_duplicates import training_hashes
from steatosis_tf.deploy.bundle import find_faults, open_bundle
from steatosis_tf.deploy.bundle_write import join_rule, taps_of
from steatosis_tf.deploy.recalibrate import recalibrate
from steatosis_tf.grades import grade_from_fat_percent
from steatosis_tf.sources.phantom.study import simulate_patient
from steatosis_tf.validation import find_leakage

# Louder, steeper over depth, and harder in contrast than any scanner of the training phantoms.
OTHER = {"gain_offset_db": 12.0, "tgc_offset_db_per_cm": 1.5, "dynamic_range_factor": 0.5}


def _frames(fat: float, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return simulate_patient(fat, num_frames=2, generator=generator, size_px=(240, 320), **OTHER)[0]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Manifest of 20 patients of the other scanner, fat percent known."""
    folder = tmp_path_factory.mktemp("other_scanner")
    rows = []
    for number, fat in enumerate(np.linspace(0, 92, 20).round(1)):
        for place, frame in enumerate(_frames(fat, 100 + number)):
            name = f"P{number:02}_{place}.png"
            Image.fromarray(frame).save(folder / name)
            rows.append({"path": name, "patient_id": f"P{number:02}", "fat_percent": fat})
    pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)
    build_manifest(folder / "labels.csv", folder / "manifest.csv")
    return folder / "manifest.csv"


@pytest.fixture(scope="module")
def local(phantom_bundle, study, tmp_path_factory):
    """The recalibrated bundle and what was said of it."""
    folder = tmp_path_factory.mktemp("local") / "model"
    return folder, recalibrate(phantom_bundle, study, folder)


def _few(study, tmp_path, num: int, **columns):
    """Manifest of the first patients."""
    table = pd.read_csv(study, dtype=str, keep_default_na=False)
    table = table.loc[table["patient_id"] < f"P{num:02}"].assign(**columns)
    table["path"] = [str(study.parent / path) for path in table["path"]]
    table.to_csv(tmp_path / "manifest.csv", index=False)
    return tmp_path / "manifest.csv"


def test_new_patients_of_the_other_scanner_are_graded_and_closer(phantom_bundle, local):
    fat = np.linspace(3, 90, 10)
    graded, errors = {}, {}
    for folder in (phantom_bundle, local[0]):
        bundle, found = open_bundle(folder), []
        for number, percent in enumerate(fat):
            frames = enumerate(_frames(percent, 900 + number))
            looks = [bundle.look(f"{at}", frame) for at, frame in frames]
            found.append(bundle.answer(f"N{number}", looks))
        blind = [abs(one.fat_percent - percent) for one, percent in zip(found, fat, strict=True)]
        graded[bundle.name] = sum(one.kind == "graded" for one in found)
        errors[bundle.name] = np.nanmean(blind)
    assert graded["phantoms 1"] <= 3
    assert graded["phantoms-local 1"] >= 8
    assert errors["phantoms-local 1"] < errors["phantoms 1"]


def test_ranks_stay_and_the_bundle_says_from_what_and_by_how_many(phantom_bundle, local):
    folder, says = local
    old, new = open_bundle(phantom_bundle), open_bundle(folder)
    assert not find_faults(new)
    line = {name: one["value"] for name, one in says["score"].items()}
    pictures = old.vectors["pictures"]
    np.testing.assert_allclose(
        new.run(pictures)["score"],
        old.run(pictures)["score"] * line["slope"] + line["offset"],
        atol=1e-4,
    )
    assert line["slope"] > 0
    said = new.about["recalibration"]
    assert (said["from_sha256"], said["num_patients"]) == (old.sha256, 20)
    assert said["score"]["slope"]["low"] <= line["slope"] <= said["score"]["slope"]["high"]
    assert said["score_error"][1] < said["score_error"][0]
    card = (folder / "card.md").read_text()
    assert f"(SHA-256 {old.sha256}) by 20\nlocal patients" in card
    assert new.num_training == 20


def test_a_fit_that_grades_worse_is_said(local):
    from steatosis_tf.verbs.results import _recalibration_text

    warned = "agree less with the labels than before"
    for kappa, accuracy, is_said in (
        ([0.9, 0.8], [0.5, 0.5], True),
        ([0.8, 0.9], [0.5, 0.5], False),
        ([0.823, 0.821], [0.5, 0.4], False),
        ([0.77, 0.76], [0.55, 0.77], False),  # more of them right
    ):
        says = local[1] | {"quadratic_kappa": kappa, "accuracy": accuracy}
        assert (warned in _recalibration_text(says, 20)) == is_said


def test_the_network_is_taken_apart_and_joined_again_byte_for_byte(phantom_bundle):
    bundle = open_bundle(phantom_bundle)
    network = bundle.files["model.onnx"]
    texts = {name: onnx_texts(network)[f"steatosis.{name}"] for name in ("name", "version", "roi")}
    again = join_rule(taps_of(network), bundle.joint, texts)
    assert again.SerializeToString() == network


def onnx_texts(network: bytes) -> dict[str, str]:
    return {one.key: one.value for one in onnx.load_from_string(network).metadata_props}


def test_grades_alone_move_cut_offs_and_leave_the_score(phantom_bundle, study, tmp_path):
    manifest = _few(study, tmp_path, 12, fat_percent="")
    says = recalibrate(phantom_bundle, manifest, tmp_path / "local")
    assert (says["score"], says["is_few"]) == (None, True)
    old, new = open_bundle(phantom_bundle), open_bundle(tmp_path / "local")
    assert new.joint.parts[0].rule.intercept == old.joint.parts[0].rule.intercept
    assert new.joint.link != old.joint.link


def test_a_grade_that_no_local_patient_has_keeps_its_cut_off(
    phantom_bundle, study, tmp_path, capsys
):
    table = pd.read_csv(study, dtype=str, keep_default_na=False)
    some = table.loc[table["grade"].isin(["Mild", "Moderate"])]
    some = some.assign(path=[str(study.parent / path) for path in some["path"]])
    some.to_csv(tmp_path / "manifest.csv", index=False)
    run_dir = tmp_path / "run"  # which has learned from two of them
    shutil.copytree(phantom_bundle, run_dir / "bundle")
    some.iloc[:4].to_csv(run_dir / "manifest.csv", index=False)
    (run_dir / "config.json").write_text("{}")
    call = ["recalibrate", str(tmp_path / "manifest.csv"), "--model", str(run_dir)]
    assert cli.main([*call, "--output", str(tmp_path / "local")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Leak: 4 frames are training frames of the model, of 2 patients")
    assert "no local patient is Normal or Severe: how such are graded here is not known" in said
    assert "No local patient is Severe: how such" in (tmp_path / "local" / "card.md").read_text()
    links = [open_bundle(path).joint.link for path in (phantom_bundle, tmp_path / "local")]
    old, new = (np.array(link.cuts) / link.slope for link in links)
    np.testing.assert_allclose(new[[0, 2]], old[[0, 2]])
    assert new[1] != old[1]


@pytest.mark.parametrize(
    ("num", "columns", "expected"),
    [
        (9, {}, "at least 10 local patients"),
        (10, {"grade": "Mild", "fat_percent": ""}, "at least two grades"),
    ],
)
def test_too_little_is_refused_in_one_line(
    phantom_bundle, study, tmp_path, capsys, num, columns, expected
):
    manifest = _few(study, tmp_path, num, **columns)
    call = ["recalibrate", str(manifest), "--model", str(phantom_bundle)]
    call += ["--output", str(tmp_path / "new")]
    assert cli.main(call) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert expected in error
    assert not (tmp_path / "new").exists()


def test_a_frame_that_is_gone_is_named(phantom_bundle, study, tmp_path):
    manifest = _few(study, tmp_path, 2)
    table = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    table.loc[0, "path"] = "gone.png"
    table.to_csv(manifest, index=False)
    with pytest.raises(ValueError, match=f"frame_id={table['frame_id'][0]}: missing"):
        recalibrate(phantom_bundle, manifest, tmp_path / "new")


def test_a_score_that_falls_with_fat_is_refused(phantom_bundle, study, tmp_path):
    table = pd.read_csv(study, dtype=str, keep_default_na=False)
    turned = 100 - table["fat_percent"].astype(float)
    grades = turned.map(grade_from_fat_percent)
    for fat in (turned, ""):  # and where grades alone are known
        manifest = _few(study, tmp_path, 12, fat_percent=fat, grade=grades)
        with pytest.raises(ValueError, match="rises with the local patients' fat"):
            recalibrate(phantom_bundle, manifest, tmp_path / "new")


def test_a_run_is_not_written_over(phantom_bundle, study, tmp_path, capsys):
    """Its model has the name of the network in a bundle."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.onnx").write_text("trained for days")
    folders = [tmp_path / "run", shutil.copytree(phantom_bundle, tmp_path / "own")]
    for folder, model in zip(folders, (phantom_bundle, folders[1]), strict=True):
        call = ["recalibrate", str(study), "--model", str(model), "--output", str(folder)]
        assert cli.main(call) == 1
        assert "where something else is" in capsys.readouterr().err
    assert (tmp_path / "run" / "model.onnx").read_text() == "trained for days"


def test_a_recalibrated_bundle_is_not_recalibrated_again(local, study, tmp_path):
    copy = shutil.copytree(local[0], tmp_path / "copy")
    with pytest.raises(ValueError, match="Start from phantoms 1"):
        recalibrate(copy, study, tmp_path / "new")
    assert json.loads((copy / "bundle.json").read_text())["name"] == "phantoms-local"


def test_its_own_local_patients_are_no_test_of_it(local, study):
    """A training set that is not here says nothing about those it was fitted to since."""
    bundle, table = open_bundle(local[0]), read_manifest(study)
    found = find_leakage(bundle, table, study, local[0])
    assert found["text"] == "Leak: this is the very manifest that the model was recalibrated on."
    bundle.about["training"]["leak_hashes"] = training_hashes(table[:0], study)
    found = find_leakage(bundle, table[:4], study.with_name("labels.csv"), local[0])
    assert (found["passed"], found["same_pixels"]) == (None, [])
    assert "recalibrated on 20 local patients" in found["text"]
