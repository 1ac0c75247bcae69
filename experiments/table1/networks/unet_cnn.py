"""U-Net and CNN in one: the liver is outlined, and what lies in the outline is graded.

The first half is a plain liver U-Net, on the ROI instead of the whole sector; the second a small
CNN on the ROI multiplied by the probability of liver. Both are trained together, so the outline
also learns from the grades. The U-Net starts from `plain_liver_unet.onnx`, which
`experiments/segmentation/liver_unet.py` trained on the outlined images less a test part: the liver
network that shipped when Table I was measured.
"""

from pathlib import Path

import keras
import onnx
from keras import layers

from experiments.segmentation.unet import build_unet
from experiments.table1.networks.plain_cnn import convolution_blocks
from steatosis_tf.grades import OUTPUT_LAYER
from steatosis_tf.model.backbone import roi_input
from steatosis_tf.model.heads import end_network
from steatosis_tf.roi.anatomy.liver import GREY_CLIP
from steatosis_tf.roi.views import INPUT_SIZE_PX

#: The plain liver network; it takes what `steatosis_tf.roi.anatomy.liver.network_input` gives.
PLAIN_PATH = Path(__file__).with_name("plain_liver_unet.onnx")


def unet_cnn(num_classes: int, seed: int) -> keras.Model:
    """The network before its joint training.

    Args:
        num_classes: probabilities to give.
        seed: of the CNN's initial weights and the dropout.

    Returns:
        flat model: `roi` `(batch, 224, 224, 1)` uint8 -> `probabilities` `(batch, num_classes)` and
        `liver_logit` `(batch, 112, 112, 1)`, float32.
    """
    keras.utils.set_random_seed(seed)
    roi, grey_levels = roi_input()
    crop = standardised(grey_levels)
    unet = build_unet(size_px=(INPUT_SIZE_PX, INPUT_SIZE_PX))
    load_plain_weights(unet)
    # `call`, not `unet(crop)`: its layers then lie flat in this graph.
    logit = unet.call(crop)
    grey = layers.AveragePooling2D(2, name="half_size")(crop[..., :1])
    x = grey * keras.ops.sigmoid(logit)
    x = convolution_blocks(x, (16, 32, 64, 128))
    x = layers.GlobalAveragePooling2D(name="features")(x)
    x = layers.Dropout(0.5)(x)
    outputs = {
        OUTPUT_LAYER: end_network(x, "softmax", num_classes),
        "liver_logit": logit,
    }
    return keras.Model(roi, outputs, name="unet_cnn")


def standardised(grey: keras.KerasTensor) -> keras.KerasTensor:
    """What `roi.anatomy.liver.normalised` gives, inside the graph; the sector is grey > 0.

    Args:
        grey: `(batch, height, width, 1)` float32, 0 outside the sector.

    Returns:
        `(batch, height, width, 2)` float32: standardised grey from -3 to 5, 0 outside; sector.
    """
    inside = keras.ops.cast(grey > 0, "float32")
    count = keras.ops.maximum(keras.ops.sum(inside, axis=(1, 2, 3), keepdims=True), 1.0)
    mean = keras.ops.sum(grey, axis=(1, 2, 3), keepdims=True) / count
    square = keras.ops.square((grey - mean) * inside)
    spread = keras.ops.sqrt(keras.ops.sum(square, axis=(1, 2, 3), keepdims=True) / count)
    standard = keras.ops.clip((grey - mean) / keras.ops.maximum(spread, 1e-3), *GREY_CLIP)
    return layers.Concatenate(name="crop")([standard * inside, inside])


def load_plain_weights(unet: keras.Model) -> None:
    """Give a `build_unet` network the weights of the plain liver network, in place.

    The ONNX file holds each BatchNormalization folded into the convolution before it. So the
    layer's own part becomes a bias, and it has to be left at its stored statistics (untrainable):
    normalising the folded convolution by a batch again would undo the fold.

    Args:
        unet: as `build_unet` gives it with the default widths, of any size.

    Raises:
        ValueError: if the network is another one.
    """
    graph = onnx.load(str(PLAIN_PATH)).graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    folded = [
        (values[node.input[1]].transpose(2, 3, 1, 0), values[node.input[2]])
        for node in graph.node
        if node.op_type == "Conv"
    ]
    layers = [layer for layer in unet.layers if isinstance(layer, keras.layers.Conv2D)]
    norms = iter(x for x in unet.layers if isinstance(x, keras.layers.BatchNormalization))
    if [kernel.shape for kernel, _ in folded] != [tuple(layer.kernel.shape) for layer in layers]:
        raise ValueError(
            "Expected a liver U-Net of the default widths. Received: "
            f"{unet.name} with {len(layers)} convolutions of other shapes."
        )
    for layer, (kernel, bias) in zip(layers, folded, strict=True):
        if layer.use_bias:
            layer.set_weights([kernel, bias])
            continue
        layer.set_weights([kernel])
        norm = next(norms)
        norm.set_weights([bias * 0 + 1, bias, bias * 0, bias * 0 + 1 - norm.epsilon])
        norm.trainable = False
