"""An exported model gives Keras' numbers and says what it is; one that does not is not kept."""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest

from steatosis_tf.cohort.manifest import read_manifest, relocate, write_manifest
from steatosis_tf.config import Config, EvaluationConfig, ModelConfig, RoiConfig, save_config
from steatosis_tf.deploy.export import export_onnx, export_run, save_keras
from steatosis_tf.deploy.onnx_file import weights_sha256
from steatosis_tf.deploy.predict import open_model, predict
from steatosis_tf.files import file_sha256
from steatosis_tf.grades import NOTICE
from steatosis_tf.model.heads import CumulativeLink, assemble, build_head
from steatosis_tf.records.pipeline import read_records
from steatosis_tf.roi.columns import cut_roi
from steatosis_tf.roi.propose import propose_roi
from steatosis_tf.roi.views import crop_roi
from steatosis_tf.sources.images import read_frame

_SCORES = ["p_normal", "p_mild", "p_moderate", "p_severe"]


@pytest.fixture(scope="module")
def rois(phantom_records) -> np.ndarray:
    return np.stack(
        [example["roi"] for example in read_records(phantom_records).as_numpy_iterator()]
    )


class _Exported(NamedTuple):
    path: Path
    difference: float


@pytest.fixture(scope="module")
def exported(random_grader, rois, tmp_path_factory) -> _Exported:
    """The ONNX file of the whole model, and what was found on the way."""
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    texts = {"run_id": "0123", "roi": '{"method": "sector"}'}
    return _Exported(path, export_onnx(random_grader, path, rois, texts))


def _tiny_grader() -> keras.Model:
    """Four probabilities from 7 x 7 means."""
    keras.utils.set_random_seed(1)
    roi = keras.Input((224, 224, 1), dtype="uint8", name="roi")
    x = keras.layers.AveragePooling2D(32)(keras.layers.Rescaling(1 / 255)(roi))
    x = keras.layers.Dense(4)(keras.layers.Flatten()(x))
    return keras.Model(roi, keras.layers.Softmax(name="probabilities")(x))


def _session(path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_one_uint8_input_and_a_free_batch_size(exported, random_grader, rois):
    session = _session(exported[0])
    (roi,), (probabilities,) = session.get_inputs(), session.get_outputs()
    assert (roi.name, roi.type) == ("roi", "tensor(uint8)")
    assert roi.shape[1:] == [224, 224, 1]
    assert not isinstance(roi.shape[0], int)
    assert probabilities.name == "probabilities"
    assert not isinstance(probabilities.shape[0], int)
    expected = random_grader.predict(rois, verbose=0)
    for size in (1, 3, 12):
        received = session.run(None, {"roi": rois[:size]})[0]
        assert received.dtype == np.float32
        np.testing.assert_allclose(received, expected[:size], atol=1e-4)


def test_file_says_what_it_is(exported):
    texts = {entry.key: entry.value for entry in onnx.load(exported[0]).metadata_props}
    assert json.loads(texts["steatosis.grades"]) == ["Normal", "Mild", "Moderate", "Severe"]
    assert texts["steatosis.notice"] == NOTICE
    assert texts["steatosis.run_id"] == "0123"
    assert texts["steatosis.steatosis_tf"]
    assert texts["steatosis.weights_sha256"] == weights_sha256(onnx.load(exported[0]).graph)


def test_difference_is_the_largest_one(exported, random_grader, rois):
    path, difference = exported
    received = _session(path).run(None, {"roi": rois})[0]
    expected = np.abs(received - random_grader.predict(rois, verbose=0)).max()
    assert difference == pytest.approx(expected, abs=1e-6)
    assert 0 <= difference <= 1e-4


def test_same_numbers_and_grades_on_real_frames(exported, random_grader, real_data_dir):
    labels = pd.read_csv(real_data_dir / "byra2018" / "labels.csv", dtype=str)
    paths = labels.drop_duplicates("patient_id")["path"].iloc[::2]
    rois = []
    for path in paths:
        frame = read_frame(real_data_dir / "byra2018" / path)
        proposal = propose_roi(frame, RoiConfig(method="sector"))
        rois.append(crop_roi(frame, proposal.sector.mask, proposal.rectangle)[..., np.newaxis])
    received = _session(exported[0]).run(None, {"roi": np.stack(rois)})[0]
    expected = random_grader.predict(np.stack(rois), verbose=0)
    assert np.abs(received - expected).max() <= 1e-4
    np.testing.assert_array_equal(received.argmax(axis=1), expected.argmax(axis=1))
    # the scores do depend on the frame
    assert np.ptp(expected, axis=0).max() > 1e-3


def test_predictions_are_those_of_keras_on_the_same_roi(
    exported, random_grader, phantom_manifest, tmp_path
):
    table = read_manifest(phantom_manifest).sort_values("path")
    rois = np.stack([cut_roi(row, phantom_manifest) for row in table.to_dict("records")])
    expected = random_grader.predict(rois[..., np.newaxis], verbose=0)
    images = phantom_manifest.parent / "phantoms" / "images"
    predict([images], model=exported[0], output_dir=tmp_path)
    received = pd.read_csv(tmp_path / "patients.csv")  # each picture for itself
    assert list(received["patient"]) == [path.split("/")[-1] for path in table["path"]]
    np.testing.assert_allclose(received[_SCORES], expected, atol=1e-4)
    names = np.array(["Normal", "Mild", "Moderate", "Severe"])
    assert list(received["grade"]) == list(names[expected.argmax(axis=1)])


class OtherEveryTime(keras.layers.Layer):
    """Multiplies by the number of times it was traced, as a badly written layer can."""

    traces = 0

    def call(self, x):
        self.traces += 1
        return x * self.traces


@pytest.mark.parametrize("former", [None, b"former"])
def test_model_that_differs_is_not_kept(tmp_path, rois, former):
    path = tmp_path / "model.onnx"
    if former:
        path.write_bytes(former)
    roi = keras.Input((224, 224, 1), dtype="uint8", name="roi")
    x = keras.layers.AveragePooling2D(32)(keras.layers.Rescaling(1 / 255)(roi))
    x = OtherEveryTime()(keras.layers.Dense(4)(keras.layers.Flatten()(x)))
    model = keras.Model(roi, keras.layers.Softmax(name="probabilities")(x))
    with pytest.raises(RuntimeError, match=r"within 0\.0001 of Keras.*No file was written"):
        export_onnx(model, path, rois)
    assert (path.read_bytes() if path.exists() else None) == former
    assert [p.name for p in tmp_path.iterdir()] == (["model.onnx"] if former else [])


def test_model_of_nan_is_not_kept(tmp_path, rois):
    broken = _tiny_grader()
    broken.set_weights([weight * np.nan for weight in broken.get_weights()])
    with pytest.raises(RuntimeError, match="difference=nan"):
        export_onnx(broken, tmp_path / "model.onnx", rois)
    assert list(tmp_path.iterdir()) == []


def test_model_without_probabilities_is_not_kept(tmp_path, rois):
    tiny = _tiny_grader()
    logits = keras.layers.Identity(name="probabilities")(tiny.layers[-2].output)
    with pytest.raises(RuntimeError, match="within 0 to 1 and sum to 1"):
        export_onnx(keras.Model(tiny.input, logits), tmp_path / "model.onnx", rois)
    assert list(tmp_path.iterdir()) == []


def test_the_same_model_is_the_same_file(tmp_path, rois):
    grader = _tiny_grader()
    for name in ("first", "second"):
        save_keras(grader, tmp_path / f"{name}.keras")
        export_onnx(grader, tmp_path / f"{name}.onnx", rois)
        keras.layers.Dense(1)  # counters of names go on
    for suffix in (".keras", ".onnx"):
        first, second = (
            (tmp_path / f"{name}{suffix}").read_bytes() for name in ("first", "second")
        )
        assert first == second, suffix
    again = keras.models.load_model(tmp_path / "first.keras")
    np.testing.assert_array_equal(again.predict(rois, verbose=0), grader.predict(rois, verbose=0))


def test_nothing_to_check_on_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one ROI to check"):
        export_onnx(_tiny_grader(), tmp_path / "model.onnx", np.empty((0, 224, 224, 1), np.uint8))


def test_model_of_a_run_is_exported(tmp_path, phantom_manifest, rois, capsys):
    run_dir = tmp_path / "runs" / "7f3a"
    run_dir.mkdir(parents=True)
    table = relocate(read_manifest(phantom_manifest), phantom_manifest, run_dir)
    write_manifest(table, run_dir / "manifest.csv")
    grader = _tiny_grader()
    grader.save(run_dir / "model.keras")
    config = Config(roi=RoiConfig(method="sector"), evaluation=EvaluationConfig("vote"))
    save_config(config, run_dir / "config.json")
    difference = export_run(run_dir, tmp_path / "out" / "model.onnx")
    assert 0 <= difference <= 1e-4
    received = _session(tmp_path / "out" / "model.onnx").run(None, {"roi": rois})[0]
    np.testing.assert_allclose(received, grader.predict(rois, verbose=0), atol=1e-5)
    texts = _session(tmp_path / "out" / "model.onnx").get_modelmeta().custom_metadata_map
    assert texts["steatosis.manifest_sha256"] == file_sha256(run_dir / "manifest.csv")
    assert json.loads(texts["steatosis.roi"])["method"] == "sector"
    assert texts["steatosis.aggregation"] == "vote"
    open_model(tmp_path / "out" / "model.onnx")
    assert "marks" not in capsys.readouterr().err
    # A run of the version that painted no marks out has no such column.
    write_manifest(table.drop(columns="roi_view"), run_dir / "manifest.csv")
    export_run(run_dir, tmp_path / "old.onnx")
    open_model(tmp_path / "old.onnx")
    assert (
        "old.onnx learned from frames whose text and calipers were kept" in capsys.readouterr().err
    )


def test_a_head_with_layers_of_ours_is_exported_by_a_process_that_built_none(
    tmp_path, phantom_manifest
):
    run_dir = tmp_path / "runs" / "7f3a"
    run_dir.mkdir(parents=True)
    table = relocate(read_manifest(phantom_manifest), phantom_manifest, run_dir)
    write_manifest(table, run_dir / "manifest.csv")
    roi = keras.Input((224, 224, 1), dtype="uint8", name="roi")
    x = keras.layers.AveragePooling2D(112)(keras.layers.Rescaling(1 / 255)(roi))
    score = keras.layers.Dense(1)(keras.layers.Flatten()(x))
    logits = CumulativeLink(4)(score)
    keras.Model(roi, keras.layers.Softmax(name="probabilities")(logits)).save(
        run_dir / "model.keras"
    )
    save_config(Config(roi=RoiConfig(method="sector")), run_dir / "config.json")
    words = [sys.executable, "-m", "steatosis_tf.cli", "export", run_dir, "--output", "m.onnx"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "m.onnx").is_file()


@pytest.mark.parametrize("kind", ["cut", "text", "code"])
def test_an_odd_keras_file_is_refused_in_one_line(tmp_path, phantom_manifest, kind):
    run_dir = tmp_path / "7f3a"
    run_dir.mkdir()
    table = relocate(read_manifest(phantom_manifest), phantom_manifest, run_dir)
    write_manifest(table, run_dir / "manifest.csv")
    path = run_dir / "model.keras"
    _tiny_grader().save(path)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-400])
    elif kind == "text":
        path.write_text("no model")
    else:
        roi = keras.Input((224, 224, 1))
        keras.Model(roi, keras.layers.Lambda(lambda x: x + 1)(roi)).save(path)
    with pytest.raises(ValueError, match=r"Received: 7f3a/model\.keras, which Keras") as refused:
        export_run(run_dir, tmp_path / "model.onnx")
    assert "\n" not in str(refused.value)


def test_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"run directory with model\.keras.*run_dir='empty'"):
        export_run(tmp_path / "empty", tmp_path / "model.onnx")
    (tmp_path / "joint" / "bundle").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"'joint', whose model is a bundle.*--output a folder"):
        export_run(tmp_path / "joint", tmp_path / "model.onnx")


_LARGE_EXPORT = """
import resource, sys
import keras, numpy as np
from steatosis_tf.deploy.export import export_onnx
x = roi = keras.Input((16, 16, 1), dtype="uint8", name="roi")
x = keras.layers.Conv2D(512, 1)(keras.layers.Rescaling(1 / 255)(x))
for _ in range(10):
    x = keras.layers.Conv2D(512, 3, padding="same", activation="relu")(x)
x = keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(x))
model = keras.Model(roi, keras.layers.Softmax(name="probabilities")(x))
def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak_mb()
export_onnx(model, sys.argv[1], np.zeros((1, 16, 16, 1), np.uint8))
print(model.count_params() * 4 / 2**20, peak_mb() - before)
"""


def test_heads_are_joined_to_the_kept_backbone(tiny_backbone, rois, tmp_path):
    features = tiny_backbone.predict(rois, verbose=0)
    written = []
    for seed, head in enumerate(("softmax", "ordinal")):
        config = ModelConfig(weights="random", head=head)
        model = assemble(tiny_backbone, build_head(config, features, seed), config)
        path = tmp_path / f"{head}.onnx"
        assert export_onnx(model, path, rois, cache_dir=tmp_path) <= 1e-4
        (kept,) = (tmp_path / "onnx").iterdir()
        written.append(kept.stat().st_mtime_ns)
        received = _session(path).run(None, {"roi": rois})[0]
        np.testing.assert_allclose(received, model.predict(rois, verbose=0), atol=1e-4)
    assert written[0] == written[1]


def test_a_changed_backbone_is_not_taken_for_the_kept_one(rois, tmp_path):
    roi = keras.Input((224, 224, 1), dtype="uint8", name="roi")
    x = keras.layers.AveragePooling2D(32)(keras.layers.Rescaling(1 / 255)(roi))
    frozen = keras.layers.Dense(8, trainable=False)
    features = keras.layers.Flatten(name="features")(frozen(x))
    model = keras.Model(roi, keras.layers.Dense(4, "softmax", name="probabilities")(features))
    export_onnx(model, tmp_path / "a.onnx", rois, cache_dir=tmp_path)
    frozen.set_weights([2 * weight for weight in frozen.get_weights()])
    export_onnx(model, tmp_path / "b.onnx", rois, cache_dir=tmp_path)
    assert len(list((tmp_path / "onnx").iterdir())) == 2
    frozen.trainable = True  # as fine-tuning leaves it
    export_onnx(model, tmp_path / "c.onnx", rois, cache_dir=tmp_path)
    assert len(list((tmp_path / "onnx").iterdir())) == 2
    expected = model.predict(rois, verbose=0)
    for name in ("b.onnx", "c.onnx"):
        received = _session(tmp_path / name).run(None, {"roi": rois})[0]
        np.testing.assert_allclose(received, expected, atol=1e-5)


def test_export_takes_a_few_times_the_memory_of_the_weights(tmp_path):
    # tf2onnx copies the constants of a graph in each of its passes: 94 MB grew to 3 GB.
    command = [sys.executable, "-c", _LARGE_EXPORT, str(tmp_path / "model.onnx")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    weights_mb, grown_mb = map(float, done.stdout.split())
    assert weights_mb == pytest.approx(90, abs=1)
    assert grown_mb < 10 * weights_mb
