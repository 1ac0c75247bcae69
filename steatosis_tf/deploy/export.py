"""A trained Keras model as an ONNX file that gives the same numbers."""

import dataclasses
import hashlib
import importlib.metadata
import json
import re
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime
import pandas as pd
import tensorflow as tf
import tf2onnx
from onnx import helper, numpy_helper

from steatosis_tf import __version__
from steatosis_tf.cohort.manifest import read_manifest
from steatosis_tf.config import Config, load_config
from steatosis_tf.deploy.bare_network import are_probabilities
from steatosis_tf.deploy.onnx_file import BATCH, WEIGHTS_KEY, run_network, weights_sha256
from steatosis_tf.files import file_sha256, replacing
from steatosis_tf.grades import GRADES, NOTICE, OUTPUT_LAYER
from steatosis_tf.model import heads  # noqa: F401  Keras knows their layers once this is read
from steatosis_tf.model.backbone import FEATURE_LAYER
from steatosis_tf.records.builder import usable_rows
from steatosis_tf.roi.columns import cut_roi
from steatosis_tf.roi.views import VIEW_COLUMN
from steatosis_tf.unfinished import refuse_unfinished

#: How far an exported probability may lie from the Keras one.
MAX_DIFFERENCE = 1e-4
# In the form that Keras writes.
_DATE_SAVED = "1980-01-01@00:00:00"
#: On how many frames the exported file is held against Keras.
NUM_CHECKED = 64
#: On how many where its backbone has been held against Keras before.
NUM_CHECKED_AGAIN = 8
#: Version of ONNX' operators.
OPSET = 17
# How far float32 takes a whole number of 16 bits off.
_ROUNDING = 0.02
_LARGEST = np.iinfo(np.int16).max

# Counts up whenever another file may come of the same network.
_VERSION = 1
# Left to whoever runs the file: they would change kernels.
_FUSIONS = ["ConvAddFusion", "ConvBNFusion", "ConvMulFusion"]


def export_onnx(
    model: keras.Model,
    output_path: str | Path,
    check_rois: np.ndarray,
    metadata: Mapping[str, str] | None = None,
    *,
    max_difference: float = MAX_DIFFERENCE,
    cache_dir: Path | None = None,
) -> float:
    """Write the model as ONNX and check it against Keras on real ROIs.

    The file has one input `roi` (batch, height, width, 1) uint8 and one output `probabilities`
    (batch, 4) float32, both with a free batch size, and says in its metadata what the grades
    are, in which order, what it is not for, and the hash of its weights. A model whose outputs
    are a dict keeps all of them by name, in the order of their names.

    Args:
        model: float32 model, as `assemble` gives it; another task's has another number of classes.
        output_path: file to write; left untouched if the check fails.
        check_rois: `(num_frames, height, width, 1)` uint8, at least one.
        metadata: further texts to keep in the file, for example the run id; `grades` replaces the
            class names, a JSON list, where the task is not the four grades.
        max_difference: how far an output may lie from Keras'.
        cache_dir: keeps frozen backbones, see `kept_network`; a head is then joined to the kept
            one, and `NUM_CHECKED_AGAIN` ROIs are compared where the backbone has been before.

    Returns:
        largest difference of an output between ONNX and Keras.

    Raises:
        ValueError: if there is no ROI to check on.
        RuntimeError: if an output differs by more than `max_difference` or is NaN, a grade
            changes, or the outputs are no probabilities.
    """
    if not len(check_rois):
        raise ValueError("Expected at least one ROI to check the export on. Received: none.")
    backbone = _frozen_part(model) if cache_dir else None
    if cache_dir is None or backbone is None:
        proto = convert_network(model, _output_names(model))
    else:
        if _kept_path(backbone, cache_dir).is_file():
            check_rois = check_rois[:NUM_CHECKED_AGAIN]
        head = keras.Model(model.get_layer(FEATURE_LAYER).output, model.output)
        proto = kept_network(backbone, [FEATURE_LAYER], cache_dir)
        _join(proto, convert_network(head, _output_names(model)))
    name_by_place(proto)
    texts = {
        "grades": json.dumps(GRADES),
        "notice": NOTICE,
        "steatosis_tf": __version__,
        **(metadata or {}),
    }
    props = {f"steatosis.{key}": text for key, text in texts.items()}
    props[WEIGHTS_KEY] = weights_sha256(proto.graph)
    helper.set_model_props(proto, props)
    onnx.checker.check_model(proto)
    with replacing(output_path) as temporary:
        onnx.save(proto, str(temporary))
        del proto
        return _largest_difference(model, temporary, check_rois, max_difference)


def kept_network(
    model: keras.Model, output_names: Sequence[str], cache_dir: Path
) -> onnx.ModelProto:
    """`convert_network`, once for each network: the result is kept by the hash of its layers and
    weights in `cache_dir/onnx`."""
    path = _kept_path(model, cache_dir)
    if not path.is_file():
        with replacing(path) as temporary:
            onnx.save(convert_network(model, output_names), str(temporary))
    return onnx.load(str(path))


def convert_taps(taps: keras.Model, cache_dir: str | Path) -> onnx.ModelProto:
    """The backbone as ONNX, converted once and kept, see `kept_network`.

    Weights of convolutions become int16 with a scale per channel, half the size, and are made
    float32 when the file is opened.

    Args:
        taps: `roi` `(batch, depth, beams, 1)` uint8 -> two maps, float32, as
            `steatosis_tf.model.efficientnet_lite0.lite0_taps` gives them.
        cache_dir: folder of what is kept.
    """
    proto = kept_network(taps, ("near", "far"), Path(cache_dir))
    _halve(proto)
    name_by_place(proto)
    return proto


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
            helper.make_node("Cast", [f"{name}_whole"], [f"{name}_cast"], name=f"{name}_cast",
                             to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", [f"{name}_cast", f"{name}_scale"], [name], name=f"{name}_mul"),
        ]  # fmt: skip
        for place, node in enumerate(made):
            graph.node.insert(place, node)


def _kept_path(model: keras.Model, cache_dir: Path) -> Path:
    # Names say nothing: Keras numbers them anew in each process.
    layers = [
        (type(one).__name__, {key: text for key, text in one.get_config().items() if key != "name"})
        for one in model.operations
    ]
    made_by = [_VERSION, *(importlib.metadata.version(one) for one in ("tf2onnx", "onnxruntime"))]
    described = json.dumps([made_by, model.input_shape, layers], sort_keys=True, default=str)
    digest = hashlib.sha256(described.encode())
    for weight in model.get_weights():
        digest.update(weight.tobytes())
    return cache_dir / "onnx" / f"{digest.hexdigest()[:32]}.onnx"


def name_by_place(proto: onnx.ModelProto) -> None:
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
    outputs: list[str], nodes: list[onnx.NodeProto], maker: dict[str, int]
) -> list[onnx.NodeProto]:
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


def _frozen_part(model: keras.Model) -> keras.Model | None:
    """The backbone of a model as `assemble` gives it, if no training has changed it."""
    if FEATURE_LAYER not in [layer.name for layer in model.layers]:
        return None
    backbone = keras.Model(model.input, model.get_layer(FEATURE_LAYER).output)
    return None if backbone.trainable_weights else backbone


def _join(proto: onnx.ModelProto, head: onnx.ModelProto) -> None:
    """Put a head behind the network whose one output it reads.

    `onnx.compose.merge_models` would copy the weights three times.
    """
    (features,), (given,) = proto.graph.output, head.graph.input
    for node in head.graph.node:
        node.input[:] = [features.name if name == given.name else name for name in node.input]
    head = onnx.compose.add_prefix(head, "head_", rename_inputs=False, rename_outputs=False)
    proto.graph.node.extend(head.graph.node)
    proto.graph.initializer.extend(head.graph.initializer)
    del proto.graph.output[:]
    proto.graph.output.extend(head.graph.output)


def convert_network(model: keras.Model, output_names: Sequence[str]) -> onnx.ModelProto:
    """A network as ONNX, in little memory.

    tf2onnx copies a graph, with the constants in it, for each of its passes: the 94 MB of a
    ResNet-50 grew to 3 GB. So it is given a graph whose weights are inputs. They are put in
    afterwards, and onnxruntime computes once what depends on nothing else, such as their layout.

    Args:
        model: one input and one or more outputs, with any batch size.
        output_names: what to call the outputs, in TensorFlow's order: of a dict that of its names.

    Returns:
        the input has its name in Keras. Kernels are those of Keras in ONNX's layout.
    """
    trainable, fixed = model.trainable_variables, model.non_trainable_variables
    weights = {f"weight_{place}": weight for place, weight in enumerate([*trainable, *fixed])}

    def answer(values: tf.Tensor, *numbers: tf.Tensor) -> Any:
        parts = numbers[: len(trainable)], numbers[len(trainable) :]
        return model.stateless_call(*parts, values, training=False)[0]

    (given,) = model.inputs
    signature = [tf.TensorSpec(given.shape, given.dtype, name=given.name)] + [
        tf.TensorSpec(weight.shape, weight.dtype, name=name) for name, weight in weights.items()
    ]
    proto, _ = tf2onnx.convert.from_function(
        tf.function(answer, autograph=False), input_signature=signature, opset=OPSET
    )
    used = {name for node in proto.graph.node for name in node.input}
    for value in [one for one in proto.graph.input if one.name in weights]:
        proto.graph.input.remove(value)
        if value.name in used:  # a dropout's seed is not
            numbers = weights[value.name].numpy()
            proto.graph.initializer.append(numpy_helper.from_array(numbers, value.name))
    _rename_outputs(proto, output_names)
    return _folded(proto)


def _rename_outputs(proto: onnx.ModelProto, names: Sequence[str]) -> None:
    for output, name in zip(proto.graph.output, names, strict=True):
        for node in proto.graph.node:
            for values in (node.output, node.input):
                for index, value in enumerate(values):
                    if value == output.name:
                        values[index] = name
        output.name = name


def _folded(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with what depends on weights alone computed."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(
            proto.SerializeToString(), options, ["CPUExecutionProvider"],
            disabled_optimizers=_FUSIONS,
        )  # fmt: skip
        folded = onnx.load(str(path))
    # onnxruntime names every set of operators that it knows.
    del folded.opset_import[:]
    folded.opset_import.append(helper.make_opsetid("", OPSET))
    # tf2onnx puts in what TensorFlow counts.
    folded.graph.name, folded.graph.doc_string = "network", ""
    return folded


def export_run(run_dir: str | Path, output_path: str | Path) -> float:
    """Export the model of a run, checked on frames of the run's own manifest.

    Args:
        run_dir: directory with `model.keras` and `manifest.csv`.
        output_path: ONNX file to write.

    Returns:
        largest difference of a probability between ONNX and Keras.

    Raises:
        ValueError: if the directory is not a run, one that has not come to its end, or its frames
            are gone.
        RuntimeError: if the exported model differs.
    """
    run_dir = Path(run_dir)
    refuse_unfinished(run_dir)
    if (run_dir / "bundle").is_dir():
        raise ValueError(
            "Expected a run whose model is one file, as recipe paper trains it. Received: "
            f"{run_dir.name!r}, whose model is a bundle. Write that: give --output a folder."
        )
    if not (run_dir / "model.keras").is_file():
        raise ValueError(
            f"Expected a run directory with model.keras. Received: run_dir={run_dir.name!r}."
        )
    manifest_path = run_dir / "manifest.csv"
    # One frame per patient: the frames of one are too alike to check anything twice.
    rows = usable_rows(read_manifest(manifest_path)).drop_duplicates("patient_id")
    rows = rows.head(NUM_CHECKED)
    rois = np.stack([cut_roi(row, manifest_path) for row in rows.to_dict("records")])
    model = _load_keras(run_dir / "model.keras")
    texts = run_metadata(run_dir, load_config(run_dir / "config.json"))
    cache_dir = run_dir.absolute().parents[1] / "cache"
    return export_onnx(
        model, output_path, rois[..., np.newaxis], texts,
        cache_dir=cache_dir if cache_dir.is_dir() else None,
    )  # fmt: skip


def _load_keras(path: Path) -> keras.Model:
    """A model, never code: Keras' safe mode refuses what would run."""
    try:
        return keras.models.load_model(path)
    except Exception as error:  # Keras raises whatever its readers raise
        raise ValueError(
            "Expected a model that Keras saved, without code of its own. Received: "
            f"{path.parent.name}/{path.name}, which Keras {keras.__version__} does not load "
            f"({type(error).__name__}). Copy the run again whole, or train it again."
        ) from error


def save_keras(model: keras.Model, path: str | Path) -> None:
    """Save a model so that the same model is the same file.

    Keras writes the hour into it, and addresses of objects as their names.

    Raises:
        OSError: as `files.replacing`.
    """
    with replacing(path) as temporary:
        model.save(temporary)
        with zipfile.ZipFile(temporary) as archive:
            parts = {name: archive.read(name) for name in sorted(archive.namelist())}
        metadata = json.loads(parts["metadata.json"]) | {"date_saved": _DATE_SAVED}
        parts["metadata.json"] = json.dumps(metadata).encode()
        numbers: dict[bytes, int] = {}
        parts["config.json"] = re.sub(
            rb'(?<="shared_object_id": )\d+',
            lambda address: b"%d" % numbers.setdefault(address[0], len(numbers)),
            parts["config.json"],
        )
        with zipfile.ZipFile(temporary, "w") as archive:
            for name, content in parts.items():
                archive.writestr(zipfile.ZipInfo(name), content)  # of 1980, uncompressed


def milliseconds_per_frame(onnx_path: str | Path, rois: np.ndarray) -> float:
    """Median time of onnxruntime for one frame at a time on this machine, ROI to probabilities."""
    session = onnxruntime.InferenceSession(str(onnx_path), providers=["CPUExecutionProvider"])
    seconds = []
    for roi in rois[:16]:
        start = time.perf_counter()
        session.run(None, {"roi": roi[np.newaxis]})
        seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds))


def run_metadata(run_dir: Path, config: Config) -> dict[str, str]:
    """What prediction has to know about a run, as texts for the ONNX file.

    `manifest_sha256`, `split_sha256`: what it was trained on; the same run has the same file.
    `roi`: how frames were cut for this model, so that prediction cuts them the same way.
    `marks`: "painted out" of what it was trained on, as prediction does, or "kept" by an earlier
    version, whose manifest has no column `roi_view` yet.
    `aggregation`: how a patient's frames were joined.
    `operating_points`: the cut-offs locked on validation; only of a hold-out run, because those
    of folds belong to models that were not exported.
    """
    texts = {
        f"{name}_sha256": file_sha256(run_dir / f"{name}.csv")
        for name in ("manifest", "split")
        if (run_dir / f"{name}.csv").is_file()
    }
    texts["roi"] = json.dumps(dataclasses.asdict(config.roi))
    if (run_dir / "manifest.csv").is_file():
        columns = pd.read_csv(run_dir / "manifest.csv", nrows=0).columns
        texts["marks"] = "painted out" if VIEW_COLUMN in columns else "kept"
    texts["aggregation"] = config.evaluation.aggregation
    points_path = run_dir / "operating_points.json"
    if config.split.kind in ("holdout", "temporal") and points_path.is_file():
        texts["operating_points"] = json.dumps(json.loads(points_path.read_text()))
    return texts


def _output_names(model: keras.Model) -> list[str]:
    """Names of the outputs in the order TensorFlow flattens them: a dict's by name."""
    return sorted(model.output) if isinstance(model.output, dict) else [OUTPUT_LAYER]


def _largest_difference(
    model: keras.Model, onnx_path: Path, rois: np.ndarray, max_difference: float
) -> float:
    session = onnxruntime.InferenceSession(str(onnx_path), providers=["CPUExecutionProvider"])
    names = _output_names(model)
    answer = model.predict(rois, batch_size=BATCH, verbose=0)
    expected = answer if isinstance(answer, dict) else {OUTPUT_LAYER: answer}
    received = run_network(session, names, rois[..., 0])
    # NaN if any value is NaN
    difference = float(np.max([np.abs(received[name] - expected[name]).max() for name in names]))
    grades = [found[OUTPUT_LAYER].argmax(axis=1) for found in (received, expected)]
    changed = int((grades[0] != grades[1]).sum())
    # A tie within float rounding is not a changed model, but nobody should have to judge that
    # here: any changed grade stops the export.
    if not difference <= max_difference or changed:
        raise RuntimeError(
            f"Expected ONNX probabilities within {max_difference} of Keras and the same grades. "
            f"Received: difference={difference:.2g}, changed grades={changed} of {len(rois)}. "
            "No file was written."
        )
    if not are_probabilities(received[OUTPUT_LAYER]).all():
        raise RuntimeError(
            "Expected a model whose outputs are within 0 to 1 and sum to 1. "
            f"Received: {received[OUTPUT_LAYER][0].tolist()} for the first frame. "
            "No file was written."
        )
    return difference
