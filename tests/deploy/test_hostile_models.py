"""Whatever is given to `--model` ends in one line: it neither hangs nor fills the memory."""

import json
import os
import shutil
import time
import zipfile

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from steatosis_tf import cli
from steatosis_tf.deploy import onnx_file
from steatosis_tf.files import write_json, write_sums
from steatosis_tf.grades import GRADES
from steatosis_tf.sources.phantom.study import simulate_patient
from tests.deploy.test_bundle import _seal

_OURS = {"steatosis.grades": json.dumps(GRADES), "steatosis.roi": '{"method": "sector"}'}
_HEAD = [
    helper.make_node("Cast", ["roi"], ["pixels"], to=TensorProto.FLOAT),
    helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2], keepdims=0),
]
_FOUR = helper.make_node("Concat", ["mean"] * 4, ["four"], axis=1)
_LAST = helper.make_node("Softmax", ["four"], ["probabilities"], axis=1)
_FALSE = numpy_helper.from_array(np.array(True), "always")


def model(
    nodes=(*_HEAD, _FOUR, _LAST), weights=(), *, shape=("batch", 224, 224, 1),
    kind=TensorProto.UINT8, outputs=("probabilities",), props=None, more_inputs=(),
):  # fmt: skip
    """The smallest network that is taken, and whatever is changed of it."""
    graph = helper.make_graph(
        list(nodes), "g",
        [helper.make_tensor_value_info("roi", kind, list(shape)), *more_inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in outputs],
        list(weights),
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(proto, _OURS | (props or {}))
    return proto


def integers(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def external() -> onnx.TensorProto:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "weights")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    return tensor


def promised(*shape: int) -> onnx.TensorProto:
    """Weights that are stated and absent."""
    return TensorProto(name="weights", data_type=TensorProto.FLOAT, dims=shape)


def endless() -> onnx.ModelProto:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["goes"])], "body",
        [helper.make_tensor_value_info("step", TensorProto.INT64, []),
         helper.make_tensor_value_info("go", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("goes", TensorProto.BOOL, [])],
    )  # fmt: skip
    loop = helper.make_node("Loop", ["", "always"], [], body=body)
    return model((*_HEAD, _FOUR, _LAST, loop), [_FALSE])


def large_at_run_time() -> onnx.ModelProto:
    """Each step joins four of what was there: 24 of them are 10^18 bytes."""
    steps = [helper.make_node("Concat", [f"x{n}"] * 4, [f"x{n + 1}"], axis=1) for n in range(24)]
    first = helper.make_node("Cast", ["roi"], ["x0"], to=TensorProto.FLOAT)
    mean = helper.make_node("ReduceMean", ["x24"], ["mean"], axes=[1, 2], keepdims=0)
    return model((first, *steps, mean, _FOUR, _LAST))


def large_when_opened() -> onnx.ModelProto:
    fill = helper.make_node("ConstantOfShape", ["size"], ["large"])
    mean = helper.make_node("ReduceMean", ["large"], ["zero"], keepdims=0)
    add = helper.make_node("Add", ["four", "zero"], ["probabilities"])
    return model((*_HEAD, _FOUR, fill, mean, add), [integers("size", 20_000_000_000)])


def of_many_parts() -> onnx.ModelProto:
    proto = model()
    nodes = [helper.make_node("Identity", ["mean"], [f"y{n}"]) for n in range(40_000)]
    proto.graph.node.extend(nodes)
    return proto


HOSTILE = {
    "an endless loop": (endless, "a graph inside an operator"),
    "a custom operator": (
        lambda: model((*_HEAD, _FOUR, _LAST, helper.make_node("Do", ["roi"], ["y"], domain="x"))),
        "an operator that is not ONNX's own",
    ),
    "weights elsewhere": (lambda: model(weights=[external()]), "weights in another file"),
    "stated gigabytes": (
        lambda: model(weights=[promised(1 << 20, 1 << 20)]), "of a size that the file does not"
    ),
    "very many axes": (lambda: model(weights=[promised(*[2] * 100)]), "more than 64 axes"),
    "a negative size": (lambda: model(weights=[promised(-1)]), "of a size that the file does not"),
    "stated gigabytes in an operator": (
        lambda: model((*_HEAD, _FOUR, _LAST, helper.make_node("Constant", [], ["y"],
                                                             value=promised(1 << 40)))),
        "of a size that the file does not",
    ),
    "gigabytes when opened": (large_when_opened, "answers a black frame within"),
    "gigabytes at run time": (large_at_run_time, "answers a black frame within"),
    "very many operators": (of_many_parts, "more than 10000 weights and operators"),
    "an operator that is none": (
        lambda: model((*_HEAD, _FOUR, _LAST, helper.make_node("NoSuch", ["roi"], ["y"]))),
        "which onnxruntime refuses",
    ),
    "a float input": (
        lambda: model((helper.make_node("Identity", ["roi"], ["pixels"]), *_HEAD[1:], _FOUR, _LAST),
                      kind=TensorProto.FLOAT), "tensor(float)",
    ),
    "one frame at a time": (lambda: model(shape=(1, 224, 224, 1)), "batch any number"),
    "another size": (lambda: model(shape=("batch", 64, 64, 1)), "['batch', 64, 64, 1]"),
    "a second input": (
        lambda: model(more_inputs=[helper.make_tensor_value_info("age", TensorProto.FLOAT, [1])]),
        "age",
    ),
    "another output": (
        lambda: model((*_HEAD, _FOUR, helper.make_node("Softmax", ["four"], ["said"], axis=1)),
                      outputs=("said",)), "outputs=['said']",
    ),
    "three grades": (
        lambda: model((*_HEAD, helper.make_node("Concat", ["mean"] * 3, ["four"], axis=1), _LAST),
                      outputs=()), "outputs",
    ),
    "one answer for all frames": (
        lambda: model((*_HEAD, _FOUR,
                       helper.make_node("ReduceMean", ["four"], ["probabilities"], axes=[0]))),
        "float32 outputs for each frame",
    ),
    "other grades": (lambda: model(props={"steatosis.grades": '["Fatty"]'}), '["Fatty"]'),
    "no grades": (lambda: model(props={"steatosis.grades": ""}), "grades="),
    "a newer region": (
        lambda: model(props={"steatosis.roi": '{"method": "kidney"}',
                             "steatosis.steatosis_tf": "7.0"}), "which version 7.0 wrote",
    ),
    "a newer field": (
        lambda: model(props={"steatosis.roi": '{"method": "sector", "lobe": 2}'}), "lobe",
    ),
    "a region that is no JSON": (
        lambda: model(props={"steatosis.roi": "liver"}), "Received: liver"
    ),
    "a region nested deep": (
        lambda: model(props={"steatosis.roi": "[" * 100_000}), "Received: [[["
    ),
    "a region without numbers": (
        lambda: model(props={"steatosis.roi": '{"method": "beamspace", "depth_px": "x"}'}),
        "depth_px",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    path = tmp_path_factory.mktemp("frames") / "frame.png"
    generator = np.random.default_rng(0)
    shown = simulate_patient(50.0, num_frames=1, generator=generator, size_px=(240, 320))[0]
    cv2.imwrite(str(path), shown[0])
    return path


def refusal(frame, path, capfd) -> str:
    """The one line that `predict` says, on stderr alone, within seconds."""
    start = time.process_time()
    assert cli.main(["predict", str(frame), "--model", str(path)]) == 1
    assert time.process_time() - start < 10
    captured = capfd.readouterr()
    assert captured.out == ""
    said = captured.err.strip()
    assert said.startswith("error: Expected "), said
    assert "Received: " in said
    assert "\n" not in said
    assert len(said) < 800
    return said


def test_the_smallest_network_is_taken(frame, tmp_path, capfd):
    onnx.save(model(), str(tmp_path / "model.onnx"))
    assert cli.main(["predict", str(frame), "--model", str(tmp_path / "model.onnx")]) == 0
    assert "1 graded" in capfd.readouterr().out


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_model_is_refused_in_one_line(name, frame, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(onnx_file, "_MAX_MORE_BYTES", 128 << 20)  # to be quick
    made, phrase = HOSTILE[name]
    (tmp_path / "model.onnx").write_bytes(made().SerializeToString())
    said = refusal(frame, tmp_path / "model.onnx", capfd)
    assert phrase in said
    assert "model.onnx" in said


def test_a_network_that_takes_too_long_is_stopped(frame, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(onnx_file, "_MAX_SECONDS", 1.0)
    size = 1500
    grow = helper.make_node("Expand", ["square", "size"], ["x0"])
    steps = [helper.make_node("MatMul", [f"x{n}"] * 2, [f"x{n + 1}"]) for n in range(300)]
    square = helper.make_node("ReduceMean", ["pixels"], ["square"], axes=[1, 2, 3], keepdims=1)
    flat = helper.make_node("ReduceMean", ["x300"], ["row"], axes=[2, 3], keepdims=0)
    four = helper.make_node("Concat", ["row"] * 4, ["four"], axis=1)
    nodes = (_HEAD[0], square, grow, *steps, flat, four, _LAST)
    slow = model(nodes, [integers("size", 1, 1, size, size)])
    onnx.save(slow, str(tmp_path / "model.onnx"))
    assert "answers a black frame within" in refusal(frame, tmp_path / "model.onnx", capfd)


def write_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", bytes(100))


ODD = {
    "model.keras": write_zip,
    "model.skops": write_zip,
    "model.zip": write_zip,
    "empty.onnx": lambda path: path.write_bytes(b""),
    "noise.onnx": lambda path: path.write_bytes(bytes(range(1, 256))),
    "model.pt": lambda path: path.write_bytes(b"\x80\x04cposix\nsystem\n"),
    "folder": lambda path: path.mkdir(),
    "gone.onnx": lambda path: None,
    "pipe.onnx": os.mkfifo,
    "large.onnx": lambda path: path.open("wb").truncate((1 << 30) + 1),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_model_is_refused_in_one_line(name, frame, tmp_path, capfd):
    ODD[name](tmp_path / name)
    said = refusal(frame, tmp_path / name, capfd)
    assert name in said or "model.onnx" in said


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about.update(roi={"method": "kidney"}),
        lambda about: about.update(roi=[]),
        lambda about: about["grading"].update(parts=[]),
        lambda about: about["grading"].update(calibration=3),
        lambda about: about["grading"]["parts"][0]["rule"].update(fill=[0.0] * 3),
        lambda about: about.pop("grading"),
    ],
    ids=["kidney", "no roi", "no parts", "no calibration", "another width", "no rule"],
)
def test_a_bundle_of_another_kind_is_refused_in_one_line(
    change, phantom_bundle, frame, tmp_path, capfd
):
    folder = shutil.copytree(phantom_bundle, tmp_path / "copy")
    about = json.loads((folder / "bundle.json").read_text())
    change(about)
    write_json(about, folder / "bundle.json")
    write_sums(folder)
    refusal(frame, folder, capfd)


def test_a_hostile_network_in_a_bundle_is_refused(phantom_bundle, frame, tmp_path, capfd):
    folder = shutil.copytree(phantom_bundle, tmp_path / "copy")
    (folder / "model.onnx").write_bytes(endless().SerializeToString())
    _seal(folder)
    assert "a graph inside an operator" in refusal(frame, folder, capfd)
