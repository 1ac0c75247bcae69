"""The backbone as a TensorFlow graph for batches of one size, with or without its variables."""

import keras
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2


def graph_of(backbone: keras.Model, batch_size: int) -> tf.types.experimental.ConcreteFunction:
    """Graph `roi` (batch_size, height, width, 1) uint8 -> (batch_size, num_features) float32."""
    shape = (batch_size, *backbone.input_shape[1:])
    function = tf.function(
        lambda roi: backbone(roi, training=False),
        input_signature=[tf.TensorSpec(shape, tf.uint8, name="roi")],
    )
    return function.get_concrete_function()


def constant_graph(
    backbone: keras.Model, batch_size: int
) -> tf.types.experimental.ConcreteFunction:
    """The same with the weights as constants: what other engines read; gives a list of one."""
    return convert_variables_to_constants_v2(graph_of(backbone, batch_size))
