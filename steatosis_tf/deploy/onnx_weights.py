"""The hash of an ONNX file's weights, which the file itself carries, and what it must not hold.

A flipped bit in 96 MB of weights gives other grades and no error. The package `onnx` could read
the weights too, but into memory, a second time beside onnxruntime's: here they pass through one
buffer, so that grading a frame stays cheap.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

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
