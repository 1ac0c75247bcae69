"""The backbone in OpenVINO (extra `fast`), compiled for fixed batches, four of them in flight."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from steatosis_tf.files import file_sha256, replacing
from steatosis_tf.model.backbone import backbone_sha256
from steatosis_tf.model.frozen_graph import constant_graph

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
    try:
        import openvino
    except ImportError as error:
        raise RuntimeError(
            "Expected the package openvino. Received: not installed. "
            "Install it with `pip install steatosis_tf[fast]`, or use model.engine=keras."
        ) from error
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
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    with replacing(path.with_suffix(".sha256")) as temporary:
        temporary.write_text(hashlib.sha256(data).hexdigest())
    return path


def _is_whole(path: Path) -> bool:
    """Whether the kept graph is what was written; a damaged one is written again."""
    note_path = path.with_suffix(".sha256")
    if not path.is_file() or not note_path.is_file():
        return False
    return note_path.read_text(errors="replace") == file_sha256(path)
