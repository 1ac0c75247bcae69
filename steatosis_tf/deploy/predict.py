"""Grades for frames, by onnxruntime alone: this file and what it imports need no TensorFlow."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
from tqdm import tqdm

from steatosis_tf.config import RoiConfig
from steatosis_tf.deploy.onnx_weights import WEIGHTS_KEY, weights_sha256
from steatosis_tf.files import replacing
from steatosis_tf.grades import GRADES, NOTICE, OUTPUT_LAYER, SCORE_COLUMNS
from steatosis_tf.roi.propose import propose_roi
from steatosis_tf.roi.views import input_shape, model_input
from steatosis_tf.sources.images import IMAGE_SUFFIXES, read_frame

#: How far the sum of a frame's probabilities may lie from 1: rounding, also of an int8 model.
MAX_SUM_DIFFERENCE = 1e-3

_BATCH = 32
_BOX_COLUMNS = ("roi_top", "roi_left", "roi_height", "roi_width")
_COLUMNS = ("path", "grade", *SCORE_COLUMNS, *_BOX_COLUMNS, "reason", "notice")


def predict_frames(model_path: str | Path, paths: Iterable[str | Path]) -> pd.DataFrame:
    """Grade image files.

    Args:
        model_path: ONNX file made by `steatosis export` or an experiment.
        paths: frames, or folders of frames (searched through, in sorted order).

    Returns:
        one row per frame: `path, grade, p_normal, p_mild, p_moderate, p_severe, roi_top,
        roi_left, roi_height, roi_width, reason, notice`. A frame that cannot be graded has an
        empty grade and its reason. If the model is at fault, it has its ROI all the same.

    Raises:
        ValueError: if the model is not one of ours, or there is no frame at the paths.
    """
    session = load_model(model_path)
    roi_config = _roi_config(_texts(session))
    files = list(_frame_files(paths))
    rows: list[dict] = []
    with tqdm(total=len(files), desc="predict", unit="frame") as bar:
        remaining = iter(files)
        while batch := list(islice(remaining, _BATCH)):
            rows += _predict_batch(session, roi_config, batch)
            bar.update(len(batch))
    table = pd.DataFrame(rows, columns=list(_COLUMNS))
    # Whole px also where a refused frame has none.
    return table.astype(dict.fromkeys(_BOX_COLUMNS, "Int64"))


def write_predictions(predictions: pd.DataFrame, output_path: str | Path) -> None:
    """Write `predictions.csv` whole or not at all."""
    with replacing(output_path) as temporary:
        predictions.to_csv(temporary, index=False, lineterminator="\n")


def are_probabilities(scores: np.ndarray) -> np.ndarray:
    """Which rows are finite, within 0 to 1 and sum to 1.

    A damaged model answers NaN or any number, and the largest of them would be a grade.

    Args:
        scores: `(num_frames, num_classes)` float.

    Returns:
        `(num_frames,)` bool.

    Example:
        >>> are_probabilities(np.array([[0.1, 0.2, 0.3, 0.4], [-3, 5, 5, 10], [np.nan] * 4]))
        array([ True, False, False])
    """
    # NaN compares as False, infinity is not within 0 to 1.
    outside = ~((scores >= 0) & (scores <= 1))
    # Summed without them: infinity less infinity would warn.
    sums = np.where(outside, np.nan, scores).sum(axis=1, dtype=float)
    return np.abs(sums - 1) <= MAX_SUM_DIFFERENCE


def load_model(model_path: str | Path) -> onnxruntime.InferenceSession:
    """Open a grading model, check that it is one and that its weights are those exported.

    Raises:
        ValueError: if the file is missing, not ONNX, not a four-grade model of this package, or
            its weights are not those whose hash it carries.
    """
    path = Path(model_path)
    if not path.is_file():
        raise ValueError(f"Expected an ONNX file. Received: model={path.name!r}, which is no file.")
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own below plain Exception
        raise ValueError(
            f"Expected an ONNX file. Received: model={path.name!r}, which onnxruntime refuses. "
            "Was it copied whole?"
        ) from error
    texts = session.get_modelmeta().custom_metadata_map
    grades = texts.get("steatosis.grades", "")
    shapes = [node.shape[1:] for node in session.get_inputs()]
    height, width = input_shape(_roi_config(texts).view)
    if grades != json.dumps(GRADES) or shapes != [[height, width, 1]]:
        raise ValueError(
            f"Expected a model of steatosis_tf with the grades {', '.join(GRADES)} and input "
            f"{height} x {width} x 1. Received: model={path.name!r} with "
            f"grades={grades} inputs={shapes}. Export it with `steatosis export RUN_DIR`."
        )
    _check_weights(path, texts.get(WEIGHTS_KEY))
    return session


def _check_weights(path: Path, expected: str | None) -> None:
    if expected is None:
        tqdm.write(
            f"{path.name} carries no hash of its weights (an older version wrote it), so damage "
            "to it cannot be seen. Export it again with `steatosis export RUN_DIR`.",
            file=sys.stderr,
        )
        return
    with path.open("rb") as file:
        received = weights_sha256(file)
    if received != expected:
        raise ValueError(
            f"Expected weights with the SHA-256 {expected}, which the file carries. "
            f"Received: model={path.name!r} with {received}. The file is damaged or was changed: "
            "copy it again, or export it again with `steatosis export RUN_DIR`."
        )


def _roi_config(texts: Mapping[str, str]) -> RoiConfig:
    """How frames were cut for a model, from the texts of its file."""
    return RoiConfig(**json.loads(texts.get("steatosis.roi", "{}")))


def _texts(session: onnxruntime.InferenceSession) -> dict[str, str]:
    return dict(session.get_modelmeta().custom_metadata_map)


def _frame_files(paths: Iterable[str | Path]) -> Iterator[Path]:
    found = False
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            found = found or bool(inside)
            yield from inside
        else:
            found = True
            yield path  # a missing file becomes a row with its reason
    if not found:
        raise ValueError(
            f"Expected frames ({', '.join(IMAGE_SUFFIXES)}) or folders of them. Received: none."
        )


def _predict_batch(
    session: onnxruntime.InferenceSession, roi_config: RoiConfig, files: list[Path]
) -> list[dict]:
    rows, rois = [], []
    for path in files:
        row = {"path": path.as_posix(), "grade": "", **dict.fromkeys(SCORE_COLUMNS, np.nan)}
        try:
            frame = read_frame(path)
            roi = propose_roi(frame, roi_config)
            rois.append(
                model_input(frame, roi.sector.fan, roi.rectangle, roi_config.view, roi.overlay_mask)
            )
            box = roi.rectangle
            edges = (box.top, box.left, box.height, box.width)
            row |= {**dict(zip(_BOX_COLUMNS, edges, strict=True)), "reason": ""}
        except ValueError as error:
            row |= {"reason": str(error)}
        rows.append(row | {"notice": NOTICE})
    if rois:
        scores = session.run([OUTPUT_LAYER], {"roi": np.stack(rois)[..., np.newaxis]})[0]
        with_roi = [row for row in rows if not row["reason"]]
        for row, values, sound in zip(with_roi, scores, are_probabilities(scores), strict=True):
            row |= _graded(values) if sound else {"reason": _no_probabilities(values)}
    return rows


def _graded(scores: np.ndarray) -> dict:
    return {
        "grade": GRADES[int(scores.argmax())],
        **dict(zip(SCORE_COLUMNS, scores.tolist(), strict=True)),
    }


def _no_probabilities(scores: np.ndarray) -> str:
    return (
        "the model is at fault: expected probabilities within 0 to 1 that sum to 1. "
        f"Received: {', '.join(f'{score:.4g}' for score in scores)}. Export or copy it again"
    )
