"""Prediction needs onnxruntime only, gives every frame a grade or a reason, and refuses strangers.

The model here is written by hand: softmax of (0, m, 2 m, 3 m) of the ROI's mean m over 255.
"""

import io
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

from steatosis_tf import cli
from steatosis_tf.config import RoiConfig
from steatosis_tf.deploy.onnx_weights import WEIGHTS_KEY, weights_sha256
from steatosis_tf.deploy.predict import are_probabilities, predict_frames, write_predictions
from steatosis_tf.grades import GRADES, NOTICE
from steatosis_tf.roi.propose import propose_roi
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.roi.views import beam_space, crop_roi
from steatosis_tf.sources.images import read_frame

_COLUMNS = ["path", "grade", "p_normal", "p_mild", "p_moderate", "p_severe", "roi_top",
            "roi_left", "roi_height", "roi_width", "reason", "notice"]  # fmt: skip


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
        ours[WEIGHTS_KEY] = weights_sha256(io.BytesIO(model.SerializeToString()))
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


def test_a_model_of_beam_space_is_fed_beam_space(tmp_path, frames):
    config = RoiConfig(method="beamspace", depth_px=96, num_beams=80)
    path = _write_model(tmp_path / "beams.onnx", size_px=(96, 80), roi=config)
    found = predict_frames(path, [frames]).iloc[1]
    frame = read_frame(found["path"])
    sector = find_sector(frame)
    mean = beam_space(frame, sector.fan, 96, 80).mean(dtype=float) / 255
    exponents = np.exp(mean * np.arange(4))
    expected = exponents / exponents.sum()
    np.testing.assert_allclose(list(found[_COLUMNS[2:6]]), expected, atol=1e-5)
    rows, columns = np.nonzero(sector.mask)
    assert found["roi_top"] == rows.min()
    assert found["roi_width"] == columns.max() + 1 - columns.min()
    with pytest.raises(ValueError, match="input 96 x 80 x 1"):
        predict_frames(_write_model(tmp_path / "square.onnx", roi=config), [frames])


def test_a_grade_typed_into_the_sector_changes_nothing(model_path, frames):
    frame = read_frame(frames / "b.png")
    box = propose_roi(frame, SECTOR).rectangle
    typed = frame.copy()
    for row in range(1, 5):
        place = (box.left + 4, box.top + row * box.height // 5)
        cv2.putText(typed, "severe fatty", place, cv2.FONT_HERSHEY_SIMPLEX, 0.6, 255, 2)
    cv2.imwrite(str(frames / "e.png"), typed)
    before, after = predict_frames(model_path, [frames / "b.png", frames / "e.png"])["p_severe"]
    unpainted = crop_roi(typed, find_sector(typed).mask, box).mean(dtype=float) / 255
    assert np.exp(3 * unpainted) / np.exp(unpainted * np.arange(4)).sum() - before > 0.005
    assert after == pytest.approx(before, abs=0.002)


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
        predict_frames(_write_model(tmp_path / "small.onnx", size_px=(64, 64)), [frames])
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


_NO_PROBABILITIES = {
    "NaN": ("Softmax", (np.nan,) * 4),
    "one NaN": ("Identity", (0, 0, 0, np.nan)),
    "infinite": ("Identity", (0, 0, 0, np.inf)),
    "negative and above 1": ("Identity", (-3 / 255, 5 / 255, 5 / 255, 10 / 255)),
    "all 0": ("Identity", (0, 0, 0, 0)),
    "sum not 1": ("Sigmoid", (0, 0, 0, 0)),
}


@pytest.mark.parametrize("answer", _NO_PROBABILITIES)
def test_a_model_without_probabilities_grades_nothing(tmp_path, frames, answer):
    last, factors = _NO_PROBABILITIES[answer]
    model = _write_model(tmp_path / "broken.onnx", last=last, factors=factors)
    found = predict_frames(model, [frames])
    assert list(found["grade"]) == [""] * 4
    assert found[_COLUMNS[2:6]].isna().all(axis=None)
    for row in (1, 3):
        assert found.at[row, "reason"].startswith("the model is at fault: expected probabilities")
    assert found.at[0, "reason"] == "empty file (0 bytes)"


def test_one_frame_without_probabilities_fails_the_run(tmp_path, frames, capsys):
    # Probabilities of the darker frame are NaN: the root of a negative number.
    means = [_expected(frames / name)[1] for name in ("b.png", "later/d.PNG")]
    levels = sorted(float(np.log(scores[1] / scores[0])) for scores in means)
    model = onnx.load(_write_model(tmp_path / "model.onnx"))
    level = onnx.numpy_helper.from_array(np.float32(np.mean(levels)), "level")
    model.graph.initializer.append(level)
    softmax = model.graph.node.pop()
    make = onnx.helper.make_node
    model.graph.node.extend([
        make("Slice", ["logits", "one", "two", "one"], ["second"]),
        make("Sub", ["second", "level"], ["distance"]),
        make("Sqrt", ["distance"], ["root"]),
        make("Mul", ["root", "nothing"], ["zero"]),
        make("Add", ["logits", "zero"], ["sum"]),
        make("Softmax", ["sum"], softmax.output, axis=1),
    ])  # fmt: skip
    for name, value in (("one", [1]), ("two", [2])):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), name))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0), "nothing"))
    _hash_again(model)
    onnx.save(model, str(tmp_path / "half.onnx"))
    output = tmp_path / "predictions.csv"
    code = cli.main(["predict", str(tmp_path / "half.onnx"), str(frames), "--output", str(output)])
    assert code == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error: Expected probabilities for every ROI. Received: none for 1 of 4" in captured.err
    table = pd.read_csv(output, keep_default_na=False)
    assert sorted(table["grade"] != "") == [False, False, False, True]


def _hash_again(model) -> None:
    digest = weights_sha256(io.BytesIO(model.SerializeToString()))
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
        with pytest.raises(ValueError, match=r"SHA-256 .*model='copy\.onnx' with .*copy it again"):
            predict_frames(tmp_path / "copy.onnx", [frames])


def test_hash_travels_with_a_file_written_again(tmp_path, frames, capfd):
    model = onnx.load(_write_model(tmp_path / "model.onnx"))
    model.producer_name = "another program"
    model.graph.initializer.insert(0, onnx.numpy_helper.from_array(np.ones((2, 3)), "unused"))
    _hash_again(model)
    model.graph.initializer.append(model.graph.initializer.pop(0))
    onnx.save(model, str(tmp_path / "again.onnx"))
    assert (predict_frames(tmp_path / "again.onnx", [frames / "b.png"])["grade"] != "").all()
    assert "hash" not in capfd.readouterr().err


@pytest.mark.parametrize("change", ["name", "shape", "type"])
def test_hash_covers_name_shape_and_type(tmp_path, change):
    model = onnx.load(_write_model(tmp_path / "model.onnx"))
    before = weights_sha256(io.BytesIO(model.SerializeToString()))
    (tensor,) = model.graph.initializer
    if change == "name":
        tensor.name = "others"
    elif change == "shape":
        tensor.dims[:] = [4, 1]
    else:
        tensor.data_type = onnx.TensorProto.INT32
    assert weights_sha256(io.BytesIO(model.SerializeToString())) != before


def test_a_file_without_a_hash_is_taken_with_one_line(tmp_path, frames, capfd):
    older = {"steatosis.grades": json.dumps(GRADES), "steatosis.roi": json.dumps(asdict(SECTOR))}
    model = _write_model(tmp_path / "older.onnx", props=older)
    assert predict_frames(model, [frames / "b.png"]).at[0, "grade"] in GRADES
    lines = [line for line in capfd.readouterr().err.splitlines() if "older.onnx" in line]
    assert len(lines) == 1
    assert "carries no hash of its weights" in lines[0]


@pytest.mark.parametrize("content", [b"\x0b", b"\x3a\x05abc", b"\xff" * 30, b"\x3a"])
def test_what_is_no_protobuf_has_no_hash(content):
    with pytest.raises(ValueError, match=r"protobuf|reaches out"):
        weights_sha256(io.BytesIO(content))
