"""Prediction needs onnxruntime only, gives every frame a grade or a reason, and refuses strangers.

The model here is written by hand: softmax of (0, m, 2 m, 3 m) of the ROI's mean m over 255.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import onnx
import pandas as pd
import pytest
from filelock import FileLock
from PIL import Image

from steatosis_tf import cli
from steatosis_tf.config import RoiConfig
from steatosis_tf.deploy.bare_network import BareNetwork, are_probabilities
from steatosis_tf.deploy.frames import Look
from steatosis_tf.deploy.onnx_file import WEIGHTS_KEY, open_network, weights_sha256
from steatosis_tf.deploy.predict import open_model, predict
from steatosis_tf.deploy.tables import TABLES, patient_text
from steatosis_tf.evaluation.metrics.scores import patient_scores
from steatosis_tf.grades import GRADES, NOTICE
from steatosis_tf.model.answer import FrameAnswer, PatientAnswer
from steatosis_tf.roi.propose import propose_roi
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.roi.views import beam_space, crop_roi
from steatosis_tf.sources.images import read_frame
from steatosis_tf.sources.phantom.study import simulate_patient

REPOSITORY = Path(__file__).resolve().parents[2]
SECTOR = RoiConfig(method="sector")


def _write_model(
    path, *, size_px: tuple[int, int] = (224, 224), props: dict[str, str] | None = None,
    roi: RoiConfig = SECTOR, last: str = "Softmax", factors=(0, 1 / 255, 2 / 255, 3 / 255),
):  # fmt: skip
    helper, kinds = onnx.helper, onnx.TensorProto
    factors = np.array([factors], np.float32)
    axis = {"axis": 1} if last == "Softmax" else {}
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["roi"], ["pixels"], to=kinds.FLOAT),
            helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2], keepdims=0),
            helper.make_node("MatMul", ["mean", "factors"], ["logits"]),
            helper.make_node(last, ["logits"], ["probabilities"], **axis),
        ],
        "mean_grader",
        [helper.make_tensor_value_info("roi", kinds.UINT8, ["batch", *size_px, 1])],
        [helper.make_tensor_value_info("probabilities", kinds.FLOAT, ["batch", 4])],
        [onnx.numpy_helper.from_array(factors, "factors")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    ours = {"steatosis.grades": json.dumps(GRADES), "steatosis.roi": json.dumps(asdict(roi))}
    if props is None:
        ours[WEIGHTS_KEY] = weights_sha256(model.graph)
    helper.set_model_props(model, ours if props is None else props)
    onnx.save(model, str(path))
    return path


@pytest.fixture
def model_path(tmp_path):
    return _write_model(tmp_path / "model.onnx")


@pytest.fixture
def frames(tmp_path, phantom_manifest):
    """A folder with two frames, one of them deeper down, and things that cannot be graded."""
    images = sorted((phantom_manifest.parent / "phantoms" / "images").iterdir())
    folder = tmp_path / "frames"
    (folder / "later").mkdir(parents=True)
    shutil.copy(images[0], folder / "b.png")
    shutil.copy(images[1], folder / "later" / "d.PNG")
    (folder / "a.png").write_bytes(b"")
    cv2.imwrite(str(folder / "c.png"), np.zeros((300, 400), np.uint8))
    (folder / "notes.txt").write_text("no frame")
    return folder


def _expected(path) -> tuple[list[int], np.ndarray]:
    frame = read_frame(path)
    proposal = propose_roi(frame, SECTOR)
    box = proposal.rectangle
    mean = crop_roi(frame, proposal.sector.mask, box).mean(dtype=float) / 255
    exponents = np.exp(mean * np.arange(4))
    return [box.top, box.left, box.height, box.width], exponents / exponents.sum()


def _answers(model, paths, folder, **options) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Patients and frames, as the tables hold them."""
    predict(paths, model=model, output_dir=folder / "answers", **options)
    read = [pd.read_csv(folder / "answers" / name, keep_default_na=False) for name in TABLES]
    return read[0], read[1]


def test_folder_is_searched_in_order_and_every_file_answered(model_path, frames, tmp_path):
    patients, found = _answers(model_path, [frames], tmp_path)
    assert list(found["frame"]) == ["a.png", "b.png", "c.png", "later/d.PNG"]
    assert list(patients["kind"]) == ["unable", "graded", "unable", "graded"]
    assert (patients["notice"] == NOTICE).all()
    assert (found["notice"] == NOTICE).all()
    for row in (1, 3):
        box, scores = _expected(frames / found.at[row, "frame"])
        assert found.at[row, "boxes"] == f"roi {' '.join(map(str, box))}"
        columns = ["p_normal", "p_mild", "p_moderate", "p_severe"]
        np.testing.assert_allclose(patients.loc[row, columns].astype(float), scores, atol=1e-5)
        assert patients.at[row, "grade"] == GRADES[scores.argmax()]
    summary = json.loads((tmp_path / "answers" / "predictions.json").read_text())
    assert summary["counts"] == {
        "patients": 4, "frames": 4, "graded": 2, "score_only": 0, "unable": 2, "passed_over": 1,
    }  # fmt: skip
    assert summary["passed_over"] == [{"file": "notes.txt", "reason": "no frame (.txt)"}]


def test_a_frame_that_cannot_be_graded_has_its_reason(model_path, frames, tmp_path):
    given = [frames / "a.png", frames / "c.png", frames / "gone.png"]
    patients, found = _answers(model_path, given, tmp_path)
    assert (patients["grade"] == "").all()
    assert found.at[0, "reason"] == "empty file (0 bytes)"
    assert "sector" in found.at[1, "reason"]
    assert found.at[2, "reason"].startswith("missing or unreadable file")


def test_a_folder_is_a_patient_when_asked(model_path, frames, tmp_path):
    patients, found = _answers(model_path, [frames], tmp_path, by_folder=True)
    assert list(patients["patient"]) == ["frames", "frames/later"]
    assert list(patients["num_frames"]) == [3, 1]
    assert list(patients["num_used"]) == [1, 1]
    assert list(found["patient"]) == ["frames"] * 3 + ["frames/later"]


def test_pictures_of_nobody_are_answered_one_by_one_with_a_word(model_path, frames):
    def advice(*paths, **options):
        return predict(paths, model=model_path, **options).advice

    assert "--patient folder joins" in advice(frames)
    assert advice(frames, by_folder=True) == ""
    assert advice(frames / "b.png") == ""
    rows = "path,patient_id,study_id\nb.png,P1,v1\nlater/d.PNG,P1,v2\na.png,P2,v3\n"
    (frames / "visits.csv").write_text(rows)
    assert advice(frames / "visits.csv").startswith("Patients with several study_id: 1. Their vis")
    (frames / "visits.csv").write_text(rows.replace("v2", "v1"))
    assert advice(frames / "visits.csv") == ""


@pytest.mark.parametrize(
    ("chances", "fat", "said"),
    [
        ((0.01, 0.25, 0.33, 0.41), 40.0, "Moderate (by the model's decision rule; the most "
         "probable one is Severe), fat 40 %"),
        ((0.1, 0.2, 0.5, 0.2), 20.0, "Moderate (by its probability; the score lies in Mild), fat "),
        ((0.1, 0.2, 0.5, 0.2), 40.0, "Moderate, fat 40 %"),
        ((0.1, 0.2, 0.5, 0.2), float("nan"), "Moderate\n"),
    ],
    ids=["rule", "band", "agree", "no_score"],
)  # fmt: skip
def test_a_grade_that_the_score_or_the_probabilities_would_not_give_is_explained(
    chances, fat, said
):
    probabilities = dict(zip(GRADES, chances, strict=True))
    answer = PatientAnswer(
        "P1", "graded", fat_percent=fat, fat_interval=(15.0, 76.0), grade="Moderate",
        probabilities=probabilities, contributions={"network": 1.2, "hepatorenal_db": 0.4},
    )  # fmt: skip
    text = patient_text(answer, 44)
    assert text.startswith(f"P1: {said}")
    scale = "grade" if np.isnan(fat) else "root of fat"
    assert text.endswith(f"adds to the {scale}: network +1.2, hepatorenal index +0.4")


def test_the_same_name_in_two_places_is_two_patients(model_path, frames, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(frames / "later" / "d.PNG", other / "b.png")
    patients, _ = _answers(model_path, [frames / "b.png", other / "b.png"], tmp_path)
    assert list(patients["patient"]) == ["b.png", "b.png (2)"]


def test_a_manifest_says_who_the_patients_are(model_path, frames, tmp_path):
    table = "path,patient_id,grade\nb.png,P1,Mild\nlater/d.PNG,P1,Mild\na.png,P2,\n,P3,\n"
    (frames / "labels.csv").write_text(table)
    patients, _ = _answers(model_path, [frames / "labels.csv"], tmp_path)
    assert list(patients["patient"]) == ["P1", "P2"]
    both = np.mean([_expected(frames / name)[1] for name in ("b.png", "later/d.PNG")], axis=0)
    assert float(patients.at[0, "p_severe"]) == pytest.approx(both[3], abs=1e-5)
    (frames / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"columns path and patient_id.*'other\.csv'"):
        predict([frames / "other.csv"], model=model_path)


def test_a_zip_is_read_where_it_is(model_path, frames, tmp_path):
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", frames)
    before = sorted(path.name for path in tmp_path.iterdir())
    patients, _ = _answers(model_path, [packed], tmp_path)
    assert sorted(patients["kind"]) == ["graded", "graded", "unable", "unable"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers", *before]


def test_a_damaged_zip_costs_nothing_but_itself(model_path, frames, tmp_path):
    shutil.make_archive(str(tmp_path / "packed"), "zip", frames)
    packed = tmp_path / "packed.zip"
    packed.write_bytes(packed.read_bytes()[:-40])
    found = predict([packed, frames / "b.png"], model=model_path)
    assert found.counts["graded"] == 1
    ((name, reason),) = found.passed_over
    assert name == "packed.zip"
    assert "zip archive" in reason
    with pytest.raises(ValueError, match=r"1 files passed over; packed\.zip: "):
        predict([packed], model=model_path)


def test_a_name_that_is_not_utf8_costs_nothing(model_path, frames, tmp_path):
    shutil.copy(frames / "b.png", os.fsencode(frames) + b"/\xff\xfe.png")
    patients, found = _answers(model_path, [frames], tmp_path)
    assert (patients["kind"] == "graded").sum() == 3
    assert "\\xff\\xfe.png" in set(found["frame"])


def test_what_a_spreadsheet_would_run_is_quoted(model_path, frames, tmp_path):
    shutil.copy(frames / "b.png", frames / "=1+1.png")
    patients, _ = _answers(model_path, [frames / "=1+1.png"], tmp_path)
    assert list(patients["patient"]) == ["'=1+1.png"]


def test_later_pages_are_named(model_path, frames, tmp_path):
    first = Image.open(frames / "b.png")
    first.save(frames / "two.tif", save_all=True, append_images=[first])
    found = predict([frames / "two.tif"], model=model_path)
    assert found.passed_over == (("two.tif", "1 later pages; the first is answered"),)
    assert found.counts["graded"] == 1


def test_a_model_among_the_frames_is_refused_with_the_new_command(
    model_path, phantom_bundle, frames, capsys
):
    for model in (model_path, phantom_bundle, f"{phantom_bundle}.zip"):
        assert cli.main(["predict", str(model), str(frames)]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"steatosis predict {frames} --model {model}" in error


def test_other_files_in_the_output_folder_stay(model_path, frames, tmp_path):
    (tmp_path / "frames.csv").write_text("path,grade\n")
    with pytest.raises(ValueError, match=r"earlier call.*'frames\.csv'"):
        predict([frames], model=model_path, output_dir=tmp_path)
    assert (tmp_path / "frames.csv").read_text() == "path,grade\n"
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "patients.csv").touch()  # of a call that was killed at its start
    for _ in range(2):  # its own answers are replaced
        predict([frames], model=model_path, output_dir=tmp_path / "again")


_WITH_LITTLE_ROOM = """
import resource, sys
from steatosis_tf import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("beyond", [-20, 20])
def test_where_the_disk_is_full_the_tables_end_with_a_whole_row(
    model_path, frames, tmp_path, beyond
):
    """The limit cuts a heading, or the first row."""
    words = ["predict", str(frames), "--model", str(model_path), "--output"]
    cli.main([*words, str(tmp_path / "whole")])
    whole = {name: (tmp_path / "whole" / name).read_bytes() for name in TABLES}
    room = max(content.index(b"\n") for content in whole.values()) + beyond
    done = subprocess.run(
        [sys.executable, "-c", _WITH_LITTLE_ROOM, str(room), *words, str(tmp_path / "cut")],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "error: Expected room on the disk. Received: File too large" in done.stderr
    assert not (tmp_path / "cut" / "predictions.json").exists()
    for name, content in whole.items():
        left = (tmp_path / "cut" / name).read_bytes()
        assert content.startswith(left)
        assert left.endswith(b"\n") or not left


def test_two_calls_do_not_write_into_one_folder(model_path, frames, tmp_path):
    folder = tmp_path / "out"
    predict([frames], model=model_path, output_dir=folder)
    before = {name: (folder / name).read_bytes() for name in (*TABLES, "predictions.json")}
    with FileLock(folder / ".lock"), pytest.raises(ValueError, match=r"'out', into which another"):
        predict([frames / "b.png"], model=model_path, output_dir=folder)
    assert before == {name: (folder / name).read_bytes() for name in before}
    predict([frames / "b.png"], model=model_path, output_dir=folder)  # the lock is free again


@pytest.mark.parametrize("kind", ["bundle", "network"])
def test_all_cores_answer_as_one(kind, phantom_bundle, frames, tmp_path, monkeypatch, request):
    """The same tables in the same order, also where a block ends within a patient."""
    model = phantom_bundle if kind == "bundle" else request.getfixturevalue("model_path")
    tables = {}
    for where, limit_s in (("here", 1e9), ("cores", 0)):
        monkeypatch.setattr("steatosis_tf.parallel._BEGUN_S", limit_s)
        monkeypatch.setattr("steatosis_tf.parallel._LEFT_S", 0)
        monkeypatch.setattr("steatosis_tf.deploy.predict._BLOCK_BYTES", 2e9 if limit_s else 5e5)
        found = predict([frames], model=model, output_dir=tmp_path / where, by_folder=True)
        tables[where] = [(tmp_path / where / name).read_bytes() for name in TABLES], found.patients
    assert tables["here"] == tables["cores"]
    assert found.counts["frames"] == 4


def test_the_documents_two_ways_to_open_a_model_give_what_predict_gives(
    model_path, frames, phantom_bundle, tmp_path, monkeypatch
):
    blocks = (REPOSITORY / "docs" / "deployment.md").read_text().split("```python\n")[1:]
    bare, explained = (block.split("```")[0] for block in blocks)
    monkeypatch.chdir(tmp_path)
    shutil.copy(frames / "b.png", "frame.png")
    shutil.copytree(phantom_bundle, "bundle")
    found: dict = {}
    exec(compile(bare, "the first", "exec"), found)
    (patient,) = predict("frame.png", model=model_path).patients
    assert found["probabilities"] == pytest.approx([*patient["probabilities"].values()], abs=1e-4)
    roi = open_model("bundle").look("", read_frame("frame.png"))
    found = {"pictures": roi.picture[np.newaxis, ..., np.newaxis]}
    exec(compile(explained, "the second", "exec"), found)
    (patient,) = predict("frame.png", model="bundle").patients
    assert found["score"][0] == pytest.approx(patient["frames"][0]["network_sqrt_fat"], abs=1e-4)


def test_one_path_is_one_path_not_its_letters(model_path, frames, monkeypatch):
    """A text is a sequence of letters, among them "/" and ".": whole folders."""
    monkeypatch.chdir(frames)
    for given in ("b.png", frames / "b.png", iter(["b.png"])):
        assert predict(given, model=model_path).counts["patients"] == 1


def test_figures_need_a_folder(model_path, frames):
    with pytest.raises(ValueError, match="--output DIR with --figures"):
        predict([frames], model=model_path, figures=True)


def test_a_bundle_answers_patients_with_all_that_it_knows(phantom_bundle, tmp_path, capsys):
    folder = tmp_path / "SIM90"
    folder.mkdir()
    frames = simulate_patient(90.0, num_frames=2, generator=np.random.default_rng(3),
                              size_px=(240, 320))[0]  # fmt: skip
    for number, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{number}.png"), frame)
    cv2.imwrite(str(folder / "black.png"), np.zeros((240, 320), np.uint8))
    output = tmp_path / "answers"
    words = ["predict", folder, "--patient", "folder", "--model", phantom_bundle, "--figures"]
    assert cli.main([*map(str, words), "--output", str(output)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("SIM90: ")
    assert "adds to the root of fat" in text
    assert "model: phantoms 1\n" in text
    assert NOTICE in text
    (answer,) = json.loads((output / "predictions.json").read_text())["patients"]
    assert answer["num_frames"] == 3
    assert answer["kind"] in ("graded", "score_only")
    assert answer["fat_interval"][0] <= answer["fat_percent"] <= answer["fat_interval"][1]
    assert set(answer["contributions"]) == {"network", "hepatorenal_db",
                                            "attenuation_db_per_depth", "diaphragm_db"}  # fmt: skip
    rows = pd.read_csv(output / "frames.csv", keep_default_na=False)
    for name in rows["figure"]:
        assert cv2.imread(str(output / name)) is not None
    assert rows.set_index("frame").at["black.png", "reason_code"] == "no_sector"


def test_a_sector_without_a_liver_is_told_from_no_sector(tmp_path, frames):
    path = _write_model(tmp_path / "liver.onnx", roi=RoiConfig(method="liver"))
    inside = find_sector(read_frame(frames / "b.png")).mask
    rows = 128 + 100 * np.sin(np.arange(inside.shape[0]) / 6)[:, None]
    stripes = rows + np.random.default_rng(0).normal(0, 3, inside.shape)
    cv2.imwrite(str(frames / "b.png"), np.where(inside, stripes, 0).astype(np.uint8))
    _, found = _answers(path, [frames / "b.png", frames / "c.png"], tmp_path)
    assert list(found["reason_code"]) == ["no_liver", "no_sector"]
    assert found["reason"][0].startswith("no liver found")


def test_a_model_of_beam_space_is_fed_beam_space(tmp_path, frames):
    config = RoiConfig(method="beamspace", depth_px=96, num_beams=80)
    path = _write_model(tmp_path / "beams.onnx", size_px=(96, 80), roi=config)
    found = _answers(path, [frames / "b.png"], tmp_path)[0].iloc[0]
    frame = read_frame(frames / "b.png")
    mean = beam_space(frame, find_sector(frame).fan, 96, 80).mean(dtype=float) / 255
    exponents = np.exp(mean * np.arange(4))
    columns = ["p_normal", "p_mild", "p_moderate", "p_severe"]
    np.testing.assert_allclose(found[columns].astype(float), exponents / exponents.sum(), atol=1e-5)
    with pytest.raises(ValueError, match=r"roi \(batch, 96, 80, 1\)"):
        predict([frames], model=_write_model(tmp_path / "square.onnx", roi=config))


@pytest.mark.parametrize("rule", ["mean", "log_odds", "median", "trimmed_mean", "vote"])
def test_frames_are_joined_as_the_model_was_evaluated(rule, phantom_manifest, tmp_path):
    """Frames that are sure of three grades: every rule makes something else of them."""
    props = {"steatosis.grades": json.dumps(GRADES), "steatosis.roi": '{"method": "sector"}',
             "steatosis.aggregation": rule}  # fmt: skip
    path = _write_model(tmp_path / "model.onnx", props=props, factors=(0, 4, 7, 9))
    images = sorted((phantom_manifest.parent / "phantoms" / "images").iterdir())[:3]
    frames = tmp_path / "frames"
    frames.mkdir()
    for image in images:
        shutil.copy(image, frames)
    (together,) = predict([frames], model=path, by_folder=True).patients
    alone = predict(sorted(frames.iterdir()), model=path).patients
    table = pd.DataFrame({"frame_id": list("abc"), "patient_id": "x", "grade": "Mild"})
    columns = ["p_normal", "p_mild", "p_moderate", "p_severe"]
    table[columns] = [list(one["probabilities"].values()) for one in alone]
    expected = patient_scores(table, rule)[columns].to_numpy()[0]
    np.testing.assert_allclose(list(together["probabilities"].values()), expected, atol=1e-6)


class _Sure:
    """In place of onnxruntime: quite sure of the grade that the first pixel says."""

    def run(self, outputs, feed):
        return [np.eye(4, dtype=np.float32)[feed["roi"][:, 0, 0, 0]]]


def test_frames_that_agree_on_no_grade_are_no_answer():
    model = BareNetwork("m.onnx", "", _Sure(), SECTOR, "median")
    looks = [Look(FrameAnswer(str(n), "graded"), np.full((2, 2), n, np.uint8)) for n in range(3)]
    answer = model.answer("p", looks)
    assert (answer.kind, answer.reason_code) == ("unable", "frames_disagree")


def test_a_grade_typed_into_the_sector_changes_nothing(model_path, frames, tmp_path):
    frame = read_frame(frames / "b.png")
    box = propose_roi(frame, SECTOR).rectangle
    typed = frame.copy()
    for row in range(1, 5):
        place = (box.left + 4, box.top + row * box.height // 5)
        cv2.putText(typed, "severe fatty", place, cv2.FONT_HERSHEY_SIMPLEX, 0.6, 255, 2)
    cv2.imwrite(str(frames / "e.png"), typed)
    patients, _ = _answers(model_path, [frames / "b.png", frames / "e.png"], tmp_path)
    before, after = patients["p_severe"].astype(float)
    unpainted = crop_roi(typed, find_sector(typed).mask, box).mean(dtype=float) / 255
    assert np.exp(3 * unpainted) / np.exp(unpainted * np.arange(4)).sum() - before > 0.005
    assert after == pytest.approx(before, abs=0.002)


def test_no_tensorflow_is_needed(model_path, frames, tmp_path):
    script = (
        "import sys\n"
        "from steatosis_tf.deploy.predict import predict\n"
        "found = predict([sys.argv[2]], model=sys.argv[1])\n"
        "heavy = {'tensorflow', 'keras', 'mlflow', 'tensorflow_datasets', 'tf2onnx'}\n"
        "print(found.counts['graded'], sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(model_path), str(frames)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2 []\n"


def test_stranger_models_are_refused(tmp_path, frames):
    foreign = _write_model(tmp_path / "foreign.onnx", props={})
    with pytest.raises(ValueError, match=r"model of steatosis_tf.*model='foreign\.onnx'.*grades="):
        predict([frames], model=foreign)
    other = {"steatosis.grades": '["Normal", "Fatty"]'}
    with pytest.raises(ValueError, match=r'grades=\["Normal", "Fatty"\]'):
        predict([frames], model=_write_model(tmp_path / "two.onnx", props=other))
    with pytest.raises(ValueError, match=r"inputs=.*'batch', 64, 64, 1"):
        predict([frames], model=_write_model(tmp_path / "small.onnx", size_px=(64, 64)))
    unreadable = {"steatosis.grades": "Normal, Mild"}
    with pytest.raises(ValueError, match=r"model of steatosis_tf.*model='text\.onnx'"):
        predict([frames], model=_write_model(tmp_path / "text.onnx", props=unreadable))


def test_what_is_no_onnx_file_is_refused(tmp_path, frames, model_path):
    with pytest.raises(ValueError, match=r"model='gone\.onnx', which is no file"):
        predict([frames], model=tmp_path / "gone.onnx")
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(model_path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"model='cut\.onnx', which has bytes that are no ONNX"):
        predict([frames], model=cut)


def test_no_frames_is_an_error(model_path, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"Expected frames \(\.png.*Received: none"):
        predict([tmp_path / "empty"], model=model_path)
    with pytest.raises(ValueError, match="Received: none"):
        predict([], model=model_path)
    with pytest.raises(ValueError, match=r"that exist\. Received: 'gone', .*not there, and 1 more"):
        predict(["gone", "lost.png"], model=model_path)


_NO_PROBABILITIES = {
    "NaN": ("Softmax", (np.nan,) * 4),
    "one NaN": ("Identity", (0, 0, 0, np.nan)),
    "infinite": ("Identity", (0, 0, 0, np.inf)),
    "negative and above 1": ("Identity", (-3 / 255, 5 / 255, 5 / 255, 10 / 255)),
    "all 0": ("Identity", (0, 0, 0, 0)),
    "sum not 1": ("Sigmoid", (0, 0, 0, 0)),
}


@pytest.mark.parametrize("answer", _NO_PROBABILITIES)
def test_a_model_without_probabilities_grades_nothing(tmp_path, frames, answer, capsys):
    last, factors = _NO_PROBABILITIES[answer]
    model = _write_model(tmp_path / "broken.onnx", last=last, factors=factors)
    output = tmp_path / "answers"
    words = ["predict", str(frames), "--model", str(model), "--output", str(output)]
    assert cli.main(words) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Expected probabilities within 0 to 1 that sum to 1." in captured.err
    assert "'broken.onnx'. The model is at fault" in captured.err
    # What was answered before stands, and nothing says that the call came to its end.
    assert list(pd.read_csv(output / "patients.csv")["patient"]) == ["a.png"]
    assert not (output / "predictions.json").exists()


def _hash_again(model) -> None:
    digest = weights_sha256(model.graph)
    for entry in model.metadata_props:
        if entry.key == WEIGHTS_KEY:
            entry.value = digest


@pytest.mark.parametrize(
    ("scores", "sound"),
    [
        ([0.1, 0.2, 0.3, 0.4], True),
        ([0, 0, 0, 1], True),
        ([0.25, 0.25, 0.25, 0.2505], True),  # rounding
        ([0.25, 0.25, 0.25, 0.26], False),
        ([-0.1, 0.3, 0.4, 0.4], False),
        ([np.inf, -np.inf, 0, 1], False),
        ([np.nan, 0, 0, 1], False),
    ],
)
def test_what_probabilities_are(scores, sound):
    assert list(are_probabilities(np.array([scores], np.float32))) == [sound]


def test_a_flipped_bit_in_the_weights_is_refused(tmp_path, frames):
    content = bytearray(_write_model(tmp_path / "model.onnx").read_bytes())
    at = content.index(np.float32(2 / 255).tobytes())
    for bit in range(32):
        damaged = content.copy()
        damaged[at + bit // 8] ^= 1 << bit % 8
        (tmp_path / "copy.onnx").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"SHA-256 .*model='copy\.onnx' with .*Copy it again"):
            predict([frames], model=tmp_path / "copy.onnx")


def test_hash_travels_with_a_file_written_again(tmp_path, frames, capfd):
    model = onnx.load(_write_model(tmp_path / "model.onnx"))
    model.producer_name = "another program"
    model.graph.initializer.insert(0, onnx.numpy_helper.from_array(np.ones((2, 3)), "unused"))
    _hash_again(model)
    model.graph.initializer.append(model.graph.initializer.pop(0))
    onnx.save(model, str(tmp_path / "again.onnx"))
    found = predict([frames / "b.png"], model=tmp_path / "again.onnx")
    assert found.counts["graded"] == 1
    assert "hash" not in capfd.readouterr().err


@pytest.mark.parametrize("change", ["name", "shape", "type"])
def test_hash_covers_name_shape_and_type(tmp_path, change):
    model = onnx.load(_write_model(tmp_path / "model.onnx"))
    before = weights_sha256(model.graph)
    (tensor,) = model.graph.initializer
    if change == "name":
        tensor.name = "others"
    elif change == "shape":
        tensor.dims[:] = [4, 1]
    else:
        tensor.data_type = onnx.TensorProto.INT32
    assert weights_sha256(model.graph) != before


def test_a_file_without_a_hash_is_taken_with_one_line(tmp_path, frames, capfd):
    older = {"steatosis.grades": json.dumps(GRADES), "steatosis.roi": json.dumps(asdict(SECTOR))}
    model = _write_model(tmp_path / "older.onnx", props=older)
    assert predict([frames / "b.png"], model=model).counts["graded"] == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if "older.onnx" in line]
    assert len(lines) == 1
    assert "carries no hash of its weights" in lines[0]
    assert "how its run joined a patient's frames, so the mean is taken, and" in lines[0]
    assert "whether marks were painted out of its frames, as they are here: an older" in lines[0]
    with pytest.raises(ValueError, match="rule in JSON, as earlier versions had it"):
        predict([frames / "b.png"], model=tmp_path / "fat_model.json")


@pytest.mark.parametrize("content", [b"\x0b", b"\x3a\x05abc", b"\xff" * 30, b"\x3a"])
def test_what_is_no_protobuf_is_refused(content):
    with pytest.raises(ValueError, match="bytes that are no ONNX"):
        open_network(content, "model.onnx", "")
