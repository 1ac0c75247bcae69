"""Grades for frames, by onnxruntime alone: this file and what it imports need no TensorFlow."""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
from tqdm import tqdm

from steatosis_tf.config import RoiConfig
from steatosis_tf.files import replacing
from steatosis_tf.grades import GRADES, NOTICE, OUTPUT_LAYER, SCORE_COLUMNS
from steatosis_tf.roi.columns import propose_roi
from steatosis_tf.roi.crop import INPUT_SIZE_PX, crop_roi
from steatosis_tf.sources.folder import IMAGE_SUFFIXES, read_frame

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
        empty grade and its reason.

    Raises:
        ValueError: if the model is not one of ours, or there is no frame at the paths.
    """
    session = load_model(model_path)
    roi_config = RoiConfig(**json.loads(_texts(session)["steatosis.roi"]))
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


def load_model(model_path: str | Path) -> onnxruntime.InferenceSession:
    """Open a grading model and check that it is one.

    Raises:
        ValueError: if the file is missing, not ONNX, or not a four-grade model of this package.
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
    if grades != json.dumps(GRADES) or shapes != [[INPUT_SIZE_PX, INPUT_SIZE_PX, 1]]:
        raise ValueError(
            f"Expected a model of steatosis_tf with the grades {', '.join(GRADES)} and input "
            f"{INPUT_SIZE_PX} x {INPUT_SIZE_PX} x 1. Received: model={path.name!r} with "
            f"grades={grades} inputs={shapes}. Export it with `steatosis export RUN_DIR`."
        )
    return session


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
            rois.append(crop_roi(frame, roi.sector.mask, roi.rectangle))
            box = roi.rectangle
            edges = (box.top, box.left, box.height, box.width)
            row |= {**dict(zip(_BOX_COLUMNS, edges, strict=True)), "reason": ""}
        except ValueError as error:
            row |= {"reason": str(error)}
        rows.append(row | {"notice": NOTICE})
    if rois:
        scores = iter(session.run([OUTPUT_LAYER], {"roi": np.stack(rois)[..., np.newaxis]})[0])
        for row in rows:
            if not row["reason"]:
                values = next(scores)
                row["grade"] = GRADES[int(values.argmax())]
                row |= dict(zip(SCORE_COLUMNS, values.tolist(), strict=True))
    return rows
