"""Every network takes the ROI as it is, gives probabilities, learns, and leaves as ONNX."""

import json

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf

from experiments.table1.networks.alexnet import alexnet
from experiments.table1.networks.attention import attention_head
from experiments.table1.networks.googlenet import googlenet
from experiments.table1.networks.grey import grey_input
from experiments.table1.networks.plain_cnn import plain_cnn
from experiments.table1.networks.resnet18 import resnet18
from experiments.table1.networks.two_outputs import fibrosis_labels, two_outputs
from experiments.table1.networks.unet_cnn import (
    PLAIN_PATH,
    load_plain_weights,
    standardised,
    unet_cnn,
)
from steatosis_tf.deploy.export import export_onnx
from steatosis_tf.records.pipeline import read_records
from steatosis_tf.roi.anatomy.liver import (
    INPUT_HEIGHT_PX,
    INPUT_WIDTH_PX,
    normalised,
    single_threaded_session,
)

_CLASSES = ["Normal", "Mild", "Moderate or severe"]


def _googlenet(num_classes: int, seed: int) -> keras.Model:
    return googlenet(num_classes, seed, size_px=112)


def _resnet18(num_classes: int, seed: int) -> keras.Model:
    return resnet18(num_classes, seed, size_px=112)


_QUICK = [_googlenet, _resnet18, plain_cnn, two_outputs, unet_cnn]


@pytest.fixture(scope="module")
def rois(phantom_records) -> np.ndarray:
    examples = read_records(phantom_records).take(4)
    return np.stack([example["roi"] for example in examples.as_numpy_iterator()])


def _probabilities(model: keras.Model, rois: np.ndarray) -> np.ndarray:
    # Called, not `predict`: tracing a graph would take longer than everything else here.
    answer = model(rois, training=False)
    return np.asarray(answer["probabilities"] if isinstance(answer, dict) else answer)


@pytest.mark.parametrize("network", _QUICK)
def test_one_uint8_picture_in_and_probabilities_out(network, rois):
    model = network(3, seed=5)
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    (roi,) = model.inputs
    assert (roi.name, roi.dtype, roi.shape) == ("roi", "uint8", (None, 224, 224, 1))
    found = _probabilities(model, rois)
    assert found.shape == (len(rois), 3)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    assert np.ptp(found, axis=0).max() > 1e-4  # it does look at the picture
    # gain is added to every echo of a log-compressed display
    louder = np.where(rois > 0, np.minimum(rois, 215) + 40, 0).astype(np.uint8)
    capped = np.minimum(rois, 215).astype(np.uint8)
    np.testing.assert_allclose(
        _probabilities(model, louder), _probabilities(model, capped), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("network", [plain_cnn, two_outputs, _resnet18])
def test_weights_are_fixed_by_the_seed(network):
    first, again, other = (network(3, seed=seed).get_weights() for seed in (5, 5, 6))
    for weight, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(weight, same)
    assert any((weight != changed).any() for weight, changed in zip(first, other, strict=True))


@pytest.mark.parametrize("network", _QUICK)
def test_a_step_reaches_every_layer(network, rois):
    model = network(2, seed=0)
    labels = np.arange(len(rois)) % 2
    moving = [w.numpy() for w in model.non_trainable_weights if "moving" in w.path]
    with tf.GradientTape() as tape:
        answer = model(rois, training=True)
        found = answer["probabilities"] if isinstance(answer, dict) else answer
        losses = keras.losses.sparse_categorical_crossentropy(labels, found)
    gradients = tape.gradient(losses, model.trainable_weights)
    for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
        if weight.path.startswith("fibrosis"):
            assert gradient is None  # the steatosis loss does not move the other output
            continue
        assert np.isfinite(gradient).all(), weight.path
        assert np.abs(gradient).max() > 0, weight.path
    after = [w.numpy() for w in model.non_trainable_weights if "moving" in w.path]
    # statistics of the normalisation follow the batches, in layers taken over by `call` too
    assert sum((old != new).any() for old, new in zip(moving, after, strict=True)) >= 12


def _export(model: keras.Model, path, rois: np.ndarray) -> onnxruntime.InferenceSession:
    difference = export_onnx(model, path, rois, {"grades": json.dumps(_CLASSES)})
    assert 0 <= difference <= 1e-4
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_two_outputs_leave_as_onnx_by_their_names(tmp_path, rois):
    model = two_outputs(3, seed=0)
    session = _export(model, tmp_path / "model.onnx", rois)
    assert [node.name for node in session.get_inputs()] == ["roi"]
    assert json.loads(session.get_modelmeta().custom_metadata_map["steatosis.grades"]) == _CLASSES
    expected = model.predict(rois, verbose=0)
    for name, shape in (("probabilities", (4, 3)), ("fibrosis", (4, 5))):
        (received,) = session.run([name], {"roi": rois})
        assert received.shape == shape
        np.testing.assert_allclose(received, expected[name], atol=1e-4)


def test_plain_cnn_leaves_as_onnx(tmp_path, rois):
    model = plain_cnn(3, seed=0)
    session = _export(model, tmp_path / "model.onnx", rois)
    received = session.run(["probabilities"], {"roi": rois})[0]
    np.testing.assert_allclose(received, model.predict(rois, verbose=0), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("network", [alexnet, googlenet, resnet18, unet_cnn])
def test_large_networks_leave_as_onnx(tmp_path, rois, network):
    _export(network(3, seed=0), tmp_path / "model.onnx", rois)


def test_pixels_have_mean_0_inside_the_sector_and_are_averaged_to_112():
    roi = np.zeros((1, 224, 224, 1), np.uint8)
    roi[0, :112] = 100
    roi[0, 112:, :112] = 228  # a quarter; the last quarter is outside
    whole = keras.Model(*grey_input()).predict(roi, verbose=0)
    # mean (2 x 100 + 228) / 3 = 142.67; (100 - 142.67) / 64 and (228 - 142.67) / 64
    assert whole.shape == (1, 224, 224, 3)
    np.testing.assert_allclose(whole[0, 0, 0], -2 / 3, atol=1e-5)
    np.testing.assert_allclose(whole[0, 200, 0], 4 / 3, atol=1e-5)
    np.testing.assert_array_equal(whole[0, 200, 200], 0)
    half = keras.Model(*grey_input(112, channels=1)).predict(roi, verbose=0)
    assert half.shape == (1, 112, 112, 1)
    np.testing.assert_allclose(half, whole[:, ::2, ::2, :1], atol=1e-5)


def test_a_size_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"size_px to divide 224.*size_px=100"):
        grey_input(100)
    with pytest.raises(ValueError, match=r"size_px to divide 224.*size_px=100"):
        resnet18(3, seed=0, size_px=100)


def test_the_graph_standardises_as_the_liver_network_was_trained(rois):
    pixels = keras.Input((224, 224, 1))
    inside = keras.Model(pixels, standardised(pixels))
    received = inside.predict(rois.astype(np.float32), verbose=0)
    expected = [normalised(roi[..., 0].astype(np.float32), roi[..., 0] > 0) for roi in rois]
    np.testing.assert_allclose(received, expected, atol=1e-3)


def test_plain_weights_give_what_their_file_gives():
    from experiments.segmentation.unet import build_unet

    unet = build_unet()
    load_plain_weights(unet)
    crop = np.random.default_rng(0).normal(size=(2, INPUT_HEIGHT_PX, INPUT_WIDTH_PX, 2))
    crop = crop.astype(np.float32)
    (expected,) = single_threaded_session(PLAIN_PATH).run(["liver_logit"], {"crop": crop})
    np.testing.assert_allclose(unet.predict(crop, verbose=0), expected, atol=1e-3)
    with pytest.raises(ValueError, match=r"liver U-Net of the default widths"):
        load_plain_weights(build_unet((8, 16)))


def test_attention_weighs_channels_and_places_by_0_to_1():
    head = attention_head((7, 7, 32), num_classes=3, seed=0)
    features = np.random.default_rng(0).normal(1, 1, (5, 7 * 7 * 32)).astype(np.float32)
    found = head.predict(features, verbose=0)
    assert found.shape == (5, 3)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    places = keras.Model(head.input, head.get_layer("attention_places").output)
    weights = places.predict(features, verbose=0)
    assert weights.shape == (5, 7, 7, 1)
    assert 0 < weights.min() < weights.max() < 1


def test_unknown_fibrosis_is_masked_out():
    labels, weights = fibrosis_labels(["F0", "", "F4", "F2"], 4)
    assert labels.tolist() == [0, 0, 4, 2]
    assert weights.tolist() == [1, 0, 1, 1]
    labels, weights = fibrosis_labels(None, 3)
    assert labels.tolist() == weights.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"fibrosis out of F0.*or empty. Received: \['mild'\]"):
        fibrosis_labels(["F1", "mild"], 2)
