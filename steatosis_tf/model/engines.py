"""Inference backends for the frozen forward pass: the same features, faster.

`keras` is the reference: plain Keras in float32, on a GPU with the network in float16. `tf-bf16` is
the same TensorFlow graph with oneDNN's bfloat16. `openvino` (extra `fast`)
computes in bfloat16 where the processor can, else in float32. Rounded numbers keep 8 bits, so every
backend is held against the reference on the study's own frames when it starts, for what it computes
and for what it costs.
"""

import hashlib
import importlib
import importlib.metadata
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
from tqdm import tqdm

from steatosis_tf.files import file_sha256, write_bytes, write_json
from steatosis_tf.grades import GRADES
from steatosis_tf.model.backbone import FEATURE_LAYER, backbone_sha256

#: Under so many pictures the reference has computed them before another backend has been tried
#: (docs/speed.md).
WORTH_TRYING = 200

#: Frames per call. A fixed size lets OpenVINO choose its kernels once.
BATCH = 16

Forward = Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]


@dataclass(frozen=True)
class Engine:
    """An inference backend: a way to run the backbone.

    Attributes:
        name: keras, tf-bf16 or openvino.
        precision: float32, bfloat16 or float16.
        forward: batches `(BATCH, height, width, 1)` uint8 -> features `(BATCH, num_features)`
            float32, in order; lazily, so that decoding and computing overlap.
        version: of the library that computes.
        min_cosine: smallest cosine to the reference on the checked frames.
        changed: proportion of random heads' decisions on them that change.
        speedup: processor time of the reference over that of the backend, measured in turn.
    """

    name: str
    precision: str
    forward: Forward
    version: str = f"tensorflow-{tf.__version__}"
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
            than the reference; else the reference. What it took is kept, because a measured speed
            would decide otherwise another time, and other engines give other digits.
        backbone: as `build_backbone` gives it.
        check_rois: `(num_frames, height, width, 1)` uint8, real frames of the study, one or more.
        cache_dir: where OpenVINO's graph is kept, and the choice of "auto".

    Raises:
        RuntimeError: if the engine asked for is not installed, or its features are off.
    """
    reference, candidates, kept = reference_engine(backbone), _candidates(name), ""
    if name == "auto":
        note_path = Path(cache_dir) / f"engine-{_choice_key(backbone, candidates)}.json"
        kept = json.loads(note_path.read_text())["engine"] if note_path.is_file() else ""
        if kept:
            others = kept != "keras float32"  # the reference is no candidate
            candidates = [one for one in candidates if others and kept.startswith(f"{one} ")]
    for candidate in candidates:
        try:
            engine = _held_against(
                reference, _make(candidate, backbone, Path(cache_dir)), check_rois
            )
        except RuntimeError as error:
            if name == candidate != "keras":
                raise
            _tell(f"engine {candidate} passed over: {error}")
            continue
        # Of one that was chosen before the speed is no matter.
        if name != "auto" or kept or engine.speedup >= 1:
            _tell(f"engine {name}: {_text(engine)}")
            break
        _tell(f"engine {candidate} passed over: {_text(engine)}")
    else:
        _tell(f"engine {name}: keras float32, the reference")
        engine = reference
    if name == "auto" and not kept:
        write_json({"engine": f"{engine.name} {engine.precision}"}, note_path)
    return engine


def _choice_key(backbone: keras.Model, candidates: list[str]) -> str:
    """What decides about an engine but for its speed."""
    made_of = [backbone_sha256(backbone), backbone.input_shape[1:], candidates]
    made_of += [tf.__version__, _version_of("openvino")]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]


def _version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def check_installed(name: str) -> None:
    """Refuse an engine whose package is absent.

    Raises:
        RuntimeError: if it is.
    """
    try:
        if name == "openvino":
            importlib.import_module(name)
    except ImportError as error:
        raise RuntimeError(
            "Expected the package openvino. Received: not installed. "
            "Install it with `pip install 'steatosis_tf[fast]'`, or use model.engine=keras."
        ) from error


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
        version = f"openvino-{_version_of('openvino')}"
        return Engine(name, *openvino_forward(backbone, cache_dir, BATCH), version)
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


#: Cosine between received and expected features, on every checked frame.
MIN_COSINE = 0.999
#: Proportion of decisions of random heads that may change. They have no margins, so of a trained
#: head's decisions fewer change. On random ResNet-50 weights, whose features hardly differ between
#: patients, bfloat16 changes 7 %, int8 28 % and more: see docs/speed.md.
MAX_CHANGED = 0.10

_NUM_HEADS = 256
_EPSILON = 1e-6  # of the head's feature normalisation, see `heads.hidden_layers`


def smallest_cosine(received: np.ndarray, expected: np.ndarray) -> float:
    """Smallest cosine of a frame; NaN if any feature is NaN or all of a frame's are 0.

    Args:
        received: `(num_frames, num_features)` float32.
        expected: the same, of the reference.
    """
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(received, axis=1)
    with np.errstate(invalid="ignore"):
        return float(((expected * received).sum(axis=1) / norms).min())


def changed_decisions(received: np.ndarray, expected: np.ndarray) -> float:
    """Proportion of (head, frame) pairs that are graded otherwise, from 0 to 1.

    The heads are linear, drawn at random, and see features standardised by the expected ones, as a
    trained head does. One frame alone cannot be standardised: nothing is decided, nothing changes.

    Args:
        received: `(num_frames, num_features)` float32.
        expected: the same, of the reference.
    """
    if len(expected) < 2:
        return 0.0
    shape = (_NUM_HEADS, expected.shape[1], len(GRADES))
    heads = np.random.default_rng(0).standard_normal(shape, np.float32)
    mean, scale = expected.mean(axis=0), np.sqrt(expected.var(axis=0) + _EPSILON)

    def decisions(features: np.ndarray) -> np.ndarray:
        return ((features - mean) / scale @ heads).argmax(axis=-1)

    return float(np.mean(decisions(received) != decisions(expected)))


# Two streams compute while two further batches wait, so that neither ever stands idle.
_STREAMS = 2
_IN_FLIGHT = 4


def openvino_forward(
    backbone: keras.Model, cache_dir: Path, batch_size: int
) -> tuple[str, Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]]:
    """The precision it computes in, and the forward pass, as `engines.Engine` has them.

    bfloat16 on a processor with AMX or AVX512-BF16, else float32.

    Raises:
        RuntimeError: if OpenVINO is not installed.
    """
    check_installed("openvino")
    import openvino

    core = openvino.Core()
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    compiled = core.compile_model(
        str(_kept_graph(backbone, cache_dir, batch_size)),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "bf16" if has_bf16 else "f32", "NUM_STREAMS": _STREAMS},
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

    return "bfloat16" if has_bf16 else "float32", forward


def _finished(running: deque[Any], free: list[Any]) -> np.ndarray:
    """Features of the oldest running request, which is free again afterwards."""
    request = running.popleft()
    request.wait()
    features = request.get_output_tensor(0).data.copy()
    free.append(request)
    return features


def _kept_graph(backbone: keras.Model, cache_dir: Path, batch_size: int) -> Path:
    """The graph as a file, written once.

    OpenVINO reads TensorFlow's own format. By way of ONNX it took 6 GB of memory.
    """
    _, height, width, _ = backbone.input_shape
    name = f"backbone-{backbone_sha256(backbone)[:16]}-{height}x{width}-batch-{batch_size}.pb"
    path = cache_dir / name
    if _is_whole(path):
        return path
    data = constant_graph(backbone, batch_size).graph.as_graph_def().SerializeToString()
    write_bytes(data, path)
    write_bytes(hashlib.sha256(data).hexdigest().encode(), path.with_suffix(".sha256"))
    return path


def _is_whole(path: Path) -> bool:
    """Whether the kept graph is what was written; a damaged one is written again."""
    note_path = path.with_suffix(".sha256")
    if not path.is_file() or not note_path.is_file():
        return False
    return note_path.read_text(errors="replace") == file_sha256(path)


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
