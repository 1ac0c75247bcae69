"""Each network written by hand has the parameters and the shapes its source publishes."""

import keras
import numpy as np
import pytest

from experiments.table1.networks.alexnet import alexnet
from experiments.table1.networks.attention import attended
from experiments.table1.networks.googlenet import googlenet
from experiments.table1.networks.plain_cnn import plain_cnn
from experiments.table1.networks.resnet18 import resnet18
from experiments.table1.networks.two_outputs import two_outputs
from experiments.table1.networks.unet_cnn import unet_cnn

# torchvision counts what is trained, and publishes it per model with 1,000 classes:
# pytorch.org/vision/stable/models/generated/torchvision.models.alexnet.html, and likewise.
_PUBLISHED = [(alexnet, 61_100_840), (googlenet, 6_624_904), (resnet18, 11_689_512)]


def num_trained(model: keras.Model) -> int:
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


@pytest.mark.parametrize(("network", "expected"), _PUBLISHED)
def test_parameters_at_a_thousand_classes_are_those_of_torchvision(network, expected):
    assert num_trained(network(1000, seed=0)) == expected


def test_shapes_of_alexnet():
    model = alexnet(2, seed=0)
    shapes = {name: model.get_layer(name).output.shape[1:] for name in ("conv1", "pool1", "pool2")}
    assert shapes == {"conv1": (55, 55, 64), "pool1": (27, 27, 64), "pool2": (13, 13, 192)}
    assert model.get_layer("pool5").output.shape[1:] == (6, 6, 256)


def test_shapes_of_googlenet_are_those_of_table_1():
    # Szegedy et al. 2015, table 1, column "output size"
    expected = {
        "3a": (28, 28, 256), "3b": (28, 28, 480), "4a": (14, 14, 512), "4b": (14, 14, 512),
        "4c": (14, 14, 512), "4d": (14, 14, 528), "4e": (14, 14, 832), "5a": (7, 7, 832),
        "5b": (7, 7, 1024),
    }  # fmt: skip
    model = googlenet(3, seed=0)
    shapes = {name: model.get_layer(f"inception_{name}").output.shape[1:] for name in expected}
    assert shapes == expected


def test_attention_adds_to_resnet50_what_cbam_publishes():
    # ResNet-50 25,557,032 (Keras: with moving statistics 25,636,712), with a block after each of
    # its 16 units 28,089,624: github.com/osmr/imgclsmob, converted from the authors' own weights.
    units = {256: 3, 512: 4, 1024: 6, 2048: 3}
    added = 0
    for channels, count in units.items():
        maps = keras.Input((7, 7, channels))
        block = keras.Model(maps, attended(maps, "attention"))
        assert block.output.shape == (None, 7, 7, channels)
        added += count * num_trained(block)
    assert 25_557_032 + added == 28_089_624


def test_parameters_of_the_plain_cnn_by_hand():
    # kernels 3 x 3, no bias; two numbers of the normalisation per filter; 7 x 7 x 128 -> 128 -> 4
    kernels = 9 * (1 * 16 + 16 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64 + 64 * 128 + 128 * 128)
    norms = 2 * 2 * (16 + 32 + 64 + 128)
    dense = 6272 * 128 + 128 + 128 * 4 + 4
    assert num_trained(plain_cnn(4, seed=0)) == kernels + norms + dense


def test_parameters_of_the_two_outputs_by_hand():
    kernels = 9 * (1 * 16 + 16 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64)
    norms = 2 * 2 * (16 + 32 + 64)
    dense = 64 * 64 + 64 + 64 * 4 + 4 + 64 * 5 + 5
    assert num_trained(two_outputs(4, seed=0)) == kernels + norms + dense


def test_the_unet_half_is_the_plain_one_and_the_cnn_half_by_hand():
    # 499,521 of the plain liver network, moving statistics included
    kernels = 9 * (1 * 16 + 16 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64 + 64 * 128 + 128 * 128)
    norms = 4 * 2 * (16 + 32 + 64 + 128)
    model = unet_cnn(4, seed=0)
    assert model.count_params() == 499_521 + kernels + norms + 128 * 4 + 4
    shapes = {name: output.shape for name, output in model.output.items()}
    assert shapes == {"probabilities": (None, 4), "liver_logit": (None, 112, 112, 1)}


@pytest.mark.parametrize("network", [googlenet, resnet18])
def test_half_the_size_has_the_same_parameters(network):
    half = network(3, seed=0, size_px=112)
    assert num_trained(half) == num_trained(network(3, seed=0))
    assert half.input_shape == (None, 224, 224, 1)
    assert half.get_layer("features").input.shape[1:3] == (4, 4)
