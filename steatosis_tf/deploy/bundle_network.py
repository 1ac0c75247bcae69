"""The network file of a bundle: the backbone's two taps, with all that the grading rule reads.

The frozen backbone is converted once and kept; the linear rule is joined to it as a handful of
ONNX operators whose weights are those of the rule, so joining another rule takes no TensorFlow.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from steatosis_tf import __version__
from steatosis_tf.deploy.bundle import OUTPUTS
from steatosis_tf.deploy.onnx_file import WEIGHTS_KEY, name_by_place, weights_sha256
from steatosis_tf.grades import NOTICE
from steatosis_tf.model.joint import NETWORK, JointModel
from steatosis_tf.model.pooling import NUM_BANDS, band_rows

if TYPE_CHECKING:
    import keras

# How far float32 takes a whole number of 16 bits off.
_ROUNDING = 0.02
_LARGEST = np.iinfo(np.int16).max


def convert_taps(taps: "keras.Model", cache_dir: str | Path) -> onnx.ModelProto:
    """The backbone as ONNX, converted once and kept, see `export.kept_network`.

    Weights of convolutions become int16 with a scale per channel, half the size, and are made
    float32 when the file is opened.

    Args:
        taps: `roi` `(batch, depth, beams, 1)` uint8 -> two maps, float32, as
            `steatosis_tf.model.efficientnet_lite0.lite0_taps` gives them.
        cache_dir: folder of what is kept.
    """
    from steatosis_tf.deploy.export import kept_network  # brings TensorFlow

    proto = kept_network(taps, ("near", "far"), Path(cache_dir))
    _halve(proto)
    name_by_place(proto)
    return proto


def join_rule(taps: onnx.ModelProto, model: JointModel, texts: dict[str, str]) -> onnx.ModelProto:
    """The network file: taps with what a joint model makes of them.

    Outputs, float32: `features` `(batch, width)`, what `grade_patient` takes; `score` `(batch,)`,
    the network part's square root of fat percent; `probabilities` `(batch, 4)`, that score read by
    the model's link, without the measured features; `map` `(batch, rows, columns)`, what each
    place adds, so that its sum and the rule's intercept make the score.

    Args:
        taps: of `convert_taps`; it is left as it is.
        model: whose network part reads the features of `pooling.pool_maps`.
        texts: metadata; `name` and `version` fill the standard fields too.

    Raises:
        ValueError: if the model has no such part.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(taps)
    near, far = (_shape_of(value) for value in proto.graph.output)
    rules = [part.rule for part in model.parts if part.name == NETWORK]
    if not rules or len(rules[0].weights) != NUM_BANDS * near[2] + far[2]:
        raise ValueError(
            "Expected a model whose network part reads both taps. Received: parts="
            f"{[part.name for part in model.parts]} near={near} far={far}."
        )
    graph = _Graph(proto.graph)
    rule = rules[0]
    slope = rule.weights / rule.scale
    features = graph.add("Concat", *_pooled(graph, near[0]), axis=1, out="features")
    score = graph.add("MatMul", features, graph.constant(slope))
    offset = rule.intercept - float(slope @ rule.centre)
    graph.add("Add", score, graph.constant(offset), out="score")
    _add_probabilities(graph, model)
    _add_map(graph, slope, rule.centre, near, far)
    del proto.graph.output[:]
    sizes = {"features": [len(slope)], "score": [], "probabilities": [4], "map": list(near[:2])}
    for name in OUTPUTS:
        shape: list[str | int | None] = ["batch", *sizes[name]]
        proto.graph.output.append(
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        )
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    _fill_in(proto, texts)
    onnx.checker.check_model(proto)
    return proto


def taps_of(network: bytes) -> onnx.ModelProto:
    """The taps inside a network file of `join_rule`, to which another rule can be joined."""
    proto = onnx.load_from_string(network)
    graph = proto.graph
    values = {
        value.name: value for value in onnx.shape_inference.infer_shapes(proto).graph.value_info
    }
    for kept in (graph.node, graph.initializer):
        for one in [one for one in kept if one.name.startswith("rule_") or one.name in OUTPUTS]:
            kept.remove(one)
    del graph.output[:]
    graph.output.extend(values[name] for name in ("near", "far"))
    return proto


class _Graph:
    """Adds operators to a graph and names what they give."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._count = 0

    def add(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        out = out or self._name(kind.lower())
        self._graph.node.append(helper.make_node(kind, list(inputs), [out], name=out, **attributes))
        return out

    def constant(self, values: Any, dtype: type = np.float32) -> str:
        name = self._name("value")
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"rule_{kind}_{self._count}"


def _pooled(graph: _Graph, num_rows: int) -> list[str]:
    """Means of the first tap by bands of depth, then of the second over all places."""
    bands = [
        graph.add("Slice", "near", *(graph.constant([value], np.int64) for value in (*edges, 1)))
        for edges in band_rows(num_rows)
    ]
    return [graph.add("ReduceMean", part, axes=[1, 2], keepdims=0) for part in (*bands, "far")]


def _add_probabilities(graph: _Graph, model: JointModel) -> None:
    link = model.link
    column = graph.add("Unsqueeze", "score", graph.constant([1], np.int64))
    steep = graph.add("Mul", column, graph.constant([-link.slope]))
    at_most = graph.add("Sigmoid", graph.add("Add", steep, graph.constant(link.cuts)))
    steps = graph.constant([[1, -1, 0, 0], [0, 1, -1, 0], [0, 0, 1, -1]])
    shares = graph.add("MatMul", at_most, steps)
    graph.add("Add", shares, graph.constant([0, 0, 0, 1]), out="probabilities")


def _add_map(
    graph: _Graph, slope: np.ndarray, centre: np.ndarray, near: list[int], far: list[int]
) -> None:
    """What each place adds to the score, 0 for the mean training patient's place."""
    rows, columns, channels = near
    kernel, shift = np.empty((rows, 1, channels)), np.empty((rows, 1))
    for band, (first, end) in enumerate(band_rows(rows)):
        of = slice(band * channels, (band + 1) * channels)
        kernel[first:end] = slope[of] / ((end - first) * columns)
        shift[first:end] = slope[of] @ centre[of] / ((end - first) * columns)
    weighted = graph.add("Mul", "near", graph.constant(kernel))
    fine = graph.add("ReduceSum", weighted, graph.constant([3], np.int64), keepdims=0)
    fine = graph.add("Sub", fine, graph.constant(shift))
    deep = slice(NUM_BANDS * channels, None)
    places = 4 * far[0] * far[1]
    coarse = graph.add("MatMul", "far", graph.constant(slope[deep] / places))
    coarse = graph.add("Sub", coarse, graph.constant(slope[deep] @ centre[deep] / places))
    # Each place of the second tap is two by two of the first.
    apart = graph.add("Unsqueeze", coarse, graph.constant([2, 4], np.int64))
    twice = graph.add("Tile", apart, graph.constant([1, 1, 2, 1, 2], np.int64))
    coarse = graph.add("Reshape", twice, graph.constant([-1, rows, columns], np.int64))
    graph.add("Add", fine, coarse, out="map")


def _shape_of(value: onnx.ValueInfoProto) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]


def _halve(proto: onnx.ModelProto) -> None:
    """Keep as int16 the weights that were int16 in the package's own file, so nothing is lost."""
    graph = proto.graph
    for tensor in [one for one in graph.initializer if len(one.dims) == 4]:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32:
            continue
        name = tensor.name
        scale = np.maximum(np.abs(values).max(axis=(1, 2, 3), keepdims=True), 1e-30) / _LARGEST
        whole = np.rint(values / scale)
        if np.abs(whole - values / scale).max() > _ROUNDING:
            continue
        graph.initializer.remove(tensor)
        whole = whole.astype(np.int16)
        graph.initializer.append(numpy_helper.from_array(whole, f"{name}_whole"))
        graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), f"{name}_scale"))
        made = [
            helper.make_node(
                "Cast", [f"{name}_whole"], [f"{name}_cast"], name=f"{name}_cast",
                to=onnx.TensorProto.FLOAT,
            ),
            helper.make_node("Mul", [f"{name}_cast", f"{name}_scale"], [name], name=f"{name}_mul"),
        ]  # fmt: skip
        for place, node in enumerate(made):
            graph.node.insert(place, node)


def _fill_in(proto: onnx.ModelProto, texts: dict[str, str]) -> None:
    proto.producer_name, proto.producer_version = "steatosis_tf", __version__
    proto.domain = "steatosis_tf"
    proto.model_version = int(texts["version"])
    proto.doc_string = f"{texts['name']}, version {texts['version']}. {NOTICE}"
    proto.graph.name = texts["name"]
    found = {f"steatosis.{name}": text for name, text in (texts | {"notice": NOTICE}).items()}
    found[WEIGHTS_KEY] = weights_sha256(proto)
    helper.set_model_props(proto, found)
