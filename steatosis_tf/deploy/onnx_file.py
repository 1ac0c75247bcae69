"""An ONNX file may be anybody's: what it must not hold, how it is opened, what it has to answer.

A flipped bit in 96 MB of weights gives other grades and no error, so a file carries the hash of
its weights. A file can ask for more than any machine has, in a line or two: what it holds is looked
at before onnxruntime sees it. Reading it, opening it and a first run are given limited memory, the
latter two limited time as well.
"""

import hashlib
import json
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError
from onnx import numpy_helper

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
# Weights, operators and their attributes, of which ResNet-50 has 500; axes of one tensor.
_MAX_PARTS, _MAX_AXES = 10_000, 64
_FATAL = 4  # onnxruntime's errors come as exceptions, not on stderr too


def weights_sha256(graph: onnx.GraphProto) -> str:
    """Hash all weights of a network: what else stands in its file may change.

    The tensors come in the order of their names, each as its name, data type and shape (a line of
    JSON) and then its bytes. So a copy that was written again by another program, its metadata
    changed, has the same hash.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> weights_sha256(onnx.GraphProto())[:8]  # no weights
        'e3b0c442'
    """
    digest = hashlib.sha256()
    for tensor in sorted(graph.initializer, key=lambda one: one.name):
        digest.update(json.dumps([tensor.name, tensor.data_type, [*tensor.dims]]).encode() + b"\n")
        digest.update(tensor.raw_data or numpy_helper.to_array(tensor).tobytes())
    return digest.hexdigest()


def foreign_parts(model: onnx.ModelProto) -> list[str]:
    """What an ONNX file of ours does not have: other files' weights, other makers' operators.

    Returns:
        one phrase for each kind of part, sorted; empty if there is none.
    """
    graph = model.graph
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    if len(graph.initializer) + len(graph.node) + len(attributes) > _MAX_PARTS:
        return [f"more than {_MAX_PARTS} weights and operators"]
    tensors = [*graph.initializer]
    for attribute in attributes:
        tensors += [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]
    found = {
        "functions of its own": bool(model.functions),
        "sparse weights": bool(graph.sparse_initializer),
        "a graph inside an operator": any(one.HasField("g") or one.graphs for one in attributes),
        "an operator that is not ONNX's own": any(
            node.domain not in ("", "ai.onnx") for node in graph.node
        ),
        "weights in another file": any(
            one.data_location == onnx.TensorProto.EXTERNAL or one.external_data for one in tensors
        ),
        f"weights of more than {_MAX_AXES} axes": any(len(one.dims) > _MAX_AXES for one in tensors),
        "weights of a size that the file does not hold": not all(map(_holds_its_size, tensors)),
    }
    return sorted(phrase for phrase, is_there in found.items() if is_there)


def _holds_its_size(tensor: onnx.TensorProto) -> bool:
    # Two numbers of four bits share a byte.
    return min(tensor.dims, default=0) >= 0 and math.prod(tensor.dims) <= 2 * tensor.ByteSize()


def open_network(data: bytes, name: str, advice: str) -> onnxruntime.InferenceSession:
    """Open an ONNX file that is harmless by `foreign_parts` and has the weights that it names.

    Args:
        data: the file.
        name: of the file, for the texts.
        advice: what to do if it is refused.

    Raises:
        ValueError: with one line, if it is no such file or needs too much memory or time.
    """
    weights = ""
    try:
        with _limiting, _bounded_memory():
            model = onnx.load_from_string(data)
            if not (foreign := foreign_parts(model)):
                weights = weights_sha256(model.graph)
            del model
    except (DecodeError, MemoryError, LookupError, TypeError, ValueError):
        foreign = ["bytes that are no ONNX"]
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
