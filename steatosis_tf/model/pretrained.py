"""Published networks on grey pixels, with ImageNet's weights, random ones or those of a file."""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras

#: Mean grey level every frame is shifted to: about that of a well-set display.
LEVEL = 64.0

_KERAS_ADDRESS = "https://storage.googleapis.com/tensorflow/keras-applications/"
_KERAS_HOME = "put it into ~/.keras/models/"


@dataclass(frozen=True)
class _Network:
    """A published network without its top.

    Attributes:
        title: as people write it.
        build: `(weights, pixels, name)` -> the last map.
        scale, offset: what its weights were trained to see is grey * scale + offset, per channel.
        address: where its ImageNet weights lie.
        place: where they are found without being passed.
    """

    title: str
    build: Callable[[str | None, keras.KerasTensor, str], keras.KerasTensor]
    scale: float | tuple[float, ...]
    offset: tuple[float, ...]
    address: str
    place: str


def _of_keras(
    constructor: Callable[..., keras.Model],
) -> Callable[[str | None, keras.KerasTensor, str], keras.KerasTensor]:
    def build(weights: str | None, pixels: keras.KerasTensor, name: str) -> keras.KerasTensor:
        return constructor(
            include_top=False, weights=weights, input_tensor=pixels, name=name
        ).output

    return build


def _resnet18(weights: str | None, pixels: keras.KerasTensor, name: str) -> keras.KerasTensor:
    try:
        from keras_hub.models import ResNetBackbone
    except ImportError as error:
        raise RuntimeError(
            "Expected the package keras-hub, which has ResNet-18. Received: not installed. "
            "Install it with `pip install steatosis_tf[table1]`."
        ) from error
    if weights == "imagenet":
        network = ResNetBackbone.from_preset("resnet_18_imagenet")
    else:
        network = ResNetBackbone(
            input_conv_filters=[64],
            input_conv_kernel_sizes=[7],
            stackwise_num_filters=[64, 128, 256, 512],
            stackwise_num_blocks=[2, 2, 2, 2],
            stackwise_num_strides=[1, 2, 2, 2],
            block_type="basic_block",
            name=name,
        )
    if weights not in (None, "imagenet"):
        network.load_weights(weights)
    # `call`, not `network(pixels)`: its layers then lie flat in the graph they are put into.
    return network.call(pixels)


# Means of the blue, green and red channel ("caffe" preprocessing, He et al. 2016); the library's
# own preprocess_input would give the ONNX file a second required input.
_CAFFE = (1.0, (-103.939, -116.779, -123.68))
# Red, green, blue: (grey / 255 - mean) / deviation.
_MEANS, _DEVIATIONS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_TORCH = (
    tuple(1 / (255 * deviation) for deviation in _DEVIATIONS),
    tuple(-mean / deviation for mean, deviation in zip(_MEANS, _DEVIATIONS, strict=True)),
)

_NETWORKS = {
    "resnet50": _Network(
        "ResNet-50",
        _of_keras(keras.applications.ResNet50),
        *_CAFFE,
        f"{_KERAS_ADDRESS}resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
        _KERAS_HOME,
    ),
    "resnet18": _Network(
        "ResNet-18",
        _resnet18,
        *_TORCH,
        "https://huggingface.co/keras/resnet_18_imagenet/resolve/main/model.weights.h5",
        "load the preset resnet_18_imagenet with KerasHub once there and copy its cache",
    ),
    "densenet121": _Network(
        "DenseNet-121",
        _of_keras(keras.applications.DenseNet121),
        *_TORCH,
        f"{_KERAS_ADDRESS}densenet/densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5",
        _KERAS_HOME,
    ),
    "vgg16": _Network(
        "VGG-16",
        _of_keras(keras.applications.VGG16),
        *_CAFFE,
        f"{_KERAS_ADDRESS}vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
        _KERAS_HOME,
    ),
    "vgg19": _Network(
        "VGG-19",
        _of_keras(keras.applications.VGG19),
        *_CAFFE,
        f"{_KERAS_ADDRESS}vgg19/vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5",
        _KERAS_HOME,
    ),
}


def pretrained_map(
    network: str, grey: keras.KerasTensor, weights: str, seed: int
) -> keras.KerasTensor:
    """The last convolutional map of a published network, its layers flat in the graph.

    Args:
        network: "resnet50", "resnet18", "densenet121", "vgg16" or "vgg19".
        grey: `(batch, height, width, 1)` float32, 0 to 255.
        weights: "imagenet", "random" (drawn from the seed) or the path of a weights file.
        seed: of random weights.

    Returns:
        `(batch, height / 32, width / 32, channels)` float32.

    Raises:
        ValueError: if a weights file is missing or is not for this network.
        RuntimeError: if ImageNet weights are asked for and cannot be fetched. There is no silent
            fall-back to random weights. Or if KerasHub is needed and not installed.
    """
    found = _NETWORKS[network]
    channels = keras.layers.Concatenate(name="three_channels")([grey, grey, grey])
    pixels = keras.layers.Rescaling(found.scale, found.offset, name="imagenet_mean")(channels)
    if weights == "random":
        keras.utils.set_random_seed(seed)
        return found.build(None, pixels, network)
    if weights == "imagenet":
        return _with_imagenet(found, pixels, network)
    return _with_file(found, pixels, network, weights)


def _with_imagenet(found: _Network, pixels: keras.KerasTensor, name: str) -> keras.KerasTensor:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Keras draws its bar on stdout
            return found.build("imagenet", pixels, name)
    except Exception as error:  # Keras raises a plain Exception for a failed address
        raise RuntimeError(
            f"Expected to fetch the ImageNet weights. Received: {error}. On a machine with a "
            f"network download {found.address}, then either {found.place} or pass its path: "
            "--weights PATH. --weights random runs without it, as an honest lower bound."
        ) from error


def _with_file(
    found: _Network, pixels: keras.KerasTensor, name: str, weights: str
) -> keras.KerasTensor:
    path = Path(weights)
    if not path.is_file():
        raise ValueError(
            f'Expected model.weights "imagenet", "random" or the path of a weights file. '
            f"Received: weights={weights!r}, which is no file."
        )
    try:
        return found.build(str(path), pixels, name)
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(
            f"Expected weights of {found.title} without top, as {found.address.split('/')[-1]}. "
            f"Received: {path.name}, which does not fit ({error})."
        ) from error
