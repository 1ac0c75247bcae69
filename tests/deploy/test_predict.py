"""Prediction needs onnxruntime only, gives every frame a grade or a reason, and refuses strangers.

The model here is written by hand: softmax of (0, m, 2 m, 3 m) of the ROI's mean m over 255.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict

import cv2
import numpy as np
import onnx
import pandas as pd
import pytest

from steatosis_tf.config import RoiConfig
from steatosis_tf.deploy.predict import predict_frames, write_predictions
from steatosis_tf.grades import GRADES, NOTICE
from steatosis_tf.roi.columns import propose_roi
from steatosis_tf.roi.crop import crop_roi
from steatosis_tf.sources.folder import read_frame

_COLUMNS = ["path", "grade", "p_normal", "p_mild", "p_moderate", "p_severe", "roi_top",
            "roi_left", "roi_height", "roi_width", "reason", "notice"]  # fmt: skip


SECTOR = RoiConfig(method="sector")


def _write_model(path, *, size_px: int = 224, props: dict[str, str] | None = None):
    helper, kinds = onnx.helper, onnx.TensorProto
    factors = np.array([[0, 1 / 255, 2 / 255, 3 / 255]], np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["roi"], ["pixels"], to=kinds.FLOAT),
            helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2], keepdims=0),
            helper.make_node("MatMul", ["mean", "factors"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "mean_grader",
        [helper.make_tensor_value_info("roi", kinds.UINT8, ["batch", size_px, size_px, 1])],
        [helper.make_tensor_value_info("probabilities", kinds.FLOAT, ["batch", 4])],
        [onnx.numpy_helper.from_array(factors, "factors")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    ours = {"steatosis.grades": json.dumps(GRADES), "steatosis.roi": json.dumps(asdict(SECTOR))}
    given = ours if props is None else props
    helper.set_model_props(model, given)
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


def test_folder_is_searched_in_order_and_every_frame_answered(model_path, frames):
    found = predict_frames(model_path, [frames])
    assert list(found.columns) == _COLUMNS
    names = ["a.png", "b.png", "c.png", "later/d.PNG"]
    assert list(found["path"]) == [(frames / name).as_posix() for name in names]
    assert (found["notice"] == NOTICE).all()
    for row in (1, 3):
        box, scores = _expected(found.at[row, "path"])
        assert list(found.loc[row, _COLUMNS[6:10]]) == box
        np.testing.assert_allclose(list(found.loc[row, _COLUMNS[2:6]]), scores, atol=1e-5)
        assert found.at[row, "grade"] == GRADES[scores.argmax()]
        assert found.at[row, "reason"] == ""


def test_refused_frames_have_their_reason_and_no_grade(model_path, frames):
    found = predict_frames(model_path, [frames / "a.png", frames / "c.png", frames / "gone.png"])
    assert list(found.columns) == _COLUMNS
    assert found.at[0, "reason"] == "empty file (0 bytes)"
    assert "sector" in found.at[1, "reason"]
    assert found.at[2, "reason"].startswith("missing or unreadable file")
    assert (found["grade"] == "").all()
    assert found[_COLUMNS[2:10]].isna().all(axis=None)


def test_frames_come_back_in_the_order_given_whatever_the_batch(model_path, frames):
    given = [frames / "b.png", frames / "a.png", frames / "later" / "d.PNG"] * 15  # 45 frames
    found = predict_frames(model_path, given)
    assert list(found["path"]) == [path.as_posix() for path in given]
    assert found["p_severe"].nunique() == 2
    for start in range(0, 45, 3):
        pd.testing.assert_frame_equal(
            found[start : start + 3].reset_index(drop=True), found[:3], rtol=1e-5
        )


def test_written_table_has_whole_px(model_path, frames, tmp_path):
    write_predictions(predict_frames(model_path, [frames]), tmp_path / "out" / "predictions.csv")
    table = pd.read_csv(tmp_path / "out" / "predictions.csv", dtype=str, keep_default_na=False)
    assert list(table.columns) == _COLUMNS
    assert table.at[1, "roi_top"] == str(_expected(frames / "b.png")[0][0])
    assert list(table.loc[0, _COLUMNS[1:10]]) == [""] * 9


def test_no_tensorflow_is_needed(model_path, frames, tmp_path):
    script = (
        "import sys\n"
        "from steatosis_tf.deploy.predict import predict_frames\n"
        "found = predict_frames(sys.argv[1], [sys.argv[2]])\n"
        "heavy = {'tensorflow', 'keras', 'mlflow', 'tensorflow_datasets', 'tf2onnx', 'onnx'}\n"
        "print((found['grade'] != '').sum(), sorted(heavy & set(sys.modules)))\n"
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
        predict_frames(foreign, [frames])
    other = {"steatosis.grades": '["Normal", "Fatty"]'}
    with pytest.raises(ValueError, match=r'grades=\["Normal", "Fatty"\]'):
        predict_frames(_write_model(tmp_path / "two.onnx", props=other), [frames])
    with pytest.raises(ValueError, match=r"inputs=\[\[64, 64, 1\]\]"):
        predict_frames(_write_model(tmp_path / "small.onnx", size_px=64), [frames])
    unreadable = {"steatosis.grades": "Normal, Mild"}
    with pytest.raises(ValueError, match=r"model of steatosis_tf.*model='text\.onnx'"):
        predict_frames(_write_model(tmp_path / "text.onnx", props=unreadable), [frames])


def test_what_is_no_onnx_file_is_refused(tmp_path, frames, model_path):
    with pytest.raises(ValueError, match=r"model='gone\.onnx', which is no file"):
        predict_frames(tmp_path / "gone.onnx", [frames])
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(model_path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"model='cut\.onnx', which onnxruntime refuses"):
        predict_frames(cut, [frames])


def test_no_frames_is_an_error(model_path, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"Expected frames \(\.png.*Received: none"):
        predict_frames(model_path, [tmp_path / "empty"])
    with pytest.raises(ValueError, match="Received: none"):
        predict_frames(model_path, [])
