"""Engines for the frozen forward pass: the same features, faster.

`keras` is the reference: plain Keras in float32, on a GPU with the network in float16. `tf-bf16` is
the same TensorFlow graph with oneDNN's bfloat16. `openvino` (extra `fast`, see openvino_engine.py)
computes in bfloat16 where the processor can, else in float32. Rounded numbers keep 8 bits, so every
engine is held against the reference on the study's own frames when it starts, for what it computes
and for what it costs.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from steatosis_tf.model.agreement import (
    MAX_CHANGED,
    MIN_COSINE,
    changed_decisions,
    smallest_cosine,
)
from steatosis_tf.model.backbone import FEATURE_LAYER
from steatosis_tf.model.frozen_graph import constant_graph, graph_of
from steatosis_tf.model.openvino_engine import openvino_forward

#: Frames per call. A fixed size lets OpenVINO choose its kernels once.
BATCH = 16

Forward = Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]


@dataclass(frozen=True)
class Engine:
    """A way to run the backbone.

    Attributes:
        name: keras, tf-bf16 or openvino.
        precision: float32, bfloat16 or float16.
        forward: batches `(BATCH, height, width, 1)` uint8 -> features `(BATCH, num_features)`
            float32, in order; lazily, so that decoding and computing overlap.
        min_cosine: smallest cosine to the reference on the checked frames.
        changed: share of random heads' decisions on them that change.
        speedup: processor time of the reference over that of the engine, measured in turn.
    """

    name: str
    precision: str
    forward: Forward
    min_cosine: float = 1.0
    changed: float = 0.0
    speedup: float = 1.0


def choose_engine(
    name: str, backbone: keras.Model, check_rois: np.ndarray, cache_dir: str | Path
) -> Engine:
    """Make the engine asked for, hold it against the Keras reference, and say on stderr which.

    Args:
        name: "keras", "tf-bf16", "openvino", or "auto": the first of openvino and tf-bf16 that is
            installed, that the processor has instructions for, that agrees and that is no slower
            than the reference; else the reference.
        backbone: as `build_backbone` gives it.
        check_rois: `(num_frames, height, width, 1)` uint8, real frames of the study, one or more.
        cache_dir: where OpenVINO's graph is kept.

    Raises:
        RuntimeError: if the engine asked for is not installed, or its features are off.
    """
    reference = reference_engine(backbone)
    for candidate in _candidates(name):
        try:
            engine = _make(candidate, backbone, Path(cache_dir))
            engine = _held_against(reference, engine, check_rois)
            if name != "auto" or engine.speedup >= 1:
                _tell(f"engine {name}: {_text(engine)}")
                return engine
            _tell(f"engine {candidate} passed over: {_text(engine)}")
        except RuntimeError as error:
            if name == candidate != "keras":
                raise
            _tell(f"engine {candidate} passed over: {error}")
    _tell(f"engine {name}: keras float32, the reference")
    return reference


def reference_engine(backbone: keras.Model) -> Engine:
    """Plain Keras in float32, what every other engine is held against."""
    return Engine("keras", "float32", _keras_forward(backbone))


def padded(batch: np.ndarray) -> np.ndarray:
    """A batch filled up to `BATCH` frames with zeros; the caller cuts the features again."""
    if len(batch) == BATCH:
        return batch
    return np.concatenate([batch, np.zeros((BATCH - len(batch), *batch.shape[1:]), batch.dtype)])


def has_bfloat16(cpuinfo_path: str | Path = "/proc/cpuinfo") -> bool:
    """Whether the processor multiplies bfloat16 itself; emulated it is four times slower than
    float32. Where the system does not tell (not Linux): no."""
    try:
        text = Path(cpuinfo_path).read_text(errors="replace")
    except OSError:
        return False
    return bool({"avx512_bf16", "amx_bf16"} & set(text.split()))


def _candidates(name: str) -> list[str]:
    """Engines to try before the plain reference."""
    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    if name == "keras" or (name == "auto" and on_gpu):
        return ["keras"] if on_gpu else []
    if name != "auto":
        return [name]
    if has_bfloat16():
        return ["openvino", "tf-bf16"]
    _tell("engine tf-bf16 passed over: this processor has no bfloat16 (avx512_bf16, amx_bf16)")
    return ["openvino"]


def _make(name: str, backbone: keras.Model, cache_dir: Path) -> Engine:
    if name == "openvino":
        return Engine(name, *openvino_forward(backbone, cache_dir, BATCH))
    if name == "tf-bf16":
        return Engine(name, "bfloat16", _bf16_forward(backbone))
    return Engine(name, "float16", _keras_forward(in_float16(backbone)))


def _held_against(reference: Engine, engine: Engine, check_rois: np.ndarray) -> Engine:
    """The engine with what the comparison gave.

    Raises:
        RuntimeError: if its features are off.
    """
    batch = padded(check_rois[:BATCH])
    count = min(BATCH, len(check_rois))
    expected = next(reference.forward([batch]))[:count]
    received = next(engine.forward([batch]))[:count]
    cosine = smallest_cosine(received, expected)
    changed = changed_decisions(received, expected)
    if not (cosine >= MIN_COSINE and changed <= MAX_CHANGED):
        raise RuntimeError(
            f"Expected features of engine {engine.name} {engine.precision} within cosine "
            f"{MIN_COSINE} of Keras and at most {MAX_CHANGED:.0%} of random heads' decisions "
            f"changed. Received: {cosine:.6f} and {changed:.1%}. Use model.engine=keras."
        )
    # Both ran once, so both are compiled. Processor time, because others may use the machine.
    speedup = _cpu_seconds(reference, batch) / _cpu_seconds(engine, batch)
    return replace(engine, min_cosine=cosine, changed=changed, speedup=speedup)


def _cpu_seconds(engine: Engine, batch: np.ndarray) -> float:
    start = time.process_time()
    next(engine.forward([batch]))
    return time.process_time() - start


def _text(engine: Engine) -> str:
    return (
        f"{engine.name} {engine.precision}, {engine.speedup:.1f} times as fast as Keras float32 "
        f"(processor time), cosine {engine.min_cosine:.6f}, {engine.changed:.1%} of random heads' "
        "decisions changed"
    )


def _tell(text: str) -> None:
    tqdm.write(text, file=sys.stderr)


def _keras_forward(backbone: keras.Model) -> Forward:
    graph = graph_of(backbone, BATCH)
    return lambda batches: (graph(tf.constant(b)).numpy() for b in batches)


def in_float16(backbone: keras.Model) -> keras.Model:
    """The backbone with its network in mixed float16; preprocessing and features stay float32."""

    def mixed(layer: keras.Operation) -> keras.Operation:
        config = layer.get_config()
        # The network begins at its first weights. Before, sums of grey levels exceed 65504.
        if layer.name in network:
            config["dtype"] = "mixed_float16"
        return type(layer).from_config(config)

    names = [layer.name for layer in backbone.layers]
    first = next(n for n, layer in enumerate(backbone.layers) if layer.weights)
    network = set(names[first:]) - {FEATURE_LAYER}

    model = keras.models.clone_model(backbone, clone_function=mixed)
    model.set_weights(backbone.get_weights())
    return model


def _bf16_forward(backbone: keras.Model) -> Forward:
    # The option is read when the graph is first optimised, so it is set around that only.
    frozen = constant_graph(backbone, BATCH)

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

    return forward
