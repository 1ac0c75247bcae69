"""The weights of the shipped liver network, put back into its Keras form to be trained further."""

import keras
import onnx

from steatosis_tf.roi.liver import NETWORK_PATH


def load_shipped_weights(unet: keras.Model) -> None:
    """Give a `build_unet` network the shipped weights, in place.

    The ONNX file holds each BatchNormalization folded into the convolution before it. So the
    layer's own part becomes a bias, and it has to be left at its stored statistics (untrainable):
    normalising the folded convolution by a batch again would undo the fold.

    Args:
        unet: as `build_unet` gives it with the default widths, of any size.

    Raises:
        ValueError: if the network is another one.
    """
    graph = onnx.load(str(NETWORK_PATH)).graph
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
            "Expected a liver U-Net of the shipped widths. Received: "
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
