"""A bundle is what was written or is refused with one line; ONNX alone says what Keras says."""

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from experiments.explanation import explain_places
from steatosis_tf import cli
from steatosis_tf.deploy.bundle import find_faults, open_bundle
from steatosis_tf.deploy.bundle_write import join_rule, seal_again, taps_of
from steatosis_tf.deploy.figures import draw_frame
from steatosis_tf.deploy.frames import look_at
from steatosis_tf.deploy.onnx_file import foreign_parts
from steatosis_tf.deploy.tables import patient_text
from steatosis_tf.files import write_json, write_sums
from steatosis_tf.grades import NOTICE
from steatosis_tf.sources.phantom.study import simulate_patient


@pytest.fixture
def copy(phantom_bundle, tmp_path):
    """A bundle that may be damaged."""
    return shutil.copytree(phantom_bundle, tmp_path / "copy")


def _frames(fat: float = 70.0) -> np.ndarray:
    return simulate_patient(
        fat, num_frames=2, generator=np.random.default_rng(5), size_px=(240, 320)
    )[0]


def _seal(folder) -> None:
    """New hashes, as somebody who changes a bundle on purpose would write them."""
    import hashlib

    about = json.loads((folder / "bundle.json").read_text())
    for name in about["files"]:
        about["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    write_json(about, folder / "bundle.json")
    write_sums(folder)


def test_folder_and_zip_give_one_answer(phantom_bundle):
    opened = [open_bundle(path) for path in (phantom_bundle, f"{phantom_bundle}.zip")]
    assert opened[0].sha256 == opened[1].sha256
    looks = [look_at(f"{number}", one, opened[0].roi.view) for number, one in enumerate(_frames())]
    first, second = (bundle.answer("P1", looks) for bundle in opened)
    assert first == second
    assert first.kind == "graded"
    assert first.num_used >= 1


def test_the_answer_is_that_of_the_rule_on_the_networks_features(phantom_bundle):
    bundle = open_bundle(phantom_bundle)
    looks = [look_at(f"{number}", one, bundle.roi.view) for number, one in enumerate(_frames())]
    answer = bundle.answer("P1", looks, maps=True)
    said = bundle.run(np.stack([look.picture for look in looks]))
    used = [frame.kind == "graded" for frame in answer.frames]
    columns = bundle.joint.parts[1].columns
    measured = np.array([[look.answer.features[name] for name in columns] for look in looks])
    inputs = {
        "network": said["features"][used].mean(axis=0, keepdims=True),
        "measured": measured[used].mean(axis=0, keepdims=True),
    }
    score = bundle.joint.score(inputs)
    assert answer.fat_percent == pytest.approx(float(bundle.joint.fat_percent(score)[0]))
    rule = bundle.joint.parts[0].rule
    for frame, score in zip(answer.frames, said["score"], strict=True):
        assert frame.network_sqrt_fat == pytest.approx(float(score), abs=1e-5)
        assert frame.map.sum() + rule.intercept == pytest.approx(float(score), abs=1e-5)
    np.testing.assert_allclose(
        said["probabilities"], bundle.joint.probabilities(said["score"]), atol=1e-6
    )


def test_onnx_agrees_with_keras(phantom_bundle):
    import keras

    from steatosis_tf.model.backbone import LEVEL, at_one_level, roi_input
    from steatosis_tf.model.efficientnet_lite0 import lite0_taps
    from steatosis_tf.model.rules import pool_maps

    bundle = open_bundle(phantom_bundle)
    pixels, grey = roi_input((128, 128))
    taps = keras.Model(pixels, lite0_taps(at_one_level(grey, LEVEL), "imagenet", 0))
    pictures = bundle.vectors["pictures"]
    near, far = (part.numpy() for part in taps(pictures[..., None], training=False))
    said = bundle.run(pictures)
    np.testing.assert_allclose(said["features"], pool_maps(near, far), atol=1e-4)
    for place in range(len(pictures)):
        expected = explain_places(bundle.joint, near[place], far[place])
        np.testing.assert_allclose(said["map"][place], expected, atol=1e-5)


def test_a_frame_that_cannot_be_graded_does_not_count(phantom_bundle):
    bundle = open_bundle(phantom_bundle)
    view = bundle.roi.view
    looks = [look_at("phantom", _frames()[0], view)]
    alone = bundle.answer("P1", looks)
    both = bundle.answer("P1", [look_at("black", np.zeros((240, 320), np.uint8), view), *looks])
    assert both.fat_percent == alone.fat_percent
    assert (both.num_frames, both.num_used) == (2, 1)
    assert both.frames[0].reason_code == "no_sector"
    black = bundle.answer("P2", [look_at("black", np.zeros((240, 320), np.uint8), view)])
    assert (black.kind, black.reason_code) == ("unable", "no_sector")


def test_standard_fields_are_filled(phantom_bundle):
    proto = onnx.load(str(phantom_bundle / "model.onnx"))
    assert (proto.producer_name, proto.domain, proto.model_version) == (
        "steatosis_tf", "steatosis_tf", 1,
    )  # fmt: skip
    assert NOTICE in proto.doc_string
    for value in (*proto.graph.input, *proto.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_card_has_a_yaml_head_and_papers_show_the_notice(phantom_bundle):
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with MLflow")
    card = (phantom_bundle / "card.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["license"] == "apache-2.0"
    assert head["model_name"] == "phantoms"
    assert "Phantoms are no patients." in card
    for name in ("card.md", "instructions.md"):
        assert NOTICE in (phantom_bundle / name).read_text()


def test_a_model_of_grades_alone_says_nothing_of_fat(phantom_bundle, tmp_path):
    joint = replace(open_bundle(phantom_bundle).joint, target="grade", novelty=None)
    bundle = seal_again(open_bundle(phantom_bundle), tmp_path / "grades", joint=joint)
    assert "joined on the\ngrade, 0 to 3:" in (tmp_path / "grades" / "card.md").read_text()
    looks = [bundle.look("a.png", frame) for frame in _frames()]
    answer = bundle.answer("P1", looks)
    text = patient_text(answer, bundle.num_training)
    assert answer.kind == "graded"
    assert "; adds to the grade: " in text
    assert "fat" not in text
    draw_frame(answer, answer.frames[0], looks[0], _frames()[0], tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").is_file()


@pytest.mark.parametrize("name", ["model.onnx", "bundle.json", "card.md", "reference.npz"])
def test_one_changed_byte_is_refused(copy, name):
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(ValueError, match=r"bundle") as refused:
        open_bundle(copy)
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["model.onnx", "reference.json", "SHA256SUMS"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(ValueError, match=rf"{name} is missing"):
        open_bundle(copy)


def test_a_newer_schema_is_refused_with_what_to_do(copy):
    about = json.loads((copy / "bundle.json").read_text())
    write_json(about | {"schema": 4}, copy / "bundle.json")
    _seal(copy)
    with pytest.raises(ValueError, match=r"schema 1 to 3\. .*of schema 4\. Install"):
        open_bundle(copy)


@pytest.mark.parametrize("change", [{"training": None}, {"card": []}])
def test_a_bundle_without_its_parts_is_one_line(copy, change):
    about = json.loads((copy / "bundle.json").read_text())
    write_json(about | change, copy / "bundle.json")
    _seal(copy)
    with pytest.raises(ValueError, match="with schema, name, version, training and card"):
        open_bundle(copy)


def test_new_sums_do_not_hide_another_network(copy):
    (copy / "model.onnx").write_bytes((copy / "card.md").read_bytes())
    write_sums(copy)
    with pytest.raises(ValueError, match=r"model\.onnx is not the one that bundle\.json names"):
        open_bundle(copy)


def _changed(copy, change) -> str:
    """The refusal of a network changed on purpose, with new hashes."""
    proto = onnx.load(str(copy / "model.onnx"))
    change(proto)
    (copy / "model.onnx").write_bytes(proto.SerializeToString())
    _seal(copy)
    with pytest.raises(ValueError, match="Expected") as refused:
        open_bundle(copy)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_weights_outside_of_the_file_are_refused(copy):
    def change(proto):
        tensor = proto.graph.initializer[0]
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", "../../etc/passwd"

    assert "weights in another file" in _changed(copy, change)


def test_another_makers_operator_is_refused(copy):
    def change(proto):
        proto.graph.node.append(helper.make_node("Do", ["roi"], ["done"], domain="com.example"))
        proto.opset_import.append(helper.make_opsetid("com.example", 1))

    assert "an operator that is not ONNX's own" in _changed(copy, change)


def test_a_graph_inside_an_operator_is_found():
    inner = helper.make_graph([], "inner", [], [])
    node = helper.make_node("Loop", ["a", "b"], ["c"], body=inner)
    proto = helper.make_model(helper.make_graph([node], "outer", [], []))
    found = foreign_parts(proto)
    assert found == ["a graph inside an operator"]


def test_an_input_too_many_is_refused(copy):
    def change(proto):
        proto.graph.input.append(helper.make_tensor_value_info("more", 1, ["batch", 1]))
        proto.graph.node.append(helper.make_node("Identity", ["more"], ["unused"]))

    assert "with the one input roi" in _changed(copy, change)


def test_other_weights_than_the_networks_own_hash_are_refused(copy):
    def change(proto):
        tensor = max(proto.graph.initializer, key=lambda one: len(one.raw_data))
        tensor.raw_data = bytes(len(tensor.raw_data))

    assert "Expected weights with the SHA-256" in _changed(copy, change)


def test_a_rule_without_the_networks_width_is_not_joined(phantom_bundle):
    bundle = open_bundle(phantom_bundle)
    measured_alone = replace(bundle.joint, parts=bundle.joint.parts[1:])
    taps = taps_of(bundle.files["model.onnx"])
    with pytest.raises(ValueError, match="network part reads both taps"):
        join_rule(taps, measured_alone, {"name": "x", "version": "1"})


def test_verify_grades_the_reference_frames(phantom_bundle, copy, capsys):
    for path in (phantom_bundle, f"{phantom_bundle}.zip"):
        assert cli.main(["verify", str(path)]) == 0
    assert "reference frames are answered" in capsys.readouterr().out
    answers = json.loads((copy / "reference.json").read_text())
    answers["as it answers"][0]["fat_percent"] += 1.0
    write_json(answers, copy / "reference.json")
    _seal(copy)
    assert list(find_faults(open_bundle(copy))) == ["answer, as it answers 0, fat_percent"]
    assert cli.main(["verify", str(copy)]) == 1
    assert "fat_percent" in capsys.readouterr().out


def test_a_damaged_zip_is_one_line(tmp_path, phantom_bundle):
    whole = (phantom_bundle.parent / "phantoms.zip").read_bytes()
    cut = tmp_path / "cut.zip"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"'cut\.zip', which cannot be read"):
        open_bundle(cut)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("notes.txt", "no bundle")
    with pytest.raises(ValueError, match=r"readable bundle\.json.*'other\.zip'"):
        open_bundle(tmp_path / "other.zip")


def test_a_bundle_opens_without_tensorflow(phantom_bundle):
    code = (
        "import sys\nfrom steatosis_tf.deploy.bundle import find_faults, open_bundle\n"
        "print(find_faults(open_bundle(sys.argv[1])))\n"
        "print(sorted({'tensorflow', 'keras', 'mlflow', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(phantom_bundle)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "{}\n[]\n"


def test_onnxruntime_alone_explains(phantom_bundle):
    session = onnxruntime.InferenceSession(
        str(phantom_bundle / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    bundle = open_bundle(phantom_bundle)
    score, places = session.run(["score", "map"], {"roi": bundle.vectors["pictures"][..., None]})
    intercept = bundle.about["grading"]["parts"][0]["rule"]["intercept"]
    np.testing.assert_allclose(places.sum(axis=(1, 2)) + intercept, score, atol=1e-5)
