"""The backbone is Keras' ResNet-50 with its preprocessing inside, and takes weights honestly."""

import functools
import hashlib
import http.server
import sys
import threading

import keras
import numpy as np
import pytest

from experiments.table1.frozen import with_whole_map
from steatosis_tf.config import ModelConfig
from steatosis_tf.model.backbone import (
    backbone_sha256,
    build_backbone,
)
from steatosis_tf.records.pipeline import read_records

_IMAGENET_FILE = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"


@pytest.fixture(scope="module")
def other_backbone() -> keras.Model:
    return build_backbone(ModelConfig(weights="random", backbone_seed=1))


@pytest.fixture(scope="module")
def legacy_file(tmp_path_factory, random_backbone):
    """Weights in the older HDF5 layout, in which ImageNet's and RadImageNet's are published."""
    plain = keras.applications.ResNet50(include_top=False, weights=None)
    plain.set_weights(random_backbone.get_weights())
    path = tmp_path_factory.mktemp("weights") / _IMAGENET_FILE
    plain.save(path)
    return path


@pytest.fixture
def weights_server(tmp_path, monkeypatch):
    """Serves a folder where Keras looks for weights; Keras keeps them in another new folder."""
    (tmp_path / "served").mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "served")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    monkeypatch.setattr("keras.src.applications.resnet.BASE_WEIGHTS_PATH", address)
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path / "keras_home"))
    yield tmp_path / "served"
    server.shutdown()
    server.server_close()


def _assert_same_weights(received: keras.Model, expected: keras.Model) -> None:
    for weight, wanted in zip(received.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, wanted)


def test_graph_is_flat_and_takes_one_uint8_picture(random_backbone):
    assert not any(isinstance(layer, keras.Model) for layer in random_backbone.layers)
    (roi,) = random_backbone.inputs
    assert (roi.name, roi.dtype, roi.shape) == ("roi", "uint8", (None, 224, 224, 1))
    assert random_backbone.output.shape == (None, 2048)
    assert random_backbone.output.dtype == "float32"
    assert random_backbone.get_layer("conv5_block3_out").output.shape == (None, 7, 7, 2048)


def test_every_layer_is_frozen(random_backbone):
    assert random_backbone.trainable_weights == []
    assert not any(layer.trainable for layer in random_backbone.layers)
    norms = [x for x in random_backbone.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert len(norms) == 53


def at_one_level(rois: np.ndarray) -> np.ndarray:
    """By plain loops: each frame's pixels above 0 shifted to the mean 64."""
    levelled = []
    for roi in rois.astype(np.float64):
        inside = roi > 0
        levelled.append(np.where(inside, roi - roi[inside].mean() + 64, 0))
    return np.array(levelled, np.float32)


def test_gain_does_not_move_the_features(random_backbone):
    generator = np.random.default_rng(0)
    quiet = generator.integers(1, 180, (2, 224, 224, 1), dtype=np.uint8)
    quiet[:, :40] = 0  # outside the sector
    loud = np.where(quiet > 0, quiet + 60, 0).astype(np.uint8)
    np.testing.assert_allclose(
        random_backbone.predict(loud, verbose=0),
        random_backbone.predict(quiet, verbose=0),
        rtol=1e-4,
        atol=1e-4,
    )


def test_features_are_those_of_resnet50_on_preprocessed_grey(random_backbone, phantom_records):
    examples = read_records(phantom_records).take(3)
    rois = np.stack([example["roi"] for example in examples.as_numpy_iterator()])
    pixels = np.repeat(at_one_level(rois), 3, axis=-1)
    expected_pixels = keras.applications.resnet.preprocess_input(pixels.copy())
    inside = keras.Model(random_backbone.input, random_backbone.get_layer("conv1_pad").input)
    np.testing.assert_allclose(inside.predict(rois, verbose=0), expected_pixels, atol=1e-4)
    plain = keras.applications.ResNet50(include_top=False, weights=None, pooling="avg")
    plain.set_weights(random_backbone.get_weights())
    np.testing.assert_allclose(
        random_backbone.predict(rois, verbose=0),
        plain.predict(expected_pixels, verbose=0),
        rtol=1e-5,
        atol=1e-5,
    )


def test_random_weights_are_fixed_by_their_seed(random_backbone, other_backbone):
    again = build_backbone(ModelConfig(weights="random", backbone_seed=0))
    _assert_same_weights(again, random_backbone)
    assert backbone_sha256(again) == backbone_sha256(random_backbone)
    assert backbone_sha256(other_backbone) != backbone_sha256(random_backbone)


def test_hash_sees_moving_statistics(tiny_backbone):
    before = backbone_sha256(tiny_backbone)
    layer = tiny_backbone.get_layer("normalization")
    former = layer.get_weights()
    layer.moving_mean.assign(layer.moving_mean + 1e-6)
    assert backbone_sha256(tiny_backbone) != before
    layer.set_weights(former)
    assert backbone_sha256(tiny_backbone) == before


def test_weights_of_a_path_are_loaded_to_the_bit(tmp_path, other_backbone):
    path = tmp_path / "other.weights.h5"
    other_backbone.save_weights(path)
    _assert_same_weights(build_backbone(ModelConfig(weights=str(path))), other_backbone)


def test_weights_in_the_published_layout_are_loaded_to_the_bit(legacy_file, random_backbone):
    # backbone_seed=1: so the weights cannot come from the seed
    loaded = build_backbone(ModelConfig(weights=str(legacy_file), backbone_seed=1))
    _assert_same_weights(loaded, random_backbone)


def test_missing_weights_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'"imagenet", "random" or the path.*which is no file'):
        build_backbone(ModelConfig(weights=str(tmp_path / "gone.weights.h5")))
    with pytest.raises(ValueError, match=r"weights='Imagenet', which is no file"):
        build_backbone(ModelConfig(weights="Imagenet"))


@pytest.mark.filterwarnings("ignore:Skipping nested container")
@pytest.mark.parametrize(
    "kind",
    ["text.weights.h5", "text.h5", "text.txt", "other.weights.h5", "other.h5",
     "half.weights.h5", "half.h5"],
)  # fmt: skip
def test_wrong_weights_file_is_refused(tmp_path, tiny_backbone, random_backbone, kind):
    path = tmp_path / kind
    half = random_backbone.get_layer("conv3_block4_out").output
    saved = keras.Model(random_backbone.input, half) if kind.startswith("half") else tiny_backbone
    if kind.startswith("text"):
        path.write_text("not weights")
    elif kind.endswith(".weights.h5"):
        saved.save_weights(path)
    else:
        saved.save(path)
    with pytest.raises(ValueError, match=rf"ResNet-50 without top.*{kind}, which does not fit"):
        build_backbone(ModelConfig(weights=str(path), backbone_seed=1))


def test_failed_download_says_what_to_do(weights_server):
    with pytest.raises(RuntimeError, match="404") as caught:
        build_backbone(ModelConfig(weights="imagenet"))
    text = str(caught.value)
    address = "https://storage.googleapis.com/tensorflow/keras-applications/resnet/"
    assert f"download {address}{_IMAGENET_FILE}" in text
    assert "~/.keras/models/" in text
    assert "--weights PATH" in text
    assert "--weights random" in text


def test_damaged_download_is_refused(weights_server):
    (weights_server / _IMAGENET_FILE).write_bytes(b"<html>please log in</html>")
    with pytest.raises(RuntimeError, match=r"corrupted file detected.*--weights PATH"):
        build_backbone(ModelConfig(weights="imagenet"))


def test_good_download_is_loaded(weights_server, legacy_file, random_backbone, monkeypatch, capsys):
    (weights_server / _IMAGENET_FILE).write_bytes(legacy_file.read_bytes())
    digest = hashlib.md5(legacy_file.read_bytes()).hexdigest()
    hashes = {"resnet50": ("", digest)}
    monkeypatch.setattr("keras.src.applications.resnet.WEIGHTS_HASHES", hashes)
    loaded = build_backbone(ModelConfig(weights="imagenet", backbone_seed=1))
    _assert_same_weights(loaded, random_backbone)
    assert capsys.readouterr().out == ""  # stdout is for results


# What keras.io/api/applications states with 1,000 classes, less the layers at the top: VGG
# 7 x 7 x 512 -> 4096 -> 4096 -> 1000, DenseNet 1024 -> 1000. ResNet-18: KerasHub's own card.
_TOP = 25088 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000
_OTHERS = [
    ("vgg16", 512, 138_357_544 - _TOP, keras.applications.vgg16),
    ("vgg19", 512, 143_667_240 - _TOP, keras.applications.vgg19),
    ("densenet121", 1024, 8_062_504 - 1024 * 1000 - 1000, keras.applications.densenet),
    # KerasHub's ResNet-18 was trained on pixels normalised as DenseNet's were
    ("resnet18", 512, 11_186_112, keras.applications.densenet),
]


@pytest.mark.parametrize(("network", "num_features", "num_parameters", "module"), _OTHERS)
def test_other_backbones_are_the_published_ones(network, num_features, num_parameters, module):
    backbone = build_backbone(ModelConfig(backbone=network, weights="random"))
    assert backbone.count_params() == num_parameters
    assert backbone.trainable_weights == []
    assert not any(isinstance(layer, keras.Model) for layer in backbone.layers)
    assert backbone.output.shape == (None, num_features)
    assert backbone.name == f"frozen_{network}_one_level"
    whole = with_whole_map(backbone)
    assert whole.output.shape == (None, 7 * 7 * num_features)
    assert whole.name != backbone.name
    rois = np.random.default_rng(0).integers(0, 200, (1, 224, 224, 1), dtype=np.uint8)
    seen = keras.Model(backbone.input, [backbone.get_layer("imagenet_mean").output, whole.output])
    pixels, places = seen(rois)
    expected = module.preprocess_input(np.repeat(at_one_level(rois), 3, axis=-1))
    np.testing.assert_allclose(pixels, expected, atol=1e-3)
    places = np.asarray(places).reshape(1, 49, num_features)
    np.testing.assert_allclose(places.mean(axis=1), backbone(rois), rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_weights_of_another_network_are_refused_by_name(tmp_path, tiny_backbone):
    path = tmp_path / "other.weights.h5"
    tiny_backbone.save_weights(path)
    with pytest.raises(ValueError, match=r"ResNet-18 without top.*other.weights.h5, which does"):
        build_backbone(ModelConfig(backbone="resnet18", weights=str(path)))


def test_weights_of_resnet18_are_loaded_to_the_bit(tmp_path):
    from keras_hub.models import ResNetBackbone

    keras.utils.set_random_seed(3)
    network = ResNetBackbone([64], [7], [64, 128, 256, 512], [2] * 4, [1, 2, 2, 2], "basic_block")
    path = tmp_path / "model.weights.h5"
    network.save_weights(path)
    loaded = build_backbone(ModelConfig(backbone="resnet18", weights=str(path)))
    _assert_same_weights(loaded, network)


def test_failed_download_of_resnet18_says_what_to_do(tmp_path, monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"fetch the ImageNet weights.*resnet_18_imagenet"):
        build_backbone(ModelConfig(backbone="resnet18", weights="imagenet"))


def test_missing_keras_hub_is_not_told_as_a_failed_download(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub.models", None)
    with pytest.raises(RuntimeError, match=r"^Expected the package keras-hub.*not installed"):
        build_backbone(ModelConfig(backbone="resnet18", weights="imagenet"))


def test_failed_download_of_vgg_says_what_to_do(weights_server, monkeypatch):
    from keras.src.applications import resnet

    gone = f"{resnet.BASE_WEIGHTS_PATH}gone.h5"
    monkeypatch.setattr("keras.src.applications.vgg16.WEIGHTS_PATH_NO_TOP", gone)
    with pytest.raises(RuntimeError, match=r"404.*download .*/vgg16/vgg16_weights.*notop.h5"):
        build_backbone(ModelConfig(backbone="vgg16", weights="imagenet"))


def test_unknown_backbone_is_refused():
    with pytest.raises(ValueError, match=r"model.backbone out of resnet50.*backbone='alexnet'"):
        ModelConfig(backbone="alexnet")
