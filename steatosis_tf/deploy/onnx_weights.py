"""The hash of an ONNX file's weights, which the file itself carries, and what it must not hold;
names and order that are the same at each export.

A flipped bit in 96 MB of weights gives other grades and no error. The package `onnx` could read
the weights too, but into memory, a second time beside onnxruntime's: here they pass through one
buffer, so that grading a frame stays cheap.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

if TYPE_CHECKING:
    import onnx

#: Under which name the hash stands in the metadata of a file.
WEIGHTS_KEY = "steatosis.weights_sha256"

_BUFFER_BYTES = 1 << 20
# Numbers of the fields, from onnx.proto.
_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_ATTRIBUTE, _NODE_DOMAIN = 5, 7
# t and tensors, g and graphs; external_data, and data_location, which only such tensors have.
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _TENSOR_EXTERNAL = (5, 10), (6, 11), (13, 14)
_TENSOR_DIMS, _TENSOR_DATA_TYPE, _TENSOR_NAME = 1, 2, 8
# float_data, int32_data, string_data, int64_data, raw_data, double_data, uint64_data
_TENSOR_DATA = (4, 5, 6, 7, 9, 10, 11)
# Wire types of protobuf.
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5


class _Field(NamedTuple):
    """One field of a message: `value` of a number, or where its `length` bytes start."""

    number: int
    value: int
    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length


class _Tensor(NamedTuple):
    name: str
    data_type: int
    shape: tuple[int, ...]
    data: tuple[_Field, ...]


def weights_sha256(file: BinaryIO) -> str:
    """Hash all weights of an ONNX file: what else stands in it may change.

    The tensors come in the order of their names, each as its name, data type and shape (a line of
    JSON) and then its bytes. So a copy that was written again by another program, its metadata
    changed, has the same hash.

    Args:
        file: an ONNX file, open for reading bytes; its position is moved.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: if the file is no protobuf message or is cut.

    Example:
        >>> import io
        >>> weights_sha256(io.BytesIO(b""))[:8]  # no weights
        'e3b0c442'
    """
    num_bytes = file.seek(0, os.SEEK_END)
    digest = hashlib.sha256()
    tensors = [
        _tensor(file, initializer)
        for graph in _fields(file, 0, num_bytes)
        if graph.number == _MODEL_GRAPH
        for initializer in _fields(file, graph.start, graph.end)
        if initializer.number == _GRAPH_INITIALIZER
    ]
    for tensor in sorted(tensors):
        digest.update(json.dumps(tensor[:3]).encode() + b"\n")
        for part in tensor.data:
            _add_bytes(digest, file, part)
    return digest.hexdigest()


def foreign_parts(file: BinaryIO) -> list[str]:
    """What an ONNX file of ours does not have: other files' weights, other makers' operators.

    Args:
        file: an ONNX file, open for reading bytes; its position is moved.

    Returns:
        one phrase for each kind of part, sorted; empty if there is none.

    Raises:
        ValueError: if the file is no protobuf message or is cut.
    """
    found: set[str] = set()
    for field in _fields(file, 0, file.seek(0, os.SEEK_END)):
        if field.number == _MODEL_GRAPH:
            found |= set(_foreign_in_graph(file, field))
        elif field.number == _MODEL_FUNCTIONS:
            found.add("functions of its own")
    return sorted(found)


def name_by_place(proto: "onnx.ModelProto") -> None:
    """Order and name nodes, values and weights by their place in the graph, in the model itself.

    A conversion takes names from counters and addresses, and an order from the names, so two
    exports of one model differ. Here a graph is walked from its outputs, inputs first. Inputs and
    outputs keep their names; what no output needs is left out.

    Args:
        proto: without graphs inside of operators, as `foreign_parts` asks for it.
    """
    graph, nodes = proto.graph, list(proto.graph.node)
    maker = {name: place for place, node in enumerate(nodes) for name in node.output if name}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    names = {value.name: value.name for value in (*graph.input, *graph.output)}
    ordered = _walk([value.name for value in graph.output], nodes, maker)
    used: list[onnx.TensorProto] = []
    for number, node in enumerate(ordered):
        node.name = f"{node.op_type}_{number}"
        for place, name in enumerate(node.input):
            if name in weights and name not in names:
                names[name] = f"weights_{len(used)}"
                used.append(weights[name])
            node.input[place] = names.get(name, name)
        for place, name in enumerate(node.output):
            if name:
                node.output[place] = names.setdefault(name, f"value_{number}_{place}")
    for tensor in used:
        tensor.name = names[tensor.name]
    for kept, found in ((graph.node, ordered), (graph.initializer, used)):
        copies = [type(one).FromString(one.SerializeToString(deterministic=True)) for one in found]
        del kept[:]
        kept.extend(copies)
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.shape.dim and value.type.tensor_type.shape.dim[0].dim_param:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"


def _walk(
    outputs: list[str], nodes: list["onnx.NodeProto"], maker: dict[str, int]
) -> list["onnx.NodeProto"]:
    """The nodes that outputs need, each after those whose values it takes."""
    ordered: list[onnx.NodeProto] = []
    seen: set[int] = set()
    waiting = [maker[name] for name in reversed(outputs)]
    while waiting:
        place = waiting[-1]
        before = [maker[name] for name in nodes[place].input
                  if name in maker and maker[name] not in seen]  # fmt: skip
        if before:
            waiting.append(before[0])
            continue
        waiting.pop()
        if place not in seen:
            seen.add(place)
            ordered.append(nodes[place])
    return ordered


def _foreign_in_graph(file: BinaryIO, graph: _Field) -> Iterator[str]:
    for field in _fields(file, graph.start, graph.end):
        if field.number == _GRAPH_INITIALIZER:
            yield from _foreign_in_tensor(file, field)
        elif field.number == _GRAPH_SPARSE:
            yield "sparse weights"
        elif field.number == _GRAPH_NODE:
            for part in _fields(file, field.start, field.end):
                if part.number == _NODE_DOMAIN and _text(file, part) not in ("", "ai.onnx"):
                    yield "an operator that is not ONNX's own"
                elif part.number == _NODE_ATTRIBUTE:
                    yield from _foreign_in_attribute(file, part)


def _foreign_in_attribute(file: BinaryIO, attribute: _Field) -> Iterator[str]:
    for field in _fields(file, attribute.start, attribute.end):
        if field.number in _ATTRIBUTE_TENSORS:
            yield from _foreign_in_tensor(file, field)
        elif field.number in _ATTRIBUTE_GRAPHS:
            yield "a graph inside an operator"


def _foreign_in_tensor(file: BinaryIO, tensor: _Field) -> Iterator[str]:
    if any(field.number in _TENSOR_EXTERNAL for field in _fields(file, tensor.start, tensor.end)):
        yield "weights in another file"


def _text(file: BinaryIO, field: _Field) -> str:
    file.seek(field.start)
    return file.read(field.length).decode("utf-8", "replace")


def _tensor(file: BinaryIO, message: _Field) -> _Tensor:
    name, data_type = "", 0
    shape: list[int] = []
    data: list[_Field] = []
    for field in _fields(file, message.start, message.end):
        if field.number == _TENSOR_NAME:
            file.seek(field.start)
            name = file.read(field.length).decode()
        elif field.number == _TENSOR_DATA_TYPE:
            data_type = field.value
        elif field.number == _TENSOR_DIMS:
            shape += _numbers(file, field)
        elif field.number in _TENSOR_DATA:
            data.append(field)
    return _Tensor(name, data_type, tuple(shape), tuple(data))


def _numbers(file: BinaryIO, field: _Field) -> list[int]:
    """One number, or several that another program packed into one field."""
    if not field.length:
        return [field.value]
    file.seek(field.start)
    numbers = []
    while file.tell() < field.end:
        numbers.append(_varint(file))
    return numbers


def _fields(file: BinaryIO, start: int, end: int) -> Iterator[_Field]:
    position = start
    while position < end:
        file.seek(position)
        number, wire_type = divmod(_varint(file), 8)
        value = _varint(file) if wire_type in (_VARINT, _BYTES) else 0
        lengths = {_VARINT: 0, _EIGHT_BYTES: 8, _BYTES: value, _FOUR_BYTES: 4}
        if wire_type not in lengths:
            raise ValueError(f"no protobuf message: wire type {wire_type}")
        field = _Field(number, value, file.tell(), lengths[wire_type])
        if field.end > end:
            raise ValueError(f"a field of {field.length} bytes reaches out of its message")
        yield field
        position = field.end


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        (byte,) = file.read(1) or (128,)
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise ValueError("no protobuf message: a number without an end")


def _add_bytes(digest: "hashlib._Hash", file: BinaryIO, field: _Field) -> None:
    file.seek(field.start)
    num_left = field.length
    while num_left:
        part = file.read(min(num_left, _BUFFER_BYTES))
        if not part:
            raise ValueError("the file ends within a tensor")
        digest.update(part)
        num_left -= len(part)
