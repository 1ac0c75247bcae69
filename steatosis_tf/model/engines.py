"""Engines for the frozen forward pass: the same features, faster.

`keras` is the reference, float32. `tf-bf16` is the same TensorFlow graph with oneDNN's bfloat16.
`openvino` (extra `fast`) compiles the graph for fixed batches and keeps four of them in flight; it
computes in bfloat16 on a processor with AMX or AVX512-BF16, else in float32. bfloat16 keeps 8 bits
of a number, so every engine is held against the reference on the study's own frames when it starts.
"""

import hashlib
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx
from tqdm import tqdm

from steatosis_tf.atomic import replacing
from steatosis_tf.model.backbone import backbone_sha256

#: Frames per call. A fixed size lets OpenVINO choose its kernels once.
BATCH = 16
#: Cosine between an engine's features and the reference's, on every checked frame.
MIN_COSINE = 0.999

# Two streams compute while two further batches wait, so that neither ever stands idle.
_IN_FLIGHT = 4

_AUTO_ORDER = ("openvino", "tf-bf16")

Forward = Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]


@dataclass(frozen=True)
class Engine:
    """A way to run the backbone.

    Attributes:
        name: keras, tf-bf16 or openvino.
        precision: float32 or bfloat16.
        forward: batches `(BATCH, 224, 224, 1)` uint8 -> features `(BATCH, 2048)` float32, in
            order; lazily, so that decoding and computing overlap.
        min_cosine: smallest cosine to the reference on the checked frames.
    """

    name: str
    precision: str
    forward: Forward
    min_cosine: float = 1.0


def choose_engine(
    name: str, backbone: keras.Model, check_rois: np.ndarray, cache_dir: str | Path
) -> Engine:
    """Make the engine asked for and hold it against the Keras reference.

    Args:
        name: "keras", "tf-bf16", "openvino", or "auto": the fastest that is installed and agrees.
        backbone: as `build_backbone` gives it.
        check_rois: `(num_frames, 224, 224, 1)` uint8, real frames of the study, one or more.
        cache_dir: where OpenVINO's converted graph is kept.

    Raises:
        RuntimeError: if the engine asked for is not installed, or its features are off. "auto"
            says on stderr why it passed an engine over and ends at `keras`.
    """
    if name == "keras":
        return _keras_engine(backbone)
    if name != "auto":
        return _checked(_make(name, backbone, Path(cache_dir)), backbone, check_rois)
    for candidate in _AUTO_ORDER:
        try:
            return _checked(_make(candidate, backbone, Path(cache_dir)), backbone, check_rois)
        except RuntimeError as error:
            tqdm.write(f"engine {candidate} passed over: {error}", file=sys.stderr)
    return _keras_engine(backbone)


def padded(batch: np.ndarray) -> np.ndarray:
    """A batch filled up to `BATCH` frames with zeros; the caller cuts the features again."""
    if len(batch) == BATCH:
        return batch
    return np.concatenate([batch, np.zeros((BATCH - len(batch), *batch.shape[1:]), batch.dtype)])


def _make(name: str, backbone: keras.Model, cache_dir: Path) -> Engine:
    return _openvino_engine(backbone, cache_dir) if name == "openvino" else _bf16_engine(backbone)


def _checked(engine: Engine, backbone: keras.Model, check_rois: np.ndarray) -> Engine:
    batch = padded(check_rois[:BATCH])
    count = min(BATCH, len(check_rois))
    expected = next(_keras_engine(backbone).forward([batch]))[:count]
    received = next(engine.forward([batch]))[:count]
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(received, axis=1)
    with np.errstate(invalid="ignore"):  # features that are all 0 give NaN, and are refused
        cosine = float(((expected * received).sum(axis=1) / norms).min())
    if not cosine >= MIN_COSINE:
        raise RuntimeError(
            f"Expected features of engine {engine.name} within cosine {MIN_COSINE} of Keras. "
            f"Received: {cosine:.6f}. Use model.engine=keras."
        )
    return Engine(engine.name, engine.precision, engine.forward, cosine)


def _graph(backbone: keras.Model) -> tf.types.experimental.ConcreteFunction:
    shape = (BATCH, *backbone.input_shape[1:])
    function = tf.function(
        lambda roi: backbone(roi, training=False),
        input_signature=[tf.TensorSpec(shape, tf.uint8, name="roi")],
    )
    return function.get_concrete_function()


def _keras_engine(backbone: keras.Model) -> Engine:
    graph = _graph(backbone)
    return Engine(
        "keras", "float32", lambda batches: (graph(tf.constant(b)).numpy() for b in batches)
    )


def _bf16_engine(backbone: keras.Model) -> Engine:
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    # The option is read when the graph is first optimised, so it is set around that only.
    frozen = convert_variables_to_constants_v2(_graph(backbone))

    def forward(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        before = tf.config.optimizer.get_experimental_options()
        tf.config.optimizer.set_experimental_options(
            before | {"auto_mixed_precision_onednn_bfloat16": True}
        )
        try:
            for batch in batches:
                yield frozen(tf.constant(batch))[0].numpy()
        finally:
            tf.config.optimizer.set_experimental_options(
                {"auto_mixed_precision_onednn_bfloat16": False} | before
            )

    return Engine("tf-bf16", "bfloat16", forward)


def _openvino_engine(backbone: keras.Model, cache_dir: Path) -> Engine:
    try:
        import openvino
    except ImportError as error:
        raise RuntimeError(
            "Expected the package openvino. Received: not installed. "
            "Install it with `pip install steatosis_tf[fast]`, or use model.engine=keras."
        ) from error
    core = openvino.Core()
    path = cache_dir / f"backbone-{backbone_sha256(backbone)[:16]}-batch-{BATCH}.onnx"
    if not _is_whole(path):
        _convert(backbone, path)
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    compiled = core.compile_model(
        str(path),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "bf16" if has_bf16 else "f32", "NUM_STREAMS": 2},
    )

    def forward(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        # Requests are waited for in turn, without callbacks: with OpenVINO's AsyncInferQueue a test
        # run was seen to stop for ever in here; its callback against Python's lock is suspected.
        free = [compiled.create_infer_request() for _ in range(_IN_FLIGHT)]
        running: deque[Any] = deque()
        for batch in batches:
            if not free:
                yield _finished(running, free)
            request = free.pop()
            request.start_async({0: batch})
            running.append(request)
        while running:
            yield _finished(running, free)

    return Engine("openvino", "bfloat16" if has_bf16 else "float32", forward)


def _finished(running: deque[Any], free: list[Any]) -> np.ndarray:
    """Features of the oldest running request, which is free again afterwards."""
    request = running.popleft()
    request.wait()
    features = request.get_output_tensor(0).data.copy()
    free.append(request)
    return features


def _convert(backbone: keras.Model, path: Path) -> None:
    """Keep the graph for OpenVINO as ONNX: conversion takes longer than a thousand frames.

    By tf2onnx, because OpenVINO's own converter reports its use to its makers unless a file in
    the home folder tells it not to; a hospital machine must stay silent.
    """
    shape = (BATCH, *backbone.input_shape[1:])
    signature = (tf.TensorSpec(shape, tf.uint8, name="roi"),)
    proto, _ = tf2onnx.convert.from_keras(backbone, input_signature=signature, opset=17)
    with replacing(path) as temporary:
        onnx.save(proto, str(temporary))
        digest = _file_sha256(temporary)
    with replacing(path.with_suffix(".sha256")) as temporary:
        temporary.write_text(digest)


def _is_whole(path: Path) -> bool:
    """Whether the kept graph is what was written; a damaged one is converted again."""
    note_path = path.with_suffix(".sha256")
    if not path.is_file() or not note_path.is_file():
        return False
    return note_path.read_text(errors="replace") == _file_sha256(path)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
