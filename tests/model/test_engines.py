"""Every engine gives the reference's features, in order, or is refused.

Each engine is made once for the session: making them is the longest part of this file.
"""

import hashlib
import importlib.util
import json
import sys

import keras
import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier

from steatosis_tf.config import Config, override
from steatosis_tf.model.backbone import FEATURE_LAYER
from steatosis_tf.model.engines import (
    BATCH,
    MAX_CHANGED,
    MIN_COSINE,
    Engine,
    changed_decisions,
    choose_engine,
    has_bfloat16,
    in_float16,
    padded,
)
from steatosis_tf.records.pipeline import read_records
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.roi.views import central_rectangle, crop_roi
from steatosis_tf.sources.images import read_frame

_FAST = ["tf-bf16", "openvino"]


@pytest.fixture(scope="module")
def phantom_rois(phantom_records) -> np.ndarray:
    return np.stack([e["roi"] for e in read_records(phantom_records).as_numpy_iterator()])


@pytest.fixture(scope="module")
def real_rois(real_data_dir) -> np.ndarray:
    """Every forty-fourth file: all four grades, 10 frames."""
    rois = []
    for path in sorted((real_data_dir / "byra2018").rglob("*.png"))[::44]:
        frame = read_frame(path)
        sector = find_sector(frame)
        rois.append(crop_roi(frame, sector.mask, central_rectangle(sector)))
    return np.stack(rois)[..., None]


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def engine_of(random_backbone, phantom_rois, cache_dir):
    """Makes an engine by name, once."""
    made: dict[str, Engine] = {}

    def make(name: str) -> Engine:
        if name == "openvino" and importlib.util.find_spec("openvino") is None:
            pytest.skip("openvino is not installed (extra `fast`)")
        if name not in made:
            made[name] = choose_engine(name, random_backbone, phantom_rois, cache_dir)
        return made[name]

    return make


def _features(engine: Engine, rois: np.ndarray) -> np.ndarray:
    starts = range(0, len(rois), BATCH)
    batches = (padded(rois[start : start + BATCH]) for start in starts)
    return np.concatenate(list(engine.forward(batches)))[: len(rois)]


def _cosines(received: np.ndarray, expected: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(received, axis=1) * np.linalg.norm(expected, axis=1)
    return (received * expected).sum(axis=1) / norms


@pytest.fixture(scope="module")
def received_real(engine_of, real_rois):
    """Features of the real frames by an engine's name, computed once: bfloat16 may be emulated."""
    known: dict[str, np.ndarray] = {}

    def features(name: str) -> np.ndarray:
        if name not in known:
            known[name] = _features(engine_of(name), real_rois)
        return known[name]

    return features


@pytest.fixture(scope="module")
def expected_real(random_backbone, real_rois) -> np.ndarray:
    return random_backbone.predict(real_rois, verbose=0)


def test_keras_engine_is_the_reference(engine_of, random_backbone, phantom_rois):
    expected = random_backbone.predict(phantom_rois, verbose=0)
    received = _features(engine_of("keras"), phantom_rois)  # 12 frames: one partial batch
    np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", _FAST)
def test_engine_agrees_on_real_frames_in_order(
    engine_of, received_real, real_rois, expected_real, name
):
    engine = engine_of(name)
    assert engine.name == name
    assert MIN_COSINE <= engine.min_cosine <= 1 + 1e-6
    assert len(real_rois) % BATCH  # the last batch is a partial one
    assert engine.changed <= MAX_CHANGED
    received = received_real(name)
    assert received.shape == expected_real.shape
    assert received.dtype == np.float32
    assert _cosines(received, expected_real).min() >= MIN_COSINE
    # Neighbouring frames of a clip are alike, so order is asked of what tells frames apart.
    centre = expected_real.mean(axis=0)
    similarity = (received - centre) @ (expected_real - centre).T
    similarity /= np.linalg.norm(expected_real - centre, axis=1)
    assert similarity.argmax(axis=1).tolist() == list(range(len(real_rois)))


@pytest.mark.parametrize("name", _FAST)
def test_engine_changes_hardly_a_decision_of_a_head(received_real, real_rois, expected_real, name):
    labels = np.arange(len(real_rois)) * 4 // len(real_rois)  # files are sorted by fat
    scale = expected_real.std(axis=0) + 1e-3
    head = RidgeClassifier(alpha=100.0).fit(expected_real / scale, labels)
    expected = head.predict(expected_real / scale)
    assert len(set(expected)) == 4  # or this test shows nothing
    received = head.predict(received_real(name) / scale)
    assert np.mean(received != expected) <= 0.05


def test_a_frame_has_the_same_features_wherever_it_stands(engine_of, phantom_rois):
    """OpenVINO computes several batches at once."""
    engine = engine_of("openvino")
    many = np.tile(phantom_rois, (2, 1, 1, 1))  # 24 frames: two batches, the last with 8
    first, again = _features(engine, many).reshape(2, len(phantom_rois), -1)
    np.testing.assert_allclose(again, first, rtol=1e-5, atol=1e-5)


def test_kept_graph_with_a_flipped_byte_is_written_again(tiny_backbone, tmp_path):
    pytest.importorskip("openvino")
    rois = np.random.default_rng(0).integers(0, 256, (5, 224, 224, 1), np.uint8)
    choose_engine("openvino", tiny_backbone, rois, tmp_path)
    (path,) = tmp_path.glob("*.pb")
    good = path.read_bytes()
    data = bytearray(good)
    data[len(data) // 2] ^= 64
    path.write_bytes(data)
    engine = choose_engine("openvino", tiny_backbone, rois, tmp_path)
    assert engine.min_cosine >= MIN_COSINE
    assert path.read_bytes() != bytes(data)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == path.with_suffix(".sha256").read_text()


@pytest.fixture(scope="module")
def sign_backbone() -> keras.Model:
    """Tells 257 from 256 times a pixel: what bfloat16, with its 8 bits, rounds away."""
    roi = keras.Input((224, 224, 1), dtype="uint8", name="roi")
    x = keras.layers.Rescaling(1.0)(roi)
    x = keras.layers.Conv2D(8, 1, name="first", use_bias=False)(x)
    x = keras.layers.Conv2D(1, 1, name="second", use_bias=False)(x)
    x = keras.layers.AveragePooling2D(32)(x)
    model = keras.Model(roi, keras.layers.Flatten()(x), name="delicate")
    model.get_layer("first").set_weights([np.full((1, 1, 1, 8), 1 + 1 / 300, np.float32)])
    signs = np.float32([1, -1] * 4) + np.float32([1 / 600] * 8)
    model.get_layer("second").set_weights([signs.reshape(1, 1, 8, 1)])
    model.trainable = False
    return model


def test_engine_whose_features_are_off_is_refused_when_asked_for(sign_backbone, tmp_path):
    rois = np.random.default_rng(1).integers(0, 256, (4, 224, 224, 1), np.uint8)
    with pytest.raises(
        RuntimeError, match=r"tf-bf16 bfloat16 within cosine 0\.999.*model\.engine=keras"
    ):
        choose_engine("tf-bf16", sign_backbone, rois, tmp_path)


def test_auto_takes_no_engine_whose_features_are_off(sign_backbone, tmp_path, capsys):
    rois = np.random.default_rng(1).integers(0, 256, (4, 224, 224, 1), np.uint8)
    engine = choose_engine("auto", sign_backbone, rois, tmp_path)
    captured = capsys.readouterr()
    assert engine.precision == "float32"
    assert "engine tf-bf16 passed over: " in captured.err
    assert f"engine auto: {engine.name} float32" in captured.err
    assert captured.out == ""


def test_auto_is_never_slower_than_the_reference(engine_of):
    assert engine_of("auto").speedup >= 1
    if not has_bfloat16():  # emulated: what auto once took for fast
        assert engine_of("tf-bf16").speedup < 1
        assert engine_of("auto").precision == "float32"


def test_auto_without_openvino_is_plain_keras_or_real_bfloat16(
    tiny_backbone, tmp_path, monkeypatch, capsys
):
    """The core installation, as `make demo` has it."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    rois = np.random.default_rng(0).integers(0, 256, (5, 224, 224, 1), np.uint8)
    engine = choose_engine("auto", tiny_backbone, rois, tmp_path)
    assert engine.name == "keras" or (has_bfloat16() and engine.speedup >= 1)
    assert "openvino passed over: Expected the package openvino" in capsys.readouterr().err


def test_what_auto_took_is_kept_whatever_its_speed_is_another_time(tiny_backbone, tmp_path, capsys):
    rois = np.random.default_rng(0).integers(0, 256, (5, 224, 224, 1), np.uint8)
    first = choose_engine("auto", tiny_backbone, rois, tmp_path)
    (note_path,) = tmp_path.glob("engine-*.json")
    assert json.loads(note_path.read_text()) == {"engine": f"{first.name} {first.precision}"}
    note_path.write_text('{"engine": "keras float32"}')
    capsys.readouterr()
    second = choose_engine("auto", tiny_backbone, rois, tmp_path)
    assert (second.name, second.precision) == ("keras", "float32")
    assert "passed over" not in capsys.readouterr().err.replace("tf-bf16 passed over: this", "")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx512f avx512_vnni avx512_bitalg", False),
        ("fpu avx512f avx512_bf16 avx512_vnni", True),
        ("fpu amx_bf16 avx512_fp16", True),
    ],
)
def test_bfloat16_is_read_from_the_processors_flags(tmp_path, flags, expected):
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: none\n")
    assert has_bfloat16(path) is expected
    assert has_bfloat16(tmp_path / "absent") is False


def test_float16_network_of_a_gpu_agrees_and_keeps_its_sums_in_float32(
    random_backbone, phantom_rois
):
    """No GPU is needed to compute in float16, only patience."""
    rois = phantom_rois[:4]
    mixed = in_float16(random_backbone)
    assert mixed.get_layer("conv1_conv").compute_dtype == "float16"
    assert mixed.get_layer("conv1_conv").variable_dtype == "float32"
    assert mixed.get_layer(FEATURE_LAYER).compute_dtype == "float32"
    assert mixed.get_layer("to_float").compute_dtype == "float32"
    received = np.asarray(mixed(rois, training=False))
    expected = np.asarray(random_backbone(rois, training=False))
    assert received.dtype == np.float32
    assert not np.array_equal(received, expected)
    assert _cosines(received, expected).min() >= MIN_COSINE
    assert changed_decisions(received, expected) <= MAX_CHANGED


def test_changed_decisions_are_none_for_the_same_and_many_for_other_features():
    generator = np.random.default_rng(5)
    features = generator.normal(3, 1, (20, 300)).astype(np.float32)
    noise = generator.normal(0, 1, features.shape).astype(np.float32)
    assert changed_decisions(features, features) == 0
    assert changed_decisions(features * np.float32(1 + 1e-6), features) < 0.001
    assert changed_decisions(features + 0.01 * noise, features) < 0.05
    shuffled = changed_decisions(np.roll(features, 1, axis=0), features)
    assert shuffled == pytest.approx(0.75, abs=0.05)  # of 4 grades, 3 are others
    assert changed_decisions(features + 1.0, features) > 0.3  # angles hardly move: cosine 0.99
    assert changed_decisions(features[:1] + 1, features[:1]) == 0  # one frame decides nothing


def test_unknown_engine_is_refused_by_the_config():
    with pytest.raises(ValueError, match=r"model\.engine out of auto, keras, tf-bf16, openvino"):
        override(Config(), ["model.engine=tensorrt"])


def test_padding_is_zeros_and_whole_batches_stay():
    rois = np.full((3, 224, 224, 1), 7, np.uint8)
    filled = padded(rois)
    assert filled.shape == (BATCH, 224, 224, 1)
    assert (filled[:3] == 7).all()
    assert not filled[3:].any()
    assert padded(filled) is filled
