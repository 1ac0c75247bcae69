"""An ONNX file may be anybody's: what it must not hold, how it is opened, what it has to answer.

A flipped bit in 96 MB of weights gives other grades and no error, so a file carries the hash of
its weights. The package `onnx` could read them too, but into memory, a second time beside
onnxruntime's: here they pass through one buffer, so that grading a frame stays cheap.

A file can ask for more than any machine has, in a line or two. What it holds is looked at before
onnxruntime sees it. Opening it and a first run are given limited memory and time.
"""

import hashlib
import io
import json
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import onnxruntime

from steatosis_tf.grades import GRADES, OUTPUT_LAYER

#: Under which name the hash stands in the metadata of a file.
WEIGHTS_KEY = "steatosis.weights_sha256"
#: A larger file is no network of ours: ResNet-50 has 96 MB.
MAX_FILE_BYTES = 1 << 30
#: How many frames are given to a network at a time: activations of many take more than it does.
BATCH = 8

#: What opening and a first run may take in addition; ResNet-50 takes 0.4 GiB. Each thread of
#: onnxruntime reserves addresses that it never uses.
_MAX_MORE_BYTES, _BYTES_PER_THREAD = 2 << 30, 256 << 20
_MAX_SECONDS = 60.0
# Weights, operators and what they are made of, of which ResNet-50 has 1,132; fields of one tensor,
# and bytes of its shape.
_MAX_PARTS, _MAX_PIECES = 100_000, 64
_FATAL = 4  # onnxruntime's errors come as exceptions, not on stderr too
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
    num_parts = 0
    for field in _fields(file, 0, file.seek(0, os.SEEK_END)):
        if field.number == _MODEL_GRAPH:
            for phrase in _foreign_in_graph(file, field):
                num_parts += 1
                found |= {phrase} - {""}
                if num_parts > _MAX_PARTS:
                    return sorted({*found, f"more than {_MAX_PARTS} weights and operators"})
        elif field.number == _MODEL_FUNCTIONS:
            found.add("functions of its own")
    return sorted(found)


def open_network(data: bytes, name: str, advice: str) -> onnxruntime.InferenceSession:
    """Open an ONNX file that is harmless by `foreign_parts` and has the weights that it names.

    Args:
        data: the file.
        name: of the file, for the texts.
        advice: what to do if it is refused.

    Raises:
        ValueError: with one line, if it is no such file or needs too much memory or time.
    """
    try:
        foreign = foreign_parts(io.BytesIO(data))
        weights = "" if foreign else weights_sha256(io.BytesIO(data))
    except ValueError as error:
        foreign = [f"bytes that are no ONNX ({error})"]
    if foreign:
        raise ValueError(
            f"Expected a network of our making, one ONNX file. Received: model={name!r}, which "
            f"has {', '.join(foreign)}. {advice}"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    # Idle threads wait instead of turning: they would take the processor from whatever else runs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        with _bounded(lambda: options.set_load_cancellation_flag(True)):
            session = onnxruntime.InferenceSession(data, options, ["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own below plain Exception
        raise ValueError(
            f"Expected a network that onnxruntime {onnxruntime.__version__} opens. Received: "
            f"model={name!r}, which onnxruntime refuses. {advice}"
        ) from error
    carried = session.get_modelmeta().custom_metadata_map.get(WEIGHTS_KEY, weights)
    if carried != weights:
        raise ValueError(
            f"Expected weights with the SHA-256 {carried}, which the file carries. Received: "
            f"model={name!r} with {weights}. The file is damaged or was changed. {advice}"
        )
    return session


def check_network(
    session: onnxruntime.InferenceSession,
    shape: tuple[int, int],
    outputs: Sequence[str],
    name: str,
    advice: str,
) -> dict[str, tuple[int, ...]]:
    """Hold input and outputs of an opened network against what frames give and answers need.

    Args:
        session: of `open_network`.
        shape: rows and columns of a frame's ROI.
        outputs: names that it must have.
        name, advice: as of `open_network`.

    Returns:
        output -> its shape for one frame.

    Raises:
        ValueError: with one line, also if a first run fails or needs too much memory or time.
    """
    expected = [*shape, 1]
    inputs = [(one.name, one.type, one.shape) for one in session.get_inputs()]
    named = [one.name for one in session.get_outputs()]
    # An axis without a number is free.
    fits = [(n, kind, dims[1:], isinstance(dims[0], int)) for n, kind, dims in inputs if dims]
    if fits != [("roi", "tensor(uint8)", expected, False)] or not set(outputs) <= set(named):
        raise ValueError(
            f"Expected a model of steatosis_tf with the one input roi (batch, {shape[0]}, "
            f"{shape[1]}, 1) uint8, batch any number, and the outputs {', '.join(outputs)}. "
            f"Received: model={name!r} with inputs={inputs} outputs={named}. {advice}"
        )
    options = onnxruntime.RunOptions()
    options.log_severity_level = _FATAL
    try:
        with _bounded(lambda: setattr(options, "terminate", True)):
            found = session.run(list(outputs), {"roi": np.zeros((2, *expected), np.uint8)}, options)
    except Exception as error:  # onnxruntime's own classes, as above
        raise ValueError(
            "Expected a network that answers a black frame within "
            f"{_MAX_SECONDS:.0f} s and {_MAX_MORE_BYTES >> 30} GiB. Received: model={name!r}, "
            f"which does not. {advice}"
        ) from error
    shapes = {one: np.shape(value) for one, value in zip(outputs, found, strict=True)}
    kinds = {np.asarray(value).dtype.name for value in found}
    right = all(dims[:1] == (2,) for dims in shapes.values()) and kinds == {"float32"}
    if not right or shapes[OUTPUT_LAYER] != (2, len(GRADES)):
        raise ValueError(
            f"Expected float32 outputs for each frame, {len(GRADES)} of {OUTPUT_LAYER}. Received: "
            f"model={name!r} with {', '.join(sorted(kinds))} of {shapes} for 2. {advice}"
        )
    return {one: dims[1:] for one, dims in shapes.items()}


def run_network(
    session: onnxruntime.InferenceSession, outputs: Sequence[str], pictures: np.ndarray
) -> dict[str, np.ndarray]:
    """What a network says of pictures `(n, rows, columns)` uint8, n at least 1: output -> array.

    Raises:
        RuntimeError: if it cannot: the model is at fault.
    """
    parts = []
    for first in range(0, len(pictures), BATCH):
        try:
            part = session.run(list(outputs), {"roi": pictures[first : first + BATCH, ..., None]})
        except Exception as error:  # onnxruntime's own classes, as above
            raise RuntimeError(
                f"Expected a network that answers {BATCH} frames at once. Received: onnxruntime's "
                f"{type(error).__name__}. The model is at fault, or memory is short."
            ) from error
        parts.append(part)
    return dict(zip(outputs, map(np.concatenate, zip(*parts, strict=True)), strict=True))


# The limit is the process's: two openings at once would leave the other's behind.
_limiting = threading.Lock()


@contextmanager
def _bounded(stop: Callable[[], Any]) -> Iterator[None]:
    """Limited memory on Linux, where it can be had, and `stop` called when the time is over."""
    timer = threading.Timer(_MAX_SECONDS, stop)
    timer.daemon = True
    with _limiting, _bounded_memory():
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


@contextmanager
def _bounded_memory() -> Iterator[None]:
    statm = Path("/proc/self/statm")
    if sys.platform == "win32" or not statm.exists():
        yield
        return
    import resource

    num_pages = int(statm.read_text("ascii").split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = num_pages * resource.getpagesize() + _MAX_MORE_BYTES
    limit += _BYTES_PER_THREAD * (os.cpu_count() or 1)
    if resource.RLIM_INFINITY not in (soft, limit):
        limit = min(limit, soft)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _foreign_in_graph(file: BinaryIO, graph: _Field) -> Iterator[str]:
    """A phrase for each part that is foreign, and an empty one for each field looked at."""
    for field in _fields(file, graph.start, graph.end):
        yield ""
        if field.number == _GRAPH_INITIALIZER:
            yield from _foreign_in_tensor(file, field)
        elif field.number == _GRAPH_SPARSE:
            yield "sparse weights"
        elif field.number == _GRAPH_NODE:
            for part in _fields(file, field.start, field.end):
                yield ""
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


def _foreign_in_tensor(file: BinaryIO, message: _Field) -> Iterator[str]:
    for number, field in enumerate(_fields(file, message.start, message.end)):
        if field.number in _TENSOR_EXTERNAL:
            yield "weights in another file"
            return
        is_long = field.number == _TENSOR_DIMS and field.length > _MAX_PIECES
        if number > _MAX_PIECES or is_long:
            yield f"weights of more than {_MAX_PIECES} pieces"
            return
    shape, data = _tensor(file, message)[2:]
    # Two numbers of four bits share a byte, and a text may be empty.
    if math.prod(shape) > sum(2 * one.length + 1 for one in data):
        yield "weights of a size that the file does not hold"


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
