"""A trained Keras model as an ONNX file that gives the same numbers."""

import contextlib
import dataclasses
import gc
import io
import json
import re
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import keras
import numpy as np
import onnx
import onnxruntime
import tensorflow as tf
import tf2onnx

from steatosis_tf import __version__
from steatosis_tf.cohort.manifest import read_manifest
from steatosis_tf.config import Config, load_config
from steatosis_tf.deploy.onnx_file import WEIGHTS_KEY, name_by_place, weights_sha256
from steatosis_tf.deploy.predict import are_probabilities
from steatosis_tf.files import file_sha256, replacing
from steatosis_tf.grades import GRADES, NOTICE, OUTPUT_LAYER
from steatosis_tf.records.builder import usable_rows
from steatosis_tf.roi.columns import cut_roi
from steatosis_tf.unfinished import refuse_unfinished

#: How far an exported probability may lie from the Keras one.
MAX_DIFFERENCE = 1e-4
# In the form that Keras writes.
_DATE_SAVED = "1980-01-01@00:00:00"
#: On how many frames the exported file is held against Keras.
NUM_CHECKED = 64


def export_onnx(
    model: keras.Model,
    output_path: str | Path,
    check_rois: np.ndarray,
    metadata: Mapping[str, str] | None = None,
    *,
    max_difference: float = MAX_DIFFERENCE,
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

    Returns:
        largest difference of an output between ONNX and Keras.

    Raises:
        ValueError: if there is no ROI to check on.
        RuntimeError: if an output differs by more than `max_difference` or is NaN, a grade
            changes, or the outputs are no probabilities.
    """
    if not len(check_rois):
        raise ValueError("Expected at least one ROI to check the export on. Received: none.")
    signature = (tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8, name="roi"),)
    with frugal_memory():
        proto, _ = tf2onnx.convert.from_keras(model, input_signature=signature, opset=17)
    _rename_outputs(proto, _output_names(model))
    name_by_place(proto)
    texts = {
        "grades": json.dumps(GRADES),
        "notice": NOTICE,
        "steatosis_tf": __version__,
        **(metadata or {}),
    }
    props = {f"steatosis.{key}": text for key, text in texts.items()}
    props[WEIGHTS_KEY] = weights_sha256(io.BytesIO(proto.SerializeToString()))
    onnx.helper.set_model_props(proto, props)
    onnx.checker.check_model(proto)
    with replacing(output_path) as temporary:
        onnx.save(proto, str(temporary))
        return _largest_difference(model, temporary, check_rois, max_difference)


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
    if not (run_dir / "model.keras").is_file():
        raise ValueError(
            f"Expected a run directory with model.keras. Received: run_dir={run_dir.name!r}."
        )
    manifest_path = run_dir / "manifest.csv"
    # One frame per patient: the frames of one are too alike to check anything twice.
    rows = usable_rows(read_manifest(manifest_path)).drop_duplicates("patient_id")
    rows = rows.head(NUM_CHECKED)
    rois = np.stack([cut_roi(row, manifest_path) for row in rows.to_dict("records")])
    model = keras.models.load_model(run_dir / "model.keras")
    texts = run_metadata(run_dir, load_config(run_dir / "config.json"))
    return export_onnx(model, output_path, rois[..., np.newaxis], texts)


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
    `operating_points`: the cut-offs locked on validation; only of a hold-out run, because those
    of folds belong to models that were not exported.
    """
    texts = {
        f"{name}_sha256": file_sha256(run_dir / f"{name}.csv")
        for name in ("manifest", "split")
        if (run_dir / f"{name}.csv").is_file()
    }
    texts["roi"] = json.dumps(dataclasses.asdict(config.roi))
    points_path = run_dir / "operating_points.json"
    if config.split.kind in ("holdout", "temporal") and points_path.is_file():
        texts["operating_points"] = json.dumps(json.loads(points_path.read_text()))
    return texts


@contextlib.contextmanager
def frugal_memory() -> Iterator[None]:
    """Collect garbage often, and only what is new.

    tf2onnx copies the whole graph for each of its passes, in reference cycles that Python's
    collector would leave until it has seen enough objects, however large: ResNet-50's 94 MB of
    weights grew to 9 GB that way, to 3 GB this way.
    """
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    # The collector waits with a full collection until a quarter as many new objects are there as
    # survived the last one. Freezing leaves that number as it was, TensorFlow's objects included:
    # collecting once more, with nothing left to look at, sets it to zero.
    gc.collect()
    gc.set_threshold(700, 2, 2)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
        gc.collect()


def _output_names(model: keras.Model) -> list[str]:
    """Names of the outputs in the order TensorFlow flattens them: a dict's by name."""
    return sorted(model.output) if isinstance(model.output, dict) else [OUTPUT_LAYER]


def _rename_outputs(proto: onnx.ModelProto, names: list[str]) -> None:
    for output, name in zip(proto.graph.output, names, strict=True):
        for node in proto.graph.node:
            for values in (node.output, node.input):
                for index, value in enumerate(values):
                    if value == output.name:
                        values[index] = name
        output.name = name


def _largest_difference(
    model: keras.Model, onnx_path: Path, rois: np.ndarray, max_difference: float
) -> float:
    session = onnxruntime.InferenceSession(str(onnx_path), providers=["CPUExecutionProvider"])
    names = _output_names(model)
    answer = model.predict(rois, batch_size=32, verbose=0)
    expected = answer if isinstance(answer, dict) else {OUTPUT_LAYER: answer}
    parts = [session.run(names, {"roi": rois[i : i + 32]}) for i in range(0, len(rois), 32)]
    received = dict(zip(names, map(np.concatenate, zip(*parts, strict=True)), strict=True))
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
